"""Damped sines: their moments, their density, and the likelihood of their exact denoiser in data units."""

import numpy as np

from hold_jax import data
from hold_jax.data import toy_signals


def test_each_class_has_its_covariance():
    num = 60_000
    found = data.load("damped_sines", split="train", size=num)
    assert (found.kind, found.shape, found.num_classes) == ("signal", (64, 1), 3)
    want = toy_signals.covariances()
    np.testing.assert_allclose(np.trace(want, axis1=1, axis2=2), 64, rtol=1e-9)
    for label in range(3):
        x = found.source[found.labels == label, :, 0].astype(np.float64)
        variances = np.diagonal(want[label])
        error = np.sqrt((np.outer(variances, variances) + want[label] ** 2) / len(x))  # of a covariance, Gaussian
        assert np.abs(x.T @ x / len(x) - want[label]).max() < 5.5 * error.max()
        assert np.abs((x.T @ x / len(x) - want[label]) / error).max() < 6


def test_the_density_integrates_to_the_entropy_of_gaussians():
    """The classes overlap little: the entropy is the mean of theirs plus the logarithm of 3, up to the overlap."""
    x = data.load("damped_sines", split="test", size=4000).source
    _, log_dets = np.linalg.slogdet(toy_signals.covariances())
    entropy = np.mean(0.5 * (log_dets + 64 * np.log(2 * np.pi * np.e))) + np.log(3)
    found = -toy_signals.log_density(x)
    assert abs(found.mean() - entropy) < 5 * found.std() / np.sqrt(len(x))


def test_splits_and_seeds_differ():
    sets = [data.load("damped_sines", split=s, size=50, seed=i).source for s in ("train", "test") for i in (0, 1)]
    assert len({x.tobytes() for x in sets}) == 4
    again = data.load("damped_sines", split="test", size=50, seed=1)
    np.testing.assert_array_equal(again.source, sets[3])
