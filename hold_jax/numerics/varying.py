"""Values that differ among the devices of `jax.shard_map`, which JAX keeps in their types.

A loop must leave the types of its carry as they are, but what starts as zeros everywhere comes to vary. And a gradient
by a value that is the same everywhere is a sum over the devices. So here such a value becomes one that may vary. Only
under `jax.shard_map` (or `jax.pmap`), where the function is traced once more; elsewhere all is as it was.
"""

from collections.abc import Callable
from typing import Any

import jax


def carried(body: Callable[[Any], Any], start: Any) -> Any:
    """The start of a loop, with the types of its end: `body` maps a carry to a carry."""
    while _is_mapped():
        cast = jax.tree.map(like, start, jax.eval_shape(body, start))
        if all(a is b for a, b in zip(jax.tree.leaves(cast), jax.tree.leaves(start), strict=True)):
            break
        start = cast
    return start


def argument(function: Callable[[jax.Array], Any], x: jax.Array, *others: jax.Array) -> jax.Array:
    """An argument to differentiate `function` by, which varies where its result or one of `others` does."""
    return like(x, *others, *jax.tree.leaves(jax.eval_shape(function, x))) if _is_mapped() else x


def _is_mapped() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def axes(*arrays: Any) -> frozenset[str]:
    """The axes of the mesh over which one of the arrays, or of their types, varies."""
    types = ((a if isinstance(a, jax.ShapeDtypeStruct) else jax.typeof(a)).manual_axis_type for a in arrays)
    return frozenset().union(*(t.varying for t in types if t is not None))  # None: under `jax.pmap`


def like(x: jax.Array, *others: Any) -> jax.Array:
    """The value of `x`, which varies where one of `others` does."""
    new = axes(*others) - axes(x) if _is_mapped() else ()
    return jax.lax.pcast(x, tuple(new), to="varying") if new else x
