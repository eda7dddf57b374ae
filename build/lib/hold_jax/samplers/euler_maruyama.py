"""Euler-Maruyama on the reverse SDE."""

import dataclasses

import numpy as np

from hold_jax.samplers import linear
from hold_jax.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(linear.LinearSampler):
    """u <- u + (-F u + G G' score) h + G sqrt(h) xi with h = int beta (2011.13456, section 4.1). Weak order 1."""

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """One row of matrices for each interval of `times` (N + 1,)."""
        h = sde.schedule.integral(times[1:], times[:-1])[:, None, None]
        state, eps = linear.driven_score(sde, times[:-1])
        after = linear.Affine(np.eye(sde.order) + h * (state - sde.F), np.sqrt(h) * linear.noise_columns(sde))
        return (linear.Stage(before=None, time=times[:-1], data=None, after=after, outputs=h * eps),)
