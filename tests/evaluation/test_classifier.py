"""A classifier learns its data's labels, the same each time, and is kept."""

import dataclasses

import jax
import numpy as np
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import data
from hold_jax.data.dataset import array_dataset
from hold_jax.errors import UserError
from hold_jax.evaluation import classifier as module
from hold_jax.evaluation.classifier import classifier
from hold_jax.evaluation.feature_network import distance_of
from hold_jax.evaluation.features import features_of

TRAIN, TEST = data.load("digits", split="train"), data.load("digits", split="test")
EIGHT = small.devices(8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A classifier trained for a fifth of its steps, and its folder."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEPS", module.STEPS // 5)
        return classifier(TRAIN, folder), folder


@pytest.fixture
def untrainable(monkeypatch):
    def never(*args):
        raise AssertionError("it was trained")

    monkeypatch.setattr(module, "_train", never)


def accuracy(network, examples):
    logits = features_of(network, examples, EIGHT).logits
    return float(np.mean(logits.argmax(axis=1) == examples.labels))


@pytest.mark.slow
def test_it_tells_held_out_digits_apart(digits):
    network, _ = digits
    right = accuracy(network, TEST)
    print(f"accuracy {right:.4f}")
    assert right > 0.95


def test_features_are_bounded_whatever_comes(digits):
    network, _ = digits
    noise = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    values = features_of(network, array_dataset("noise", "test", noise, None, 0), EIGHT).values
    assert values.shape == (64, 64) and np.abs(values).max() <= 1 and values.std() > 0.1


def test_it_is_trained_once_and_kept(digits, untrainable):
    network, folder = digits
    assert [path.name for path in folder.iterdir()] == ["classifier.npz"]  # no temporary file is left
    again = classifier(TRAIN, folder)
    small.assert_bitwise(again.params, network.params)
    assert again.identity == network.identity
    for a, b in zip(features_of(again, TEST, EIGHT), features_of(network, TEST, EIGHT), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_again_gives_the_same_bits_and_other_weights_have_another_name(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 5)
    first, second = (classifier(TRAIN, tmp_path / name) for name in ("a", "b"))
    small.assert_bitwise(second.params, first.params)
    assert second.identity == first.identity != digits[0].identity


@pytest.mark.slow
def test_it_learns_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 60)
    network = classifier(small.points(2000), tmp_path)
    # Centers are 0.77 apart, 7.7 standard deviations: few points lie across.
    assert accuracy(network, small.points(1000, "test")) > 0.99
    assert features_of(network, small.points(100), EIGHT).values.shape == (100, 64)


def test_a_write_that_fails_leaves_nothing_that_would_be_read(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_train", lambda *args: digits[0].params)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hold_jax.runtime.storage.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            classifier(TRAIN, tmp_path)
    assert not (tmp_path / "classifier.npz").exists()
    assert classifier(TRAIN, tmp_path).identity == digits[0].identity
    assert (tmp_path / "classifier.npz").exists()


DAMAGE = {
    "empty": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "cut at its end": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "one byte turned over": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "text": lambda data: b"hello",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_and_kept(digits, tmp_path, untrainable, damage):
    whole = (digits[1] / "classifier.npz").read_bytes()
    path = tmp_path / "classifier.npz"
    path.write_bytes(damage(whole))
    with pytest.raises(UserError, match=f"^{path} cannot be read .*; delete it, and it is trained again") as caught:
        classifier(TRAIN, tmp_path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == damage(whole)


@pytest.mark.slow
def test_the_file_of_other_data_is_replaced(digits, tmp_path, monkeypatch):
    """Of another shape, of other classes, of other pictures under the same name, of no digest, of no classifier."""
    monkeypatch.setattr(module, "STEPS", 2)
    path = tmp_path / "classifier.npz"
    others = [
        data.load("digits", split="train", image_size=4),
        array_dataset("digits", "train", TRAIN.source, TRAIN.labels % 3, 3),
        array_dataset("digits", "train", TRAIN.source[::-1], TRAIN.labels[::-1], 10),
    ]
    for other in others:
        path.write_bytes((digits[1] / "classifier.npz").read_bytes())
        network = classifier(other, tmp_path)
        assert network.identity != digits[0].identity
        assert classifier(other, tmp_path).identity == network.identity
    arrays = dict(np.load(digits[1] / "classifier.npz"))
    for old in ({k: v for k, v in arrays.items() if k != "data digest"}, {"mu": np.zeros(3), "sigma": np.eye(3)}):
        np.savez(path, **old)
        assert classifier(others[2], tmp_path).identity == network.identity


def test_vectors_of_any_scale_are_learned_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 60)
    points = small.points(2000)
    far = dataclasses.replace(points, source=(points.source * (50, 0.1) + (1000, -3)).astype(np.float32))
    assert accuracy(classifier(far, tmp_path), far) > 0.99


@pytest.mark.parametrize("num_classes", [0, 1])
def test_data_without_labels_are_refused_before_training(tmp_path, untrainable, num_classes):
    labels = np.zeros(1500, np.int32) if num_classes else None
    plain = array_dataset("plain", "train", TRAIN.source, labels, num_classes)
    with pytest.raises(UserError, match=r"`eval.features` has a classifier, but 'plain' has no labels"):
        classifier(plain, tmp_path)
    assert not list(tmp_path.iterdir())


def test_its_name_and_what_its_distance_is_called(digits):
    network, _ = digits
    assert (network.name, distance_of(network.name)) == ("classifier", "frechet_classifier_distance")
    assert network.identity.startswith("classifier ") and len(jax.tree.leaves(network.params)) == 8
