"""Writing a converter's file so that what was there stays until the new one is complete."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hold_jax.errors import UserError
from hold_jax.runtime import storage


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """`storage.writing`, a fault of the disk being the user's to mend.

    Raises:
      UserError: if it cannot be written; then nothing changes.
    """
    try:
        with storage.writing(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"`output` is {str(path)!r}; it cannot be written: {error.strerror or error}") from None
