"""Draws of samples from averaged parameters, batch by batch."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import guidance, samplers
from hold_jax.condition import Condition
from hold_jax.errors import UserError, require, require_choice, require_number, require_whole
from hold_jax.loops.conditions import NONE, Conditions
from hold_jax.model import Model
from hold_jax.numerics.random import class_of
from hold_jax.parameterization import EpsFn
from hold_jax.runtime import schema
from hold_jax.runtime.mesh import Devices

CLASSES = ("data", "uniform")
# Optional numbers of `SampleSettings` -> (whether one is allowed, in words).
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "guidance": (math.isfinite, "finite"),
    "clip": (lambda bound: bound > 0, "positive"),
    "threshold": (lambda quantile: 0 < quantile <= 1, "above 0 and at most 1"),
}


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How samples are drawn.

    Attributes:
      sampler: a sampler of `hold_jax.samplers`, e.g. `samplers.Strang()`.
      num_steps: number of steps of the time grid.
      grid: a name in `samplers.GRIDS` or a function.
      t_min: time at which sampling stops; None is the default of the SDE.
      denoise: whether to finish with the denoiser, at the cost of one more network evaluation.
      num_samples: number of samples to draw, from number 0 on, unless `indices` says which.
      batch_size: number of samples drawn at once, over all devices.
      frames: number of states kept for the film, a divisor of `num_steps`; 0 makes no film.
      save_pngs: whether to also write one PNG file per sample (pictures only).
      label: class of every sample (class-conditional models), its name or its number; None draws all classes, or
        those of the conditions.
      classes: proportions of the classes if `label` is None, one of `CLASSES`. "data": those of the training data if
        the model has its class counts; "uniform": the same number of each class that occurs in the training data.
      guidance: scale of classifier-free guidance (models trained with dropout of a condition). 0 is unconditional; 1 is
        conditional sampling at twice its cost; None is conditional sampling without guidance.
      seed: seed of the initial state and of the sampler's noise.
      indices: which samples to draw, as `schema.ranges` reads them, such as "7", "3,17" or "100:200".
      name: what the sampler is called in the names of folders.
      guidance_interval: effective noises (low, high] of guidance (`guidance.interval`); None: all.
      clip: largest absolute value of the denoiser in the model's range (`guidance.clip`); None: no limit.
      threshold: quantile of dynamic thresholding (`guidance.threshold`), to `clip` or else 1; None: none.
      ema_length: length of the power-function average that the parameters are, for the record; None: the run's own.

    Raises:
      UserError: for a value out of range, named as the key of the config, such as `sampling.clip`.
    """

    sampler: samplers.Sampler
    num_steps: int
    grid: Any
    t_min: float | None
    denoise: bool
    num_samples: int
    batch_size: int
    frames: int
    save_pngs: bool
    label: int | str | None
    classes: str
    guidance: float | None
    seed: int
    indices: str | None = None
    name: str = "sampler"
    guidance_interval: tuple[float, float] | None = None
    clip: float | None = None
    threshold: float | None = None
    ema_length: float | None = None

    def __post_init__(self):
        for name in ("num_steps", "num_samples", "batch_size"):
            object.__setattr__(self, name, require_whole(f"sampling.{name}", getattr(self, name), 1))
        require_choice("sampling.classes", self.classes, CLASSES)
        for name, (fits, allowed) in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, require_number(f"sampling.{name}", value, fits, f"{allowed}, or None"))
        used = self.guidance is not None or self.guidance_interval is None
        require(used, "sampling.guidance_interval", self.guidance_interval, "None without sampling.guidance")
        ends = self.guidance_interval
        two = ends is None or (
            np.shape(ends) == (2,) and np.asarray(ends).dtype.kind in "iuf" and 0 <= ends[0] < ends[1]
        )
        require(two, "sampling.guidance_interval", ends, "two effective noises, 0 <= low < high, or None")
        if ends is not None:
            object.__setattr__(self, "guidance_interval", (float(ends[0]), float(ends[1])))

    @property
    def index(self) -> np.ndarray:
        """The numbers of the samples to draw, rising, int32."""
        if self.indices is None:
            return np.arange(self.num_samples, dtype=np.int32)
        return np.concatenate([np.arange(a, b, dtype=np.int32) for a, b in schema.ranges(self.indices)])


class Drawn(NamedTuple):
    """A batch of samples.

    Attributes:
      x: (b, *data_shape) samples.
      frames: (frames + 1, B, *data_shape) states of the reverse process, or None.
      calls: () int32 number of network evaluations for each sample.
    """

    x: jax.Array | np.ndarray
    frames: jax.Array | np.ndarray | None
    calls: jax.Array | np.ndarray


DrawFn = Callable[[Any, jax.Array | np.ndarray, Condition], Drawn]
"""draw(params, index (B,), condition) -> `Drawn` of B samples in the model's range."""


@functools.lru_cache(maxsize=4)
def make_draw(model: Model, settings: SampleSettings, devices: Devices) -> DrawFn:
    """Returns a jitted function that draws one batch of samples, spread over the devices.

    Sample i is a function of the settings, the parameters, i and its condition, not of the batch in which it is drawn
    (`samplers.sample`). Its class is that of `with_labels`. Results are cached by the arguments, so that sample grids,
    report and evaluation of one run share one compilation.

    Args:
      model: the trained model.
      settings: how to draw.
      devices: devices over which the batch is spread.

    Returns:
      A function that takes the parameters, the numbers (B,) of the samples and their conditions in data units, with
      B = `settings.batch_size`. It returns the samples and frames in the model's range.

    Raises:
      UserError: before compilation, if the grid, the model or the number of devices does not allow the settings.
    """
    devices.require_divides("sampling.batch_size", settings.batch_size)
    require_pictures(model, settings)
    draw = functools.partial(
        samplers.sample,
        settings.sampler,
        model.sde,
        shape=(settings.batch_size, *model.data_shape),
        num_steps=settings.num_steps,
        grid=settings.grid,
        t_min=settings.t_min,
        denoise=settings.denoise,
        frames=settings.frames,
        sharding=devices.batch(),
    )
    # Tracing with a trivial network finds an invalid grid or guidance before hours of training, not after them.
    try:
        _class_number(model, settings.label)
        model.require_guidance(settings.guidance)
        guided(model, settings, lambda guidance: lambda u, t: u[..., -1:, :])
        jax.eval_shape(lambda: draw(lambda u, t: u[..., -1:, :], key=jax.random.key(0)))
    except UserError as error:
        own = isinstance(settings.grid, tuple) and str(error).startswith("`grid")
        named = ("`grid", "`sampling.times") if own else ("`", "`sampling.")
        text = str(error).partition(", or given a `start`")[0]  # which is for the library alone
        raise UserError(text.replace(*named, 1)) from None

    @functools.partial(devices.jit, out_shardings=devices.replicated)
    def compiled(params: Any, index: jax.Array, condition: Condition) -> Any:
        condition = with_labels(model, settings, index, condition)
        eps_fn = guided(model, settings, functools.partial(model.eps_fn, params, condition=condition))
        out = draw(eps_fn, key=jax.random.key(settings.seed), index=index)
        return Drawn(out.x, out.frames, out.nfe)

    return compiled


def guided(model: Model, settings: SampleSettings, predictor: Callable[..., EpsFn]) -> EpsFn:
    """Returns the `eps_fn` that samples are drawn with: guided, in an interval of noise, and clipped.

    Args:
      model: the model.
      settings: what to apply.
      predictor: returns the model's `eps_fn` for a scale `guidance`, or None.
    """
    sde, eps_fn = model.sde, predictor(guidance=settings.guidance)
    if settings.guidance_interval is not None:
        eps_fn = guidance.interval(sde, eps_fn, predictor(guidance=None), *settings.guidance_interval)
    if settings.threshold is not None:
        return guidance.threshold(sde, eps_fn, settings.threshold, settings.clip or 1.0)
    return eps_fn if settings.clip is None else guidance.clip(sde, eps_fn, settings.clip)


def require_pictures(model: Model, settings: SampleSettings) -> None:
    """Raises UserError where samples that are not pictures are to be written as PNG files."""
    usable = not settings.save_pngs or model.kind == "picture"
    require(usable, "sampling.save_pngs", settings.save_pngs, "False for data that are not pictures")


def with_labels(model: Model, settings: SampleSettings, index: jax.Array, condition: Condition) -> Condition:
    """Returns the conditions of samples `index` (B,) with classes: `settings.label`, theirs, or those drawn."""
    if settings.label is None and condition.label is not None:
        return condition
    return dataclasses.replace(condition, label=draw_labels(model, settings, index))


def draw_labels(model: Model, settings: SampleSettings, index: jax.Array) -> jax.Array:
    """Returns the classes of samples.

    Args:
      model: the trained model.
      settings: `label` and `classes` are used.
      index: (B,) int32 numbers of the samples.

    Returns:
      (B,) int32; 0 for a model without classes.

    Raises:
      UserError: for a label that is not a class of the model.
    """
    classes = model.network.num_classes
    if settings.label is not None or not classes:
        return jnp.full_like(index, _class_number(model, settings.label))
    counts = model.statistics.class_counts or (1,) * classes
    if settings.classes == "data" and model.statistics.class_counts:
        return class_of(index, counts)
    return jnp.asarray(np.flatnonzero(counts), jnp.int32)[index % np.count_nonzero(counts)]


def _class_number(model: Model, label: int | str | None) -> int:
    """Returns the number of the class with a name or a number; 0 for None. A name that looks like a number goes first.

    Raises:
      UserError: if the model has no such class.
    """
    classes, names = model.network.num_classes, model.statistics.class_names
    if label is None:
        return 0
    require(classes > 0, "label", label, "None for a model without classes")
    if str(label) in names:
        return names.index(str(label))
    if isinstance(label, str) and names:
        require_choice("label", label, names)
    known = isinstance(label, int | np.integer) and 0 <= label < classes
    require(known, "label", label, f"a class, 0 to {classes - 1}, or None")
    counts = model.statistics.class_counts
    trained = not counts or counts[int(label)] > 0
    require(trained, "label", label, "a class that training examples have, or None; this one had none")
    return int(label)


def draw_blocks(
    model: Model,
    params: Any,
    settings: SampleSettings,
    devices: Devices,
    index: np.ndarray,
    conditions: Conditions = NONE,
) -> Iterator[Drawn]:
    """Yields samples in order, in blocks of at most `settings.batch_size`.

    Samples 0 to B - 1 are always computed together, then B to 2 B - 1 and so on, with B = `settings.batch_size`;
    those that are not wanted are dropped. So the same sample has the same bits whichever others are wanted, also
    where the samples of a batch share the steps of an adaptive solver.

    Args:
      model: the trained model.
      params: averaged parameters.
      settings: how to draw; `num_samples` and `indices` are not used.
      devices: devices over which each batch is spread.
      index: (N,) rising numbers of the wanted samples.
      conditions: of the samples.

    Yields:
      Samples (b, *data_shape) with b <= `settings.batch_size`, and all frames of their batch, as uint8 pictures
      or float32 data (`Model.to_data`).

    Raises:
      UserError: if a sample is NaN.
    """
    draw = make_draw(model, settings, devices)
    size = settings.batch_size
    for block in np.unique(index // size):
        wanted = index[index // size == block] - block * size
        together = (block * size + np.arange(size)).astype(np.int32)
        x, film, calls = draw(params, together, conditions.of(together))
        x = np.asarray(x)[wanted]
        if np.isnan(x).any():
            raise UserError(samplers.UNFINISHED)
        frames = None if film is None else np.asarray(model.to_data(film))
        yield Drawn(np.asarray(model.to_data(x)), frames, np.asarray(calls))
