"""Conjugate integrators of the probability flow: Euler steps after a linear change of variables."""

import dataclasses

import numpy as np
import scipy.linalg

from hold_jax.errors import UserError, require_choice, require_number
from hold_jax.numerics import exact
from hold_jax.numerics.schedules import Constant
from hold_jax.samplers import linear
from hold_jax.sde import LinearSDE

# Quadrature nodes in log B over one step, as in `whitened`.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
FORMS = ("identity", "ones")


@dataclasses.dataclass(frozen=True)
class Conjugate(linear.LinearSampler):
    """lambda-DDIM (Pandey, Rudolph and Mandt, 2310.07894) at any order n.

    With the noise eps = L^-1 (u - A D) of all blocks the probability flow is du = (F u + 1/2 G G' L^-T eps) dB. In
    z = A(t) u, A(t) = exp(lambda M t - F B(t)), it is

        dz/dt = lambda A M A^-1 z + dPhi/dt eps,    Phi(t) = int_0^t 1/2 beta A G G' L^-T,

    and a step is Euler's for the first term, with eps held in the second. n = 1 and lambda = 0 is DDIM. Deterministic.
    M is the identity or a matrix of ones, the paper's B_t = lambda I (lambda-DDIM-I) and B_t = lambda 1 (II). Its
    conjugate splittings are in no source that could be read.

    Attributes:
      lam: lambda, per unit of t.
      form: M, "identity" or "ones"; the latter needs a constant rate of time, without which F beta(t) and M would have
        to commute.
    """

    lam: float = 0.0
    form: str = "identity"

    def __post_init__(self):
        require_number("lam", self.lam, lambda lam: abs(lam) < float("inf"), "finite")
        require_choice("form", self.form, FORMS)

    @property
    def deterministic(self) -> bool:
        """No noise is drawn."""
        return True

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """One row of matrices for each interval of `times` (N + 1,).

        Raises:
          UserError: for the form "ones" with a rate of time that is not constant.
        """
        n = sde.order
        if self.form == "ones" and n > 1 and not isinstance(sde.schedule, Constant):
            raise UserError("`form` is 'ones'; it must be 'identity' for an SDE whose rate of time is not constant")
        matrix = self.lam * {"identity": np.eye(n), "ones": np.ones((n, n))}[self.form]
        b = sde.schedule.integral(0.0, times)

        def flow(big_b: np.ndarray, t: np.ndarray, b_end: np.ndarray, end: np.ndarray) -> np.ndarray:
            """A(end)^-1 A(t), (..., n, n)."""
            return scipy.linalg.expm(sde.F * (b_end - big_b)[..., None, None] + matrix * (t - end)[..., None, None])

        half = np.diff(np.log(b))[:, None] / 2
        nodes = np.exp((np.log(b[:-1]) + np.log(b[1:]))[:, None] / 2 + half * _NODES)
        _, chol = exact.marginal(sde.F, sde.G, sde.cov0, nodes)
        driven = np.swapaxes(exact.solve_lower(chol, np.broadcast_to(sde.G @ sde.G.T, chol.shape)), -1, -2)
        to_end = flow(nodes, sde.schedule.time(nodes), b[1:, None], times[1:, None])
        weight = np.sum((half * _WEIGHTS * nodes)[..., None, None] / 2 * to_end @ driven, axis=1)

        phi, chol = exact.marginal(sde.F, sde.G, sde.cov0, b[:-1])
        inverse = exact.solve_lower(chol, np.broadcast_to(np.eye(n), chol.shape))
        euler = np.eye(n) + matrix * np.diff(times)[:, None, None]
        state = flow(b[:-1], times[:-1], b[1:], times[1:]) @ euler + weight @ inverse
        outputs = -weight @ inverse @ phi[..., :1]
        data = linear.data_weights(sde, times[:-1])
        return (linear.Stage(None, times[:-1], data, linear.Affine(state, None), outputs),)
