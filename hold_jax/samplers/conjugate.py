"""Conjugate integrators of the probability flow: Euler steps after a linear change of variables."""

import dataclasses

import numpy as np

from hold_jax.errors import require
from hold_jax.numerics import exact
from hold_jax.samplers import linear
from hold_jax.sde import LinearSDE

# Quadrature nodes in log B over one step, as in `whitened`.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclasses.dataclass(frozen=True)
class Conjugate(linear.LinearSampler):
    """lambda-DDIM (Pandey, Rudolph and Mandt, 2310.07894), its form B_t = lambda I, at any order n.

    With the noise eps = L^-1 (u - A D) of all blocks the probability flow is du = (F u + 1/2 G G' L^-T eps) dB. In
    z = A(t) u, A(t) = exp(lambda t) exp(-F B(t)), it is

        dz/dt = lambda z + dPhi/dt eps,    Phi(t) = int_0^t 1/2 beta A G G' L^-T,

    and a step is Euler's for the first term, with eps held in the second. n = 1 and lambda = 0 is DDIM. Deterministic.
    The paper's other form, B_t = lambda times a matrix of ones, and its conjugate splittings are in no source that
    could be read.

    Attributes:
      lam: lambda, per unit of t.
    """

    lam: float = 0.0

    def __post_init__(self):
        require(abs(self.lam) < float("inf"), "lam", self.lam, "a finite number")

    @property
    def deterministic(self) -> bool:
        """No noise is drawn."""
        return True

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """One row of matrices for each interval of `times` (N + 1,)."""
        b = sde.schedule.integral(0.0, times)
        half = np.diff(np.log(b))[:, None] / 2
        nodes = np.exp((np.log(b[:-1]) + np.log(b[1:]))[:, None] / 2 + half * _NODES)
        # A(end)^-1 A(t) = exp(lambda (t - end)) exp(-F (B(t) - B(end))).
        back, _ = exact.transition(-sde.F, sde.G, np.maximum(nodes - b[1:, None], 0))
        forth, _ = exact.transition(sde.F, sde.G, np.maximum(b[1:, None] - nodes, 0))
        flow = back @ forth * np.exp(self.lam * (sde.schedule.time(nodes) - times[1:, None]))[..., None, None]
        _, chol = exact.marginal(sde.F, sde.G, sde.cov0, nodes)
        driven = np.swapaxes(exact.solve_lower(chol, np.broadcast_to(sde.G @ sde.G.T, chol.shape)), -1, -2)
        weight = np.sum((half * _WEIGHTS * nodes)[..., None, None] / 2 * flow @ driven, axis=1)

        phi, chol = exact.marginal(sde.F, sde.G, sde.cov0, b[:-1])
        inverse = exact.solve_lower(chol, np.broadcast_to(np.eye(sde.order), chol.shape))
        back, _ = exact.transition(-sde.F, sde.G, np.maximum(b[:-1] - b[1:], 0))
        forth, _ = exact.transition(sde.F, sde.G, np.maximum(b[1:] - b[:-1], 0))
        h = self.lam * (times[:-1] - times[1:])
        state = ((1 - h) * np.exp(h))[:, None, None] * (back @ forth) + weight @ inverse
        outputs = -weight @ inverse @ phi[..., :1]
        data = linear.data_weights(sde, times[:-1])
        return (linear.Stage(None, times[:-1], data, linear.Affine(state, None), outputs),)
