"""Files of a work directory: on a disk, or in a bucket of Google Cloud Storage (gs://), through etils.epath.

A bucket has objects and no folders: what is written appears whole or not at all, cannot grow, and needs no parent.
On a disk a temporary file that takes the place of the old one has the same effect.
"""

import contextlib
import errno
import importlib.util
import io
import os
import pathlib
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import fsspec
from etils import epath

from hold_jax.errors import UserError, require

Path = pathlib.Path | epath.Path
"""A local path is pathlib's, one in a bucket etils.epath's; both have the same methods, but for `open`'s modes."""

_SCHEME = "gs://"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|gs:/", re.IGNORECASE)  # gs:/: what pathlib makes of gs://


class BucketError(OSError, UserError):
    """A failed object-storage request, in one line; both an `OSError` and a `UserError`."""


def path(text: str | os.PathLike[str], argument: str = "workdir") -> Path:
    """A local path, absolute and with ~ expanded, or gs://BUCKET/PATH as it is.

    Args:
      text: the path.
      argument: what errors call it.

    Raises:
      UserError: for another scheme, or where the package that reads buckets is missing.
    """
    text = os.fspath(text)
    if not _URL.match(text):
        try:
            path = pathlib.Path(text).expanduser().absolute()
            path.exists()
        except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, a NUL
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"`{argument}` is {text[:200]!r}; the path cannot be used: {reason}") from None
        return path
    bucket = text.removeprefix(_SCHEME)
    right = text.startswith(_SCHEME) and not bucket.startswith("/") and bool(bucket)
    require(right, argument, text, "a local path, or gs://BUCKET/PATH")
    if importlib.util.find_spec("tensorflow") is None:  # which epath prefers where it is installed
        try:
            fsspec.get_filesystem_class("gs")
        except ImportError:
            raise UserError(
                f"`{argument}` is {text!r}; the package that reads buckets is missing: pip install gcsfs"
            ) from None
    return epath.Path(text)


def require_local(text: str | os.PathLike[str], argument: str) -> None:
    """Checks the path of what can be on a local disk only.

    Raises:
      UserError: for a URL.
    """
    text = os.fspath(text)
    require(not _URL.match(text), argument, text, "a local path: copy from or to a bucket yourself")


def is_local(path: Path) -> bool:
    """Whether `path` is on a disk, not in a bucket."""
    return not os.fspath(path).startswith(_SCHEME)


def exists(path: Path) -> bool:
    """Whether there is a file or a folder."""
    with _bucket_errors(path):
        return path.exists()


def is_file(path: Path) -> bool:
    """Whether there is a file."""
    with _bucket_errors(path):
        return path.is_file()


def names(folder: Path) -> list[str]:
    """Returns the names of the files and folders in `folder`; none if it does not exist."""
    with _bucket_errors(folder):
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def read(path: Path) -> bytes:
    """Returns the content of a file."""
    if is_local(path):
        with open_regular(path) as file:
            return file.read()
    with _bucket_errors(path):
        return path.read_bytes()


def opened(path: Path) -> BinaryIO:
    """Returns a file to read, as a context manager; one in a bucket is fetched whole."""
    return open_regular(path) if is_local(path) else io.BytesIO(read(path))


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a local file to read.

    Raises:
      OSError: also for a pipe or a device: reading it would wait, or never end.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return open(descriptor, "rb")


def write(path: Path, data: bytes) -> None:
    """Makes `data` the content of a file, wholly or not at all, with the folders above it."""
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path`, with the folders above it, when the block ends without an error.

    Args:
      path: the file.
      sync: wait until it is on the disk itself, so that a power cut leaves the old one or the new one; without, as for
        thousands of pictures, it may leave an empty one.

    Raises:
      OSError: if it cannot be written; then what was there stays.
    """
    if not is_local(path):
        buffer = io.BytesIO()
        yield buffer
        try:
            with _bucket_errors(path):
                path.write_bytes(buffer.getvalue())
        except FileNotFoundError:
            raise BucketError(f"{path}: there is no such bucket") from None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def move(source: Path, target: Path) -> None:
    """Moves a folder; in a bucket object by object, so that a kill leaves some of them in both places."""
    if is_local(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        return
    # epath's own `rename` needs the parent of `target` to exist: a folder, which no bucket has.
    with _bucket_errors(source):
        for file in _below(source):
            (target / file.relative_to(source)).write_bytes(file.read_bytes())
        epath.Path(source).rmtree()


def empty(folder: Path) -> None:
    """Deletes all that is in `folder`, which need not exist; what a link in it leads to stays."""
    for name in names(folder):
        path = folder / name
        with _bucket_errors(path):
            if not path.is_dir() or (is_local(path) and os.path.islink(path)):
                path.unlink()
            elif is_local(path):
                shutil.rmtree(path)
            else:
                epath.Path(path).rmtree()


class Lines:
    """An ASCII file that grows at its end, line by line.

    On a disk each line is written at once. In a bucket nothing can grow: the object is written again by `flush` and
    `close`, and a kill costs the lines since. Two processes that do so at once lose lines of each other.
    """

    def __init__(self, path: Path):
        self._path, self._file, self._text, self._pending = path, None, b"", False
        if is_local(path):
            if os.path.lexists(path) and (os.path.islink(path) or not path.is_file()):
                raise UserError(f"{path} is a link or no regular file; remove it: lines are added to it")
            self._file = path.open("a", encoding="ascii")
        elif exists(path):
            self._text = read(path)

    def append(self, line: str) -> None:
        """Adds a line, without its end."""
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
        else:
            self._text += line.encode("ascii") + b"\n"
            self._pending = True

    def flush(self) -> None:
        """Brings what was added to the bucket."""
        if self._pending:
            write(self._path, self._text)
            self._pending = False

    def close(self) -> None:
        """As `flush`, and closes the file; a second call does nothing."""
        self.flush()
        if self._file is not None:
            self._file.close()


class Staged:
    """A folder for what writes to a local disk only: the folder itself, or a temporary one that is copied to a bucket.

    Attributes:
      local: where to write.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._temporary = not is_local(folder)
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="hold_jax_") if self._temporary else folder)
        self._sent: dict[pathlib.Path, tuple[int, int]] = {}

    def size(self) -> int:
        """Bytes in the temporary folder; 0 if there is none."""
        return sum(file.stat().st_size for file in self._files())

    def send(self, *, forget: bool = False) -> None:
        """Copies the files that are new or changed, and deletes them here if they are to be forgotten."""
        for file in self._files():
            found = file.stat()
            mark = found.st_size, found.st_mtime_ns
            if self._sent.get(file) != mark:
                write(self._folder / file.relative_to(self.local).as_posix(), file.read_bytes())
                self._sent[file] = mark
            if forget:
                file.unlink()

    def close(self) -> None:
        """Sends the rest and deletes the temporary folder; a second call does nothing."""
        self.send()
        if self._temporary:
            shutil.rmtree(self.local, ignore_errors=True)

    def _files(self) -> list[pathlib.Path]:
        return sorted(file for file in self.local.rglob("*") if file.is_file()) if self._temporary else []


def _below(folder: Path) -> Iterator[Path]:
    """Yields all files; epath's own `walk` (1.15) drops the gs:// of what it finds through fsspec."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _below(path)
        else:
            yield path


@contextlib.contextmanager
def _bucket_errors(path: Path) -> Iterator[None]:
    """Turns what a bucket's client raises into `BucketError`; local errors, and that there is no such file, stay."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # gcsfs, aiohttp and google.auth each raise kinds of their own
        if is_local(path):
            raise
        lines = str(error).strip().splitlines()
        raise BucketError(f"{path}: {type(error).__name__}: {lines[0] if lines else 'no reason given'}") from error
