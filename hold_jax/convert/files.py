"""Writing a file so that what was there stays until the new one is complete."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hold_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: Path, argument: str = "output") -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when it is complete and on disk.

    Args:
      path: the file.
      argument: what errors call it.

    Raises:
      UserError: if it cannot be written; then nothing changes.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"`{argument}` is {str(path)!r}; it cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
