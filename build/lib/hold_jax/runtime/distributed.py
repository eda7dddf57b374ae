"""Several processes as one run: how they join, agree on what is wrong, and notice that one is gone.

Everything here does nothing, or the obvious, in a run of one process.
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

    With arguments, as told. Without, by itself on Cloud TPU and under SLURM's srun with several tasks; anywhere else
    the process is a run of its own.

    Args:
      coordinator: HOST:PORT of process 0, reachable from all.
      num_processes: how many there are.
      process_id: which this one is, from 0.

    Raises:
      UserError: if only some are given, or the others cannot be reached within a minute.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if all(value is None for value in given.values()):
        if _under_srun() or _on_tpu():
            _initialize()
        return
    for name, value in given.items():
        require(
            value is not None, name, value, "given too: --coordinator, --num_processes and --process_id go together"
        )
    host, colon, port = coordinator.rpartition(":")
    require(bool(host and colon) and port.isdecimal(), "coordinator", coordinator, "HOST:PORT, e.g. 10.0.0.1:8476")
    require(num_processes >= 1, "num_processes", num_processes, "1 or more")
    require(0 <= process_id < num_processes, "process_id", process_id, f"in 0..{num_processes - 1}")
    if process_id > 0:
        _await_coordinator(host, int(port))
    _initialize(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block of preparations without collectives: a `UserError` in one process is raised in all of them.

    So that what is wrong on one machine (no data there, a full disk) stops the run with its reason, not with a hang.
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
    """The texts of all processes, in their order."""
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
    """make() of process 0 alone, on every process.

    Args:
      make: its `UserError` is raised everywhere.
      like: a tree of arrays of the shapes and types that `make` returns.
    """
    if jax.process_count() == 1:
        return make()
    value = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like)
    with together():
        if jax.process_index() == 0:
            value = make()
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(value))


def is_main() -> bool:
    """Whether this is the process that writes logs and pictures."""
    return jax.process_index() == 0


def say(message: str) -> None:
    """One line on standard error, of the run and not of each of its processes."""
    if is_main():
        print(message, file=sys.stderr, flush=True)


def leave(message: str, code: int) -> NoReturn:
    """Ends this process at once, its peers' next collective with it: an ordinary exit would wait for them."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def leave_after(error: Exception) -> NoReturn:
    """Ends this process of several after an exception that is not the user's: its own, or the loss of a peer."""
    if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in _LOST):
        leave(
            f"error: process {jax.process_index()} lost its peers ({str(error).splitlines()[0]}): one of them died, or "
            "cannot be reached; see its output. Start all again with the same command: they go on from the last "
            "checkpoint",
            1,
        )
    traceback.print_exception(error)
    leave(f"error: process {jax.process_index()} ends, and its peers with it", 1)


def _initialize(**explicit: Any) -> None:
    try:
        jax.distributed.initialize(
            initialization_timeout=_JOIN_SECONDS, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS, **explicit
        )
    except (RuntimeError, ValueError) as error:  # JAX's own errors among them
        raise UserError(
            f"the processes of this run did not all join within {_JOIN_SECONDS} s ({str(error).splitlines()[0]}): "
            "check that each was started, with the same --coordinator and --num_processes and a --process_id of its own"
        ) from None
    # Where a peer dies and no collective notices, JAX aborts with a message of its own; absl would bury it in stacks.
    faulthandler.disable()


def _await_coordinator(host: str, port: int) -> None:
    """Waits until something listens there; JAX's own wait ends without a word of the address."""
    end = time.monotonic() + _JOIN_SECONDS
    while True:
        try:
            with socket.create_connection((host, port), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"`coordinator` is {host}:{port}; nothing answered there for {_JOIN_SECONDS} s ({error}): start "
                    "process 0 on that host, and open the port to the others"
                ) from None
            time.sleep(0.2)


def _under_srun() -> bool:
    # The variables of a step, not of the job: a plain `python main.py` in a batch script is a run of its own.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in os.environ


def _on_tpu() -> bool:
    devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    wanted = "tpu" in (jax.config.jax_platforms or "tpu")
    return bool(devices) and wanted and importlib.util.find_spec("libtpu") is not None


def _lines(values: dict[str, Any]) -> str:
    return "\n".join(f"{key}\t{value!r}".replace("\n", " ") for key, value in sorted(values.items()))
