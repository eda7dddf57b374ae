"""Negative log-likelihood in bits per dimension, exact for first order, a bound for any order.

The generative model is the probability flow in the signal gauge (`samplers.whitened`), which deterministic samplers
follow. In that gauge u = A y + L K rest (`kernels.rest_basis`): `rest` is constant along the flow, and the sufficient
statistic y follows the flow of EDM (2206.00364, eq. 1) at every order:

    dy / d log sigma = y - D,    D = E[q0 | u],    sigma = sigma_eff.

The divergence is therefore a trace over the d dimensions of the data, not over n d. The flow generates y at t_min, the
data with the effective noise of t_min (0.002 data units). With div = d - tr dD/dy,

    log p(y, rest) at t_min = log p(y, rest) at T + int div d log sigma,    u(T) ~ N(0, prior_cov).

The auxiliary blocks are integrated out by a bound (HOLD 2404.12814; CLD 2112.07068, appendix B.5), for any r:

    log p(x) >= E_{r(rest)} [log p(y = x, rest) - log r(rest)].

- `posterior`, the default: r = N(0, I), the law of `rest` under the process itself at t_min. The gap comes from the
  network and from the prior at T; for an exact denoiser and a T at which the prior is exact it is zero.
- `initial`: the papers' bound, u(t_min) = (x, auxiliaries drawn from their law at t = 0). The gap is
  KL(law at 0 || p(auxiliaries | x) at t_min), which is large unless t_min is so small that the auxiliary blocks still
  have their law of t = 0 (docs/method.md, section 7).

Bits per dimension of data on a lattice of spacing `bin_width` (2 / 255 for 8-bit pictures in [-1, 1]; sigma_data / std
for integers of any width that are standardized): with u uniform on a cell, log P(x) >= E log p(x + u) + sum_i log
bin_width_i over the d dimensions (Theis et al., 1511.01844), so

    bpd = -log2 p(x + u) / d - mean_i log2 bin_width_i.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.errors import UserError, require, require_choice, require_data, require_number, require_whole
from hold_jax.numerics import exact, ode, programs
from hold_jax.numerics.random import per_example, require_index, require_key
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE, require_sde

UNFINISHED = (
    "the likelihood is NaN: either the network's output is NaN, or the solver made `max_steps` steps without reaching "
    "T; look at the training loss, or raise max_steps, or loosen rtol and atol"
)
__all__ = ["AUXILIARIES", "UNFINISHED", "Auxiliary", "Likelihood", "Start", "bits_per_dim"]

_LOG_2PI = math.log(2 * math.pi)


class Likelihood(NamedTuple):
    """What `bits_per_dim` returns.

    Attributes:
      bpd: (B,) float32 bits per dimension, of the density (bin_width None) or of data on a lattice.
      nfe: () int32 number of evaluations of `eps_fn` and its derivative.
      is_bound: True for n > 1: `bpd` is an upper bound, in expectation over the auxiliary blocks; False for n = 1.
    """

    bpd: jax.Array
    nfe: jax.Array
    is_bound: bool


def bits_per_dim(
    sde: LinearSDE,
    eps_fn: EpsFn,
    x: jax.Array,
    *,
    key: jax.Array,
    index: jax.Array | None = None,
    bin_width: float | tuple[float, ...] | None = None,
    probes: int = 1,
    repeats: int = 1,
    importance_weighted: bool = False,
    auxiliary: str = "posterior",
    solver: ode.Solver = ode.Solver(rtol=1e-5, atol=1e-5),  # noqa: B008
    t_min: float | None = None,
) -> Likelihood:
    """-log2 p(x) / d for each example.

    Composes with `jax.jit`, `jax.vmap`, `jax.pmap` and `jax.shard_map`. Outside of these it is compiled once for each
    `eps_fn`, shape and setting, as `samplers.sample`. Differentiable in forward mode alone (`jax.jvp`).

    Args:
      sde: the SDE.
      eps_fn: the noise of the last block, differentiable in u.
      x: (B, *S, C) data, floating, in the model's range.
      key: for dequantization, auxiliary blocks and probes.
      index: (B,) int32 numbers of the examples: the draws of example i depend on `key` and i alone; None: on its
        place in the batch.
      bin_width: spacing of the lattice of discrete data, in the units of x, one number or one for each channel: uniform
        noise of this width is added, and the result is in bits of the lattice; None: continuous data, and bits of the
        density.
      probes: Rademacher probes of Hutchinson's trace estimate, one draw for the whole path; 0: the exact trace, by d
        derivatives, for small d.
      repeats: independent draws of everything random, averaged for each example.
      importance_weighted: combine the draws as log mean exp: a tighter bound, falling with `repeats` (1509.00519).
        The noise of the probes enters the exponent: take probes = 0 or many.
      auxiliary: "posterior" or "initial", see above; no effect for n = 1.
      solver: of the flow. The batch shares its steps, which keep the error of every example within the tolerance.
      t_min: where the flow ends, at an effective noise above 1e-5; None: `sde.t_min`, a noise of 0.002.

    Returns:
      Likelihood; NaN under `jax.jit` if the solver did not reach T.

    Raises:
      UserError: for an argument out of range; outside `jax.jit` also if the solver did not reach T.
    """
    require_sde(sde, eps_fn)
    x = jnp.asarray(x)
    require_data("x", x)
    require(x.size > 0, "x", x.shape, "one example or more")
    require_key(key)
    index = require_index(index, x.shape[0])
    t_min = sde.t_min if t_min is None else t_min
    t_min = require_number("t_min", t_min, lambda t: 0 < t < sde.T, f"between 0 and T = {sde.T}")
    kernels.require_clock(sde, t_min)
    widths = None if bin_width is None else tuple(np.atleast_1d(bin_width).tolist())
    fits = widths is None or (len(widths) in (1, x.shape[-1]) and all(0 < w < math.inf for w in widths))
    allowed = f"positive, one number or one for each of {x.shape[-1]} channels, or None"
    require(fits, "bin_width", bin_width, allowed)
    probes, repeats = require_whole("probes", probes, 0), require_whole("repeats", repeats, 1)
    require(isinstance(solver, ode.Solver), "solver", solver, "a `numerics.ode.Solver`, such as Solver('dopri5')")
    require_choice("auxiliary", auxiliary, AUXILIARIES)
    singular = auxiliary == "initial" and np.linalg.matrix_rank(sde.cov0) < sde.order - 1
    require(not singular, "auxiliary", auxiliary, "'posterior' for an SDE with a singular cov0")
    settings = _Settings(sde, widths, probes, repeats, importance_weighted, auxiliary, solver, t_min)
    bpd, nfe, reached = programs.run(_bits_per_dim, eps_fn, settings, x, key, index)
    if not isinstance(reached, jax.core.Tracer) and not bool(reached):
        raise UserError(UNFINISHED)
    return Likelihood(bpd, nfe, sde.order > 1)


class _Settings(NamedTuple):
    """What a program is compiled for."""

    sde: LinearSDE
    bin_width: tuple[float, ...] | None
    probes: int
    repeats: int
    importance_weighted: bool
    auxiliary: str
    solver: ode.Solver
    t_min: float


def _bits_per_dim(
    eps_fn: EpsFn, c: _Settings, x: jax.Array, key: jax.Array, index: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Bits per dimension (B,), evaluations, and whether the solver reached T; NaN if it did not."""
    x = x.astype(jnp.float32)
    d = math.prod(x.shape[1:])

    def once(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        key_cell, key_rest, key_probe = jax.random.split(key, 3)
        inside = x
        if c.bin_width is not None:
            width = jnp.asarray(np.reshape(c.bin_width, (1,) * (x.ndim - 1) + (-1,)), jnp.float32)
            inside = x + width * (per_example(jax.random.uniform, key_cell, x.shape, index) - 0.5)
        start = AUXILIARIES[c.auxiliary](c.sde, inside, jnp.float32(c.t_min), key_rest, index)
        probes = _probes(key_probe, x.shape, index, c.probes)
        log_p, nfe, reached = _log_density(c.sde, eps_fn, start.y, start.rest, c.t_min, c.solver, probes)
        return log_p + start.log_weight, nfe, reached

    log_p, nfe, reached = jax.lax.map(once, jax.random.split(key, c.repeats))
    if c.importance_weighted:
        mean = (jax.nn.logsumexp(d * log_p, axis=0) - math.log(c.repeats)) / d
    else:
        mean = jnp.mean(log_p, axis=0)
    bpd = -mean / math.log(2) - (0.0 if c.bin_width is None else float(np.mean(np.log2(c.bin_width))))
    done = jnp.all(reached)
    return jnp.where(done, bpd, jnp.nan), jnp.sum(nfe), done


class Start(NamedTuple):
    """A point at t_min.

    Attributes:
      y: (B, *S, C) the sufficient statistic.
      rest: (B, *S, n - 1, C) the coordinates that are constant along the flow.
      log_weight: (B,) correction to log p(y, rest) in the bound, divided by d.
    """

    y: jax.Array
    rest: jax.Array
    log_weight: jax.Array


def _posterior(sde: LinearSDE, x: jax.Array, t: jax.Array, key: jax.Array, index: jax.Array | None) -> Start:
    """y = x, and rest ~ N(0, I), its law under the process, independent of the data."""
    del t
    rest = per_example(jax.random.normal, key, _rest_shape(sde, x), index)
    return Start(x, rest, _minus_log_normal(rest))


def _initial(sde: LinearSDE, x: jax.Array, t: jax.Array, key: jax.Array, index: jax.Array | None) -> Start:
    """u = (x, v), v drawn from the auxiliaries' law at t = 0."""
    noise = per_example(jax.random.normal, key, _rest_shape(sde, x), index)
    start_law = np.linalg.cholesky(sde.cov0[1:, 1:])
    v = kernels.mix(jnp.asarray(start_law, jnp.float32), noise)
    kernel = kernels.marginal(sde, t)
    # u - A x, from which y - x and rest follow without cancellation.
    away = jnp.concatenate([jnp.zeros_like(x)[..., None, :], v], axis=-2)
    drift = jnp.eye(sde.order, 1, dtype=jnp.float32) - kernel.phi[..., :, :1]
    away = away + kernels.mix(drift, x[..., None, :])
    row, sigma = kernels.sufficient_row(sde, t)
    whitened = kernels.mix(kernels.inverse_lower(kernel.chol), away)
    rest = kernels.mix(jnp.swapaxes(kernels.rest_basis(sde, t), -1, -2), whitened)
    # p(u) = p(y, rest) sigma / det L.
    scale = jnp.log(sigma) - jnp.sum(jnp.log(jnp.diagonal(kernel.chol)))
    log_weight = scale + _minus_log_normal(noise) + float(np.sum(np.log(np.diagonal(start_law))))
    return Start(x + kernels.mix(row, away)[..., 0, :], rest, log_weight)


Auxiliary = Callable[[LinearSDE, jax.Array, jax.Array, jax.Array, jax.Array | None], Start]
AUXILIARIES: dict[str, Auxiliary] = {"posterior": _posterior, "initial": _initial}


def _rest_shape(sde: LinearSDE, x: jax.Array) -> tuple[int, ...]:
    return (*x.shape[:-1], sde.order - 1, x.shape[-1])


def _minus_log_normal(noise: jax.Array) -> jax.Array:
    """-log N(noise; 0, I) / d (B,), for noise (B, *S, k, C)."""
    k = noise.shape[-2]
    return _mean(jnp.sum(jnp.square(noise), axis=-2)) / 2 + k * _LOG_2PI / 2


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def _probes(key: jax.Array, shape: tuple[int, ...], index: jax.Array | None, count: int) -> jax.Array:
    """Tangents e (k, B, *S, C): the mean of e' J e / d is an unbiased estimate of tr J / d, exact for count = 0."""
    if count == 0:
        d = math.prod(shape[1:])
        units = jnp.sqrt(jnp.float32(d)) * jnp.eye(d, dtype=jnp.float32)
        return jnp.broadcast_to(units.reshape(d, 1, *shape[1:]), (d, *shape))
    draw = lambda k: per_example(jax.random.rademacher, k, shape, index)  # noqa: E731
    return jax.vmap(draw)(jax.random.split(key, count))


def _log_density(
    sde: LinearSDE, eps_fn: EpsFn, y: jax.Array, rest: jax.Array, t_min: float, solver: ode.Solver, probes: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log p(y, rest) / d (B,) at t_min, the number of evaluations, and whether the solver reached T."""
    ends = np.log(exact.effective_noise(sde.F, sde.G, sde.cov0, sde.schedule.integral(0.0, np.array([t_min, sde.T]))))

    def field(log_sigma: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # v = y / sqrt(1 + sigma^2) is of order one at all times.
        v, _ = state
        sigma = jnp.exp(log_sigma)
        scale = jnp.sqrt(1 + jnp.square(sigma))
        t = kernels.time_of_noise(sde, sigma)

        def denoise(y: jax.Array) -> jax.Array:
            u = kernels.state_of(sde, y, rest, t)
            return kernels.denoiser(sde, u, t, eps_fn(u, t))

        along = lambda e: jax.jvp(denoise, (scale * v,), (e,))  # noqa: E731
        denoised, moved = jax.vmap(along, out_axes=(None, 0))(probes)
        # e' (e - J e) does not cancel where J is near one, as e' e - e' J e would.
        divergence = jnp.mean(jax.vmap(_mean)(probes * (probes - moved)), axis=0)
        return v / jnp.square(scale) - denoised / scale, divergence

    def norm(error: tuple[jax.Array, jax.Array]) -> jax.Array:
        """The largest error of an example."""
        return jnp.sqrt(jnp.max(_mean(jnp.square(error[0])) + jnp.square(error[1])))

    v = y / math.sqrt(1 + math.exp(2 * ends[0]))
    found = solver.solve(field, (v, jnp.zeros(y.shape[0], jnp.float32)), ends, norm=norm)
    v, divergence = jax.tree.map(lambda a: a[-1], found.y)
    y = v * math.sqrt(1 + math.exp(2 * ends[1]))
    return _log_prior(sde, y, rest) + divergence, found.nfe, found.reached


def _log_prior(sde: LinearSDE, y: jax.Array, rest: jax.Array) -> jax.Array:
    """log p(y, rest) / d (B,) at T, where u ~ N(0, prior_cov): log p(u) + log det L - log sigma."""
    _, chol = exact.marginal(sde.F, sde.G, sde.cov0, np.asarray(sde.schedule.integral(0.0, sde.T)))
    sigma = exact.effective_noise(sde.F, sde.G, sde.cov0, np.asarray(sde.schedule.integral(0.0, sde.T)))
    prior = np.linalg.cholesky(sde.prior_cov)
    constant = np.sum(np.log(np.diagonal(chol))) - np.log(sigma) - np.sum(np.log(np.diagonal(prior)))
    u = kernels.state_of(sde, y, rest, jnp.float32(sde.T))
    whitened = kernels.mix(jnp.asarray(np.linalg.inv(prior), jnp.float32), u)
    return float(constant) - _minus_log_normal(whitened)


def __dir__() -> list[str]:
    return __all__
