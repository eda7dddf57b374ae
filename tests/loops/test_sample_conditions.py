"""Conditions of samples from data and from files."""

import dataclasses

import numpy as np
import pytest
from reference import conditional_gaussian as exact
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import sde
from hold_jax.condition import Condition
from hold_jax.data.dataset import array_dataset
from hold_jax.errors import UserError
from hold_jax.loops import conditions
from hold_jax.loops.generate import generate, pairs

MODEL = exact.model(sde.hold(2), (3,), "vector", dropout=0.1)
VECTOR = exact.in_data_units(np.random.default_rng(0).normal(size=(5, 3))).astype(np.float32)
DATA = dataclasses.replace(array_dataset("v", "test", VECTOR * 2, None, 0), vector=VECTOR)


@pytest.fixture
def save(tmp_path):
    def save_(**arrays):
        np.savez(tmp_path / "given.npz", **arrays)
        return tmp_path / "given.npz"

    return save_


def test_samples_have_the_conditions_of_the_data_in_turn(tmp_path):
    given = conditions.of_data(MODEL, DATA)
    index = np.arange(12)
    found = given.of(index).vector
    assert {tuple(row) for row in found[:5]} == {tuple(row) for row in VECTOR}
    np.testing.assert_array_equal(found, found[index % 5])
    # The order is that of a subset, with which samples are compared.
    np.testing.assert_array_equal(found[:3], DATA.subset(3).vector)


def test_conditions_in_a_file(save):
    given = conditions.of_file(MODEL, save(vector=VECTOR))
    np.testing.assert_array_equal(given.of(np.array([6, 0])).vector, VECTOR[[1, 0]])
    assert given.digest != conditions.of_file(MODEL, save(vector=VECTOR + 1)).digest


@pytest.mark.slow
def test_samples_follow_their_conditions_and_are_kept_with_them(save, tmp_path):
    """Means over many samples of two conditions; a model of one step's error would mix them."""
    far = exact.in_data_units(np.array([[3.0, 0, -3], [-3, 0, 3]], np.float32))
    given = conditions.of_file(MODEL, save(vector=far))
    settings = small.sample_settings(batch_size=64, num_samples=64, num_steps=16, frames=0)
    folder = generate(MODEL, {}, settings, tmp_path, step=1, conditions=given)
    x, kept = np.load(folder / "samples.npz")["x"], np.load(folder / "condition.npz")["vector"]
    np.testing.assert_array_equal(kept, far[np.arange(64) % 2])
    for row in range(2):
        # 32 samples: the standard error of a mean is 0.3 / sqrt 32 = 0.05.
        want = exact.SHIFT + exact.GAIN * (far[row] - exact.CENTER) / exact.SCALE
        np.testing.assert_allclose(x[row::2].mean(axis=0), want, atol=0.25)
    again = small.draw_many(MODEL, {}, settings, small.devices(1), num=10, conditions=given)[0]
    np.testing.assert_allclose(again, x[:10], atol=1e-4)


def test_condition_pictures_are_shown_beside_their_samples():
    x = np.full((3, 4, 4, 3), 200, np.uint8)
    given = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    grid = np.asarray(pairs(given, x).convert("RGB"))
    seen = {int(v) for v in np.unique(grid)}
    assert {0, 1, 2, 200} <= seen
    # Three rows of one pair, or one row of three: a sample is right of its condition, in the same row.
    for value in (0, 1, 2):
        rows, columns = np.nonzero((grid == value).all(axis=-1))
        right = grid[rows[len(rows) // 2], columns.max() + 1 :]
        assert (right == 200).all(axis=-1).any()


WRONG = {
    "nothing": (dict(other=VECTOR), "it must hold arrays named label, picture, vector; it holds other float32"),
    "another size": (dict(vector=VECTOR[:, :2]), r"`sampling.condition.vector` is 'float32\[5, 2\]'; it must be"),
    "not finite": (dict(vector=VECTOR * np.nan), "array vector cannot be used: 5 of its 5 rows"),
    "another length": (dict(vector=VECTOR, label=np.zeros(4, int)), "array vector has 5 rows for 4 examples"),
    "a picture too": (dict(vector=VECTOR, picture=np.zeros((5, 2, 2), np.uint8)), "the network takes no picture"),
    "a wrong name": (dict(picture=VECTOR), "array picture is a vector: name it vector"),
    "labels": (
        dict(vector=VECTOR, label=np.full(5, 7)),
        "it must be 5 integers, classes from 0 to 0",
    ),
    "no rows": (dict(vector=VECTOR[:0]), "array vector cannot be used"),
}


@pytest.mark.parametrize(("arrays", "message"), WRONG.values(), ids=WRONG)
def test_a_file_that_does_not_fit_is_named(save, arrays, message):
    with pytest.raises(UserError, match=message) as caught:
        conditions.of_file(MODEL, save(**arrays))
    assert "\n" not in str(caught.value) and "sampling.condition" in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"`sampling\.condition` is .*; it must be a \.npz file with the arrays"):
        conditions.of_file(MODEL, tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"`sampling.condition` .* cannot be read"):
        conditions.of_file(MODEL, tmp_path / "text.npz")


def test_data_without_the_conditions_of_the_model():
    plain = array_dataset("v", "test", VECTOR, None, 0)
    sure = dataclasses.replace(MODEL, vector_dropout=0.0)
    with pytest.raises(UserError, match=r"`data.condition.vector` is None; it must be an array of floats"):
        conditions.of_data(sure, plain)
    assert conditions.of_data(small.mlp(num_classes=3), plain) is conditions.NONE


def test_arrays_of_different_lengths():
    with pytest.raises(UserError, match=r"`condition` is .*; it must be of one length"):
        conditions.of_arrays(Condition(label=np.zeros(3, np.int32), vector=VECTOR))


def test_the_classes_that_were_drawn_are_kept(tmp_path):
    model = small.mlp(num_classes=3)
    params = small.fresh_state(model, small.optimizer()).params
    settings = small.sample_settings(batch_size=8, num_samples=8, num_steps=2, frames=0, label=2)
    folder = generate(model, params, settings, tmp_path, step=1)
    np.testing.assert_array_equal(np.load(folder / "condition.npz")["label"], np.full(8, 2))
