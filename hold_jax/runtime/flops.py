"""The floating-point operations of a program's products, counted on its jaxpr: the same number on every device.

XLA counts before compiling on CPUs alone, and after it does not see what cuDNN computes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

_JAXPRS = (core.Jaxpr, core.ClosedJaxpr)


def of_products(jaxpr: Any) -> int:
    """Returns the operations of all matrix products and convolutions; a multiplication and an addition are two.

    A scan counts as often as it runs, a `while` loop once, a conditional as its largest branch. Zeros of padding and
    dilation do not count, as XLA counts. A program for several devices counts as a whole.
    Of a Pallas kernel one block of its grid counts; ragged products do not.

    Args:
      jaxpr: as `jax.jit(function).trace(...).jaxpr`.
    """
    return sum(map(_of, getattr(jaxpr, "jaxpr", jaxpr).eqns))


def _of(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _matrix_product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(map(of_products, params["branches"]))
    times = params.get("length", 1)
    if name == "shard_map":  # its jaxpr is that of one device
        times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    called = (part for value in params.values() for part in (value if isinstance(value, Sequence) else (value,)))
    return times * sum(of_products(part) for part in called if isinstance(part, _JAXPRS))


def _matrix_product(equation: Any) -> int:
    contracted = equation.params["dimension_numbers"][0][0]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    params, labels = equation.params, equation.params["dimension_numbers"]
    left, kernel = (var.aval.shape for var in equation.invars)
    out = equation.outvars[0].aval.shape
    products = 2 * out[labels.out_spec[0]] * out[labels.out_spec[1]] * kernel[labels.rhs_spec[1]]
    sides = zip(labels.lhs_spec[2:], labels.rhs_spec[2:], labels.out_spec[2:], strict=True)
    for axis, (i, j, k) in enumerate(sides):
        # Where tap t of output o reads the dilated input: one of its numbers, a zero between them, or padding.
        o, t = np.ogrid[: out[k], : kernel[j]]
        at = o * params["window_strides"][axis] + t * params["rhs_dilation"][axis] - params["padding"][axis][0]
        dilation = params["lhs_dilation"][axis]
        inside = (at >= 0) & (at <= (left[i] - 1) * dilation) & (at % dilation == 0)
        products *= int(np.count_nonzero(inside))
    return products
