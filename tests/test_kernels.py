import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle

from hold_jax import kernels, sde

MODELS = {
    **{f"hold{n}": sde.hold(order=n) for n in range(1, 7)},
    "told": sde.hold(damping="told"),
    "cld": sde.cld(),
    "psld": sde.psld(),
    "vp": sde.vp(),
    "ve": sde.ve(),
}
whitened_mean = jax.jit(kernels.whitened_mean)
every_model = pytest.mark.parametrize("m", MODELS.values(), ids=MODELS)
some_models = pytest.mark.parametrize("name", ["hold3", "hold4", "psld", "vp", "ve"])


@pytest.fixture(autouse=True)
def _float32():
    assert not jax.config.jax_enable_x64


def times_of_integrals(m, low=1e-5, high=10.0, num=13):
    """float32 times whose B spans [low, high], evenly in log B."""
    return np.asarray(m.schedule.time(np.geomspace(low, high, num))).astype(np.float32)


def times_of_process(m, num=13):
    """float32 times within [t_min, T]. Everywhere 13, so that each model's kernels compile once."""
    return np.clip(np.geomspace(m.t_min, m.T, num), m.t_min, m.T).astype(np.float32)


# --- Accuracy. The oracle sees the exact value of the float32 time: rounding of B is our error. ----


@every_model
def test_kernels_to_float32_rounding(m):
    t = times_of_integrals(m)
    noise, total = kernels.transition(m, jnp.zeros_like(t), t), kernels.marginal(m, t)
    assert {a.dtype for a in (*noise, *total)} == {jnp.dtype("float32")}
    for i, time in enumerate(t):
        b = float(oracle.integral(m, time))
        phi, noise_chol = oracle.transition(m, b)
        _, total_chol = oracle.marginal(m, b)
        assert oracle.row_error(noise.phi[i], phi) < 3e-6
        assert oracle.row_error(total.phi[i], phi) < 3e-6
        assert oracle.row_error(noise.chol[i], noise_chol) < 3e-6
        assert oracle.row_error(total.chol[i], total_chol) < 3e-6
        # The diagonal relatively: the scores are divided by L_nn.
        for got, want in ((noise.chol[i], noise_chol), (total.chol[i], total_chol)):
            np.testing.assert_allclose(np.diagonal(got), np.diagonal(want).astype(float), rtol=3e-6)
            assert (np.triu(got, 1) == 0).all()


@every_model
def test_whitened_mean_and_effective_noise(m):
    for t in (times_of_integrals(m), times_of_process(m)):
        w, sigma = whitened_mean(kernels.marginal(m, t)), kernels.effective_noise(m, t)
        for i in range(0, len(t), 3):
            b = float(oracle.integral(m, t[i]))
            assert oracle.row_error(w[i], oracle.whitened_mean(m, b)) < 5e-6
            assert float(sigma[i]) == pytest.approx(oracle.effective_noise(m, b), rel=5e-6)


@some_models
def test_total_chol(name):
    m = MODELS[name]
    t = times_of_process(m)
    got = kernels.total_chol(m, t, 0.5)
    for i in range(0, len(t), 3):
        _, want = oracle.marginal(m, float(oracle.integral(m, t[i])), data_std=0.5)
        assert oracle.row_error(got[i], want) < 3e-6


@some_models
def test_transition_from_a_late_start(name):
    # Short steps late in the process: B(s, t) must not be a difference of two B's.
    m = MODELS[name]
    s = np.float32(0.8 * m.T)
    t = (s * (1 + np.array([2e-7, 1e-5, 1e-3, 0.2]))).astype(np.float32)
    got = kernels.transition(m, s, t)
    for i, time in enumerate(t):
        b = float(m.schedule.integral(np.float64(s), np.float64(time)))
        phi, chol = oracle.transition(m, b)
        assert oracle.row_error(got.phi[i], phi) < 3e-6
        assert oracle.row_error(got.chol[i], chol) < 3e-6


def test_own_damping_without_critical_structure():
    # Complex eigenvalues and real ones, gammas of different size.
    m = sde.hold(order=4, gammas=(1.0, 2.0, 4.5), xi=9.5, L_inv=2.0, alpha=0.5)
    t = np.geomspace(1e-5, 10, 13).astype(np.float32)
    got = kernels.marginal(m, t)
    for i, time in enumerate(t):
        phi, chol = oracle.marginal(m, float(time))
        assert oracle.row_error(got.phi[i], phi) < 3e-6
        assert oracle.row_error(got.chol[i], chol) < 3e-6


# --- Laws ------------------------------------------------------------------------------------------


@every_model
def test_composition(m):
    # transition(s, t) after marginal(s) is marginal(t).
    t = times_of_process(m)
    s = np.roll(t, 1)
    s[0] = 0.0
    first, then, whole = kernels.marginal(m, s), kernels.transition(m, s, t), kernels.marginal(m, t)
    first, then, whole = (kernels.Kernel(*(np.asarray(a, np.float64) for a in k)) for k in (first, then, whole))
    for i in range(len(s)):
        assert oracle.row_error(then.phi[i] @ first.phi[i], whole.phi[i]) < 1e-5
        carried = then.phi[i] @ first.chol[i]
        cov = carried @ carried.T + then.chol[i] @ then.chol[i].T
        want = whole.chol[i] @ whole.chol[i].T
        std = np.sqrt(np.diagonal(want))
        np.testing.assert_allclose(cov / np.outer(std, std), want / np.outer(std, std), atol=2e-6)


@pytest.mark.parametrize("name", [k for k in MODELS if k != "ve"])
def test_stationary_limit(name):
    # Any start is forgotten: Phi vanishes and the factor is that of the stationary law.
    m = MODELS[name]
    top = float(m.schedule.time(15.9))
    phi, chol = kernels.marginal(m, top)
    stationary = np.linalg.cholesky(m.prior_cov)
    want_phi, _ = oracle.transition(m, float(oracle.integral(m, np.float32(top))))
    rest = float(np.abs(want_phi.astype(float)).max())
    assert np.abs(phi).max() == pytest.approx(rest, rel=1e-5)
    np.testing.assert_allclose(chol, stationary, atol=2 * rest + 1e-6)


@every_model
def test_no_time_is_the_identity_without_noise(m):
    t = np.append(np.float32(0), times_of_process(m)[1:])
    kernel = kernels.transition(m, t, t)
    np.testing.assert_array_equal(kernel.phi, np.broadcast_to(np.eye(m.order), kernel.phi.shape))
    np.testing.assert_array_equal(kernel.chol, 0)
    start = kernels.marginal(m, t)
    np.testing.assert_array_equal(start.phi[0], np.eye(m.order))
    # The factor is the limit from t > 0, where u_1 already follows u_2: it is not diagonal, its Gram matrix is.
    chol = np.asarray(start.chol[0], np.float64)
    np.testing.assert_allclose(chol @ chol.T, m.cov0, atol=3e-7 * m.cov0.max())


@every_model
def test_outside_of_the_range_is_nan(m):
    assert np.isnan(kernels.transition(m, m.T, m.T / 2).phi).all()
    assert np.isnan(kernels.transition(m, m.T, m.T / 2).chol).all()
    assert np.isnan(kernels.time_of_noise(m, jnp.float32([1e-9, 1e30]))).all()


# --- Published closed forms ------------------------------------------------------------------------


def test_vp_is_the_published_one():
    # 2011.13456, eq. 33 with beta(t) = 0.1 + 19.9 t.
    t = np.array([1e-4, 1e-2, 0.1, 0.5, 1.0], np.float32)
    time = t.astype(np.float64)
    integral = 0.1 * time + 0.5 * 19.9 * time**2
    for got in (kernels.marginal(sde.vp(), t), kernels.transition(sde.vp(), np.zeros_like(t), t)):
        np.testing.assert_allclose(got.phi[:, 0, 0], np.exp(-integral / 2), rtol=2e-6)
        np.testing.assert_allclose(got.chol[:, 0, 0], np.sqrt(-np.expm1(-integral)), rtol=1e-6)


def test_ve_is_the_published_one():
    # 2011.13456, eq. 31: N(x, sigma(t)^2 - sigma(0)^2).
    t = np.array([1e-4, 1e-2, 0.1, 0.5, 1.0], np.float32)
    got = kernels.marginal(sde.ve(), t)
    np.testing.assert_array_equal(got.phi, 1)
    variance = 0.01**2 * np.expm1(2 * np.log(5000) * t.astype(np.float64))
    np.testing.assert_allclose(got.chol[:, 0, 0], np.sqrt(variance), rtol=2e-6)


def test_first_order_hold_is_a_vp():
    # n = 1: F = -1, so B = int beta / 2; and 1/L scales the noise.
    t = np.array([1e-3, 0.1, 1.0, 4.0], np.float32)
    got = kernels.marginal(sde.hold(order=1, L_inv=0.5), t)
    time = t.astype(np.float64)
    np.testing.assert_allclose(got.phi[:, 0, 0], np.exp(-time), rtol=1e-6)
    np.testing.assert_allclose(got.chol[:, 0, 0], np.sqrt(-0.5 * np.expm1(-2 * time)), rtol=1e-6)


def cld_closed_form(b, mass, velocity_variance):
    """Mean matrix and covariance of 2112.07068, appendix B.1, for x0 given and v0 ~ N(0, velocity_variance).

    Its covariance cancels at small B (which is why CLD's code computes it in float64): here in 60 digits.
    """
    b, mass, v0 = (oracle.MP.mpf(float(x)) for x in (b, mass, velocity_variance))
    g = 2 * oracle.MP.sqrt(mass)
    decay, grown = oracle.MP.exp(-2 * b / g), oracle.MP.expm1(4 * b / g)
    mean = np.array([[2 * b / g + 1, 4 * b / g**2], [-b, 1 - 2 * b / g]]) * decay
    xx = grown - 4 * b / g - 8 * b**2 / g**2 + 16 * b**2 / g**4 * v0
    xv = 4 * b / g**2 * v0 + 4 * b**2 / g - 8 * b**2 / g**3 * v0
    vv = g**2 / 4 * grown + b * g + v0 * (1 + 4 * b**2 / g**2 - 4 * b / g) - 2 * b**2
    return mean, np.array([[xx, xv], [xv, vv]]) * decay**2


@pytest.mark.parametrize("mass", [0.25, 1.0, 0.6])
def test_cld_is_the_published_one(mass):
    m = sde.cld(mass=mass, beta=4.0, gamma=0.04)
    t = np.array([1e-5, 1e-3, 0.1, 0.5, 1.0], np.float32)
    got = kernels.marginal(m, t)
    for i, time in enumerate(t):
        mean, cov = cld_closed_form(4.0 * float(time), mass, 0.04 * mass)
        assert oracle.row_error(got.phi[i], mean) < 1e-6
        assert oracle.row_error(got.chol[i], oracle.cholesky(cov)) < 1e-6


def test_second_order_hold_is_a_cld():
    # Critical n = 2: gamma = 1, xi = 2, which is CLD with M = 1 (Gamma = 2), all noise scaled by 1/L.
    t = np.geomspace(1e-4, 5, 6).astype(np.float32)
    hold = kernels.marginal(sde.hold(order=2, L_inv=0.5, alpha=0.08), t)
    cld = kernels.marginal(sde.cld(mass=1.0, beta=1.0, gamma=0.08), t)
    np.testing.assert_allclose(hold.phi, cld.phi, atol=1e-6)
    np.testing.assert_allclose(hold.chol, np.sqrt(0.5) * cld.chol, atol=1e-6)


# --- The clock ---------------------------------------------------------------------------------------


@every_model
def test_time_of_noise_inverts_effective_noise(m):
    t = times_of_process(m)
    sigma = kernels.effective_noise(m, t)
    np.testing.assert_allclose(kernels.time_of_noise(m, sigma), t, rtol=3e-6)
    np.testing.assert_allclose(kernels.effective_noise(m, kernels.time_of_noise(m, sigma)), sigma, rtol=2e-5)


@every_model
def test_effective_noise_grows(m):
    t = np.geomspace(m.t_min, m.T, 300)
    t = np.linspace(0, 1, 300) * (m.T - m.t_min) + m.t_min if m.order > 1 else t
    assert (np.diff(kernels.effective_noise(m, t.astype(np.float32))) > 0).all()


# --- Transformations -----------------------------------------------------------------------------------


def _outputs(m, t):
    """What a loss differentiates through: A and the factor, in one vector; each scaled in the test."""
    kernel = kernels.marginal(m, t)
    return jnp.concatenate([kernel.phi, kernel.chol], axis=-1)


@pytest.mark.parametrize("name", ["hold2", "hold3", "hold6", "psld", "vp", "ve"])
def test_gradient_in_time(name):
    m = MODELS[name]
    n = m.order
    t = times_of_process(m)
    got = jax.jit(jax.vmap(jax.jacfwd(lambda x: _outputs(m, x))))(t)
    got_sigma = jax.jit(jax.vmap(jax.grad(lambda x: jnp.log(kernels.effective_noise(m, x)))))(t)
    assert np.isfinite(got).all() and np.isfinite(got_sigma).all()
    for i in range(0, len(t), 4):
        time = float(t[i])
        h = 1e-4 * time
        b = [float(m.schedule.integral(0.0, time + k * h)) for k in (-2, -1, 1, 2)]

        def difference(values, h=h):
            a, b, c, d = values
            return (a - 8 * b + 8 * c - d) / (12 * h)

        pairs = [oracle.marginal(m, x) for x in b]
        values = [np.concatenate(pair, axis=-1).astype(np.float64) for pair in pairs]
        want = difference(values)
        # A row's slope in units of its size over its time scale: d log / dt where that is larger than the slope.
        for part in (slice(None, n), slice(n, None)):
            size = np.linalg.norm(want[:, part], axis=-1) + np.linalg.norm(values[1][:, part], axis=-1) / time
            error = np.abs(np.asarray(got[i], np.float64) - want)[:, part].max(axis=-1) / size
            assert error.max() < 1e-4, (time, part)
        slope = difference([np.log(oracle.effective_noise(m, x)) for x in b])
        assert float(got_sigma[i]) == pytest.approx(slope, rel=1e-4)


@some_models
def test_jit_vmap_and_batch_agree(name):
    m = MODELS[name]
    t = times_of_process(m)
    batch = kernels.marginal(m, t)
    for kernel in (jax.vmap(lambda x: kernels.marginal(m, x))(t), jax.jit(lambda x: kernels.marginal(m, x))(t)):
        np.testing.assert_array_equal(kernel.phi, batch.phi)
        np.testing.assert_array_equal(kernel.chol, batch.chol)
    with jax.disable_jit():
        eager = kernels.marginal(m, jnp.asarray(t))
    np.testing.assert_allclose(eager.phi, batch.phi, atol=3e-7 * np.abs(batch.phi).max())
    np.testing.assert_allclose(eager.chol, batch.chol, atol=3e-7 * np.abs(batch.chol).max())
    one = kernels.marginal(m, t[2])
    np.testing.assert_allclose(one.chol, batch.chol[2], atol=3e-7 * np.abs(batch.chol[2]).max())


def test_mix_is_a_matrix_product_on_the_block_axis():
    rng = np.random.default_rng(0)
    u = rng.standard_normal((5, 4, 4, 3, 2)).astype(np.float32)
    one, each = rng.standard_normal((2, 3)).astype(np.float32), rng.standard_normal((5, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(kernels.mix(one, jnp.asarray(u)), np.einsum("kj,bxyjc->bxykc", one, u), atol=1e-6)
    np.testing.assert_allclose(kernels.mix(each, jnp.asarray(u)), np.einsum("bkj,bxyjc->bxykc", each, u), atol=1e-6)


# --- One output, every view: against the exact posterior of a Gaussian mixture ---------------------------

MIXTURE = oracle.Mixture([0.3, 0.5, 0.2], [[1.0, 0.0], [-0.6, 0.4], [0.2, -1.0]], [0.1, 0.3, 0.05])
VIEWED = {k: MODELS[k] for k in ("hold1", "hold2", "hold3", "hold4", "told", "cld", "psld", "vp", "ve")}
views = pytest.mark.parametrize("m", VIEWED.values(), ids=VIEWED)
NOISES = (0.01, 0.1, 0.5, 2.0, 20.0)


def mixture_case(m, sigma, num=32):
    """t, float32 states u_t (B, n, d) of the mixture and the exact eps_n (B, 1, d), rounded once to float32."""
    t = np.float32(kernels.time_of_noise(m, jnp.float32(sigma)))
    rng = np.random.default_rng(0)
    phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(oracle.integral(m, t))))
    x, eps = MIXTURE.sample(rng, num), rng.standard_normal((num, m.order, 2))
    u = (phi[:, :1] * x[:, None, :] + chol @ eps).astype(np.float32)
    eps_last = -chol[-1, -1] * MIXTURE.score(m, u.astype(np.float64), t)[:, -1:]
    return t, jnp.asarray(u), jnp.asarray(eps_last, jnp.float32), (phi, chol)


@functools.partial(jax.jit, static_argnums=0)
def all_views(m, u, t, eps_last, denoised):
    """Every view of the last block's noise, and the noise from the denoiser and back."""
    views = [f(m, u, t, eps_last) for f in (kernels.denoiser, kernels.full_noise, kernels.full_score)]
    again = kernels.last_noise(m, u, t, views[0])
    back = kernels.denoiser(m, u, t, kernels.last_noise(m, u, t, denoised))
    return (*views, kernels.last_score(m, t, eps_last), again, back)


def test_the_oracle_s_score_is_the_gradient_of_its_log_density():
    m, h = MODELS["hold3"], 1e-6
    t, u, _, _ = mixture_case(m, 0.5, num=4)
    u = np.asarray(u, np.float64)
    score = MIXTURE.score(m, u, t)
    for i in range(3):
        for j in range(2):
            shift = np.zeros((3, 2))
            shift[i, j] = h
            slope = (MIXTURE.log_density(m, u + shift, t) - MIXTURE.log_density(m, u - shift, t)) / (2 * h)
            np.testing.assert_allclose(score[:, i, j], slope, rtol=1e-5, atol=1e-5)


@views
@pytest.mark.parametrize("sigma", NOISES)
def test_the_last_block_gives_denoiser_and_every_score(m, sigma):
    t, u, eps_last, (_, chol) = mixture_case(m, sigma)
    want = MIXTURE.denoiser(m, np.asarray(u, np.float64), t)
    # One float32 rounding of L^-1 u moves D by 1e-7 |L^-1 u| / w_n; the bound is some of those.
    w = oracle.whitened_mean(m, float(oracle.integral(m, t))).astype(float)
    whitened = np.abs(np.linalg.inv(chol)) @ np.abs(np.asarray(u, np.float64))
    unit = 1.2e-7 * whitened.max(axis=(0, 2))
    bound = 10 * unit[-1] / abs(w[-1])
    got, full_noise, full_score, last_score, again, back = all_views(m, u, t, eps_last, want.astype(np.float32))
    np.testing.assert_allclose(got, want, atol=bound)
    np.testing.assert_allclose(again, eps_last, atol=10 * unit[-1])
    np.testing.assert_allclose(back, want, atol=bound)

    score = MIXTURE.score(m, np.asarray(u, np.float64), t)
    noise = -np.swapaxes(chol, 0, 1) @ score  # eps = -L' score
    spread = 10 * (unit + np.abs(w) * unit[-1] / abs(w[-1]))
    error = np.abs(np.asarray(full_noise) - noise).max(axis=(0, 2))
    assert (error < spread).all(), (error, spread)
    error = np.abs(np.asarray(full_score) - score).max(axis=(0, 2))
    assert (error < np.abs(np.linalg.inv(chol).T) @ spread).all()
    np.testing.assert_allclose(last_score[:, 0], score[:, -1], atol=5e-7 * np.abs(score[:, -1]).max())


@views
@pytest.mark.parametrize("sigma", NOISES)
def test_the_sufficient_statistic_is_all_that_a_denoiser_needs(m, sigma):
    # D(u, t) of the n-th order process = the ordinary first-order denoiser at (y, sigma_eff).
    t, u, _, _ = mixture_case(m, sigma)
    y, noise = jax.jit(kernels.sufficient_statistic, static_argnums=0)(m, u, t)
    assert float(noise) == pytest.approx(sigma, rel=1e-5)
    want = MIXTURE.denoiser(m, np.asarray(u, np.float64), t)
    got = MIXTURE.first_order_denoiser(np.asarray(y, np.float64), float(noise))
    # dD/dy = Var(q0 | y) / sigma^2 <= 1 here except between modes, where it is Var / sigma^2.
    slope = max(1.0, 1.3 / sigma**2)
    np.testing.assert_allclose(got, want, atol=3e-6 * slope * (1 + np.abs(y).max()))


@views
def test_the_sufficient_row_is_unbiased_with_effective_noise(m):
    # y = row u: row A = 1 and row Sigma row' = sigma_eff^2.
    t = times_of_process(m)
    row, sigma = jax.jit(kernels.sufficient_row, static_argnums=0)(m, t)
    for i in range(0, len(t), 3):
        phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(oracle.integral(m, t[i]))))
        r = np.asarray(row[i, 0], np.float64)
        # The entries of r are large and cancel in the noise: one float32 rounding of each shows.
        assert r @ phi[:, 0] == pytest.approx(1, abs=5e-6 * (np.abs(r) @ np.abs(phi[:, 0])))
        slack = 3e-6 * (np.abs(r) @ np.abs(chol).sum(axis=1)) / float(sigma[i])
        assert np.linalg.norm(r @ chol) == pytest.approx(float(sigma[i]), rel=5e-6 + slack)


@views
def test_perturb_draws_the_marginal(m):
    t = times_of_process(m)
    x = np.random.default_rng(0).standard_normal((13, 5, 2)).astype(np.float32)
    eps = np.random.default_rng(1).standard_normal((13, 5, m.order, 2)).astype(np.float32)
    got = np.asarray(jax.jit(kernels.perturb)(kernels.marginal(m, t), x, eps))
    for i, time in enumerate(t):
        phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(oracle.integral(m, time))))
        want = phi[:, :1] * x[i][:, None, :] + chol @ eps[i]
        size = (np.abs(phi[:, :1]) * np.abs(x).max() + np.linalg.norm(chol, axis=1, keepdims=True) * 4)[None]
        assert (np.abs(got[i] - want) / size).max() < 3e-6
