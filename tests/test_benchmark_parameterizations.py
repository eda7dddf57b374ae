"""The measure that benchmarks/parameterizations.py compares orders and parameterizations with."""

import jax
import numpy as np
import pytest

from benchmarks.parameterizations import errors, noises
from hold_jax import parameterization, sde
from hold_jax.data.dataset import array_dataset
from hold_jax.model import Model
from hold_jax.nn import MLP


@pytest.fixture(scope="module")
def data():
    x = 0.5 * np.random.default_rng(0).standard_normal((3000, 2))
    return array_dataset("normal", "test", x.astype(np.float32), None, 0)


def untrained(data, order, kind):
    network = MLP(out_channels=2, hidden_layers=1, width=8)
    model = Model(sde.hold(order=order), network, (2,), kind, parameterization.log_noise, 0.5)
    return errors(model, model.init(jax.random.key(0)), data, repeats=2)


@pytest.mark.slow
def test_a_linear_denoiser_of_gaussian_data_has_one_and_every_order_sees_the_same_noise(data):
    # A network that puts out zero leaves the skip: the best denoiser of N(0, 0.5^2), in both parameterizations.
    first = untrained(data, 1, parameterization.sufficient)
    assert first.shape == (2, 3000, 2)
    # |D - q0|^2 / c_out^2 is a chi-square over its 2 dimensions: deviation 1, so five standard errors are 0.065.
    assert first[..., 1].mean() == pytest.approx(1.0, abs=0.065)
    third = untrained(data, 3, parameterization.gaussian)
    np.testing.assert_allclose(third, first, rtol=2e-2, atol=1e-4)
    assert np.mean(np.abs(third - first)) < 1e-3 * first.mean()


@pytest.mark.slow
def test_the_noises_follow_their_law():
    log_sigma = np.log(noises(4, 500))
    assert log_sigma.shape == (4, 500)
    assert log_sigma.mean() == pytest.approx(-1.2, abs=0.01) and log_sigma.std() == pytest.approx(1.2, abs=0.02)
    # Stratified: each repeat has one in each of 500 equal quantiles, in an order of its own.
    assert np.abs(np.sort(log_sigma[0]) - np.sort(log_sigma[1]))[5:-5].max() < 0.1
    assert not np.array_equal(np.argsort(log_sigma[0]), np.argsort(log_sigma[1]))
