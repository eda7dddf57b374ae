"""The linear map S from coordinates of unit scale to positions: preconditioning by a mass matrix or a callable.

z has unit scale where q = S z, S S' near the covariance of the target: the inverse mass matrix of Hamiltonian methods.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from hold_jax.errors import require


class Space(NamedTuple):
    """S as two functions of flat vectors (d,): `push` z -> S z and `pull` g -> S' g."""

    push: Callable[[jax.Array], jax.Array]
    pull: Callable[[jax.Array], jax.Array]


def diagonal(scale: Any) -> Space:
    """S = diag(scale), () or (d,)."""
    return Space(lambda z: scale * z, lambda g: scale * g)


def dense(factor: Any) -> Space:
    """S = factor (d, d)."""

    def times(matrix: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.matmul(matrix, x, precision=jax.lax.Precision.HIGHEST)

    return Space(lambda z: times(factor, z), lambda g: times(jnp.swapaxes(factor, 0, 1), g))


def of_mass(inverse_mass_matrix: Any, position: Any) -> Space:
    """S with S S' = `inverse_mass_matrix`.

    Args:
      inverse_mass_matrix: None (the identity), a number, variances (d,) or a covariance (d, d) of the flattened
        position, or a tree of variances like the position.
      position: an example.
    """
    name = "inverse_mass_matrix"
    if inverse_mass_matrix is None:
        return diagonal(1.0)
    flat, _ = ravel_pytree(position)
    if jax.tree.structure(inverse_mass_matrix) != jax.tree.structure(0):
        inverse_mass_matrix, _ = ravel_pytree(inverse_mass_matrix)
    value = np.asarray(inverse_mass_matrix, np.float64)
    if value.size == flat.size and value.shape == np.shape(position):
        value = value.reshape(flat.shape)
    shapes = ((), flat.shape, 2 * flat.shape)
    allowed = "a number, or of the shape " + " or ".join(str(shape) for shape in shapes[1:])
    require(value.shape in shapes, f"{name}.shape", value.shape, allowed)
    if value.ndim < 2:
        require(bool(np.all(value > 0) and np.all(np.isfinite(value))), name, value.tolist(), "positive and finite")
        return diagonal(np.sqrt(value).astype(flat.dtype))
    symmetric = np.allclose(value, value.T, rtol=1e-4, atol=1e-6 * np.abs(value).max())
    definite = symmetric and np.linalg.eigvalsh(value)[0] > 0
    require(definite, name, f"a matrix of shape {value.shape}", "symmetric and positive definite")
    return dense(np.linalg.cholesky(value).astype(flat.dtype))


def of_callable(preconditioner: Callable[[Any], Any], position: Any) -> Space:
    """S as a linear function of a tree like the position; its transpose comes from JAX."""
    flat, unravel = ravel_pytree(position)

    def push(z: jax.Array) -> jax.Array:
        return ravel_pytree(preconditioner(unravel(z)))[0]

    return Space(push, lambda g: jax.linear_transpose(push, flat)(g)[0])


def scaled(space: Space, scale: Any) -> Space:
    """scale S, for a number `scale` ()."""
    return Space(lambda z: scale * space.push(z), lambda g: scale * space.pull(g))
