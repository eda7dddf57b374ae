"""Predictor-corrector: a predictor with one call, then Langevin steps on the last block at the new time."""

import dataclasses

import numpy as np

from hold_jax.errors import require, require_choice, require_number
from hold_jax.numerics import exact
from hold_jax.samplers import linear
from hold_jax.samplers.ancestral import Ancestral
from hold_jax.samplers.euler_maruyama import EulerMaruyama
from hold_jax.samplers.lie_trotter import LieTrotter
from hold_jax.samplers.multistep import ddim
from hold_jax.samplers.strang import Strang
from hold_jax.sde import LinearSDE

PREDICTORS = {
    "ancestral": Ancestral,
    "ddim": ddim,
    "euler_maruyama": EulerMaruyama,
    "lie_trotter": LieTrotter,
    "strang": Strang,
}


@dataclasses.dataclass(frozen=True)
class PredictorCorrector(linear.LinearSampler):
    """score_sde's PC sampler (2011.13456, algorithms 2-5) for any order, 1 + corrector_steps calls a step.

    The corrector is u_n <- u_n + e s_n + sqrt(2 e) xi with e = 2 (snr L_nn)^2. score_sde measures the ratio of the
    norms of noise and score on each batch; under the exact marginals it is L_nn, which is used here, so that a sample
    does not depend on the others in its batch.

    Attributes:
      predictor: one of `PREDICTORS`.
      corrector_steps: Langevin steps after each predictor step.
      snr: signal-to-noise ratio of a corrector step, in (0, 1].

    Raises:
      UserError: for an option out of range.
    """

    predictor: str = "ancestral"
    corrector_steps: int = 1
    snr: float = 0.16

    def __post_init__(self):
        require_choice("predictor", self.predictor, PREDICTORS)
        whole = isinstance(self.corrector_steps, int) and not isinstance(self.corrector_steps, bool)
        require(whole and self.corrector_steps >= 1, "corrector_steps", self.corrector_steps, "a whole number >= 1")
        require_number("snr", self.snr, lambda r: 0 < r <= 1, "in (0, 1]")

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """1 + corrector_steps stages for each interval of `times` (N + 1,)."""
        predict = PREDICTORS[self.predictor]().coefficients(sde, times)
        _, chol = exact.marginal(sde.F, sde.G, sde.cov0, sde.schedule.integral(0.0, times[1:]))
        last = np.eye(sde.order)[:, -1:] * chol[:, -1:, -1:]
        stay = linear.Affine(np.broadcast_to(np.eye(sde.order), chol.shape), 2 * self.snr * last)
        correct = linear.Stage(None, times[1:], None, stay, -2 * self.snr**2 * last)
        return (*predict, *(correct,) * self.corrector_steps)
