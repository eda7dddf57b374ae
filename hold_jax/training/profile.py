"""A trace of a few training steps for XProf or Perfetto."""

from typing import Any

import jax

from hold_jax.runtime import storage
from hold_jax.runtime.storage import Path

FOLDER = "profile"
_FIRST_CALL = 3  # the calls before it compile and fill the pipeline


class Profile:
    """Traces `calls` calls of the training step, from the third on, into `workdir`/profile.

    Open the trace with `xprof WORKDIR/profile` (pip install xprof), or in ui.perfetto.dev. The profiler writes to a
    local disk only; for a bucket the files are copied when the trace is complete.

    Args:
      workdir: folder of the run.
      calls: number of calls to trace; 0: no trace.
    """

    def __init__(self, workdir: Path, calls: int) -> None:
        self._folder, self._calls, self._seen = workdir / FOLDER, calls, 0
        self._staged: storage.Staged | None = None

    def before_call(self) -> None:
        """Starts the trace if it is due; call it before each training step."""
        self._seen += 1
        if self._calls and self._seen == _FIRST_CALL:
            self._staged = storage.Staged(self._folder)
            jax.profiler.start_trace(self._staged.local)

    def after_call(self, outputs: Any) -> Path | None:
        """Ends the trace if it is complete, and then returns its folder; call it after each training step."""
        if self._staged is None or self._seen < _FIRST_CALL + self._calls - 1:
            return None
        jax.block_until_ready(outputs)
        self.close()
        return self._folder

    def close(self) -> None:
        """Ends a trace that is still open."""
        if self._staged is not None:
            staged, self._staged = self._staged, None
            jax.profiler.stop_trace()
            staged.close()
