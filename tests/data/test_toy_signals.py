"""Damped sines: their covariances."""

import numpy as np

from hold_jax import data

TIMES, FREQUENCIES = np.arange(64) / 64, ((1, 3), (2, 5), (4, 8))


def covariances():
    """Of each class, (3, 64, 64): exp(-2 (t + t')) sum_f cos(2 pi f (t - t')) + 0.05^2 1[t = t'], over the variance."""
    waves = [sum(np.cos(2 * np.pi * f * (TIMES[:, None] - TIMES)) for f in pair) for pair in FREQUENCIES]
    found = np.exp(-2 * (TIMES[:, None] + TIMES)) * np.stack(waves) + 0.05**2 * np.eye(64)
    return found / (np.trace(found[0]) / 64)


def test_each_class_has_its_covariance():
    num = 60_000
    found = data.load("damped_sines", split="train", size=num)
    assert (found.kind, found.shape, found.num_classes) == ("signal", (64, 1), 3)
    want = covariances()
    for label in range(3):
        x = found.source[found.labels == label, :, 0].astype(np.float64)
        variances = np.diagonal(want[label])
        error = np.sqrt((np.outer(variances, variances) + want[label] ** 2) / len(x))  # of a covariance, Gaussian
        assert np.abs(x.T @ x / len(x) - want[label]).max() < 5.5 * error.max()
        assert np.abs((x.T @ x / len(x) - want[label]) / error).max() < 6


def test_splits_and_seeds_differ():
    sets = [data.load("damped_sines", split=s, size=50, seed=i).source for s in ("train", "test") for i in (0, 1)]
    assert len({x.tobytes() for x in sets}) == 4
    again = data.load("damped_sines", split="test", size=50, seed=1)
    np.testing.assert_array_equal(again.source, sets[3])
