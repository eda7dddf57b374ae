"""The Poisson midpoint method: the bias of K small steps for about two network calls."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.errors import require
from hold_jax.numerics import exact
from hold_jax.parameterization import EpsFn
from hold_jax.samplers import linear, loop
from hold_jax.sde import LinearSDE


class Coefficients(NamedTuple):
    """Of N steps (leading axis), or of one.

    Attributes:
      times: (N, K) of the sub-steps' starts.
      state: (N, K, n, n) exact flow of the stationary part over a sub-step.
      noise: (N, K, n, r) its noise.
      drift_u: (N, K, n, n) weight of u in the kick, G G' (score + Sigma_inf^-1 u), of a sub-step at its own start.
      drift_eps: (N, K, n, 1) weight of eps_n.
      held: (N, K, n, n) what a kick held from the step's start does over a sub-step.
    """

    times: np.ndarray
    state: np.ndarray
    noise: np.ndarray
    drift_u: np.ndarray
    drift_eps: np.ndarray
    held: np.ndarray


class State(NamedTuple):
    """u (B, *S, n, C); network calls made so far."""

    u: jax.Array
    nfe: jax.Array


@dataclasses.dataclass(frozen=True)
class PoissonMidpoint(loop.StepSampler):
    """Kandasamy and Nagaraj (2405.17068), on the exponential-Euler step that is exact in the stationary part.

    A step has K sub-steps. With b = G G' (score + Sigma_inf^-1 u), b_0 at the step's start, u^ the path on which
    b_0 is held, and H_i = 1 with probability 1/K,

        u_{i+1} = P u_i + Gamma (b_0 + H_i K (b(u^_i, t_i) - b_0)) + N xi_i,

    with u^ driven by the same noise. The mean over H is the drift of K small steps. H is one clock for the whole
    batch, so that a sub-step without an event makes no call: 2 - 1/K calls a step in the mean, counted in `nfe`.
    (Under `jax.vmap` conditions become selections and every sub-step is computed: put the batch in the shape.)

    Attributes:
      K: sub-steps.
    """

    K: int = 4

    def __post_init__(self):
        whole = isinstance(self.K, int) and not isinstance(self.K, bool)
        require(whole and self.K >= 1, "K", self.K, "a whole number >= 1")

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> Coefficients:
        """For each interval of `times` (N + 1,), cut into K equal parts in B."""
        b = sde.schedule.integral(0.0, times)
        ends = b[:-1, None] + (b[1:] - b[:-1])[:, None] * np.arange(self.K + 1) / self.K
        starts = sde.schedule.time(ends[:, :-1])
        # The first start is the grid's own time, not its round trip through B.
        starts[:, 0] = times[:-1]
        h = (ends[:, :-1] - ends[:, 1:]).ravel()
        flow = linear.reverse_ornstein_uhlenbeck(sde, h)
        state, eps = linear.driven_score(sde, starts.ravel())
        held = _held(-sde.F - sde.G @ sde.G.T @ sde.precision_inf, h)
        rows = lambda a: a.reshape(len(times) - 1, self.K, *a.shape[1:])  # noqa: E731
        return Coefficients(
            times=starts,
            state=rows(flow.state),
            noise=rows(flow.noise),
            drift_u=rows(state + sde.G @ sde.G.T @ sde.precision_inf),
            drift_eps=rows(eps),
            held=rows(held),
        )

    def start(self, coefficients: Coefficients, u: jax.Array) -> State:
        """Before the first step."""
        del coefficients
        return State(u, jnp.int32(0))

    def step(self, c: Coefficients, state: State, eps_fn: EpsFn, normal: loop.Draws) -> State:
        """K sub-steps, with a fresh clock."""
        events = normal.shared(0, (self.K,)) < 1 / self.K
        # At the first sub-step the held kick is the kick itself: nothing to correct.
        return self.clocked(c, state, eps_fn, normal, events.at[0].set(False))

    def clocked(self, c: Coefficients, state: State, eps_fn: EpsFn, normal: loop.Normal, events: jax.Array) -> State:
        """The step under given events (K,) bool."""
        frozen = self._kick(jax.tree.map(lambda a: a[0], c), state.u, eps_fn)

        def substep(carry: tuple, row: tuple) -> tuple:
            held, behind, nfe = carry
            index, event, c = row
            push = jax.lax.cond(
                event,
                lambda: self.K * kernels.mix(c.held, self._kick(c, held, eps_fn) - frozen),
                lambda: jnp.zeros_like(held),
            )
            noise = kernels.mix(c.noise, normal(1 + index, (*held.shape[:-2], c.noise.shape[-1], held.shape[-1])))
            held = kernels.mix(c.state, held) + kernels.mix(c.held, frozen) + noise
            # u = u^ + behind: only the corrections move them apart.
            return (held, kernels.mix(c.state, behind) + push, nfe + event), None

        carry = (state.u, jnp.zeros_like(state.u), state.nfe + 1)
        (held, behind, nfe), _ = jax.lax.scan(substep, carry, (jnp.arange(self.K), events, c))
        return State(held + behind, nfe)

    @staticmethod
    def _kick(c: Coefficients, u: jax.Array, eps_fn: EpsFn) -> jax.Array:
        return kernels.mix(c.drift_u, u) + kernels.mix(c.drift_eps, eps_fn(u, c.times))


def _held(drift: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Gamma = int_0^h exp(drift s) ds (N, n, n), from the exponential of [[drift, 1], [0, 0]]."""
    n = drift.shape[0]
    block = np.zeros((2 * n, 2 * n))
    block[:n, :n], block[:n, n:] = drift, np.eye(n)
    return exact.transition(block, np.eye(2 * n), h)[0][:, :n, n:]
