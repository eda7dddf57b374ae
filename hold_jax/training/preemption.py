"""Stop requests during training: SIGTERM from a scheduler, Ctrl-C, or a terminal that closes."""

import os
import signal
import stat
import sys
import threading
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

_AGAIN_AT_ONCE = (signal.SIGTERM, signal.SIGINT)
# Windows has no SIGHUP.
_SIGNALS = (*_AGAIN_AT_ONCE, signal.SIGHUP) if hasattr(signal, "SIGHUP") else _AGAIN_AT_ONCE


class Preemption:
    """Context manager in which SIGTERM, Ctrl-C and SIGHUP do not end the process; `reached` returns whether one came.

    In a run of several processes, a SIGTERM to any of them stops all of them at the same call of `reached` (JAX's
    preemption service), and the other two end the process as usual. In a run of one process a second SIGTERM or Ctrl-C
    ends it as usual; a second SIGHUP does not, because a terminal that closes may send two. A SIGHUP that is ignored,
    as under nohup, stays ignored.
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
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: object) -> None:
        again = " (again: at once)" if number in _AGAIN_AT_ONCE else ""
        if not self._stop_requested:
            _tell(f"\n{signal.Signals(number).name}: stopping after this step with a checkpoint{again}")
        self._stop_requested = True
        for other in _AGAIN_AT_ONCE:
            if other in self._before:
                signal.signal(other, self._before[other])


def _tell(message: str) -> None:
    """Prints a line on standard error; if that is a terminal that has closed, later output to it is discarded."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            if stat.S_ISCHR(os.fstat(stream).st_mode):  # a terminal; files and pipes stay
                os.dup2(nowhere, stream)
        os.close(nowhere)
