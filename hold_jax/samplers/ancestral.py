"""Ancestral sampling: the posterior of the next state, given the present one and the denoised data."""

import dataclasses

import numpy as np

from hold_jax.numerics import exact
from hold_jax.samplers import linear
from hold_jax.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class Ancestral(linear.LinearSampler):
    """u_s ~ p(u_s | u_t, q0 = D): DDPM (2006.11239, eq. 6-7) at n = 1, exact Gaussian conditioning at any order.

    In whitened coordinates, C = L_t^-1 Phi L_s: z_s = w_s D + C' (z_t - w_t D) + (I - C' C)^1/2 xi.
    """

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """One row of matrices for each interval of `times` (N + 1,)."""
        b = sde.schedule.integral(0.0, times)
        phi, chol = exact.marginal(sde.F, sde.G, sde.cov0, b)
        between, _ = exact.transition(sde.F, sde.G, b[:-1] - b[1:])
        start, end = chol[:-1], chol[1:]
        contraction = exact.solve_lower(start, between @ end)
        # With C = U S V' the factor of the remaining noise is V (1 - S^2)^1/2.
        _, s, v = np.linalg.svd(contraction)
        noise = np.swapaxes(v, -1, -2) * np.sqrt(np.maximum(1 - s**2, 0))[..., None, :]
        whiten = exact.solve_lower(start, np.broadcast_to(np.eye(sde.order), start.shape))
        state = end @ np.swapaxes(contraction, -1, -2) @ whiten
        outputs = phi[1:, :, :1] - state @ phi[:-1, :, :1]
        data = linear.data_weights(sde, times[:-1])
        return (linear.Stage(None, times[:-1], data, linear.Affine(state, end @ noise), outputs),)
