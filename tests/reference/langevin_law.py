"""The stationary law of a Langevin method on Gaussian targets, exactly: no Monte Carlo.

With the force -curvature z a step is affine, u' = M u + N xi, with M and N depending on its random clock; each
coordinate of the position goes through it alone. So the very step of the package, called once with unit vectors as
state and noise, one a coordinate, returns M and N. The stationary second moment S solves the linear equation
S = E[M S M'] + E[N N'].
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.langevin import randomized_midpoint
from hold_jax.langevin.method import Force
from hold_jax.langevin.poisson_midpoint import PoissonMidpoint
from hold_jax.langevin.randomized_midpoint import RandomizedMidpoint
from hold_jax.langevin.splitting import Splitting


class Maps(NamedTuple):
    """E[M] (c, n, n), E[M (x) M] (c, n^2, n^2), E[N N'] (c, n, n) for c curvatures; gradients a step."""

    mean: np.ndarray
    square: np.ndarray
    noise: np.ndarray
    num_gradients: float


def maps(method, dynamics, h, curvatures):
    """The `Maps` of a step of size h."""
    curvatures = np.asarray(curvatures, np.float64)
    c = method.coefficients(dynamics, h)
    n, count = dynamics.order, dynamics.order + method.rows(c)
    curvature = np.repeat(curvatures, count)
    clocks, probabilities = np.zeros(1), np.ones(1)
    if isinstance(method, RandomizedMidpoint):
        clocks, probabilities = np.arange(len(randomized_midpoint._NODES)), randomized_midpoint._WEIGHTS
    if isinstance(method, PoissonMidpoint):
        clocks = np.concatenate([np.zeros((1, method.K)), np.eye(method.K)[1:]]).astype(bool)
    with jax.enable_x64(True):
        if isinstance(method, Splitting):  # looks at its coefficients, so they cannot be traced
            out, made = _step(method, n, c, curvature, None)
            out, made = out[None], np.asarray([made])
        else:
            out, made = _compiled(method, n)(c, curvature, clocks)
    out = np.asarray(out).reshape(-1, n, len(curvatures), count).swapaxes(1, 2)
    found = list(zip(out[..., :n], out[..., n:], np.asarray(made, np.float64), strict=True))
    return _events(found, method.K) if isinstance(method, PoissonMidpoint) else _mixture(found, probabilities)


def _step(method, n, c, curvature, clock):
    """The step of unit vectors, (n, curvatures x (n + rows)), and its gradients."""

    def evaluate(z):
        return Force(None, -curvature * z)

    count = n + method.rows(c)
    unit = np.tile(np.eye(count), (1, len(curvature) // count))
    u, noise = jnp.asarray(unit[:n]), jnp.asarray(unit[n:])
    start = evaluate(u[0]) if method.reads_start(c) else None
    done = method.step(c, u, start, evaluate, noise, clock)
    # One for the start, if the step before has not made it.
    return done.u, done.num_gradients + (method.reads_start(c) and done.end is None)


@functools.lru_cache
def _compiled(method, n):
    def step(c, curvature, clock):
        out, made = _step(method, n, c, curvature, clock)
        return out, jnp.asarray(made)

    return jax.jit(jax.vmap(step, in_axes=(None, None, 0)))


def _outer(a, b):
    return np.einsum("cij,ckl->cikjl", a, b).reshape(len(a), a.shape[1] ** 2, a.shape[2] ** 2)


def _mixture(found, weights):
    mean = sum(w * m for w, (m, _, _) in zip(weights, found, strict=True))
    square = sum(w * _outer(m, m) for w, (m, _, _) in zip(weights, found, strict=True))
    noise = sum(w * k @ k.swapaxes(1, 2) for w, (_, k, _) in zip(weights, found, strict=True))
    return Maps(mean, square, noise, float(sum(w * made for w, (_, _, made) in zip(weights, found, strict=True))))


def _events(found, K):
    # Each event adds a term of its own: M = M_0 + sum_i H_i C_i with independent H_i of mean 1/K.
    (m0, k0, made), *rest = found
    p = 1 / K
    state, noise = [m - m0 for m, _, _ in rest], [k - k0 for _, k, _ in rest]
    mean, mean_noise = m0 + p * sum(state), k0 + p * sum(noise)
    square = _outer(mean, mean) + p * (1 - p) * sum(_outer(a, a) for a in state)
    covariance = mean_noise @ mean_noise.swapaxes(1, 2) + p * (1 - p) * sum(a @ a.swapaxes(1, 2) for a in noise)
    return Maps(mean, square, covariance, made + p * len(rest))


def stationary(maps):
    """The stationary second moment (c, n, n) of each curvature; NaN where the method is unstable."""
    n = maps.mean.shape[-1]
    stable = np.abs(np.linalg.eigvals(maps.square)).max(-1) < 1 - 1e-9
    law = np.full((len(stable), n, n), np.nan)
    left, right = np.eye(n * n) - maps.square[stable], maps.noise[stable].reshape(-1, n * n, 1)
    law[stable] = np.linalg.solve(left, right).reshape(-1, n, n)
    return law


def contraction(maps):
    """-log of the spectral radius of the mean map, for each curvature: e-folds of the mean's decay a step."""
    return -np.log(np.abs(np.linalg.eigvals(maps.mean)).max(-1))


def brute_force_events(method, dynamics, h, curvature):
    """(E[M], E[M (x) M]) of a Poisson midpoint step by summation over all 2^(K-1) clocks: an oracle for `_events`."""
    c, n = method.coefficients(dynamics, h), dynamics.order
    clocks = [[False, *clock] for clock in itertools.product([False, True], repeat=method.K - 1)]
    with jax.enable_x64(True):
        out, _ = _compiled(method, n)(c, np.full(n + method.rows(c), curvature), np.array(clocks))
    mean, square = np.zeros((n, n)), np.zeros((n * n, n * n))
    for m, clock in zip(np.asarray(out)[..., :n], clocks, strict=True):
        probability = np.prod([1 / method.K if event else 1 - 1 / method.K for event in clock[1:]])
        mean, square = mean + probability * m, square + probability * np.kron(m, m)
    return mean, square
