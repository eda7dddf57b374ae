"""The Poisson midpoint method (2405.17068): K small steps with unbiased forces, for about two gradients."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from hold_jax.errors import require
from hold_jax.langevin.dynamics import Dynamics
from hold_jax.langevin.euler_maruyama import Coefficients
from hold_jax.langevin.exponential_euler import ExponentialEuler
from hold_jax.langevin.method import Evaluate, Force, Method, Step, mix


@dataclasses.dataclass(frozen=True)
class PoissonMidpoint(Method):
    """K exponential Euler steps of size h / K, whose forces are replaced by unbiased estimates.

    With f_0 the force at the step's start, z^_i the path on which f_0 is held and H_i = 1 with probability 1 / K,

        u_{i+1} = P u_i + Gamma (f_0 + H_i K (f(z^_i) - f_0)) + N xi_i,

    with z^ driven by the same noise. The mean over H is the force of K small steps along z^. A sub-step without an
    event evaluates nothing: 2 - 1/K gradients a step in the mean, counted as made.

    Under `jax.vmap` over keys every sub-step evaluates, because conditions become selections; `sample` and
    `Algorithm.step_chains` give all chains one clock H, so that they do not.
    """

    shared_clock: ClassVar[bool] = True

    K: int = 8

    def __post_init__(self):
        whole = isinstance(self.K, int) and not isinstance(self.K, bool)
        require(whole and self.K >= 1, "K", self.K, "a whole number >= 1")

    def coefficients(self, dynamics: Dynamics, h: float) -> Coefficients:
        """Of one sub-step."""
        return ExponentialEuler().coefficients(dynamics, h / self.K)

    def rows(self, coefficients: Coefficients) -> int:
        """The noise of K sub-steps."""
        return self.K * coefficients.noise.shape[-1]

    def clock(self, key: jax.Array) -> jax.Array:
        """The events H (K,) bool; none at the first sub-step, where there is nothing to correct."""
        return (jax.random.uniform(key, (self.K,)) < 1 / self.K).at[0].set(False)

    def step(
        self, c: Coefficients, u: jax.Array, start: Force | None, evaluate: Evaluate, noise: jax.Array, clock: jax.Array
    ) -> Step:
        """One step, with the events `clock`."""
        assert start is not None
        frozen = start.force

        def substep(carry: tuple, row: tuple) -> tuple:
            held, behind = carry
            event, xi = row
            push = jax.lax.cond(
                event, lambda z: self.K * (evaluate(z).force - frozen), lambda z: jnp.zeros_like(frozen), held[0]
            )
            held = mix(c.state, held) + c.kick[:, None] * frozen[None] + mix(c.noise, xi)
            # u = u^ + behind: only the corrections move them apart.
            return (held, mix(c.state, behind) + c.kick[:, None] * push[None]), None

        rows = noise.reshape(self.K, -1, u.shape[-1])
        (held, behind), _ = jax.lax.scan(substep, (u, jnp.zeros_like(u)), (clock, rows))
        return Step(held + behind, None, jnp.sum(clock, dtype=jnp.int32))
