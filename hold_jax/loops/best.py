"""The checkpoint of least held-out loss."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import jax

from hold_jax.runtime import distributed, storage
from hold_jax.runtime.log import METRICS_FILE, read_jsonl
from hold_jax.runtime.storage import Path
from hold_jax.training.checkpoint import BEST_FOLDER, Checkpoints
from hold_jax.training.state import TrainState


class BestCheckpoint(contextlib.AbstractContextManager):
    """The checkpoint of least held-out loss, kept in a folder of its own.

    Args:
      workdir: of the run.
      start: the step that it goes on from; the least loss before it is that of the kept checkpoint in `metrics.jsonl`.
      history: of the run's record; losses before a change of the loss, or of its examples, do not compare.
    """

    def __init__(self, workdir: Path, start: int, history: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        lines = read_jsonl(workdir / METRICS_FILE) if start and storage.exists(workdir / METRICS_FILE) else []
        losses = {line["step"]: line["test/loss"] for line in lines if "test/loss" in line}
        self._checkpoints = Checkpoints.open(workdir, folder=BEST_FOLDER)
        kept = max(self._checkpoints.steps(), default=None)
        changed = [
            int(step)
            for step, keys in (history or {}).items()
            if step.isdigit() and any(key.startswith(("loss.", "data", "training.held_out")) for key in keys)
        ]
        comparable = kept is not None and max(changed, default=-1) < kept <= start
        self._least = losses.get(kept, math.inf) if comparable else math.inf
        if jax.process_count() > 1:  # all decide alike, and process 0 writes to the file only after all have read it
            self._least = float(distributed.gather(repr(self._least))[0])
        # Checkpoints of steps after `start`, which are trained again, perhaps with another result. Orbax writes no step
        # before one that is there.
        self._later = [step for step in self._checkpoints.steps() if step > start]

    def offer(self, loss: float, state: TrainState, others: Checkpoints) -> None:
        """Keeps the state if its loss is the least so far; returns when it is written.

        Orbax numbers its barriers in the order of the saves, so several processes wait for ever if two are under way.

        Args:
          loss: the same on all processes.
          state: to keep.
          others: the checkpoints of the run, whose writing must have ended.
        """
        if loss < self._least:
            self._least = loss
            others.wait()
            while self._later:
                self._checkpoints.manager.delete(self._later.pop())
            self._checkpoints.save(state)
            self._checkpoints.wait()

    def __exit__(self, *exc: Any) -> None:
        self._checkpoints.__exit__(*exc)
