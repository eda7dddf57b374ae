"""Transfer between host and devices: value ranges, and a thread that prepares batches."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.errors import require

_POLL_SECONDS = 0.1


def to_model_range(x: jax.Array | np.ndarray) -> jax.Array:
    """Returns float32 model input: uint8 pictures become `x / 127.5 - 1` in [-1, 1]; float32 data stay.

    Call it inside the jitted step, so that only uint8 travels to the device.
    """
    require(x.dtype in (jnp.uint8, jnp.float32), "x.dtype", str(x.dtype), "uint8 or float32")
    x = jnp.asarray(x)
    return x.astype(jnp.float32) / 127.5 - 1.0 if x.dtype == jnp.uint8 else x


def from_model_range(x: jax.Array | np.ndarray) -> jax.Array:
    """Returns uint8 pictures from values in [-1, 1], rounded and clipped; inverts `to_model_range`."""
    return jnp.clip(jnp.round((jnp.asarray(x) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def prefetch(iterator: Iterator[dict], put: Callable[[dict], dict], depth: int = 2) -> Generator[dict, None, None]:
    """Yields `put(batch)` for each batch, in order; a thread prepares up to `depth` batches ahead.

    An exception in `iterator` or `put` is raised here, after the batches before it. When the returned generator is
    closed or deleted, the thread stops and `iterator` is closed.

    Args:
      iterator: yields batches on the host; do not use it elsewhere.
      put: moves a batch to the devices, e.g. `device_put` to a sharding.
      depth: number of prepared batches, at least 1.

    Raises:
      UserError: if `depth` is below 1.
    """
    require(depth >= 1, "depth", depth, "a positive integer")
    return _prefetch(iter(iterator), put, depth)


def _prefetch(iterator: Iterator[dict], put: Callable[[dict], dict], depth: int) -> Generator[dict, None, None]:
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def offer(item: tuple[str, Any]) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in iterator:
                if stop.is_set():
                    return
                offer(("batch", put(batch)))
            offer(("end", None))
        except BaseException as error:
            offer(("error", error))
        finally:
            getattr(iterator, "close", lambda: None)()

    worker = threading.Thread(target=work, name="prefetch", daemon=True)
    worker.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        worker.join()
