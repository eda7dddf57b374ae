"""Strang splitting: half the exact stationary part, score kick, the other half."""

import dataclasses

import numpy as np

from hold_jax.errors import require_choice
from hold_jax.samplers import linear
from hold_jax.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class Strang(linear.LinearSampler):
    """One step is A/2, S, A/2, with A and S as in `lie_trotter`. Weak order 1, because S is explicit.

    Attributes:
      score_time: the time at which the score is evaluated: "start" of the step, which at n = 2 is CLD's symmetric
        splitting SSCS (2112.07068, section 4.1, algorithm 1), or its "midpoint" in B, whose error is mostly smaller at
        orders 1 to 3.

    Raises:
      UserError: for another score_time.
    """

    score_time: str = "midpoint"

    def __post_init__(self):
        require_choice("score_time", self.score_time, ("midpoint", "start"))

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """One row of matrices for each interval of `times` (N + 1,)."""
        h = sde.schedule.integral(times[1:], times[:-1])
        half = linear.reverse_ornstein_uhlenbeck(sde, h / 2)
        middle = sde.schedule.time(sde.schedule.integral(0.0, times[:-1]) - h / 2)
        at = middle if self.score_time == "midpoint" else times[:-1]
        kick, eps = linear.score_kick(sde, at, h)
        after = linear.Affine(half.state @ kick, half.noise)
        return (linear.Stage(before=half, time=at, data=None, after=after, outputs=half.state @ eps),)
