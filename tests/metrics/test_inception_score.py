import numpy as np
import pytest
import scipy.special

from hold_jax.errors import UserError
from hold_jax.metrics.inception_score import inception_score


def _logits(n, k, seed, scale=3.0):
    return (scale * np.random.default_rng(seed).standard_normal((n, k))).astype(np.float32)


def _torch_fidelity(logits, splits):
    # isc_features_to_metric without its shuffling.
    logits = logits.astype(np.float64)
    p, log_p = scipy.special.softmax(logits, axis=1), scipy.special.log_softmax(logits, axis=1)
    scores = []
    n = len(logits)
    for i in range(splits):
        rows = slice(i * n // splits, (i + 1) * n // splits)
        q = p[rows].mean(axis=0, keepdims=True)
        scores.append(np.exp((p[rows] * (log_p[rows] - np.log(q))).sum(axis=1).mean()))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize(("n", "k", "splits"), [(1000, 10, 10), (103, 7, 10), (50, 1008, 1), (20, 3, 20)])
@pytest.mark.parametrize("block", [1, 7, 4096])
def test_score_equals_torch_fidelity_on_rows_in_its_order(n, k, splits, block, monkeypatch):
    monkeypatch.setattr("hold_jax.metrics.inception_score._BLOCK_ROWS", block)
    logits = _logits(n, k, 0)
    shuffled = logits[np.random.RandomState(2020).permutation(n)]
    got = inception_score(shuffled, num_splits=splits, seed=None, num_resamples=2)
    mean, std = _torch_fidelity(shuffled, splits)
    assert got.mean == pytest.approx(mean, rel=1e-12)
    assert got.std == pytest.approx(std, rel=1e-9, abs=1e-12)
    assert got.whole.value == pytest.approx(_torch_fidelity(logits, 1)[0], rel=1e-12)


def test_undecided_classifier_scores_one():
    got = inception_score(np.full((100, 12), 3.0))
    assert (got.mean, got.std, *got.whole) == pytest.approx((1.0, 0.0, 1.0, 1.0, 1.0), abs=1e-12)


def test_one_sure_class_scores_one():
    logits = np.zeros((100, 5))
    logits[:, 2] = 1000.0
    got = inception_score(logits)
    assert (got.mean, got.std) == (1.0, 0.0)


@pytest.mark.parametrize("k", [2, 10, 1008])
def test_sure_of_every_class_in_turn_scores_their_number(k):
    # 1000 is far above where exp overflows.
    logits = np.tile(1000.0 * np.eye(k), (10, 1))
    got = inception_score(logits, seed=None, num_resamples=2)
    assert got.mean == pytest.approx(k, rel=1e-12)
    assert got.std == pytest.approx(0.0, abs=1e-9)
    assert got.whole.value == pytest.approx(k, rel=1e-12)


def test_two_answers_give_the_mutual_information():
    # p(y|x) is (a, 1 - a) or (1 - a, a): log score = log 2 - H(a).
    a = 0.9
    logits = np.tile(np.log([[a, 1 - a], [1 - a, a]]), (50, 1))
    want = np.exp(np.log(2.0) + a * np.log(a) + (1 - a) * np.log(1 - a))
    assert inception_score(logits, num_splits=5, seed=None).mean == pytest.approx(want, rel=1e-12)


def test_a_shift_of_a_row_changes_nothing():
    logits = _logits(60, 9, 1).astype(np.float64)
    shifted = logits + np.random.default_rng(2).uniform(-800, 800, (60, 1))
    assert inception_score(shifted).mean == pytest.approx(inception_score(logits).mean, rel=1e-10)


def test_shuffling_mends_samples_made_class_by_class():
    logits = 20.0 * np.repeat(np.eye(10), 500, axis=0)
    assert inception_score(logits, seed=None).mean == pytest.approx(1.0, abs=1e-3)
    got = inception_score(logits)
    assert got.mean == pytest.approx(10.0, rel=0.02)
    assert inception_score(logits) == got
    assert inception_score(logits, seed=1) != got


def test_interval_is_the_spread_of_repeated_draws():
    # Scores of 200 draws of 500: the interval's half width is 1.96 of their standard deviations.
    logs, widths = [], []
    for seed in range(200):
        whole = inception_score(_logits(500, 10, 100 + seed), num_splits=1, num_resamples=50).whole
        logs.append(np.log(whole.value))
        widths.append(np.log(whole.high) - np.log(whole.low))
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(logs, ddof=1), rel=0.15)


def test_percentiles_of_a_bootstrap_would_miss_the_score_that_they_are_about():
    # Why there are none.
    logits = _logits(500, 200, 3, scale=10.0)
    whole = inception_score(logits, num_splits=1).whole
    rng = np.random.default_rng(4)
    resampled = [_torch_fidelity(logits[rng.integers(0, 500, 500)], 1)[0] for _ in range(100)]
    assert max(resampled) < whole.value
    assert whole.low < whole.value < whole.high


def test_errors_name_the_fault():
    logits = _logits(5, 3, 5)
    with pytest.raises(UserError, match="`num_splits` is 10; it must be from 1 to 5"):
        inception_score(logits)
    with pytest.raises(UserError, match="`num_splits` is 0"):
        inception_score(logits, num_splits=0)
    with pytest.raises(UserError, match="`num_resamples` is 1; it must be at least 2"):
        inception_score(logits, num_splits=1, num_resamples=1)
    with pytest.raises(UserError, match=r"`logits.shape` is \(3,\)"):
        inception_score(logits[0], num_splits=1)
    with pytest.raises(UserError, match=r"`logits` .* not finite in 1 of its 5 rows"):
        inception_score(np.where(np.arange(5)[:, None] == 2, np.nan, logits), num_splits=1)
