"""A Metropolis-adjusted step, exact at every order: MALA at n = 1, OBABO at n >= 2."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.langevin.dynamics import Dynamics
from hold_jax.langevin.method import Evaluate, Force, Method, Step, mix
from hold_jax.numerics.tables import tabulate


class Coefficients(NamedTuple):
    """Of one step.

    Attributes:
      verlet: () step of the proposal.
      state: (n - 1, n - 1) flow of the auxiliaries over h / 2; at n = 1 (1, 1): a fresh velocity.
      noise: of the same shape, its noise.
    """

    verlet: Any
    state: np.ndarray | jax.Array
    noise: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class Metropolis(Method):
    """Half a step of the auxiliaries alone, a velocity Verlet step under a Metropolis test, another half step.

    The auxiliaries' dynamics without the force, dv = C v dt + G dw, leaves N(0, I) invariant, at any order. The Verlet
    step of (z, v_1), followed by v_1 -> -v_1, preserves volume and is its own inverse, so that accepting it with
    probability min(1, exp(-change of U + v_1^2 / 2)) and turning v_1 once more leaves the target exact: a rejection
    turns v_1 round (Horowitz 1991). At n = 2 this is OBABO with a Metropolis test, at n = 1, with a fresh velocity at
    each step and a Verlet step of sqrt(2 h), MALA. One gradient a step.
    """

    metropolis: ClassVar[bool] = True

    def coefficients(self, dynamics: Dynamics, h: float) -> Coefficients:
        """Of one step."""
        flow = dynamics.auxiliary(np.asarray(h / 2))
        return Coefficients(np.asarray(_verlet(dynamics, h)), flow.state, flow.noise)

    def table(self, dynamics: Dynamics, largest: float) -> Callable[[jax.Array], Coefficients]:
        """The coefficients as a function of a step size on the device, () in (0, largest], in float32."""
        if dynamics.order == 1:  # a fresh velocity, whatever the step size
            constant = dynamics.auxiliary(np.zeros(()))
            fresh = jnp.asarray(constant.state, jnp.float32), jnp.asarray(constant.noise, jnp.float32)
            return lambda h: Coefficients(_verlet(dynamics, h), *fresh)
        state = tabulate(lambda h: dynamics.auxiliary(h / 2).state, top=largest)
        noise = tabulate(lambda h: dynamics.auxiliary(h / 2).noise, top=largest)
        return lambda h: Coefficients(_verlet(dynamics, h), state(h), noise(h))

    def rows(self, coefficients: Coefficients) -> int:
        """The noise of both half steps."""
        return 2 * coefficients.noise.shape[-1]

    def clock(self, key: jax.Array) -> jax.Array:
        """The uniform number of the test, ()."""
        return jax.random.uniform(key)

    def step(
        self, c: Coefficients, u: jax.Array, start: Force | None, evaluate: Evaluate, noise: jax.Array, clock: jax.Array
    ) -> Step:
        """One step, with the uniform number `clock`."""
        assert start is not None and start.log_density is not None
        first, second = jnp.split(noise, 2)
        z, v = u[0], u[1:] if u.shape[0] > 1 else jnp.zeros_like(u)
        v = mix(c.state, v) + mix(c.noise, first)

        half = v[0] + c.verlet / 2 * start.force
        z_new = z + c.verlet * half
        proposal = evaluate(z_new)
        assert proposal.log_density is not None
        v_new = half + c.verlet / 2 * proposal.force
        gain = proposal.log_density - start.log_density + jnp.sum(jnp.square(v[0]) - jnp.square(v_new)) / 2
        # A proposal of density NaN, or so far out that the energy overflows, is rejected.
        acceptance = jnp.where(jnp.isnan(gain), 0.0, jnp.exp(jnp.minimum(gain, 0.0)))
        accept = clock < acceptance
        z = jnp.where(accept, z_new, z)
        v = v.at[0].set(jnp.where(accept, v_new, -v[0]))
        end = jax.tree.map(lambda new, old: jnp.where(accept, new, old), proposal, start)

        v = mix(c.state, v) + mix(c.noise, second)
        return Step(jnp.concatenate([z[None], v])[: u.shape[0]], end, 1, acceptance)


def _verlet(dynamics: Dynamics, h: Any) -> Any:
    """The step of the proposal: at n = 1 the fresh velocity's noise, sqrt(2 xi h), is that of the position."""
    # Python numbers, which leave h in its own type.
    return h * float(dynamics.kick[1]) if dynamics.order > 1 else h**0.5 * float(dynamics.noise[0, 0])
