"""Vectors, signals and arrays in their own units, against Gaussian data and a network that is exact for them."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import sde
from hold_jax.data.dataset import array_dataset, measure
from hold_jax.loops import likelihood as nll
from hold_jax.loops.evaluate import neighbors
from hold_jax.loops.generate import film_frames, picture
from hold_jax.loops.likelihood import LikelihoodSettings
from hold_jax.model import Model
from hold_jax.numerics import ode
from hold_jax.parameterization import log_noise, sufficient
from hold_jax.runtime.resumable import PartialRows
from hold_jax.samplers import gaussian_fitted

MEAN, STD = np.array([10.0, -1.0, 300.0]), np.array([3.0, 0.05, 40.0])
KINDS = {"vector": (3,), "signal": (6, 3), "array": (4, 2, 3)}
RNG = np.random.default_rng(0)


class Nothing(nn.Module):
    """A network whose output is zero: with EDM's preconditioning the exact denoiser of N(0, sigma_data^2)."""

    num_classes: int = 0

    @nn.compact
    def __call__(self, x, noise_cond, labels=None, train=False):
        del noise_cond, labels, train
        return jnp.zeros_like(x)


def gaussian_data(kind, num):
    x = MEAN + STD * RNG.normal(size=(num, *KINDS[kind]))
    return array_dataset("gaussian", "test", x.astype(np.float32), None, 0)


def exact_model(kind):
    """The model of data whose channels are N(MEAN, STD^2), all values independent."""
    statistics = dataclasses.replace(measure(gaussian_data(kind, 2)), mean=tuple(MEAN), std=tuple(STD))
    return Model(sde.vp(), Nothing(), KINDS[kind], sufficient, log_noise, 1.0, statistics=statistics)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_measured_over_all_positions(kind):
    data = gaussian_data(kind, 2000)
    found = measure(data)
    assert found.kind == data.kind == kind
    count = data.source.size / 3
    np.testing.assert_allclose(found.mean, MEAN, atol=5 * STD.max() / np.sqrt(count))
    np.testing.assert_allclose(found.std, STD, rtol=5 / np.sqrt(2 * count))
    flat = data.source.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found.mean, flat.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.std, flat.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_per_dimension_are_those_of_the_density_in_data_units(kind, tmp_path):
    """Exactly -log2 N(x; MEAN, STD^2), for each example: the flow of Gaussian data is linear, and its trace exact."""
    data, model = gaussian_data(kind, 8), exact_model(kind)
    settings = LikelihoodSettings(
        num_examples=None, batch_size=8, probes=1, repeats=1, importance_weighted=False, auxiliary="posterior",
        solver=ode.Solver(rtol=1e-6, atol=1e-6), t_min=None, seed=0,
    )  # fmt: skip
    rows = PartialRows(tmp_path / "rows", 8)
    nll.evaluate_likelihood(model, {}, data, settings, small.devices(8), rows)
    z = (data.source.astype(np.float64) - MEAN) / STD
    exact = np.mean((z**2 / 2 + np.log(STD) + np.log(2 * np.pi) / 2).reshape(8, -1), axis=1) / np.log(2)
    np.testing.assert_allclose(rows.array()[:, 0], exact, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_written_in_data_units(kind):
    model = exact_model(kind)
    settings = small.sample_settings(sampler=gaussian_fitted(), num_steps=40, batch_size=2048)
    x, _ = small.draw_many(model, {}, settings, small.devices(8), num=2048)
    assert x.shape == (2048, *KINDS[kind]) and x.dtype == np.float32
    flat = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(flat.mean(axis=0), MEAN, atol=5 * STD.max() / np.sqrt(len(flat)))
    # Beside the sampling error a few thousandths of the sampler's own.
    np.testing.assert_allclose(flat.std(axis=0), STD, rtol=5 / np.sqrt(2 * len(flat)) + 5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(20, 1), (20, 2), (20, 5), (20, 16, 1), (20, 16, 6), (20, 8, 6, 1), (20, 8, 6, 5)])
def test_every_kind_has_a_picture_and_a_film(shape):
    x = RNG.normal(size=shape).astype(np.float32)
    alone, beside = picture(x), picture(x, reference=x)
    assert isinstance(alone, PIL.Image.Image) and min(alone.size) > 50
    # Arrays and scalars have no panel of data.
    assert (beside.size[0] > alone.size[0]) == (len(shape) == 3 or shape == (20, 2))
    frames = film_frames(np.stack([5 * x, x]))
    assert len(frames) == 2 and frames[0].size == frames[1].size


def test_the_neighbors_of_arrays_are_shown():
    train = gaussian_data("array", 30)
    shown = neighbors(train.source[:2] + 0.01, train)
    assert isinstance(shown, PIL.Image.Image)
