"""The work directory: what it holds, whose it is, and whether it can be written."""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from typing import Any

from hold_jax.errors import UserError
from hold_jax.runtime import storage
from hold_jax.runtime.storage import Path

RECORD_FILE = "config.json"
LOCK_FILE = ".lock"

# What a run may change when it goes on: everything that says neither what is learned nor from what.
_FREE_SECTIONS = ("sampling", "eval", "likelihood")
_FREE_KEYS = (
    "training.num_steps",
    "training.log_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.keep_last",
    "training.keep_every",
    "training.steps_per_call",
    "training.report",
    "training.skip_limit",
    "training.profile",
    "data.data_dir",
    "data.memory_limit_gib",
    "model.remat",
)
# What sampling and evaluation need of the run that made the checkpoint: the shape of its state and its meaning.
_MODEL_SECTIONS = ("sde", "model", "optimizer")


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run wrote about itself.

    Attributes:
      config: the resolved config as JSON values.
      data_shape: of one training example.
      num_classes: of the training data.
      statistics: of the training data, the fields of `data.Statistics` as JSON values; {} for a run of a version that
        measured none.
    """

    config: dict[str, Any]
    data_shape: tuple[int, ...]
    num_classes: int
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Stable, readable JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Inverse of `to_json`."""
        fields = json.loads(text)
        shape = tuple(fields["data_shape"])
        return cls(fields["config"], shape, fields["num_classes"], fields.get("statistics", {}))


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates `workdir` and holds it for one training run; the lock goes with the process, however it ends.

    A bucket has no locks: there nothing keeps two runs out of one `workdir` but their user.

    Raises:
      UserError: if the folder cannot be written, or another process holds it.
    """
    if not storage.is_local(workdir):
        yield
        return
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK_FILE).open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(
                f"`workdir` {workdir} is in use by {owner}: wait for that run, stop it, or choose another --workdir"
            ) from None
        except OSError:
            pass  # a file system without locks: better to train unguarded than not at all
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def open_for_training(workdir: Path, record: Record) -> None:
    """Creates `workdir` and writes the record, or checks that the run already there is the same experiment.

    Raises:
      UserError: if the folder cannot be written, or holds a run whose config differs in what matters.
    """
    path = workdir / RECORD_FILE
    if storage.exists(path):
        _require_same(workdir, read(workdir), record, all_sections=True)
    with _writing(workdir):
        storage.write(path, record.to_json().encode())


@contextlib.contextmanager
def _writing(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"`workdir` {workdir} cannot be written: {error.strerror or error}; make room there, or choose another "
            "--workdir"
        ) from None


def require_shared(workdir: Path) -> None:
    """Checks that this process sees what the first one wrote.

    Raises:
      UserError: if not.
    """
    if not storage.exists(workdir / RECORD_FILE):
        raise UserError(
            f"`workdir` {workdir} on {platform.node()} is not the one that the first process writes: give a folder "
            "that all machines share (NFS, Lustre)"
        )


def read(workdir: Path) -> Record:
    """The record of the run in `workdir`.

    Raises:
      UserError: if there is none, or it cannot be read.
    """
    path = workdir / RECORD_FILE
    if not storage.exists(path):
        raise UserError(f"no trained model in {workdir} (no {RECORD_FILE}): run --mode=train with this --workdir first")
    try:
        return Record.from_json(storage.read(path).decode())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or choose another --workdir") from None


def require_model(workdir: Path, config: dict[str, Any], *, any_process: bool = False) -> Record:
    """The record in `workdir`, after checking that `config` describes the model that was trained there.

    Args:
      workdir: of the run.
      config: resolved, as JSON.
      any_process: the network does not depend on the process, so that `sde` may differ (`build.any_process`).

    Raises:
      UserError: naming the keys that differ.
    """
    found = read(workdir)
    wanted = dataclasses.replace(found, config=config)
    _require_same(workdir, found, wanted, all_sections=False, any_process=any_process)
    return found


def _require_same(workdir: Path, old: Record, new: Record, *, all_sections: bool, any_process: bool = False) -> None:
    before, now = flatten(old.config), flatten(new.config)
    different = []
    for key in sorted(before.keys() | now.keys()):
        section = key.split(".")[0]
        free = key in _FREE_KEYS or (section in _FREE_SECTIONS if all_sections else section not in _MODEL_SECTIONS)
        free = free or (any_process and section == "sde")
        if not free and before.get(key) != now.get(key):
            different.append(f"{key} = {before.get(key)!r} there, {now.get(key)!r} here")
    if old.data_shape != new.data_shape:
        different.append(f"data shape {old.data_shape} there, {new.data_shape} here")
    if different:
        raise UserError(
            f"{workdir} holds another experiment ({'; '.join(different)}): "
            "repeat its flags, or choose another --workdir"
        )


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
