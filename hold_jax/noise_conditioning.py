"""The noise conditioning c_noise of a network (EDM, 2206.00364, table 1): a function of the noise level or the time.

`CLOCKS` depend on the noise level sigma_eff alone, so a network with one of them is a denoiser for any SDE. The other
`CONDITIONINGS` depend on the time of the process. Each takes (sde, t) and returns a float32 array of the shape of t.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.errors import require_choice, require_number, require_whole
from hold_jax.numerics.schedules import Linear
from hold_jax.sde import LinearSDE

__all__ = [
    "BETA_SCHEDULES",
    "CLOCKS",
    "CONDITIONINGS",
    "DiscreteClock",
    "betas",
    "discrete_noise",
    "discrete_time",
    "log_noise",
    "log_time",
    "log_time_by",
    "scaled_time",
    "scaled_time_by",
    "subvp_time",
    "ve_noise",
    "ve_noise_from",
    "vp_time",
]


def log_noise(sde: LinearSDE, t: jax.Array) -> jax.Array:
    """Returns EDM's conditioning log(sigma_eff) / 4 (2206.00364, table 1), which is the same for all orders."""
    return jnp.log(kernels.effective_noise(sde, t)) / 4


def vp_time(sde: LinearSDE, t: jax.Array) -> jax.Array:
    """score_sde's 999 t of the VP process with noise sigma_eff: sigma^2 = e^B - 1, B = int_0^t beta."""
    return 999.0 * _SCORE_SDE_BETA.time(jnp.log1p(jnp.square(kernels.effective_noise(sde, t))))


def subvp_time(sde: LinearSDE, t: jax.Array) -> jax.Array:
    """score_sde's 999 t of the sub-VP process with noise sigma_eff = e^{B/2} - e^{-B/2}."""
    return 999.0 * _SCORE_SDE_BETA.time(2 * jnp.arcsinh(kernels.effective_noise(sde, t) / 2))


def ve_noise(sde: LinearSDE, t: jax.Array) -> jax.Array:
    """score_sde's log sigma for VE, for random Fourier features; its data are in [0, 1], its sigma half of ours."""
    return jnp.log(kernels.effective_noise(sde, t) / 2)


@functools.cache
def ve_noise_from(noise_min: float) -> Callable[[LinearSDE, jax.Array], jax.Array]:
    """Returns `ve_noise` clipped below at `noise_min`, the lowest noise level that the network was trained on."""
    noise_min = require_number("noise_min", noise_min, lambda s: s > 0, "positive")
    return lambda sde, t: jnp.maximum(ve_noise(sde, t), math.log(noise_min / 2))


def betas(beta_schedule: str, beta_start: float, beta_end: float, num_times: int) -> np.ndarray:
    """beta_i of a discrete variance-preserving process, i = 0, ..., num_times - 1, float64.

    'linear' is DDPM's (2006.11239), 'scaled_linear' linear in sqrt(beta), 'squaredcos_cap_v2' the cosine one,
    abar(s) = cos^2(pi/2 (s + 0.008) / 1.008) at s = i / num_times, beta at most 0.999 (2102.09672, eq. 17). The names
    are diffusers'.

    Raises:
      UserError: for another name, or values that give no such process.
    """
    require_choice("beta_schedule", beta_schedule, BETA_SCHEDULES)
    num_times = require_whole("num_times", num_times, 2)
    beta_start = require_number("beta_start", beta_start, lambda b: 0 < b < 1, "between 0 and 1")
    beta_end = require_number("beta_end", beta_end, lambda b: 0 < b < 1, "between 0 and 1")
    if beta_schedule == "squaredcos_cap_v2":
        product = np.cos((np.arange(num_times + 1) / num_times + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - product[1:] / product[:-1], 0.999)
    power = {"linear": 1.0, "scaled_linear": 0.5}[beta_schedule]
    return np.linspace(beta_start**power, beta_end**power, num_times) ** (1 / power)


@dataclasses.dataclass(frozen=True)
class DiscreteClock:
    """The index of a noise level in a discrete process; `eps_function` holds a denoiser above the greatest.

    Attributes:
      index: (sde, t) -> index, of the shape of t.
      noise_max: the greatest noise level, in the model's range.
    """

    index: Callable[[LinearSDE, jax.Array], jax.Array]
    noise_max: float

    def __call__(self, sde: LinearSDE, t: jax.Array) -> jax.Array:
        """Returns the index at time t."""
        return self.index(sde, t)


BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@functools.cache
def discrete_time(
    beta_schedule: str = "linear", beta_start: float = 1e-4, beta_end: float = 0.02, num_times: int = 1000
) -> DiscreteClock:
    """The index i of a discrete process at noise sigma_eff; the defaults are DDPM's (2006.11239, section 4).

    sigma_i^2 = 1 / abar_i - 1 with abar_i = prod_{j <= i} (1 - beta_j). Between two indices i is linear in log sigma;
    below the least and above the greatest sigma_i it is 0 and num_times - 1. Arguments as of `betas`.
    """
    log_product = np.cumsum(np.log1p(-betas(beta_schedule, beta_start, beta_end, num_times)))
    log_sigma = np.log(np.expm1(-log_product)) / 2
    starts, steps = log_sigma[:-1].astype(np.float32), np.diff(log_sigma).astype(np.float32)

    def index(sde: LinearSDE, t: jax.Array) -> jax.Array:
        at = jnp.log(kernels.effective_noise(sde, t))
        # compare_all: the binary search is a loop, which does not compile inside a sampler's for NVIDIA GPUs.
        i = jnp.clip(jnp.searchsorted(starts, at, side="right", method="compare_all") - 1, 0, num_times - 2)
        return i + jnp.clip((at - jnp.asarray(starts)[i]) / jnp.asarray(steps)[i], 0, 1)

    return DiscreteClock(index, float(np.exp(log_sigma[-1])))


@functools.cache
def discrete_noise(noise_min: float = 0.02, noise_max: float = 100.0, num_times: int = 1000) -> DiscreteClock:
    """The index i of sigma_eff in a geometric sequence of noise levels, the greatest first (NCSN, 1907.05600, 4.1).

    sigma_i = noise_max (noise_min / noise_max)^(i / (num_times - 1)); i is 0 above `noise_max` and num_times - 1 below
    `noise_min`. The defaults are those of score_sde's discrete VE networks for data in [-1, 1].

    Args:
      noise_min: the least noise level, in the model's range.
      noise_max: the greatest.
      num_times: their number.
    """
    noise_max = require_number("noise_max", noise_max, lambda s: s > 0, "positive")
    allowed = f"between 0 and noise_max = {noise_max}"
    noise_min = require_number("noise_min", noise_min, lambda s: 0 < s < noise_max, allowed)
    num_times = require_whole("num_times", num_times, 2)
    last, span = num_times - 1, math.log(noise_max / noise_min)

    def index(sde: LinearSDE, t: jax.Array) -> jax.Array:
        below = math.log(noise_max) - jnp.log(kernels.effective_noise(sde, t))
        return jnp.clip(below * (last / span), 0, last)

    return DiscreteClock(index, noise_max)


def scaled_time(sde: LinearSDE, t: jax.Array) -> jax.Array:
    """score_sde's conditioning 999 t / T, for positional embeddings."""
    return scaled_time_by(999.0)(sde, t)


@functools.cache
def scaled_time_by(time_scale: float) -> Callable[[LinearSDE, jax.Array], jax.Array]:
    """Returns `scaled_time` with another factor than 999: PSLD's networks with positional embeddings have 1."""
    return lambda sde, t: time_scale * jnp.asarray(t, jnp.float32) / sde.T


def log_time(sde: LinearSDE, t: jax.Array) -> jax.Array:
    """CLD's and PSLD's conditioning log t, for random Fourier features (2112.07068, code)."""
    return log_time_by(1.0)(sde, t)


@functools.cache
def log_time_by(time_scale: float) -> Callable[[LinearSDE, jax.Array], jax.Array]:
    """Returns log(time_scale * t): gDDIM's networks have 999 (2206.05564, code)."""
    return lambda sde, t: jnp.log(jnp.asarray(t, jnp.float32) * time_scale)


# beta of score_sde's published VP and sub-VP networks (2011.13456, appendix C).
_SCORE_SDE_BETA = Linear(0.1, 19.9)
# Functions of sigma_eff alone, and of the process's own time.
CLOCKS = {
    "log_noise": log_noise,
    "vp_time": vp_time,
    "subvp_time": subvp_time,
    "ve_noise": ve_noise,
    "discrete_time": discrete_time(),
    "discrete_noise": discrete_noise(),
}
CONDITIONINGS = {**CLOCKS, "time": scaled_time, "log_time": log_time}
