"""The Langevin dynamics of order n whose position has the density exp(-U), and its exact pieces.

The state is a position z = v_0 and auxiliaries v_1, ..., v_{n-1}, in coordinates in which the target has unit scale:

    dz       = gamma_1 v_1 dt
    dv_1     = -gamma_1 grad U(z) dt + gamma_2 v_2 dt
    dv_i     = -gamma_i v_{i-1} dt + gamma_{i+1} v_{i+1} dt,    1 < i < n - 1                             (1)
    dv_{n-1} = -gamma_{n-1} v_{n-2} dt - xi v_{n-1} dt + sqrt(2 xi) dw,

and dz = -xi grad U(z) dt + sqrt(2 xi) dw at n = 1. With H = U(z) + |v|^2 / 2 this is
du = (J - D) grad H dt + sqrt(2 D) dw, J = sum_i gamma_i (E_{i,i+1} - E_{i+1,i}), D = xi E_{nn}, so exp(-H) is
invariant for every U: docs/method.md, section 9. For U = |z|^2 / 2 it is HOLD (2404.12814) with L = 1.
"""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hold_jax.errors import require
from hold_jax.numerics import exact
from hold_jax.sde import critical_damping

MAX_ORDER = 6


class Affine(NamedTuple):
    """u <- state u + noise xi, state (n, n) and noise (n, r), float64."""

    state: np.ndarray
    noise: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """The dynamics (1).

    Attributes:
      order: n, 1 to 6.
      gammas: n - 1 couplings > 0 of neighboring blocks; None: critical damping for unit curvature (2506.21741).
      xi: friction > 0 of the last block; None: critical damping.
    """

    order: int
    gammas: Sequence[float] | None = None
    xi: float | None = None

    def __post_init__(self):
        whole = isinstance(self.order, numbers.Integral) and not isinstance(self.order, bool)
        require(whole and 1 <= self.order <= MAX_ORDER, "order", self.order, f"a whole number from 1 to {MAX_ORDER}")
        gammas, xi = critical_damping(self.order)
        gammas = tuple(float(g) for g in np.atleast_1d(gammas if self.gammas is None else self.gammas))
        xi = float(xi if self.xi is None else self.xi)
        positive = len(gammas) == self.order - 1 and all(0 < g < np.inf for g in gammas)
        require(positive, "gammas", self.gammas, f"{self.order - 1} positive numbers at order {self.order}")
        require(0 < xi < np.inf, "xi", self.xi, "a positive number")
        object.__setattr__(self, "gammas", gammas)
        object.__setattr__(self, "xi", xi)

    @property
    def kick(self) -> np.ndarray:
        """(n,) what one unit of the force -grad U does to the blocks: it acts on v_1, at n = 1 on z itself."""
        kick = np.zeros(self.order)
        kick[min(1, self.order - 1)] = self._gammas[0] if self.order > 1 else self._xi
        return kick

    @property
    def coupling(self) -> np.ndarray:
        """(n, n) the drift of z and of the auxiliaries by each other: no force, no friction."""
        upper = np.diag(self._gammas, k=1)
        coupling = upper - upper.T
        coupling[:, 0] = 0.0  # the pull on v_1 by z is the force
        return coupling

    @property
    def friction(self) -> np.ndarray:
        """(n, n) the drift by friction in the last block; at n = 1 none: there friction acts through the force."""
        last = np.zeros((self.order, self.order))
        last[-1, -1] = -self._xi if self.order > 1 else 0.0
        return last

    @property
    def noise(self) -> np.ndarray:
        """(n, n) the diffusion, sqrt(2 xi) in the last block."""
        last = np.zeros((self.order, self.order))
        last[-1, -1] = np.sqrt(2 * self._xi)
        return last

    @property
    def linear(self) -> np.ndarray:
        """(n, n) all of the drift but the force."""
        return self.coupling + self.friction

    def flow(self, letter: str, h: float) -> Affine:
        """The exact flow for a time h of A (couplings), O (friction and noise) or U (both)."""
        drift = {"A": self.coupling, "O": self.friction, "U": self.linear}[letter]
        noise = np.zeros_like(drift) if letter == "A" else self.noise
        state, chol = exact.transition(drift, noise, np.asarray(h, np.float64))
        return Affine(state, chol[:, np.abs(chol).any(axis=0)])

    def held(self, h: float) -> np.ndarray:
        """(n,) int_0^h exp(linear s) kick ds: what a unit force held for a time h does."""
        n = self.order
        block = np.zeros((n + 1, n + 1))
        block[:n, :n], block[:n, n] = self.linear, self.kick
        return exact.transition(block, np.eye(n + 1), np.asarray(h))[0][:n, n]

    def auxiliary(self, h: np.ndarray) -> Affine:
        """The exact flow, (..., n - 1, n - 1), of the auxiliaries without the force for times h (...,).

        It leaves N(0, I) invariant. At n = 1 there is one auxiliary, drawn anew.
        """
        if self.order == 1:
            one = np.ones((*h.shape, 1, 1))
            return Affine(0 * one, one)
        return Affine(*exact.transition(self.linear[1:, 1:], self.noise[1:, 1:], h))

    @property
    def _gammas(self) -> tuple[float, ...]:
        assert isinstance(self.gammas, tuple)
        return self.gammas

    @property
    def _xi(self) -> float:
        assert self.xi is not None
        return self.xi


def compose(first: Affine, second: Affine) -> Affine:
    """`first`, then `second`, with at most n columns of noise."""
    noise = np.concatenate([second.state @ first.noise, second.noise], axis=-1)
    if noise.shape[-1] > noise.shape[0]:
        noise = exact.triangular_factor(noise)
    return Affine(second.state @ first.state, noise)
