"""Which settings a command has: those of the run in its work directory, changed by what the command line gives."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from hold_jax.app import build, constructors
from hold_jax.app.config import KEYS, Config
from hold_jax.app.flags import Given
from hold_jax.data import Dataset, deviation, measure
from hold_jax.errors import UserError
from hold_jax.runtime import distributed, schema, storage, workdir
from hold_jax.runtime.storage import Path
from hold_jax.runtime.workdir import Record

_CHECKPOINTS = "checkpoints"  # the folder; `training.checkpoint` writes it
# Keys of records of earlier versions.
_RENAMED = {"eval.neighbours": "eval.neighbors"}
# What a checkpoint fixes, and why. Everything else may change.
_OF_THE_MODEL = {
    "sde": "the network was trained for this process",
    "model": "the network's shape and the meaning of its output are in the checkpoint",
    "data.augment": "the network takes the labels of the augmentation, or it does not",
}
_OF_THE_TRAINING = _OF_THE_MODEL | {
    "seed": "it made the initial parameters and the order of the data",
    "training.init_from": "the run has begun, and goes on from its own weights",
    "training.ema_snapshot_every": "its power-function averages begin with the run",
}
_OF_CONDITIONS = ("model.label_dropout", "model.picture_dropout", "model.vector_dropout")
FREE = ("model.dtype", "model.dropout", *_OF_CONDITIONS, "model.remat")
# What makes the data; it may change where the data stay the same.
_OF_THE_DATA = ("name", "kind", "image_size", "channels", "bits", "data_dir", "size", "seed", "condition")
_SIGMA_DATA = "model.sigma_data"
# Sections and keys of which a change is not worth a line: they do not change what is learned.
_NOT_OF_THE_TRAINING = (
    "sampling", "task", "eval", "likelihood", "tune", "logging", "data.memory_limit_gib", "model.remat",
    "training.steps_per_call",
    "training.log_every", "training.sample_every", "training.checkpoint_every", "training.keep_last",
    "training.keep_every", "training.skip_limit", "training.profile", "training.report",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The settings of one command.

    Attributes:
      config: resolved.
      path: the work directory.
      run: the record of the run there, once it has a checkpoint; None before.
      step: of the run's newest checkpoint.
      changes: keys that affect training and differ from the run's, with the run's value and the new one.
      command: what the user typed, for `commands.txt`; None: nothing is kept.
    """

    config: Config
    path: Path
    run: Record | None
    step: int | None = None
    changes: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    command: str | None = None

    @property
    def model_run(self) -> Record:
        """The record of the run whose model is sampled from or evaluated.

        Raises:
          UserError: if there is none.
        """
        return workdir.read(self.path) if self.run is None else self.run

    def record(self, data: Dataset) -> Record:
        """What the work directory keeps of this run. A run that goes on keeps its identity and what it measured.

        Args:
          data: the training data. A new run measures `model.sigma_data` on them, unless the user set it.

        Raises:
          UserError: if the run began with other data.
        """
        if self.run is not None:
            return self._next_record(self.run, data)
        statistics = json.loads(json.dumps(dataclasses.asdict(measure(data))))
        scale = self._sigma_data(data, statistics)
        return Record(
            config=build.as_json(self.config.changed({_SIGMA_DATA: scale})),
            data_shape=data.shape,
            num_classes=data.num_classes,
            statistics=statistics,
            run=workdir.new_run(),
            data=data.digest_of_some,
            measured={} if scale == self.config.model.sigma_data else {_SIGMA_DATA: scale},
        )

    def _sigma_data(self, data: Dataset, statistics: Mapping[str, Any]) -> float:
        own = self.config.model.sigma_data
        if not _standardizes(self.config, statistics):
            return deviation(data) if own is None else own
        if own not in (None, 1.0):
            distributed.say(f"{_SIGMA_DATA} is 1, not {own:g}: {data.kind}s are standardized (model.standardize)")
        return 1.0

    def _next_record(self, run: Record, data: Dataset) -> Record:
        """The record of a run that goes on, with its changes in the history."""
        changes = dict(self.changes)
        if tuple(run.data_shape) != data.shape:
            allowed = f"data of shape {tuple(run.data_shape)}, those of the run in {self.path}, not {data.shape}"
            raise UserError(f"`data.name` is {data.name!r}; it must be {allowed}: choose another --workdir")
        if self.config.model.class_conditional and run.num_classes != data.num_classes:
            allowed = f"data of {run.num_classes} classes, as those of the run in {self.path}, not {data.num_classes}"
            raise UserError(f"`data.name` is {data.name!r}; it must be {allowed}: choose another --workdir")
        if data.digest_of_some not in (run.data, _first_data(run)):
            unnamed = changes.get("data.name", (None,))[0] == ""  # of an import, which has seen no data yet
            fixed = ("condition",) if unnamed else _OF_THE_DATA
            wrong = [f"data.{key}" for key in fixed if f"data.{key}" in changes]
            if wrong:
                why = "the data there are others" if run.data else f"{workdir.RECORD_FILE} has no digest of its data"
                raise UserError(
                    f"{self.path} holds a run on other data ({_listed(changes, wrong)}): {why}; leave these as they "
                    "are, or begin a run on the new data with another --workdir and --config.training.init_from="
                    f"{self.path}"
                )
            if run.data is not None:
                distributed.say(f"warning: the data of {data.name} are no longer those that the run began with")
        if run.data not in (None, data.digest_of_some):
            changes["data"] = (run.data, data.digest_of_some)
        history = {step: dict(entries) for step, entries in run.history.items()}
        if changes:
            entries = history.setdefault(str(self.step), {})
            for key, (old, new) in json.loads(json.dumps(changes)).items():
                # A change of a run that was stopped before its next checkpoint is replaced by the next change.
                entries[key] = [entries.get(key, [old])[0], new]
            history[str(self.step)] = {key: pair for key, pair in entries.items() if pair[0] != pair[1]}
            history = {step: entries for step, entries in history.items() if entries}
        return dataclasses.replace(run, config=build.as_json(self.config), data=data.digest_of_some, history=history)


def _first_data(run: Record) -> str | None:
    """The digest of the data that the run began with."""
    changes = {int(step): entries["data"][0] for step, entries in run.history.items() if "data" in entries}
    return changes[min(changes)] if changes else run.data


def find(given: Given, folder: str | None, *, to_train: bool, base: Config | None = None) -> Experiment:
    """The settings of a command.

    A config file gives all of them. Without one they are those of the run in the work directory, resolved, changed by
    the flags. Either way a run's checkpoints fix what they were made with, and what was measured stays as it is.

    Args:
      given: the config file and flags.
      folder: the work directory; None: runs/NAME of the config file.
      to_train: whether training goes on from the run's checkpoints, which then fix its data and seed too.
      base: the settings that the flags change where there is neither a config file nor a run.

    Raises:
      UserError: if neither a config file nor a run is given, and for a change that the run's checkpoints do not allow.
    """
    if folder is None and given.name is None:
        raise UserError("`workdir` is missing: pass --workdir=DIR of a run, or --config=FILE of an experiment")
    path = build.workdir(f"runs/{given.name}" if folder is None else folder)
    run = workdir.find(path)
    step = newest_step(path)
    if run is None and step is not None:
        raise UserError(
            f"{path} holds checkpoints and no {workdir.RECORD_FILE}, which says what they are of: restore it, or "
            "choose another --workdir"
        )
    if run is None and given.name is None and base is None:
        raise UserError(
            f"no run in {path} (no {workdir.RECORD_FILE}): pass --workdir=DIR of a run, or "
            "--mode=train --config=FILE to begin one, e.g. configs/digits_hold.py"
        )
    before = None if run is None else of_record(run, path / workdir.RECORD_FILE)
    start = base if before is None else before
    if start is None or given.name is not None:
        config = constructors.resolve(Config().changed(given.values))
    else:
        config = constructors.resolve(
            start.changed(constructors.without_options_of(start, given.values) | given.values)
        )
    if run is None or before is None:
        return Experiment(config, path, None)
    if step is None:
        # Nothing is fixed yet: what was measured is measured again, perhaps on other data.
        return Experiment(config.changed({key: given.values.get(key) for key in run.measured}), path, None)
    if config.model.sigma_data is None or _standardizes(config, run.statistics):
        config = config.changed({_SIGMA_DATA: before.model.sigma_data})
    changes = _changes(before, config)
    _require_allowed(changes, path, _fixed(before, config, to_train), by_file=given.name is not None)
    of_training = {
        key: pair for key, pair in changes.items() if not {key, key.partition(".")[0]} & {*_NOT_OF_THE_TRAINING}
    }
    if to_train and of_training and step < config.training.num_steps:
        distributed.say(f"changed from step {step:,} on: {_listed(of_training, of_training)}")
    return Experiment(config, path, run, step, of_training if to_train else {})


def newest_step(path: Path) -> int | None:
    """The step of the newest checkpoint in a work directory; None where there is none."""
    return max((int(name) for name in storage.names(path / _CHECKPOINTS) if name.isdecimal()), default=None)


def of_record(run: Record, where: Path | str) -> Config:
    """The settings that a run's record keeps, resolved; a key that an earlier version had not keeps its default.

    Args:
      run: the record.
      where: what errors call it.

    Raises:
      UserError: for a value or a key that this version does not know.
    """
    flat = {_RENAMED.get(key, key): value for key, value in schema.flatten(run.config).items()}
    rate = flat.pop("sde.beta_min", None), flat.pop("sde.beta_max", None)
    if rate != (None, None):  # of vp: beta(t) from beta_min to beta_max, with their defaults
        low, high = (default if value is None else value for value, default in zip(rate, (0.1, 20.0), strict=True))
        flat["sde.beta"] = (low, (high - low) / (flat.get("sde.T") or 1.0))
    # A key that was never set is no loss where it is gone.
    flat = {key: value for key, value in flat.items() if key in KEYS or value is not None}
    try:
        return constructors.resolve(schema.read(Config, flat))
    except UserError as error:
        raise UserError(f"{where} cannot be used: {error}") from None


def _standardizes(config: Config, statistics: Mapping[str, Any]) -> bool:
    """Whether data with these statistics enter the model with mean 0 and standard deviation 1."""
    return bool(statistics.get("mean")) and config.model.standardize is not False


def _listed(changes: Mapping[str, tuple[Any, Any]], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {schema.shown(changes[key][0])} -> {schema.shown(changes[key][1])}" for key in keys)


def _changes(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    old, new = before.flat(), after.flat()
    return {key: (old[key], new[key]) for key in KEYS if old[key] != new[key]}


def _fixed(before: Config, config: Config, to_train: bool) -> dict[str, str]:
    """What may not change, with the reason, by key or section."""
    fixed = dict(_OF_THE_TRAINING if to_train else _OF_THE_MODEL)
    if bool(before.data.augment) == bool(config.data.augment):
        del fixed["data.augment"]  # another probability
    if before.training.ema_snapshot_every or not config.training.ema_snapshot_every:
        fixed.pop("training.ema_snapshot_every", None)  # another interval, or the end of the averages
    if not to_train and build.any_process(config):
        del fixed["sde"]  # a denoiser samples by any process
    if not to_train:
        old, new = before.flat(), config.flat()
        changed = (key for key in _OF_CONDITIONS if (old[key] or 0) != (new[key] or 0))
        fixed |= dict.fromkeys(changed, "it is that of the training, without which there is no guidance")
    return fixed


def _require_allowed(changes: dict[str, tuple[Any, Any]], path: Path, fixed: dict[str, str], *, by_file: bool) -> None:
    wrong: dict[str, list[str]] = {}  # by reason
    for key, (old, new) in changes.items():
        reason = fixed.get(key, fixed.get(key.partition(".")[0]))
        if reason is not None and (key in fixed or key not in FREE):
            wrong.setdefault(reason, []).append(f"{key} = {schema.shown(old)} there, {schema.shown(new)} here")
    if wrong:
        reasons = "; ".join(f"{'; '.join(keys)}: {reason}" for reason, keys in wrong.items())
        advice = "leave --config out to take the run's settings" if by_file else "leave these as they are"
        raise UserError(f"{path} holds another experiment ({reasons}): {advice}, or choose another --workdir")
