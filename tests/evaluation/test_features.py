"""Features of every example once, in order, the same bits on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax.data.dataset import Dataset, Statistics, array_dataset, measure
from hold_jax.errors import UserError
from hold_jax.evaluation.classifier import Classifier, _apply
from hold_jax.evaluation.feature_network import FeatureNetwork, Features
from hold_jax.evaluation.features import PER_DEVICE, features_of
from hold_jax.evaluation.pixels import pixels

RNG = np.random.default_rng(0)
# On eight devices a batch and a ragged tail, on one device eight batches and a tail.
NUM = 8 * PER_DEVICE + 37
X = RNG.integers(0, 256, (NUM, 8, 8, 1), dtype=np.uint8)
PICTURES = array_dataset("pictures", "test", X, None, 0)
POINTS = RNG.standard_normal((NUM, 5), dtype=np.float32)
W, V = RNG.standard_normal((5, 7), dtype=np.float32), RNG.standard_normal((5, 3), dtype=np.float32)
ONE, EIGHT = small.devices(1), small.devices(8)


def points(x=POINTS):
    return array_dataset("points", "test", x, None, 0)


def _linear(params, x):
    dot = functools.partial(jnp.dot, precision="highest")
    return Features(dot(x, params["w"]), dot(x, params["v"]))


LINEAR = FeatureNetwork("linear", "linear", {"w": W, "v": V}, _linear)


def untrained():
    network = Classifier(10)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    return FeatureNetwork("classifier", "untrained", params, functools.partial(_apply, network, Statistics()))


def assert_bitwise(got, want):
    assert got.dtype == want.dtype == np.float32 and got.shape == want.shape
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_features_and_logits_are_in_order_whatever_fills_the_last_batch(count):
    found = features_of(LINEAR, points(), small.devices(count))
    # Products of five terms in float32.
    np.testing.assert_allclose(found.values, POINTS.astype(np.float64) @ W, atol=1e-5)
    np.testing.assert_allclose(found.logits, POINTS.astype(np.float64) @ V, atol=1e-5)
    assert found.values.dtype == found.logits.dtype == np.float32


@pytest.mark.parametrize("num", [1, PER_DEVICE, PER_DEVICE + 1])
def test_a_set_may_be_smaller_than_a_batch(num):
    found = features_of(LINEAR, points(POINTS[:num]), EIGHT)
    assert_bitwise(found.values, features_of(LINEAR, points(), EIGHT).values[:num])
    assert_bitwise(found.logits, features_of(LINEAR, points(), EIGHT).logits[:num])


def test_pixels_are_the_values_in_the_models_range():
    found = features_of(pixels(), PICTURES, EIGHT)
    np.testing.assert_allclose(found.values, X.reshape(NUM, 64) / 127.5 - 1, atol=1e-7)
    assert found.logits is None
    # Vectors stay as they are.
    assert_bitwise(features_of(pixels(), points(), EIGHT).values, POINTS)


@pytest.mark.parametrize("make", [pixels, untrained])
def test_one_device_gives_the_bits_of_eight(make):
    network = make()
    one, two, eight = (features_of(network, PICTURES, small.devices(count)) for count in (1, 2, 8))
    for found in (two, eight):
        assert_bitwise(found.values, one.values)
        if one.logits is not None:
            assert_bitwise(found.logits, one.logits)
    assert len(np.unique(eight.values, axis=0)) == NUM


def test_an_examples_features_do_not_depend_on_the_others_in_its_batch():
    network, order = untrained(), RNG.permutation(NUM)
    straight = features_of(network, PICTURES, EIGHT)
    mixed = features_of(network, array_dataset("mixed", "test", X[order], None, 0), EIGHT)
    assert_bitwise(mixed.values, straight.values[order])
    assert_bitwise(mixed.logits, straight.logits[order])


def test_sets_of_any_size_share_one_compilation():
    network = FeatureNetwork("linear", "linear", LINEAR.params, lambda p, x: _linear(p, x))
    features_of(network, points(), EIGHT)
    with small.compilations() as found:
        features_of(network, points(POINTS[:100]), EIGHT)
        features_of(network, points(), EIGHT)
    assert not found


class OnDisk:
    def __len__(self):
        return NUM

    def __getitem__(self, i):
        return {"x": POINTS[i], "label": 0}


def test_data_on_disk_give_the_same():
    found = features_of(LINEAR, Dataset("disk", "test", OnDisk(), None, (5,), 0), EIGHT)
    assert_bitwise(found.values, features_of(LINEAR, points(), EIGHT).values)


def test_what_is_done_is_told():
    done = []
    features_of(LINEAR, points(POINTS[: PER_DEVICE + 10]), ONE, tick=done.append)
    assert done == [PER_DEVICE, PER_DEVICE + 10]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_counted_and_refused(value):
    x = POINTS[:70].copy()
    x[3, 1] = x[69, 0] = x[69, 4] = value  # the last example fills up the batch: it counts once
    with pytest.raises(UserError, match="2 of 70 examples of points have pixels features that are not finite"):
        features_of(pixels(), points(x), EIGHT)


def test_values_that_are_no_pictures_are_standardized_by_channel():
    """The distance of data in other units is then the same."""
    x = np.random.default_rng(0).normal(size=(64, 6, 2)).astype(np.float32)
    scaled = (x * np.array([1e4, 1e-3]) + np.array([1e5, -3])).astype(np.float32)
    found = [
        features_of(pixels(measure(data)), data, EIGHT).values
        for data in (array_dataset("signals", "train", a, None, 0) for a in (x, scaled))
    ]
    assert found[0].shape == (64, 12)
    np.testing.assert_allclose(*found, atol=1e-3)
    np.testing.assert_allclose(found[0].reshape(-1, 2).std(axis=0), 1, rtol=1e-5)
    assert len({pixels(measure(array_dataset("s", "train", a, None, 0))).identity for a in (x, scaled)}) == 2
