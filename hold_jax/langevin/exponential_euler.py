"""The exponential Euler method: exact but for the force, which is held over the step."""

import dataclasses

from hold_jax.langevin.dynamics import Dynamics
from hold_jax.langevin.euler_maruyama import Coefficients, EulerMaruyama


@dataclasses.dataclass(frozen=True)
class ExponentialEuler(EulerMaruyama):
    """u' = e^{A h} u + int_0^h e^{A s} k ds f(z) + N xi, N N' = int_0^h e^{A s} G G' e^{A' s} ds.

    At n = 1 it is Langevin Monte Carlo, at n = 2 the method of Cheng et al. (1707.03663). One gradient a step.
    """

    def coefficients(self, dynamics: Dynamics, h: float) -> Coefficients:
        """Of one step."""
        flow = dynamics.flow("U", h)
        return Coefficients(flow.state, dynamics.held(h), flow.noise)
