"""Splittings of the dynamics into couplings, friction and force, in any sequence: BAOAB, OBABO, UBU, ..."""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import numpy as np

from hold_jax.errors import require
from hold_jax.langevin.dynamics import Affine, Dynamics, compose
from hold_jax.langevin.method import Evaluate, Force, Method, Step, mix


class Coefficients(NamedTuple):
    """The flows before, between and after the kicks, and what one kick adds for a unit force, (n,)."""

    flows: tuple[Affine | None, ...]
    kick: np.ndarray


@dataclasses.dataclass(frozen=True)
class Splitting(Method):
    """A step as a sequence of exact flows, each for h over the number of times its letter occurs.

    - A: dz = gamma_1 v_1 dt and dv_i = -gamma_i v_{i-1} dt + gamma_{i+1} v_{i+1} dt, rotations of the auxiliaries;
    - O: the friction and the noise of the last block (at n = 1: the noise of the position);
    - B: the force, dv_1 = -gamma_1 grad U(z) dt (at n = 1: dz = -xi grad U(z) dt);
    - U: A and O together.

    At n = 2 these are the letters of molecular dynamics (BAOAB, Leimkuhler and Matthews 2013), and UBU is that of
    Sanz-Serna and Zygalakis (2021). Symmetric sequences have bias of second order in h at n >= 2,
    of first order at n = 1. One gradient a step for each
    B; at n >= 2 a B at the end shares its gradient with one at the next step's start.

    Attributes:
      sequence: of the letters A, O and B, or U and B, each at least once.
    """

    sequence: str = "UBU"

    def __post_init__(self):
        allowed = isinstance(self.sequence, str) and set(self.sequence) in ({"A", "O", "B"}, {"U", "B"})
        require(allowed, "sequence", self.sequence, "a sequence of the letters A, O, B, or of U, B, each at least once")

    def coefficients(self, dynamics: Dynamics, h: float) -> Coefficients:
        """Neighboring flows are composed."""
        share = {letter: h / self.sequence.count(letter) for letter in self.sequence}
        flows: list[Affine | None] = []
        for part in self.sequence.split("B"):
            flow = None
            for letter in part:
                piece = dynamics.flow(letter, share[letter])
                flow = piece if flow is None else compose(flow, piece)
            flows.append(flow)
        return Coefficients(tuple(flows), share["B"] * dynamics.kick)

    def reads_start(self, coefficients: Coefficients) -> bool:
        """Whether the position stands still until the first kick."""
        return not _moves(coefficients.flows[0])

    def rows(self, coefficients: Coefficients) -> int:
        """The columns of noise of all flows."""
        return sum(flow.noise.shape[-1] for flow in coefficients.flows if flow is not None)

    def step(
        self, c: Coefficients, u: jax.Array, start: Force | None, evaluate: Evaluate, noise: jax.Array, clock: None
    ) -> Step:
        """One step."""
        del clock
        counts = [0 if flow is None else flow.noise.shape[-1] for flow in c.flows]
        ends = list(itertools.accumulate(counts))
        parts = [noise[end - count : end] for end, count in zip(ends, counts, strict=True)]
        force, made = start, 0
        u = _flow(c.flows[0], u, parts[0])
        for index, (flow, part) in enumerate(zip(c.flows[1:], parts[1:], strict=True)):
            if index > 0 or force is None:
                force, made = evaluate(u[0]), made + 1
            u = u + c.kick[:, None] * force.force[None]
            u = _flow(flow, u, part)
        # The last kick's force is that of the end, if a kick before it did not share the same evaluation. At n = 1 the
        # kick itself moves the position.
        still = not _moves(c.flows[-1]) and len(c.flows) > 2 and len(u) > 1
        return Step(u, force if still else None, made)


def _moves(flow: Affine | None) -> bool:
    """Whether the flow changes the position."""
    if flow is None:
        return False
    row = np.array(flow.state[0])
    row[0] -= 1
    return bool(np.any(row) or np.any(flow.noise[0]))


def _flow(flow: Affine | None, u: jax.Array, noise: jax.Array) -> jax.Array:
    return u if flow is None else mix(flow.state, u) + mix(flow.noise, noise)
