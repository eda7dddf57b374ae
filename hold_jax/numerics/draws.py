"""Equal random draws of a function, made together.

The initial parameters of a network are a few hundred draws, of some 30 shapes, each from a key of its own; a draw is a
few hundred operations of threefry, among which XLA for NVIDIA GPUs searches fusions. For `configs/cifar10_hold.py` that
program compiles in 91 s, and in 18 s with one draw a shape (docs/hardware.md).
"""

import collections
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core

Result = TypeVar("Result")


def together(function: Callable[..., Result]) -> Callable[..., Result]:
    """Returns `function` with its equal draws made at once: the same numbers from the same keys.

    Draws are equal if they have one shape, type and law. What the result does not depend on is not computed.

    Args:
      function: a function of arrays or keys, and trees of them, that makes draws of `jax.random`.
    """

    def evaluated(*args: Any) -> Result:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        jaxpr, left = closed.jaxpr, _needed(closed.jaxpr)
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *jax.tree.leaves(args)], strict=True))

        def read(variable: Any) -> Any:
            return variable.val if isinstance(variable, core.Literal) else values[variable]

        while left:
            later: list[Any] = []
            groups: dict[Any, list[Any]] = collections.defaultdict(list)
            for equation in left:
                if any(not isinstance(v, core.Literal) and v not in values for v in equation.invars):
                    later.append(equation)  # of a draw that is not made yet
                elif _is_draw(equation):
                    groups[_kind(equation)].append(equation)
                else:
                    values |= zip(equation.outvars, _apply(equation, *map(read, equation.invars)), strict=True)
            for group in groups.values():
                operands = [[read(v) for v in column] for column in zip(*(e.invars for e in group), strict=True)]
                made = jax.vmap(lambda *xs, e=group[0]: _apply(e, *xs))(*map(_stack, operands))
                for i, equation in enumerate(group):
                    values |= zip(equation.outvars, [rows[i] for rows in made], strict=True)
            left = later
        return jax.tree.unflatten(jax.tree.structure(shapes), [read(v) for v in jaxpr.outvars])

    return evaluated


def _needed(jaxpr: Any) -> list[Any]:
    """Returns the equations that the outputs depend on, in order."""
    wanted, found = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if wanted & {*equation.outvars}:
            found.append(equation)
            wanted |= {v for v in equation.invars if not isinstance(v, core.Literal)}
    return found[::-1]


def _is_draw(equation: Any) -> bool:
    """Whether it is a law of `jax.random`, which is jitted under its own name, or makes a key from another."""
    return equation.primitive.name == "random_fold_in" or equation.params.get("name") in ("_uniform", "_normal")


def _kind(equation: Any) -> Any:
    """Equal for draws of one law and shape; JAX traces these to one object."""
    return equation.primitive, id(equation.params.get("jaxpr"))


def _apply(equation: Any, *operands: Any) -> list[Any]:
    out = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
    return out if equation.primitive.multiple_results else [out]


def _stack(rows: list[Any]) -> jax.Array:
    return jnp.stack([jnp.asarray(row) for row in rows])
