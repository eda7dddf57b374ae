"""What a method is: host coefficients for a step size, and one step in coordinates of unit scale."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.langevin.dynamics import Dynamics


class Force(NamedTuple):
    """The log density () at a point, None where only its gradient is known, and the force (d,), its gradient."""

    log_density: jax.Array | None
    force: jax.Array


class Step(NamedTuple):
    """The result of a step.

    Attributes:
      u: (n, d) the new state.
      end: the force at the new position, if the step has evaluated it; else None.
      num_gradients: () int32 or int, evaluations that the step has made.
      acceptance: () probability of acceptance; None for methods without a Metropolis test.
    """

    u: jax.Array
    end: Force | None
    num_gradients: jax.Array | int
    acceptance: jax.Array | None = None


Evaluate = Callable[[jax.Array], Force]


class Method(abc.ABC):
    """A discretization: subclasses are frozen dataclasses of their options, one a file."""

    metropolis: ClassVar[bool] = False
    """Whether the step is exact by a Metropolis test."""

    shared_clock: ClassVar[bool] = False
    """Whether all chains of `step_chains` have one clock: it saves gradients, but makes the chains dependent."""

    @abc.abstractmethod
    def coefficients(self, dynamics: Dynamics, h: float) -> Any:
        """A tree of float64 host arrays for the step size h."""

    def reads_start(self, coefficients: Any) -> bool:
        """Whether a step begins with the force at its start, which the step before may have evaluated."""
        del coefficients
        return True

    def rows(self, coefficients: Any) -> int:
        """The number of standard normals a step needs for each coordinate of the position: the columns of `noise`."""
        return coefficients.noise.shape[-1]

    def clock(self, key: jax.Array) -> Any:
        """The random choices of a step that are not Gaussian; see `shared_clock`."""
        del key
        return None

    @abc.abstractmethod
    def step(self, c: Any, u: jax.Array, start: Force | None, evaluate: Evaluate, noise: jax.Array, clock: Any) -> Step:
        """One step.

        Args:
          c: the coefficients in the position's dtype, host arrays.
          u: (n, d) position and auxiliaries.
          start: the force at u[0], where `reads_start`; else None.
          evaluate: gives the force at a position (d,).
          noise: (rows, d) standard normals.
          clock: what `clock` returned.
        """


def mix(matrix: np.ndarray | jax.Array, u: jax.Array) -> jax.Array:
    """matrix u on the block axis, (k, n) and (n, d), in full precision."""
    return jnp.matmul(matrix, u, precision=jax.lax.Precision.HIGHEST)
