"""`npz:PATH`."""

import io
import os
import struct
import tracemalloc
import zipfile

import fsspec
import numpy as np
import pytest

from hold_jax import data
from hold_jax.errors import UserError

PICTURES = np.random.default_rng(0).integers(0, 256, (25, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(25) % 7


@pytest.fixture
def save(tmp_path):
    def save_(**arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return f"npz:{tmp_path / 'set.npz'}"

    return save_


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("images", "labels"), ("x_train", "y_train"), ("arr_0", "y")])
def test_a_tenth_is_held_out(save, x, y):
    name = save(**{x: PICTURES, y: LABELS})
    train, test = (data.load(name, split=s) for s in ("train", "test"))
    assert (len(train), len(test), train.num_classes, train.shape) == (22, 3, 7, (6, 5, 3))
    rows = {tuple(p.ravel()): label for p, label in zip(PICTURES, LABELS, strict=True)}
    got = [(tuple(p.ravel()), label) for d in (train, test) for p, label in zip(d.source, d.labels, strict=True)]
    assert dict(got) == rows and len(got) == 25


def test_own_test_arrays(save):
    name = save(x=PICTURES[:20], y=LABELS[:20], x_test=PICTURES[20:], y_test=LABELS[20:])
    np.testing.assert_array_equal(data.load(name, split="train").source, PICTURES[:20])
    test = data.load(name, split="test")
    np.testing.assert_array_equal(test.source, PICTURES[20:])
    np.testing.assert_array_equal(test.labels, LABELS[20:])


def test_a_split_without_labels_has_no_classes(save):
    name = save(x=PICTURES[:20], y=LABELS[:20], x_test=PICTURES[20:])
    train, test = (data.load(name, split=split) for split in ("train", "test"))
    assert train.num_classes == 7 and (test.num_classes, test.labels) == (0, None)
    name = save(x=PICTURES[:20], x_test=PICTURES[20:], y_test=LABELS[20:])
    assert data.load(name, split="train").num_classes == 0


def test_gray_pictures_gain_a_channel_and_are_fitted(save):
    name = save(x=PICTURES[..., 0])
    dataset = data.load(name, split="train")
    assert dataset.shape == (6, 5, 1) and dataset.num_classes == 0 and dataset.labels is None
    assert data.load(name, split="train", image_size=4, channels=3).source.shape == (22, 4, 4, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_become_float32(save, dtype):
    x = np.random.default_rng(1).normal(size=(20, 3)).astype(dtype)
    name = save(x=x)
    dataset = data.load(name, split="train")
    assert dataset.source.dtype == np.float32 and dataset.shape == (3,) and not dataset.is_image
    assert {tuple(r) for r in dataset.source} < {tuple(r) for r in x.astype(np.float32)}


def test_relative_paths_start_at_data_dir(save, tmp_path):
    save(x=PICTURES)
    assert len(data.load("npz:set.npz", split="train", data_dir=str(tmp_path))) == 22


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        (
            {"z": PICTURES},
            r"needs an array named x, images, x_train or arr_0; the file holds z uint8\[25, 6, 5, 3\]",
        ),
        ({}, "needs an array named .*; the file holds nothing"),
        ({"x": np.zeros((4, 3, 5, 8), np.float32)}, r"channels last.*holds x float32\[4, 3, 5, 8\]"),
        ({"x": np.zeros((2, 2, 2, 2, 2), np.float32)}, r"must be uint8 pictures.*holds x float32\[2, 2, 2, 2, 2\]"),
        ({"x": np.full((4, 6, 5), 300, np.uint16)}, "`bits` is None; array x has 16-bit grays up to 300"),
        ({"x": PICTURES.transpose(0, 3, 1, 2)}, "1 or 3"),
        ({"x": np.zeros((4, 3), np.int64)}, r"holds x int64\[4, 3\]"),
        ({"x": PICTURES[:0]}, "array x is empty"),
        ({"x": np.array([[1.0, np.nan], [0.0, 0.0]])}, "not finite"),
        (
            {"x": np.array([[1.0, 1e300], [0.0, 0.0]])},
            "array x cannot be used: .* not finite as float32",
        ),
        ({"x": PICTURES[:1]}, "at least two rows"),
        ({"x": PICTURES, "x_train": PICTURES}, "it has x and x_train: one may be there, remove or"),
        ({"images": PICTURES, "y": LABELS, "labels": LABELS}, "it has y and labels: one may be there"),
        ({"x": PICTURES, "y": LABELS[:5]}, "arrays x and y differ in length"),
        ({"x": PICTURES, "y": LABELS.astype(float)}, "array y must hold one integer label"),
        ({"x": PICTURES, "y": LABELS - 1}, "array y must hold one integer label"),
        ({"x": PICTURES, "y": LABELS + 2**31}, "array y must hold one integer label, 0 to 65535"),
        ({"x": np.array([{}, []], dtype=object)}, "array x cannot be read: Object arrays"),
    ],
)
def test_bad_archives(save, arrays, match):
    with pytest.raises(ValueError, match=match) as error:
        data.load(save(**arrays), split="train")
    assert "\n" not in str(error.value)


def test_vectors_have_no_image_size(save):
    name = save(x=np.zeros((4, 2), np.float32))
    with pytest.raises(
        ValueError, match=r"`image_size`, `channels` and `bits` must be None: .* holds floats, not pictures"
    ):
        data.load(name, split="train", image_size=8)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*nothing\.npz"):
        data.load(f"npz:{tmp_path}/nothing.npz", split="train")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"is not a readable \.npz archive"):
        data.load(f"npz:{tmp_path}/text.npz", split="train")
    (tmp_path / "empty.npz").touch()
    with pytest.raises(ValueError, match=r"is not a readable \.npz archive"):
        data.load(f"npz:{tmp_path}/empty.npz", split="train")
    with pytest.raises(ValueError, match=r"there is no file .*: write folder:"):
        data.load(f"npz:{tmp_path}", split="train")
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        archive.writestr("0.png", b"of no matter")
    message = (
        r"it needs an array .*: for an archive of pictures write folder:.*flat\.zip; .* holds 0.png \(not an array"
    )
    with pytest.raises(ValueError, match=message):
        data.load(f"npz:{tmp_path}/flat.zip", split="train")
    np.savez(tmp_path / "cut.npz", x=PICTURES)
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"is not a readable \.npz archive"):
        data.load(f"npz:{tmp_path}/cut.npz", split="train")
    (tmp_path / "flip.npz").write_bytes(whole[:300] + bytes([whole[300] ^ 255]) + whole[301:])
    with pytest.raises(ValueError, match="array x cannot be read"):
        data.load(f"npz:{tmp_path}/flip.npz", split="train")
    with pytest.raises(ValueError, match="must be the URL of a file that exists"):
        data.load("npz:memory://nowhere/x.npz", split="train")


def declare(path, header, content=b"", name="x.npy", **options):
    """An archive whose array has any header in front of any bytes."""
    text = header.encode("latin1") if isinstance(header, str) else repr(header).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w", **options) as member:
        member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n")
        for block in content if isinstance(content, list) else [content]:
            member.write(block)
    return f"npz:{path}"


def header(shape, descr="|u1", fortran_order=False):
    return {"descr": descr, "fortran_order": fortran_order, "shape": shape}


def peak_of(call):
    """What the call allocates at most, in bytes, as far as Python and NumPy know."""
    tracemalloc.start()
    try:
        call()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", ["x.npy", "junk.npy"])
def test_an_archive_that_would_fill_the_memory_is_not_decompressed(tmp_path, name):
    """128 MiB in 128 KiB: neither as the array that is wanted nor, for an error's sake, as another."""
    path = declare(tmp_path / "bomb.npz", header((2**21, 8, 8, 1)), [bytes(2**20)] * 128, name)

    def load():
        message = r"it holds 0.125 GiB, more than the 0.0625 allowed" if name == "x.npy" else "holds junk uint8"
        with pytest.raises(UserError, match=message):
            data.load(path, split="train", memory_limit_bytes=2**26)

    assert peak_of(load) < 2**24


LIES = {
    "more than there is": header((2**20, 8, 8, 1)),
    "more than there can be": header((10**23, 2)),
    "less than there is": header((1, 2)),
    "a negative length": header((-1, 8, 8, 1)),
    "a truth value": header((True, 2), "<f4"),
    "an unknown type": header((3, 2), "X99"),
    "no dictionary": "[1, 2",
    "deep parentheses": "(" * 9000,
    "many digits": "9" * 8000,
    "nothing": "",
}


@pytest.mark.parametrize("text", LIES.values(), ids=LIES)
def test_headers_that_lie_are_one_line(tmp_path, text):
    path = declare(tmp_path / "lie.npz", text, bytes(24))
    with pytest.raises(UserError, match="array x cannot be read") as caught:
        data.load(path, split="train")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_encryption_unknown_compression_and_pipes_are_one_line(tmp_path):
    np.savez(tmp_path / "x.npz", x=PICTURES)
    whole = (tmp_path / "x.npz").read_bytes()
    local, central = whole.find(b"PK\x03\x04"), whole.find(b"PK\x01\x02")
    for place, value in ((6, 1), (8, 99)):  # flags, method
        other = bytearray(whole)
        other[local + place] |= value
        other[central + place + 2] |= value
        (tmp_path / "other.npz").write_bytes(other)
        with pytest.raises(UserError, match="array x cannot be read"):
            data.load(f"npz:{tmp_path / 'other.npz'}", split="train")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match="there is no file"):
        data.load(f"npz:{tmp_path / 'pipe.npz'}", split="train")


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "a\0b", "a" * 300, "x" * 5000])
@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_paths_that_cannot_be_are_one_line(kind, text):
    with pytest.raises(UserError, match=r"`name` is '.*the path cannot be used|there is no (file|folder)"):
        data.load(f"{kind}:{text}", split="train")


def test_fortran_order_and_every_compression(tmp_path):
    x = np.asfortranarray(np.arange(60, dtype=np.float64).reshape(20, 3))
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "x.npz", x_train=x, x_test=x[:4])
        for split, want in (("train", x), ("test", x[:4])):
            np.testing.assert_array_equal(data.load(f"npz:{tmp_path / 'x.npz'}", split=split).source, want)


RNG = np.random.default_rng(5)


@pytest.mark.parametrize(
    ("x", "options", "kind", "shape"),
    [
        (RNG.normal(size=(20, 3)), {}, "vector", (3,)),
        (RNG.normal(size=20), {}, "vector", (1,)),
        (RNG.integers(-9, 9, (20, 7)), {"kind": "vector"}, "vector", (7,)),
        (RNG.normal(size=(20, 16)), {"kind": "signal"}, "signal", (16, 1)),
        (RNG.normal(size=(20, 16, 2)), {}, "signal", (16, 2)),
        (RNG.normal(size=(20, 4, 6, 5)), {}, "array", (4, 6, 5)),
        (RNG.normal(size=(20, 4, 6)), {"kind": "array"}, "array", (4, 6, 1)),
        (RNG.integers(0, 1 << 16, (20, 4, 6), dtype=np.uint16), {"kind": "array"}, "array", (4, 6, 1)),
    ],
)
@pytest.mark.parametrize("single", [True, False])
def test_kinds_by_shape_type_and_option(tmp_path, x, options, kind, shape, single):
    path = tmp_path / ("x.npy" if single else "x.npz")
    np.save(path, x) if single else np.savez(path, x=x)
    parts = [data.load(f"npz:{path}", split=s, **options) for s in ("train", "test")]
    assert [(p.kind, p.shape, p.source.dtype, len(p)) for p in parts] == [
        (kind, shape, np.float32, 18),
        (kind, shape, np.float32, 2),
    ]
    assert [p.integers for p in parts] == [x.dtype.kind in "iu"] * 2
    rows = {r.tobytes() for p in parts for r in p.source}
    assert rows == {r.astype(np.float32).tobytes() for r in x}


def test_integers_that_float32_rounds_are_not_taken_for_discrete(save):
    name = save(x=np.full((4, 2), (1 << 24) + 1))
    assert not data.load(name, split="train", kind="vector").integers


def test_float_and_sixteen_bit_pictures_become_eight_bits(save):
    x = RNG.random((20, 4, 6, 3))
    found = data.load(save(x=x, x_test=x), split="test", kind="picture")
    assert found.kind == "picture"
    np.testing.assert_array_equal(found.source, np.rint(255 * x))
    y = RNG.integers(0, 1 << 12, (20, 4, 6), dtype=np.uint16)
    found = data.load(save(x=y, x_test=y), split="test", bits=12)
    np.testing.assert_array_equal(found.source[..., 0], y >> 4)
    with pytest.raises(UserError, match="array x has floating-point pixels from -"):
        data.load(save(x=x - 0.5), split="train", kind="picture")
    with pytest.raises(UserError, match=r"must hold numbers of shape \[N, length\] or \[N, length, C\] for data.kind"):
        data.load(save(x=x), split="train", kind="signal")


def test_a_file_in_a_bucket():
    files = fsspec.filesystem("memory")
    buffer = io.BytesIO()
    np.savez(buffer, x=PICTURES, y=LABELS)
    files.pipe_file("/set.npz", buffer.getvalue())
    try:
        found = data.load("npz:memory://set.npz", split="train")
        assert found.shape == (6, 5, 3) and found.num_classes == 7 and len(found) == 22
    finally:
        files.rm("/set.npz")
