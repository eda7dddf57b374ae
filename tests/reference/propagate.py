"""The law of a sampler's output for Gaussian data, exactly: no Monte Carlo.

With an affine eps_fn a linear sampler is an affine map of its state and its noise, and its `step` acts on
each channel alike. So the very same `step` carries a factor of the covariance: one channel holds the mean,
the next ones the factor's columns, and each scalar noise draw is a unit vector in a channel of its own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.numerics import exact
from hold_jax.samplers import EulerMaruyama
from reference import oracle


class Law(NamedTuple):
    """N(mean (n,), cov (n, n)), float64."""

    mean: np.ndarray
    cov: np.ndarray


def truth(m, t, *, mean, std):
    """The law of u(t) for data N(mean, std^2)."""
    phi, chol = oracle.marginal(m, float(oracle.integral(m, t)), True, std)
    chol = chol.astype(np.float64)
    return Law(phi[:, 0].astype(np.float64) * mean, chol @ chol.T)


def prior(m):
    """The law that sampling starts from."""
    return Law(np.zeros(m.order), m.prior_cov)


def gaussian_row(m, t, std):
    """`oracle.gaussian_row` from the package's own float64 factors: as exact, for tiny noise at high order too."""
    b = m.schedule.integral(0.0, np.asarray(t, np.float64))
    cov0 = m.cov0 + std**2 * np.diag(np.eye(m.order)[0])
    phi, chol = exact.marginal(m.F, m.G, m.cov0, b)
    _, total = exact.marginal(m.F, m.G, cov0, b)
    inverse = exact.solve_lower(total, np.broadcast_to(np.eye(m.order), total.shape))
    return (chol[..., -1, -1] * inverse[..., -1, -1])[..., None] * inverse[..., -1, :], phi[..., :, 0]


def propagate(sampler, m, times, *, mean, std, start=None, factors=oracle.gaussian_row):
    """The law of u(times[-1]) when `sampler` runs over the monotone `times` from `start` (None: the prior).

    Args:
      sampler: a `LinearSampler`.
      m: the SDE.
      times: (N + 1,).
      mean: of the data; `std` its deviation. The eps_fn is exact for them.
      std: see `mean`.
      start: a `Law` of u(times[0]).
      factors: `oracle.gaussian_row` (independent of the package) or `gaussian_row`.
    """
    n = m.order
    start = prior(m) if start is None else start
    stages = tuple(_padded(stage, n) for stage in sampler.coefficients(m, np.asarray(times, np.float64)))
    told = np.stack([stage.time for stage in stages], axis=1)
    rows = np.stack(factors(m, told, std), axis=-2)
    noises = [a.noise for stage in stages for a in (stage.before, stage.after) if a is not None]
    carried = n + stages[0].outputs.shape[-1] - 1
    u = np.zeros((1, n, 1 + carried + sum(noise.shape[-1] for noise in noises)))
    u[0, :, 0] = start.mean
    u[0, :, 1 : 1 + n] = _factor(start.cov)
    with jax.enable_x64(True):
        state = sampler.start(stages, jnp.asarray(u))
        for i in range(len(times) - 1):
            state = _advance(float(mean), told[i], rows[i], state, jax.tree.map(lambda c, i=i: c[i], stages))
    u = np.asarray(state.u)[0]
    return Law(u[:, 0], u[:, 1:] @ u[:, 1:].T)


def _padded(stage, n):
    """The stage with noises of n columns and five outputs at the least: zeros, for one compilation to serve many."""

    def columns(a, least):
        return np.pad(a, ((0, 0), (0, 0), (0, max(0, least - a.shape[-1]))))

    def affine(a):
        return a if a is None else a._replace(noise=columns(a.state[..., :0] if a.noise is None else a.noise, n))

    return stage._replace(before=affine(stage.before), after=affine(stage.after), outputs=columns(stage.outputs, 5))


def _factor(cov):
    """A square root by eigh: a prior may be semi-definite."""
    values, vectors = np.linalg.eigh(cov)
    return vectors * np.sqrt(np.maximum(values, 0))


def _eps_fn(mean, told, rows):
    """The exact eps_fn at the times `told` (k,), NaN at any other; rows (k, 2, n) are its row and A.

    The first channel is the mean, the others differences from it.
    """

    def eps_fn(u, t):
        row, a = jnp.sum(jnp.where((told == t)[:, None, None], rows, 0), axis=0) / jnp.sum(told == t)
        center = (a * mean)[None, :, None] * jnp.eye(1, u.shape[-1])[None]
        return jnp.sum(row[None, :, None] * (u - center), axis=-2, keepdims=True)

    return eps_fn


@jax.jit
def _advance(mean, told, rows, state, stages):
    """The columns after one step; all linear samplers share theirs."""
    n, carried = state.u.shape[-2], state.u.shape[-2] + state.past.shape[-2]
    used = 1 + carried

    def normal(i, shape):
        nonlocal used
        del i  # every draw of a step is fresh
        first, used = used, used + shape[-2]
        return jnp.broadcast_to(jnp.eye(shape[-2], shape[-1], first), shape)

    state = EulerMaruyama().step(stages, state, _eps_fn(mean, told, rows), normal)
    # All that the state remembers, stacked; its factor back to as many columns as rows.
    stack = jnp.concatenate([state.u, state.past], axis=-2)[0]
    factor = jnp.linalg.qr(stack[:, 1:].T, mode="r").T
    stack = jnp.zeros_like(stack).at[:, 0].set(stack[:, 0]).at[:, 1 : 1 + carried].set(factor)[None]
    return state._replace(u=stack[:, :n], past=stack[:, n:])


def propagate_poisson(sampler, m, times, *, mean, std, start=None, factors=oracle.gaussian_row):
    """Mean and covariance under `PoissonMidpoint`, over its clock too: its law is a mixture of Gaussians.

    Given the clock a step is affine, and each event adds a term of its own, u' = base + sum_i H_i c_i. With
    independent H_i of mean p, E u' = E base + p sum E c_i and E u'u' follows from the variance p (1 - p) of each.
    """
    law = prior(m) if start is None else start
    p = 1 / sampler.K
    with jax.enable_x64(True):
        coefficients = sampler.coefficients(m, np.asarray(times, np.float64))
        rows = np.stack(factors(m, coefficients.times, std), axis=-2)
        for i in range(len(times) - 1):
            c = jax.tree.map(lambda c, i=i: c[i], coefficients)
            u = np.concatenate([law.mean[:, None], _factor(law.cov)], axis=1)
            moved = np.asarray(_advance_poisson(sampler, float(mean), coefficients.times[i], rows[i], u, c))
            base, events = moved[0], moved[1:] - moved[0]
            center = base + p * events.sum(axis=0)
            cov = center[:, 1:] @ center[:, 1:].T
            cov = cov + p * (1 - p) * np.einsum("kic,kjc->ij", events, events)
            law = Law(center[:, 0], cov)
    return law


@functools.partial(jax.jit, static_argnums=0)
def _advance_poisson(sampler, mean, told, rows, u, c):
    """The columns (K, n, 1 + n + K r) after a step: without an event, and with each event alone."""
    n, k = len(u), sampler.K
    columns = 1 + n + k * c.noise.shape[-1]
    u = jnp.concatenate([u, jnp.zeros((n, columns - 1 - n))], axis=-1)[None]

    def normal(i, shape):
        # Draw i (from 1) of r rows: unit vectors in columns of its own.
        unit = jnp.arange(columns)[None, :] - jnp.arange(shape[-2])[:, None] == 1 + n + (i - 1) * shape[-2]
        return jnp.broadcast_to(unit.astype(u.dtype), shape)

    def clocked(events):
        return sampler.clocked(c, sampler.start(c, u), _eps_fn(mean, told, rows), normal, events).u[0]

    # The first sub-step never has an event.
    return jax.lax.map(clocked, jnp.eye(k, dtype=bool).at[0].set(False))


def denoised(m, law, t, *, mean, std):
    """Mean and variance of D = E[q0 | u] for u ~ `law` at t and data N(mean, std^2): D is affine in u."""
    phi, chol = oracle.marginal(m, float(oracle.integral(m, t)), True, std)
    # std^2 A' Sigma^-1 in 80 digits: late covariances are far too graded to be formed in float64.
    inverse = oracle.inverse_lower(chol)
    gain = ((inverse @ phi[:, 0]) @ inverse).astype(np.float64) * std**2
    return mean + gain @ (law.mean - phi[:, 0].astype(np.float64) * mean), gain @ law.cov @ gain


def fitted_order(errors, counts):
    """The slope p of error ~ counts^-p, least squares in log-log."""
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])
