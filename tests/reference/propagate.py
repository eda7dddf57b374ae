"""The law of a sampler's output for Gaussian data, exactly: no Monte Carlo.

With an affine eps_fn every sampler is an affine map of its state and its noise, and its `step` acts on
each channel alike. So the very same `step` carries a factor of the covariance: one channel holds the mean,
the next ones the factor's columns, and each scalar noise draw is a unit vector in a channel of its own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


def propagate(sampler, m, times, *, mean, std, start=None, draws=4, digits=False):
    """The law of u(times[-1]) when `sampler` runs over the falling `times` from `start` (None: the prior).

    Args:
      sampler: anything with `coefficients(m, times)` and `step(c, u, eps_fn, normal)`.
      m: the SDE.
      times: (N + 1,) falling.
      mean: of the data; `std` its deviation. The eps_fn is exact for them.
      std: see `mean`.
      start: a `Law` of u(times[0]).
      draws: most state-sized noise draws a step makes.
      digits: a 60-digit eps_fn (for tiny noise at high order) instead of a float64 one.
    """
    n = m.order
    start = prior(m) if start is None else start
    with jax.enable_x64(True):
        advance = _advance(sampler, m, float(mean), float(std), draws, digits)
        u = np.zeros((1, n, 1 + n + draws * n))
        u[0, :, 0] = start.mean
        # eigh: a prior may be semi-definite.
        values, vectors = np.linalg.eigh(start.cov)
        u[0, :, 1 : 1 + n] = vectors * np.sqrt(np.maximum(values, 0))
        coefficients = sampler.coefficients(m, np.asarray(times, np.float64))
        for i in range(len(times) - 1):
            u = advance(u, jax.tree.map(lambda c, i=i: c[i], coefficients))
    factor = np.asarray(u)[0, :, 1 : 1 + n]
    return Law(np.asarray(u)[0, :, 0], factor @ factor.T)


@functools.lru_cache(maxsize=64)
def _advance(sampler, m, mean, std, draws, digits):
    """The jitted map of the columns over one step, compiled once whatever the number of steps."""
    n = m.order
    num_columns = 1 + n + draws * n
    eps_fn = oracle.gaussian_eps(m, [mean] + [0.0] * (num_columns - 1), std, digits)

    @jax.jit
    def advance(u, c):
        used = 0

        def normal(i, shape):
            nonlocal used
            del i  # every draw of a step is fresh
            first, rows = 1 + n + used, shape[-2]
            used += rows
            if first + rows > num_columns:
                raise ValueError(f"a step drew more than draws = {draws} states of noise")
            return jnp.broadcast_to(jnp.eye(rows, num_columns, first), shape)

        u = sampler.step(c, u, eps_fn, normal)
        # The factor back to n columns.
        factor = jnp.linalg.qr(u[0, :, 1:].T, mode="r").T
        return jnp.zeros_like(u).at[0, :, 0].set(u[0, :, 0]).at[0, :, 1 : 1 + n].set(factor)

    return advance


def denoised(m, law, t, *, mean, std):
    """Mean and variance of D = E[q0 | u] for u ~ `law` at t and data N(mean, std^2): D is affine in u."""
    phi, chol = oracle.marginal(m, float(oracle.integral(m, t)), True, std)
    gain = std**2 * np.linalg.solve((chol @ chol.T).astype(np.float64), phi[:, 0].astype(np.float64))
    a = phi[:, 0].astype(np.float64)
    return mean + gain @ (law.mean - a * mean), gain @ law.cov @ gain


def fitted_order(errors, counts):
    """The slope p of error ~ counts^-p, least squares in log-log."""
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])
