import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle
from scipy.integrate import solve_ivp

from hold_jax import kernels, losses, parameterization, sde
from hold_jax.errors import UserError

MODELS = {
    "hold1": sde.hold(order=1),
    "hold3": sde.hold(order=3),
    "psld": sde.psld(),
    "ve": sde.ve(),
}
every_model = pytest.mark.parametrize("m", MODELS.values(), ids=MODELS)
STD = 0.5


def times(m, num=9):
    return np.clip(np.geomspace(m.t_min, m.T, num), m.t_min, m.T).astype(np.float32)


def zero(inputs, noise):
    assert inputs.shape[:1] == noise.shape
    return jnp.zeros((*inputs.shape[:-1], 2))


def wrapped(m, network, name="gaussian", **options):
    """`eps_function`, jitted."""
    function = parameterization.PARAMETERIZATIONS[name]
    return jax.jit(parameterization.eps_function(m, network, parameterization=function, **options))


@functools.cache
def coefficients(m, name):
    """Coefficients at `times(m)`, in float64."""
    c = jax.jit(lambda t: parameterization.PARAMETERIZATIONS[name](m, t, STD))(times(m))
    return parameterization.Coefficients(*(np.asarray(a, np.float64) for a in c))


def states(m, t, std, seed=0):
    """One state u_t (B, 4, n, 2) for each time, of data N(0, std^2): float32, made in float64."""
    rng = np.random.default_rng(seed)
    phi, chol = oracle.marginal(m, oracle.integral(m, t), digits=False)
    x, eps = std * rng.standard_normal((len(t), 4, 1, 2)), rng.standard_normal((len(t), 4, m.order, 2))
    return (phi[:, None, :, :1] * x + chol[:, None] @ eps).astype(np.float32)


@every_model
@pytest.mark.parametrize("name", ["gaussian", "sufficient"])
def test_a_zero_network_is_optimal_for_gaussian_data(m, name):
    t = times(m)
    u = states(m, t, STD)
    eps_fn = wrapped(m, zero, name, sigma_data=STD)
    row, _ = oracle.gaussian_row(m, t, STD)
    want = np.einsum("bi,bxic->bxc", row, u.astype(np.float64))[:, :, None]
    # `gaussian` rounds each term of the exact row. `sufficient` goes through D, so that it rounds [L^-1 u]_n, as
    # EDM's (x - D) / sigma does.
    if name == "sufficient":
        _, chol = oracle.marginal(m, oracle.integral(m, t), digits=False)
        row = oracle.inverse_lower(chol)[:, -1]
    terms = np.einsum("bi,bxic->bxc", np.abs(row), np.abs(u)).max(axis=(1, 2))
    error = np.abs(np.asarray(eps_fn(jnp.asarray(u), t)) - want).max(axis=(1, 2, 3))
    assert (error < 1e-6 * terms + 1e-6).all(), error / terms


@every_model
@pytest.mark.parametrize("name", ["gaussian", "sufficient"])
def test_the_network_s_target_has_unit_variance(m, name):
    # eps_n - c_skip u over u = A q0 + L eps is linear in (q0, eps): its variance needs no sampling.
    t = times(m)
    c = coefficients(m, name)
    for i, time in enumerate(t):
        phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(oracle.integral(m, time))))
        skip, out = c.c_skip[i, 0], c.c_out[i]
        on_noise = np.eye(m.order)[-1] - skip @ chol
        variance = (STD * (skip @ phi[:, 0])) ** 2 + on_noise @ on_noise
        # 1 - L_nn skip_n cancels where c_out is small: the slack is the rounding of skip L over c_out.
        slack = 3e-6 * (np.abs(skip) @ np.abs(chol)).sum() / abs(out)
        assert variance / out**2 == pytest.approx(1, abs=2e-5 + slack)


@every_model
@pytest.mark.parametrize("name", ["gaussian", "sufficient"])
def test_the_network_s_input_has_unit_covariance(m, name):
    t = times(m)
    c_in = coefficients(m, name).c_in
    for i, time in enumerate(t):
        _, total = oracle.marginal(m, float(oracle.integral(m, time)), data_std=STD)
        factor = c_in[i] @ total.astype(np.float64)
        slack = 3e-6 * (np.abs(c_in[i]) @ np.abs(total.astype(np.float64))).max()
        np.testing.assert_allclose(factor @ factor.T, np.eye(len(factor)), atol=5e-6 + slack)


def flow_factors(m, t):
    """R (N, n, n) of gDDIM's equation 17 from (C0 + 1e-6)^(1/2), by an adaptive solver in float64."""

    def slope(_, r):
        r = r.reshape(m.order, m.order)
        return (m.F @ r + m.G @ m.G.T @ np.linalg.inv(r).T / 2).ravel()

    start, b = np.sqrt(m.cov0 + 1e-6 * np.eye(m.order)), m.schedule.integral(0.0, t.astype(np.float64))
    out = solve_ivp(slope, (0, b[-1]), start.ravel(), t_eval=b, rtol=1e-11, atol=1e-13, method="DOP853")
    return out.y.T.reshape(-1, m.order, m.order)


@pytest.mark.parametrize(
    ("m", "name"), [(sde.psld(), "noise"), (sde.cld(), "noise"), (sde.cld(), "flow_noise"), (sde.hold(3), "flow_noise")]
)
def test_the_exact_noise_of_every_block_gives_that_of_the_last(m, name):
    t = np.geomspace(0.02, 1, 6).astype(np.float32) * np.float32(m.T)
    u = states(m, t, STD)
    phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, oracle.integral(m, t), digits=False))
    inverse = oracle.inverse_lower(chol)
    w = np.einsum("bij,bj->bi", inverse, phi[:, :, 0])
    z = np.einsum("bij,bxjc->bxic", inverse, u)
    D = np.einsum("bi,bxic->bxc", w, z) / (np.sum(w**2, -1) + STD**-2)[:, None, None]
    eps = z - np.einsum("bi,bxc->bxic", w, D)  # the posterior mean of the noise, Cholesky factor
    factor = chol if name == "noise" else flow_factors(m, t)
    out = np.einsum("bij,bxjc->bxic", np.linalg.inv(factor) @ chol, eps)

    def network(inputs, noise):
        assert inputs.shape == (len(t), 4, m.order * 2)
        return jnp.asarray(out.reshape(len(t), 4, -1), jnp.float32)

    got = wrapped(m, network, name)(jnp.asarray(u), t)
    np.testing.assert_allclose(got[:, :, 0], eps[:, :, -1], atol=2e-5 if name == "noise" else 1e-4)


def edm(x, sigma, network, sigma_data):
    """D(x; sigma) of 2206.00364, eq. 7 and table 1, float64."""
    total = sigma**2 + sigma_data**2
    inputs = x / np.sqrt(total)
    return sigma_data**2 / total * x + sigma * sigma_data / np.sqrt(total) * network(inputs, np.log(sigma) / 4)


def vp_time(sigma):
    """t and alpha of 2011.13456's VP with beta from 0.1 to 20, where its noise over alpha is sigma; float64."""
    rate = np.log1p(sigma**2)
    return (np.sqrt(0.1**2 + 4 * 9.95 * rate) - 0.1) / (2 * 9.95), np.exp(-rate / 2)


def subvp_time(sigma):
    """As `vp_time` for sub-VP, whose noise is 1 - alpha^2."""
    rate = 2 * np.arcsinh(sigma / 2)
    return (np.sqrt(0.1**2 + 4 * 9.95 * rate) - 0.1) / (2 * 9.95), np.exp(-rate / 2)


def from_score(time, std_of):
    """D = (x + std^2 score) / alpha at x = alpha y, from score = -network / std: score_sde's VP and sub-VP."""

    def of(y, sigma, network, sigma_data):
        t, alpha = time(sigma)
        std = std_of(alpha)
        score = -network(alpha * y, 999 * t) / std
        return (alpha * y + std**2 * score) / alpha

    return of


def ve(y, sigma, network, sigma_data):
    """D of score_sde's VE, which sees pictures x in [0, 1] at half the noise, and shows the network 2 x - 1."""
    x, std = (y + 1) / 2, sigma / 2
    score = network(2 * x - 1, np.log(std)) / std
    return 2 * (x + std**2 * score) - 1


def from_discrete(denoise):
    """D of a network that sees x = sqrt(abar) y and the index of the noise, from its output there (2202.00512, 4)."""

    def of(y, sigma, network, sigma_data):
        alpha, std = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
        index = np.interp(np.log(sigma), np.log(oracle.discrete_sigmas("linear")), np.arange(1000.0))
        return denoise(alpha * y, alpha, std, network(alpha * y, index))

    return of


DENOISERS = {
    "sufficient": ("log_noise", edm),
    "gaussian": ("log_noise", edm),
    "vp": ("vp_time", from_score(vp_time, lambda alpha: np.sqrt(1 - alpha**2))),
    "subvp": ("subvp_time", from_score(subvp_time, lambda alpha: 1 - alpha**2)),
    "ve": ("ve_noise", ve),
    "v": ("discrete_time", from_discrete(lambda x, alpha, std, out: alpha * x - std * out)),
    "x0": ("discrete_time", from_discrete(lambda x, alpha, std, out: out)),
}
AT_EVERY_ORDER = [(k, "sufficient") for k in MODELS] + [
    (k, n) for n in ("vp", "subvp", "ve", "v", "x0") for k in ("hold1", "hold3")
]


@pytest.mark.parametrize(("model", "name"), [("hold1", "gaussian"), ("ve", "gaussian"), *AT_EVERY_ORDER])
def test_denoisers(model, name):
    # At order one `gaussian` is EDM's D of x / A at sigma = L / A; the others are the same D of y at every order.
    clock, denoise = DENOISERS[name]
    m = MODELS[model]
    t = times(m)
    u = states(m, t, STD)

    def network(xp):
        def of(inputs, noise):
            # Labels reach 999: their share must not drown in the rounding of a large argument.
            noise = noise.reshape(-1, *(1,) * (inputs.ndim - 1)) / (300 if clock.endswith("time") else 1)
            # score_sde's VE shows y as it is, up to 300: a large argument again.
            return xp.sin(3 * inputs / (1 + 0.1 * abs(inputs)) + noise) + 0.3 * noise

        return of

    conditioning = parameterization.CONDITIONINGS[clock]
    eps_fn = wrapped(m, network(jnp), name, sigma_data=STD, conditioning=conditioning)
    got = jax.jit(lambda u, t: kernels.denoiser(m, u, t, eps_fn(u, t)))(u, t)

    phi, chol = oracle.marginal(m, oracle.integral(m, t), digits=False)
    solved = np.linalg.solve(chol @ np.swapaxes(chol, 1, 2), phi[..., :1])[..., 0]  # Sigma^-1 A
    snr = (solved * phi[..., 0]).sum(axis=-1)
    y = np.einsum("bi,bxic->bxc", solved, u.astype(np.float64)) / snr[:, None, None]
    sigma = snr[:, None, None] ** -0.5
    want = denoise(y, sigma, network(np), STD)
    # D = ([L^-1 u]_n - eps_n) / w_n: float32 rounding of the difference, seen through 1 / w_n.
    inverse = np.linalg.inv(chol)
    w = (inverse @ phi[..., :1])[:, -1, 0]
    whitened = np.einsum("bi,bxic->bxc", np.abs(inverse[:, -1]), np.abs(u)).max(axis=(1, 2))
    error = np.abs(np.asarray(got) - want).max(axis=(1, 2))
    # EDM's c_out is at most sigma_data; the others' is sigma, times the rounding of the network and its condition.
    c_out = 0 if denoise is edm else sigma[:, 0, 0]
    assert (error < 5e-6 + 1e-6 * whitened / np.abs(w) + 1e-5 * c_out).all(), error


@pytest.mark.parametrize("name", ["vp", "ve", "subvp"])
def test_at_order_one_the_network_is_the_noise_itself(name):
    # c_skip = 1 leaves nothing of u, not the rounding of 1 - 1 over a small noise.
    c = coefficients(MODELS["hold1"], name)
    np.testing.assert_array_equal(c.c_skip, 0)
    np.testing.assert_allclose(c.c_out, -1 if name == "ve" else 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["vp", "v", "x0", "ve"])
@pytest.mark.parametrize("order", [1, 3])
def test_a_denoiser_is_held_above_the_noise_of_its_training(name, order):
    # For constant data the last of the levels is enough: the network is exact there, and knows no other.
    m, data = sde.hold(order), jnp.array([[0.5, -0.2]])
    clock = parameterization.discrete_time("scaled_linear", 0.00085, 0.012)
    if name == "ve":
        clock = parameterization.discrete_noise(0.02, 14.6, 10)
    alpha = 1 / np.sqrt(1 + clock.noise_max**2)
    sigma = alpha * clock.noise_max

    def network(inputs, index):
        noise = (inputs - alpha * data) / sigma
        return {
            "vp": noise,
            "v": alpha * noise - sigma * data,
            "x0": jnp.broadcast_to(data, inputs.shape),
            "ve": -(inputs - data) / clock.noise_max,  # D = y + noise_max network
        }[name]

    eps_fn = parameterization.eps_function(m, network, parameterization=name, conditioning=clock)
    t = kernels.time_of_noise(m, jnp.array([14.62, 14.7, 30.0, 79.0]))
    u = 20 * jax.random.normal(jax.random.key(0), (4, order, 2))
    got = kernels.denoiser(m, u, t, eps_fn(u, t))
    np.testing.assert_allclose(got, np.broadcast_to(data, (4, 2)), atol=1e-3)

    # Below it, and with a clock without an end, nothing changes.
    free = parameterization.eps_function(m, network, parameterization=name, conditioning=lambda sde, t: clock(sde, t))
    t = kernels.time_of_noise(m, jnp.array([0.01, 1.0, 10.0, 14.58]))
    np.testing.assert_array_equal(jax.jit(eps_fn)(u, t), jax.jit(free)(u, t))
    if name == "vp":
        t = jnp.full(4, m.T)
        assert jnp.max(jnp.abs(kernels.denoiser(m, u, t, free(u, t)))) > 2


@pytest.mark.parametrize("shape", [(4, 1), (1, 2), (), (4, 2, 1), (4, 4)])
def test_a_network_s_output_of_another_shape_is_refused(shape):
    m, u = sde.hold(2), jnp.ones((4, 2, 2))
    eps_fn = parameterization.eps_function(m, lambda inputs, c_noise: jnp.zeros(shape))
    message = re.escape(f"`network(inputs, c_noise)` is {shape}; it must be of shape (4, 2)")
    with pytest.raises(UserError, match=message):
        eps_fn(u, jnp.ones(4))


@pytest.mark.slow
def test_denoisers_are_those_that_see_y_and_its_noise_alone():
    # At the same noise two processes give the network the same condition and, of the state, one block.
    pair = [(m, kernels.time_of_noise(m, jnp.float32(0.7))) for m in (MODELS["hold1"], MODELS["hold3"])]
    forms, clocks = parameterization.PARAMETERIZATIONS, parameterization.CONDITIONINGS
    one_block = {
        name
        for name, form in forms.items()
        if all(jax.eval_shape(lambda t, m=m, form=form: form(m, t, STD).c_in, t).shape[-2] == 1 for m, t in pair)
    }
    conditions = {
        clock: [float(jax.jit(lambda t, m=m, of=of: of(m, t))(t)) for m, t in pair] for clock, of in clocks.items()
    }
    common = {clock for clock, (a, b) in conditions.items() if a == pytest.approx(b, rel=1e-5)}
    for name in forms:
        for clock in clocks:
            expected = name in one_block and clock in common
            assert parameterization.is_denoiser(name, clock) == expected, (name, clock)


@pytest.mark.parametrize("model", ["hold1", "hold3", "psld"])
def test_mixed_with_a_zero_network_is_exact_for_data_of_the_stationary_law(model):
    # u_n is independent of the other blocks where the process is stationary: eps_n = L_nn u_n / Sigma_nn.
    m = MODELS[model]
    t = np.asarray(m.schedule.time(np.array([12.0, 14.0]))).astype(np.float32)
    std = float(np.sqrt(m.prior_cov[0, 0]))
    u = states(m, t, std)
    eps_fn = wrapped(m, zero, "mixed")
    row, _ = oracle.gaussian_row(m, t, std)
    want = np.einsum("bi,bxic->bxc", row, u.astype(np.float64))[:, :, None]
    np.testing.assert_allclose(eps_fn(jnp.asarray(u), t), want, atol=2e-5)


@pytest.mark.parametrize("model", ["hold3", "psld"])
def test_mixed_adds_the_noise_of_a_gaussian_last_block(model):
    m = MODELS[model]
    # CLD 2112.07068, section 3.3: score of N(0, Sigma_nn) on u_n; here Sigma is the law given q0 = 0.
    t = times(m)
    u = states(m, t, 0.0)
    eps_fn = wrapped(m, lambda x, noise: 0.7 * jnp.ones((*x.shape[:-1], 2)), "mixed")
    _, chol = oracle.marginal(m, oracle.integral(m, t), digits=False)
    skip = chol[:, -1, -1] / (chol[:, -1] ** 2).sum(axis=-1)
    want = 0.7 + skip[:, None, None] * u[:, :, -1].astype(np.float64)
    np.testing.assert_allclose(eps_fn(jnp.asarray(u), t)[:, :, 0], want, rtol=3e-6, atol=3e-6)


def test_eps_is_the_bare_network_on_stacked_channels():
    m = MODELS["hold3"]
    t = times(m)
    u = states(m, t, STD)
    seen = []

    def network(inputs, noise):
        seen.append((np.asarray(inputs), np.asarray(noise)))
        return inputs[..., 4:]

    eps_fn = parameterization.eps_function(
        m, network, parameterization=parameterization.eps, conditioning=parameterization.scaled_time
    )
    np.testing.assert_array_equal(eps_fn(jnp.asarray(u), t), u[:, :, 2:])
    np.testing.assert_array_equal(seen[0][0], u.reshape(9, 4, 6))
    np.testing.assert_allclose(seen[0][1], 999 * t.astype(np.float64) / m.T, rtol=1e-6)


@pytest.mark.parametrize("name", ["mixed", "gaussian", "sufficient"])
def test_one_time_for_the_batch(name):
    m = MODELS["hold3"]
    eps_fn = wrapped(m, lambda x, noise: jnp.cos(x[..., :2] + noise[:, None, None]), name)
    u = jnp.asarray(states(m, np.full(3, 0.7, np.float32), STD))
    np.testing.assert_allclose(eps_fn(u, jnp.float32(0.7)), eps_fn(u, jnp.full(3, 0.7)), atol=1e-6)


def test_names_stand_for_the_functions_and_numbers_of_jax_for_numbers():
    m = MODELS["hold3"]
    u, t = jnp.ones((2, 3, 2)), jnp.full(2, 0.5)
    network = lambda inputs, noise_cond: inputs[..., :2] * noise_cond[:, None]  # noqa: E731
    functions = {"parameterization": parameterization.gaussian, "conditioning": parameterization.log_time}
    names = {"parameterization": "gaussian", "conditioning": "log_time"}
    found = parameterization.eps_function(m, network, sigma_data=jnp.float32(0.25), **names)(u, t)
    want = parameterization.eps_function(m, network, sigma_data=0.25, **functions)(u, t)
    np.testing.assert_array_equal(found, want)
    with pytest.raises(ValueError, match=r"`parameterization` is 'gausian' \(did you mean 'gaussian'"):
        parameterization.eps_function(m, network, parameterization="gausian")


def test_another_dtype_is_refused():
    m = MODELS["hold3"]
    u = jnp.zeros((2, 4, 3, 2))
    eps_fn = parameterization.eps_function(m, zero)
    with pytest.raises(UserError, match=r"u is bfloat16.*float32"):
        eps_fn(u.astype(jnp.bfloat16), jnp.float32(0.5))
    half = parameterization.eps_function(m, lambda x, noise: zero(x, noise).astype(jnp.bfloat16))
    with pytest.raises(UserError, match=r"network output is bfloat16"):
        half(u, jnp.float32(0.5))
    with jax.enable_x64(True), pytest.raises(UserError, match=r"u is float64"):
        eps_fn(jnp.zeros((2, 4, 3, 2), jnp.float64), 0.5)


@every_model
def test_score_is_the_last_block_s_score(m):
    t = times(m)
    u = states(m, t, STD)
    network = lambda inputs, noise: jnp.sin(inputs[..., :2])  # noqa: E731
    eps_fn = wrapped(m, network, "score")
    got = jax.jit(lambda u, t: kernels.last_score(m, t, eps_fn(u, t)))(u, t)
    np.testing.assert_allclose(got[..., 0, :], np.sin(u.reshape(len(t), 4, -1)[..., :2]), rtol=2e-6, atol=1e-7)


@every_model
def test_signal_is_the_noise_along_the_signal(m):
    # D = y - sigma_eff net for any network: an error of the output is that of D in units of the noise, at every time.
    t = times(m)
    u = states(m, t, STD)
    network = lambda inputs, noise: jnp.sin(inputs[..., :2])  # noqa: E731
    eps_fn = wrapped(m, network, "signal")
    got = jax.jit(lambda u, t: kernels.denoiser(m, u, t, eps_fn(u, t)))(u, t)
    phi, chol = oracle.marginal(m, oracle.integral(m, t), digits=False)
    inverse = oracle.inverse_lower(chol)
    w = inverse @ phi[..., :1]
    snr = (w**2).sum(axis=(1, 2))
    y = np.einsum("bi,bij,bxjc->bxc", w[..., 0], inverse, u.astype(np.float64)) / snr[:, None, None]
    want = y - np.sin(u.reshape(len(t), 4, -1)[..., :2].astype(np.float64)) / np.sqrt(snr)[:, None, None]
    # float32 in units of what D is made of.
    np.testing.assert_allclose(got, want, atol=3e-5 * (1 + np.abs(y).max()))


def test_the_noise_of_all_blocks_is_learned_by_that_along_the_signal():
    # PSLD's loss sums the squared errors of both noises; all but w' eps / |w| is a linear function of u.
    m = sde.psld()
    t, rng = times(m)[3], np.random.default_rng(0)
    phi, chol = (a.astype(np.float64) for a in oracle.marginal(m, float(oracle.integral(m, t))))
    inverse = oracle.inverse_lower(chol).astype(np.float64)
    x, eps = rng.standard_normal((1, 5)), rng.standard_normal((2, 5))
    guess = rng.standard_normal((1, 5))  # a D for the state u
    error = eps - inverse @ (phi[:, :1] @ x + chol @ eps - phi[:, :1] * guess)
    times_ = losses.Times(jnp.float32(t)[None], jnp.ones(1))
    weight = float(losses.signal_weight(m, times_, STD)[0])
    np.testing.assert_allclose(weight * error[-1] ** 2, (error**2).sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("m", "most"),
    [
        (sde.hold(order=1), 1.0),
        (sde.cld(), 1.6222),
        (sde.hold(order=3), 2.1034),
        (sde.hold(order=4), 2.5061),
        (sde.psld(), 25.02),
        (sde.psld(Gamma=0.02, nu=4.02), 50.0),
    ],
)
def test_how_far_errors_of_the_last_noise_grow(m, most):
    # Measured in float64 by an independent script; docs/method.md, section 3, quotes these.
    assert kernels.amplification(m) == pytest.approx(most, rel=1e-3)
    t = np.geomspace(m.t_min, m.T, 40)
    phi, chol = oracle.marginal(m, oracle.integral(m, t), digits=False)
    w = (oracle.inverse_lower(chol) @ phi[..., :1])[..., 0]
    seen = (np.linalg.norm(w, axis=1) / np.abs(w[:, -1])).max()
    assert seen <= kernels.amplification(m) * 1.001


def test_a_last_block_that_loses_the_data_is_seen():
    assert kernels.amplification(sde.hold(order=2, gammas=(4.0,), xi=0.5, T=3.0)) == float("inf")


@pytest.mark.parametrize("sigma_data", [-0.5, 0.0, float("nan"), "a"])
def test_a_deviation_of_the_data_that_is_none_is_named(sigma_data):
    with pytest.raises(UserError, match=f"`sigma_data` is {sigma_data!r}; it must be .*positive"):
        parameterization.eps_function(sde.hold(2), lambda x, c: x, sigma_data=sigma_data)


def test_a_traced_deviation_of_the_data_is_named_where_it_must_be_known():
    def traced(of_network):
        def noise(sigma_data):
            options = {"parameterization": of_network, "sigma_data": sigma_data}
            return parameterization.eps_function(sde.hold(2), lambda x, c: x[..., :2], **options)(u, jnp.float32(0.5))

        u = jnp.ones((3, 2, 2))
        return jax.jit(noise)(0.5)

    assert traced("sufficient").shape == (3, 1, 2)
    with pytest.raises(
        UserError, match=r"`sigma_data` is JitTracer.*; it must be a number, not traced by JAX, positive"
    ):
        traced("gaussian")
