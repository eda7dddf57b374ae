"""Products of activations and kernels, in which the gradient of the kernel has the type of the kernel.

For a float32 kernel and bfloat16 activations, the output and the gradient of the activations are computed in bfloat16.
The gradient of the kernel multiplies the same bfloat16 numbers but keeps the float32 sum. If it were rounded to
bfloat16, it would be summed over devices in bfloat16, but over accumulation steps in float32.
"""

from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.custom_derivatives import linear_call

Product = Callable[[jax.Array, jax.Array], jax.Array]


def dot(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: lax.DotDimensionNumbers,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """`lax.dot_general` over the last axis of x (..., C) and the first of the kernel (C, D): (..., D) in x's type."""

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.dot_general(x, kernel.astype(x.dtype), dimension_numbers, precision)

    def kernel_gradient(x: jax.Array, y_bar: jax.Array) -> jax.Array:
        rows = tuple(range(x.ndim - 1))
        return lax.dot_general(x, y_bar, ((rows, rows), ((), ())), precision, preferred_element_type=kernel.dtype)

    if x.dtype == kernel.dtype:
        # The gradient of the kernel is then a product of matrices too: on CPU a step takes 3 % less.
        rows = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), precision)
        return rows.reshape(*x.shape[:-1], kernel.shape[-1])
    return _apply(product, kernel_gradient, x, kernel)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    dilation: Sequence[int] | None = None,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Convolution of (B, *S, C) with a kernel (*taps, C, D), of pictures or signals: (B, *S', D) in x's type.

    Args:
      x: activations.
      kernel: of as many spatial axes as x.
      strides: one for each spatial axis.
      padding: "SAME", "VALID", or (low, high) for each spatial axis.
      dilation: of x, one for each spatial axis; None: 1.
      precision: of the products.
    """
    space = "HW"[: x.ndim - 2]
    dilation = dilation or (1,) * len(space)
    sides = [(n - 1) * d + 1 for n, d in zip(x.shape[1:-1], dilation, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(sides, kernel.shape[:-2], strides, padding)
    plain = sides == list(x.shape[1:-1]) and set(strides) == {1} and not any(map(any, padding))
    if plain and set(kernel.shape[:-2]) == {1}:
        # A product of matrices: on CPU the gradient of the kernel takes a quarter of the convolution's time.
        return dot(x, kernel.reshape(kernel.shape[-2:]), (((x.ndim - 1,), (0,)), ((), ())), precision)

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            strides,
            padding,
            lhs_dilation=dilation,
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
            precision=precision,
        )

    def kernel_gradient(x: jax.Array, y_bar: jax.Array) -> jax.Array:
        # Convolves x with y_bar, dilated by the strides; sums over examples, and the channels of x are the batch.
        ends = [
            (low, taps - side - low + (length - 1) * stride)
            for (low, _), taps, side, length, stride in zip(
                padding, kernel.shape[:-2], sides, y_bar.shape[1:-1], strides, strict=True
            )
        ]
        return lax.conv_general_dilated(
            x,
            y_bar,
            (1,) * len(space),
            ends,
            lhs_dilation=dilation,
            rhs_dilation=strides,
            dimension_numbers=(f"C{space}N", f"I{space}O", f"{space}NC"),
            precision=precision,
            preferred_element_type=kernel.dtype,
        )

    return _apply(product, kernel_gradient, x, kernel)


def _apply(product: Product, kernel_gradient: Product, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns product(x, kernel); if the types differ, the gradient of the kernel is `kernel_gradient`."""
    if x.dtype == kernel.dtype:
        return product(x, kernel)

    @jax.custom_jvp
    def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return product(x, kernel)

    @apply.defjvp
    def derivative(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
        (x, kernel), (x_dot, kernel_dot) = primals, tangents
        along_kernel = linear_call(product, kernel_gradient, x, kernel_dot)
        return apply(x, kernel), product(x_dot, kernel) + along_kernel

    return apply(x, kernel)
