"""Tasks that start from given examples: inverse problems, edits, interpolation, reconstruction.

A `Task` is a pure function of a batch of examples; `perform` runs it over all of them and writes arrays, a picture of
what was given beside the result and the truth, and figures.
"""

import dataclasses
import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from hold_jax import inverse, kernels, operators, samplers
from hold_jax.condition import Condition, conditions_of
from hold_jax.data import Dataset
from hold_jax.data.inputs import read_input
from hold_jax.errors import UserError, require, require_choice
from hold_jax.loops import origin
from hold_jax.loops.draw import SampleSettings, draw_labels, guided
from hold_jax.loops.generate import GRID_MAX, find_place, picture, write_each
from hold_jax.model import Model
from hold_jax.numerics import exact
from hold_jax.numerics.random import per_example
from hold_jax.operators import Operator
from hold_jax.parameterization import EpsFn
from hold_jax.runtime import distributed, pictures, storage
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.progress import Progress
from hold_jax.runtime.storage import Path
from hold_jax.samplers.grids import times_of

FOLDER = "tasks"
ARRAY_FILE = "samples.npz"
FIGURES_FILE = "figures.json"
MASKS = ("box", "left", "right", "upper", "lower", "random")
_SHOWN = 48  # examples in the picture
_COLUMNS = 16


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


class Task(Protocol):
    """A frozen dataclass of options, with a method that is traced once."""

    @property
    def group(self) -> int:
        """The number of examples that are treated together; it divides the batch."""
        ...

    def shape(self, model: Model) -> tuple[int, ...]:
        """The shape of one input, `model.data_shape` but for measurements; raises UserError for options that fail."""
        ...

    def settings(self, model: Model, settings: SampleSettings) -> SampleSettings:
        """The settings with a sampler and a grid that the task can use."""
        ...

    def run(self, model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array) -> Outcome:
        """Treats a batch.

        Args:
          model: the trained model.
          c: of `settings`.
          eps_fn: of the model, with labels bound.
          x: (B, *shape) inputs in the model's range.
          index: (B,) int32 numbers of the examples, which choose the noise.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Restore:
    """The data given a linear measurement of them.

    Attributes:
      operator: of the data's shape.
      method: of `inverse.METHODS`.
      noise: standard deviation of the measurement's noise, in the model's range.
      options: of the method.
      measured: whether the inputs are measurements already, rather than data to measure.
    """

    operator: Callable[[tuple[int, ...]], Operator]
    method: str
    noise: float
    options: Mapping[str, Any]
    measured: bool
    group: int = 1

    def shape(self, model: Model) -> tuple[int, ...]:
        """The shape of the data, or of their measurements."""
        operator = self.operator(model.data_shape)
        return operator.measured_shape if self.measured else model.data_shape

    def settings(self, model: Model, settings: SampleSettings) -> SampleSettings:
        """The settings as they are: any sampler does."""
        return settings

    def run(self, model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array) -> Outcome:
        """Measures, unless that is done, and draws from the posterior."""
        key_noise, key = jax.random.split(jax.random.key(c.seed))
        operator, y = self.operator(model.data_shape), x
        if not self.measured:
            y = operator.forward(x)
            y = operator.of_known(y + self.noise * per_example(jax.random.normal, key_noise, y.shape, index))
        method, options = inverse.METHODS[self.method], dict(self.options)
        if "sigma_data" in inspect.signature(method).parameters:
            options["sigma_data"] = model.sigma_data
        conditional = method(model.sde, eps_fn, operator, y, self.noise, **options)
        out, calls = _sample(model, c, conditional, key, index, shape=(len(x), *model.data_shape))
        # Where the measurement has the data's shape it shows itself; else the least-squares solution stands for it.
        same = operator.measured_shape == model.data_shape
        given = y if same else operator.transpose(operator.solve(y, 1.0, 0.0))
        gap = operator.of_known(y - operator.forward(out))
        figures = {"misfit": jnp.sqrt(_sum(jnp.square(gap)) / operator.num_known)}
        if self.measured:
            return Outcome(out, {"given": given}, {"measured": y}, figures, calls)
        compared = _errors(model, out, x) | {f"given_{k}": v for k, v in _errors(model, given, x).items()}
        return Outcome(out, {"given": given, "truth": x}, {"measured": y}, compared | figures, calls)


@dataclasses.dataclass(frozen=True)
class Edit:
    """SDEdit (2108.01073): noise is added to the data up to a level, and taken away again.

    Attributes:
      start_noise: the level, an effective noise in the model's range: more changes more.
    """

    start_noise: float
    group: int = 1

    def shape(self, model: Model) -> tuple[int, ...]:
        """The shape of the data."""
        return model.data_shape

    def settings(self, model: Model, settings: SampleSettings) -> SampleSettings:
        """The settings with a grid that begins at the noise level."""
        sde = model.sde
        require(not isinstance(settings.grid, tuple), "sampling.times", "given", "None to edit")
        low, high = exact.effective_noise(
            sde.F, sde.G, sde.cov0, sde.schedule.integral(0.0, np.array([settings.t_min or sde.t_min, sde.T]))
        )
        inside = low < self.start_noise < high
        require(inside, "task.start_noise", self.start_noise, f"between {low:.3g} and {high:.4g}, the noise at T")
        start = float(sde.schedule.time(exact.integral_of_noise(sde.F, sde.G, sde.cov0, self.start_noise)))
        shorter = dataclasses.replace(sde, T=min(start, sde.T))
        times = times_of(shorter, settings.grid, settings.t_min or sde.t_min, settings.num_steps)
        return dataclasses.replace(settings, grid=tuple(times.tolist()))

    def run(self, model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array) -> Outcome:
        """Perturbs to the first time of the grid, and samples from there."""
        key_noise, key = jax.random.split(jax.random.key(c.seed))
        t = jnp.float32(c.grid[0])
        state = (*x.shape[:-1], model.sde.order, x.shape[-1])
        noise = per_example(jax.random.normal, key_noise, state, index)
        u = kernels.perturb(kernels.marginal(model.sde, t), x, noise)
        out, calls = _sample(model, c, eps_fn, key, index, start=u)
        changed = {f"change_{k}": v for k, v in _errors(model, out, x).items() if k == "rmse"}
        noisy = kernels.sufficient_statistic(model.sde, u, t)[0]
        return Outcome(out, {"given": x, "noisy": noisy}, {}, changed, calls)


class _OfLatents:
    """What the tasks on latents share."""

    def shape(self, model: Model) -> tuple[int, ...]:
        """The shape of the data."""
        return model.data_shape

    def settings(self, model: Model, settings: SampleSettings) -> SampleSettings:
        """The settings with the sampler's deterministic form."""
        return _deterministic(settings)


@dataclasses.dataclass(frozen=True)
class Reconstruct(_OfLatents):
    """The data from their latents, which are kept: how much a deterministic sampler loses forwards and backwards."""

    group: int = 1

    def run(self, model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array) -> Outcome:
        """Encodes and decodes."""
        latent, encoding = _encode(model, c, eps_fn, x, index)
        out, calls = _sample(model, c, eps_fn, None, None, start=latent)
        return Outcome(out, {"given": x}, {"latent": latent}, _errors(model, out, x), encoding + calls)


@dataclasses.dataclass(frozen=True)
class Interpolate(_OfLatents):
    """What lies between two examples: samples from the great circle between their latents.

    Attributes:
      between: number of results between the two ends, which are the examples' reconstructions.
    """

    between: int
    group: int = 2

    def run(self, model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array) -> Outcome:
        """x holds pairs, one after the other; the results of a pair follow each other."""
        latent, encoding = _encode(model, c, eps_fn, x, index)
        fractions = jnp.linspace(0, 1, self.between + 2)

        def at(fraction: jax.Array) -> tuple[jax.Array, jax.Array]:
            start = samplers.interpolate(model.sde, latent[::2], latent[1::2], fraction[None])
            return _sample(model, c, eps_fn, None, None, start=start)

        out, calls = jax.lax.map(at, fractions)  # one fraction at a time: the memory of a batch
        ends = jnp.stack([out[0], out[-1]], axis=1).reshape(x.shape)
        path = jnp.moveaxis(out, 0, 1).reshape(-1, *x.shape[1:])
        figures = {f"end_{name}": value for name, value in _errors(model, ends, x).items()}
        return Outcome(path, {"given": x}, {"latent": latent}, figures, encoding + calls[0])


# --- Constructors by the names of their options ----------------------------------------------------------


def inpaint(
    *,
    mask: str = "box",
    share: float | None = None,
    noise: float = 0.05,
    method: str = "moment_matching",
    steps: int | None = None,
    scale: float | None = None,
    measured: bool = False,
) -> Restore:
    """Fills in what a mask hides.

    Args:
      mask: the unknown part, one of `MASKS`, or a picture that is white where the data are known.
      share: of known values, for mask = "random" (0.5).
      noise: as in `Restore`.
      method: as in `Restore`.
      steps: of the solution, for "moment_matching" (3).
      scale: of the step, for "dps" (1).
      measured: as in `Restore`.

    Raises:
      UserError: for an option that has no effect.
    """
    require(share is None or mask == "random", "share", share, "None without mask = random")

    def operator(data_shape: tuple[int, ...]) -> Operator:
        return operators.inpainting(data_shape, _mask(data_shape, mask, 0.5 if share is None else share))

    return _restore(operator, noise, method, measured, steps=steps, scale=scale)


def superres(
    *,
    factor: int = 2,
    noise: float = 0.05,
    method: str = "moment_matching",
    steps: int | None = None,
    scale: float | None = None,
    measured: bool = False,
) -> Restore:
    """Raises the resolution `factor` times along each axis; the other arguments are those of `inpaint`."""
    return _restore(
        lambda shape: operators.superresolution(shape, factor), noise, method, measured, steps=steps, scale=scale
    )


def deblur(
    *,
    blur: float = 1.0,
    noise: float = 0.05,
    method: str = "moment_matching",
    steps: int | None = None,
    scale: float | None = None,
    measured: bool = False,
) -> Restore:
    """Undoes a Gaussian blur of `blur` pixels, periodic at the edges; the other arguments are those of `inpaint`."""
    return _restore(lambda shape: operators.deblurring(shape, blur), noise, method, measured, steps=steps, scale=scale)


def colorize(
    *,
    noise: float = 0.05,
    method: str = "moment_matching",
    steps: int | None = None,
    scale: float | None = None,
    measured: bool = False,
) -> Restore:
    """Colors gray pictures; the arguments are those of `inpaint`."""
    return _restore(operators.colorization, noise, method, measured, steps=steps, scale=scale)


def compress(
    *,
    share: float = 0.25,
    noise: float = 0.05,
    method: str = "moment_matching",
    steps: int | None = None,
    scale: float | None = None,
) -> Restore:
    """Recovers data from `share` random projections per value; the other arguments are those of `inpaint`."""
    return _restore(
        lambda shape: operators.compressed_sensing(shape, share), noise, method, False, steps=steps, scale=scale
    )


def edit(*, start_noise: float = 1.0) -> Edit:
    """Changes examples as far as noise of the level `start_noise` allows."""
    return Edit(start_noise)


def reconstruct() -> Reconstruct:
    """Encodes examples and decodes their latents."""
    return Reconstruct()


def interpolate(*, between: int = 6) -> Interpolate:
    """Goes from each first to each second example in `between` + 1 steps."""
    return Interpolate(between)


def _restore(
    operator: Callable[[tuple[int, ...]], Operator], noise: float, method: str, measured: bool, **options: Any
) -> Restore:
    require_choice("method", method, inverse.METHODS)
    given = {name: value for name, value in options.items() if value is not None}
    known = inspect.signature(inverse.METHODS[method]).parameters
    for name, value in given.items():
        require(name in known, name, value, f"None for method = {method}")
    return Restore(operator, method, noise, given, measured)


def _mask(data_shape: tuple[int, ...], mask: str, share: float) -> np.ndarray:
    """What is known, bool, broadcastable to data_shape."""
    sizes = data_shape[:-1] if len(data_shape) > 1 else data_shape
    if mask == "random":
        # A fixed draw: all channels of a pixel are known or not.
        known = np.random.default_rng(0).permutation(math.prod(sizes)) < round(share * math.prod(sizes))
        known = known.reshape(sizes)
    elif mask == "box":
        known = np.ones(sizes, bool)
        known[tuple(slice(round(size / 4), round(size / 4) + round(size / 2)) for size in sizes)] = False
    elif mask in MASKS:
        axis = -1 if mask in ("left", "right") else 0
        require(axis == -1 or len(sizes) > 1, "mask", mask, "box, left, right or random for data that are no pictures")
        first = np.arange(sizes[axis]) < sizes[axis] // 2
        hidden = first if mask in ("left", "upper") else ~first
        known = np.broadcast_to(~hidden if axis == -1 else ~hidden[:, None], sizes)
    else:
        there = storage.is_file(storage.path(mask, "mask"))
        require(there, "mask", mask, f"{', '.join(MASKS)}, or a picture file, white where known")
        known = read_input(mask, "mask", (*sizes, 1), picture=True)[0, ..., 0] > 127
    require(bool(known.any()), "mask", mask, "one that leaves something known")
    return known if len(data_shape) == 1 else known[..., None]


def _deterministic(settings: SampleSettings) -> SampleSettings:
    """The settings with churn = 0, which a latent needs; raises UserError for a sampler that is always stochastic."""
    fields = {field.name for field in dataclasses.fields(settings.sampler)}  # pyright: ignore[reportArgumentType]
    changes = {name: 0.0 for name in ("churn", "s_churn") if name in fields}
    sampler = dataclasses.replace(settings.sampler, **changes)  # pyright: ignore[reportArgumentType]
    allowed = (
        "gaussian_fitted, ddim, dpmpp_2m, dpmpp_3m, unipc, heun or probability_flow: a latent needs one without noise"
    )
    require(sampler.deterministic, "sampling.name", settings.name, allowed)
    return dataclasses.replace(settings, sampler=sampler)


def _encode(
    model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The latents (B, *S, n, C), and the number of network evaluations."""
    options: Any = {"num_steps": c.num_steps, "grid": c.grid, "t_min": c.t_min}
    found = samplers.encode(c.sampler, model.sde, eps_fn, x, key=jax.random.key(c.seed), index=index, **options)
    return found.u, found.nfe


def _sample(
    model: Model, c: SampleSettings, eps_fn: EpsFn, key: jax.Array | None, index: jax.Array | None, **start: Any
) -> tuple[jax.Array, jax.Array]:
    """The samples (B, *data_shape), and the number of network evaluations."""
    options: Any = {"num_steps": c.num_steps, "grid": c.grid, "t_min": c.t_min, "denoise": c.denoise}
    found = samplers.sample(c.sampler, model.sde, eps_fn, key=key, index=index, **options, **start)
    return found.x, found.nfe


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _errors(model: Model, x: jax.Array, truth: jax.Array) -> dict[str, jax.Array]:
    """Root mean square differences (B,) in data units; for pictures also PSNR in dB of 255, at most 58.9: rounding."""
    a, b = (model.to_data(v).astype(jnp.float32) for v in (x, truth))
    mean_square = _sum(jnp.square(a - b)) / math.prod(x.shape[1:])
    found = {"rmse": jnp.sqrt(mean_square)}
    if model.kind == "picture":
        found["psnr"] = 10 * jnp.log10(255.0**2 / jnp.maximum(mean_square, 1 / 12))
    return found


# --- Running a task -----------------------------------------------------------------------------------


def check(model: Model, task: Task, settings: SampleSettings, devices: Devices) -> SampleSettings:
    """Returns the settings that the task uses.

    Raises:
      UserError: before compilation, for settings that cannot work.
    """
    devices.require_divides("sampling.batch_size", settings.batch_size)
    fits = settings.batch_size % task.group == 0
    require(fits, "sampling.batch_size", settings.batch_size, f"a multiple of {task.group} for this task")
    try:
        shape = task.shape(model)
    except UserError as error:
        raise UserError(re.sub("^`(blur|factor|mask|share)`", r"`task.\1`", str(error))) from None
    settings = task.settings(model, dataclasses.replace(settings, frames=0))  # a task makes no film
    rows = jax.ShapeDtypeStruct((settings.batch_size, *shape), jnp.float32)
    index = jax.ShapeDtypeStruct((settings.batch_size,), jnp.int32)
    try:
        model.require_guidance(settings.guidance)
        trivial = guided(model, settings, lambda guidance: lambda u, t: u[..., -1:, :])
        jax.eval_shape(functools.partial(task.run, model, settings, trivial), rows, index)
    except UserError as error:
        raise UserError(str(error).replace("`", "`sampling.", 1)) from None
    return settings


class Examples(NamedTuple):
    """The inputs of a task.

    Attributes:
      x: (N, *shape) as data: uint8 pictures or float32.
      condition: those of the examples that the model takes, (N, ...) each.
      index: (N,) int32 numbers, which choose the noise.
    """

    x: np.ndarray
    condition: Condition
    index: np.ndarray


def examples(
    model: Model, task: Task, settings: SampleSettings, path: str | None, load_test: Callable[[], Dataset]
) -> Examples:
    """Returns the inputs of a task: `settings.index` of the test split, or the first of a file.

    Args:
      model: the trained model.
      task: what is done with them.
      settings: of `check`.
      path: of the file (`read_input`); None: the test split.
      load_test: loads the test split.

    Raises:
      UserError: if there are no such examples.
    """
    takes = model.conditions.takes
    if path is None:
        whole = isinstance(task, Restore) and task.measured
        require(not whole, "task.measured", True, "False without a task.input: the test split is not measured yet")
        data = load_test()
        index = _within(settings, len(data), "the size of the test split")
        batch = data.gather(index)
        x = batch["x"]
        condition = Condition(**{name: getattr(conditions_of(batch), name) for name in takes})
    else:
        found = read_input(path, "task.input", task.shape(model), picture=model.kind == "picture")
        index = _within(settings, len(found), f"the number of examples in {path}")
        x, condition = found[index], Condition()
    if settings.label is not None:
        condition = dataclasses.replace(condition, label=np.asarray(draw_labels(model, settings, jnp.asarray(index))))
    missing = [name for name in takes if getattr(condition, name) is None and name not in model.conditions.droppable]
    require(not missing, "task.input", path, f"None for a model that takes a {', a '.join(missing)} beside the data")
    num = len(x) // task.group * task.group
    require(num > 0, "sampling.num_samples", len(x), f"{task.group} or more for this task")
    return Examples(*jax.tree.map(lambda a: a[:num], (x, condition, index)))


def _within(settings: SampleSettings, num: int, what: str) -> np.ndarray:
    """The numbers of the examples: those of `sampling.indices`, or the first, as many as there are."""
    index = settings.index
    if settings.indices is None:
        return index[index < num]
    require(bool(index[-1] < num), "sampling.indices", settings.indices, f"below {num}, {what}")
    return index


def perform(
    model: Model,
    params: Any,
    task: Task,
    settings: SampleSettings,
    given: Examples,
    workdir: Path,
    *,
    step: int,
    options: Mapping[str, Any],
) -> tuple[Path, dict[str, float]]:
    """Runs a task over examples, and writes samples.npz, task.npz, grid.png, figures.json and sampling.json.

    Args:
      model: the trained model.
      params: averaged parameters.
      task: what to do.
      settings: of `check`.
      given: the examples.
      workdir: work directory of the run.
      step: training step of the checkpoint.
      options: of the task, JSON values, with its `name`; for the record.

    Returns:
      The folder, such as `workdir`/tasks/step_1000_unipc20_inpaint, and the figures.

    Raises:
      UserError: if a result is NaN.
    """
    size, num = settings.batch_size, len(given.x)
    made = origin.of_samples(model, settings, Devices.all(), step=step, weights=origin.fingerprint(params))
    made["task"] = {**options, "examples": origin.digest(*jax.tree.leaves(given))}

    @jax.jit
    def run(params: Any, x: jax.Array, condition: Condition, index: jax.Array) -> Outcome:
        eps_fn = guided(model, settings, functools.partial(model.eps_fn, params, condition=condition))
        return task.run(model, settings, eps_fn, model.to_model(x), index)

    parts, calls = [], 0
    with Progress(num, 0, 1, distributed.is_main(), unit="example") as progress:
        for start in range(0, num, size):
            # The last batch is filled up with copies of its last example.
            rows = np.minimum(start + np.arange(size), num - 1)
            found = jax.tree.map(np.asarray, run(params, *jax.tree.map(lambda a, rows=rows: a[rows], given)))
            share, calls = min(size, num - start) / size, int(found.calls)
            cut = jax.tree.map(lambda a, share=share: a[: round(len(a) * share)], found._replace(calls=None))
            parts.append(cut)
            progress.update(min(start + size, num))
    whole = jax.tree.map(lambda *a: np.concatenate(a), *parts)
    if np.isnan(whole.x).any():
        raise UserError(samplers.UNFINISHED)
    name = options["name"]
    figures: dict[str, float] = {}
    for key, values in whole.figures.items():
        figures[f"{name}_{key}"] = float(values.mean())
        if num > 1:
            figures[f"{name}_{key}_error"] = float(values.std(ddof=1) / math.sqrt(num))
    folder, _ = find_place(workdir / FOLDER, made)
    if distributed.is_main():
        data = np.asarray(model.to_data(whole.x))
        shown = {key: np.asarray(model.to_data(value)) for key, value in whole.shown.items()}
        image = _beside(shown, data)
        with storage.writing(folder / ARRAY_FILE) as file:
            np.savez_compressed(file, x=data)
        with storage.writing(folder / "task.npz") as file:
            np.savez_compressed(file, **shown, **whole.kept, index=given.index)
        pictures.write_png(image, folder / "grid.png")
        origin.write(folder, made, calls)
        storage.write(folder / FIGURES_FILE, f"{json.dumps(figures, indent=2)}\n".encode())
        if settings.save_pngs:
            write_each(folder, np.arange(len(data)))
    return folder, figures


def _beside(shown: Mapping[str, np.ndarray], x: np.ndarray) -> PIL.Image.Image:
    """What was given, the results, and the truth: in rows of pictures, or as points."""
    if x.ndim != 4:
        return picture(x, reference=shown.get("truth", shown["given"]))
    if len(x) > len(shown["given"]):  # a row of several results for each pair
        ways = len(x) // (len(shown["given"]) // 2)
        return pictures.image_grid(pictures.shades(x[: max(1, GRID_MAX // ways) * ways]), columns=ways)
    panels = {name: shown[name] for name in shown if name != "truth"} | {"result": x}
    panels |= {"truth": shown["truth"]} if "truth" in shown else {}
    return pictures.bands({name: pictures.shades(array[:_SHOWN]) for name, array in panels.items()}, _COLUMNS)
