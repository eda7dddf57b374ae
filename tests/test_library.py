"""The snippets of docs/library.md, one after another in one namespace, and what they must come to."""

import contextlib
import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from test_pretrained import run

from hold_jax import kernels

pytestmark = pytest.mark.slow
TEXT = (Path(__file__).parents[1] / "docs" / "library.md").read_text()


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    space = {}
    here = tmp_path_factory.mktemp("library")
    run(here / "runs" / "swissroll")
    # As users have it: the suite's own rule against rank promotion is not theirs.
    with contextlib.chdir(here), jax.numpy_rank_promotion("allow"):
        for snippet in re.findall(r"```python\n(.*?)```", TEXT, flags=re.S):
            exec(snippet, space)  # the document is ours
    return space


def test_a_trained_model(names):
    assert names["points"].shape == names["fast"].shape == names["denoised"].shape == (64, 2)
    assert names["latent"].shape == (4, 1, 2) and names["bits"].shape == (4,)


def test_kernels(names):
    assert names["u"].shape == (8, 3, 2) and names["between"].chol.shape == (3, 3)
    np.testing.assert_allclose(names["t_again"], names["t"], rtol=1e-4)


def test_every_kind_of_network_is_a_noise_predictor(names):
    m, u, t = names["m"], names["u"], names["t"]
    with jax.numpy_rank_promotion("allow"):
        for eps_fn in (
            names["eps_fn"](m, names["params"]),
            names["flax_eps_fn"],
            names["equinox_eps_fn"],
            names["denoiser_eps_fn"],
        ):
            out = eps_fn(u, t)
            assert out.shape == (8, 1, 2) and np.isfinite(out).all()
    # The denoiser comes back out of the noise it was turned into.
    y, sigma = names["y"], names["sigma"]
    want = 0.25 / (0.25 + sigma[:, None] ** 2) * y
    np.testing.assert_allclose(kernels.denoiser(m, u, t, names["denoiser_eps_fn"](u, t)), want, atol=1e-4)


def test_an_own_sampler(names):
    # N(0, 0.5^2), 4,000 values, 100 steps of first order; at order 1 the same as DDIM.
    assert names["own"].nfe == 101 and abs(np.std(names["own"].x) - 0.5) < 0.03
    first = names["sde"].hold(1)
    with jax.numpy_rank_promotion("allow"):
        eps_fn = functools.partial(of_gaussian, first)
        a, b = (
            names["samplers"].sample(name, first, eps_fn, key=jax.random.key(0), shape=(9, 2), num_steps=7).x
            for name in (names["Held"](), "ddim")
        )
    np.testing.assert_allclose(a, b, atol=3e-6)


def of_gaussian(m, u, t):
    y, sigma = kernels.sufficient_statistic(m, u, t)
    return kernels.last_noise(m, u, t, y * kernels.append_dims(0.25 / (0.25 + sigma**2), y))


def test_training_and_sampling(names):
    assert np.isfinite(names["value"])
    # The exact denoiser of N(0, 0.5^2): 4,000 values, so five standard errors are 0.028.
    assert names["out"].nfe == 20
    assert np.std(names["out"].x) == pytest.approx(0.5, abs=0.028)
    film = names["film"]
    assert (
        film.frames.shape == (6, 8, 2) and np.all(np.diff(film.times) < 0) and film.times[0] == np.float32(names["m"].T)
    )
    assert names["drawn"].shape == (16, 2)
    assert names["fewer"].x.shape == (16, 2) and names["fewer"].u.shape == (16, 2, 2)


def test_likelihood(names):
    x = np.asarray(names["x"], np.float64)
    exact = np.mean(x**2 / 0.5 + 0.5 * np.log(2 * np.pi * 0.25), axis=1) / np.log(2)
    np.testing.assert_allclose(names["bound"].bpd, exact, atol=2e-3)


def test_latents_and_back(names):
    # The ends of the path are the data they were encoded from, the noise of t_min and the solver's error apart.
    np.testing.assert_allclose(np.asarray(names["path"])[[0, -1]], names["x"][:2], atol=0.02)
