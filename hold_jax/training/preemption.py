"""Being told to stop: SIGTERM from a scheduler, Ctrl-C from a person."""

import signal
import sys
import threading
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Inside `with`, SIGTERM and Ctrl-C do not end the process; `reached` tells that one came.

    In a run of several processes a SIGTERM to any of them counts for all, at the same call of `reached` (JAX's
    preemption service). Ctrl-C, and a second signal in a run of one process, end the process as ever.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._told = False
        self._before: dict[signal.Signals, Any] = {}

    def reached(self) -> bool:
        """Whether to stop now; call it as often on every process."""
        self._calls += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(self._calls)
        return self._told

    def __enter__(self) -> Self:
        # Handlers belong to the main thread; in another (a notebook's, a test's) signals keep their meaning. With
        # several processes JAX has put up its own.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: object) -> None:
        self._told = True
        name = signal.Signals(number).name
        print(f"\n{name}: stopping after this step with a checkpoint (again: at once)", file=sys.stderr, flush=True)
        self.__exit__()  # a second signal has its usual effect
