"""Several processes as one run: they join, agree on errors, and detect that one of them died.

In a run of one process every function here does nothing, or the single-process equivalent.
"""

import contextlib
import faulthandler
import glob
import importlib.util
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from hold_jax.errors import UserError, require

_JOIN_SECONDS = 60  # to reach the coordinator, and then for all to join
# Of the messages of Gloo, NCCL and JAX's coordination service.
_LOST = ("onnection", "Gloo", "NCCL", "eartbeat", "coordination", "barrier", "Barrier", "UNAVAILABLE", "DEADLINE")
_HEARTBEAT_SECONDS = 30  # after which a silent process counts as dead


def initialize(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the processes of a run. Call it before anything else touches a device.

    With all three arguments the process joins the others at `coordinator`. With none of them, it finds the others by
    itself on Cloud TPU and under SLURM's srun with several tasks; anywhere else it is a run of one process.

    Args:
      coordinator: HOST:PORT of process 0, reachable from all.
      num_processes: number of processes of the run.
      process_id: number of this process, from 0.

    Raises:
      UserError: if only some are given, or the others cannot be reached within a minute.
    """
    if coordinator is None and num_processes is None and process_id is None:
        if _under_srun() or _on_tpu():
            _initialize()
        return
    if coordinator is None or num_processes is None or process_id is None:
        given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
        missing = next(name for name, value in given.items() if value is None)
        allowed = "given too: --coordinator, --num_processes and --process_id go together"
        raise UserError(f"`{missing}` is None; it must be {allowed}")
    host, colon, port = coordinator.rpartition(":")
    require(bool(host and colon) and port.isdecimal(), "coordinator", coordinator, "HOST:PORT, e.g. 10.0.0.1:8476")
    require(num_processes >= 1, "num_processes", num_processes, "1 or more")
    require(0 <= process_id < num_processes, "process_id", process_id, f"in 0..{num_processes - 1}")
    if process_id > 0:
        _await_coordinator(host, int(port))
    _initialize(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Runs a block without collectives; a `UserError` in one process is raised in all of them.

    A fault of one machine (missing data, a full disk) then stops the whole run with its reason. Without this the other
    processes would wait for it forever.
    """
    message = ""
    try:
        yield
    except UserError as error:
        if jax.process_count() == 1:
            raise
        message = str(error)
    if jax.process_count() > 1:
        for process, text in enumerate(gather(message)):
            if text:
                raise AgreedError(
                    text if process == 0 or process == jax.process_index() else f"process {process}: {text}"
                )


class AgreedError(UserError):
    """A `UserError` that every process of the run raises at the same place."""


def gather(text: str) -> list[str]:
    """Returns the texts of all processes, in order of their numbers."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data))).reshape(-1)
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [bytes(row[:size]).decode() for row, size in zip(np.asarray(rows), sizes, strict=True)]


def require_same(values: dict[str, Any]) -> None:
    """Checks that `values`, e.g. the flat config, are those of process 0 on every process.

    Raises:
      UserError: on all processes, naming the keys that differ, where, and both values.
    """
    if jax.process_count() == 1:
        return
    every = [dict(line.split("\t", 1) for line in text.split("\n") if line) for text in gather(_lines(values))]
    different = [
        f"{key} = {every[0].get(key, 'absent')} on process 0, {other.get(key, 'absent')} on process {process}"
        for process, other in enumerate(every)
        for key in sorted(every[0].keys() | other.keys())
        if every[0].get(key) != other.get(key)
    ]
    if different:
        shown = "; ".join(different[:8]) + ("" if len(different) <= 8 else f"; and {len(different) - 8} more")
        raise AgreedError(
            f"the processes were started with different settings ({shown}): start all with the same flags"
        )


def from_first(make: Callable[[], Any], like: Any) -> Any:
    """Calls `make` on process 0 only and returns its value on every process.

    Args:
      make: function without arguments; its `UserError` is raised on every process.
      like: tree of arrays with the shapes and dtypes that `make` returns.
    """
    if jax.process_count() == 1:
        return make()
    value = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like)
    with together():
        if jax.process_index() == 0:
            value = make()
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(value))


def is_main() -> bool:
    """Returns whether this process writes the logs and pictures."""
    return jax.process_index() == 0


def say(message: str) -> None:
    """Prints one line on standard error, once for the whole run."""
    if is_main():
        print(message, file=sys.stderr, flush=True)


def leave(message: str, code: int) -> NoReturn:
    """Ends this process at once; an ordinary exit would wait for the others, whose next collective now fails."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def leave_after(error: Exception) -> NoReturn:
    """Ends this process of several after an exception that is not a `UserError`: its own fault, or a lost peer."""
    if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in _LOST):
        leave(
            f"error: process {jax.process_index()} lost its peers ({str(error).splitlines()[0]}): one of them died or "
            "cannot be reached; see its output. Start all of them again with the same command to continue from the "
            "last checkpoint",
            1,
        )
    traceback.print_exception(error)
    leave(f"error: process {jax.process_index()} stops, and the whole run with it", 1)


def _initialize(**explicit: Any) -> None:
    try:
        jax.distributed.initialize(
            initialization_timeout=_JOIN_SECONDS, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS, **explicit
        )
    except (RuntimeError, ValueError) as error:  # JAX's own errors among them
        raise UserError(
            f"the processes of this run did not all join within {_JOIN_SECONDS} s ({str(error).splitlines()[0]}): "
            "start all with the same --coordinator and --num_processes, each with its own --process_id"
        ) from None
    # If a peer dies outside a collective, JAX aborts with its own message; absl would print stacks around it.
    faulthandler.disable()


def _await_coordinator(host: str, port: int) -> None:
    """Waits until the coordinator listens; JAX's own wait ends with an error that does not name the address."""
    end = time.monotonic() + _JOIN_SECONDS
    while True:
        try:
            with socket.create_connection((host, port), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"`coordinator` is {host}:{port}; it did not answer for {_JOIN_SECONDS} s ({error}): start "
                    "process 0 on that host, and open the port to the other machines"
                ) from None
            time.sleep(0.2)


def _under_srun() -> bool:
    # Variables of a job step, not of the job: a plain `python main.py` in a batch script is a run of one process.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in os.environ


def _on_tpu() -> bool:
    devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    platforms: str | None = getattr(jax.config, "jax_platforms")  # noqa: B009  # JAX declares its options at run time
    wanted = "tpu" in (platforms or "tpu")
    return bool(devices) and wanted and importlib.util.find_spec("libtpu") is not None


def _lines(values: dict[str, Any]) -> str:
    return "\n".join(f"{key}\t{value!r}".replace("\n", " ") for key, value in sorted(values.items()))
