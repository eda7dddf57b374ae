"""Asynchronous Orbax checkpoints of a train state, with fingerprints; the last k and every m-th are kept."""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from hold_jax.errors import UserError
from hold_jax.runtime import distributed, schema, storage
from hold_jax.runtime import workdir as work_directory
from hold_jax.runtime.storage import Path
from hold_jax.training.fingerprint import fingerprints
from hold_jax.training.state import TrainState

FOLDER = "checkpoints"
BEST_FOLDER = f"{FOLDER}/best"
DAMAGED_FOLDER = "damaged"
_POWER = "power"  # item of the power-function averages
_RUN, _STATISTICS = "run", "statistics"  # keys beside the fingerprints: fields of the run's record
_SETTLE_SECONDS = 2.0  # what deletes a folder may not have come to its end
_SHOWN = 4  # largest number of array names in a message


class UnusableCheckpointError(Exception):
    """A checkpoint is damaged, unreadable, or does not fit; the message names the difference."""


class OtherStructureError(UnusableCheckpointError):
    """The arrays of the checkpoint do not fit this model and optimizer."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one work directory; a context manager that waits for pending writes."""

    manager: ocp.CheckpointManager
    record: work_directory.Record | None = None
    """Record of the run; its identity and its statistics of the training data are saved with each checkpoint. None if
    there is no record, or one of a version without identities."""

    @classmethod
    def open(
        cls, workdir: Path, *, keep_last: int = 1, keep_every: int | None = None, folder: str = FOLDER
    ) -> "Checkpoints":
        """Opens `workdir`/`folder`, creates it if needed, and deletes incomplete checkpoints of a killed run.

        Args:
          workdir: absolute path.
          folder: `FOLDER`, or `BEST_FOLDER` for the checkpoint of least held-out loss.
          keep_last: number of newest checkpoints to keep.
          keep_every: checkpoints whose step is a multiple of this are also kept; None: no others are kept.
        """
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every, cleanup_tmp_directories=True
        )
        return cls._open(workdir, options, folder)

    @classmethod
    def _open(cls, workdir: Path, options: ocp.CheckpointManagerOptions, folder: str = FOLDER) -> "Checkpoints":
        record = work_directory.find(workdir)
        manager = ocp.CheckpointManager(workdir / folder, options=options, item_handlers=_handlers())
        return cls(manager, None if record is None or record.run is None else record)

    @classmethod
    def open_to_read(cls, workdir: Path, folder: str = FOLDER) -> "Checkpoints":
        """Opens `workdir`/`folder` read-only, also while a run writes there; creates and deletes nothing.

        Raises:
          UserError: if there is no folder of the best checkpoint.
        """
        if folder == BEST_FOLDER and not (workdir / folder).exists():
            raise UserError(
                f"no best checkpoint in {workdir}: training keeps one if the data have a test split and "
                "training.held_out is not 0"
            )
        before = logging.get_verbosity()
        logging.set_verbosity(min(before, logging.ERROR))  # Orbax warns of what reading alone means; lower is quieter
        try:
            return cls._open(workdir, ocp.CheckpointManagerOptions(read_only=True), folder)
        finally:
            logging.set_verbosity(before)

    def latest(self) -> int | None:
        """Returns the newest step, or None if there is no checkpoint."""
        return self.manager.latest_step()

    def steps(self) -> list[int]:
        """Returns all steps in ascending order."""
        return sorted(self.manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Starts to write `state` and returns when its arrays are copied. An existing step is not written again.

        Raises:
          UserError: if this checkpoint, or the previous one, cannot be written.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        marks: dict[str, Any] = {name: int(mark) for name, mark in jax.jit(fingerprints)(state).items()}
        if self.record is not None:
            marks |= {_RUN: self.record.run, _STATISTICS: self.record.statistics}
        items: dict[str, Any] = {name: ocp.args.StandardSave(part) for name, part in _parts(state).items()} | {
            "fingerprints": ocp.args.JsonSave(marks)
        }
        with self._writing():
            self.manager.save(step, args=ocp.args.Composite(**items))

    def rescue(self, state: TrainState) -> str:
        """Writes `state` and the record again, after the work directory of a running program was deleted or moved.

        Without this the steps since the last checkpoint would be lost, or all of them. Nothing is written in a run of
        several processes, nor if another run has begun in the folder since.

        Returns:
          What was done, as the second half of an error message.
        """
        workdir, step = self.manager.directory.parent, int(state.step)
        if jax.process_count() > 1:
            return "start all processes again with the same command, to go on from the newest checkpoint"
        with contextlib.suppress(Exception):  # a write into the folder that is gone may fail in any way
            self.manager.wait_until_finished()
        time.sleep(_SETTLE_SECONDS)
        try:
            found = work_directory.find(workdir)
            if found is not None and (self.record is None or found.run != self.record.run):
                return f"{workdir} holds another run now, so step {step:,} is not saved"
            if self.record is not None:
                work_directory.write(workdir, self.record)
            with self._open(workdir, ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)) as checkpoints:
                checkpoints.save(state)
        except (OSError, UserError) as error:
            return f"step {step:,} cannot be saved again: {error}"
        return (
            f"step {step:,} is saved in {workdir} again, and the same command goes on from it. If you moved the "
            "folder, --workdir=DIR goes on from the newest checkpoint in it"
        )

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
          UserError: if a checkpoint cannot be written.
        """
        with self._writing():
            self.manager.wait_until_finished()

    def resume(self, abstract: TrainState) -> TrainState | None:
        """Returns the newest intact state; None if there are no checkpoints.

        Newer, damaged checkpoints are moved to `workdir`/damaged, with a message on standard error. No checkpoint is
        deleted.

        Args:
          abstract: as for `restore`.

        Raises:
          UserError: if no checkpoint is intact, or all have another structure; then none is moved.
        """
        unusable: dict[int, UnusableCheckpointError] = {}
        for step in reversed(self.steps()):
            try:
                state = self._read(abstract, step)
            except UnusableCheckpointError as error:
                unusable[step] = error
                continue
            for bad, reason in unusable.items():
                kept = self._set_aside(bad)
                distributed.say(f"checkpoint {bad} is damaged ({reason}): kept in {kept}; going on from step {step}")
            return state
        if unusable:
            newest = max(unusable)
            if all(isinstance(error, OtherStructureError) for error in unusable.values()):
                raise UserError(self._of_another(newest, unusable[newest]))
            reasons = "; ".join(f"step {step}: {error}" for step, error in unusable.items())
            raise UserError(
                f"no checkpoint in {self.manager.directory} is intact ({reasons}): restore one from a copy, or choose "
                "another --workdir to begin anew"
            )
        return None

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """Returns the state at `step`.

        Args:
          abstract: shapes, dtypes and shardings, see `abstract_state`. The number of devices may differ from that of
            the run that saved the checkpoint.
          step: the step of the checkpoint; None: the newest.

        Raises:
          UserError: if there is no such checkpoint, or it is damaged or has another structure.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.manager.directory}: run --mode=train with this --workdir first")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise UserError(
                f"there is no checkpoint of step {step} in {self.manager.directory}; it holds steps "
                f"{', '.join(map(str, steps))}"
            )
        try:
            return self._read(abstract, step)
        except OtherStructureError as error:
            raise UserError(self._of_another(step, error)) from None
        except UnusableCheckpointError as error:
            others = ", ".join(str(other) for other in steps if other != step) or "none"
            raise UserError(
                f"checkpoint {step} in {self.manager.directory} is damaged ({error}): choose another step ({others})"
            ) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        # If the block raised an error, that error is reported; a failed write then usually has the same cause.
        with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
            self.wait()
            self.manager.close()

    def _read(self, abstract: TrainState, step: int) -> TrainState:
        """Returns the state at `step` after a check of its fingerprints; the outcome is the same on all processes."""
        wanted = _parts(abstract)
        if _POWER in wanted and not (self.manager.directory / str(step) / _POWER).exists():
            raise OtherStructureError("it has no averages for training.ema_snapshot_every")
        there = self._on_all(lambda: self.manager.item_metadata(step))
        for name, part in wanted.items():
            differences = self._on_all(lambda name=name, part=part: _differences(part, there[name]))
            if differences:
                raise OtherStructureError(differences)
        items = {name: ocp.args.StandardRestore(part) for name, part in wanted.items()}
        found = self._on_all(lambda: self.manager.restore(step, args=ocp.args.Composite(**items)))
        state = TrainState(**found["state"], power=found[_POWER] if _POWER in wanted else ())
        if int(state.step) != step:
            raise UnusableCheckpointError(f"it holds step {int(state.step)}: its folder was renamed")
        written = self._on_all(lambda: self._fingerprints(step))
        if self.record is not None:
            self._require_of_the_run(self.record, step, written)
        if written is None:
            distributed.say(f"checkpoint {step} has no fingerprints: damage to it would not be noticed")
        else:
            marks = {name: int(mark) for name, mark in jax.jit(fingerprints)(state).items()}
            bad = [name for name, mark in marks.items() if written.get(name) != mark]
            if bad:
                raise UnusableCheckpointError(f"changed since it was written: {_some(bad)}")
        return state

    def _require_of_the_run(self, record: work_directory.Record, step: int, written: dict[str, Any] | None) -> None:
        """Raises `UnusableCheckpointError` for the checkpoint of another run, `UserError` for a record that changed."""
        if written is None:
            raise UnusableCheckpointError("its fingerprints are missing")
        if written.get(_RUN) != record.run:
            raise UnusableCheckpointError(f"another run wrote it, not that of {work_directory.RECORD_FILE}")
        # Samples are mapped back by the mean and standard deviation that the network was trained with.
        if written.get(_STATISTICS, record.statistics) != record.statistics:
            raise UserError(
                f"the statistics of the training data in {work_directory.RECORD_FILE} are not those of checkpoint "
                f"{step} in {self.manager.directory}: restore {work_directory.RECORD_FILE}"
            )

    def _of_another(self, step: int, error: UnusableCheckpointError) -> str:
        return (
            f"checkpoint {step} in {self.manager.directory} is of another model or optimizer ({error}): "
            "repeat the flags of its run, or choose another --workdir"
        )

    def _fingerprints(self, step: int) -> dict[str, Any] | None:
        """Returns the saved fingerprints; None if the checkpoint has none."""
        if not (self.manager.directory / str(step) / "fingerprints").exists():
            return None
        args = ocp.args.Composite(fingerprints=ocp.args.JsonRestore())
        found = self.manager.restore(step, args=args)["fingerprints"]
        if not isinstance(found, dict):
            raise UnusableCheckpointError(f"its fingerprints are {schema.shown(found)}, not an object")
        return found

    def _on_all(self, read: Callable[[], Any]) -> Any:
        """Returns read(); raises UnusableCheckpointError on every process if it fails on any of them."""
        value, reason = None, ""
        try:
            value = read()
        except Exception as error:  # Orbax and TensorStore raise many kinds, a bare Exception among them
            reason = _first_line(error)
        if jax.process_count() > 1:
            reason = next((text for text in distributed.gather(reason) if text), "")
        if reason:
            raise UnusableCheckpointError(f"cannot be read: {reason}")
        return value

    def _set_aside(self, step: int) -> Path:
        """Moves a checkpoint to the folder of damaged ones and returns its new path."""
        source = self.manager.directory / str(step)
        folder = self.manager.directory.parent / DAMAGED_FOLDER
        target = folder / f"step_{step}"
        if distributed.is_main():
            others = (folder / f"step_{step}_{i}" for i in range(1, 10**6))
            while target.exists():
                target = next(others)
            storage.move(source, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self.manager.reload()
        return target

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Converts storage errors of Orbax or its threads, such as a full disk, into a `UserError`."""
        try:
            yield
        except Exception as error:
            fault = _storage_fault(error)
            if fault is None:
                raise
            complete = [step for step in self.steps() if (self.manager.directory / str(step)).exists()]
            goes_on = f"it goes on from step {complete[-1]}" if complete else "no checkpoint is there yet"
            raise UserError(
                f"a checkpoint in {self.manager.directory} could not be written ({fault}): make room there, or make "
                f"the folder writable, and run the same command again: {goes_on}"
            ) from None


def abstract_state(state_fn: Any, sharding: jax.sharding.Sharding) -> TrainState:
    """Returns shapes and dtypes of `state_fn()` with `sharding`, as `Checkpoints.restore` takes them."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), jax.eval_shape(state_fn))


def _parts(state: TrainState) -> dict[str, Any]:
    """Returns the items of a checkpoint: the power-function averages apart, as samplers do not need them."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    power = fields.pop("power")
    return {"state": fields} | ({_POWER: power} if power else {})


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    return {
        "state": ocp.StandardCheckpointHandler(),
        _POWER: ocp.StandardCheckpointHandler(),
        "fingerprints": ocp.JsonCheckpointHandler(),
    }


def _differences(abstract: Any, saved: Any) -> str:
    """Returns a description of the arrays in which the saved tree differs from `abstract`; empty if none differ."""
    if saved is None:
        raise ValueError("its list of arrays, state/_METADATA, is missing")
    wanted, there = _shapes(abstract), _shapes(saved.tree)
    names = [name for name in sorted(wanted.keys() | there.keys()) if wanted.get(name) != there.get(name)]
    return _some([f"{n} is {there.get(n, 'absent')} there, {wanted.get(n, 'absent')} here" for n in names])


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns shapes by path, of arrays or of Orbax's metadata, in which a random key appears as its raw data."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape")):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        shapes[jax.tree_util.keystr(path, simple=True, separator="/")] = tuple(leaf.shape)
    return shapes


def _some(names: list[str]) -> str:
    return "; ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _first_line(error: BaseException) -> str:
    # TensorStore adds its settings and places in its source.
    lines = re.split(r"\n| \[(?:tensorstore_spec|source locations)=", str(error).strip())
    return (lines[0] or type(error).__name__)[:300]


def _storage_fault(error: BaseException) -> str | None:
    """Returns the message of the system, such as "No space left on device"; None if it is no storage error."""
    if isinstance(error, OSError):
        return error.strerror or _first_line(error)
    # TensorStore raises a ValueError whose text contains the error number of the system.
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number:
        return os.strerror(int(number[1]))
    # For a bucket the text contains the object's URL and the answer of the service, in no fixed form.
    return _first_line(error) if "gs://" in str(error) else None
