"""Samplers whose step is affine in the state and in one network output.

    u <- P u + P' xi_1          (optional, before the call)
    e  = eps_fn(u, t)
    u <- U u + E e + N xi_2

Euler-Maruyama and the splittings are choices of these small matrices, computed in float64 on the
host for the whole grid; the device runs one scan of the same few fused operations.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from hold_jax import exact, kernels
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE


class Affine(NamedTuple):
    """u <- state u + noise xi: (N, n, n) and (N, n, r) for N steps, or one step's."""

    state: np.ndarray
    noise: np.ndarray


class AffineStep(NamedTuple):
    """Coefficients of N steps (leading axis), or of one.

    Attributes:
      before: what happens to u before the network is called, or None.
      time: (N,) the time the network is told.
      after: what happens to u after the call.
      eps: (N, n, 1) weight of the network's output.
    """

    before: Affine | None
    time: np.ndarray
    after: Affine
    eps: np.ndarray


Normal = Callable[[int, tuple[int, ...]], jax.Array]
"""normal(i, shape): the i-th standard normal draw of a step."""


def step(c: AffineStep, u: jax.Array, eps_fn: EpsFn, normal: Normal) -> jax.Array:
    """One step of any affine sampler; u (B, *S, n, C)."""
    if c.before is not None:
        u = _apply(c.before, u, normal(0, _noise_shape(c.before, u)))
    eps = eps_fn(u, c.time)
    return _apply(c.after, u, normal(1, _noise_shape(c.after, u))) + kernels.mix(c.eps, eps)


def _apply(a: Affine, u: jax.Array, xi: jax.Array) -> jax.Array:
    return kernels.mix(a.state, u) + kernels.mix(a.noise, xi)


def _noise_shape(a: Affine, u: jax.Array) -> tuple[int, ...]:
    return (*u.shape[:-2], a.noise.shape[-1], u.shape[-1])


# --- Coefficients, host side, float64 ------------------------------------------------------------


def noise_columns(m: LinearSDE) -> np.ndarray:
    """The columns (n, r) of G that carry noise."""
    return m.G[:, np.abs(m.G).any(axis=0)]


def driven_score(m: LinearSDE, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """G G' score = S u + E eps_n: S (N, n, n), E (N, n, 1) at N times.

    score = -Sigma^-1 (u - A D), D = (l u - eps_n) / w_n with l the last row of L^-1. With noise in
    the last block alone S vanishes and E is -g^2/L_nn, whatever the order; both are exact there.
    """
    phi, chol = exact.marginal(m.F, m.G, m.cov0, m.schedule.integral(0.0, times))
    inverse = exact.solve_lower(chol, np.broadcast_to(np.eye(m.order), chol.shape))
    w = inverse @ phi[..., :, :1]
    # L^-1 (u - A D) = (L^-1 - w l / w_n) u + (w / w_n) eps_n; the last row is (0, 1) by construction.
    direction = w / w[..., -1:, :]
    rest = inverse - direction * inverse[..., -1:, :]
    rest[..., -1, :] = 0
    back = -(m.G @ m.G.T) @ np.swapaxes(inverse, -1, -2)
    return back @ rest, back @ direction


def reverse_ornstein_uhlenbeck(m: LinearSDE, steps: np.ndarray) -> Affine:
    """The exact flow of du = (-F - G G' Sigma_inf^-1) u dB + G dw over each of `steps` (N,) in B.

    This is the reverse SDE at stationarity: HOLD's one Ornstein-Uhlenbeck piece and n - 1 Hamiltonian
    rotations composed (HOLD; CLD's analytic half, 2112.07068, section 4.1).
    """
    return Affine(*exact.transition(-m.F - m.G @ m.G.T @ m.precision_inf, m.G, steps))


def score_kick(m: LinearSDE, times: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u <- u + h G G' (score + Sigma_inf^-1 u), the rest of the reverse SDE: matrices of u and of eps_n."""
    state, eps = driven_score(m, times)
    size = steps[:, None, None]
    return np.eye(m.order) + size * (state + m.G @ m.G.T @ m.precision_inf), size * eps
