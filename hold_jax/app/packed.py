"""A trained model in one file: the averaged parameters as safetensors, and beside them the experiment.

The file's metadata has one entry, `hold_jax`: JSON of the config's values that differ from the base config's, by dotted
key, so that the file stays readable where keys are added; the shape of the data, the number of classes, the statistics
of the data and the step.
"""

import dataclasses
import importlib.resources
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from hold_jax.app import build, experiment
from hold_jax.app.config import Config
from hold_jax.errors import UserError, require
from hold_jax.model import Model
from hold_jax.runtime import distributed, schema, storage
from hold_jax.runtime import workdir as work_directory
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.workdir import Record
from hold_jax.training import power_average
from hold_jax.training.checkpoint import BEST_FOLDER, FOLDER, Checkpoints, abstract_state
from hold_jax.training.state import init_state
from hold_jax.weights import safetensors

_KEY = "hold_jax"
# Models of the package itself, by name.
SHIPPED = {"digits": "digits.safetensors"}


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """What a file holds.

    Attributes:
      record: the resolved config, and what the run wrote about its data.
      params: averaged parameters, float32, nested; arrays of NumPy or JAX.
      step: optimizer steps taken.
    """

    record: Record
    params: dict[str, Any]
    step: int

    @property
    def config(self) -> Config:
        """The resolved settings."""
        return experiment.of_record(self.record, "the model's config")


def of_run(workdir: storage.Path, checkpoint: int | None = None, ema_length: float | None = None) -> Packed:
    """The averaged parameters of a checkpoint in a work directory.

    Args:
      workdir: the folder.
      checkpoint: the step; None: the newest.
      ema_length: of an average made of snapshots, `sampling.ema_length`; None: the run's own average.

    Returns:
      The model, its parameters replicated on all devices.

    Raises:
      UserError: if the folder holds no run, or no such checkpoint.
    """
    record = work_directory.read(workdir)
    config = experiment.of_record(record, workdir / work_directory.RECORD_FILE)
    config = config.changed({"sampling.ema_length": ema_length})
    model = build.model(config, record.data_shape, record.num_classes, build.statistics(record))
    ((step, params),) = averages(config, model, workdir, None if checkpoint is None else [checkpoint])
    return Packed(record, params, step)


def averages(
    config: Config, model: Model, workdir: storage.Path, steps: Sequence[int | str] | None
) -> Iterator[tuple[int, Any]]:
    """The averaged parameters of checkpoints in turn; with `sampling.ema_length` those made of snapshots up to each.

    Args:
      steps: of the checkpoints; ["best"]: of least held-out loss; empty: all; None: the newest.

    Yields:
      The step, of the newest snapshot for an average made of them, and the parameters. Checkpoints between the same two
      snapshots have one average, which comes once. Of all checkpoints those before the first snapshot are left out.

    Raises:
      UserError: if there is no such checkpoint or snapshot, or a step that was named is long after the newest snapshot.
    """
    optimizer = build.optimizer(config)
    abstract = abstract_state(lambda: init_state(model, optimizer, config.seed), Devices.all().replicated)
    best = steps is not None and list(steps) == ["best"]
    with Checkpoints.open_to_read(workdir, BEST_FOLDER if best else FOLDER) as checkpoints:
        newest = steps is None or best
        chosen: Sequence[Any] = [checkpoints.latest()] if newest else steps or checkpoints.steps() or [None]
        length = config.sampling.ema_length
        record = checkpoints.record
        run = "" if record is None else record.run or ""
        at = [] if length is None else list(power_average.snapshots(workdir, run))
        if length is not None and steps is not None and not steps:
            chosen = [step for step in chosen if step is not None and step >= min(at, default=0)] or chosen
        every = 0 if record is None else record.config.get("training", {}).get("ema_snapshot_every") or 0
        if at and not newest:
            for step in set(steps or ()) & set(checkpoints.steps()):
                late = power_average.lateness(at, int(step), every)
                allowed = (
                    f"None for the checkpoint of step {step}: {late} (steps {', '.join(map(str, at))}); "
                    "name a step near one of them, or leave the step out for the newest average"
                )
                require(not late, "sampling.ema_length", length, allowed)
        done = set()
        for step in chosen:
            state = checkpoints.restore(abstract, step)
            if length is None:
                yield int(state.step), state.ema
                continue
            made = power_average.reconstruct(workdir, run, length, int(state.step))
            if made.step in done:
                distributed.say(f"checkpoint of step {int(state.step):,}: no newer snapshot than that of {made.step:,}")
                continue
            done.add(made.step)
            late = power_average.lateness(at, int(state.step), every)
            if late:
                distributed.say(f"checkpoint of step {int(state.step):,}: {late}")
            distributed.say(
                f"parameters: the average of length {length:g} over {made.step:,} steps, made of "
                f"{made.num_snapshots} snapshots; its weights over the steps are matched to {made.error:.1%}"
            )
            yield made.step, jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), made.params, state.ema)


def find(where: str, argument: str) -> Packed:
    """The averaged parameters that a name stands for.

    Args:
      where: a work directory, a .safetensors file of `write`, or one of `SHIPPED`.
      argument: what errors call it.

    Raises:
      UserError: if there is no model there.
    """
    if is_file(where):
        return read(shipped(where) if where in SHIPPED else Path(where), argument)
    folder = build.workdir(where)
    known = work_directory.find(folder) is not None
    require(known, argument, where, f"a trained run's work directory (there is no {work_directory.RECORD_FILE} in it)")
    return of_run(folder)


def is_file(where: str) -> bool:
    """Whether a name stands for a model in one file, as `find` takes it, and not for a work directory.

    Raises:
      UserError: for a name of `SHIPPED` that is a work directory too.
    """
    if where in SHIPPED and (Path(where) / work_directory.RECORD_FILE).exists():
        raise UserError(f"{where!r} is a model of the package and a work directory: write ./{where} for the latter")
    return where in SHIPPED or where.endswith(".safetensors")


def config_of(where: str, argument: str) -> Config:
    """The settings of the model that `find` would return, without its parameters."""
    if is_file(where):
        return find(where, argument).config
    folder = build.workdir(where)
    return experiment.of_record(work_directory.read(folder), folder / work_directory.RECORD_FILE)


def write(path: Path, packed: Packed, dtype: str = "float32") -> None:
    """Writes a model; `dtype` is that of the parameters in the file.

    Raises:
      UserError: if the file cannot be written.
    """
    defaults = schema.flatten(build.as_json(Config()))
    own = {key: value for key, value in schema.flatten(packed.record.config).items() if value != defaults.get(key)}
    about = {**dataclasses.asdict(packed.record), "config": own, "step": packed.step}
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(packed.params, sep="/"))
    arrays = {name: np.asarray(value).astype(dtype) for name, value in sorted(flat.items())}
    safetensors.write(path, arrays, {_KEY: json.dumps(about, sort_keys=True)})


def read(path: Path, argument: str = "input") -> Packed:
    """The model of a file of `write`.

    Args:
      path: the file.
      argument: what errors call it.

    Raises:
      UserError: if it is missing, damaged or of something else.
    """
    text = safetensors.read_metadata(path, argument).get(_KEY)
    try:
        about = schema.json_object(b"" if text is None else text.encode())
        step = about.pop("step")
        # Files leave out defaults; this one was the default before sigma_data was measured.
        config = Config().changed({"model.sigma_data": build.NOMINAL_SIGMA_DATA} | about.pop("config"))
        record = schema.read(Record, about | {"config": build.as_json(config)})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"`{argument}` is {str(path)!r}; it is not a model of this package, or of another version of it ({error}); "
            "python -m hold_jax.convert --to=hold_jax writes such files"
        ) from None
    arrays = {name: value.astype(np.float32) for name, value in safetensors.read(path, argument).items()}
    return Packed(record, traverse_util.unflatten_dict(arrays, sep="/"), step)


def shipped(name: str) -> Path:
    """The file of one of `SHIPPED`."""
    return Path(str(importlib.resources.files("hold_jax"))) / "pretrained" / SHIPPED[name]
