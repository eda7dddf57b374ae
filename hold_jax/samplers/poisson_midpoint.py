"""The Poisson midpoint method: K small steps with unbiased predictions, for about two network calls."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.errors import require, require_choice
from hold_jax.numerics import exact
from hold_jax.parameterization import EpsFn
from hold_jax.samplers import linear, loop
from hold_jax.samplers.ancestral import Ancestral
from hold_jax.sde import LinearSDE

BASES = ("denoiser", "noise", "score")
SPACINGS = ("uniform", "log")


class Coefficients(NamedTuple):
    """Of N steps (leading axis), or of one.

    Attributes:
      times: (N, K) of the sub-steps' starts.
      state: (N, K, n, n) weight of u in a sub-step.
      noise: (N, K, n, r) of its noise.
      read: (N, K, k, n + 1) weights of u and of eps_n that make the output o at a sub-step's start.
      held: (N, K, n, k) weight of o in a sub-step.
    """

    times: np.ndarray
    state: np.ndarray
    noise: np.ndarray
    read: np.ndarray
    held: np.ndarray


class State(NamedTuple):
    """u (B, *S, n, C); network calls made so far."""

    u: jax.Array
    nfe: jax.Array


@dataclasses.dataclass(frozen=True)
class PoissonMidpoint(loop.StepSampler):
    """Kandasamy and Nagaraj (2405.17068), on a base scheme u_{i+1} = P_i u_i + W_i o(u_i, t_i) + N_i xi_i.

    A step has K sub-steps of the base scheme. With o_0 at the step's start, u^ the path on which o_0 is held, and
    H_i = 1 with probability 1/K,

        u_{i+1} = P_i u_i + W_i (o_0 + H_i K (o(u^_i, t_i) - o_0)) + N_i xi_i,

    with u^ driven by the same noise. The mean over H is the output of K small steps. H is one clock for the whole
    batch, so that a sub-step without an event makes no call: 2 - 1/K calls a step in the mean, counted in `nfe`.
    The samples of one batch are therefore not independent: figures of few batches are those of few clocks.
    (Under `jax.vmap` conditions become selections and every sub-step is computed: put the batch in the shape.)

    Attributes:
      K: sub-steps.
      base: the output o that is held between events, and with it the base scheme:
        "denoiser": D = E[q0 | u], in the step of `ancestral` (DDPM's at n = 1, the paper's base for pictures);
        "noise": the noise along the signal, (y - D) / sigma_eff, in the same step;
        "score": G G' (score + Sigma_inf^-1 u), in the exponential Euler step that is exact in the stationary part
        (the paper's Langevin dynamics).
      spacing: of the sub-steps within a step: "uniform" in int beta, or "log" (equal in log effective noise).
    """

    K: int = 16
    base: str = "denoiser"
    spacing: str = "uniform"

    def __post_init__(self):
        whole = isinstance(self.K, int) and not isinstance(self.K, bool)
        require(whole and self.K >= 1, "K", self.K, "a whole number >= 1")
        require_choice("base", self.base, BASES)
        require_choice("spacing", self.spacing, SPACINGS)

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> Coefficients:
        """For each interval of `times` (N + 1,), cut into K parts."""
        fine = self._fine(sde, times)
        scheme = {"denoiser": _denoiser, "noise": _noise, "score": _score}[self.base](sde, fine)
        rows = lambda a: a.reshape(len(times) - 1, self.K, *a.shape[1:])  # noqa: E731
        return Coefficients(*(rows(a) for a in (fine[:-1], *scheme)))

    def _fine(self, sde: LinearSDE, times: np.ndarray) -> np.ndarray:
        """All sub-steps' starts and the end (N K + 1,)."""
        part = np.arange(self.K) / self.K
        b = sde.schedule.integral(0.0, times)
        if self.spacing == "uniform":
            fine = sde.schedule.time(b[:-1, None] + np.diff(b)[:, None] * part)
        else:
            log_noise = np.log(exact.effective_noise(sde.F, sde.G, sde.cov0, b))
            between = np.exp(log_noise[:-1, None] + np.diff(log_noise)[:, None] * part)
            fine = sde.schedule.time(exact.integral_of_noise(sde.F, sde.G, sde.cov0, between))
        # The first start is the grid's own time, not its round trip through B.
        fine[:, 0] = times[:-1]
        return np.append(fine.ravel(), times[-1])

    def start(self, coefficients: Coefficients, u: jax.Array) -> State:
        """Before the first step."""
        del coefficients
        return State(u, jnp.int32(0))

    def step(self, c: Coefficients, state: State, eps_fn: EpsFn, normal: loop.Draws) -> State:
        """K sub-steps, with a fresh clock."""
        events = normal.shared(0, (self.K,)) < 1 / self.K
        # At the first sub-step the held output is the output itself: nothing to correct.
        return self.clocked(c, state, eps_fn, normal, events.at[0].set(False))

    def clocked(self, c: Coefficients, state: State, eps_fn: EpsFn, normal: loop.Normal, events: jax.Array) -> State:
        """The step under given events (K,) bool."""
        frozen = self._output(jax.tree.map(lambda a: a[0], c), state.u, eps_fn)

        def substep(carry: tuple, row: tuple) -> tuple:
            held, behind, nfe = carry
            index, event, c = row
            push = jax.lax.cond(
                event,
                lambda: self.K * kernels.mix(c.held, self._output(c, held, eps_fn) - frozen),
                lambda: jnp.zeros_like(held),
            )
            noise = kernels.mix(c.noise, normal(1 + index, (*held.shape[:-2], c.noise.shape[-1], held.shape[-1])))
            held = kernels.mix(c.state, held) + kernels.mix(c.held, frozen) + noise
            # u = u^ + behind: only the corrections move them apart.
            return (held, kernels.mix(c.state, behind) + push, nfe + event), None

        carry = (state.u, jnp.zeros_like(state.u), state.nfe + 1)
        held, behind, nfe = loop.scan(substep, carry, (jnp.arange(self.K), events, c))
        return State(held + behind, nfe)

    @staticmethod
    def _output(c: Coefficients, u: jax.Array, eps_fn: EpsFn) -> jax.Array:
        eps_last = kernels.require_noise(u, eps_fn(u, jnp.asarray(c.times)))
        return kernels.mix(c.read, jnp.concatenate([u, eps_last], axis=-2))


# A base scheme: state, noise, read and held for each interval of `fine` (M + 1,).
_Scheme = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _denoiser(sde: LinearSDE, fine: np.ndarray) -> _Scheme:
    (stage,) = Ancestral().coefficients(sde, fine)
    assert stage.data is not None and stage.after.noise is not None
    return stage.after.state, stage.after.noise, stage.data, stage.outputs


def _noise(sde: LinearSDE, fine: np.ndarray) -> _Scheme:
    """D = y - sigma_eff eps: y moves with the state, eps is held."""
    state, noise, data, outputs = _denoiser(sde, fine)
    phi, chol = exact.marginal(sde.F, sde.G, sde.cov0, sde.schedule.integral(0.0, fine[:-1]))
    w = exact.solve_lower(chol, phi[..., :, :1])
    sigma = 1 / np.linalg.norm(w, axis=-2, keepdims=True)
    inverse = exact.solve_lower(chol, np.broadcast_to(np.eye(sde.order), chol.shape))
    statistic = np.swapaxes(w, -1, -2) @ inverse * sigma**2
    read = (np.pad(statistic, ((0, 0), (0, 0), (0, 1))) - data) / sigma
    return state + outputs @ statistic, noise, read, -outputs * sigma


def _score(sde: LinearSDE, fine: np.ndarray) -> _Scheme:
    b = sde.schedule.integral(0.0, fine)
    h = b[:-1] - b[1:]
    flow = linear.reverse_ornstein_uhlenbeck(sde, h)
    state, eps = linear.driven_score(sde, fine[:-1])
    diffusion = sde.G @ sde.G.T @ sde.precision_inf
    read = np.concatenate([state + diffusion, eps], axis=-1)
    assert flow.noise is not None
    return flow.state, flow.noise, read, _integrated(-sde.F - diffusion, h)


def _integrated(drift: np.ndarray, h: np.ndarray) -> np.ndarray:
    """int_0^h exp(drift s) ds (N, n, n), from the exponential of [[drift, 1], [0, 0]]."""
    n = drift.shape[0]
    block = np.zeros((2 * n, 2 * n))
    block[:n, :n], block[:n, n:] = drift, np.eye(n)
    return exact.transition(block, np.eye(2 * n), h)[0][:, :n, n:]
