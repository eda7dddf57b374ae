"""Reading .npz and .npy files of unknown origin: headers first, sizes bounded, no pickles; large arrays in blocks."""

import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, BinaryIO

import numpy as np

_SUFFIX = ".npy"


class NpzError(ValueError):
    """The archive, or one of its arrays, cannot be read; the message completes "the file ...: "."""


class Npz:
    """The arrays of an open .npz file by name; nothing is decompressed before its declared size is known to fit.

    Args:
      file: seekable.
      limit_bytes: the largest array that is read.

    Raises:
      NpzError: if the file is not a zip archive.
    """

    def __init__(self, file: BinaryIO, limit_bytes: int):
        self._limit = limit_bytes
        with _reading():
            self._zip = zipfile.ZipFile(file)
            self._members = {info.filename.removesuffix(_SUFFIX): info for info in self._zip.infolist()}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._members)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape that the header of an array declares.

        Raises:
          NpzError: if the header is damaged.
        """
        with _reading(), self._zip.open(self._members[name]) as member:
            return _header(member)[0]

    def describe(self, most: int = 8) -> str:
        """Returns the arrays' types and shapes, as their headers declare them, in words."""
        shown = []
        for name in self.names[:most]:
            try:
                with self._zip.open(self._members[name]) as member:
                    what = _described(member)
            except Exception:  # as in `_reading`: this is the text of an error message, which must not fail itself
                what = "(damaged)"
            if not self._members[name].filename.endswith(".npy"):
                what = "(not an array)"
            shown.append(f"{name[:100]} {what}")
        more = f" and {len(self.names) - most} more" if len(self.names) > most else ""
        return (", ".join(shown) or "nothing") + more

    def read(self, name: str) -> np.ndarray:
        """Returns an array.

        Raises:
          NpzError: if it is damaged, holds Python objects, or is larger than the limit.
        """
        info = self._members[name]
        with _reading(), self._zip.open(info) as member:
            return _read(member, info.file_size, self._limit)


def write_blocks(
    file: IO[bytes], name: str, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]
) -> None:
    """Writes an .npz of one array, of which only one block is in memory at a time; `np.load` reads it.

    Args:
      shape: of the whole array.
      blocks: its rows in order, arrays (k, *shape[1:]).
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(f"{name}{_SUFFIX}", "w", force_zip64=True) as member:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            for block in blocks:
                member.write(np.ascontiguousarray(block, dtype).tobytes())


def read_blocks(file: BinaryIO, name: str, size_bytes: int) -> Iterator[np.ndarray]:
    """Yields the rows of an array that `write_blocks` wrote, in blocks of at most `size_bytes`, at least one row.

    Raises:
      NpzError: if the archive or the array cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}{_SUFFIX}") as member:
            shape, _, dtype = _header(member)
            row = math.prod(shape[1:]) * dtype.itemsize
            size = max(1, size_bytes // row)
            for first in range(0, shape[0], size):
                count = min(size, shape[0] - first)
                yield np.frombuffer(member.read(count * row), dtype).reshape(count, *shape[1:])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise NpzError(_text(error)) from None


class Npy:
    """The one array of an open .npy file, under the name "x", with the interface of `Npz`.

    Args:
      file: seekable, at its beginning.
      limit_bytes: the largest array that is read.
    """

    def __init__(self, file: BinaryIO, limit_bytes: int):
        self._file, self._limit = file, limit_bytes

    names = ("x",)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def describe(self) -> str:
        """See `Npz.describe`."""
        self._file.seek(0)
        return f"one array, {_described(self._file)}"

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Npz.shape`."""
        assert name in self
        self._file.seek(0)
        return npy_shape(self._file)

    def read(self, name: str) -> np.ndarray:
        """See `Npz.read`."""
        assert name in self
        self._file.seek(0)
        return read_npy(self._file, self._limit)


def read_npy(file: BinaryIO, limit_bytes: int) -> np.ndarray:
    """Returns the array of an open .npy file.

    Args:
      file: seekable, at its beginning.
      limit_bytes: the largest array that is read.

    Raises:
      NpzError: if it is damaged, holds Python objects, or is larger than the limit.
    """
    with _reading():
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return _read(file, size, limit_bytes)


def npy_shape(file: BinaryIO) -> tuple[int, ...]:
    """Returns the shape that the header of an open .npy file declares.

    Raises:
      NpzError: if it has no readable header.
    """
    with _reading():
        return _header(file)[0]


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile, its decompressors and NumPy's header parser raise many kinds
        raise NpzError(_text(error)) from None


def _read(member: IO[bytes], file_size: int, limit_bytes: int) -> np.ndarray:
    """Returns the array of a .npy file of `file_size` bytes, if its header declares just that."""
    shape, fortran_order, dtype = _header(member)
    if dtype.hasobject:
        raise ValueError("Object arrays are not read")
    size = math.prod(shape) * dtype.itemsize
    if size > limit_bytes:
        raise ValueError(f"it holds {size / 2**30:.3g} GiB, more than the {limit_bytes / 2**30:.3g} allowed")
    if size != file_size - member.tell():
        raise ValueError("its size differs from what its header declares")
    raw = member.read()
    if len(raw) != size:
        raise ValueError("its size differs from what its header declares")
    x = np.frombuffer(raw, dtype).reshape(shape[::-1] if fortran_order else shape)
    return x.T.copy() if fortran_order else x.copy()


def _described(member: IO[bytes]) -> str:
    """The type and shape that the header of an array declares, in words."""
    try:
        shape, _, dtype = _header(member)
    except Exception:  # as in `Npz.describe`
        return "(damaged)"
    return "(Python objects)" if dtype.hasobject else f"{dtype}{list(shape)}"


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns shape, whether the order is Fortran's, and dtype; leaves `member` at the array's first byte."""
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its format version is {version}")
    shape, fortran_order, dtype = readers[version](member)
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"its header declares the shape {shape}")
    return shape, fortran_order, dtype


def _text(error: BaseException) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
