"""Splittings of the reverse SDE into sub-flows that run one after the other."""

import dataclasses
from typing import NamedTuple

import numpy as np

from hold_jax.errors import require, require_choice
from hold_jax.numerics import exact
from hold_jax.samplers import linear
from hold_jax.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class Splitting(linear.LinearSampler):
    """A step as a sequence of exact flows and score kicks.

    The reverse SDE du = (-F u + G G' score) dB + G dw is the sum of

    - O: du = (-diag(F) - G G' Sigma_inf^-1) u dB + G dw, friction and noise,
    - H: du = -offdiag(F) u dB, the couplings of neighboring blocks: position-momentum rotations,
    - B: du = G G' (score + Sigma_inf^-1 u) dB, explicit,

    each run for h over the number of times it occurs. One network call a step, at the step's start time: a second B
    in a step uses the call of the first.

    Attributes:
      sequence: of the letters O, H and B.
      pieces: run H coupling by coupling (n - 1 plane rotations), not as one exponential.
    """

    sequence: str = "HBHO"
    pieces: bool = False

    def __post_init__(self):
        allowed = set(self.sequence) == set("OHB")
        require(allowed, "sequence", self.sequence, "a sequence of the letters O, H and B, each at least once")

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """One row of matrices for each interval of `times` (N + 1,)."""
        h = sde.schedule.integral(times[1:], times[:-1])
        share = {letter: h / self.sequence.count(letter) for letter in "OHB"}
        flows = {"O": self._noise(sde, share["O"]), "H": self._hamiltonian(sde, share["H"])}
        kick, eps = linear.score_kick(sde, times[:-1], share["B"])
        identity = linear.Affine(np.broadcast_to(np.eye(sde.order), kick.shape), None)
        before, after, outputs = identity, identity, np.zeros_like(eps)
        called = False
        for letter in self.sequence:
            called = called or letter == "B"
            flow = linear.Affine(kick, None) if letter == "B" else flows[letter]
            if called:
                after = linear.compose(after, flow)
                outputs = flow.state @ outputs + (eps if letter == "B" else 0)
            else:
                before = linear.compose(before, flow)
        first = None if self.sequence[0] == "B" else before
        return (linear.Stage(before=first, time=times[:-1], data=None, after=after, outputs=outputs),)

    def _noise(self, sde: LinearSDE, h: np.ndarray) -> linear.Affine:
        drift = -np.diag(np.diagonal(sde.F)) - sde.G @ sde.G.T @ sde.precision_inf
        phi, chol = exact.transition(drift, sde.G, h)
        return linear.Affine(phi, chol[..., np.abs(chol).any(axis=(0, 1))])

    def _hamiltonian(self, sde: LinearSDE, h: np.ndarray) -> linear.Affine:
        couplings = np.diag(np.diagonal(sde.F)) - sde.F
        parts = [couplings]
        if self.pieces:
            parts = []
            for i in range(sde.order - 1):
                plane = np.zeros_like(couplings)
                plane[i : i + 2, i : i + 2] = couplings[i : i + 2, i : i + 2]
                parts.append(plane)
        flow = linear.Affine(np.broadcast_to(np.eye(sde.order), (*h.shape, sde.order, sde.order)), None)
        for part in parts:
            flow = linear.compose(flow, linear.Affine(exact.transition(part, sde.G, h)[0], None))
        return flow


def lie_trotter_split(*, sequence: str = "BOH") -> Splitting:
    """The full split with n - 1 Hamiltonian rotations, one call a step.

    HOLD (2404.12814) announces a Lie-Trotter sampler of this kind. Its order of the sub-flows is in no source that
    could be read, so it is an option: a sequence of the letters O, H and B.
    """
    return Splitting(sequence=sequence, pieces=True)


SCHEMES = ("ROBA", "RBAO", "ROBAB")


@dataclasses.dataclass(frozen=True)
class ReducedSplitting(linear.LinearSampler):
    """PSLD's reduced splittings ROBA, RBAO and ROBAB (2402.07211, eqs. 27 to 39), at any order n >= 2.

    The reverse SDE is the sum of

    - O: du = diag(F) u dB + G dw, friction and noise, exact,
    - B: the rest of the drift of the last block (the momentum), an explicit Euler step,
    - A: the rest of the drift of the blocks before it (the position), an explicit Euler step of each, from the last
      but one to the first, with the newest values of the others and with the score of the step's first call.

    The name lists the sub-flows in the order in which they run. ROBAB makes two half steps of B; the second calls the
    network again, at the step's end time.

    Attributes:
      scheme: "ROBA", "RBAO" or "ROBAB".
      noise_scale: lambda_s, for n = 2 with noise in the position too: the variance of that noise in a step is
        1 - exp(-t lambda_s beta Gamma), t the step's middle (eq. 26); None: 1 - exp(-h beta Gamma), the flow's own. The
        paper tunes it for each number of calls, 50, 70, 100, 150 and 200: ROBA 1.16, 0.66, 0.37, 0.2, 0.13; RBAO 0.7,
        0.44, 0.3, 0.18, 0.1; ROBAB 0.2, 0.16, 0.14, 0.12, 0.1 (table 2: CIFAR-10, Gamma = 0.01, `quadratic` times).
    """

    scheme: str = "ROBA"
    noise_scale: float | None = None

    def __post_init__(self):
        require_choice("scheme", self.scheme, SCHEMES)
        valid = self.noise_scale is None or 0 <= self.noise_scale < float("inf")
        require(valid, "noise_scale", self.noise_scale, "a finite number >= 0, or None")

    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> tuple[linear.Stage, ...]:
        """One row of matrices for each interval of `times` (N + 1,)."""
        require(sde.order >= 2, "scheme", self.scheme, "used with a process of at least two blocks")
        h = sde.schedule.integral(times[1:], times[:-1])
        noise = self._noise(sde, times, h)
        score = linear.driven_score(sde, times[:-1])
        position = _euler(sde, h, score, list(range(sde.order - 2, -1, -1)))
        if self.scheme == "ROBAB":
            end = linear.driven_score(sde, times[1:])
            half = _euler(sde, h / 2, score, [sde.order - 1])
            last = _euler(sde, h / 2, end, [sde.order - 1])
            return _stage(noise, times[:-1], [half, position], None), _stage(None, times[1:], [last], None)
        momentum = _euler(sde, h, score, [sde.order - 1])
        before, after = (noise, None) if self.scheme == "ROBA" else (None, noise)
        return (_stage(before, times[:-1], [momentum, position], after),)

    def _noise(self, sde: LinearSDE, times: np.ndarray, h: np.ndarray) -> linear.Affine:
        state, noise = exact.transition(np.diag(np.diagonal(sde.F)), sde.G, h)
        if self.noise_scale is not None:
            usable = sde.order == 2 and sde.G[0, 0] > 0 and not np.any(sde.G - np.diag(np.diagonal(sde.G)))
            require(
                usable, "noise_scale", self.noise_scale, "None for a process without noise of its own in the position"
            )
            middle = (times[:-1] + times[1:]) / 2
            decay = 2 * sde.F[0, 0] * self.noise_scale * middle * sde.schedule.beta(middle)
            noise[:, 0, 0] = np.sqrt(-np.expm1(decay) / sde.precision_inf[0, 0])
        return linear.Affine(state, noise[..., np.abs(noise).any(axis=(0, 1))])


class _Move(NamedTuple):
    """u <- state u + called u_0 + output eps_n, with u_0 and eps_n of the network's call: (N, n, n), ..., (N, n, 1)."""

    state: np.ndarray
    called: np.ndarray
    output: np.ndarray


def _euler(sde: LinearSDE, h: np.ndarray, score: tuple[np.ndarray, np.ndarray], blocks: list[int]) -> _Move:
    """Euler steps of all but O, block after block; `score` as from `linear.driven_score`."""
    drift = -sde.F - np.diag(np.diagonal(sde.F))
    size, eye = h[:, None, None], np.eye(sde.order)
    state = np.broadcast_to(eye, (len(h), sde.order, sde.order))
    called, output = np.zeros_like(state), np.zeros((len(h), sde.order, 1))
    for i in blocks:
        row = np.diag(eye[i])
        update = eye + size * (row @ drift)
        state = update @ state
        called = update @ called + size * (row @ score[0])
        output = update @ output + size * (row @ score[1])
    return _Move(state, called, output)


def _stage(
    before: linear.Affine | None, time: np.ndarray, moves: list[_Move], after: linear.Affine | None
) -> linear.Stage:
    state, outputs = np.eye(moves[0].state.shape[-1]), np.zeros_like(moves[0].output)
    for move in moves:
        state, outputs = move.state @ state + move.called, move.state @ outputs + move.output
    flow = linear.Affine(state, None)
    if after is not None:
        flow, outputs = linear.compose(flow, after), after.state @ outputs
    return linear.Stage(before=before, time=time, data=None, after=flow, outputs=outputs)
