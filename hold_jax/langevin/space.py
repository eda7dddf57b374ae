"""The linear map S from coordinates of unit scale to positions: preconditioning by a mass matrix or a callable.

z has unit scale where q = S z, S S' near the covariance of the target: the inverse mass matrix of Hamiltonian methods.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from hold_jax.errors import UserError, require
from hold_jax.langevin.method import mix


class Space(NamedTuple):
    """S as two functions of flat vectors (d,): `push` z -> S z and `pull` g -> S' g."""

    push: Callable[[jax.Array], jax.Array]
    pull: Callable[[jax.Array], jax.Array]


def diagonal(scale: Any) -> Space:
    """S = diag(scale), () or (d,)."""
    return Space(lambda z: scale * z, lambda g: scale * g)


def dense(factor: Any) -> Space:
    """S = factor (d, d)."""
    return Space(lambda z: mix(factor, z), lambda g: mix(jnp.swapaxes(factor, 0, 1), g))


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
    leaves, tree = jax.tree.flatten(position)
    given, structure = jax.tree.flatten(inverse_mass_matrix)
    alike = structure == tree and list(map(np.shape, given)) == list(map(np.shape, leaves))
    if alike:
        # In NumPy: under jit `ravel_pytree` makes tracers of constants too.
        value = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in given])
    else:
        plain = structure == jax.tree.structure(0) or isinstance(inverse_mass_matrix, (list, tuple))
        try:
            value = np.asarray(inverse_mass_matrix, np.float64) if plain else None
        except ValueError:  # parts of several shapes, or no numbers
            value = None
        if value is None:
            allowed = f"a number, an array, or a tree like the position, {tree}, of its shapes"
            raise UserError(f"`{name}` is {structure}; it must be {allowed}")
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
    image = jax.eval_shape(preconditioner, position)
    alike = jax.tree.map(jnp.shape, image) == jax.tree.map(jnp.shape, position)
    require(alike, "preconditioner", f"a function that returns {image}", "a function to a tree like the position")
    if not isinstance(flat, Tracer):
        # `linear_transpose` takes an affine function without a word, and each step would add its constant.
        still = not any(bool(np.any(leaf)) for leaf in jax.tree.leaves(preconditioner(unravel(jnp.zeros_like(flat)))))
        require(still, "preconditioner", "not zero at zero", "linear")

    def push(z: jax.Array) -> jax.Array:
        return ravel_pytree(preconditioner(unravel(z)))[0].astype(flat.dtype)  # else its transpose takes another type

    return Space(push, lambda g: jax.linear_transpose(push, flat)(g)[0])


def scaled(space: Space, scale: Any) -> Space:
    """scale S, for a number `scale` ()."""
    return Space(lambda z: scale * space.push(z), lambda g: scale * space.pull(g))
