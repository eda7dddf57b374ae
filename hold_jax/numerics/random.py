"""Random numbers of a batch, drawn from one key, or example by example; random subsets; classes by frequency."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN = 2654435769  # 2^32 over the golden ratio: i * _GOLDEN mod 2^32 fills [0, 2^32) evenly for any number of i

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


def subset(num: int, size: int, seed: int = 0) -> np.ndarray:
    """Returns `size` different numbers of 0..num - 1 drawn at random, int64.

    The first k of them are the subset of size k, so that a result for fewer examples is part of one for more.

    Args:
      num: how many there are to draw from.
      size: how many to draw; more than `num` gives all.
      seed: of the draw.
    """
    return np.random.Generator(np.random.Philox(key=[seed, num])).permutation(num)[:size]


def class_of(index: jax.Array, counts: Sequence[int]) -> jax.Array:
    """Returns a class for each of the numbers `index`, so that classes occur as often as `counts` says.

    Number i takes the class whose share of [0, 1) holds the fractional part of i / golden ratio. That sequence is
    equidistributed: among any N numbers in a row a class with share f occurs N f times, within a few.

    Args:
      index: (B,) int32, 0 or more.
      counts: of each class, at least one of them positive.

    Returns:
      (B,) int32 classes.
    """
    share = np.asarray(counts, np.float64) / np.sum(np.asarray(counts, np.float64))
    ends = np.minimum(np.floor(np.cumsum(share)[:-1] * 2**32), 2**32 - 1).astype(np.uint32)
    place = index.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    found = jnp.searchsorted(jnp.asarray(ends), place, side="right").astype(jnp.int32)
    return jnp.minimum(found, int(np.flatnonzero(share)[-1]))
