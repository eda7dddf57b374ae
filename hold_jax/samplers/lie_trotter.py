"""Lie-Trotter splitting: score kick, then the exact stationary part."""

import dataclasses

import numpy as np

from hold_jax.samplers import linear
from hold_jax.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class LieTrotter(linear.LinearSampler):
    """One step is S, then A: S is explicit in the score, A is exact. Weak order 1.

    A: du = (-F - G G' Sigma_inf^-1) u dB + G dw.  S: du = G G' (score + Sigma_inf^-1 u) dB.

    HOLD (2404.12814) announces a Lie-Trotter sampler of one Ornstein-Uhlenbeck process and two Hamiltonians, which make
    up A. Its equations are in no source that could be read: `lie_trotter_split` runs the parts of A one by one.
    """

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """One row of matrices for each interval of `times` (N + 1,)."""
        h = sde.schedule.integral(times[1:], times[:-1])
        flow = linear.reverse_ornstein_uhlenbeck(sde, h)
        kick, eps = linear.score_kick(sde, times[:-1], h)
        after = linear.Affine(flow.state @ kick, flow.noise)
        return (linear.Stage(before=None, time=times[:-1], data=None, after=after, outputs=flow.state @ eps),)
