"""Which settings a command has: those of the run in its work directory, changed by what the command line gives."""

import dataclasses
import json
from typing import Any

from hold_jax.app import build
from hold_jax.app.config import KEYS, Config
from hold_jax.app.flags import Given
from hold_jax.data import Dataset, measure
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
}
_OF_THE_TRAINING = _OF_THE_MODEL | {
    "seed": "it made the initial parameters and the order of the data",
    "data.name": "the run goes on with the data that it began with",
    "data.image_size": "the run goes on with the data that it began with",
    "data.channels": "the run goes on with the data that it began with",
    "data.size": "the run goes on with the data that it began with",
    "data.seed": "the run goes on with the data that it began with",
}
_FREE = ("model.dtype", "model.dropout", "model.remat")
# Sections of which a change is not worth a line: they affect neither the network nor its training.
_NOT_OF_THE_TRAINING = ("sampling", "eval", "likelihood")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The settings of one command.

    Attributes:
      config: resolved.
      path: the work directory.
      run: the record of the run there, once it has a checkpoint; None before.
    """

    config: Config
    path: Path
    run: Record | None

    @property
    def model_run(self) -> Record:
        """The record of the run whose model is sampled from or evaluated.

        Raises:
          UserError: if there is none.
        """
        return workdir.read(self.path) if self.run is None else self.run

    def record(self, data: Dataset) -> Record:
        """What the work directory keeps of this run. A run that goes on keeps its identity and what it measured."""
        config = build.as_json(self.config)
        if self.run is not None:
            return dataclasses.replace(self.run, config=config)
        statistics = json.loads(json.dumps(dataclasses.asdict(measure(data))))
        return Record(config, data.shape, data.num_classes, statistics, workdir.new_run())


def find(given: Given, folder: str | None, *, to_train: bool) -> Experiment:
    """The settings of a command.

    A config file gives all of them. Without one they are those of the run in the work directory, resolved, changed by
    the flags. Either way a run's checkpoints fix what they were made with.

    Args:
      given: the config file and flags.
      folder: the work directory; None: runs/NAME of the config file.
      to_train: whether training goes on from the run's checkpoints, which then fix its data and seed too.

    Raises:
      UserError: if neither a config file nor a run is given, and for a change that the run's checkpoints do not allow.
    """
    if folder is None and given.name is None:
        raise UserError("`workdir` is missing: pass --workdir=DIR of a run, or --config=FILE of an experiment")
    path = build.workdir(f"runs/{given.name}" if folder is None else folder)
    run = workdir.find(path)
    trained = any(name.isdecimal() for name in storage.names(path / _CHECKPOINTS))
    if run is None and trained:
        raise UserError(
            f"{path} holds checkpoints and no {workdir.RECORD_FILE}, which says what they are of: restore it, or "
            "choose another --workdir"
        )
    if run is None and given.name is None:
        raise UserError(f"no run in {path} (no {workdir.RECORD_FILE}): pass --config=FILE, e.g. configs/digits_hold.py")
    before = None if run is None else of_record(run, path / workdir.RECORD_FILE)
    if before is None or given.name is not None:
        config = build.resolve(Config().changed(given.values))
    else:
        config = build.resolve(before.changed(build.without_options_of(before, given.values) | given.values))
    if before is None or not trained:
        return Experiment(config, path, None)
    changes = _changes(before, config)
    _require_allowed(changes, path, _fixed(config, to_train), by_file=given.name is not None)
    if to_train:
        for key, (old, new) in changes.items():
            if key.partition(".")[0] not in _NOT_OF_THE_TRAINING:
                distributed.say(f"changed: {key} is {schema.shown(new)}; it was {schema.shown(old)}")
    return Experiment(config, path, run)


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
        return build.resolve(schema.read(Config, flat))
    except UserError as error:
        raise UserError(f"{where} cannot be used: {error}") from None


def _changes(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    old, new = before.flat(), after.flat()
    return {key: (old[key], new[key]) for key in KEYS if old[key] != new[key]}


def _fixed(config: Config, to_train: bool) -> dict[str, str]:
    """What may not change, with the reason, by key or section."""
    fixed = dict(_OF_THE_TRAINING if to_train else _OF_THE_MODEL)
    if not to_train and build.any_process(config):
        del fixed["sde"]  # a denoiser samples by any process
    return fixed


def _require_allowed(changes: dict[str, tuple[Any, Any]], path: Path, fixed: dict[str, str], *, by_file: bool) -> None:
    wrong: dict[str, list[str]] = {}  # by reason
    for key, (old, new) in changes.items():
        reason = fixed.get(key, fixed.get(key.partition(".")[0]))
        if reason is not None and key not in _FREE:
            wrong.setdefault(reason, []).append(f"{key} = {schema.shown(old)} there, {schema.shown(new)} here")
    if wrong:
        reasons = "; ".join(f"{'; '.join(keys)}: {reason}" for reason, keys in wrong.items())
        advice = "leave --config out to take the run's settings" if by_file else "leave these as they are"
        raise UserError(f"{path} holds another experiment ({reasons}): {advice}, or choose another --workdir")
