"""Random numbers of a batch, drawn from one key, or example by example."""

from collections.abc import Callable

import jax

Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""draw(key, shape), e.g. `jax.random.normal`."""


def per_example(draw: Draw, key: jax.Array, shape: tuple[int, ...], index: jax.Array | None) -> jax.Array:
    """Random numbers of `shape` (B, ...).

    Args:
      draw: what is drawn.
      key: of the whole batch.
      shape: of the result.
      index: (B,) int32 numbers of the examples: example i's values depend on the key and i alone, so that they
        are the same in every batch it may be part of; None: on the key and the place in the batch.
    """
    if index is None:
        return draw(key, shape)
    return jax.vmap(lambda i: draw(jax.random.fold_in(key, i), shape[1:]))(index)
