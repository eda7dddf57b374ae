"""Files of a work directory, on a disk or in a bucket of Google Cloud Storage (gs://), through etils.epath.

A bucket holds objects, not folders: an object is written atomically, cannot grow, and needs no parent folder. On a disk
a file is written atomically by renaming a temporary file.
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
"""A local path (pathlib) or a path in a bucket (etils.epath); their methods are the same, except modes of `open`."""

_SCHEME = "gs://"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|gs:/", re.IGNORECASE)  # gs:/: pathlib shortens gs:// to this


class BucketError(OSError, UserError):
    """A failed object-storage request, in one line; both an `OSError` and a `UserError`."""


class LostFileError(UserError):
    """A file was deleted, moved or replaced while lines were appended to it."""


def path(text: str | os.PathLike[str], argument: str = "workdir") -> Path:
    """Returns a local path, made absolute and with ~ expanded, or gs://BUCKET/PATH unchanged.

    Args:
      text: the path.
      argument: name of the argument in errors.

    Raises:
      UserError: for another URL scheme, or if the package that reads buckets is not installed.
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
    if importlib.util.find_spec("tensorflow") is None:  # epath uses TensorFlow if it is installed
        try:
            fsspec.get_filesystem_class("gs")
        except ImportError:
            raise UserError(
                f"`{argument}` is {text!r}; the package that reads buckets is missing: pip install gcsfs"
            ) from None
    return epath.Path(text)


def require_local(text: str | os.PathLike[str], argument: str) -> None:
    """Checks that a path is local.

    Raises:
      UserError: for a URL.
    """
    text = os.fspath(text)
    require(not _URL.match(text), argument, text, "a local path: copy from or to a bucket yourself")


def is_local(path: str | os.PathLike[str]) -> bool:
    """Returns whether `path` is on a disk, not in a bucket."""
    return not _URL.match(os.fspath(path))


def exists(path: Path) -> bool:
    """Returns whether `path` is an existing file or folder."""
    with bucket_errors(path):
        return path.exists()


def is_file(path: Path) -> bool:
    """Returns whether `path` is an existing file."""
    with bucket_errors(path):
        return path.is_file()


def names(folder: Path) -> list[str]:
    """Returns the names of the files and folders in `folder`; none if it does not exist."""
    with bucket_errors(folder):
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def read(path: Path) -> bytes:
    """Returns the content of a file."""
    if is_local(path):
        with open_regular(path) as file:
            return file.read()
    with bucket_errors(path):
        return path.read_bytes()


def opened(path: Path) -> BinaryIO:
    """Opens a file to read, as a context manager; a file in a bucket is downloaded as a whole."""
    return open_regular(path) if is_local(path) else io.BytesIO(read(path))


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a local file to read.

    Raises:
      OSError: if it cannot be opened, or is a pipe or a device, which may block or never end.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return open(descriptor, "rb")


def write(path: Path, data: bytes) -> None:
    """Writes `data` to a file atomically; creates its parent folders."""
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Yields a file to write, which replaces `path` when the block ends without an error; creates parent folders.

    Args:
      path: the file.
      sync: wait until the data are on the physical disk, so that a power cut leaves the old file or the new one.
        Without it a power cut may leave an empty file; this is faster for thousands of pictures.

    Raises:
      OSError: if the file cannot be written; an existing file is then left unchanged.
    """
    if not is_local(path):
        buffer = io.BytesIO()
        yield buffer
        try:
            with bucket_errors(path):
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
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _name_file(error, path)
        raise


def _name_file(error: BaseException, path: Path) -> None:
    """Gives an error its file, which `write` does not say where the disk is full."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = os.fspath(path)


def move(source: Path, target: Path) -> None:
    """Moves a folder. In a bucket objects are moved one by one: after a kill some may exist in both places."""
    if is_local(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        return
    # The `rename` of epath needs an existing parent folder of `target`, but a bucket has no folders.
    with bucket_errors(source):
        for file in _below(source):
            (target / file.relative_to(source)).write_bytes(file.read_bytes())
        epath.Path(source).rmtree()


def remove(path: Path) -> None:
    """Deletes a file, a link, or a folder with its content."""
    with bucket_errors(path):
        if not path.is_dir() or (is_local(path) and os.path.islink(path)):
            path.unlink()
        elif is_local(path):
            shutil.rmtree(path)
        else:
            epath.Path(path).rmtree()


class Lines:
    """A text file (UTF-8) to which lines are appended.

    On a disk each line is written immediately. An object in a bucket cannot grow: `flush` and `close` write the whole
    object again, and a kill loses the lines since then. Two processes that append to one object lose lines.
    """

    def __init__(self, path: Path):
        self._path, self._file, self._text, self._pending = path, None, b"", False
        if is_local(path):
            if os.path.lexists(path) and (os.path.islink(path) or not path.is_file()):
                raise UserError(f"{path} is a link or not a regular file; remove it, because lines are appended to it")
            self._file = path.open("a", encoding="utf-8")
        elif exists(path):
            self._text = read(path)

    def append(self, line: str) -> None:
        """Appends a line, given without its newline.

        Raises:
          LostFileError: if the path no longer names the file that was opened; the line would be lost with that file.
        """
        if self._file is not None:
            self._require_there(self._file.fileno())
            with self._named():
                self._file.write(line + "\n")
                self._file.flush()
        else:
            self._text += line.encode() + b"\n"
            self._pending = True

    def _require_there(self, descriptor: int) -> None:
        try:
            there = os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except OSError:
            there = False
        if not there:
            raise LostFileError(f"{self._path} was deleted, moved or replaced while a run appended lines to it")

    def flush(self) -> None:
        """Writes pending lines to the bucket."""
        if self._pending:
            write(self._path, self._text)
            self._pending = False

    def close(self) -> None:
        """Writes pending lines and closes the file; a second call does nothing."""
        self.flush()
        if self._file is not None:
            with self._named():  # a line that did not fit on the disk is tried again here
                self._file.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _name_file(error, self._path)
            raise


class Staged:
    """A folder for libraries that write to a local disk only; for a bucket a temporary folder that is copied.

    Attributes:
      local: the folder to write to.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._temporary = not is_local(folder)
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="hold_jax_") if self._temporary else folder)
        self._sent: dict[pathlib.Path, tuple[int, int]] = {}

    def size(self) -> int:
        """Returns the number of bytes in the temporary folder; 0 if there is none."""
        return sum(file.stat().st_size for file in self._files())

    def send(self, *, delete: bool = False) -> None:
        """Copies the new and changed files to the bucket; with `delete`, then deletes the local files."""
        for file in self._files():
            found = file.stat()
            mark = found.st_size, found.st_mtime_ns
            if self._sent.get(file) != mark:
                write(self._folder / file.relative_to(self.local).as_posix(), file.read_bytes())
                self._sent[file] = mark
            if delete:
                file.unlink()

    def close(self) -> None:
        """Copies the remaining files and deletes the temporary folder; a second call does nothing."""
        self.send()
        if self._temporary:
            shutil.rmtree(self.local, ignore_errors=True)

    def _files(self) -> list[pathlib.Path]:
        return sorted(file for file in self.local.rglob("*") if file.is_file()) if self._temporary else []


def _below(folder: Path) -> Iterator[Path]:
    """Yields all files below `folder`; the `walk` of epath (1.15) drops gs:// from paths found with fsspec."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _below(path)
        else:
            yield path


@contextlib.contextmanager
def bucket_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Converts errors of the bucket client to `BucketError`; keeps local errors and `FileNotFoundError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # gcsfs, aiohttp and google.auth raise different types
        if is_local(path):
            raise
        lines = str(error).strip().splitlines()
        raise BucketError(f"{path}: {type(error).__name__}: {lines[0] if lines else 'no reason given'}") from error
