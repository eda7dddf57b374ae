"""Fingerprints of arrays, to check that arrays read from a disk are bitwise those that were written."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def fingerprints(tree: Any) -> dict[str, jax.Array]:
    """Returns a () uint32 fingerprint for each array of `tree`, by the path of the array; call it inside `jax.jit`.

    The fingerprint is the sum modulo 2^32 of a hash of each element's bits and position (the finalizer of murmur3, a
    bijection). A change of one element always changes it; any other change goes unnoticed with probability 2^-32. The
    sum does not depend on how the array is spread over devices, and no array is copied to the host.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _fingerprint(leaf) for path, leaf in leaves}


def _fingerprint(a: jax.Array) -> jax.Array:
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a = jax.random.key_data(a)
    bits = jax.lax.bitcast_convert_type(a, jnp.dtype(f"uint{8 * a.dtype.itemsize}")).astype(jnp.uint32)
    place = jnp.zeros(a.shape, jnp.uint32)
    for axis in range(a.ndim):
        stride = math.prod(a.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, a.shape, axis) * jnp.uint32(stride)
    h = bits + place * jnp.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)
