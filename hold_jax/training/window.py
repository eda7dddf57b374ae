"""Metrics and timing of the training steps since the last line of the log."""

import time
from typing import Any

import jax
import numpy as np

from hold_jax.errors import UserError

_AHEAD = 2  # calls sent to the device ahead of their results: it never waits, and a stop request takes effect soon


class Window:
    """Collects metrics on the device, and copies them to the host only when a line of the log is due.

    Args:
      batch_size: examples per step.
      skip_limit: largest allowed number of consecutive steps whose metrics are not finite.
    """

    def __init__(self, batch_size: int, skip_limit: int) -> None:
        self._batch_size, self._skip_limit = batch_size, skip_limit
        self._in_a_row = 0
        self._pending: list[dict[str, jax.Array]] = []
        self._steps, self._waited, self._began = 0, 0.0, time.monotonic()

    def next_batch(self, feed: Any) -> Any:
        """Returns next(feed), and records how long it took."""
        began = time.monotonic()
        batch = next(feed)
        self._waited += time.monotonic() - began
        return batch

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics, each (steps,), of one call; waits if the device is too far behind."""
        self._pending.append(metrics)
        self._steps += next(iter(metrics.values())).shape[0]
        if len(self._pending) > _AHEAD:
            jax.block_until_ready(self._pending[-1 - _AHEAD])

    def loss(self) -> float:
        """Returns the loss of the last step."""
        return float(self._pending[-1]["loss"][-1])

    def start_clock(self) -> None:
        """Starts the timing again, so that compilation or pictures do not count in the rates."""
        jax.block_until_ready(self._pending)
        self._steps, self._waited, self._began = 0, 0.0, time.monotonic()

    def close(self, step: int, latest: int | None) -> tuple[dict[str, float], list[str]]:
        """Ends the window at `step` and begins a new one.

        Args:
          step: the last step added.
          latest: step of the newest checkpoint, for the error message.

        Returns:
          Means of the metrics over the steps that were not skipped, with the rates; and one line of text for each
          skipped step.

        Raises:
          UserError: if more than `skip_limit` steps in a row were not finite.
        """
        series = {name: np.concatenate([np.asarray(m[name]) for m in self._pending]) for name in self._pending[0]}
        seconds = time.monotonic() - self._began
        good = np.all([np.isfinite(values) for values in series.values()], axis=0)
        skipped = []
        for i, fine in enumerate(good):
            self._in_a_row = 0 if fine else self._in_a_row + 1
            if fine:
                continue
            # If several metrics are not finite, the loss is the likeliest cause.
            bad = [name for name, values in series.items() if not np.isfinite(values[i])]
            name = "loss" if "loss" in bad else bad[0]
            what = f"{name} is {series[name][i]} at step {step - len(good) + 1 + i}"
            # Only the loss or the gradient can make a step be skipped. Parameters that are not finite do not recover.
            if self._in_a_row > self._skip_limit or name == "param_norm":
                raise UserError(_stopped(what, self._in_a_row - 1, latest))
            skipped.append(f"{what}: skipped ({self._in_a_row} in a row; more than {self._skip_limit} stop the run)")
        values = {name: float(values[good].mean()) if good.any() else np.nan for name, values in series.items()}
        if skipped:
            values["skipped"] = float(len(skipped))
        if self._steps:
            values["images_per_second"] = self._steps * self._batch_size / seconds
            values["data_wait"] = self._waited / seconds
        self._pending = []
        self._steps, self._waited, self._began = 0, 0.0, time.monotonic()
        return values, skipped


def _stopped(what: str, before: int, latest: int | None) -> str:
    also = f", after {before} such steps in a row" if before else ""
    kept = "no checkpoint was written yet" if latest is None else f"the last good checkpoint, step {latest}, is kept"
    return (
        f"training stopped: {what}{also}; {kept}. "
        "Lower optimizer.learning_rate, lengthen optimizer.warmup_steps, or compute in float32"
    )
