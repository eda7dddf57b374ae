import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import evaluate as evaluation
from hold_jax.data.dataset import array_dataset
from hold_jax.errors import UserError
from hold_jax.evaluate import EvalSettings, distances, evaluate
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein

MODEL = small.mlp()
TRAIN, TEST = small.points(300), small.points(20, "test")  # a ragged tail: 16 + 4
SETTINGS = dict(batch_size=16, repeats=3, num_samples=None, seed=5)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def loss_of(params, devices=8, test=TEST):
    return evaluation.test_loss(MODEL, small.LOSS, params, test, EvalSettings(**SETTINGS), small.devices(devices))


@pytest.fixture(scope="module")
def directly(params):
    """Every example's loss in a plain loop, the rows that fill up the last batch being zeros."""
    loss = jax.jit(lambda x, key: small.LOSS(MODEL.sde, MODEL.eps_fn(params), x, key))
    each = []
    for i, start in enumerate((0, 16)):
        rows = TEST.source[start : start + 16]
        x = np.zeros((16, 2), np.float32)
        x[: len(rows)] = rows
        keys = jax.random.split(jax.random.fold_in(jax.random.key(5), i), 3)
        each.append(np.mean([np.asarray(loss(x, key), np.float64) for key in keys], axis=0)[: len(rows)] / 2)
    return np.concatenate(each)


def test_the_loss_is_the_mean_over_examples_whatever_fills_the_last_batch(params, directly):
    found = loss_of(params)
    assert found["test_loss"] == pytest.approx(directly.mean(), rel=2e-6)
    assert found["test_loss_error"] == pytest.approx(directly.std(ddof=1) / np.sqrt(20), rel=2e-5)
    assert loss_of(params) == found  # nothing is drawn anew


def test_one_device_gives_the_numbers_of_eight(params):
    one, eight = loss_of(params, 1), loss_of(params)
    assert one["test_loss"] == pytest.approx(eight["test_loss"], rel=2e-6)


def test_one_line_a_time_with_loss_and_distances(params, tmp_path):
    sampling = small.sample_settings()
    results = [
        evaluate(
            MODEL, small.LOSS, params, TEST, EvalSettings(**SETTINGS | {"num_samples": num}), sampling,
            tmp_path, step=step, load_train=lambda: TRAIN,
        )
        for step, num in ((1, None), (2, 8), (3, 0))
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines == results
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line.get("num_samples") for line in lines] == [20, 8, None]
    assert lines[2].keys() == {"step", "test_loss", "test_loss_error"}
    assert len({line["test_loss"] for line in lines}) == 1
    # The floor is that of as many test points as there are samples.
    assert lines[0]["sliced_wasserstein_floor"] == pytest.approx(sliced_wasserstein(TEST.source, TRAIN.source))
    assert lines[1]["sliced_wasserstein_floor"] == pytest.approx(sliced_wasserstein(TEST.source[:8], TRAIN.source))
    assert all(np.isfinite(value) for line in lines for value in line.values())


def test_data_are_read_only_where_samples_are_compared_with_them(params, tmp_path):
    def never():
        raise AssertionError("the training data were read")

    settings = EvalSettings(**SETTINGS | {"num_samples": 0})
    evaluate(MODEL, small.LOSS, params, TEST, settings, small.sample_settings(), tmp_path, step=1, load_train=never)


def test_distances_of_the_test_data_are_the_floor():
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((50, 2)), rng.standard_normal((40, 2))
    found = distances(test, train, test)
    assert found["frechet_raw"] == found["frechet_raw_floor"] > 0
    assert found["sliced_wasserstein"] == found["sliced_wasserstein_floor"] > 0
    far = distances(train + np.array([3.0, 0.0]), train, train)
    assert far["frechet_raw"] == pytest.approx(9.0, rel=1e-6)
    assert far["frechet_raw_floor"] == pytest.approx(0.0, abs=1e-9)
    assert far["sliced_wasserstein"] == pytest.approx(3 / np.sqrt(2), rel=1e-6)
    assert far["sliced_wasserstein_floor"] == 0.0
    in_three = rng.standard_normal((40, 3))
    assert distances(in_three, in_three, in_three).keys() == {"frechet_raw", "frechet_raw_floor"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "`eval.repeats` is 0; it must be 1 or more"),
        ({"num_samples": 1}, "`eval.num_samples` is 1; it must be None, 0, or 2 or more"),
        ({"num_samples": -4}, "`eval.num_samples` is -4"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        EvalSettings(**SETTINGS | changes)


def test_a_batch_that_does_not_divide_is_refused(params):
    settings = EvalSettings(**SETTINGS | {"batch_size": 10})
    with pytest.raises(UserError, match=r"`eval.batch_size` is 10; .* the nearest are 8 and 16"):
        evaluation.test_loss(MODEL, small.LOSS, params, TEST, settings, small.devices(8))


def test_dropout_is_off_and_pictures_are_rescaled():
    model = small.unet(dropout=0.5)
    params = jax.jit(model.init)(jax.random.key(0))
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    test = array_dataset("pictures", "test", x, None, 0)
    seen = []

    def loss(sde, eps_fn, x, key):
        seen.append((x.dtype, x.shape))
        u = jnp.stack([x, x], axis=-2)
        del key
        return jnp.sum(jnp.square(eps_fn(u, jnp.float32(1.0))), axis=(1, 2, 3, 4)) + jnp.sum(x**2, axis=(1, 2, 3))

    settings = EvalSettings(batch_size=8, repeats=1, num_samples=0, seed=0)
    first, second = (
        evaluation.test_loss(model, loss, params, test, settings, small.devices(1))["test_loss"] for _ in range(2)
    )
    assert first == second and set(seen) == {(jnp.dtype("float32"), (8, 8, 8, 1))}
    scaled = x / 127.5 - 1
    assert first > (scaled**2).mean()
