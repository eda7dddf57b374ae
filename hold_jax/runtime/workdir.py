"""The work directory: what it holds, which run it belongs to, and whether it can be written."""

import contextlib
import dataclasses
import errno
import json
import os
import platform
import uuid
from collections.abc import Iterator
from typing import Any

from hold_jax.errors import UserError
from hold_jax.runtime import distributed, lock, schema, storage
from hold_jax.runtime.storage import Path

RECORD_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run keeps of itself.

    Attributes:
      config: every key of the resolved config, as JSON.
      data_shape: of one example: (H, W, C), (length, C) or (d,).
      num_classes: of the training data; 0: no labels.
      statistics: of the training data, the fields of `data.Statistics` as JSON; empty for a run of a version that
        measured none.
      run: identity of the run, which its checkpoints bear too; None for a run from before there were identities.
      data: `Dataset.digest_of_some` of the training data; None for a run that kept none.
      measured: values of keys of the config that were measured on the data, not given.
      history: what was changed when training went on, `{step: {key: [old, new]}}`.
    """

    config: dict[str, Any] = schema.tree("every key of the resolved config")
    data_shape: tuple[int, ...] = schema.several((), int, "[1, 1e8]", "[1, 3]", "of one example")
    num_classes: int = schema.whole(0, "[0, 1e6]", "of the training data; 0: no labels")
    statistics: dict[str, Any] = schema.tree("the fields of data.Statistics")
    run: str | None = schema.text(None, "the identity of a run", "which its checkpoints bear too")
    data: str | None = schema.text(None, "a digest", "of the training data")
    measured: dict[str, Any] = schema.tree("values of keys of the config that were measured on the data")
    history: dict[str, Any] = schema.tree("what was changed at a step, as {step: {key: [old, new]}}")

    def to_json(self) -> str:
        """Stable, readable JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, data: bytes) -> "Record":
        """Inverse of `to_json`.

        Raises:
          ValueError: in one line, for anything else.
        """
        fields = schema.json_object(data)
        missing = {"config", "data_shape", "num_classes"} - fields.keys()
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        return schema.read(cls, fields)


def new_run() -> str:
    """An identity that no other run has."""
    return uuid.uuid4().hex


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates `workdir` and holds it for one training run; the lock ends with the process, however that ends.

    A bucket has no locks, nor has Python on Windows: there only the user keeps two runs out of one `workdir`.

    Raises:
      UserError: if the folder cannot be written, or another process holds it.
    """
    if lock.fcntl is None and storage.is_local(workdir):
        distributed.say(f"no lock on {workdir}: this system has none; do not start a second run there")
    with contextlib.ExitStack() as held:
        with _writing(workdir):
            owner = held.enter_context(lock.locked(workdir))
        if owner is not None:
            raise UserError(
                f"`workdir` {workdir} is in use by {owner}: wait for that run, stop it, or choose another --workdir"
            )
        yield


def write(workdir: Path, record: Record) -> None:
    """Creates `workdir` and writes the record of its run.

    Raises:
      UserError: if the folder cannot be written.
    """
    with _writing(workdir):
        storage.write(workdir / RECORD_FILE, record.to_json().encode())


def require_writable(workdir: Path) -> None:
    """Checks, before work is done, that its result can be written.

    Raises:
      UserError: if a folder that exists does not allow it.
    """
    if storage.is_local(workdir) and workdir.exists() and not os.access(workdir, os.W_OK | os.X_OK):
        with _writing(workdir):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def _writing(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"`workdir` {workdir} cannot be written: {error.strerror or error}; make it writable, or choose another "
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
      UserError: if there is none, or it is damaged.
    """
    found = find(workdir)
    if found is None:
        raise UserError(f"no trained model in {workdir} (no {RECORD_FILE}): run --mode=train with this --workdir first")
    return found


def find(workdir: Path) -> Record | None:
    """The record of the run in `workdir`; None where there is none.

    Raises:
      UserError: if it is damaged.
    """
    path = workdir / RECORD_FILE
    try:
        return Record.from_json(storage.read(path)) if storage.exists(path) else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or choose another --workdir") from None
