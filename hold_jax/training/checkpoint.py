"""Checkpoints of a train state with Orbax: asynchronous, the last k and every m-th kept."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from hold_jax.errors import UserError
from hold_jax.training.state import TrainState

FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one work directory; a context manager that waits for pending writes."""

    manager: ocp.CheckpointManager

    @classmethod
    def open(cls, workdir: Path, *, keep_last: int = 1, keep_every: int | None = None) -> "Checkpoints":
        """Opens `workdir`/checkpoints, creating it.

        Args:
          workdir: absolute path.
          keep_last: how many of the newest to keep.
          keep_every: also keep, for good, those whose step is a multiple of this.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every)
        return cls(ocp.CheckpointManager(workdir / FOLDER, options=options, item_names=("state",)))

    @classmethod
    def open_to_read(cls, workdir: Path) -> "Checkpoints":
        """Opens `workdir`/checkpoints, if it is there; nothing is created or deleted, also while a run writes there."""
        options = ocp.CheckpointManagerOptions(read_only=True)
        return cls(ocp.CheckpointManager(workdir / FOLDER, options=options, item_names=("state",)))

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self.manager.latest_step()

    def steps(self) -> list[int]:
        """All steps, rising."""
        return sorted(self.manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Begins to write `state`; returns once its arrays are copied. A step that is there already is left."""
        step = int(state.step)
        if step not in self.manager.all_steps():
            self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """The state at `step` (None: the newest).

        Args:
          abstract: shapes, dtypes and shardings, as `abstract_state` gives them: the device count may differ
            from the one that saved.
          step: which.

        Raises:
          UserError: if there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.manager.directory}: run --mode=train with this --workdir first")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise UserError(
                f"`checkpoint` is {step}; {self.manager.directory} holds steps {', '.join(map(str, steps))}"
            )
        return self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self.manager.wait_until_finished()
        self.manager.close()


def abstract_state(state_fn: Any, sharding: jax.sharding.Sharding) -> TrainState:
    """Shapes and dtypes of `state_fn()` with `sharding`: what `Checkpoints.restore` fills."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), jax.eval_shape(state_fn))
