"""`npz:PATH`."""

import numpy as np
import pytest

from hold_jax import data

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
            r"needs an array named x, images, x_train or arr_0; the archive holds z uint8\[25, 6, 5, 3\]",
        ),
        ({}, "needs an array named .*; the archive holds nothing"),
        ({"x": PICTURES.astype(np.float32)}, r"must be uint8 pictures.*holds x float32\[25, 6, 5, 3\]"),
        ({"x": PICTURES.transpose(0, 3, 1, 2)}, "channels last"),
        ({"x": np.zeros((4, 3), np.int64)}, r"holds x int64\[4, 3\]"),
        ({"x": PICTURES[:0]}, "array x is empty"),
        ({"x": np.array([[1.0, np.nan], [0.0, 0.0]])}, "not finite"),
        ({"x": PICTURES[:1]}, "two rows at least"),
        ({"x": PICTURES, "y": LABELS[:5]}, "arrays x and y differ in length"),
        ({"x": PICTURES, "y": LABELS.astype(float)}, "array y must hold one integer label"),
        ({"x": PICTURES, "y": LABELS - 1}, "array y must hold one integer label"),
        ({"x": np.array([{}, []], dtype=object)}, "array x cannot be read: Object arrays"),
    ],
)
def test_bad_archives(save, arrays, match):
    with pytest.raises(ValueError, match=match) as error:
        data.load(save(**arrays), split="train")
    assert "\n" not in str(error.value)


def test_vectors_have_no_image_size(save):
    name = save(x=np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match=r"`image_size` and `channels` must be None: .* holds vectors"):
        data.load(name, split="train", image_size=8)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*nothing\.npz"):
        data.load(f"npz:{tmp_path}/nothing.npz", split="train")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="NumPy cannot read"):
        data.load(f"npz:{tmp_path}/text.npz", split="train")
    (tmp_path / "empty.npz").touch()
    with pytest.raises(ValueError, match="NumPy cannot read"):
        data.load(f"npz:{tmp_path}/empty.npz", split="train")
    np.save(tmp_path / "single.npy", PICTURES)
    with pytest.raises(ValueError, match="holds a single array"):
        data.load(f"npz:{tmp_path}/single.npy", split="train")
    np.savez(tmp_path / "cut.npz", x=PICTURES)
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="NumPy cannot read"):
        data.load(f"npz:{tmp_path}/cut.npz", split="train")
    (tmp_path / "flip.npz").write_bytes(whole[:300] + bytes([whole[300] ^ 255]) + whole[301:])
    with pytest.raises(ValueError, match="array x cannot be read"):
        data.load(f"npz:{tmp_path}/flip.npz", split="train")
    with pytest.raises(ValueError, match="only local paths"):
        data.load("npz:gs://bucket/x.npz", split="train")
