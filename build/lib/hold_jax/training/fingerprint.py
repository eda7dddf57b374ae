"""Fingerprints of arrays: whether what came back from a disk is what went there, bit by bit."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def fingerprints(tree: Any) -> dict[str, jax.Array]:
    """A () uint32 for each array of `tree`, by the array's path; jit it.

    The sum modulo 2^32 of a hash of each element's bits and place (murmur3's finaliser, a bijection). One changed
    element always shows; anything else escapes with probability 2^-32. Addition has no order here, so the number does
    not depend on how the array is spread over devices, and nothing is copied to the host.
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
