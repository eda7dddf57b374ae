"""An append-only array on disk that survives interruption."""

import hashlib
import io
import re
import tempfile
from collections.abc import Iterator

import numpy as np

from hold_jax.errors import UserError
from hold_jax.runtime import distributed, storage
from hold_jax.runtime.storage import Path

_NAME = re.compile(r"(\d{9})-(\d{9})\.npy")


class PartialRows:
    """An append-only array (N, ...) in a folder of files named FIRST-LAST.npy.

    Files are written atomically, so that a killed run loses only the rows after the last `append`. The rows may be
    appended in groups of any size. The first process writes them.

    A file contains the output of `np.save`, followed by its SHA-256 checksum, which `np.load` ignores.

    Args:
      folder: a folder for this array only; its name must depend on everything that the rows depend on.
      total: N; files with later rows are not read.
      in_memory: whether every process also holds all rows in memory; otherwise only `blocks` gives them.

    Raises:
      UserError: if a file is damaged; without `in_memory`, `blocks` raises it.
    """

    def __init__(self, folder: Path, total: int, *, in_memory: bool = True):
        self._folder, self._total = folder, total
        stop = min(sum(stop - start for start, stop in _chain(folder)), total)
        # The first process may have written more rows before another process lists the files.
        stop = int(distributed.from_first(lambda: np.int32(stop), np.zeros((), np.int32)))
        self._parts = list(_read(folder, stop)) if in_memory else None
        self.count = stop

    @property
    def missing(self) -> int:
        """Number of rows that are still to be appended."""
        return self._total - self.count

    def append(self, rows: np.ndarray) -> None:
        """Appends rows (k, ...); rows beyond N are dropped."""
        rows = rows[: self.missing]
        stop = self.count + len(rows)
        if distributed.is_main():
            buffer = io.BytesIO()
            np.save(buffer, rows, allow_pickle=False)
            storage.write(_path(self._folder, self.count, stop), _sealed(buffer.getvalue()))
        if self._parts is not None:
            self._parts.append(rows)
        self.count = stop

    def array(self) -> np.ndarray:
        """Returns all rows appended so far, of which there must be one; read-only unless they are in memory.

        Rows that are not in memory are in a file without a name in the folder, which ends with the array; the system
        reads its pages as they are used. The folder must then be on a disk.
        """
        if self._parts is not None:
            return np.concatenate(self._parts)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            block = np.empty(0)
            for block in self.blocks():
                file.write(np.ascontiguousarray(block).data)
            file.flush()
            return np.memmap(file, block.dtype, "r", shape=(self.count, *block.shape[1:]))

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields the rows appended so far, in order, read from the files that the first process wrote.

        Raises:
          UserError: if a file is damaged.
        """
        yield from _read(self._folder, self.count)


def _path(folder: Path, start: int, stop: int) -> Path:
    return folder / f"{start:09d}-{stop:09d}.npy"


def _chain(folder: Path) -> list[tuple[int, int]]:
    """Returns (first, last + 1) of the files that follow each other without a gap, from row 0 on."""
    names = storage.names(folder)
    found = sorted((int(match[1]), int(match[2])) for name in names if (match := _NAME.fullmatch(name)))
    chain: list[tuple[int, int]] = []
    for start, stop in found:
        if start == (chain[-1][1] if chain else 0) and stop > start:
            chain.append((start, stop))
    return chain


def _sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def _read(folder: Path, total: int) -> Iterator[np.ndarray]:
    """Yields the rows of each file, up to row `total` - 1."""
    shape: tuple[int, ...] | None = None
    for start, stop in _chain(folder):
        if start >= total:
            break
        path = _path(folder, start, stop)
        try:
            found = storage.read(path)
            data = found[: -hashlib.sha256().digest_size]
            if _sealed(data) != found:
                raise ValueError("its checksum differs from its content's")
            part = np.load(io.BytesIO(data), allow_pickle=False)
            if len(part) != stop - start or part.shape[1:] != (part.shape[1:] if shape is None else shape):
                raise ValueError(f"it has the shape {part.shape}")
        except (OSError, ValueError, EOFError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}); delete it, and its rows are computed again") from None
        shape = part.shape[1:]
        yield part[: total - start]
