"""The score of data with Gaussian noise, from a diffusion model of any order: a gradient for `langevin`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hold_jax import kernels
from hold_jax.errors import require
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE


def smoothed_score(sde: LinearSDE, eps_fn: EpsFn) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The score of p_sigma = p * N(0, sigma^2), (y, sigma) -> (D(y, sigma) - y) / sigma^2 (Tweedie).

    The denoiser D of order n is taken at u = A y, the state whose sufficient statistic is y and whose other
    directions are zero (docs/method.md, section 3): exact for an exact eps_fn.

    Args:
      sde: the model's process.
      eps_fn: (u (B, *S, n, C), t) -> (B, *S, 1, C), the noise of the last block.

    Returns:
      A function of y (*S, C) and sigma (), from 1e-5 to the process's largest noise (NaN outside), for
      `langevin(gradient=..., levels=sigmas)` or, with sigma fixed by `functools.partial(..., sigma=...)`, for one
      density.
    """
    require(callable(eps_fn), "eps_fn", eps_fn, "a function (u, t) -> noise of the last block")

    def score(y: jax.Array, sigma: jax.Array) -> jax.Array:
        t = kernels.time_of_noise(sde, sigma)
        t = jnp.where(t <= sde.T * (1 + 1e-5), t, jnp.nan)  # times are known beyond T
        u = kernels.mix(kernels.marginal(sde, t).phi[..., :, :1], y[None, ..., None, :])
        clean = kernels.denoiser(sde, u, t, eps_fn(u, t))[0]
        return (clean - y) / jnp.square(sigma)

    return score
