"""Lie-Trotter splitting: score kick, then the exact stationary part."""

import dataclasses

import numpy as np

from hold_jax.samplers import affine
from hold_jax.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class LieTrotter:
    """One step = S then A (HOLD 2404.12814): S is explicit in the score, A is exact. Weak order 1.

    A: du = (-F - G G' Sigma_inf^-1) u dB + G dw.  S: du = G G' (score + Sigma_inf^-1 u) dB.
    """

    calls_per_step = 1
    step = staticmethod(affine.step)

    def coefficients(self, m: LinearSDE, times: np.ndarray) -> affine.AffineStep:
        """One row of matrices for each interval of `times` (N + 1,)."""
        h = m.schedule.integral(times[1:], times[:-1])
        flow = affine.reverse_ornstein_uhlenbeck(m, h)
        kick, eps = affine.score_kick(m, times[:-1], h)
        after = affine.Affine(flow.state @ kick, flow.noise)
        return affine.AffineStep(before=None, time=times[:-1], after=after, eps=flow.state @ eps)
