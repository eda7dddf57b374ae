"""Files of a data set: in a folder on a disk, in a zip archive, or in a bucket that fsspec reads."""

import contextlib
import dataclasses
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

import fsspec

from hold_jax.errors import UserError, require
from hold_jax.runtime import storage

# A picture of a zip archive that declares more bytes than this is taken as unreadable.
_LARGEST_MEMBER_BYTES = 1 << 30
# Resource forks, which macOS adds to zip archives; what file systems have at the root of a disk, closed to most users.
_IGNORED = ("__MACOSX", "lost+found", "System Volume Information", "$RECYCLE.BIN")


class Root(Protocol):
    """The place that the names of files are relative to; `str` of it is what messages call it."""

    def folders(self) -> list[str]:
        """Returns the sorted names of the folders directly below; no hidden ones."""
        ...

    def loose(self) -> list[str]:
        """Returns the names of the files directly below; no hidden ones."""
        ...

    def names(self, under: str = "") -> Iterator[str]:
        """Yields the names of all files below folder `under`, with "/" between levels; no hidden ones."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Opens a file to read; safe to call from several threads.

        Raises:
          OSError: if it cannot be opened.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """One file of a data set, by its name in the place where it lies."""

    root: Root
    name: str

    def __str__(self) -> str:
        return f"{self.root}/{self.name}"

    @property
    def suffix(self) -> str:
        """The extension of the name in lower case, with its dot; empty if there is none."""
        return PurePosixPath(self.name).suffix.lower()

    def open(self) -> BinaryIO:
        """Opens the file to read."""
        return self.root.open(self.name)


class Folder:
    """A folder on a disk; links to folders are followed, and each real folder is visited once."""

    def __init__(self, path: Path):
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def folders(self) -> list[str]:
        """See `Root`."""
        return sorted(entry.name for entry in self._path.iterdir() if entry.is_dir() and not _hidden(entry.name))

    def loose(self) -> list[str]:
        """See `Root`."""
        return [entry.name for entry in self._path.iterdir() if not entry.is_dir() and not _hidden(entry.name)]

    def names(self, under: str = "") -> Iterator[str]:
        """See `Root`."""
        return (file.relative_to(self._path).as_posix() for file in self._walk(self._path / under))

    def open(self, name: str) -> BinaryIO:
        """See `Root`."""
        return storage.open_regular(self._path / name)

    def _walk(self, top: Path) -> Iterator[Path]:
        seen = set()
        for folder, folders, names in os.walk(top, followlinks=True, onerror=_raise):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [f for f in folders if not _hidden(f)]
            yield from (Path(folder, name) for name in names if not _hidden(name))


def _raise(error: OSError) -> None:
    """Raises what `os.walk` would pass over: a folder that cannot be listed."""
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from None


class Archive:
    """A zip archive. If all of its files are in one folder, names are relative to that folder.

    Also "\\" separates levels, as old programs of Windows write it, and a name may begin with "./". Of members of one
    name the last counts, as for `zipfile`.

    Raises:
      UserError: if it is not a zip archive.
    """

    def __init__(self, where: str, file: BinaryIO):
        self._where = where
        try:
            self._zip = zipfile.ZipFile(file)
            infos = self._zip.infolist()
        except Exception as error:  # zipfile raises many kinds for damaged archives
            raise UserError(f"{where} is not a readable zip archive: {error}") from None
        names = [info.filename.replace("\\", "/") for info in infos]
        parts = [[part for part in name.split("/") if part not in ("", ".")] for name in names]
        members = {
            "/".join(levels): info
            for name, levels, info in zip(names, parts, infos, strict=True)
            if levels and not name.endswith("/") and not any(map(_hidden, levels))
        }
        tops = {name.partition("/")[0] if "/" in name else "" for name in members}
        prefix = f"{tops.pop()}/" if len(tops) == 1 and "" not in tops else ""
        self._members = {name.removeprefix(prefix): info for name, info in members.items()}

    def __str__(self) -> str:
        return self._where

    def folders(self) -> list[str]:
        """See `Root`."""
        return sorted({name.partition("/")[0] for name in self._members if "/" in name})

    def loose(self) -> list[str]:
        """See `Root`."""
        return [name for name in self._members if "/" not in name]

    def names(self, under: str = "") -> Iterator[str]:
        """See `Root`."""
        return (name for name in self._members if not under or name.startswith(f"{under}/"))

    def open(self, name: str) -> BinaryIO:
        """See `Root`."""
        info = self._members[name]
        if info.file_size > _LARGEST_MEMBER_BYTES:
            raise OSError(f"it holds {info.file_size / 2**30:.3g} GiB")
        try:
            return io.BytesIO(self._zip.read(info))
        except Exception as error:  # a password, an unknown compression, damaged data: of many kinds
            raise OSError(str(error)) from None


class Bucket:
    """A folder in a bucket, or in whatever else fsspec reads."""

    def __init__(self, url: str):
        self._url = url.rstrip("/")
        self._system, self._path = system(url)
        with storage.bucket_errors(url):
            found = self._system.find(self._path)
        inside = (str(path).removeprefix(self._path).lstrip("/") for path in found)
        self._names = [name for name in sorted(inside) if not any(map(_hidden, name.split("/")))]

    def __str__(self) -> str:
        return self._url

    def folders(self) -> list[str]:
        """See `Root`."""
        return sorted({name.partition("/")[0] for name in self._names if "/" in name})

    def loose(self) -> list[str]:
        """See `Root`."""
        return [name for name in self._names if "/" not in name]

    def names(self, under: str = "") -> Iterator[str]:
        """See `Root`."""
        return (name for name in self._names if not under or name.startswith(f"{under}/"))

    def open(self, name: str) -> BinaryIO:
        """See `Root`."""
        with storage.bucket_errors(self._url):
            return cast(BinaryIO, self._system.open(f"{self._path}/{name}", "rb"))


def is_url(name: str) -> bool:
    """Returns whether the PATH of `prefix:PATH` is a URL such as gs://BUCKET/FOLDER."""
    return "://" in name.partition(":")[2]


def local_path(name: str, data_dir: str | None) -> Path:
    """Returns the local path of `prefix:PATH`; a relative one starts at `data_dir`, or else at the working directory.

    Raises:
      UserError: for no path, and for one that cannot be used.
    """
    prefix, _, text = name.partition(":")
    require(bool(text), "name", name, f"{prefix}:PATH; write {prefix}:. for data_dir, or else the working directory")
    try:
        path = Path(data_dir or ".").expanduser() / Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, a NUL, a folder that may not be read
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"`name` is {name[:200]!r}; the path cannot be used: {reason}") from None
    return path


def system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a URL and the path in it.

    Raises:
      UserError: for an unknown scheme, or one whose package is not installed.
    """
    try:
        found, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be read: {error}") from None
    return found, str(path).rstrip("/")


@contextlib.contextmanager
def opened(file: File | Path) -> Iterator[BinaryIO]:
    """Opens a file to read; a pipe or a device is an `OSError`."""
    with file.open() if isinstance(file, File) else storage.open_regular(file) as stream:
        yield stream


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED
