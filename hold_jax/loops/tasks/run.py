"""Runs a task over examples of the test split or of a file, and writes results, pictures and figures."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from hold_jax import samplers
from hold_jax.condition import Condition, conditions_of
from hold_jax.data import Dataset
from hold_jax.data.inputs import read_input
from hold_jax.errors import UserError, naming, require
from hold_jax.loops import origin
from hold_jax.loops.draw import SampleSettings, draw_labels, guided, require_pictures
from hold_jax.loops.generate import GRID_MAX, claimed, picture, write_each
from hold_jax.loops.tasks.restore import Restore
from hold_jax.loops.tasks.task import Outcome, Task
from hold_jax.model import Model
from hold_jax.runtime import distributed, pictures, storage
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.progress import Progress
from hold_jax.runtime.storage import Path

FOLDER = "tasks"
ARRAY_FILE = "samples.npz"
FIGURES_FILE = "figures.json"
_SHOWN = 48  # examples in the picture
_COLUMNS = 16


def check(model: Model, task: Task, settings: SampleSettings, devices: Devices) -> SampleSettings:
    """Returns the settings that the task uses.

    Raises:
      UserError: before compilation, for settings that cannot work.
    """
    devices.require_divides("sampling.batch_size", settings.batch_size)
    require_pictures(model, settings)
    fits = settings.batch_size % task.group == 0
    require(fits, "sampling.batch_size", settings.batch_size, f"a multiple of {task.group} for this task")
    try:
        shape = task.shape(model)
    except UserError as error:
        text = re.sub("^`(blur|factor|mask|measured|share)`", r"`task.\1`", str(error))
        of_data = r"^`data_shape` is (\(.*?\)); it must be"
        raise UserError(re.sub(of_data, r"`task.name` does not fit data of shape \1; they must be", text)) from None
    settings = task.settings(model, dataclasses.replace(settings, frames=0))  # a task makes no film
    rows = jax.ShapeDtypeStruct((settings.batch_size, *shape), jnp.float32)
    index = jax.ShapeDtypeStruct((settings.batch_size,), jnp.int32)
    with naming("`", "`sampling."):
        model.require_guidance(settings.guidance)
        trivial = guided(model, settings, lambda guidance: lambda u, t: u[..., -1:, :])
        jax.eval_shape(functools.partial(task.run, model, settings, trivial), rows, index)
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
      settings: of `check`.
      path: of the file (`read_input`); None: the test split.

    Raises:
      UserError: if there are no such examples.
    """
    takes = model.conditions.takes
    if path is None:
        whole = isinstance(task, Restore) and task.measured
        require(not whole, "task.measured", True, "False without a task.input: the test split is not measured yet")
        data = load_test()
        require(data.kind == model.kind, "data.kind", data.kind, f"{model.kind!r}, what the model was trained on")
        index = _within(settings, len(data), "the size of the test split")
        batch = data.gather(index)
        x = batch["x"]
        condition = Condition(**{name: getattr(conditions_of(batch), name) for name in takes})
    else:
        found = read_input(path, "task.input", task.shape(model), picture=model.kind == "picture")
        index = _within(settings, len(found), f"the number of examples in {path}")
        x, condition = found[index], Condition()
    with naming("`", "`sampling."):
        if settings.label is not None:
            label = np.asarray(draw_labels(model, settings, jnp.asarray(index)))
            condition = dataclasses.replace(condition, label=label)
        model.require_guidance(settings.guidance, condition)
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
    size, num, devices = settings.batch_size, len(given.x), Devices.all()
    made = origin.of_samples(model, settings, devices, step=step, weights=origin.weights_of(model, params))
    made["task"] = {**options, "examples": origin.digest(*jax.tree.leaves(given), *task.read(model))}

    @functools.partial(devices.jit, out_shardings=devices.replicated)
    def run(params: Any, x: jax.Array, condition: Condition, index: jax.Array) -> Outcome:
        x, condition, index = jax.lax.with_sharding_constraint((x, condition, index), devices.batch())
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
            if np.isnan(cut.x).any():
                raise UserError(samplers.UNFINISHED)
            parts.append(cut)
            progress.update(min(start + size, num))
    whole = jax.tree.map(lambda *a: np.concatenate(a), *parts)
    name = options["name"]
    figures: dict[str, float] = {}
    for key, values in whole.figures.items():
        figures[f"{name}_{key}"] = float(values.mean())
        if num > 1:
            figures[f"{name}_{key}_error"] = float(values.std(ddof=1) / math.sqrt(num))
    with claimed(workdir / FOLDER, made) as (folder, _):
        if distributed.is_main():
            data = np.asarray(model.to_data(whole.x))
            shown = {key: np.asarray(model.to_data(value)) for key, value in whole.shown.items()}
            with storage.writing(folder / ARRAY_FILE) as file:
                np.savez_compressed(file, x=data)
            with storage.writing(folder / "task.npz") as file:
                np.savez_compressed(file, **shown, **whole.kept, index=given.index)
            origin.write(folder, made, calls)
            storage.write(folder / FIGURES_FILE, f"{json.dumps(figures, indent=2)}\n".encode())
            pictures.write_png(_beside(shown, data), folder / "grid.png")
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
