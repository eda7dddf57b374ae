"""The machine for one process while it measures, where `benchmarks.accelerator --at_once` runs several."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = "HOLD_JAX_BENCHMARK_GROUPS"
"""Environment variable: a folder with one file for each process group that takes part, named by its number."""


@contextlib.contextmanager
def alone(seconds: float = 1.5) -> Iterator[None]:
    """Stops the other process groups of `FOLDER`; without it, does nothing.

    One process after another: each waits until it is its turn.

    Args:
      seconds: in which a card finishes what the others have queued there.
    """
    if FOLDER not in os.environ:
        yield
        return
    folder = Path(os.environ[FOLDER])
    with nobody_measures(folder):
        stopped = signal_others(folder, signal.SIGSTOP)
        try:
            time.sleep(seconds if stopped else 0)
            yield
        finally:
            signal_others(folder, signal.SIGCONT)


@contextlib.contextmanager
def nobody_measures(folder: Path) -> Iterator[None]:
    """Waits until no process of a folder measures, and keeps others from beginning to."""
    import fcntl  # not on Windows

    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def signal_others(folder: Path, number: signal.Signals) -> int:
    """Sends a signal to all process groups of a folder but one's own; returns their number."""
    sent = 0
    for name in os.listdir(folder):
        if name.isdigit() and int(name) != os.getpgrp():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(name), number)
                sent += 1
    return sent
