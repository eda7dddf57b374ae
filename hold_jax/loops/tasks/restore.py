"""Linear inverse problems: the data given a measurement of them."""

import abc
import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import inverse, operators
from hold_jax.data.masks import known_part
from hold_jax.errors import require, require_choice
from hold_jax.loops.draw import SampleSettings
from hold_jax.loops.tasks.task import Outcome, Task, errors, sample, total
from hold_jax.model import Model
from hold_jax.numerics.random import per_example
from hold_jax.operators import Operator
from hold_jax.parameterization import EpsFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restore(Task):
    """What the inverse problems share; a subclass has the options of its operator.

    Attributes:
      noise: standard deviation of the measurement's noise, in the model's range.
      method: a key of `inverse.METHODS`.
      steps: of the solution, for "moment_matching"; None: the method's default.
      scale: of the step, for "dps"; None: the method's default.
      measured: whether the inputs are measurements already, rather than data to measure.

    Raises:
      UserError: for an option that has no effect.
    """

    noise: float = 0.05
    method: str = "moment_matching"
    steps: int | None = None
    scale: float | None = None
    measured: bool = False

    def __post_init__(self):
        require_choice("method", self.method, inverse.METHODS)
        for name in ("steps", "scale"):
            value = getattr(self, name)
            require(value is None or name in self._known, name, value, f"None for method = {self.method}")

    @abc.abstractmethod
    def operator(self, data_shape: tuple[int, ...]) -> Operator:
        """What measures data of this shape."""

    @property
    def _known(self) -> set[str]:
        """The arguments of the method."""
        return set(inspect.signature(inverse.METHODS[self.method]).parameters)

    def shape(self, model: Model) -> tuple[int, ...]:
        """The shape of the data, or of their measurements."""
        operator = self.operator(model.data_shape)
        return operator.measured_shape if self.measured else model.data_shape

    def run(self, model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array) -> Outcome:
        """Measures, unless that is done, and draws from the posterior."""
        key_noise, key = jax.random.split(jax.random.key(c.seed))
        operator, y = self.operator(model.data_shape), x
        if not self.measured:
            y = operator.forward(x)
            y = operator.of_known(y + self.noise * per_example(jax.random.normal, key_noise, y.shape, index))
        values: dict[str, Any] = {"sigma_data": model.sigma_data, "steps": self.steps, "scale": self.scale}
        options = {name: value for name, value in values.items() if name in self._known and value is not None}
        conditional = inverse.METHODS[self.method](model.sde, eps_fn, operator, y, self.noise, **options)
        out, calls = sample(model, c, conditional, key, index, shape=(len(x), *model.data_shape))
        # Where the measurement has the data's shape it shows itself; else the least-squares solution stands for it.
        same = operator.measured_shape == model.data_shape
        given = y if same else operator.transpose(operator.solve(y, 1.0, 0.0))
        gap = operator.of_known(y - operator.forward(out))
        figures = {"misfit": jnp.sqrt(total(jnp.square(gap)) / operator.num_known)}
        if self.measured:
            return Outcome(out, {"given": given}, {"measured": y}, figures, calls)
        compared = errors(model, out, x) | {f"given_{k}": v for k, v in errors(model, given, x).items()}
        return Outcome(out, {"given": given, "truth": x}, {"measured": y}, compared | figures, calls)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inpaint(Restore):
    """Fills in what a mask hides.

    Attributes:
      mask: the unknown part, one of `data.masks.MASKS`, or a picture that is white where the data are known.
      share: of known values, for mask = "random"; None: a half.
    """

    mask: str = "box"
    share: float | None = None

    def __post_init__(self):
        super().__post_init__()
        require(self.share is None or self.mask == "random", "share", self.share, "None without mask = random")

    def operator(self, data_shape: tuple[int, ...]) -> Operator:
        """The values that the mask shows."""
        return operators.inpainting(data_shape, self._known_part(data_shape))

    def read(self, model: Model) -> tuple[np.ndarray, ...]:
        """The mask."""
        return (np.asarray(self._known_part(model.data_shape)),)

    def _known_part(self, data_shape: tuple[int, ...]) -> np.ndarray:
        return known_part(data_shape, self.mask, self.share or 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Superres(Restore):
    """Raises the resolution `factor` times along each axis."""

    factor: int = 2

    def operator(self, data_shape: tuple[int, ...]) -> Operator:
        """Means over blocks."""
        return operators.superresolution(data_shape, self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deblur(Restore):
    """Undoes a Gaussian blur of `blur` pixels, periodic at the edges."""

    blur: float = 1.0

    def operator(self, data_shape: tuple[int, ...]) -> Operator:
        """The blur."""
        return operators.deblurring(data_shape, self.blur)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Colorize(Restore):
    """Colors gray pictures."""

    def shape(self, model: Model) -> tuple[int, ...]:
        """The shape of the data, or of their measurements."""
        usable = not (self.measured and model.statistics.mean)
        require(usable, "measured", True, "False to colorize arrays, whose channels are standardized one by one")
        return super().shape(model)

    def operator(self, data_shape: tuple[int, ...]) -> Operator:
        """The mean of the channels."""
        return operators.colorization(data_shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compress(Restore):
    """Recovers data from `share` random projections per value."""

    share: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        require(not self.measured, "measured", True, "False to compress: its measurements are not read from files")

    def operator(self, data_shape: tuple[int, ...]) -> Operator:
        """The projections."""
        return operators.compressed_sensing(data_shape, self.share)
