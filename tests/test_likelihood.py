"""Bits per dimension against closed forms: Gaussian data, where the model's own density is known, and a mixture."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import slow_except

from hold_jax import kernels, likelihood, sde
from hold_jax.errors import UserError
from hold_jax.numerics import exact, ode

ORDERS = (1, 2, 3, 4)
STD = 0.5
KEY = jax.random.key(0)
X = STD * jax.random.normal(jax.random.key(1), (512, 4))
every_order = pytest.mark.parametrize("n", slow_except((1, 3), {n: n for n in ORDERS}))
BITS = math.log(2)


@functools.cache
def hold(n, T=None):
    return sde.hold(order=n, T=T)


def gaussian_eps(m, std=STD):
    """The exact network for data N(0, std^2); std a number or (C,)."""

    def eps_fn(u, t):
        y, sigma = kernels.sufficient_statistic(m, u, t)
        variance = jnp.square(jnp.asarray(std, jnp.float32))
        return kernels.last_noise(m, u, t, y * variance / (variance + jnp.square(sigma)))

    return eps_fn


@functools.cache
def computed(n, T=None, **options):
    """`bits_per_dim` of X, compiled once for each set of options."""
    m = hold(n, T)
    return jax.jit(lambda x: likelihood.bits_per_dim(m, gaussian_eps(m), x, key=KEY, **options))(X)


def law_at(m, t, std=STD):
    """Phi e_1, Sigma, sigma_eff and Cov u for data N(0, std^2), in float64."""
    b = np.asarray(m.schedule.integral(0.0, t))
    phi, chol = exact.marginal(m.F, m.G, m.cov0, b)
    a = phi[:, :1]
    return a, chol, float(exact.effective_noise(m.F, m.G, m.cov0, b)), chol @ chol.T + std**2 * a @ a.T


def log_normal(x, cov):
    """log N(x; 0, cov) of the rows of x (N, k)."""
    k = cov.shape[0]
    quad = np.einsum("ni,ij,nj->n", x, np.linalg.inv(cov), x)
    return -0.5 * (quad + np.linalg.slogdet(cov)[1] + k * math.log(2 * math.pi))


def model_covariance(m, std=STD):
    """Covariance (n, n) of (y, rest) at t_min under the model: the flow of Gaussian data, from its own prior.

    With the exact denoiser the flow is linear, y_T = g y, and the rest stands still.
    """
    sigmas = [law_at(m, t)[2] for t in (m.t_min, m.T)]
    growth = math.sqrt((std**2 + sigmas[1] ** 2) / (std**2 + sigmas[0] ** 2))
    a, chol, _, _ = law_at(m, m.T)
    basis = np.asarray(kernels.rest_basis(m, jnp.float32(m.T)), np.float64)
    to_u = np.concatenate([growth * a, chol @ basis], axis=1)
    back = np.linalg.inv(to_u)
    return back @ m.prior_cov @ back.T


@pytest.mark.slow
@every_order
def test_gaussian_data_have_the_density_of_the_model(n):
    """The process reaches its prior at T, so that the bound is the exact value, at every order."""
    out = computed(n)
    sigma = law_at(hold(n), hold(n).t_min)[2]
    x = np.asarray(X, np.float64)
    exactly = -log_normal(x.reshape(-1, 1), np.array([[STD**2 + sigma**2]])).reshape(x.shape).mean(axis=1) / BITS
    assert np.abs(out.bpd - exactly).max() < 0.005
    assert abs(np.mean(out.bpd - exactly)) < 5e-4
    assert bool(out.is_bound) == (n > 1)
    assert 20 < int(out.nfe) < 300


@pytest.mark.slow
def test_the_gap_of_the_bound_is_its_divergence():
    """Stopped at T = 0.6 the process is far from its prior; the model is then another, and its rest tells of y."""
    n, m = 3, hold(3, 0.6)
    covariance = model_covariance(m)
    x = np.asarray(X, np.float64)
    exactly = -log_normal(x.reshape(-1, 1), covariance[:1, :1]).mean() / BITS
    # Of the bound, over the rest ~ N(0, I) and x ~ N(0, std^2): E[-log p(y, rest) + log r(rest)].
    precision, law = np.linalg.inv(covariance), np.diag([np.mean(x**2)] + [1.0] * (n - 1))
    expected = 0.5 * (np.trace(precision @ law) + np.linalg.slogdet(covariance)[1] + n * math.log(2 * math.pi))
    expected -= 0.5 * (n - 1) * (1 + math.log(2 * math.pi))
    gap = expected / BITS - exactly
    found = computed(3, 0.6, repeats=16).bpd.mean() - exactly
    assert gap > 0.1
    assert found == pytest.approx(gap, abs=0.05 * gap)


def test_the_papers_bound_is_loose_by_what_the_auxiliaries_have_moved():
    """KL of the start law from the auxiliaries' law given x at t_min, in closed form: 0.86 bits at order 3."""
    n, m = 3, hold(3)
    covariance = law_at(m, m.t_min)[3]
    # p(aux | q) = N(k q, schur); r = N(0, cov0).
    k = covariance[1:, :1] / covariance[0, 0]
    schur = covariance[1:, 1:] - k @ covariance[:1, 1:]
    r = m.cov0[1:, 1:]
    second = np.mean(np.square(np.asarray(X, np.float64)))
    inside = np.linalg.inv(schur) @ (r + second * k @ k.T)
    gap = 0.5 * (np.trace(inside) - (n - 1) + np.linalg.slogdet(schur)[1] - np.linalg.slogdet(r)[1]) / BITS
    # What the bound is on is p(q), q the first block itself, with its own noise.
    x = np.asarray(X, np.float64)
    exactly = -log_normal(x.reshape(-1, 1), covariance[:1, :1]).mean() / BITS
    found = computed(n, auxiliary="initial").bpd.mean() - exactly
    assert gap > 0.1
    assert found == pytest.approx(gap, abs=0.05 * gap)


@pytest.mark.slow
def test_a_mixture_has_its_density():
    """Two unequal modes: a curved denoiser with a full Jacobian, all the way from the modes to the prior."""
    # Of mean zero: at T the prior differs from the data by mean / sigma = 1 / 80.
    means, weights, width = np.array([[1.4, -0.7], [-0.6, 0.3]]), np.array([0.3, 0.7]), 0.2
    modes = np.random.default_rng(0).choice(2, 256, p=weights)
    x = means[modes] + width * np.random.default_rng(1).standard_normal((256, 2))

    def log_density(y, variance, xp):
        away = xp.stack([xp.sum(xp.square(y - mean), axis=-1) for mean in means[:, None]], axis=-1)
        return np.log(weights)[None] - away / (2 * variance) - xp.log(2 * math.pi * variance)

    m = hold(3)

    def eps_fn(u, t):
        y, sigma = kernels.sufficient_statistic(m, u, t)
        variance = width**2 + jnp.square(sigma)
        share = jax.nn.softmax(log_density(y, variance, jnp), axis=-1)
        mean = share @ jnp.asarray(means, jnp.float32)
        return kernels.last_noise(m, u, t, mean + width**2 / variance * (y - mean))

    out = likelihood.bits_per_dim(m, eps_fn, jnp.asarray(x, jnp.float32), key=KEY, probes=0)
    sigma = law_at(m, m.t_min)[2]
    exactly = -np.log(np.exp(log_density(x, width**2 + sigma**2, np)).sum(axis=-1)) / 2 / BITS
    assert np.abs(out.bpd - exactly).max() < 0.01
    assert abs(np.mean(out.bpd - exactly)) < 1e-3


@pytest.mark.slow
def test_probes_estimate_the_trace():
    """One coordinate tells of the other, so that a probe is not exact; the mean over many is."""
    m = hold(1)
    covariance = np.array([[0.25, 0.2], [0.2, 0.25]])
    x = jax.random.normal(jax.random.key(2), (2000, 2)) @ jnp.asarray(np.linalg.cholesky(covariance).T, jnp.float32)

    def eps_fn(u, t):
        y, sigma = kernels.sufficient_statistic(m, u, t)
        of_noisy = jnp.linalg.inv(jnp.asarray(covariance) + jnp.square(sigma) * jnp.eye(2))
        gain = jnp.matmul(jnp.asarray(covariance), of_noisy, precision="highest")
        return kernels.last_noise(m, u, t, jnp.matmul(y, gain, precision="highest"))

    bits = lambda probes: np.asarray(likelihood.bits_per_dim(m, eps_fn, x, key=KEY, probes=probes).bpd)  # noqa: E731
    exactly, four = bits(0), bits(4)
    sigma = law_at(m, m.t_min)[2]
    closed = -log_normal(np.asarray(x, np.float64), covariance + sigma**2 * np.eye(2)) / 2 / BITS
    assert np.abs(exactly - closed).max() < 2e-3
    spread = (four - exactly).std()
    # e' J e = tr J + 2 e_1 e_2 J_12 with one probe: the integral of J_12, over two dimensions, halved by four probes.
    levels = np.geomspace(sigma, law_at(m, m.T)[2], 2000)
    couplings = [(covariance @ np.linalg.inv(covariance + s**2 * np.eye(2)))[0, 1] for s in levels]
    one = abs(np.trapezoid(couplings, np.log(levels))) / BITS
    assert spread == pytest.approx(one / 2, rel=0.1)
    assert abs((four - exactly).mean()) < 4 * spread / math.sqrt(2000)


@pytest.mark.slow
def test_a_lattice_costs_its_spacing():
    """-log2 P of a cell: that of the density, less log2 of the width; within it Jensen's h^2 / 24 s^2."""
    width = 0.125
    m = hold(1)
    x = jnp.round(STD * jax.random.normal(jax.random.key(3), (256, 16)) / width) * width
    found = np.asarray(likelihood.bits_per_dim(m, gaussian_eps(m), x, key=KEY, bin_width=width, repeats=4).bpd)
    variance = STD**2 + law_at(m, m.t_min)[2] ** 2
    density = (np.mean(np.square(x), axis=1) / variance + math.log(2 * math.pi * variance)) / 2 / BITS
    expected = density - math.log2(width) + width**2 / 24 / STD**2 / BITS
    assert abs(np.mean(found - expected)) < 0.002
    # The right cell: half the width to either side, not one whole width to one.
    assert np.abs(found - expected).max() < 0.1


@pytest.mark.slow
@every_order
def test_integers_have_the_entropy_of_a_discretized_gaussian(n):
    """Two channels, of deviations 6 and 300 in units of the lattice, standardized: each has its own spacing."""
    deviations, mean = np.array([6.0, 300.0]), np.array([-3.2, 20_000.0])
    cells = [np.arange(-10 * s, 10 * s + 1) for s in deviations]
    edges = [np.append(k - 0.5, k[-1] + 0.5) - m % 1 for k, m in zip(cells, mean, strict=True)]
    below = [[math.erf(e / s / math.sqrt(2)) / 2 for e in edge] for edge, s in zip(edges, deviations, strict=True)]
    shares = [np.diff(values) for values in below]
    entropy = np.mean([-np.sum(p * np.log2(np.maximum(p, 1e-300))) for p in shares])
    x = np.round(mean + deviations * np.random.default_rng(0).standard_normal((2000, 8, 2)))
    std, m = x.std(axis=(0, 1)), hold(n)
    inside = ((x - mean) / std).astype(np.float32)
    law = np.sqrt(deviations**2 + 1 / 6)[None, None] / std  # of the values, each with its uniform noise: twice 1 / 12
    options = {"key": KEY, "bin_width": tuple(1 / std)}
    bits = jax.jit(lambda v: likelihood.bits_per_dim(m, gaussian_eps(m, law), v, **options).bpd)
    found = np.asarray(bits(inside))
    # Of the same draws under the exact law: the entropy's own error of sampling cancels.
    exactly = np.mean((x - mean) ** 2 / deviations**2, axis=(1, 2)) / 2 / BITS
    assert abs(np.mean(found - exactly) + 1 / 2 / BITS - entropy) < 5e-3
    assert entropy == pytest.approx(np.mean(np.log2(deviations * math.sqrt(2 * math.pi * math.e))), abs=2e-3)


@pytest.mark.slow
def test_importance_weights_tighten_the_bound():
    """By the divergence of one draw of the rest, 0.1 bits here, most of which sixteen draws take away."""
    m = hold(3, 0.6)
    covariance = model_covariance(m)
    exactly = -log_normal(np.asarray(X, np.float64).reshape(-1, 1), covariance[:1, :1]).mean() / BITS
    mean = float(computed(3, 0.6, repeats=16).bpd.mean()) - exactly
    tight = float(computed(3, 0.6, repeats=16, importance_weighted=True).bpd.mean()) - exactly
    assert 0 < tight < 0.6 * mean


@pytest.mark.slow
def test_an_example_has_its_value_in_every_batch():
    m = hold(2, 1.0)
    index = np.arange(512, dtype=np.int32)
    options = {"key": KEY, "bin_width": 0.1, "solver": ode.Solver("heun", rtol=1e-3, atol=1e-3)}
    bits = jax.jit(lambda x, i: likelihood.bits_per_dim(m, gaussian_eps(m), x, index=i, **options).bpd)
    whole = bits(X, index)
    np.testing.assert_allclose(bits(X[::-1], index[::-1])[::-1], whole, atol=2e-5)
    # A batch shares its steps: in another one a value is the same within the solver's tolerance.
    apart = np.abs(bits(X[:64], index[:64]) - whole[:64]).max()
    assert 0 < apart < 5e-3, apart
    # Other numbers, other cells and auxiliaries.
    assert np.abs(bits(X, index + 512) - whole).mean() > 0.02


def test_tolerances_are_kept_and_cost_calls():
    m = hold(1)
    exactly = np.asarray(computed(1).bpd)
    loose = likelihood.bits_per_dim(m, gaussian_eps(m), X, key=KEY, solver=ode.Solver(rtol=1e-3, atol=1e-3))
    assert int(loose.nfe) < int(computed(1).nfe) / 1.5
    error = np.abs(np.asarray(loose.bpd) - exactly).max()
    assert 1e-4 < error < 0.05


@pytest.mark.slow
def test_a_solver_that_gives_up_is_an_error_or_nan():
    m = hold(1)
    solve = functools.partial(
        likelihood.bits_per_dim, m, gaussian_eps(m), key=KEY, solver=ode.Solver("heun", max_steps=2)
    )
    with pytest.raises(UserError, match="max_steps"):
        solve(X)
    assert np.isnan(jax.jit(lambda x: solve(x).bpd)(X)).all()


def test_the_program_is_exported_because_it_never_calls_the_host():
    m = hold(1)
    bits = jax.jit(lambda x: likelihood.bits_per_dim(m, gaussian_eps(m), x, key=KEY).bpd)
    exported = jax.export.export(bits)(X)
    np.testing.assert_array_equal(exported.call(X), computed(1).bpd)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_min": 0.0}, "`t_min` is 0.0; it must be between 0 and T"),
        ({"t_min": 100.0}, "`t_min` is 100.0"),
        ({"t_min": 1e-5}, "`t_min` is 1e-05; it must be a time of an effective noise above 1e-05, not "),
        ({"bin_width": 0.0}, "`bin_width` is 0.0; it must be positive, one number or one for each of 4 channels"),
        ({"bin_width": (0.1, 0.1)}, "`bin_width` is .0.1, 0.1.; it must be positive, one number or one for each of 4"),
        ({"probes": -1}, "`probes` is -1; it must be a whole number >= 0"),
        ({"repeats": 0}, "`repeats` is 0; it must be a whole number >= 1"),
        ({"probes": 1.0}, "`probes` is 1.0; it must be a whole number >= 0"),
        ({"solver": "dopri5"}, "`solver` is 'dopri5'; it must be a `numerics.ode.Solver`, such as Solver.'dopri5'."),
        ({"auxiliary": "prior"}, "`auxiliary` is 'prior'.*initial, posterior"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UserError, match=message):
        likelihood.bits_per_dim(hold(2), lambda u, t: u, X, key=KEY, **options)


def test_any_linear_sde_has_a_likelihood():
    """Noise in both blocks and another mass (PSLD), no stationary law (VE)."""
    for m in (sde.psld(T=3.0), sde.ve(sigma_max=200.0)):
        sigma = law_at(m, m.t_min)[2]
        x = np.asarray(X, np.float64)
        exactly = -log_normal(x.reshape(-1, 1), np.array([[STD**2 + sigma**2]])).reshape(x.shape).mean(axis=1) / BITS
        found = np.asarray(likelihood.bits_per_dim(m, gaussian_eps(m), X, key=KEY).bpd)
        assert np.abs(found - exactly).max() < 0.01
        assert abs(np.mean(found - exactly)) < 2e-3


@pytest.mark.slow
def test_a_corrected_prior_closes_the_gap():
    """The law of u(T) for data of this width as the prior: the bound of a process stopped at T = 1 is exact again."""
    m = hold(3, 1.0)
    m = dataclasses.replace(m, prior_cov=law_at(m, m.T)[3])
    sigma = law_at(m, m.t_min)[2]
    x = np.asarray(X, np.float64)
    exactly = -log_normal(x.reshape(-1, 1), np.array([[STD**2 + sigma**2]])).mean() / BITS
    found = likelihood.bits_per_dim(m, gaussian_eps(m), X, key=KEY).bpd.mean()
    assert float(found) == pytest.approx(exactly, abs=1e-3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((4, 2), 200, np.uint8), "`x` is 'uint8'; it must be floating, in the model's range: .*to_model_range"),
        (np.zeros(4, np.float32), r"`x` is \(4,\); it must be of shape \(B, \*S, C\)"),
        (np.zeros((0, 2), np.float32), r"`x` is \(0, 2\); it must be one example or more"),
        (np.float32(1), r"`x` is \(\); it must be of shape \(B, \*S, C\)"),
    ],
)
def test_data_that_cannot_be_meant_are_named(x, message):
    with pytest.raises(UserError, match=message):
        likelihood.bits_per_dim(sde.vp(), lambda u, t: u, x, key=jax.random.key(0))


def test_the_papers_bound_needs_auxiliaries_with_a_density():
    m = dataclasses.replace(sde.hold(3), cov0=0.04 * np.array([[0.0, 0, 0], [0, 1, -1], [0, -1, 1]]))
    with pytest.raises(
        UserError, match="`auxiliary` is 'initial'; it must be 'posterior' for an SDE with a singular cov0"
    ):
        likelihood.bits_per_dim(m, lambda u, t: u, jnp.zeros((2, 1)), key=jax.random.key(0), auxiliary="initial")
