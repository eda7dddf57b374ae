"""`load` itself, digits and toys."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hold_jax import data
from hold_jax.data import toy


def test_digits_splits_share_nothing_and_cover_all():
    raw = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    train, test = (data.load("digits", split=s) for s in ("train", "test"))
    assert (len(train), len(test), train.shape, train.num_classes) == (1500, 297, (8, 8, 1), 10)
    assert train.source.dtype == np.uint8 and train.is_image and train.in_memory
    both = np.concatenate([train.source, test.source])[..., 0].reshape(1797, -1)
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(raw.reshape(1797, -1), axis=0))
    assert both.max() == 255 and both.min() == 0
    # Every class is in both splits in about its share: a periodic hold-out would miss half of them.
    assert np.bincount(test.labels, minlength=10).min() >= 15
    np.testing.assert_array_equal(data.load("digits", split="test").source, test.source)


def test_digits_labels_belong_to_their_pictures():
    raw = load_digits()
    known = {np.rint(x * 255 / 16).astype(np.uint8).tobytes(): y for x, y in zip(raw.images, raw.target, strict=True)}
    test = data.load("digits", split="test")
    assert all(known[x.tobytes()] == y for x, y in zip(test.source[..., 0], test.labels, strict=True))


def test_digits_resized_to_color():
    dataset = data.load("digits", split="test", image_size=16, channels=3)
    assert dataset.source.shape == (297, 16, 16, 3) and dataset.shape == (16, 16, 3)
    np.testing.assert_array_equal(dataset.source[..., 0], dataset.source[..., 2])
    small = data.load("digits", split="test").source[..., 0].astype(float)
    large = dataset.source[..., 0].astype(float)
    correlation = np.corrcoef(small.ravel(), large.reshape(297, 8, 2, 8, 2).mean(axis=(2, 4)).ravel())[0, 1]
    assert correlation > 0.97


@pytest.mark.parametrize("name", toy.TOYS)
def test_toy_is_standardized_by_its_constants(name):
    num = 400_000
    x = toy.sample(name, num, seed=3)
    assert x.shape == (num, 2) and x.dtype == np.float32
    # Standard errors: 1/sqrt(num) of the mean, below sqrt((kurtosis - 1) / (4 num)) < 1/sqrt(num) of the deviation.
    np.testing.assert_allclose(x.mean(axis=0, dtype=np.float64), 0, atol=5 / np.sqrt(num))
    np.testing.assert_allclose(x.std(axis=0, dtype=np.float64), 1, atol=5 / np.sqrt(num))


def test_roll_moments_agree_with_the_midpoint_rule():
    num = 100_000
    t = np.pi * (1.5 + 3 * (np.arange(num) + 0.5) / num)
    roll = t[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1)
    mean, var = toy._roll_moments()
    np.testing.assert_allclose(mean, roll.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(var, roll.var(axis=0), rtol=1e-6)


@pytest.mark.parametrize("name", toy.TOYS)
def test_toy_splits_and_samples_are_independent_and_reproducible(name):
    train, again, test, other = (
        data.load(name, split=split, size=100, seed=seed).source
        for split, seed in (("train", 0), ("train", 0), ("test", 0), ("train", 1))
    )
    np.testing.assert_array_equal(train, again)
    drawn = {a.tobytes() for a in (train, test, other, toy.sample(name, 100, 0), toy.sample(name, 100, 1))}
    assert len(drawn) == 5
    assert (len(data.load(name, split="train")), len(data.load(name, split="test"))) == (50_000, 10_000)


def test_cld_s_rolls_are_its_recipe():
    # A roll of scikit-learn's make_swiss_roll(noise=0.2), columns 0 and 2, times 0.01, at the origin and at +-0.8.
    datasets = pytest.importorskip("sklearn.datasets")
    roll = 0.01 * datasets.make_swiss_roll(200_000, noise=0.2, random_state=0)[0][:, [0, 2]]
    x, label = _points(data.load("swissroll5", split="train", size=200_000))
    scale = np.sqrt(0.8 * 0.64 + roll.var(axis=0))
    for k, center in enumerate(np.array([[0, 0], [1, 1], [1, -1], [-1, -1], [-1, 1]]) * 0.8):
        ours = x[label == k] * scale
        np.testing.assert_allclose(ours.mean(axis=0), center, atol=3e-3)
        np.testing.assert_allclose(np.cov((ours - center).T), np.cov(roll.T), rtol=0.03, atol=3e-5)
        # Distances from the roll's own center: the shape, not only its moments.
        radii = [np.linalg.norm(a, axis=1) for a in (ours - center + roll.mean(axis=0), roll)]
        np.testing.assert_allclose(*(np.quantile(r, np.linspace(0.05, 0.95, 10)) for r in radii), rtol=0.02)


def test_cld_s_diamond_is_its_recipe():
    x, label = _points(data.load("diamond9", split="train", size=90_000))
    x = x * np.sqrt(1 / 6 + 0.04**2)
    grid = np.array([(a, b) for a in (-0.5, 0.0, 0.5) for b in (-0.5, 0.0, 0.5)])
    centers = grid @ (np.array([[1, -1], [1, 1]]) / np.sqrt(2))
    for k, center in enumerate(centers):
        np.testing.assert_allclose(x[label == k].mean(axis=0), center, atol=2e-3)
        np.testing.assert_allclose(np.cov(x[label == k].T), 0.04**2 * np.eye(2), atol=1e-4)


def _points(dataset):
    """The points and labels of a toy."""
    return np.asarray(dataset.source, np.float64), np.asarray(dataset.labels)


def test_checkerboard_fills_only_the_dark_squares():
    dataset = data.load("checkerboard", split="train", size=20_000)
    square = np.floor(dataset.source.astype(np.float64) * np.sqrt(16 / 12) + 2).astype(int)
    assert ((square.sum(axis=1) % 2) == 0).all()
    cells = {tuple(s) for s in square}
    assert cells == {(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0}
    # A label names one square.
    assert len({(*s, label) for s, label in zip(square.tolist(), dataset.labels, strict=True)}) == 8


def test_swissroll_has_four_rolls_apart():
    dataset = data.load("swissroll", split="train", size=20_000)
    assert dataset.num_classes == 4 and not dataset.is_image and dataset.shape == (2,)
    centers = np.stack([dataset.source[dataset.labels == k].mean(axis=0) for k in range(4)])
    assert {tuple(c) for c in np.sign(centers)} == {(1, 1), (1, -1), (-1, -1), (-1, 1)}
    radius = np.linalg.norm(dataset.source - centers[dataset.labels], axis=1)
    gaps = np.linalg.norm(centers - np.roll(centers, 1, axis=0), axis=1)
    assert 2 * radius.max() < gaps.min() * 1.25 and radius.max() > 0.4


def test_gaussians8_sit_on_a_ring():
    dataset = data.load("gaussians8", split="train", size=20_000)
    centers = np.stack([dataset.source[dataset.labels == k].mean(axis=0) for k in range(8)])
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1 / np.sqrt(0.51), atol=0.03)
    angles = np.sort(np.arctan2(centers[:, 1], centers[:, 0]))
    np.testing.assert_allclose(np.diff(angles), np.pi / 4, atol=0.03)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"name": "digit"}, r"`name` is 'digit' \(did you mean 'digits'\?\); it must be one of: checkerboard, .*tfds:"),
        ({"name": "folder"}, r"did you mean 'folder:'\?"),
        ({"name": "folder:"}, "folder: followed by a name or path"),
        ({"name": "zip:/x"}, "`name` is 'zip:'"),
        ({"name": ""}, "`name` is ''"),
        ({"name": None}, "`name` is None"),
        ({"split": "val"}, "`split` is 'val'; it must be one of: test, train"),
        ({"image_size": 0}, "`image_size` is 0"),
        ({"image_size": 8.0}, "`image_size` is 8.0"),
        ({"channels": 2}, "`channels` is 2; it must be 1, 3 or None"),
        ({"size": 100}, "`size` is 100; the data set 'digits' has no such option"),
        ({"seed": 1}, "`seed` is 1; the data set 'digits' has no such option"),
        ({"name": "swissroll", "image_size": 32}, "`image_size` is 32; the data set 'swissroll' has no such option"),
        ({"name": "swissroll", "size": -5}, "`size` is -5"),
        ({"name": "swissroll", "seed": 2**40}, "`seed` is 1099511627776"),
        ({"memory_limit_bytes": 0}, "`memory_limit_bytes` is 0"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        data.load(**{"name": "digits", "split": "train", **kwargs})


def test_bad_samples():
    with pytest.raises(ValueError, match="must be one of: checkerboard, diamond9, gaussians8, swissroll, swissroll5"):
        toy.sample("moons", 10, 0)
    with pytest.raises(ValueError, match="`num` is 0"):
        toy.sample("swissroll", 0, 0)


def test_sources_made_in_memory_ignore_where_files_lie(tmp_path):
    assert len(data.load("digits", split="test", data_dir=str(tmp_path))) == 297
