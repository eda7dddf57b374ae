"""Forwards and back, and between: `encode`, `interpolate` and `sample(start=...)`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle
from reference.propagate import propagate, truth
from samplers.suite import MEAN, STD, gaussian_eps, hold, law_error, log_times, mixture_eps, stepped

from hold_jax import kernels, samplers, sde
from hold_jax.samplers import Heun, encode, grids, interpolate, sample, unipc

X = 0.3 * jax.random.normal(jax.random.key(0), (32, 2)) + 0.1
DETERMINISTIC = {"heun": (Heun(), 120), "unipc": (unipc(), 90), "unipc_cholesky": (unipc(gauge="cholesky"), 90)}


@pytest.mark.parametrize(
    ("name", "n"), [(name, n) for name in ("heun", "unipc") for n in (1, 2, 3)] + [("unipc_cholesky", 3)]
)
def test_forwards_and_back_is_where_it_began(name, n):
    # Their own steps in float64, for a mixture, through 80 units of noise: what is left is the solver's error, twice.
    sampler, num_steps = DETERMINISTIC[name]
    m = hold(n)
    times = grids.log(m, m.t_min, num_steps)
    _, chol = oracle.marginal(m, float(oracle.integral(m, times[-1])))
    noise = chol.astype(np.float64) @ np.random.default_rng(0).standard_normal((32, n, 2))
    u = noise + np.eye(n)[:, :1] * np.asarray(X, np.float64)[:, None, :]
    eps_fn = mixture_eps(m, times)
    latent = stepped(sampler, m, eps_fn, u, times[::-1])[-1]
    back = stepped(sampler, m, eps_fn, latent, times)[-1]
    assert np.abs(latent).max() > 1
    np.testing.assert_allclose(back[:, 0], u[:, 0], atol=1e-3)


def test_data_come_back_from_their_latents():
    # (probability_flow: its own file.)
    m, options = hold(3), {"num_steps": 60, "grid": "log"}
    eps_fn = mixture_eps(m, grids.log(m, m.t_min, 60))

    @jax.jit
    def there_and_back(x):
        there = encode(unipc(), m, eps_fn, x, key=jax.random.key(1), **options)
        more = {"shape": x.shape, "start": there.u, **options}
        return there, sample(unipc(), m, eps_fn, key=jax.random.key(2), **more)

    there, back = there_and_back(X)
    # All that is lost is the noise of t_min, an effective 0.002, and a little of the solver's and of float32.
    assert jnp.sqrt(jnp.mean(jnp.square(back.x - X))) < 0.0025
    # A latent is nothing like its datum: 80 units of noise have come in.
    assert np.abs(kernels.sufficient_statistic(m, there.u, jnp.float32(m.T))[0]).max() > 50
    assert (there.nfe, back.nfe) == (60, 61)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_latents_of_gaussian_data_have_the_law_at_T_which_is_the_prior(name, n):
    # By exact propagation over rising times: no Monte Carlo.
    sampler, num_steps = DETERMINISTIC[name]
    m = hold(n)
    times = log_times(m, 79.9, 0.01, num_steps)[::-1]
    law = propagate(sampler, m, times, mean=MEAN, std=STD, start=truth(m, times[0], mean=MEAN, std=STD))
    covariance, mean = law_error(m, law, times[-1])
    assert covariance < 2e-3 and mean < 1e-8
    np.testing.assert_allclose(law.cov, m.prior_cov, atol=2e-3)


def test_encode_starts_from_the_data_at_t_min_with_fresh_noise_in_every_block():
    # Moments of the latents of one datum: N(0, C) but for the trace of the datum that 80 units of noise leave.
    m = hold(2)
    num = 4096
    x, times = jnp.full((num, 4), 0.25), grids.log(m, m.t_min, 15)[::-1]
    eps_fn = gaussian_eps(m, times)
    out = jax.jit(lambda: encode(unipc(), m, eps_fn, x, key=jax.random.key(3), num_steps=15, grid="log"))()
    u = np.asarray(out.u, np.float64).transpose(0, 2, 1).reshape(-1, 2)
    # The datum, exactly known to 0.002, is a point of the data's law: only its auxiliary block is free.
    law = propagate(unipc(), m, times, mean=MEAN, std=STD, start=truth(m, times[0], mean=0.25, std=0.0))
    spread = np.sqrt(np.diagonal(law.cov))
    assert (np.abs(u.mean(axis=0) - law.mean) < 4 * spread / np.sqrt(len(u))).all()
    wobble = np.sqrt((np.outer(spread, spread) ** 2 + law.cov**2) / len(u))
    assert (np.abs(np.cov(u, rowvar=False) - law.cov) < 4 * wobble).all()


@pytest.mark.parametrize(
    "sampler", [samplers.Ancestral(), unipc(churn=0.5), Heun(s_churn=1.0), samplers.EulerMaruyama()], ids=repr
)
def test_a_stochastic_sampler_cannot_encode(sampler):
    names = "ddim, dpmpp_2m, dpmpp_3m, unipc, gaussian_fitted .*, heun .* or probability_flow"
    with pytest.raises(ValueError, match=f"`sampler` is .*; it must be deterministic to run forwards: {names}"):
        encode(sampler, hold(1), mixture_eps(hold(1)), X, key=jax.random.key(0), num_steps=4)


# --- Interpolation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [hold(3), sde.psld(), sde.ve()], ids=["hold3", "psld", "ve"])
def test_interpolation_follows_the_great_circle(m):
    # In the prior's own units: both ends, equal angles, and norms between those of the ends.
    a, b = np.asarray(jax.random.normal(jax.random.key(0), (2, 5, m.order, 3)))
    chol = np.linalg.cholesky(m.prior_cov).astype(np.float32)
    fractions = jnp.linspace(0, 1, 5)
    path = interpolate(m, chol @ a, chol @ b, fractions)
    assert path.shape == (25, m.order, 3)
    white = np.linalg.solve(chol, np.asarray(path, np.float64)).reshape(5, 5, -1)
    a, b = a.reshape(5, -1).astype(np.float64), b.reshape(5, -1).astype(np.float64)
    # Shoemake's formula, of the directions; each weight times its end's own length.
    angle = np.arccos((a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))[:, None]
    for f, got in zip(np.asarray(fractions, np.float64), white, strict=True):
        want = (np.sin((1 - f) * angle) * a + np.sin(f * angle) * b) / np.sin(angle)
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_interpolation_keeps_the_norm_of_equally_long_latents_and_equal_latents():
    m = hold(2)
    a = jax.random.normal(jax.random.key(0), (5, 2, 3))
    b = jax.random.normal(jax.random.key(1), (5, 2, 3))
    length = lambda u: np.sqrt(np.square(u).sum(axis=(-1, -2), keepdims=True))  # noqa: E731
    path = interpolate(m, a / length(a), b / length(b), jnp.linspace(0, 1, 7))
    np.testing.assert_allclose(length(path), 1, rtol=1e-5)
    same = interpolate(m, a, a, jnp.array([0.0, 0.3, 1.0]))
    np.testing.assert_allclose(same, np.broadcast_to(a, (3, 5, 2, 3)).reshape(15, 2, 3), rtol=1e-5)
