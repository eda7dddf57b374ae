"""Statistics survive the file, say of what they are, and are computed once."""

import dataclasses
import json
import re

import numpy as np
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax.data.dataset import array_dataset
from hold_jax.errors import UserError
from hold_jax.evaluation import reference
from hold_jax.evaluation.feature_network import Features
from hold_jax.evaluation.pixels import pixels
from hold_jax.evaluation.reference import About, Reference
from hold_jax.metrics.frechet import frechet_distance, moments

PIXELS, DEVICES = pixels(), small.devices(8)
RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((50, 3), dtype=np.float32)
ABOUT = About("digits", "train", 50, (8, 8, 1), "pixels", "who knows", "0123")
ABOUT_JSON = json.loads(json.dumps(dataclasses.asdict(ABOUT)))
PICTURES = array_dataset("my pictures:1", "train", RNG.integers(0, 256, (30, 2, 2, 1), dtype=np.uint8), None, 0)


def kept(features=FEATURES, about=ABOUT):
    return Reference(moments(FEATURES), features, about)


def assert_same(got, want):
    """Every bit."""
    assert got.about == want.about
    assert got.moments.count == want.moments.count
    for a, b in (
        (got.moments.mean, want.moments.mean),
        (got.moments.cov, want.moments.cov),
        (got.features, want.features),
    ):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("features", [FEATURES, None], ids=["features", "moments alone"])
def test_statistics_survive_the_file_bitwise(tmp_path, features):
    path = tmp_path / "a" / "b.npz"
    kept(features).save(path)
    assert_same(reference.load(path), kept(features))
    assert [p.name for p in path.parent.iterdir()] == ["b.npz"]  # no temporary file is left


def test_pytorch_fid_reads_our_files(tmp_path):
    kept().save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:  # as its compute_statistics_of_path does
        mu, sigma = file["mu"][:], file["sigma"][:]
    np.testing.assert_allclose(mu, FEATURES.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(sigma, np.cov(FEATURES.astype(np.float64), rowvar=False), rtol=1e-12)


def test_a_file_of_pytorch_fid_gives_the_distance(tmp_path):
    mu, sd = np.array([1.0, -2.0, 0.5]), np.array([1.0, 2.0, 0.5])
    np.savez_compressed(tmp_path / "x.npz", mu=mu, sigma=np.diag(sd**2))
    found = reference.load(tmp_path / "x.npz")
    assert found.features is None and found.about is None
    # Commuting covariances: |m|^2 + sum (sd - sd')^2.
    other = reference.load(tmp_path / "x.npz").moments
    shifted = dataclasses.replace(other, mean=mu + 2.0, cov=np.diag((sd + 1.0) ** 2))
    assert frechet_distance(found.moments, shifted) == pytest.approx(3 * 4.0 + 3 * 1.0, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_file_of_score_sde_gives_features_too(tmp_path, dtype):
    pool = FEATURES.astype(dtype)
    np.savez_compressed(tmp_path / "x.npz", pool_3=pool, logits=np.zeros((50, 2)))
    found = reference.load(tmp_path / "x.npz")
    assert found.about is None and found.features.dtype == np.float32 and found.moments.count == 50
    np.testing.assert_array_equal(found.features, pool.astype(np.float32))
    np.testing.assert_allclose(found.moments.mean, pool.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.moments.cov, np.cov(pool.astype(np.float64), rowvar=False), rtol=1e-11)


def broken(data, start=0.25, stop=0.75):
    """The middle of the file turned over."""
    a, b = int(start * len(data)), int(stop * len(data))
    return data[:a] + bytes(x ^ 0x5A for x in data[a:b]) + data[b:]


DAMAGE = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "a tenth": lambda data: data[: len(data) // 10],
    "cut at its end": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "turned over": broken,
    "text": lambda data: b"mu, sigma",
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, damage, save):
    path = tmp_path / "x.npz"
    save(path, pool_3=RNG.standard_normal((500, 3)))
    path.write_bytes(damage(path.read_bytes()))
    refused(path, "cannot be read: ")


def refused(path, message):
    with pytest.raises(UserError) as caught:
        reference.load(path)
    assert str(caught.value).startswith(f"`eval.stats` {path} ") and "\n" not in str(caught.value)
    assert re.search(message, str(caught.value))


GOOD = {"mu": np.zeros(3), "sigma": np.eye(3)}
OTHER = {
    "other names": ({"x": np.zeros(3), "y": np.eye(3)}, "it has the arrays x, y; it must be a file of --mode=stats"),
    "no mean": ({"sigma": np.eye(3)}, "has the arrays sigma; it must be"),
    "pickled": (GOOD | {"mu": np.array([{}])}, "cannot be read: Object arrays are not read"),
    "pickled features": ({"pool_3": np.array([{}])}, "cannot be read: Object arrays are not read"),
    "scalars": ({"mu": 1.0, "sigma": 2.0}, "cannot be read"),
    "words": (GOOD | {"mu": np.array(["a", "b", "c"])}, "cannot be read"),
    "sizes that differ": (GOOD | {"sigma": np.eye(4)}, r"`cov.shape` is \(4, 4\); it must be \(3, 3\)"),
    "NaN": (GOOD | {"mu": np.full(3, np.nan)}, "`mean` has values that are not finite"),
    "features of pictures": ({"pool_3": np.zeros((5, 1, 1, 3))}, r"`features.shape` is \(5, 1, 1, 3\)"),
    "about nothing": (GOOD | {"about": np.array("{")}, "cannot be read"),
    "about something else": (GOOD | {"about": np.array('{"shape": [2]}')}, "cannot be read"),
    "about another type": (GOOD | {"about": np.array(json.dumps(ABOUT_JSON | {"count": "5"}))}, "its `about` is not"),
    "about too deep": (GOOD | {"about": np.array("[" * 100_000)}, "cannot be read"),
    "a count of two": (GOOD | {"count": np.array([1, 2])}, "its `count` is no whole number"),
    "features of another number": (
        GOOD | {"count": np.array(5), "features": np.zeros((5, 2), np.float32)},
        r"its `features` are not .*\(5, 3\)",
    ),
    "features that are NaN": (
        GOOD | {"count": np.array(5), "features": np.full((5, 3), np.nan, np.float32)},
        "its `features` are not",
    ),
    "about a list": (GOOD | {"about": np.array("[1]")}, "cannot be read"),
}


@pytest.mark.parametrize(("arrays", "message"), OTHER.values(), ids=OTHER)
def test_a_file_of_something_else_is_one_line_that_names_it(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    refused(tmp_path / "x.npz", message)


def test_a_single_array_and_no_file_at_all_are_named(tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, FEATURES)
    refused(tmp_path / "x.npz", "cannot be read")
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(UserError, match=f"`eval.stats` is '{path}': no such file; make it with --mode=stats"):
            reference.load(path)


def _three(params, x):
    """As many features as `FEATURES` has, whatever the data."""
    return Features(x.reshape(len(x), -1)[:, :3].astype(np.float32), None)


def test_what_differs_is_named(tmp_path):
    network = dataclasses.replace(PIXELS, identity="mine", apply=_three)
    data = PICTURES
    fits = reference.about(network, data)
    assert fits == About("my pictures:1", "train", 30, (2, 2, 1), "pixels", "mine", PICTURES.digest)
    # The split and the number of examples may differ: a test split is compared with training data.
    reference.require_fits(kept(about=dataclasses.replace(fits, split="test", count=7)), tmp_path, network, data)
    reference.require_fits(kept(about=None), tmp_path, network, data)
    for name, other, here in (
        ("data", "digits", "'my pictures:1'"),
        ("shape", (4, 4, 1), "(2, 2, 1)"),
        ("network", "inception", "'pixels'"),
        ("identity", "another's", "'mine'"),
    ):
        with pytest.raises(UserError) as caught:
            reference.require_fits(kept(about=dataclasses.replace(fits, **{name: other})), tmp_path, network, data)
        assert str(caught.value).startswith(
            f"`eval.stats` {tmp_path} was made with {name} = {other!r}; this evaluation has {here}: make it again"
        )


def test_a_foreign_file_of_another_network_is_known_by_its_number_of_features(tmp_path):
    for data in (PICTURES, small.points()):
        wrong = Reference(moments(FEATURES), None, None)
        has = 4 if data is PICTURES else 2
        with pytest.raises(UserError, match=rf"`eval.stats` .* is of 3 features; pixels has {has}: choose the eval"):
            reference.require_fits(wrong, tmp_path, PIXELS, data)
        right = Reference(moments(np.ones((5, has)) * np.arange(5)[:, None]), None, None)
        reference.require_fits(right, tmp_path, PIXELS, data)


@pytest.fixture
def computed(monkeypatch):
    """What was computed, as (network's identity, number of examples)."""
    found, features_of = [], reference.features_of

    def counted(network, data, *args, **options):
        found.append((network.identity, len(data)))
        return features_of(network, data, *args, **options)

    monkeypatch.setattr(reference, "features_of", counted)
    return found


def test_statistics_are_those_of_the_features(capsys):
    found = reference.compute(PIXELS, PICTURES, DEVICES)
    x = PICTURES.source.reshape(30, 4) / 127.5 - 1
    np.testing.assert_allclose(found.features, x, atol=1e-7)
    assert found.moments.count == 30
    np.testing.assert_allclose(found.moments.mean, x.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(found.moments.cov, np.cov(x, rowvar=False), atol=1e-7)
    assert found.about == reference.about(PIXELS, PICTURES)
    assert capsys.readouterr().err == ""  # it takes less than half a minute


def test_statistics_are_computed_once_and_again_for_another_network_or_number(tmp_path, computed):
    first = reference.prepare(PIXELS, PICTURES, tmp_path, DEVICES)
    path = reference.stats_path(tmp_path, PIXELS, PICTURES)
    before = path.read_bytes()
    assert_same(reference.prepare(PIXELS, PICTURES, tmp_path, DEVICES), first)
    assert computed == [(PIXELS.identity, 30)] and path.read_bytes() == before

    trained_again = dataclasses.replace(PIXELS, identity="other weights")
    found = reference.prepare(trained_again, PICTURES, tmp_path, DEVICES)
    assert found.about.identity == "other weights" and computed[1:] == [("other weights", 30)]
    assert_same(reference.load(path), found)  # of which there is one

    fewer = array_dataset(PICTURES.name, "train", PICTURES.source[:20], None, 0)
    found = reference.prepare(trained_again, fewer, tmp_path, DEVICES)
    assert found.moments.count == 20 and computed[2:] == [("other weights", 20)]
    np.testing.assert_array_equal(found.features, first.features[:20])


def test_statistics_of_other_pictures_under_the_same_name_are_computed_again(tmp_path, computed):
    """As many, of the same name: another `data.seed`, another folder in the place of the first."""
    reference.prepare(PIXELS, PICTURES, tmp_path, DEVICES)
    other = array_dataset(PICTURES.name, "train", PICTURES.source[::-1].copy() ^ 1, None, 0)
    found = reference.prepare(PIXELS, other, tmp_path, DEVICES)
    assert len(computed) == 2 and found.about.digest == other.digest != PICTURES.digest
    reference.stats_path(tmp_path, PIXELS, other).write_bytes(b"damaged")
    assert_same(reference.prepare(PIXELS, other, tmp_path, DEVICES), found)
    assert len(computed) == 3


def test_a_file_of_a_version_without_digests_can_still_be_given(tmp_path):
    path = tmp_path / "old.npz"
    about = {name: value for name, value in ABOUT_JSON.items() if name != "digest"}
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), about=np.array(json.dumps(about)))
    assert reference.load(path).about == dataclasses.replace(ABOUT, digest="")


def test_each_network_data_set_and_split_has_a_file_of_its_own(tmp_path):
    test = dataclasses.replace(PICTURES, split="test")
    other = dataclasses.replace(PICTURES, name="tfds:cifar10")
    paths = {
        reference.stats_path(tmp_path, network, data)
        for network in (PIXELS, dataclasses.replace(PIXELS, name="inception"))
        for data in (PICTURES, test, other)
    }
    assert len(paths) == 6
    assert tmp_path / "stats" / "pixels_tfds-cifar10_train.npz" in paths
    assert {path.parent for path in paths} == {tmp_path / "stats"}
