"""An array that is never in memory as a whole, against NumPy's own reader."""

import io

import numpy as np
import pytest

from hold_jax.runtime import npz

ROWS = np.random.default_rng(0).integers(0, 256, (20, 2, 3), dtype=np.uint8)


def written(rows, size=7):
    file = io.BytesIO()
    npz.write_blocks(file, "x", rows.shape, rows.dtype, (rows[i : i + size] for i in range(0, len(rows), size)))
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("size", [1, 7, 20])
def test_numpy_reads_what_was_written_in_blocks(dtype, size):
    rows = (ROWS / 3).astype(dtype)
    with np.load(io.BytesIO(written(rows, size)), allow_pickle=False) as found:
        assert list(found) == ["x"] and found["x"].dtype == dtype
        np.testing.assert_array_equal(found["x"], rows)


@pytest.mark.parametrize(("size_bytes", "lengths"), [(1, [1] * 20), (13, [2] * 10), (48, [8, 8, 4]), (10**6, [20])])
def test_what_numpy_wrote_is_read_in_blocks(size_bytes, lengths):
    file = io.BytesIO()
    np.savez_compressed(file, x=ROWS)
    blocks = list(npz.read_blocks(file, "x", size_bytes))
    assert [len(block) for block in blocks] == lengths
    np.testing.assert_array_equal(np.concatenate(blocks), ROWS)


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-40], lambda data: data[:60] + bytes(20) + data[80:]],
    ids=["empty", "cut", "zeros"],
)
def test_a_damaged_archive_is_one_error(damage):
    with pytest.raises(npz.NpzError) as caught:
        list(npz.read_blocks(io.BytesIO(damage(written(ROWS))), "x", 100))
    assert "\n" not in str(caught.value)
