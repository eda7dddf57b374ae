"""What a network sees and what its output means: eps_n = c_skip u + c_out net(c_in u, c_noise).

Four parameterisations of the last block's noise, each a few lines of coefficients at time t:

- `eps`: the network predicts eps_n from the raw state (HOLD, CLD).
- `mixed`: the network corrects the score of the Gaussian stationary part (CLD, 2112.07068, section 3).
- `gaussian`: EDM's preconditioning (2206.00364, table 1) for any order: whitened input, the optimal
  linear prediction for N(0, sigma_data^2) data as skip, unit-variance target.
- `sufficient`: the network is an ordinary denoiser of y = q0 + sigma_eff eps, EDM's, at every order.

For n = 1 the last two are EDM. Dtypes: everything here is float32; the network casts inside.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hold_jax import kernels
from hold_jax.sde import LinearSDE

EpsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""eps_fn(u (B, *S, n, C), t () or (B,)) -> (B, *S, 1, C), the noise of the last block."""

Network = Callable[[jax.Array, jax.Array], jax.Array]
"""network(inputs (B, *S, k C), c_noise (B,)) -> (B, *S, C) float32."""


class Coefficients(NamedTuple):
    """c_in (..., k, n) input blocks; c_skip (..., 1, n); c_out (...,): scalars or one per example."""

    c_in: jax.Array
    c_skip: jax.Array
    c_out: jax.Array


def eps(m: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """The network predicts eps_n from u."""
    del sigma_data
    n = m.order
    return Coefficients(jnp.eye(n), jnp.zeros((1, n)), jnp.ones(jnp.shape(t)))


def mixed(m: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """As `eps`, plus the noise L_nn u_n / Sigma_nn that a Gaussian u_n would have."""
    del sigma_data
    n = m.order
    last_row = kernels.marginal(m, t).chol[..., -1, :]
    skip = last_row[..., -1] / jnp.sum(jnp.square(last_row), axis=-1)
    return Coefficients(jnp.eye(n), jnp.zeros((*skip.shape, 1, n)).at[..., 0, -1].set(skip), jnp.ones(jnp.shape(t)))


def gaussian(m: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """With Sigma_tot = Sigma + sigma_data^2 A A' = T T': input T^-1 u, skip L_nn [Sigma_tot^-1 u]_n.

    c_out^2 = 1 - L_nn^2 [Sigma_tot^-1]_nn, here as |w_n| times the posterior's deviation, which does not cancel.
    """
    kernel = kernels.marginal(m, t)
    total = kernels.total_chol(m, t, sigma_data)
    whiten = kernels.inverse_lower(total)
    skip = (kernel.chol[..., -1, -1] / total[..., -1, -1])[..., None, None] * whiten[..., -1:, :]
    return Coefficients(whiten, skip, -kernels.whitened_mean(kernel)[..., -1] * _posterior_std(m, t, sigma_data))


def sufficient(m: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """D = c_skip y + c_out net(c_in y) with EDM's coefficients, and eps_n = [L^-1 u]_n - w_n D."""
    kernel = kernels.marginal(m, t)
    w_n = kernels.whitened_mean(kernel)[..., -1]
    row, sigma = kernels.sufficient_row(m, t)
    total = jnp.square(sigma) + sigma_data**2
    skip = kernels.inverse_lower(kernel.chol)[..., -1:, :] - (w_n * sigma_data**2 / total)[..., None, None] * row
    return Coefficients(row / jnp.sqrt(total)[..., None, None], skip, -w_n * _posterior_std(m, t, sigma_data))


def _posterior_std(m: LinearSDE, t: jax.Array, sigma_data: float) -> jax.Array:
    """The deviation of q0 ~ N(0, sigma_data^2) given u_t: EDM's c_out."""
    sigma = kernels.effective_noise(m, t)
    return sigma * sigma_data / jnp.sqrt(jnp.square(sigma) + sigma_data**2)


PARAMETERIZATIONS = {"eps": eps, "mixed": mixed, "gaussian": gaussian, "sufficient": sufficient}


def log_noise(m: LinearSDE, t: jax.Array) -> jax.Array:
    """EDM's conditioning log(sigma_eff) / 4: the one clock on which all orders agree."""
    return jnp.log(kernels.effective_noise(m, t)) / 4


def scaled_time(m: LinearSDE, t: jax.Array) -> jax.Array:
    """score_sde's conditioning 999 t / T, for positional embeddings."""
    return 999.0 * jnp.asarray(t, jnp.float32) / m.T


CONDITIONINGS = {"log_noise": log_noise, "time": scaled_time}


def eps_function(
    m: LinearSDE,
    network: Network,
    *,
    parameterization: Callable[[LinearSDE, jax.Array, float], Coefficients] = gaussian,
    conditioning: Callable[[LinearSDE, jax.Array], jax.Array] = log_noise,
    sigma_data: float = 0.5,
) -> EpsFn:
    """Wraps a network into `eps_fn(u, t)`, the only form the losses, samplers and likelihoods know.

    Args:
      m: the SDE.
      network: sees k blocks stacked on the channel axis, returns one block, float32.
      parameterization: one of `PARAMETERIZATIONS`' values.
      conditioning: one of `CONDITIONINGS`' values.
      sigma_data: standard deviation of the data, for `gaussian` and `sufficient`.

    Raises:
      TypeError: if the state or the network's output is not float32.
    """

    def eps_fn(u: jax.Array, t: jax.Array) -> jax.Array:
        _require_float32("u", u)
        c = parameterization(m, t, sigma_data)
        inputs = kernels.mix(c.c_in, u)
        inputs = inputs.reshape(*inputs.shape[:-2], -1)
        out = network(inputs, jnp.broadcast_to(conditioning(m, t), u.shape[:1]))
        _require_float32("network output", out)
        return kernels.mix(c.c_skip, u) + kernels.per_example(c.c_out, u) * out[..., None, :]

    return eps_fn


def _require_float32(name: str, x: jax.Array) -> None:
    if x.dtype != jnp.float32:
        raise TypeError(f"{name} is {x.dtype}; only the inside of a network computes in another dtype than float32")
