"""Multistep samplers in data prediction: DDIM, DPM-Solver++, UniPC and their stochastic versions, at any order n.

One step computes int D d omega (`whitened`) with D replaced by the polynomial in log sigma_eff through its last values,
at one network call. With a corrector (UniPC, 2302.04867) the value of D at the end of a step, which the next step needs
anyway, corrects that step: one order more for the same number of calls.
"""

import dataclasses

import numpy as np

from hold_jax.errors import require, require_choice, require_number
from hold_jax.samplers import linear, whitened
from hold_jax.samplers.interpolation import INTERPOLATIONS
from hold_jax.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class Multistep(linear.LinearSampler):
    """The family of multistep samplers; the functions below construct its published members.

    Attributes:
      order: number of values of D that a step uses, 1 to 4; the first steps use as many as exist.
      corrector: whether to correct each step by the value at its end.
      churn: noise added along the way; 0: deterministic, 1: the noise of the reverse SDE at n = 1 (SDE-DPM-Solver++).
        At most 30 at an order above 1, but for "midpoint": the errors of extrapolation grow with it.
      gauge: one of `whitened.GAUGES`; "signal" is EDM's flow at every order n.
      interpolation: of D between its values, one of `interpolation.INTERPOLATIONS`.

    Raises:
      UserError: for an option out of range.
    """

    order: int = 3
    corrector: bool = True
    churn: float = 0.0
    gauge: str = "signal"
    interpolation: str = "polynomial"

    def __post_init__(self):
        whole = isinstance(self.order, int) and not isinstance(self.order, bool)
        require(whole and 1 <= self.order <= 4, "order", self.order, "a whole number from 1 to 4")
        require_number("churn", self.churn, lambda c: 0 <= c < float("inf"), "a finite number >= 0")
        extrapolates = self.order > 1 and self.interpolation != "midpoint"
        stable = "at most 30, above which extrapolation is unstable; `ddim` and `dpmpp_2m` take any"
        require(not extrapolates or self.churn <= 30, "churn", self.churn, stable)
        whitened.check_gauge(self.gauge)
        require_choice("interpolation", self.interpolation, INTERPOLATIONS)

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn: without churn."""
        return self.churn == 0

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """One row of matrices for each interval of `times` (N + 1,)."""
        b = sde.schedule.integral(0.0, times)
        at = whitened.whitening(sde, b, self.gauge)
        measure = whitened.quadrature(sde, at, b, self.gauge, self.churn)
        kept = np.exp(self.churn * np.diff(at.log_noise))[:, None, None]
        state = kept * at.factor[1:] @ at.inverse[:-1]

        # In z: predicted step i uses D_i, D_{i-1}, ...; the correction of step i - 1 uses the same values.
        predicted = self._weights(at.log_noise, measure, self.order, ahead=0)
        outputs = at.factor[1:] @ predicted
        if self.corrector:
            corrected = self._weights(at.log_noise, measure, self.order + 1, ahead=1)
            width = corrected.shape[-1]
            outputs = np.pad(outputs, ((0, 0), (0, 0), (0, width - outputs.shape[-1])))
            change = corrected[:-1]
            change[..., 1:] -= predicted[:-1, :, : width - 1]
            outputs[1:] += state[1:] @ at.factor[1:-1] @ change
        noise = None if self.deterministic else np.sqrt(1 - kept**2) * at.factor[1:]
        data = linear.data_weights(sde, times[:-1])
        return (linear.Stage(None, times[:-1], data, linear.Affine(state, noise), outputs),)

    def _weights(self, log_noise: np.ndarray, measure: whitened.Quadrature, order: int, ahead: int) -> np.ndarray:
        """Weights (N, n, min(order, N)) in z of D at the nodes i + ahead, i + ahead - 1, ... of step i."""
        num_steps = len(log_noise) - 1
        most = min(order, num_steps + ahead)
        interpolate = INTERPOLATIONS[self.interpolation]
        out = np.zeros((num_steps, measure.measure.shape[-1], most))
        first = np.arange(num_steps) + ahead
        for count in range(1, most + 1):
            rows = np.flatnonzero(np.minimum(first + 1, most) == count)
            nodes = log_noise[first[rows, None] - np.arange(count)]
            ends = np.stack([log_noise[rows], log_noise[rows + 1]], axis=1)
            out[rows, :, :count] = interpolate(nodes, ends, measure.log_noise[rows], measure.measure[rows])
        return out


def ddim(*, churn: float = 0.0, gauge: str = "signal") -> Multistep:
    """First order: DDIM (2010.02502) at n = 1; gDDIM (2206.05564) with gauge = "probability_flow"."""
    return Multistep(order=1, corrector=False, churn=churn, gauge=gauge)


def dpmpp_2m(*, churn: float = 0.0, gauge: str = "signal") -> Multistep:
    """DPM-Solver++(2M) (2211.01095, algorithm 2); churn = 1: SDE-DPM-Solver++(2M)."""
    return Multistep(order=2, corrector=False, churn=churn, gauge=gauge, interpolation="midpoint")


def dpmpp_3m(*, churn: float = 0.0, gauge: str = "signal") -> Multistep:
    """Third-order multistep: the quadratic through three values, integrated exactly."""
    return Multistep(order=3, corrector=False, churn=churn, gauge=gauge)


def unipc(*, order: int = 3, churn: float = 0.0, gauge: str = "signal") -> Multistep:
    """Predictor and corrector with one call a step (UniPC, 2302.04867), both integrated exactly."""
    return Multistep(order=order, corrector=True, churn=churn, gauge=gauge)


def gaussian_fitted(*, order: int = 3, corrector: bool = True, churn: float = 1.0, gauge: str = "signal") -> Multistep:
    """Predictor and corrector fitted to Gaussian data of every width (`interpolation.gaussian_fit`).

    Injected noise contracts accumulated network error, so churn is 1 by default. With an exact denoiser, or below about
    15 calls, churn = 0 is better; only churn = 0 can encode.
    """
    return Multistep(order=order, corrector=corrector, churn=churn, gauge=gauge, interpolation="gaussian_fit")
