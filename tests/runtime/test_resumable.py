"""Rows outlive a kill at any moment, and come back as they were."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from hold_jax.errors import UserError
from hold_jax.runtime import resumable, storage
from hold_jax.runtime.resumable import PartialRows

ROWS = np.random.default_rng(0).integers(0, 256, (20, 2, 3), dtype=np.uint8)


def fill(folder, total=20, size=4, *, until=None, rows=ROWS):
    """Appends blocks of `size` until there are `until` rows or none is missing."""
    found = PartialRows(folder, total)
    while found.missing and (until is None or found.count < until):
        found.append(rows[found.count : found.count + size])
    return found


def assert_holds(found, rows):
    assert (found.count, found.array().dtype) == (len(rows), rows.dtype)
    np.testing.assert_array_equal(found.array(), rows)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize(("first", "second"), [(4, 4), (4, 3), (3, 5), (1, 20), (12, 1)])
def test_another_run_goes_on_whatever_the_grouping(tmp_path, first, second, dtype):
    rows = (ROWS / 3).astype(dtype)
    begun = fill(tmp_path, size=first, until=12, rows=rows)
    assert_holds(begun, rows[:12])
    again = PartialRows(tmp_path, 20)
    assert (again.count, again.missing) == (12, 8)
    assert_holds(again, rows[:12])
    assert_holds(fill(tmp_path, size=second, rows=rows), rows)
    again = PartialRows(tmp_path, 20)
    assert again.missing == 0
    assert_holds(again, rows)


def test_rows_beyond_the_total_are_neither_kept_nor_written(tmp_path):
    found = fill(tmp_path, total=10, size=8)
    assert_holds(found, ROWS[:10])
    assert found.missing == 0
    assert names(tmp_path) == ["000000000-000000008.npy", "000000008-000000010.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "000000008-000000010.npy"), ROWS[8:10])


def test_more_rows_go_on_from_fewer(tmp_path):
    fill(tmp_path, total=10, size=8)
    found = PartialRows(tmp_path, 20)
    assert (found.count, found.missing) == (10, 10)
    assert_holds(fill(tmp_path, size=8), ROWS)


@pytest.mark.parametrize("total", [1, 4, 7, 8])
def test_fewer_rows_are_the_first_of_more_and_the_rest_is_not_looked_at(tmp_path, total):
    fill(tmp_path)
    (tmp_path / "000000008-000000012.npy").write_bytes(b"damaged")
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    found = PartialRows(tmp_path, total)
    assert found.missing == 0
    assert_holds(found, ROWS[:total])
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


@pytest.mark.parametrize("size", [4, 3, 9])
def test_a_gap_is_filled_in_order_and_what_lay_behind_it_is_not_joined_wrongly(tmp_path, size):
    fill(tmp_path)
    (tmp_path / "000000004-000000008.npy").unlink()
    found = PartialRows(tmp_path, 20)
    assert (found.count, found.missing) == (4, 16)
    assert_holds(found, ROWS[:4])
    assert_holds(fill(tmp_path, size=size), ROWS)
    assert_holds(PartialRows(tmp_path, 20), ROWS)


def test_other_files_are_not_looked_at(tmp_path):
    for name in ("000000000-000000004.tmp17", "000000004-000000004.npy", "000000008-000000004.npy", "0-4.npy", "x.txt"):
        (tmp_path / name).write_bytes(b"not rows")
    found = PartialRows(tmp_path, 20)
    assert (found.count, found.missing) == (0, 20)
    assert_holds(fill(tmp_path), ROWS)


def test_nothing_is_created_before_there_are_rows(tmp_path):
    assert PartialRows(tmp_path / "a" / "b", 20).count == 0
    assert not list(tmp_path.iterdir())
    assert_holds(fill(tmp_path / "a" / "b"), ROWS)


DAMAGE = {
    "empty": lambda data: b"",
    "cut in the magic": lambda data: data[:3],
    "cut in the header": lambda data: data[:40],
    "cut in the rows": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"hello",
    "a bit of the rows": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
    "a bit of the header": lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],
    "a bit of the checksum": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "of a version without checksums": lambda data: data[:-32],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_and_what_it_held_can_be_made_again(tmp_path, damage):
    fill(tmp_path)
    path = tmp_path / "000000008-000000012.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"^{path} cannot be read .*delete it, and its rows") as caught:
        PartialRows(tmp_path, 20)
    assert "\n" not in str(caught.value)
    path.unlink()
    assert_holds(fill(tmp_path), ROWS)


@pytest.mark.parametrize(
    "rows", [ROWS[:3], ROWS[:5], ROWS[:4, 0], np.array([{}] * 4)], ids=["few", "many", "narrow", "pickled"]
)
def test_a_file_of_other_rows_is_named(tmp_path, rows):
    fill(tmp_path, until=8)
    path = tmp_path / "000000004-000000008.npy"
    resumable_bytes = io.BytesIO()
    np.save(resumable_bytes, rows)
    path.write_bytes(resumable._sealed(resumable_bytes.getvalue()))
    with pytest.raises(UserError, match=f"^{path} .*delete it, and its rows are computed again"):
        PartialRows(tmp_path, 20)


def test_a_file_is_whole_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen, synced, replace, fsync = [], [], os.replace, os.fsync

    def checked(source, target):
        with open(source, "rb") as file:
            assert synced == [os.fstat(file.fileno()).st_ino]
            np.testing.assert_array_equal(np.load(file), ROWS[:4])
        seen.append(target)
        replace(source, target)

    monkeypatch.setattr(storage.os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), fsync(fd)))
    monkeypatch.setattr(storage.os, "replace", checked)
    PartialRows(tmp_path, 20).append(ROWS[:4])
    assert seen == [tmp_path / "000000000-000000004.npy"]


@pytest.mark.parametrize("broken", ["resumable.np.save", "storage.os.fsync", "storage.os.replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, broken):
    found = fill(tmp_path, until=8)

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"hold_jax.runtime.{broken}", full)
        with pytest.raises(OSError, match="no space"):
            found.append(ROWS[8:12])
    # What could not be written does not count as done, in memory either.
    assert_holds(found, ROWS[:8])
    found.append(ROWS[8:12])
    assert_holds(found, ROWS[:12])
    assert_holds(PartialRows(tmp_path, 20), ROWS[:12])


# Appends blocks of 4 and dies, as kill -9 has it, when the third is written but has no name yet.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from hold_jax.runtime.resumable import PartialRows

replace, seen = os.replace, []
def dying(*paths):
    seen.append(paths)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = dying
rows, found = np.load(sys.argv[1]), PartialRows(Path(sys.argv[2]), 20)
while found.missing:
    found.append(rows[found.count : found.count + 4])
"""


def test_a_kill_costs_the_last_block_alone(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    folder = tmp_path / "kept"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "rows.npy", folder],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(names(folder)) == 3  # two blocks, and a temporary file
    found = PartialRows(folder, 20)
    assert (found.count, found.missing) == (8, 12)
    assert_holds(found, ROWS[:8])
    assert_holds(fill(folder), ROWS)
    assert_holds(PartialRows(folder, 20), ROWS)


def test_rows_on_the_disk_alone_come_back_in_blocks_of_the_same_rows(tmp_path):
    fill(tmp_path, until=8)
    found = PartialRows(tmp_path, 20, in_memory=False)
    assert (found.count, found.missing, found._parts) == (8, 12, None)
    found.append(ROWS[8:13])
    assert found._parts is None
    blocks = list(found.blocks())
    assert [len(block) for block in blocks] == [4, 4, 5]
    np.testing.assert_array_equal(np.concatenate(blocks), ROWS[:13])
    files = names(tmp_path)
    whole = found.array()
    assert isinstance(whole, np.memmap) and whole.dtype == ROWS.dtype and names(tmp_path) == files
    np.testing.assert_array_equal(whole, ROWS[:13])
    path = tmp_path / "000000004-000000008.npy"
    path.write_bytes(path.read_bytes()[:-1])
    again = PartialRows(tmp_path, 20, in_memory=False)  # what is damaged is found when it is read
    with pytest.raises(UserError, match=f"^{path} cannot be read .*delete it, and its rows"):
        list(again.blocks())


def test_only_the_first_process_writes_and_all_hold_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert_holds(fill(tmp_path / "kept"), ROWS)
    assert not (tmp_path / "kept").exists()


def test_a_process_that_looks_late_has_the_rows_that_the_first_one_saw(tmp_path, monkeypatch):
    fill(tmp_path, until=12)
    monkeypatch.setattr(resumable.distributed, "from_first", lambda make, like: np.int32(6))
    found = PartialRows(tmp_path, 20)
    assert (found.count, found.missing) == (6, 14)
    assert_holds(found, ROWS[:6])
