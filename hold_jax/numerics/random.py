"""Random numbers for a batch, from one key or one key per example; random subsets; classes by frequency."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.errors import UserError, require, shown

_GOLDEN = 2654435769  # 2^32 over the golden ratio: i * _GOLDEN mod 2^32 fills [0, 2^32) evenly for any number of i

Draw = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
"""draw(key, shape, dtype), e.g. `jax.random.normal`."""


def per_example(draw: Draw, key: jax.Array, shape: tuple[int, ...], index: jax.Array | None = None) -> jax.Array:
    """Draws random numbers for a batch.

    Args:
      draw: the distribution, e.g. `jax.random.normal`.
      key: key of the whole batch.
      shape: shape of the result, (B, ...).
      index: (B,) int32 numbers of the examples. The values of example i then depend on the key and i only, so that they
        are the same in every batch that contains it. None: the values depend on the key and the place in the batch.

    Returns:
      Array of `shape`, float32.
    """
    # The numbers are those of draw(key, shape). Compilers unroll loops over the last axes of (B, H, W, n, C), which
    # have a few numbers each: XLA for CPU makes ten times as much code of it.
    size = math.prod(shape[1:])
    if index is None:
        return draw(key, (shape[0], size), jnp.float32).reshape(shape)
    return jax.vmap(lambda i: draw(jax.random.fold_in(key, i), (size,), jnp.float32))(index).reshape(shape)


def require_key(key: Any) -> None:
    """Checks that an argument `key` is one key of `jax.random`, typed or raw.

    Raises:
      UserError: if it is something else, such as a seed or several keys.
    """
    dtype = getattr(key, "dtype", np.dtype(object))
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == np.uint32 and np.shape(key) in ((2,), (4,))  # of threefry, of rbg
    one = np.ndim(key) == 0 if typed else raw
    require(one, "key", key, "one key of JAX, such as jax.random.key(0)")


def require_index(index: Any, num: int) -> jax.Array | None:
    """The numbers of `num` examples as an array, or None.

    Raises:
      UserError: if they are something else.
    """
    if index is None:
        return None
    with contextlib.suppress(TypeError, ValueError):
        array = jnp.asarray(index)
        if array.shape == (num,) and jnp.issubdtype(array.dtype, jnp.integer):
            return array
    raise UserError(f"`index` is {shown(index)}; it must be {num} whole numbers, one for each example")


def subset(num: int, size: int, seed: int = 0) -> np.ndarray:
    """Draws `size` different numbers from 0..num - 1.

    The subset of size k is the first k numbers of every larger subset with the same seed.

    Args:
      num: number of examples to draw from.
      size: how many to draw; more than `num` gives all.
      seed: seed of the random order.

    Returns:
      (min(size, num),) int64.
    """
    return np.random.Generator(np.random.Philox(key=[seed, num])).permutation(num)[:size]


def class_of(index: jax.Array, counts: Sequence[int]) -> jax.Array:
    """Returns a class for each number in `index`, such that the class frequencies match `counts`.

    The interval [0, 1) is divided among the classes in proportion to `counts`. Number i gets the class whose part
    contains the fractional part of i / golden ratio. This sequence is equidistributed: in any N consecutive numbers, a
    class with share f occurs N f times, up to a few.

    Args:
      index: (B,) int32, 0 or more.
      counts: number of examples of each class; at least one is positive.

    Returns:
      (B,) int32 classes.
    """
    share = np.asarray(counts, np.float64) / np.sum(np.asarray(counts, np.float64))
    ends = np.minimum(np.floor(np.cumsum(share)[:-1] * 2**32), 2**32 - 1).astype(np.uint32)
    place = index.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    found = jnp.searchsorted(jnp.asarray(ends), place, side="right").astype(jnp.int32)
    return jnp.minimum(found, int(np.flatnonzero(share)[-1]))
