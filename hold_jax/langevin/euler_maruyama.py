"""The Euler-Maruyama method: Langevin Monte Carlo (ULA) at order 1."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from hold_jax.langevin.dynamics import Dynamics
from hold_jax.langevin.method import Evaluate, Force, Method, Step, mix


class Coefficients(NamedTuple):
    """state (n, n), kick (n,), noise (n, r) of one step."""

    state: np.ndarray
    kick: np.ndarray
    noise: np.ndarray


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(Method):
    """u' = u + h (A u + k f(z)) + sqrt(h) G xi, with A the couplings and friction. One gradient a step."""

    def coefficients(self, dynamics: Dynamics, h: float) -> Coefficients:
        """Of one step."""
        state = np.eye(dynamics.order) + h * dynamics.linear
        return Coefficients(state, h * dynamics.kick, np.sqrt(h) * dynamics.noise[:, -1:])

    def step(
        self, c: Coefficients, u: jax.Array, start: Force | None, evaluate: Evaluate, noise: jax.Array, clock: None
    ) -> Step:
        """One step with the force at its start."""
        del evaluate, clock
        assert start is not None
        return Step(mix(c.state, u) + c.kick[:, None] * start.force[None] + mix(c.noise, noise), None, 0)
