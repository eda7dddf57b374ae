"""One scan over a grid of steps, whatever the sampler."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.numerics.random import per_example
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE

Normal = Callable[[Any, tuple[int, ...]], jax.Array]
"""normal(i, shape): the i-th standard normal draw of a step."""


class Path(NamedTuple):
    """u (B, *S, n, C) at the end; nfe () int32 network calls made; frames (k, B, *S, C), the data block at the end
    of each of k equal parts of the steps, or None; reached () bool: False where an adaptive solver gave up."""

    u: jax.Array
    nfe: jax.Array
    frames: jax.Array | None
    reached: jax.Array


class Draws(NamedTuple):
    """The random numbers of a step, all from its own key; index as in `numerics.random.per_example`."""

    key: jax.Array
    index: jax.Array | None

    def __call__(self, i: Any, shape: tuple[int, ...]) -> jax.Array:
        """The i-th standard normal draw, (B, ...)."""
        return per_example(jax.random.normal, jax.random.fold_in(self.key, i), shape, self.index)

    def shared(self, i: Any, shape: tuple[int, ...]) -> jax.Array:
        """The i-th draw, uniform in [0, 1), that all examples share."""
        return jax.random.uniform(jax.random.fold_in(self.key, i), shape)


class StepSampler(abc.ABC):
    """A sampler on a fixed grid: subclasses are frozen dataclasses of their options, one a file."""

    deterministic = False
    """Whether the step draws no noise, so that it can be run forwards too."""

    @abc.abstractmethod
    def coefficients(self, sde: LinearSDE, times: np.ndarray) -> Any:
        """A tree of float64 host arrays with a leading axis of len(times) - 1 steps."""

    @abc.abstractmethod
    def start(self, coefficients: Any, u: jax.Array) -> Any:
        """What a scan carries, with fields `u` and `nfe`, before the first step."""

    @abc.abstractmethod
    def step(self, coefficients: Any, state: Any, eps_fn: EpsFn, normal: Normal) -> Any:
        """The state after one step, from one row of the coefficients."""

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
    ) -> Path:
        """From u at times[0] to times[-1]; memory does not grow with the number of steps.

        Args:
          sde: the SDE.
          eps_fn: the noise of the last block.
          u: (B, *S, n, C).
          times: (N + 1,) float64, monotone.
          key: of the noise.
          index: (B,) the examples' numbers, as in `numerics.random.per_example`.
          frames: states kept on the way; divides N.
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
            state, kept = jax.lax.scan(lambda s, part: _with_frame(jax.lax.scan(advance, s, part)[0]), state, rows)
        else:
            state, _ = jax.lax.scan(advance, state, rows)
        return Path(state.u, state.nfe, kept, jnp.bool_(True))


def _with_frame(state: Any) -> tuple[Any, jax.Array]:
    return state, state.u[..., 0, :]
