"""Denoising score matching for HOLD: what to regress, at which times, with which weight.

Block coordinate score matching (BCSM: HOLD 2404.12814; at n = 2 CLD's hybrid score matching)
conditions on the data block only and learns the noise of the last block,

    loss = E_{t, q0, eps} w(t) || eps_n - eps_hat(u_t, t) ||^2,    u_t = A q0 + L eps.

DSM also conditions on the auxiliaries' start. Both have the same minimizer; BCSM's target is bounded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from hold_jax import kernels
from hold_jax.errors import chosen, require, require_data, require_number
from hold_jax.numerics import exact
from hold_jax.numerics.random import per_example, require_key
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE, require_sde

__all__ = [
    "LOSSES",
    "TIME_LAWS",
    "WEIGHTINGS",
    "Pair",
    "TimeLaw",
    "Times",
    "Weighting",
    "bcsm_loss",
    "bcsm_pair",
    "draw_times",
    "dsm_loss",
    "dsm_pair",
    "edm_weight",
    "eps_weight",
    "likelihood_weight",
    "log_normal",
    "log_uniform",
    "q0_weight",
    "score_matching_loss",
    "signal_weight",
    "uniform",
]

# --- Times ---------------------------------------------------------------------------------------


class Times(NamedTuple):
    """t (B,) and the probability density (B,) in t that it was drawn with."""

    t: jax.Array
    density: jax.Array


TimeLaw = Callable[[LinearSDE, jax.Array, float], Times]
"""(SDE, quantiles in (0, 1) (B,), t_min) -> Times on [t_min, T]."""


def uniform(sde: LinearSDE, quantile: jax.Array, t_min: float) -> Times:
    """Uniform in t."""
    length = sde.T - t_min
    return Times(t_min + length * quantile, jnp.full_like(quantile, 1 / length))


def log_uniform(sde: LinearSDE, quantile: jax.Array, t_min: float) -> Times:
    """Uniform in the logarithm of the effective noise, which must be above 1e-5 at t_min."""
    kernels.require_clock(sde, t_min)
    low, high = (jnp.log(kernels.effective_noise(sde, t)) for t in (t_min, sde.T))
    return _at_log_noise(sde, low + (high - low) * quantile, jnp.full_like(quantile, 1) / (high - low), t_min)


def log_normal(mean: float = -1.2, std: float = 1.2) -> TimeLaw:
    """log sigma_eff ~ N(mean, std^2) within the range of the process (EDM, 2206.00364, table 1)."""
    require(std > 0, "std", std, "positive")

    def law(sde: LinearSDE, quantile: jax.Array, t_min: float) -> Times:
        low, high = (ndtr((jnp.log(kernels.effective_noise(sde, t)) - mean) / std) for t in (t_min, sde.T))
        standard = ndtri(low + (high - low) * quantile)
        return _at_log_noise(sde, mean + std * standard, norm.pdf(standard) / (std * (high - low)), t_min)

    return law


def _at_log_noise(sde: LinearSDE, log_sigma: jax.Array, density: jax.Array, t_min: float) -> Times:
    """The times of given effective noises; the density in log sigma becomes one in t."""
    t = jnp.clip(kernels.time_of_noise(sde, jnp.exp(log_sigma)), t_min, sde.T)
    slope = jax.jvp(lambda s: jnp.log(kernels.effective_noise(sde, s)), (t,), (jnp.ones_like(t),))[1]
    return Times(t, density * slope)


TIME_LAWS: dict[str, TimeLaw] = {"uniform": uniform, "log_uniform": log_uniform, "log_normal": log_normal()}


def draw_times(
    sde: LinearSDE, law: TimeLaw, key: jax.Array, num: int, *, t_min: float, stratified: bool = True
) -> Times:
    """`num` times from a law; stratified: one in each of `num` equal quantiles (lower variance, same law)."""
    quantile = jax.random.uniform(key, (num,), jnp.float32)
    if stratified:
        quantile = (jnp.arange(num) + quantile) / num
    # The ends of (0, 1) would be infinite noise.
    return law(sde, jnp.clip(quantile, 1e-7, 1 - 1e-7), t_min)


# --- Weights -------------------------------------------------------------------------------------


Weighting = Callable[[LinearSDE, Times, float], jax.Array]
"""(SDE, times, standard deviation of the data) -> weights (B,) of the squared error of eps_n."""


def eps_weight(sde: LinearSDE, times: Times, sigma_data: float) -> jax.Array:
    """1: the squared error of eps_n itself (CLD's reweighted objective)."""
    del sde, sigma_data
    return jnp.ones_like(times.t)


def signal_weight(sde: LinearSDE, times: Times, sigma_data: float) -> jax.Array:
    """|w|^2 / w_n^2: the squared error of the noise along the signal, and so of the noise of all blocks (PSLD's loss).

    Given u the noise of all blocks, L^-1 (u - A D), is known but for w D: the error of eps_n is w_n / |w| times that
    along w.
    """
    del sigma_data
    w = kernels.whitened_mean(kernels.marginal(sde, times.t))
    return jnp.sum(jnp.square(w / w[..., -1:]), axis=-1)


def edm_weight(sde: LinearSDE, times: Times, sigma_data: float) -> jax.Array:
    """EDM's weight of the squared error of D (2206.00364, table 1): 1 / (w_n c)^2, 1/c^2 = 1/sigma^2 + 1/sigma_d^2."""
    w_n = kernels.whitened_mean(kernels.marginal(sde, times.t))[..., -1]
    # sigma_eff w_n is of order one where w_n and 1 / sigma_eff are huge.
    share = w_n * kernels.effective_noise(sde, times.t)
    return 1 / jnp.square(share) + 1 / jnp.square(w_n * sigma_data)


def likelihood_weight(sde: LinearSDE, times: Times, sigma_data: float) -> jax.Array:
    """beta |G' (score - score_hat)|^2 / 2, over the density of t: the loss bounds the NLL (2101.09258) for any law.

    An error e of eps_n is an error -e/w_n of D and so (G' Sigma^-1 A) e/w_n of G' score;
    for noise in the last block alone that is g e / L_nn.
    """
    del sigma_data
    kernel = kernels.marginal(sde, times.t)
    w = kernels.whitened_mean(kernel)
    inverse = kernels.inverse_lower(kernel.chol)
    # Sigma^-1 A / w_n = L^-T (w / w_n). Divided first: for small t, w and L^-1 are so large that products overflow.
    back = jnp.sum(inverse * (w / w[..., -1:])[..., :, None], axis=-2)
    driven = kernels.mix(jnp.asarray(sde.G.T, jnp.float32), back[..., None])[..., 0]
    return sde.schedule.beta(times.t) * jnp.sum(jnp.square(driven), axis=-1) / (2 * times.density)


def q0_weight(sde: LinearSDE, times: Times, sigma_data: float) -> jax.Array:
    """1/w_n^2: the squared error of the denoiser, uniform in q0."""
    del sigma_data
    return 1 / jnp.square(kernels.whitened_mean(kernels.marginal(sde, times.t))[..., -1])


WEIGHTINGS: dict[str, Weighting] = {
    "edm": edm_weight,
    "eps": eps_weight,
    "likelihood": likelihood_weight,
    "q0": q0_weight,
    "signal": signal_weight,
}

# --- Losses --------------------------------------------------------------------------------------


Pair = Callable[[LinearSDE, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(SDE, x (B, *S, C), t (B,), key) -> u_t (B, *S, n, C) and the target (B, *S, 1, C) for eps_n."""


def bcsm_pair(sde: LinearSDE, x: jax.Array, t: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """u_t = A q0 + L eps, and eps_n."""
    eps = per_example(jax.random.normal, key, (*x.shape[:-1], sde.order, x.shape[-1]))
    return kernels.perturb(kernels.marginal(sde, t), x, eps), eps[..., -1:, :]


def dsm_pair(sde: LinearSDE, x: jax.Array, t: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """u_t = Phi u_0 + L_Q eps, and the last score given u_0 in the units -1/L_nn of BCSM's eps_n."""
    key_auxiliary, key_eps = jax.random.split(key)
    factor = jnp.asarray(exact.covariance_factor(sde.cov0), jnp.float32)
    shape = (*x.shape[:-1], factor.shape[-1], x.shape[-1])
    auxiliary = per_example(jax.random.normal, key_auxiliary, shape)
    start = kernels.mix(factor, auxiliary)
    start = start + kernels.mix(jnp.eye(sde.order, 1, dtype=jnp.float32), x[..., None, :])
    eps = per_example(jax.random.normal, key_eps, start.shape)
    kernel = kernels.transition(sde, jnp.zeros_like(t), t)
    ratio = kernels.marginal(sde, t).chol[..., -1, -1] / kernel.chol[..., -1, -1]
    u = kernels.mix(kernel.phi, start) + kernels.mix(kernel.chol, eps)
    return u, kernels.append_dims(ratio, eps) * eps[..., -1:, :]


def score_matching_loss(
    sde: LinearSDE,
    eps_fn: EpsFn,
    x: jax.Array,
    key: jax.Array,
    *,
    pair: Pair = bcsm_pair,
    weighting: str | Weighting = eps_weight,
    sigma_data: float = 0.5,
    time_law: str | TimeLaw = TIME_LAWS["log_normal"],
    stratified: bool = True,
    t_min: float | None = None,
) -> jax.Array:
    """w(t) ||target - eps_hat(u_t, t)||^2, summed over the data's size.

    Args:
      sde: the SDE.
      eps_fn: predicts eps_n (B, *S, 1, C) from u (B, *S, n, C) and t (B,).
      x: data (B, *S, C), floating, in the model's range.
      key: for times and noise.
      pair: what to perturb and what to regress, `bcsm_pair` or `dsm_pair`.
      weighting: a name of `WEIGHTINGS`, or a function.
      sigma_data: standard deviation of the data, for `edm_weight`; the others ignore it.
      time_law: a name of `TIME_LAWS`, or a function; the default is EDM's, log sigma_eff ~ N(-1.2, 1.2^2).
      stratified: spread the batch's times over the law's quantiles.
      t_min: least time, whose kernel float32 can hold; None is `sde.t_min`.

    Returns:
      (B,) losses, one per example, float32.

    Raises:
      UserError: for an argument out of range or of another type, as integer data, or no data, and for an `eps_fn` that
        returns another shape.
    """
    require_sde(sde, eps_fn)
    t_min = sde.t_min if t_min is None else t_min
    t_min = kernels.require_t_min(sde, t_min)
    if not isinstance(sigma_data, jax.core.Tracer):
        require_number("sigma_data", sigma_data, lambda s: 0 < s < float("inf"), "positive")
    weighting, time_law = chosen("weighting", weighting, WEIGHTINGS), chosen("time_law", time_law, TIME_LAWS)
    require(callable(weighting), "weighting", weighting, "a name of `losses.WEIGHTINGS`, or a function")
    is_law = callable(time_law) and time_law is not log_normal
    require(is_law, "time_law", time_law, "a name of `losses.TIME_LAWS`, or a function, such as `losses.log_normal()`")
    require_data("x", jnp.asarray(x))
    x = jnp.asarray(x, jnp.float32)
    require(x.shape[0] != 0, "x", x.shape, "one example or more")
    require_key(key)
    key_times, key_pair = jax.random.split(key)
    times = draw_times(sde, time_law, key_times, x.shape[0], t_min=t_min, stratified=stratified)
    u, target = pair(sde, x, times.t, key_pair)
    error = target - kernels.require_noise(u, eps_fn(u, times.t))
    return weighting(sde, times, sigma_data) * jnp.sum(jnp.square(error), axis=tuple(range(1, error.ndim)))


def bcsm_loss(sde: LinearSDE, eps_fn: EpsFn, x: jax.Array, key: jax.Array, **options: Any) -> jax.Array:
    """Block coordinate score matching; see `score_matching_loss` for arguments and options."""
    return score_matching_loss(sde, eps_fn, x, key, pair=bcsm_pair, **options)


def dsm_loss(sde: LinearSDE, eps_fn: EpsFn, x: jax.Array, key: jax.Array, **options: Any) -> jax.Array:
    """Denoising score matching on the whole start u_0; see `score_matching_loss` for arguments and options."""
    return score_matching_loss(sde, eps_fn, x, key, pair=dsm_pair, **options)


LOSSES = {"bcsm": bcsm_loss, "dsm": dsm_loss}


def __dir__() -> list[str]:
    return __all__
