"""The randomized midpoint method of Shen and Lee (1909.05503), at any order."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.langevin.dynamics import Dynamics
from hold_jax.langevin.method import Evaluate, Force, Method, Step, mix

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


class Coefficients(NamedTuple):
    """Of each node (leading axis): the flow to the midpoint, the force held until there, and the flow from there on.

    Attributes:
      before: (16, n, n) state to the midpoint; `before_noise` (16, n, n) its noise.
      before_noise: see `before`.
      held: (16, n) what the start's force does until the midpoint.
      after: (16, n, n) state from the midpoint to the end; `after_noise` (16, n, n) its noise.
      after_noise: see `after`.
      kick: (16, n) what the midpoint's force does at the end.
    """

    before: np.ndarray
    before_noise: np.ndarray
    held: np.ndarray
    after: np.ndarray
    after_noise: np.ndarray
    kick: np.ndarray


@dataclasses.dataclass(frozen=True)
class RandomizedMidpoint(Method):
    """u' = e^{A h} u + h e^{A (1-a) h} k f(z^_a) + N, with a uniform in [0, 1]. Two gradients a step.

    z^_a is the exponential Euler prediction at a h with the same noise: the mean over a of the kick is the integral
    of the force along the predicted path. a has the law of the 16 Gauss-Legendre nodes and weights in place of the
    uniform one: their moments agree to degree 31, and the matrices come from the host in float64.
    """

    def coefficients(self, dynamics: Dynamics, h: float) -> Coefficients:
        """Of the 16 nodes."""
        nodes = []
        for a in _NODES:
            before, after = dynamics.flow("U", a * h), dynamics.flow("U", (1 - a) * h)
            nodes.append(Coefficients(*before, dynamics.held(a * h), *after, h * after.state @ dynamics.kick))
        return Coefficients(*map(np.stack, zip(*nodes, strict=True)))

    def rows(self, coefficients: Coefficients) -> int:
        """The noise before and after the midpoint."""
        return coefficients.before_noise.shape[-1] + coefficients.after_noise.shape[-1]

    def clock(self, key: jax.Array) -> jax.Array:
        """The number of the node, () int32."""
        return jax.random.choice(key, len(_NODES), p=jnp.asarray(_WEIGHTS, jnp.float32))

    def step(
        self, c: Coefficients, u: jax.Array, start: Force | None, evaluate: Evaluate, noise: jax.Array, clock: jax.Array
    ) -> Step:
        """One step, with the node `clock`."""
        assert start is not None
        c = jax.tree.map(lambda a: jnp.asarray(a)[clock], c)
        first = c.before_noise.shape[-1]
        free = mix(c.before, u) + mix(c.before_noise, noise[:first])
        middle = evaluate(free[0] + c.held[0] * start.force)
        u = mix(c.after, free) + mix(c.after_noise, noise[first:]) + c.kick[:, None] * middle.force[None]
        return Step(u, None, 1)
