"""Euler-Maruyama on the reverse SDE."""

import dataclasses

import numpy as np

from hold_jax.samplers import affine
from hold_jax.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    """u <- u + (-F u + G G' score) h + G sqrt(h) xi with h = int beta (2011.13456, section 4.1). Weak order 1."""

    calls_per_step = 1
    step = staticmethod(affine.step)

    def coefficients(self, m: LinearSDE, times: np.ndarray) -> affine.AffineStep:
        """One row of matrices for each interval of `times` (N + 1,)."""
        h = m.schedule.integral(times[1:], times[:-1])[:, None, None]
        state, eps = affine.driven_score(m, times[:-1])
        after = affine.Affine(np.eye(m.order) + h * (state - m.F), np.sqrt(h) * affine.noise_columns(m))
        return affine.AffineStep(before=None, time=times[:-1], after=after, eps=h * eps)
