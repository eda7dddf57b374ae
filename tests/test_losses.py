import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle
from tiers import slow_except

from hold_jax import kernels, losses, sde
from hold_jax.errors import UserError

MODELS = {f"hold{n}": sde.hold(order=n) for n in range(1, 5)} | {"psld": sde.psld(), "vp": sde.vp()}
STD, MEAN = 0.5, 0.3
NUM, CHANNELS = 4096, 4


def start(m, sigma=0.002):
    """The time at which the effective noise is `sigma`."""
    return float(m.schedule.time(oracle.integral_of_noise(m, sigma)))


@functools.cache
def clock(m, t_min=None):
    """Gauss-Legendre nodes and weights in log sigma_eff over [t_min, T]; t there and d log sigma / dt."""
    low, high = (np.log(oracle.effective_noise(m, float(oracle.integral(m, t)))) for t in (t_min or m.t_min, m.T))
    nodes, weights = np.polynomial.legendre.leggauss(8)
    edges = np.linspace(low, high, 41)
    half = (edges[1] - edges[0]) / 2
    log_sigma = ((edges[:-1] + half)[:, None] + half * nodes).ravel()
    h = 1e-4
    t = [np.asarray(m.schedule.time(oracle.integral_of_noise(m, np.exp(log_sigma + k * h)))) for k in (-1, 0, 1)]
    return log_sigma, np.tile(half * weights, 40), t[1], 2 * h / (t[2] - t[0]), (low, high)


def density(name, m, t_min=None):
    """The law's density in t at the clock's nodes, from its definition."""
    log_sigma, weights, t, slope, (low, high) = clock(m, t_min)
    if name == "uniform":
        return np.full_like(t, 1 / (m.T - (t_min or m.t_min)))
    if name == "log_uniform":
        return slope / (high - low)
    bell = np.exp(-0.5 * ((log_sigma + 1.2) / 1.2) ** 2)
    return bell * slope / (bell @ weights)


def weight(name, m, t, density):
    """w(t) from its definition; `likelihood` is beta |G' dscore|^2 / 2 over the density in t."""
    if name == "eps":
        return np.ones_like(t)
    phi, chol = oracle.marginal(m, oracle.integral(m, t), False)
    inverse = oracle.inverse_lower(chol)
    w = (inverse @ phi[..., :1])[..., 0]
    if name == "q0":
        return w[:, -1] ** -2
    if name == "edm":  # (sigma^2 + sigma_d^2) / (sigma sigma_d)^2 on the squared error of D (2206.00364, table 1)
        variance = 1 / (w**2).sum(axis=1)
        return (variance + STD**2) / (variance * STD**2) * w[:, -1] ** -2
    if name == "signal":
        return (w**2).sum(axis=1) * w[:, -1] ** -2
    # An error e of eps_n moves D by -e / w_n and the score by Sigma^-1 A times that.
    driven = m.G.T @ (np.swapaxes(inverse, 1, 2) @ w[..., None])[..., 0].T / w[:, -1]
    return m.schedule.beta(t) * (driven**2).sum(axis=0) / (2 * density)


def expected(m, law, weighting, t_min=None):
    """E w(t) Var(eps_n | u_t) per dimension, by quadrature."""
    _, weights, t, slope, _ = clock(m, t_min)
    p = density(law, m, t_min)
    return (weights / slope * p * weight(weighting, m, t, p)) @ oracle.gaussian_residual(m, t, STD)


def run_loss(m, eps_fn, *, loss=losses.bcsm_loss, seed=0, num=NUM, **options):
    """Per-example losses per dimension: mean and standard error."""
    x = MEAN + STD * jax.random.normal(jax.random.key(100 + seed), (num, CHANNELS))
    values = jax.jit(lambda x, key: loss(m, eps_fn, x, key, **options))(x, jax.random.key(seed))
    values = np.asarray(values, np.float64) / CHANNELS
    assert values.shape == (num,)
    return values.mean(), values.std() / np.sqrt(num)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("hold3", "log_normal"),
        *(pytest.param("hold3", law, marks=pytest.mark.slow) for law in losses.TIME_LAWS if law != "log_normal"),
        pytest.param("hold1", "log_normal", marks=pytest.mark.slow),
        pytest.param("psld", "log_uniform", marks=pytest.mark.slow),
    ],
)
def test_the_exact_noise_reaches_the_theoretical_floor(name, law):
    # From sigma_eff = 0.05 on: likelihood weights grow like sigma^-2 or faster, and so does their variance.
    m = MODELS[name]
    t_min = start(m, 0.05)
    eps_fn = oracle.gaussian_eps(m, MEAN, STD)
    options = {"t_min": t_min, "time_law": losses.TIME_LAWS[law]}

    @jax.jit
    def every_weighting(x, key):
        weightings = losses.WEIGHTINGS.values()
        return [losses.bcsm_loss(m, eps_fn, x, key, weighting=w, sigma_data=STD, **options) for w in weightings]

    x = MEAN + STD * jax.random.normal(jax.random.key(100), (NUM, CHANNELS))
    for weighting, values in zip(losses.WEIGHTINGS, every_weighting(x, jax.random.key(0)), strict=True):
        per_dimension = np.asarray(values, np.float64) / CHANNELS
        error = per_dimension.std() / np.sqrt(NUM)
        want = expected(m, law, weighting, t_min)
        assert abs(per_dimension.mean() - want) < 4 * error, (weighting, per_dimension.mean(), want, error)
        assert error < 0.1 * want  # or the line above says nothing


@pytest.mark.parametrize("name", ["hold3", "psld", "vp"])
def test_weights(name):
    m = MODELS[name]
    _, _, t, _, _ = clock(m)
    t, p = t[::16], density("log_uniform", m)[::16]
    times = losses.Times(jnp.asarray(t, jnp.float32), jnp.asarray(p, jnp.float32))
    got = jax.jit(lambda times: [w(m, times, STD) for w in losses.WEIGHTINGS.values()])(times)
    for weighting, values in zip(losses.WEIGHTINGS, got, strict=True):
        np.testing.assert_allclose(values, weight(weighting, m, t, p), rtol=3e-5, err_msg=weighting)


@pytest.mark.parametrize("n", [4, 5, 6])
def test_the_likelihood_weight_of_high_orders_is_finite_at_small_times(n):
    # L^-1 reaches t^-11/2 there. With noise in the last block alone the weight is beta g^2 / (2 L_nn^2).
    m, t = sde.hold(n), jnp.float32([1e-5, 1e-3, 0.1])
    got = losses.likelihood_weight(m, losses.Times(t, jnp.ones(3)), STD)
    last = [float(oracle.marginal(m, float(oracle.integral(m, time)))[1][-1, -1]) for time in t]
    np.testing.assert_allclose(got, (m.G[-1, -1] / np.array(last)) ** 2 / 2, rtol=1e-4)


@pytest.mark.parametrize(("name", "law"), [("hold3", law) for law in losses.TIME_LAWS] + [("vp", "log_uniform")])
def test_time_laws(name, law):
    m = MODELS[name]
    _, weights, t, slope, _ = clock(m)
    want = density(law, m)
    assert (weights / slope) @ want == pytest.approx(1, rel=1e-5)

    num = 20000
    draw = jax.jit(lambda key: losses.draw_times(m, losses.TIME_LAWS[law], key, num, t_min=m.t_min))
    times = draw(jax.random.key(0))
    drawn = np.asarray(times.t, np.float64)
    assert drawn.min() >= np.float32(m.t_min) and drawn.max() <= np.float32(m.T)
    order = np.argsort(t)
    # The reported density is the law's, and the draws follow it: stratified, their CDF is right to 1 / num.
    at = np.interp(np.log(drawn), np.log(t[order]), np.log(want[order]))
    inside = (drawn > t.min()) & (drawn < t.max())
    np.testing.assert_allclose(np.log(np.asarray(times.density))[inside], at[inside], atol=3e-3)
    cdf = np.cumsum((weights / slope * want)[order])
    empirical = np.searchsorted(np.sort(drawn), t[order]) / num
    middle = cdf - (weights / slope * want)[order] / 2
    assert np.abs(empirical - middle).max() < 6e-3  # a node's own share of the quadrature


def test_unstratified_times_follow_the_same_law_with_more_variance():
    m = MODELS["hold3"]

    def spread(stratified):
        def mean(key):
            return losses.draw_times(m, losses.log_uniform, key, 64, t_min=m.t_min, stratified=stratified).t.mean()

        return np.asarray(jax.jit(jax.vmap(mean))(jax.random.split(jax.random.key(0), 200)))

    strata, free = spread(True), spread(False)
    assert abs(strata.mean() - free.mean()) < 4 * free.std() / np.sqrt(200)
    assert strata.std() < free.std() / 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hold3", "psld"])
def test_dsm_minus_bcsm_is_a_constant(name):
    # Their targets have one conditional mean given u_t, so the losses differ by E w (L_nn^2 / Q_nn^2 - 1), whatever
    # the network says: exact, zero, or wrong.
    m = MODELS[name]
    _, weights, t, slope, _ = clock(m)
    b = oracle.integral(m, t)
    ratio = oracle.marginal(m, b, False)[1][:, -1, -1] / oracle.transition(m, b, False)[1][:, -1, -1]
    want = (weights / slope * density("log_uniform", m)) @ (ratio**2 - 1)
    exact = oracle.gaussian_eps(m, MEAN, STD)
    functions = [exact, lambda u, t: 0 * u[..., -1:, :], lambda u, t: jnp.tanh(u[..., -1:, :] - u[..., :1, :])]

    @jax.jit
    def both(x, keys):
        return [
            [loss(m, f, x, key, time_law=losses.log_uniform) / CHANNELS for f in functions]
            for loss, key in zip((losses.dsm_loss, losses.bcsm_loss), keys, strict=True)
        ]

    x = MEAN + STD * jax.random.normal(jax.random.key(1), (NUM, CHANNELS))
    dsm, bcsm = np.asarray(both(x, jax.random.split(jax.random.key(2))), np.float64)
    gap = dsm.mean(axis=1) - bcsm.mean(axis=1)
    error = np.sqrt((dsm.var(axis=1) + bcsm.var(axis=1)) / NUM)
    assert (np.abs(gap - want) < 4 * error).all(), (gap, want, error)
    assert (error < 0.3 * want).all()
    assert bcsm[1].mean() > 1.2 * bcsm[0].mean()  # the functions do differ


@pytest.mark.parametrize("name", ["hold1", "hold3"])
def test_bcsm_and_dsm_have_one_minimizer(name):
    # On an affine eps_hat = theta . u at one time both losses are quadratic: their minimizer is the exact row.
    m = MODELS[name]
    t = np.float32(kernels.time_of_noise(m, jnp.float32(0.5)))
    row, _ = oracle.gaussian_row(m, t, STD)
    x = STD * jax.random.normal(jax.random.key(0), (200_000, 1))
    for pair in (losses.bcsm_pair, losses.dsm_pair):
        u, target = jax.jit(pair, static_argnums=0)(m, x, jnp.full(len(x), t), jax.random.key(1))
        u, target = np.asarray(u, np.float64)[..., 0], np.asarray(target, np.float64)[:, 0, 0]
        theta, residual, _, _ = np.linalg.lstsq(u, target, rcond=None)
        error = np.sqrt(np.diagonal(np.linalg.inv(u.T @ u)) * residual.item() / len(x))
        assert (np.abs(theta - row) < 4 * error).all()


def test_likelihood_weighting_does_not_depend_on_the_time_law():
    # In expectation; that the losses reach this one number is `test_the_exact_noise_reaches_the_theoretical_floor`.
    m = MODELS["hold3"]
    want = [expected(m, law, "likelihood", start(m, 0.05)) for law in losses.TIME_LAWS]
    np.testing.assert_allclose(want, want[0], rtol=1e-6)
    # Against the law-free quantity, the rate at which KL to the data grows: 1/2 int beta |G' Sigma^-1 A|^2 Var(q0 | u).
    _, weights, t, slope, _ = clock(m, start(m, 0.05))
    sigma = np.exp(clock(m, start(m, 0.05))[0])
    phi, chol = oracle.marginal(m, oracle.integral(m, t), False)
    pull = np.linalg.solve(chol @ np.swapaxes(chol, 1, 2), phi[..., :1])[..., -1, 0] * m.G[-1, -1]
    rate = 0.5 * pull**2 * (STD * sigma) ** 2 / (STD**2 + sigma**2)
    assert want[0] == pytest.approx((weights / slope) @ rate, rel=1e-6)


@pytest.mark.parametrize("n", slow_except((3,), {n: n for n in range(1, 5)}))
def test_every_order_has_the_same_denoising_floor(n):
    # Sufficiency: at equal effective noise every order knows as much of q0, so that under a law uniform in
    # log sigma_eff the q0-weighted floor has no n in it: s^2/2 log((b^2 + s^2) / (a^2 + s^2)) / log(b / a).
    a, b, s = 0.002, 80.0, STD
    want = s**2 / 2 * np.log((b**2 + s**2) / (a**2 + s**2)) / np.log(b / a)
    m = MODELS[f"hold{n}"]
    assert expected(m, "log_uniform", "q0") == pytest.approx(want, rel=1e-6)
    got, error = run_loss(
        m, oracle.gaussian_eps(m, MEAN, STD), weighting=losses.q0_weight, time_law=losses.log_uniform, seed=n
    )
    assert abs(got - want) < 4 * error
    assert error < 0.03 * want


def test_losses_sum_over_the_data_and_take_images():
    m = MODELS["hold2"]
    x = jnp.ones((5, 4, 3, 2))
    got = jax.jit(lambda x, key: losses.bcsm_loss(m, lambda u, t: 0 * u[..., -1:, :] + 100.0, x, key))(
        x, jax.random.key(0)
    )
    assert got.shape == (5,) and got.dtype == jnp.float32
    # 24 entries of (eps - 100)^2.
    np.testing.assert_allclose(got, 24 * 100.0**2, rtol=0.1)


@pytest.mark.slow
def test_vmap_over_keys_and_pmap_over_devices_equal_plain_calls():
    m = MODELS["hold2"]

    def eps_fn(u, t):
        return 0.6 * u[..., -1:, :] + 0.1 * jnp.sin(u[..., :1, :] + t[:, None, None])

    x = STD * jax.random.normal(jax.random.key(5), (8, 4, 2))
    keys = jax.random.split(jax.random.key(6), 8)

    def loss(x, key):
        return losses.bcsm_loss(m, eps_fn, x, key, time_law=losses.log_uniform)

    jitted = jax.jit(loss)
    plain = np.stack([jitted(a, k) for a, k in zip(x, keys, strict=True)])
    # A squared error near zero is a difference of rounded numbers of size one.
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(x, keys), plain, rtol=1e-5, atol=1e-6)
    assert len(jax.devices()) == 8
    np.testing.assert_allclose(jax.pmap(loss)(x, keys), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t_min", [0.0, -1.0, 1.0, 2.0, float("nan")])
def test_a_bad_start_time_is_named(t_min):
    with pytest.raises(ValueError, match=r"`t_min` is .* between 0 and T = 1.0"):
        losses.bcsm_loss(MODELS["vp"], lambda u, t: u, jnp.zeros((2, 1)), jax.random.key(0), t_min=t_min)


def test_a_start_time_without_noise_is_named_where_times_are_uniform_in_its_logarithm():
    x, options = jnp.zeros((2, 1)), {"t_min": 1e-3, "weighting": losses.eps_weight}
    values = losses.bcsm_loss(MODELS["hold3"], lambda u, t: u[:, -1:], x, jax.random.key(0), **options)
    assert np.isfinite(values).all()  # its times are those of the data's scale
    with pytest.raises(
        ValueError, match=r"`t_min` is 0.001; it must be a time of an effective noise above 1e-05, not 4"
    ):
        losses.bcsm_loss(
            MODELS["hold3"], lambda u, t: u[:, -1:], x, jax.random.key(0), time_law=losses.log_uniform, **options
        )


def test_names_stand_for_weights_and_laws_and_lists_for_data():
    m, eps_fn, x, key = MODELS["hold2"], lambda u, t: u[:, -1:], [[0.1], [-0.5]], jax.random.key(0)
    found = losses.bcsm_loss(m, eps_fn, x, key, weighting="likelihood", time_law="uniform")
    options = {"weighting": losses.likelihood_weight, "time_law": losses.uniform}
    np.testing.assert_array_equal(found, losses.bcsm_loss(m, eps_fn, jnp.array(x), key, **options))
    for name in options:
        with pytest.raises(ValueError, match=f"`{name}` is 'nll'; it must be one of: "):
            losses.bcsm_loss(m, eps_fn, x, key, **{name: "nll"})


def test_a_bad_spread_of_times_is_named():
    with pytest.raises(ValueError, match=r"`std` is 0.0; it must be positive"):
        losses.log_normal(std=0.0)


@pytest.mark.slow
def test_dsm_starts_from_the_auxiliaries_whole_covariance():
    # Correlated and singular: velocity and acceleration are opposite at the start.
    m = dataclasses.replace(sde.hold(3), cov0=0.04 * np.array([[0.0, 0, 0], [0, 1, -1], [0, -1, 1]]))
    # At small t the covariance of u(t) is cov0 and little else: an elementwise square root of cov0 would be far off.
    num, t = 100_000, 0.02
    pair = jax.jit(lambda key: losses.dsm_pair(m, jnp.zeros((num, 1)), jnp.full((num,), t), key)[0])
    u = np.asarray(pair(jax.random.key(0)), np.float64)[..., 0]
    _, chol = oracle.marginal(m, float(oracle.integral(m, t)), True)
    want = (chol @ chol.T).astype(np.float64)
    # A covariance of N draws has the standard error sqrt((c_ii c_jj + c_ij^2) / N).
    variances = np.diag(want)
    np.testing.assert_array_less(
        np.abs(u.T @ u / num - want), 5 * np.sqrt((np.outer(variances, variances) + want**2) / num)
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.full((4, 2), 200, np.uint8),
            r"`x` is 'uint8'; it must be floating, in the model's range: .*to_model_range",
        ),
        (
            np.zeros(4, np.float32),
            r"`x` is \(4,\); it must be of shape \(B, \*S, C\); a batch of numbers is x\[:, None\]",
        ),
    ],
)
def test_data_that_cannot_be_meant_are_named(x, message):
    with pytest.raises(ValueError, match=message):
        losses.bcsm_loss(MODELS["vp"], lambda u, t: u, x, jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weighting": None}, "`weighting` is None; it must be a name of `losses.WEIGHTINGS`, or a function"),
        ({"time_law": 3}, "`time_law` is 3; it must be a name of `losses.TIME_LAWS`, or a function"),
        ({"time_law": losses.log_normal}, r"`time_law` is <function .*, such as `losses.log_normal\(\)`"),
        ({"sigma_data": -0.5}, "`sigma_data` is -0.5; it must be positive"),
        ({"sigma_data": 0.0}, "`sigma_data` is 0.0; it must be positive"),
        ({"sigma_data": float("nan")}, "`sigma_data` is nan; it must be positive"),
        ({"t_min": "a"}, "`t_min` is 'a'; it must be a number, between 0 and T"),
        (
            {"t_min": 1e-30},
            "`t_min` is 1e-30; it must be a time of an effective noise above 1.2e-38, not 8.2e-46; `sde",
        ),
        ({"x": jnp.zeros((0, 2))}, r"`x` is \(0, 2\); it must be one example or more"),
        ({"x": jax.random.key(0), "key": jnp.zeros((4, 2))}, "`x` is 'key<fry>'; it must be floating"),
        ({"key": 0}, "`key` is 0; it must be one key of JAX"),
        ({"key": jnp.zeros(7, jnp.uint32)}, "`key` is .*; it must be one key of JAX"),
        ({"sde": None}, "`sde` is None; it must be a `LinearSDE`"),
        ({"eps_fn": None}, r"`eps_fn` is None; it must be a function \(u, t\)"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {
        "sde": sde.hold(2),
        "eps_fn": lambda u, t: u[..., -1:, :],
        "x": jnp.ones((4, 2)),
        "key": jax.random.key(0),
    }
    with pytest.raises(UserError, match=message):
        losses.bcsm_loss(**{**arguments, **change})
