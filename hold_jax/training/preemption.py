"""Stop requests during training: SIGTERM from a scheduler, or Ctrl-C."""

import signal
import sys
import threading
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Context manager in which SIGTERM and Ctrl-C do not end the process; `reached` returns whether one arrived.

    In a run of several processes, a SIGTERM to any of them stops all of them at the same call of `reached` (JAX's
    preemption service), and Ctrl-C ends the process as usual. In a run of one process a second signal ends it as usual.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._stop_requested = False
        self._before: dict[signal.Signals, Any] = {}

    def reached(self) -> bool:
        """Returns whether to stop now; every process must call it equally often."""
        self._calls += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(self._calls)
        return self._stop_requested

    def __enter__(self) -> Self:
        # Python sets signal handlers in the main thread only; in any other thread signals keep their effect. With
        # several processes JAX has installed its own handler.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: object) -> None:
        self._stop_requested = True
        name = signal.Signals(number).name
        print(f"\n{name}: stopping after this step with a checkpoint (again: at once)", file=sys.stderr, flush=True)
        self.__exit__()  # a second signal has its usual effect
