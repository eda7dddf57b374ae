"""`Task`: what is made of given examples, and what all tasks share."""

import abc
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import samplers
from hold_jax.loops.draw import SampleSettings
from hold_jax.model import Model
from hold_jax.parameterization import EpsFn


class Outcome(NamedTuple):
    """What a task makes of a batch, in the model's range.

    Attributes:
      x: (B or fewer, *data_shape) the results.
      shown: what to show beside the results by name, each (B, *data_shape).
      kept: other arrays to write, by name.
      figures: numbers by name, (B,) each, of which the mean is reported with its standard error.
      calls: () int32 number of network evaluations for each result.
    """

    x: jax.Array
    shown: dict[str, jax.Array]
    kept: dict[str, jax.Array]
    figures: dict[str, jax.Array]
    calls: jax.Array


class Task(abc.ABC):
    """What is made of examples: a frozen dataclass of options, with a method that is traced once.

    Attributes:
      group: the number of examples that are treated together; it divides the batch.
    """

    group: ClassVar[int] = 1

    def shape(self, model: Model) -> tuple[int, ...]:
        """The shape of one input, that of the data but for measurements; raises UserError for options that fail."""
        return model.data_shape

    def read(self, model: Model) -> tuple[np.ndarray, ...]:
        """Arrays of files that the options name: results of others are results of another task."""
        del model
        return ()

    def settings(self, model: Model, settings: SampleSettings) -> SampleSettings:
        """The settings with a sampler and a grid that the task can use."""
        del model
        return settings

    @abc.abstractmethod
    def run(self, model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array) -> Outcome:
        """Treats a batch.

        Args:
          model: the trained model.
          c: of `settings`.
          eps_fn: of the model, with conditions bound.
          x: (B, *shape) inputs in the model's range.
          index: (B,) int32 numbers of the examples, which choose the noise.
        """


def sample(
    model: Model, c: SampleSettings, eps_fn: EpsFn, key: jax.Array | None, index: jax.Array | None, **start: Any
) -> tuple[jax.Array, jax.Array]:
    """The samples (B, *data_shape), and the number of network evaluations."""
    options: Any = {"num_steps": c.num_steps, "grid": c.grid, "t_min": c.t_min, "denoise": c.denoise}
    found = samplers.sample(c.sampler, model.sde, eps_fn, key=key, index=index, **options, **start)
    return found.x, found.nfe


def total(x: jax.Array) -> jax.Array:
    """The sum over each example, (B,)."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def errors(model: Model, x: jax.Array, truth: jax.Array) -> dict[str, jax.Array]:
    """Root mean square differences (B,) in data units; for pictures also PSNR in dB of 255, at most 58.9: rounding."""
    a, b = (model.to_data(v).astype(jnp.float32) for v in (x, truth))
    mean_square = total(jnp.square(a - b)) / math.prod(x.shape[1:])
    found = {"rmse": jnp.sqrt(mean_square)}
    if model.kind == "picture":
        found["psnr"] = 10 * jnp.log10(255.0**2 / jnp.maximum(mean_square, 1 / 12))
    return found
