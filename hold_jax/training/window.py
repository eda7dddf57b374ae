"""The training steps since the last line of the log: their metrics, and where the time went."""

import time
from typing import Any

import jax
import numpy as np

from hold_jax.errors import UserError

_AHEAD = 2  # calls given to the device before their results: it never waits, and a stop is heard soon


class Window:
    """Collects metrics on the device, and reads them back only when a line is due.

    Args:
      batch_size: examples a step.
      skip_limit: steps in a row that may be not finite.
    """

    def __init__(self, batch_size: int, skip_limit: int) -> None:
        self._batch_size, self._skip_limit = batch_size, skip_limit
        self._in_a_row = 0
        self._pending: list[dict[str, jax.Array]] = []
        self._steps, self._waited, self._began = 0, 0.0, time.monotonic()

    def next_batch(self, feed: Any) -> Any:
        """next(feed), and how long it took."""
        began = time.monotonic()
        batch = next(feed)
        self._waited += time.monotonic() - began
        return batch

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics (steps,) of one call, and waits if the device is too far behind."""
        self._pending.append(metrics)
        self._steps += next(iter(metrics.values())).shape[0]
        if len(self._pending) > _AHEAD:
            jax.block_until_ready(self._pending[-1 - _AHEAD])

    def loss(self) -> float:
        """The last step's loss."""
        return float(self._pending[-1]["loss"][-1])

    def start_clock(self) -> None:
        """Leaves what went before out of the rates: compilation, pictures."""
        jax.block_until_ready(self._pending)
        self._steps, self._waited, self._began = 0, 0.0, time.monotonic()

    def close(self, step: int, latest: int | None) -> tuple[dict[str, float], list[str]]:
        """Means over the steps up to `step` that were taken, rates, and a line for each one that was skipped.

        A new window begins.

        Args:
          step: the last one added.
          latest: the newest checkpoint, for the message.

        Raises:
          UserError: where more than `skip_limit` steps in a row were not finite.
        """
        series = {name: np.concatenate([np.asarray(m[name]) for m in self._pending]) for name in self._pending[0]}
        seconds = time.monotonic() - self._began
        good = np.all([np.isfinite(values) for values in series.values()], axis=0)
        skipped = []
        for i, fine in enumerate(good):
            self._in_a_row = 0 if fine else self._in_a_row + 1
            if fine:
                continue
            # Of several the loss is the likeliest cause.
            bad = [name for name, values in series.items() if not np.isfinite(values[i])]
            name = "loss" if "loss" in bad else bad[0]
            what = f"{name} is {series[name][i]} at step {step - len(good) + 1 + i}"
            # A step is skipped for its loss or gradient alone: parameters that are not finite stay so.
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
