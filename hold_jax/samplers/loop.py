"""One scan over a grid of steps, whatever the sampler."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.numerics import varying
from hold_jax.numerics.random import per_example
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE

Normal = Callable[[Any, tuple[int, ...]], jax.Array]
"""normal(i, shape): the i-th standard normal draw of a step."""


class Trajectory(NamedTuple):
    """What a sampler returns.

    Attributes:
      u: (B, *S, n, C) the state at the last time.
      nfe: () int32 number of network evaluations made.
      frames: (k, B, *S, C) the data block at the end of each of k equal parts of the steps, or None.
      reached: () bool, False where an adaptive solver did not reach the last time; None: a fixed grid always does.
    """

    u: jax.Array
    nfe: jax.Array
    frames: jax.Array | None
    reached: jax.Array | None = None


class Sampler(Protocol):
    """Integrates the reverse process: a frozen dataclass of its options, in a file of its own.

    Most samplers are `StepSampler`s, and most of these are `linear.LinearSampler`s, tables of small matrices.
    """

    @property
    def deterministic(self) -> bool:
        """Whether it draws no noise, and so runs forwards too."""
        ...

    def integrate(
        self,
        sde: LinearSDE,
        eps_fn: EpsFn,
        u: jax.Array,
        times: np.ndarray,
        *,
        key: jax.Array,
        index: jax.Array | None = None,
        frames: int = 0,
    ) -> Trajectory:
        """From u (B, *S, n, C) at times[0] to times[-1]; arguments as in `StepSampler.integrate`."""
        ...


class Draws(NamedTuple):
    """The random numbers of a step.

    Attributes:
      key: of the step.
      index: (B,) int32 numbers of the examples, or None, as in `numerics.random.per_example`.
    """

    key: jax.Array
    index: jax.Array | None

    def __call__(self, i: Any, shape: tuple[int, ...]) -> jax.Array:
        """The i-th standard normal draw, of shape (B, ...)."""
        return per_example(jax.random.normal, jax.random.fold_in(self.key, i), shape, self.index)

    def shared(self, i: Any, shape: tuple[int, ...]) -> jax.Array:
        """The i-th draw, uniform in [0, 1), common to all examples."""
        return jax.random.uniform(jax.random.fold_in(self.key, i), shape, jnp.float32)


class StepSampler(abc.ABC):
    """A sampler on a fixed grid. Subclasses are frozen dataclasses of their options."""

    deterministic = False
    """Whether the step draws no noise, so that it runs forwards too."""

    @abc.abstractmethod
    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> Any:
        """The coefficients of all steps, computed on the host.

        Args:
          sde: the SDE.
          times: (N + 1,) float64, monotone.

        Returns:
          A tree of float64 arrays with a leading axis of N steps.
        """

    @abc.abstractmethod
    def start(self, coefficients: Any, u: jax.Array) -> Any:
        """The state of the scan before the first step, with fields `u` and `nfe`."""

    @abc.abstractmethod
    def step(self, coefficients: Any, state: Any, eps_fn: EpsFn, normal: Any) -> Any:
        """The state of the scan after one step.

        Args:
          coefficients: one step's, float32.
          state: before the step.
          eps_fn: the noise of the last block.
          normal: the step's `Draws`.
        """

    def integrate(
        self,
        sde: LinearSDE,
        eps_fn: EpsFn,
        u: jax.Array,
        times: np.ndarray,
        *,
        key: jax.Array,
        index: jax.Array | None = None,
        frames: int = 0,
    ) -> Trajectory:
        """From u at times[0] to times[-1]. Memory does not grow with the number of steps.

        Args:
          sde: the SDE.
          eps_fn: the noise of the last block.
          u: (B, *S, n, C).
          times: (N + 1,) float64, monotone.
          key: for the noise of the steps.
          index: (B,) int32 numbers of the examples, as in `numerics.random.per_example`.
          frames: intermediate states to return; divides N.

        Returns:
          Trajectory.
        """
        num_steps = len(times) - 1
        coefficients = jax.tree.map(lambda c: jnp.asarray(c, jnp.float32), self.coefficients(sde, times))

        def advance(state: Any, row: tuple[jax.Array, Any]) -> tuple[Any, None]:
            step, c = row
            return self.step(c, state, eps_fn, Draws(jax.random.fold_in(key, step), index)), None

        rows = (jnp.arange(num_steps), coefficients)
        state, kept = self.start(coefficients, u), None
        if frames:
            rows = jax.tree.map(lambda a: a.reshape(frames, num_steps // frames, *a.shape[1:]), rows)
            state = varying.carried(lambda s: scan(advance, s, jax.tree.map(lambda a: a[0], rows)), state)
            state, kept = jax.lax.scan(lambda s, part: _with_frame(scan(advance, s, part)), state, rows)
        else:
            state = scan(advance, state, rows)
        return Trajectory(state.u, state.nfe, kept)


def scan(advance: Callable[[Any, Any], tuple[Any, None]], state: Any, rows: Any) -> Any:
    """Returns the last state of `jax.lax.scan(advance, state, rows)`; without jit the same step by step.

    Without jit `lax.scan` slices the rows by a number that is part of the program, so that XLA compiles a slice for
    each step. Rows that are on the host need none.
    """
    if not jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        state = varying.carried(lambda s: advance(s, jax.tree.map(lambda a: a[0], rows))[0], state)
        return jax.lax.scan(advance, state, rows)[0]
    rows = jax.tree.map(np.asarray, rows)
    for i in range(len(jax.tree.leaves(rows)[0])):
        state, _ = advance(state, jax.tree.map(lambda a, i=i: a[i], rows))
    return state


def _with_frame(state: Any) -> tuple[Any, jax.Array]:
    return state, state.u[..., 0, :]
