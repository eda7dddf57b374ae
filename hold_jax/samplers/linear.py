"""Samplers that are tables of small matrices.

A step of Euler-Maruyama, of the splittings, of the data-prediction family (DDIM, DPM-Solver++, UniPC, Heun, ancestral)
and of predictor-corrector consists of a few *stages*, each with one network call and otherwise linear:

    u <- P u + P' xi_1                                   (optional, before the call)
    y  = eps_fn(u, t), or D = r u + k eps_fn(u, t)       (the output: noise, or data)
    u <- U u + sum_j W_j y_j + N xi_2                    (y_0 = y; y_1, ... are the previous outputs)

A sampler computes these matrices in float64 on the host for the whole grid; the device runs one scan.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.numerics import exact
from hold_jax.parameterization import EpsFn
from hold_jax.samplers import loop
from hold_jax.sde import LinearSDE


class Affine(NamedTuple):
    """u <- state u + noise xi, for N steps (leading axis) or for one.

    Attributes:
      state: (N, n, n).
      noise: (N, n, r), or None without noise.
    """

    state: np.ndarray
    noise: np.ndarray | None


class Stage(NamedTuple):
    """One network call in each of N steps (leading axis), or in one step.

    Attributes:
      before: the map of u before the call, or None.
      time: (N,) time passed to the network.
      data: (N, 1, n + 1) weights of u and of eps_n for the output D = E[q0 | u]; None: the output is eps_n.
      after: the map of u after the call.
      outputs: (N, n, p) weights of the last p outputs, the newest first.
    """

    before: Affine | None
    time: np.ndarray
    data: np.ndarray | None
    after: Affine
    outputs: np.ndarray


class State(NamedTuple):
    """The state of the scan.

    Attributes:
      u: (B, *S, n, C).
      past: (B, *S, p - 1, C) the previous outputs, the newest first.
      nfe: () int32 number of network calls made.
    """

    u: jax.Array
    past: jax.Array
    nfe: jax.Array


class LinearSampler(loop.StepSampler):
    """A sampler whose `coefficients` are a tuple of `Stage`s."""

    def start(self, coefficients: tuple[Stage, ...], u: jax.Array) -> State:
        """The state before the first step; the first steps give zero weight to outputs that do not exist yet."""
        num_past = coefficients[0].outputs.shape[-1] - 1
        return State(u, jnp.zeros((*u.shape[:-2], num_past, u.shape[-1]), u.dtype), jnp.int32(0))

    def step(self, coefficients: tuple[Stage, ...], state: State, eps_fn: EpsFn, normal: loop.Normal) -> State:
        """All stages of one step."""
        for i, stage in enumerate(coefficients):
            state = _run(stage, state, eps_fn, lambda j, shape, i=i: normal(2 * i + j, shape))
        return state


def _run(c: Stage, state: State, eps_fn: EpsFn, normal: loop.Normal) -> State:
    u = state.u
    if c.before is not None:
        u = _apply(c.before, u, 0, normal)
    output = kernels.require_noise(u, eps_fn(u, jnp.asarray(c.time)))
    if c.data is not None:
        output = kernels.mix(c.data, jnp.concatenate([u, output], axis=-2))
    outputs = jnp.concatenate([output, state.past], axis=-2)
    u = _apply(c.after, u, 1, normal) + kernels.mix(c.outputs, outputs)
    return State(u, outputs[..., :-1, :], state.nfe + 1)


def _apply(a: Affine, u: jax.Array, draw: int, normal: loop.Normal) -> jax.Array:
    moved = kernels.mix(a.state, u)
    if a.noise is None:
        return moved
    return moved + kernels.mix(a.noise, normal(draw, (*u.shape[:-2], a.noise.shape[-1], u.shape[-1])))


# --- Coefficients, host side, float64 ------------------------------------------------------------


def noise_columns(sde: LinearSDE) -> np.ndarray:
    """The columns (n, r) of G that carry noise."""
    return sde.G[:, np.abs(sde.G).any(axis=0)]


def data_weights(sde: LinearSDE, times: np.ndarray) -> np.ndarray:
    """Weights (N, 1, n + 1) of u and eps_n in D = (l u - eps_n) / w_n at N times, l the last row of L^-1."""
    phi, chol = exact.marginal(sde.F, sde.G, sde.cov0, sde.schedule.integral(0.0, times))
    inverse = exact.solve_lower(chol, np.broadcast_to(np.eye(sde.order), chol.shape))
    w_n = (inverse @ phi[..., :, :1])[..., -1:, :]
    return np.concatenate([inverse[..., -1:, :], -np.ones_like(w_n)], axis=-1) / w_n


def driven_score(sde: LinearSDE, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S (N, n, n) and E (N, n, 1) in G G' score = S u + E eps_n at N times.

    score = -Sigma^-1 (u - A D), D = (l u - eps_n) / w_n with l the last row of L^-1. With noise in the last block only,
    S = 0 and E = -g^2 / L_nn at every order, without rounding error.
    """
    phi, chol = exact.marginal(sde.F, sde.G, sde.cov0, sde.schedule.integral(0.0, times))
    inverse = exact.solve_lower(chol, np.broadcast_to(np.eye(sde.order), chol.shape))
    w = inverse @ phi[..., :, :1]
    # L^-1 (u - A D) = (L^-1 - w l / w_n) u + (w / w_n) eps_n; the last row is (0, 1) by construction.
    direction = w / w[..., -1:, :]
    rest = inverse - direction * inverse[..., -1:, :]
    rest[..., -1, :] = 0
    back = -(sde.G @ sde.G.T) @ np.swapaxes(inverse, -1, -2)
    return back @ rest, back @ direction


def score_kick(sde: LinearSDE, times: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices of u and of eps_n in u <- u + h G G' (score + Sigma_inf^-1 u), the nonlinear part of the reverse SDE."""
    state, eps = driven_score(sde, times)
    size = steps[:, None, None]
    return np.eye(sde.order) + size * (state + sde.G @ sde.G.T @ sde.precision_inf), size * eps


def reverse_ornstein_uhlenbeck(sde: LinearSDE, steps: np.ndarray) -> Affine:
    """The exact solution of du = (-F - G G' Sigma_inf^-1) u dB + G dw over each of `steps` (N,) in B.

    This is the reverse SDE at stationarity (the analytic half of CLD's SSCS, 2112.07068, section 4.1).
    """
    return Affine(*exact.transition(-sde.F - sde.G @ sde.G.T @ sde.precision_inf, sde.G, steps))


def compose(first: Affine, then: Affine) -> Affine:
    """`first`, then `then`, with independent noises."""
    noises = [] if first.noise is None else [then.state @ first.noise]
    noises += [] if then.noise is None else [then.noise]
    return Affine(then.state @ first.state, np.concatenate(noises, axis=-1) if noises else None)
