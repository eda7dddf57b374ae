"""Fetching a file, from a server on the loopback."""

import collections
import contextlib
import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hold_jax.errors import UserError
from hold_jax.runtime import fetch

CONTENT = bytes(range(256)) * 12_000  # 3 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()[:8]


class Server(http.server.ThreadingHTTPServer):
    """Counts its answers; `cut` ends the body early, `slow` pauses in it, `status` is another answer."""

    daemon_threads = True
    cut, slow, status = None, 0.0, 200

    def __init__(self):
        self.asked = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/of/a/release/weights-{SHA256}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(CONTENT[:1000])
            time.sleep(self.server.slow)
            self.wfile.write(CONTENT[1000 : self.server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with Server() as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "not" / "there yet"
    monkeypatch.setenv(fetch.CACHE_VARIABLE, str(folder))
    return folder


def fetched(server, sha256=SHA256):
    return fetch.fetch(server.url, sha256, "the network", "or do without")


def left(cache):
    """Names in the cache but for the lock."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.exists() else []


def test_a_file_is_fetched_once_and_kept(server, cache, capsys):
    path = fetched(server)
    assert path == cache / f"weights-{SHA256}.pth" and path.read_bytes() == CONTENT
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"fetching the network: {server.url} -> {path}"
    assert len(said) == 2 and said[1].startswith("finished after 00:00: MB 3/3")
    assert fetched(server) == path and len(server.asked) == 1 and capsys.readouterr().err == ""
    assert left(cache) == [path.name] and path.stat().st_mode & 0o777 == 0o644


def test_a_damaged_file_is_fetched_again(server, cache):
    path = fetched(server)
    path.write_bytes(CONTENT[:-1])
    assert fetched(server).read_bytes() == CONTENT and len(server.asked) == 2


def one_line(error):
    assert "\n" not in str(error.value) and str(error.value).endswith("; or do without"), error.value
    return str(error.value)


def test_a_connection_that_ends_early_leaves_nothing_and_the_next_try_succeeds(server, cache):
    server.cut = 1_500_000
    with pytest.raises(UserError, match=r"cannot be fetched from http.*IncompleteRead|ended after") as error:
        fetched(server)
    one_line(error)
    assert left(cache) == []
    server.cut = None
    assert fetched(server).read_bytes() == CONTENT


def test_another_file_under_the_name_is_not_taken(server, cache):
    with pytest.raises(
        UserError, match=f"the SHA-256 of what arrived begins with {SHA256}, not with 00000000"
    ) as error:
        fetched(server, "0" * 8)
    one_line(error)
    assert left(cache) == []


def test_an_answer_that_is_no_file_is_named(server, cache):
    server.status = 404
    with pytest.raises(UserError, match=r"the server answers 404 Not Found") as error:
        fetched(server)
    one_line(error)
    assert left(cache) == []


def test_no_server_is_one_line_within_seconds(cache, monkeypatch):
    monkeypatch.delenv("http_proxy", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"127.0.0.1:{port} cannot be reached \(.*refused\)") as error:
        fetch.fetch(f"http://127.0.0.1:{port}/x.pth", SHA256, "the network", "or do without")
    one_line(error)
    assert time.monotonic() - began < 5 and left(cache) == []


def test_a_disk_without_room_is_found_before_the_download(server, cache, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, len(CONTENT) - 1))
    with pytest.raises(
        UserError, match=rf"cannot be kept in {cache}: No space left on device; make room there, or name"
    ):
        fetched(server)
    assert left(cache) == []


def test_a_disk_that_fills_up_leaves_nothing(server, cache, monkeypatch):
    monkeypatch.setattr(fetch.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    with pytest.raises(UserError, match="No space left on device; make room there, or name another folder in the env"):
        fetched(server)
    assert left(cache) == []


def test_a_cache_that_cannot_be_made_is_named(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(fetch.CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"cannot be kept in .*/file/below: Not a directory; name another folder"):
        fetched(server)


SECOND = """
import sys
from hold_jax.runtime import fetch
print(fetch.fetch(*sys.argv[1:], "the network", "or do without"))
"""


def start(server, cache):
    return subprocess.Popen(
        [sys.executable, "-c", SECOND, server.url, SHA256],
        cwd=Path(__file__).parents[2],
        env=os.environ | {fetch.CACHE_VARIABLE: str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_at_once_fetch_once(server, cache):
    server.slow = 1.5  # long enough for the other to come
    both = [start(server, cache) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {out.strip() for out, _ in said} == {str(cache / f"weights-{SHA256}.pth")}
    assert len(server.asked) == 1 and (cache / f"weights-{SHA256}.pth").read_bytes() == CONTENT


def test_two_processes_without_locks_are_right_too(server, cache, monkeypatch):
    monkeypatch.setattr(fetch, "fcntl", None)
    server.slow = 0.2
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetched(server).read_bytes())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 2 and left(cache) == [f"weights-{SHA256}.pth"]


def test_a_killed_process_blocks_nobody(server, cache):
    server.slow = 30.0
    first = start(server, cache)
    while not server.asked:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.kill()
    first.communicate()
    server.slow = 0.0
    assert fetched(server).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("platform", "variables", "want"),
    [
        ("linux", {"HOLD_JAX_CACHE": "/a/b"}, "/a/b"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/hold_jax"),
        ("linux", {}, "/home/me/.cache/hold_jax"),
        ("darwin", {}, "/home/me/Library/Caches/hold_jax"),
        ("darwin", {"HOLD_JAX_CACHE": "~/c"}, "/home/me/c"),
        ("win32", {}, "/home/me/AppData/Local/hold_jax/cache"),
    ],
)
def test_the_cache_folder_is_the_users_choice_or_the_systems(platform, variables, want, monkeypatch):
    for name in ("HOLD_JAX_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert fetch.cache_folder() == Path(want)
