"""Whatever bytes a file has, its reader gives a right value or a `UserError` of one line: nothing else is raised."""

import io
import pickle
import warnings
import zipfile

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hold_jax import data
from hold_jax.errors import UserError
from hold_jax.evaluation import reference
from hold_jax.metrics.frechet import moments
from hold_jax.runtime.resumable import PartialRows
from hold_jax.weights import torch_file, torch_save

RNG = np.random.default_rng(0)


@st.composite
def damaged(draw, whole):
    """`whole` with a few of its bytes changed, removed, repeated or added."""
    found = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(found) - 1, 0)))
        stop = min(len(found), start + draw(st.sampled_from([1, 1, 1, 2, 4, 8, 64, 4096])))
        match draw(st.sampled_from(["bit", "bytes", "cut", "remove", "repeat", "add"])):
            case "bit" if found:
                found[start] ^= 1 << draw(st.integers(0, 7))
            case "bytes":
                found[start:stop] = draw(st.binary(min_size=stop - start, max_size=stop - start))
            case "cut":
                del found[start:]
            case "remove":
                del found[start:stop]
            case "repeat":
                found[start:start] = found[start:stop] * draw(st.integers(1, 3))
            case "add":
                found[start:start] = draw(st.binary(max_size=16))
    return bytes(found)


def one_line(call):
    """What the call returns, or None where it raises a `UserError`; anything else it raises is a failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns of a name that occurs twice
            return call()
    except UserError as error:
        text = str(error)
        assert 10 < len(text) < 3000 and "\n" not in text, text
        return None


def npz_bytes(**values):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **values)
    return buffer.getvalue()


POINTS = npz_bytes(x=RNG.standard_normal((20, 3)), y=np.arange(20) % 4)
GRAYS = npz_bytes(images=RNG.integers(0, 256, (12, 4, 4), np.uint8), x_test=RNG.integers(0, 256, (3, 4, 4), np.uint8))


def require_sound(dataset):
    """What every loop relies on."""
    batch = dataset.gather(np.arange(len(dataset)))
    assert batch["x"].shape == (len(dataset), *dataset.shape) and len(dataset) >= 1
    assert batch["x"].dtype == (np.uint8 if dataset.is_image else np.float32)
    assert np.isfinite(batch["x"].astype(np.float32)).all()
    assert batch["label"].dtype == np.int32 and batch["label"].min() >= 0
    assert batch["label"].max() < max(dataset.num_classes, 1)


def read_npz(tmp_path, content, split):
    (tmp_path / "x.npz").write_bytes(content)
    found = one_line(lambda: data.load(f"npz:{tmp_path / 'x.npz'}", split=split, memory_limit_bytes=1 << 20))
    if found is not None:
        require_sound(found)


@pytest.mark.slow
@given(st.one_of(damaged(POINTS), damaged(GRAYS), st.binary(max_size=200)), st.sampled_from(["train", "test"]))
def test_any_npz(tmp_path, content, split):
    read_npz(tmp_path, content, split)


NAMES = st.sampled_from(["x", "images", "x_train", "arr_0", "x_test", "y", "labels", "y_test", "other"])
DTYPES = st.one_of(
    arrays.floating_dtypes(), arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), arrays.boolean_dtypes(),
    arrays.complex_number_dtypes(), arrays.byte_string_dtypes(), arrays.datetime64_dtypes(),
)  # fmt: skip
ARRAYS = arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))


@given(st.dictionaries(NAMES, ARRAYS, max_size=4), st.sampled_from(["train", "test"]))
def test_any_arrays(tmp_path, values, split):
    read_npz(tmp_path, npz_bytes(**values), split)


def picture_bytes(kind, shape=(6, 6, 3)):
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, shape, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [picture_bytes(kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")]


@given(
    st.one_of(*map(damaged, PICTURES), st.binary(max_size=100)),
    st.sampled_from(["a.png", "a", "a.gif", "a.tif", "a.txt", "a.eps"]),
    st.sampled_from([None, 4]),
    st.sampled_from([1, 1 << 30]),
)
def test_any_picture(tmp_path, content, name, size, limit):
    folder = tmp_path / "train"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    (folder / name).write_bytes(content)

    def load():
        dataset = data.load(f"folder:{tmp_path}", split="train", image_size=size, memory_limit_bytes=limit)
        require_sound(dataset)

    one_line(load)


STATE = {"a.weight": RNG.standard_normal((3, 2), np.float32), "b": RNG.standard_normal(5, np.float32)}


@pytest.fixture(scope="module")
def torch_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "x.pth"
    torch_save.write(path, STATE)
    return path.read_bytes()


@given(st.data())
def test_any_weights(tmp_path, torch_bytes, draws):
    """Damaged files, and whole ones with any pickle in them."""
    content = draws.draw(damaged(torch_bytes))
    if draws.draw(st.booleans()):
        with zipfile.ZipFile(io.BytesIO(torch_bytes)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        members["archive/data.pkl"] = draws.draw(damaged(members["archive/data.pkl"]))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, value in members.items():
                archive.writestr(name, value)
        content = buffer.getvalue()
    (tmp_path / "x.pth").write_bytes(content)
    require_plain(one_line(lambda: torch_file.read(tmp_path / "x.pth")))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN, st.integers(0, 5))
def test_any_plain_value(tmp_path, value, protocol):
    """What the reader accepts it gives back as it was; protocols that it does not know are an error."""
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol))
    found = one_line(lambda: [torch_file.read(tmp_path / "x.pth")])
    if found is not None:
        assert repr(found[0]) == repr(value)  # of NaN too


def require_plain(value):
    """Containers, numbers, text and arrays; nothing that could act."""
    match value:
        case dict():
            [require_plain(item) for pair in value.items() for item in pair]
        case list() | tuple():
            [require_plain(item) for item in value]
        case _:
            assert (
                value is None
                or type(value) in (bool, int, float, str, bytes, np.ndarray)
                or isinstance(value, np.dtype)
            )


ROWS = RNG.standard_normal((8, 3)).astype(np.float32)


@given(st.data())
def test_any_kept_rows(tmp_path, draws):
    """Rows are those that were kept, or an error: never others."""
    folder = tmp_path / "rows"
    whole = PartialRows(folder, 8)
    while whole.missing:
        whole.append(ROWS[whole.count : whole.count + 4])
    path = folder / draws.draw(st.sampled_from(["000000000-000000004.npy", "000000004-000000008.npy"]))
    before = path.read_bytes()
    try:
        content = draws.draw(damaged(before))
        path.write_bytes(content)
        found = one_line(lambda: PartialRows(folder, 8))
        assert (found is not None) == (content == before)
        if found is not None:
            np.testing.assert_array_equal(found.array(), ROWS)
    finally:
        path.write_bytes(before)


def stats_bytes():
    buffer = io.BytesIO()
    found = moments(ROWS)
    np.savez(buffer, mu=found.mean, sigma=found.cov, count=np.int64(8), features=ROWS)
    return buffer.getvalue()


@given(damaged(stats_bytes()))
def test_any_statistics(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    found = one_line(lambda: reference.load(tmp_path / "x.npz"))
    if found is not None:
        assert found.moments.cov.shape == (3, 3) and np.isfinite(found.moments.cov).all()
