"""Heun's method in data prediction: EDM's sampler, deterministic and stochastic."""

import dataclasses

import numpy as np

from hold_jax.errors import require_number
from hold_jax.numerics import exact
from hold_jax.samplers import linear, whitened
from hold_jax.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class Heun(linear.LinearSampler):
    """EDM's algorithm 2 (2206.00364) at any order n, two calls a step; n = 1 is EDM's sampler exactly.

    On the grid "karras", N steps and the final denoising step are the N + 1 steps of EDM.

    Attributes:
      s_churn: sum over the N steps of the relative increase of noise, gamma = s_churn / N; 0: algorithm 1,
        deterministic. EDM's run of N + 1 steps has S_churn = s_churn (N + 1) / N. EDM's first and last steps raise
        the noise too, where S_min and S_max allow it; here the first step, which begins at the noise of T, and the
        final denoising do not.
      s_min: least effective noise that is increased.
      s_max: largest effective noise that is increased.
      s_noise: standard deviation of the added noise, relative to that of the process.
      gauge: one of `whitened.GAUGES`.

    Raises:
      UserError: for an option out of range.
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = float("inf")
    s_noise: float = 1.0
    gauge: str = "signal"

    def __post_init__(self):
        require_number("s_churn", self.s_churn, lambda s: 0 <= s < float("inf"), "finite and >= 0")
        low = require_number("s_min", self.s_min, lambda s: s >= 0, ">= 0")
        require_number("s_max", self.s_max, lambda s: s > low, f"above s_min = {low}")
        require_number("s_noise", self.s_noise, lambda s: 0 < s < float("inf"), "positive")
        whitened.check_gauge(self.gauge)

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn: without churn."""
        return self.s_churn == 0

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """Two stages for each interval of `times` (N + 1,)."""
        b = sde.schedule.integral(0.0, times)
        raised = b[:-1] if self.deterministic else self._raised(sde, b)
        before = None if self.deterministic else self._fresh_noise(sde, raised - b[:-1])
        start, end = (whitened.whitening(sde, x, self.gauge) for x in (raised, b[1:]))
        state = end.factor @ start.inverse
        move = end.factor @ (end.mean - start.mean)[..., None]
        # EDM averages the slopes (x - D) / sigma at both ends. With x at the end from DDIM's step the correction is
        # 1/2 (sigma_start / sigma_end) (w_end - w_start) (D_end - D_start).
        ratio = np.exp(start.log_noise - end.log_noise)[:, None, None]
        correction = ratio / 2 * move * np.array([1.0, -1.0])
        times_raised = times[:-1] if self.deterministic else sde.schedule.time(raised)
        stay = linear.Affine(np.broadcast_to(np.eye(sde.order), state.shape), None)
        first = np.concatenate([move, np.zeros_like(move)], axis=-1)
        return (
            linear.Stage(
                before, times_raised, linear.data_weights(sde, times_raised), linear.Affine(state, None), first
            ),
            linear.Stage(None, times[1:], linear.data_weights(sde, times[1:]), stay, correction),
        )

    def _raised(self, sde: LinearSDE, b: np.ndarray) -> np.ndarray:
        """B after the increase to sigma (1 + gamma), gamma = min(s_churn / N, sqrt 2 - 1), at most the noise at T."""
        sigma = exact.effective_noise(sde.F, sde.G, sde.cov0, b)
        gamma = min(self.s_churn / (len(b) - 1), np.sqrt(2) - 1)
        rises = (sigma[:-1] >= self.s_min) & (sigma[:-1] <= self.s_max) & (sigma[:-1] < sigma[0])
        risen = exact.integral_of_noise(sde.F, sde.G, sde.cov0, np.minimum(sigma[:-1] * (1 + gamma), sigma[0]))
        return np.where(rises, np.clip(risen, b[:-1], b[0]), b[:-1])

    def _fresh_noise(self, sde: LinearSDE, rise: np.ndarray) -> linear.Affine:
        """The forward process over the increase in B (N,)."""
        phi, chol = exact.transition(sde.F, sde.G, rise)
        return linear.Affine(phi, self.s_noise * chol)
