"""The Picard-Lagrange method (Mahajan, Zhang, Liang and Liu, 2510.18242)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.errors import require, require_whole
from hold_jax.langevin.dynamics import Dynamics
from hold_jax.langevin.method import Evaluate, Force, Method, Step, mix

MOST_NODES = 16


class Coefficients(NamedTuple):
    """Of the m nodes after the start, c_j h.

    Attributes:
      state: (m n, n) flow from the start to each node.
      noise: (m n, r) its noise, joint over the nodes.
      forces: (m n, m + 1) what a unit force at each node, the start first, does until each node.
    """

    state: np.ndarray
    noise: np.ndarray
    forces: np.ndarray


@dataclasses.dataclass(frozen=True)
class PicardLagrange(Method):
    """The force along a step is the polynomial through its values at equidistant nodes, found by Picard iteration.

    u(c_j h) = e^{A c_j h} u + sum_k W_jk f(z(c_k h)) + N_j, W_jk = int_0^{c_j h} e^{A (c_j h - s)} k l_k(s) ds, with
    l_k the Lagrange polynomials and N the exact noise, joint over the nodes. The first sweep starts from the force
    at the step's start, held; each later one evaluates the force at every node but the start.
    1 + (nodes - 1) (sweeps - 1) gradients a step. On Gaussian targets the
    bias is of first order for one sweep, for two of second (n = 1) or third (n >= 2).

    Attributes:
      nodes: in [0, h], both ends among them, at most 16; None: n - 1 as in the paper, at least 2.
      sweeps: of the Picard iteration; None: as many as nodes.
    """

    nodes: int | None = None
    sweeps: int | None = None

    def __post_init__(self):
        for name, least in (("nodes", 2), ("sweeps", 1)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, require_whole(name, getattr(self, name), least))
        # Polynomials through equidistant nodes amplify rounding by 2^nodes.
        require(self.nodes is None or self.nodes <= MOST_NODES, "nodes", self.nodes, f"at most {MOST_NODES}")

    def coefficients(self, dynamics: Dynamics, h: float) -> Coefficients:
        """Of the nodes."""
        times = np.linspace(0, h, self.nodes or max(2, dynamics.order - 1))
        n, m = dynamics.order, len(times) - 1
        piece = dynamics.flow("U", h / m)
        r = piece.noise.shape[-1]
        noise = np.zeros((m, n, m, r))
        noise[0, :, 0] = piece.noise
        for j in range(1, m):
            noise[j] = np.einsum("ab,bmr->amr", piece.state, noise[j - 1])
            noise[j, :, j] = piece.noise
        states = np.stack([dynamics.flow("U", t).state for t in times[1:]])
        forces = np.stack([_forces(dynamics, times, t) for t in times[1:]])
        return Coefficients(states.reshape(m * n, n), noise.reshape(m * n, m * r), forces.reshape(m * n, m + 1))

    def step(
        self, c: Coefficients, u: jax.Array, start: Force | None, evaluate: Evaluate, noise: jax.Array, clock: None
    ) -> Step:
        """One step."""
        del clock
        assert start is not None
        n, m = u.shape[0], c.forces.shape[-1] - 1
        free = mix(c.state, u) + mix(c.noise, noise)
        forces = jnp.broadcast_to(start.force, (m + 1, *start.force.shape))
        sweeps = self.sweeps or m + 1
        for sweep in range(sweeps):
            path = (free + mix(c.forces, forces)).reshape(m, n, -1)
            if sweep < sweeps - 1:
                forces = jnp.stack([start.force, *(evaluate(path[j, 0]).force for j in range(m))])
        return Step(path[-1], None, m * (sweeps - 1))


def _forces(dynamics: Dynamics, times: np.ndarray, end: float) -> np.ndarray:
    """(n, nodes) int_0^end e^{A (end - s)} k l_j(s) ds by Gauss-Legendre nodes."""
    points, weights = np.polynomial.legendre.leggauss(40)
    points, weights = (points + 1) / 2 * end, weights / 2 * end
    others = [np.delete(times, j) for j in range(len(times))]
    lagrange = [np.prod((points[:, None] - o) / (t - o), axis=1) for t, o in zip(times, others, strict=True)]
    responses = [dynamics.flow("U", end - s).state @ dynamics.kick for s in points]
    return np.einsum("s,js,sn->nj", weights, np.stack(lagrange), np.stack(responses))
