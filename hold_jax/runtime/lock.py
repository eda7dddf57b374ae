"""Locks on folders, so that two processes do not write in one; a lock ends with its process, however that ends."""

import contextlib
import os
import platform
from collections.abc import Iterator

from hold_jax.runtime import storage
from hold_jax.runtime.storage import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILE = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[str | None]:
    """Creates `folder` and locks it; yields None, or who holds it already, such as "process 12 on node3".

    A bucket has no locks, nor have some file systems and Python on Windows: there every process gets None.

    Raises:
      OSError: if the folder cannot be written.
    """
    if not storage.is_local(folder):
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    # A link could name any file of the user's, which would be overwritten.
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    with open(descriptor, "r+", errors="replace") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield file.read().strip() or "another process"
                return
            except OSError:
                pass  # a file system without locks: working without one is better than not working
        file.seek(0)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield None
