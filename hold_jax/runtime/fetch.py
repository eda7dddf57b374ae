"""Files that are fetched once, checked, and kept in the user's cache folder."""

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import socket
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hold_jax.errors import UserError
from hold_jax.runtime.progress import Progress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CACHE_VARIABLE = "HOLD_JAX_CACHE"
CONNECT_SECONDS = 5.0
_READ_SECONDS = 60.0  # a server that sends nothing for so long has failed
_CHUNK = 1 << 20
_MEGABYTE = 10**6
_MOST_BYTES = 1 << 31


def cache_folder() -> Path:
    """Returns the folder of fetched files: $HOLD_JAX_CACHE, or hold_jax in the user's cache folder of the system."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hold_jax"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "hold_jax" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hold_jax"


def fetch(url: str, sha256: str, what: str, otherwise: str) -> Path:
    """Returns the path of a file in `cache_folder`; fetches it if it is not there.

    The file gets its name only when it is complete and its digest is right. A second process that wants the same file
    waits for the first.

    Args:
      url: of the file; the name in the cache is its last part.
      sha256: how its SHA-256 begins, in hexadecimal digits.
      what: what the file is, for the messages.
      otherwise: what the user can do without the file, for the errors.

    Raises:
      UserError: in one line, if the file cannot be fetched or kept.
    """
    path = cache_folder() / Path(urllib.parse.urlsplit(url).path).name
    if _is_right(path, sha256):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not _is_right(path, sha256):
                print(f"fetching {what}: {url} -> {path}", file=sys.stderr, flush=True)
                _fetch(url, sha256, path)
    except _FetchError as error:
        raise UserError(f"{what} cannot be fetched from {url}: {error}; {otherwise}") from None
    except OSError as error:
        room = "make room there, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UserError(
            f"{what} cannot be kept in {path.parent}: {error.strerror or error}; {room}name another folder in the "
            f"environment variable {CACHE_VARIABLE}"
        ) from None
    return path


def unreachable(url: str) -> str | None:
    """Returns why the server of `url`, or its proxy, accepts no connection within seconds; None if it does."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    failure: list[str] = [f"no answer in {CONNECT_SECONDS:.0f} s"]

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
            failure.clear()
        except OSError as error:
            failure[0] = str(error)

    # In a thread, because the name look-up has no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS + 0.5)
    return f"{parts.hostname}:{port} cannot be reached ({failure[0]})" if failure else None


class _FetchError(Exception):
    """The message says what went wrong between the server and this machine."""


def _is_right(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(sha256)


def _fetch(url: str, sha256: str, path: Path) -> None:
    """Downloads to a temporary file beside `path`, checks it, and gives it its name."""
    reason = unreachable(url)
    if reason is not None:
        raise _FetchError(reason)
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            found = _download(url, file, shutil.disk_usage(path.parent).free)
            file.flush()
            os.fsync(file.fileno())
        if not found.startswith(sha256):
            raise _FetchError(f"the SHA-256 of what arrived begins with {found[: len(sha256)]}, not with {sha256}")
        os.chmod(name, 0o644)  # mkstemp's file is the user's alone
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _download(url: str, file: IO[bytes], free: int) -> str:
    """Copies a URL to `file`, on a disk with `free` bytes, and returns the SHA-256 of what arrived."""
    digest, done = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=_READ_SECONDS) as response:
            size = int(response.headers.get("Content-Length") or 0)
            if size > free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with Progress(max(1, size // _MEGABYTE), 0, 1, unit="MB", examples="MB") as progress:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    if done > _MOST_BYTES:
                        raise _FetchError(f"the server sends more than {_MOST_BYTES:,} bytes")
                    progress.update(done // _MEGABYTE)
    except urllib.error.HTTPError as error:
        raise _FetchError(f"the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
        raise _FetchError(str(getattr(error, "reason", error)) or type(error).__name__) from None
    if size and done != size:
        raise _FetchError(f"the connection ended after {done:,} of {size:,} bytes")
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process fetches `path`. Without locks several processes may fetch it, each for itself."""
    if fcntl is None:
        yield
        return
    with open(path.with_name(f"{path.name}.lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that fetches {path.name}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
