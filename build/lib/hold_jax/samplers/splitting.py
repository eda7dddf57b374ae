"""Splittings into an Ornstein-Uhlenbeck piece, Hamiltonian pieces and a score kick, in any sequence."""

import dataclasses

import numpy as np

from hold_jax.errors import require
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

    each run for h over the number of times it occurs. One network call a step: a second B in a step uses the
    call of the first (PSLD's "reduced" splittings, 2310.07894, section 3.2), at the step's start time.

    Attributes:
      sequence: of the letters O, H and B.
      pieces: run H coupling by coupling (n - 1 plane rotations), as HOLD describes it, not as one exponential.
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
        flow = linear.Affine(*exact.transition(drift, sde.G, h))
        return flow._replace(noise=flow.noise[..., np.abs(flow.noise).any(axis=(0, 1))])

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


def lie_trotter_split() -> Splitting:
    """HOLD's full split (2404.12814): score kick, Ornstein-Uhlenbeck piece, then n - 1 Hamiltonian rotations."""
    return Splitting(sequence="BOH", pieces=True)


def reduced_splitting(*, sequence: str = "HBHO") -> Splitting:
    """A PSLD-like splitting with one shared score a step (2310.07894; 2402.07211)."""
    return Splitting(sequence=sequence)
