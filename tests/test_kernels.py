import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle
from tiers import slow_except

from hold_jax import kernels, sde
from hold_jax.errors import UserError
from hold_jax.numerics import exact

MODELS = {
    **{f"hold{n}": sde.hold(order=n) for n in range(1, 7)},
    "told": sde.hold(damping="told"),
    # Complex eigenvalues beside a slow real one.
    "own": sde.hold(order=4, gammas=(1.0, 2.0, 4.5), xi=9.5, L_inv=2.0, alpha=0.5),
    "cld": sde.cld(),
    "psld": sde.psld(),
    "vp": sde.vp(),
    "ve": sde.ve(),
}
every_model = pytest.mark.parametrize("m", slow_except(("hold3", "own", "psld", "vp"), MODELS))
PROCESS = slice(13, 26)  # of `times`


@pytest.fixture(autouse=True)
def _float32():
    assert not jax.config.jax_enable_x64


def times(m):
    """float32 times: 13 whose B spans [1e-5, 10], then 13 from t_min to T; both even on a log scale."""
    integrals = np.asarray(m.schedule.time(np.geomspace(1e-5, 10.0, 13)))
    process = np.clip(np.geomspace(m.t_min, m.T, 13), m.t_min, m.T)
    return np.concatenate([integrals, process]).astype(np.float32)


@functools.cache
def evaluated(m):
    """Everything of one model at `times(m)`, compiled once; s is the time before t, 0 at first."""
    t = times(m)
    s = np.where(np.roll(t, 1) < t, np.roll(t, 1), 0).astype(np.float32)

    dense = np.linspace(m.t_min, m.T, 300) if m.order > 1 else np.geomspace(m.t_min, m.T, 300)

    @jax.jit
    def everything(s, t):
        kernel = kernels.marginal(m, t)
        sigma = kernels.effective_noise(m, t)
        back = kernels.time_of_noise(m, sigma)
        return {
            "marginal": kernel,
            "transition": kernels.transition(m, jnp.zeros_like(t), t),
            "start": kernels.marginal(m, s),
            "step": kernels.transition(m, s, t),
            "still": kernels.transition(m, t, t),
            "zero": kernels.marginal(m, 0 * t),
            "backward": kernels.transition(m, t, 0.9 * t),
            "w": kernels.whitened_mean(kernel),
            "sigma": sigma,
            "back": back,
            "again": kernels.effective_noise(m, back),
            "outside": kernels.time_of_noise(m, jnp.float32([1e-9, 1e30])),
            "dense": kernels.effective_noise(m, dense.astype(np.float32)),
            "row": kernels.sufficient_row(m, t),
            "total": kernels.total_chol(m, t, 0.5),
        }

    out = everything(s, t)
    assert {a.dtype for a in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    return s, t, jax.tree.map(lambda a: np.asarray(a, np.float64), out)


# --- Accuracy. The oracle sees the exact value of the float32 time: rounding of B is our error. ----


@every_model
def test_kernels_to_float32_rounding(m):
    _, t, got = evaluated(m)
    for i in range(13):
        b = float(oracle.integral(m, t[i]))
        phi, noise = oracle.transition(m, b)
        _, total = oracle.marginal(m, b)
        assert oracle.row_error(got["transition"].phi[i], phi) < 3e-6
        assert oracle.row_error(got["marginal"].phi[i], phi) < 3e-6
        for chol, want in ((got["transition"].chol[i], noise), (got["marginal"].chol[i], total)):
            assert oracle.row_error(chol, want) < 3e-6
            # The diagonal relatively: scores are divided by L_nn.
            np.testing.assert_allclose(np.diagonal(chol), np.diagonal(want).astype(float), rtol=3e-6)
            assert (np.triu(chol, 1) == 0).all()


@every_model
def test_whitened_mean_and_effective_noise(m):
    _, t, got = evaluated(m)
    for i in range(0, 26, 3):
        b = float(oracle.integral(m, t[i]))
        assert oracle.row_error(got["w"][i], oracle.whitened_mean(m, b)) < 5e-6
        assert got["sigma"][i] == pytest.approx(oracle.effective_noise(m, b), rel=5e-6)


@every_model
def test_factor_of_the_total_covariance(m):
    _, t, got = evaluated(m)
    for i in range(13, 26, 3):
        _, want = oracle.marginal(m, float(oracle.integral(m, t[i])), data_std=0.5)
        assert oracle.row_error(got["total"][i], want) < 3e-6


@pytest.mark.parametrize("name", ["hold3", "vp", "ve"])
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


# --- Laws ------------------------------------------------------------------------------------------


@every_model
def test_composition(m):
    # transition(s, t) after marginal(s) is marginal(t).
    _, _, got = evaluated(m)
    first, then, whole = got["start"], got["step"], got["marginal"]
    for i in range(26):
        # A product's rounding is that of its terms, which at high order and large B exceed their sum.
        terms = np.abs(then.phi[i]) @ np.abs(first.phi[i]) + np.abs(whole.phi[i])
        assert (np.abs(then.phi[i] @ first.phi[i] - whole.phi[i]) / terms).max() < 3e-6
        carried = then.phi[i] @ first.chol[i]
        cov = carried @ carried.T + then.chol[i] @ then.chol[i].T
        want = whole.chol[i] @ whole.chol[i].T
        std = np.sqrt(np.diagonal(want))
        np.testing.assert_allclose(cov / np.outer(std, std), want / np.outer(std, std), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hold1", "hold3", "hold6", "psld", "vp"])
def test_stationary_limit(name):
    # Any start is forgotten: Phi vanishes and the factor is that of the stationary law.
    m = MODELS[name]
    top = float(m.schedule.time(15.9))
    phi, chol = kernels.marginal(m, top)
    want, _ = oracle.transition(m, float(oracle.integral(m, np.float32(top))))
    rest = float(np.abs(want.astype(float)).max())
    assert np.abs(phi).max() == pytest.approx(rest, rel=1e-5)
    np.testing.assert_allclose(chol, np.linalg.cholesky(m.prior_cov), atol=2 * rest + 1e-6)


@every_model
def test_no_time_is_the_identity_without_noise(m):
    _, _, got = evaluated(m)
    identity = np.broadcast_to(np.eye(m.order), (26, m.order, m.order))
    np.testing.assert_array_equal(got["still"].phi, identity)
    np.testing.assert_array_equal(got["still"].chol, 0)
    np.testing.assert_array_equal(got["zero"].phi, identity)
    # The factor is the limit from t > 0, where u_1 already follows u_2: it is not diagonal, its Gram matrix is.
    chol = got["zero"].chol
    cov = np.broadcast_to(m.cov0, chol.shape)
    np.testing.assert_allclose(chol @ np.swapaxes(chol, 1, 2), cov, atol=3e-7 * m.cov0.max())


@every_model
def test_outside_of_the_range_is_nan(m):
    _, _, got = evaluated(m)
    assert np.isnan(got["backward"].phi).all() and np.isnan(got["backward"].chol).all()
    assert np.isnan(got["outside"]).all()


@every_model
def test_clock(m):
    # time_of_noise inverts effective_noise, which grows.
    _, t, got = evaluated(m)
    np.testing.assert_allclose(got["back"][PROCESS], t[PROCESS], rtol=3e-6)
    np.testing.assert_allclose(got["again"][PROCESS], got["sigma"][PROCESS], rtol=2e-5)
    assert (np.diff(got["dense"]) > 0).all()


@every_model
def test_the_sufficient_row_is_unbiased_with_effective_noise(m):
    # y = row u: row A = 1 and row Sigma row' = sigma_eff^2.
    _, t, got = evaluated(m)
    rows, sigma = got["row"]
    for i in range(13, 26, 3):
        phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(oracle.integral(m, t[i]))))
        r = rows[i, 0]
        # The entries of r are large and cancel in the noise: one float32 rounding of each shows.
        assert r @ phi[:, 0] == pytest.approx(1, abs=5e-6 * (np.abs(r) @ np.abs(phi[:, 0])))
        slack = 3e-6 * (np.abs(r) @ np.abs(chol).sum(axis=1)) / sigma[i]
        assert np.linalg.norm(r @ chol) == pytest.approx(sigma[i], rel=5e-6 + slack)
        assert sigma[i] == pytest.approx(got["sigma"][i], rel=1e-6)


@pytest.mark.parametrize("n", [5, 6])
def test_the_sufficient_statistic_of_data_without_noise_are_the_data(n):
    # At t = 1e-5 and order 6 sigma_eff is 1e-28: its square is no float32.
    m, x = MODELS[f"hold{n}"], jnp.ones((2, 1))
    u = kernels.perturb(kernels.marginal(m, 1e-5), x, jnp.zeros((2, n, 1)))
    np.testing.assert_allclose(kernels.sufficient_statistic(m, u, 1e-5)[0], x, rtol=1e-4)


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

    Its covariance cancels at small B (which is why CLD's code computes it in float64): here in 80 digits.
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


# --- Transformations -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hold3", "hold6", "psld", "ve"])
def test_gradient_in_time(name):
    m = MODELS[name]
    n = m.order
    t = times(m)[PROCESS]

    @jax.jit
    @jax.vmap
    def slopes(t):
        kernel, slope = jax.jvp(lambda x: kernels.marginal(m, x), (t,), (jnp.ones_like(t),))
        del kernel
        return jnp.concatenate(slope, axis=-1), jax.grad(lambda x: jnp.log(kernels.effective_noise(m, x)))(t)

    got, got_sigma = slopes(t)
    assert np.isfinite(got).all() and np.isfinite(got_sigma).all()
    for i in range(0, len(t), 4):
        time = float(t[i])
        h = 1e-4 * time
        b = [float(m.schedule.integral(0.0, time + k * h)) for k in (-2, -1, 1, 2)]

        def difference(values, h=h):
            # Fourth order, in float64 of 80-digit values: right to 1e-10.
            return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)

        values = [np.concatenate(oracle.marginal(m, x), axis=-1).astype(np.float64) for x in b]
        want = difference(values)
        for part in (slice(None, n), slice(n, None)):
            # Relative to a row's slope or, at its extrema, to its size over t.
            size = np.linalg.norm(want[:, part], axis=-1) + np.linalg.norm(values[1][:, part], axis=-1) / time
            error = np.abs(np.asarray(got[i], np.float64) - want)[:, part].max(axis=-1) / size
            assert error.max() < 1e-4, (time, part)
        slope = difference([np.log(oracle.effective_noise(m, x)) for x in b])
        assert float(got_sigma[i]) == pytest.approx(slope, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hold2", "vp"])
def test_eager_jit_vmap_and_batch_agree(name):
    m = MODELS[name]
    t = jnp.asarray(times(m)[PROCESS])
    batch = kernels.marginal(m, t)
    outer = jax.jit(lambda x: kernels.marginal(m, x))(t)
    mapped = jax.vmap(lambda x: kernels.marginal(m, x))(t)
    with jax.disable_jit():
        eager = kernels.marginal(m, t)
    one = kernels.marginal(m, t[2])
    for phi, chol in (outer, mapped, eager):
        np.testing.assert_allclose(phi, batch.phi, atol=3e-7 * np.abs(batch.phi).max())
        np.testing.assert_allclose(chol, batch.chol, atol=3e-7 * np.abs(batch.chol).max())
    np.testing.assert_allclose(one.chol, batch.chol[2], atol=3e-7 * np.abs(batch.chol[2]).max())


def test_mix_is_a_matrix_product_on_the_block_axis():
    rng = np.random.default_rng(0)
    u = rng.standard_normal((5, 4, 4, 3, 2)).astype(np.float32)
    one, each = rng.standard_normal((2, 3)).astype(np.float32), rng.standard_normal((5, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(kernels.mix(one, jnp.asarray(u)), np.einsum("kj,bxyjc->bxykc", one, u), atol=1e-6)
    np.testing.assert_allclose(kernels.mix(each, jnp.asarray(u)), np.einsum("bkj,bxyjc->bxykc", each, u), atol=1e-6)


@pytest.mark.parametrize("blocks", [2, 5])
@pytest.mark.parametrize("t", [0.5, [0.5] * 4])
def test_a_state_of_another_number_of_blocks_is_named(blocks, t):
    u = jnp.zeros((4, blocks, 2))
    with pytest.raises(ValueError, match=rf"^`u.shape\[-2\]` is {blocks}; it must be 3, the number of blocks$"):
        kernels.denoiser(MODELS["hold3"], u, jnp.float32(t), u[..., :1, :])


def test_mix_multiplies_on_cpu_and_sums_elsewhere():
    args = jnp.ones((2, 3, 3)), jnp.ones((2, 4, 4, 3, 1))
    text = {
        platform: jax.jit(kernels.mix).trace(*args).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert {platform: "dot_general" in lowered for platform, lowered in text.items()} == {
        "cpu": True,
        "tpu": False,
        "cuda": False,
    }
    # No branch is left to take at run time.
    assert "conditional" not in jax.jit(kernels.mix).lower(*args).compile().as_text()


# --- One output, every view: against the exact posterior of a Gaussian mixture ---------------------------

MIXTURE = oracle.Mixture([0.3, 0.5, 0.2], [[1.0, 0.0], [-0.6, 0.4], [0.2, -1.0]], [0.1, 0.3, 0.05])
VIEWED = {k: MODELS[k] for k in ("hold1", "hold2", "hold3", "hold4", "psld", "ve")}
views = pytest.mark.parametrize("m", VIEWED.values(), ids=VIEWED)
NOISES = (0.01, 0.1, 0.5, 2.0, 20.0)


def mixture_case(m, sigma, num=32):
    """t, float32 states u_t (B, n, d) of the mixture, its score there, Phi and L; all but u in float64."""
    t = np.float32(m.schedule.time(oracle.integral_of_noise(m, sigma)))
    rng = np.random.default_rng(0)
    phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(oracle.integral(m, t))))
    x, eps = MIXTURE.sample(rng, num), rng.standard_normal((num, m.order, 2))
    u = (phi[:, :1] * x[:, None, :] + chol @ eps).astype(np.float32)
    return t, u, MIXTURE.score(m, u.astype(np.float64), t), phi, chol


@functools.partial(jax.jit, static_argnums=0)
def all_views(m, u, t, eps_last, denoised):
    """Every view of the last block's noise, and the noise from the denoiser and back."""
    views = [f(m, u, t, eps_last) for f in (kernels.denoiser, kernels.full_noise, kernels.full_score)]
    again = kernels.last_noise(m, u, t, views[0])
    back = kernels.denoiser(m, u, t, kernels.last_noise(m, u, t, denoised))
    return *views, kernels.last_score(m, t, eps_last), again, back, *kernels.sufficient_statistic(m, u, t)


def test_the_oracle_s_score_is_the_gradient_of_its_log_density():
    m, h = MODELS["hold3"], 1e-6
    t, u, score, _, _ = mixture_case(m, 0.5, num=4)
    u = u.astype(np.float64)
    for i in range(3):
        for j in range(2):
            shift = np.zeros((3, 2))
            shift[i, j] = h
            slope = (MIXTURE.log_density(m, u + shift, t) - MIXTURE.log_density(m, u - shift, t)) / (2 * h)
            np.testing.assert_allclose(score[:, i, j], slope, rtol=1e-5, atol=1e-5)


@views
@pytest.mark.parametrize("sigma", NOISES)
def test_the_last_block_gives_denoiser_and_every_score(m, sigma):
    t, u, score, phi, chol = mixture_case(m, sigma)
    eps_last = -chol[-1, -1] * score[:, -1:]
    want = MIXTURE.denoiser(m, u.astype(np.float64), t)
    denoised, full_noise, full_score, last_score, again, back, y, noise = all_views(
        m, u, t, eps_last.astype(np.float32), want.astype(np.float32)
    )
    # One float32 rounding of L^-1 u moves D by 1e-7 |L^-1 u| / w_n; the bounds are ten of those.
    inverse = np.linalg.inv(chol)
    w = inverse @ phi[:, 0]
    unit = 1.2e-6 * (np.abs(inverse) @ np.abs(u.astype(np.float64))).max(axis=(0, 2))
    bound = unit[-1] / abs(w[-1])
    np.testing.assert_allclose(denoised, want, atol=bound)
    np.testing.assert_allclose(back, want, atol=bound)
    np.testing.assert_allclose(again, eps_last, atol=unit[-1])

    spread = unit + np.abs(w) * bound
    error = np.abs(full_noise + chol.T @ score).max(axis=(0, 2))  # eps = -L' score
    assert (error < spread).all(), (error, spread)
    error = np.abs(full_score - score).max(axis=(0, 2))
    assert (error < np.abs(inverse.T) @ spread).all(), error
    np.testing.assert_allclose(last_score[:, 0], score[:, -1], atol=5e-7 * np.abs(score[:, -1]).max())

    # Sufficiency: D(u, t) of the n-th order process = the ordinary first-order denoiser at (y, sigma_eff).
    assert float(noise) == pytest.approx(sigma, rel=1e-5)
    got = MIXTURE.first_order_denoiser(np.asarray(y, np.float64), float(noise))
    # dD/dy = Var(q0 | y) / sigma^2, at most 1.3 / sigma^2 here, between modes.
    slope = max(1.0, 1.3 / sigma**2)
    np.testing.assert_allclose(got, want, atol=3e-6 * slope * (1 + np.abs(y).max()))


@pytest.mark.parametrize("name", ["hold1", "hold3", "psld"])
def test_perturb_draws_the_marginal(name):
    m = MODELS[name]
    _, t, _ = evaluated(m)
    t = t[PROCESS]
    x = np.random.default_rng(0).standard_normal((13, 5, 2)).astype(np.float32)
    eps = np.random.default_rng(1).standard_normal((13, 5, m.order, 2)).astype(np.float32)
    got = np.asarray(jax.jit(lambda t: kernels.perturb(kernels.marginal(m, t), x, eps))(t))
    for i, time in list(enumerate(t))[::3]:
        phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(oracle.integral(m, time))))
        want = phi[:, :1] * x[i][:, None, :] + chol @ eps[i]
        size = (np.abs(phi[:, :1]) * np.abs(x).max() + np.linalg.norm(chol, axis=1, keepdims=True) * 4)[None]
        assert (np.abs(got[i] - want) / size).max() < 3e-6


@pytest.mark.slow
def test_a_clock_that_stalls_still_reads_both_ways():
    # Slow complex eigenvalues: at B = 3.8 the last block tells nothing new of q0, d sigma_eff/dB = 3e-8.
    m = sde.hold(order=4, gammas=(1.0, 1.5, 3.0), xi=4.0, L_inv=2.0, alpha=0.5)
    sigma = np.geomspace(0.002, 79.0, 200).astype(np.float32)
    np.testing.assert_allclose(kernels.effective_noise(m, kernels.time_of_noise(m, sigma)), sigma, rtol=5e-6)


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.marginal,
        lambda m, t: kernels.total_chol(m, t, 0.5),
        pytest.param(lambda m, t: kernels.flow_factor(m, t, 1e-6), marks=pytest.mark.slow),
    ],
    ids=["marginal", "total_chol", "flow_factor"],
)
def test_kernels_too_rough_to_tabulate_are_one_clear_error(kernel):
    with pytest.raises(UserError, match=r"nearer to sde\.critical_damping"):
        kernel(sde.hold(order=4, gammas=(1.0, 0.3, 4.0), xi=0.9), 1.0)


def test_a_start_of_small_variance_is_not_taken_for_the_process():
    # Below B = 1e-6 the variance of the start is the larger one, above it that of the process.
    m, t = sde.hold(2, alpha=1e-6), np.geomspace(1e-9, 1.0, 10).astype(np.float32)
    got = kernels.marginal(m, t)
    for i, time in enumerate(t):
        _, want = oracle.marginal(m, float(oracle.integral(m, time)))
        assert oracle.row_error(got.chol[i], want) < 3e-6
        np.testing.assert_allclose(np.diagonal(got.chol[i]), np.diagonal(want).astype(float), rtol=3e-6)
    b = np.float64(sde.vp().schedule.integral(0.0, t.astype(np.float64)))
    for std in (1e-3, 1e-4):
        want = np.sqrt(std**2 * np.exp(-b) - np.expm1(-b))
        np.testing.assert_allclose(kernels.total_chol(sde.vp(), t, std)[:, 0, 0], want, rtol=3e-6)


@pytest.mark.parametrize("name", ["vp", "ve", "hold1", "psld", "hold3"])
def test_the_clock_reads_from_a_noise_of_1e_5_on(name):
    m, sigma = MODELS[name], np.geomspace(1.01e-5, 0.01, 30).astype(np.float32)
    t = kernels.time_of_noise(m, sigma)
    np.testing.assert_allclose(kernels.effective_noise(m, t), sigma, rtol=2e-6)
    kernels.require_clock(m, float(t[0]))
    with pytest.raises(UserError, match=r"^`t_min` is .*; it must be a time of an effective noise above 1e-05, not "):
        kernels.require_clock(m, float(m.schedule.time(exact.integral_of_noise(m.F, m.G, m.cov0, 0.9e-5))))


@pytest.mark.parametrize(
    ("name", "least", "below"),  # the effective noise is about t^(n - 1/2), and B = t beta
    [
        ("vp", 2e-37, 1e-37),
        ("hold1", 2e-38, 1e-38),
        ("hold2", 1e-25, 1e-26),
        ("hold3", 1e-15, 1e-16),
        ("hold6", 2e-7, 1e-7),
    ],
)
def test_a_least_time_has_a_kernel_in_float32(name, least, below):
    m = MODELS[name]
    assert kernels.require_t_min(m, np.float64(least)) == least
    assert np.isfinite(kernels.effective_noise(m, least))
    assert not 0 < float(kernels.effective_noise(m, below)) < np.inf
    for t in (below, 1e-60, 1e-100, 1e-300):
        error = (
            rf"^`loss.t_min` is {t}; it must be a time of an effective noise above \S+, not \d\S*; `sde.t_min` is \d"
        )
        with pytest.raises(UserError, match=error):
            kernels.require_t_min(m, t, "loss.t_min")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "psld", "hold3", "hold6"])
def test_a_state_is_its_sufficient_statistic_and_the_rest(name):
    """u = A y + L K rest, K orthonormal, of whitened vectors that tell nothing of q0; one such K from t_min to T."""
    m = MODELS[name]
    t = jnp.asarray(np.geomspace(m.t_min, m.T * (1 - 1e-6), 50), jnp.float32)
    y, rest = jax.random.normal(jax.random.key(0), (50, 3)), jax.random.normal(jax.random.key(1), (50, m.order - 1, 3))
    u = kernels.state_of(m, y, rest, t)
    np.testing.assert_allclose(kernels.sufficient_statistic(m, u, t)[0], y, atol=1e-5 * (1 + m.T))
    kernel = kernels.marginal(m, t)
    basis = np.asarray(kernels.rest_basis(m, t), np.float64)
    np.testing.assert_allclose(
        np.swapaxes(basis, 1, 2) @ basis,
        np.broadcast_to(np.eye(m.order - 1), (50, m.order - 1, m.order - 1)),
        atol=1e-6,
    )
    w = np.asarray(kernels.whitened_mean(kernel), np.float64)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    np.testing.assert_allclose(np.einsum("ti,tij->tj", w, basis), 0, atol=1e-6)
    # Away from y the whitened state is the rest.
    away = u - kernels.mix(kernel.phi[..., :, :1], y[..., None, :])
    whitened = kernels.mix(kernels.inverse_lower(kernel.chol), away)
    np.testing.assert_allclose(kernels.mix(jnp.swapaxes(kernels.rest_basis(m, t), 1, 2), whitened), rest, atol=2e-4)
    # Continuous: no column turns over from one time to the next.
    assert (np.sum(basis[1:] * basis[:-1], axis=1) > 0.5).all()


@pytest.mark.parametrize("shape", [(3, 1), (1, 2), (3,), (3, 1, 2)])
def test_what_would_broadcast_to_wrong_numbers_is_refused(shape):
    m, u, t = sde.hold(2), jnp.ones((3, 2, 2)), jnp.full(3, 0.5)
    wrong = re.escape(f" is {shape}; it must be of shape (3, 2), as the data")
    with pytest.raises(UserError, match="`denoised`" + wrong):
        kernels.last_noise(m, u, t, jnp.zeros(shape))
    with pytest.raises(UserError, match="`shift`" + wrong):
        kernels.shifted_noise(m, t, u[:, -1:], jnp.zeros(shape))
    with pytest.raises(
        UserError, match=re.escape("`eps` is (3, 2, 1); it must be of shape (3, 2, 2), noise for every")
    ):
        kernels.perturb(kernels.marginal(m, t), jnp.zeros((3, 2)), jnp.zeros((3, 2, 1)))
