"""What a network sees and what its output means: eps_n = c_skip u + c_out c_blocks net(c_in u, c_noise).

Parameterizations of the last block's noise, each a few lines of coefficients at time t:

- `eps`: the network predicts eps_n from the raw state (HOLD, CLD).
- `score`: the network is the last block's score itself (TOLD++, 2409.07697).
- `signal`: the network predicts the noise along the signal from the raw state, for noise in several blocks (PSLD).
- `noise` and `flow_noise`: as `signal`, of a network that predicts the noise of every block (PSLD, gDDIM).
- `mixed`: the network corrects the score of the Gaussian stationary part (CLD, 2112.07068, section 3).
- `gaussian`: EDM's preconditioning (2206.00364, table 1) for any order: whitened input, the optimal
  linear prediction for N(0, sigma_data^2) data as skip, unit-variance target.
- `DENOISERS`: at every order the network is an ordinary denoiser of y = q0 + sigma_eff eps, with a preconditioning of
  that table: `sufficient` is EDM's; `vp`, `subvp` and `ve` are those of score_sde (2011.13456); `v` and `x0` predict
  another quantity than `vp` from the same input (2202.00512, section 4).

For n = 1 `gaussian` and `sufficient` are EDM. c_noise is in `noise_conditioning`, whose names are here as well. Dtypes:
everything here is float32; the network casts inside.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.errors import UserError, chosen, require, require_number
from hold_jax.noise_conditioning import (
    BETA_SCHEDULES,
    CLOCKS,
    CONDITIONINGS,
    DiscreteClock,
    betas,
    discrete_noise,
    discrete_time,
    log_noise,
    log_time,
    scaled_time,
    subvp_time,
    ve_noise,
    ve_noise_from,
    vp_time,
)
from hold_jax.numerics import exact
from hold_jax.sde import LinearSDE

__all__ = [
    "ALL_NOISE",
    "BETA_SCHEDULES",
    "CLOCKS",
    "CONDITIONINGS",
    "DENOISERS",
    "LAST_NOISE",
    "PARAMETERIZATIONS",
    "Coefficients",
    "DiscreteClock",
    "EpsFn",
    "Network",
    "Preconditioning",
    "betas",
    "discrete_noise",
    "discrete_time",
    "eps",
    "eps_function",
    "flow_noise",
    "gaussian",
    "is_denoiser",
    "log_noise",
    "log_time",
    "mixed",
    "noise",
    "scaled_time",
    "score",
    "signal",
    "subvp",
    "subvp_time",
    "sufficient",
    "v",
    "ve",
    "ve_noise",
    "ve_noise_from",
    "vp",
    "vp_time",
    "x0",
]

EpsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""eps_fn(u (B, *S, n, C), t () or (B,)) -> (B, *S, 1, C), the noise of the last block."""

Network = Callable[[jax.Array, jax.Array], jax.Array]
"""network(inputs (B, *S, k C), c_noise (B,)) -> (B, *S, C), or of m blocks (B, *S, m C), float32."""


class Coefficients(NamedTuple):
    """Scalars and matrices at one time, or at one for each example.

    Attributes:
      c_in: (..., k, n), of the network's k input blocks.
      c_skip: (..., 1, n).
      c_out: (...,).
      c_blocks: (..., 1, m), which makes one block of the m blocks that the network returns; None: it returns one.
    """

    c_in: jax.Array
    c_skip: jax.Array
    c_out: jax.Array
    c_blocks: jax.Array | None = None


def eps(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """The network predicts eps_n from u."""
    del sigma_data
    n = sde.order
    return Coefficients(
        jnp.eye(n, dtype=jnp.float32), jnp.zeros((1, n), jnp.float32), jnp.ones(jnp.shape(t), jnp.float32)
    )


def score(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """The network is the score of the last block, -eps_n / L_nn (TOLD++, 2409.07697, algorithm 1)."""
    del sigma_data
    n = sde.order
    return Coefficients(
        jnp.eye(n, dtype=jnp.float32), jnp.zeros((1, n), jnp.float32), -kernels.marginal(sde, t).chol[..., -1, -1]
    )


def signal(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """The network predicts the noise along the signal, w' eps / |w| = (y - D) / sigma_eff, from u.

    With noise in several blocks eps_n alone may carry little information about q0 (w_n is small for PSLD at a low noise
    level). The noise along the signal carries all of it; the rest of the noise is a linear function of u. At n = 1 this
    is `eps`.
    """
    del sigma_data
    sigma = kernels.effective_noise(sde, t)
    along = _of_denoiser(sde, t, Preconditioning(jnp.ones_like(sigma), jnp.zeros_like(sigma), -sigma))
    return along._replace(c_in=jnp.eye(sde.order, dtype=jnp.float32))


def noise(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """The network predicts the noise L^-1 (u - A q0) of every block from u (PSLD, ICCV 2023, code: `lower`).

    All of it but the part along the signal, w' eps / |w|, is a linear function of u: this part is used, as in `signal`.
    """
    return signal(sde, t, sigma_data)._replace(c_blocks=_along_signal(sde, t)[..., None, :])


def flow_noise(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """As `noise`, for the noise R^-1 (u - A q0) with the factor R of `kernels.flow_factor` (gDDIM, 2206.05564).

    gDDIM's code adds 1e-6 to the variances at the start, on which R depends at all times.
    """
    inverse = kernels.inverse_lower(kernels.marginal(sde, t).chol)
    row = jnp.sum(_along_signal(sde, t)[..., :, None] * inverse, axis=-2)
    row = jnp.sum(row[..., :, None] * kernels.flow_factor(sde, t, 1e-6), axis=-2)
    return signal(sde, t, sigma_data)._replace(c_blocks=row[..., None, :])


def _along_signal(sde: LinearSDE, t: jax.Array) -> jax.Array:
    """w / |w| (..., n): the direction of the signal in whitened coordinates."""
    w = kernels.whitened_mean(kernels.marginal(sde, t))
    return w * kernels.effective_noise(sde, t)[..., None]


def mixed(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """As `eps`, plus L_nn u_n / Sigma_nn, the expected noise if u_n were Gaussian (CLD, 2112.07068, section 3)."""
    del sigma_data
    n = sde.order
    last_row = kernels.marginal(sde, t).chol[..., -1, :]
    skip = last_row[..., -1] / jnp.sum(jnp.square(last_row), axis=-1)
    c_skip = jnp.zeros((*skip.shape, 1, n), jnp.float32).at[..., 0, -1].set(skip)
    return Coefficients(jnp.eye(n, dtype=jnp.float32), c_skip, jnp.ones(jnp.shape(t), jnp.float32))


def gaussian(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """With Sigma_tot = Sigma + sigma_data^2 A A' = T T': input T^-1 u, skip L_nn [Sigma_tot^-1 u]_n.

    c_out^2 = 1 - L_nn^2 [Sigma_tot^-1]_nn, here as |w_n| times the posterior's deviation, which does not cancel.
    """
    kernel = kernels.marginal(sde, t)
    total = kernels.total_chol(sde, t, sigma_data)
    whiten = kernels.inverse_lower(total)
    skip = (kernel.chol[..., -1, -1] / total[..., -1, -1])[..., None, None] * whiten[..., -1:, :]
    return Coefficients(whiten, skip, -kernels.whitened_mean(kernel)[..., -1] * _posterior_std(sde, t, sigma_data))


class Preconditioning(NamedTuple):
    """A denoiser of y = q0 + sigma eps: D = y - one_minus_c_skip y + c_out net(c_in y), each (...,) as sigma is.

    `one_minus_c_skip` is 1 - c_skip of EDM (2206.00364, table 1), stored itself because at a low noise level the
    difference would round to 0 in float32.
    """

    c_in: jax.Array
    one_minus_c_skip: jax.Array
    c_out: jax.Array


def sufficient(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """EDM's preconditioning (2206.00364, table 1): unit-variance input and target.

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2).
    """
    sigma = kernels.effective_noise(sde, t)
    total = jnp.square(sigma) + sigma_data**2
    root = jnp.sqrt(total)
    return _of_denoiser(sde, t, Preconditioning(1 / root, jnp.square(sigma) / total, sigma * sigma_data / root))


def vp(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """score_sde's VP: the network sees alpha y of unit variance at high noise, and predicts the noise eps of y."""
    del sigma_data
    sigma = kernels.effective_noise(sde, t)
    return _of_denoiser(sde, t, Preconditioning(1 / jnp.sqrt(1 + jnp.square(sigma)), jnp.zeros_like(sigma), -sigma))


def v(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """The input of `vp`; the network predicts v = alpha eps - sqrt(1 - alpha^2) q0, alpha^2 = 1 / (1 + sigma^2)."""
    del sigma_data
    sigma = kernels.effective_noise(sde, t)
    total = 1 + jnp.square(sigma)
    alpha = 1 / jnp.sqrt(total)
    return _of_denoiser(sde, t, Preconditioning(alpha, jnp.square(sigma) / total, -sigma * alpha))


def x0(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """The input of `vp`; the network predicts the data q0."""
    del sigma_data
    sigma = kernels.effective_noise(sde, t)
    one = jnp.ones_like(sigma)
    return _of_denoiser(sde, t, Preconditioning(1 / jnp.sqrt(1 + jnp.square(sigma)), one, one))


def subvp(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """score_sde's sub-VP: alpha q0 + (1 - alpha^2) eps has sigma = 1/alpha - alpha; else as `vp`."""
    del sigma_data
    sigma = kernels.effective_noise(sde, t)
    alpha = 1 / (sigma / 2 + jnp.sqrt(1 + jnp.square(sigma / 2)))
    return _of_denoiser(sde, t, Preconditioning(alpha, jnp.zeros_like(sigma), -sigma))


def ve(sde: LinearSDE, t: jax.Array, sigma_data: float) -> Coefficients:
    """score_sde's VE with `scale_by_sigma`: the network sees y itself and predicts sigma times the score."""
    del sigma_data
    sigma = kernels.effective_noise(sde, t)
    return _of_denoiser(sde, t, Preconditioning(jnp.ones_like(sigma), jnp.zeros_like(sigma), sigma))


def _of_denoiser(sde: LinearSDE, t: jax.Array, p: Preconditioning) -> Coefficients:
    """eps_n = [L^-1 u]_n - w_n D, as [(I - v v') L^-1 u]_n + w_n (y - D) with v = w / |w|, so that nothing cancels.

    The two are one, since y = v' L^-1 u / |w|. At n = 1 the first term is zero, and not a rounding error over sigma.
    """
    kernel = kernels.marginal(sde, t)
    w = kernels.whitened_mean(kernel)
    row, sigma = kernels.sufficient_row(sde, t)
    v = w * sigma[..., None]
    rest = -v[..., -1:] * v
    rest = rest.at[..., -1].set(jnp.sum(jnp.square(v[..., :-1]), axis=-1))
    beside = jnp.sum(rest[..., :, None] * kernels.inverse_lower(kernel.chol), axis=-2)[..., None, :]
    w_n = w[..., -1]
    skip = beside + (w_n * p.one_minus_c_skip)[..., None, None] * row
    return Coefficients(p.c_in[..., None, None] * row, skip, -w_n * p.c_out)


def _posterior_std(sde: LinearSDE, t: jax.Array, sigma_data: float) -> jax.Array:
    """The deviation of q0 ~ N(0, sigma_data^2) given u_t: EDM's c_out."""
    sigma = kernels.effective_noise(sde, t)
    return sigma * sigma_data / jnp.sqrt(jnp.square(sigma) + sigma_data**2)


DENOISERS = {"sufficient": sufficient, "vp": vp, "v": v, "x0": x0, "subvp": subvp, "ve": ve}
# Here the network's error is an error of eps_n, which the division by w_n amplifies: see `kernels.amplification`.
LAST_NOISE = {"eps": eps, "mixed": mixed, "score": score}
# The network returns as many blocks as the state has.
ALL_NOISE = {"noise": noise, "flow_noise": flow_noise}
PARAMETERIZATIONS = {**LAST_NOISE, **ALL_NOISE, "signal": signal, "gaussian": gaussian, **DENOISERS}


def is_denoiser(parameterization: str, conditioning: str) -> bool:
    """Returns whether the network depends on y and sigma_eff only: such a denoiser can be used with any SDE."""
    return parameterization in DENOISERS and conditioning in CLOCKS


def eps_function(
    sde: LinearSDE,
    network: Network,
    *,
    parameterization: str | Callable[[LinearSDE, jax.Array, float], Coefficients] = sufficient,
    conditioning: str | Callable[[LinearSDE, jax.Array], jax.Array] = log_noise,
    sigma_data: float = 0.5,
) -> EpsFn:
    """Wraps a network into `eps_fn(u, t)`, the form that losses, samplers and likelihoods take.

    With a `DiscreteClock` a denoiser is held above the greatest noise level, of which the network has seen none.

    Args:
      sde: the SDE.
      network: sees k blocks stacked on the channel axis; returns one block, or with `ALL_NOISE` one for each of u's.
      parameterization: a name of `PARAMETERIZATIONS`, or a function.
      conditioning: a name of `CONDITIONINGS`, or a function.
      sigma_data: standard deviation of the data, for `gaussian` and `sufficient`; the others ignore it.

    Raises:
      UserError: for an unknown name; from `eps_fn`, if the state or the network's output is not float32.
    """
    of_network = chosen("parameterization", parameterization, PARAMETERIZATIONS)
    clock = chosen("conditioning", conditioning, CONDITIONINGS)
    if of_network is gaussian or not isinstance(sigma_data, jax.core.Tracer):  # `gaussian` hashes it
        sigma_data = require_number("sigma_data", sigma_data, lambda s: 0 < s < math.inf, "positive")

    def eps_fn(u: jax.Array, t: jax.Array) -> jax.Array:
        _require_float32("u", u)
        c = of_network(sde, t, sigma_data)
        inputs = kernels.mix(c.c_in, u)
        inputs = inputs.reshape(*inputs.shape[:-2], -1)
        out = network(inputs, jnp.broadcast_to(clock(sde, t), u.shape[:1]))
        _require_float32("network output", out)
        blocks = 1 if c.c_blocks is None else c.c_blocks.shape[-1]
        shape = (*u.shape[:-2], blocks * u.shape[-1])
        require(out.shape == shape, "network(inputs, c_noise)", out.shape, f"of shape {shape}")
        if c.c_blocks is None:
            out = out[..., None, :]
        else:
            out = kernels.mix(c.c_blocks, out.reshape(*out.shape[:-1], c.c_blocks.shape[-1], -1))
        return kernels.mix(c.c_skip, u) + kernels.append_dims(c.c_out, u) * out

    held = isinstance(clock, DiscreteClock) and of_network in DENOISERS.values()
    return _held_above(sde, eps_fn, clock.noise_max) if held else eps_fn


def _held_above(sde: LinearSDE, eps_fn: EpsFn, noise_max: float) -> EpsFn:
    """The `eps_fn` of a denoiser that is held above a noise level: D(y, sigma) = D(y noise_max / sigma, noise_max).

    A network has seen no greater noise. What it predicts there is the noise, right to some error, and the error of
    D = y - sigma eps would grow with sigma; D itself hardly changes any more.
    """
    ends = exact.effective_noise(sde.F, sde.G, sde.cov0, np.asarray(sde.schedule.integral(0.0, sde.T)))
    if ends <= noise_max:
        return eps_fn
    last = float(sde.schedule.time(exact.integral_of_noise(sde.F, sde.G, sde.cov0, noise_max)))

    def held(u: jax.Array, t: jax.Array) -> jax.Array:
        y, sigma = kernels.sufficient_statistic(sde, u, t)
        at = jnp.minimum(t, last)
        rest = jnp.zeros((*u.shape[:-2], sde.order - 1, u.shape[-1]), u.dtype)
        less_noisy = kernels.state_of(sde, y * kernels.append_dims(noise_max / sigma, y), rest, at)
        inside = kernels.append_dims(jnp.asarray(t) <= last, u)
        seen = jnp.where(inside, u, less_noisy)
        found = eps_fn(seen, at)
        return jnp.where(inside, found, kernels.last_noise(sde, u, t, kernels.denoiser(sde, seen, at, found)))

    return held


def _require_float32(name: str, x: jax.Array) -> None:
    dtype = getattr(x, "dtype", type(x))
    if dtype != jnp.float32:
        raise UserError(f"{name} is {dtype}; only the inside of a network computes in another dtype than float32")


def __dir__() -> list[str]:
    return __all__
