import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle

from hold_jax import kernels, noise_conditioning, sde
from hold_jax.errors import UserError


@pytest.mark.parametrize("m", [sde.hold(order=1), sde.hold(order=3), sde.psld(), sde.ve()])
def test_the_conditioning_is_the_common_clock(m):
    t = np.clip(np.geomspace(m.t_min, m.T, 9), m.t_min, m.T).astype(np.float32)
    want = [np.log(oracle.effective_noise(m, float(oracle.integral(m, x)))) / 4 for x in t]
    np.testing.assert_allclose(noise_conditioning.log_noise(m, t), want, atol=1e-6)


@pytest.mark.parametrize("clock", ["log_noise", "vp_time", "subvp_time", "ve_noise"])
def test_clocks_of_the_noise(clock):
    m = sde.ve(sigma_min=1e-4, sigma_max=1000.0)
    t = np.linspace(0.01, 1, 40).astype(np.float32)
    sigma = oracle.MP.matrix([oracle.effective_noise(m, float(oracle.integral(m, x))) for x in t])
    log, sqrt = oracle.MP.log, oracle.MP.sqrt

    def time(rate):
        return (
            999
            * (sqrt(oracle.MP.mpf("0.01") + 4 * oracle.MP.mpf("9.95") * rate) - oracle.MP.mpf("0.1"))
            / (2 * oracle.MP.mpf("9.95"))
        )

    want = {
        "log_noise": lambda s: log(s) / 4,
        "vp_time": lambda s: time(log(1 + s**2)),
        "subvp_time": lambda s: time(2 * log(s / 2 + sqrt(1 + s**2 / 4))),
        "ve_noise": lambda s: log(s / 2),
    }[clock]
    want = np.array([float(want(s)) for s in sigma])
    got = jax.jit(lambda t: noise_conditioning.CONDITIONINGS[clock](m, t))(t)
    # Relative down to labels of 5e-5, at a noise of 1e-4; a logarithm's error is that of its argument.
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=3e-6 if "noise" in clock else 0)


@pytest.mark.parametrize(
    ("schedule", "end", "count"),
    [("linear", 0.02, 1000), ("scaled_linear", 0.012, 1000), ("squaredcos_cap_v2", 0.02, 100)],
)
def test_discrete_time_is_the_index_of_the_noise(schedule, end, count):
    m = sde.ve(sigma_min=1e-4, sigma_max=1000.0)
    start = 8.5e-4 if schedule == "scaled_linear" else 1e-4
    sigmas = oracle.discrete_sigmas(schedule, count, start, end)
    index = np.array([0, 1, count // 3, count // 2, count - 2])
    between = index[:-1] + 0.25
    wanted = np.exp(np.interp(between, np.arange(count), np.log(sigmas)))
    sigma = np.concatenate([sigmas[index], wanted, [sigmas[0] / 3, 999.0 if sigmas[-1] < 999 else 1.0]])
    t = jax.jit(lambda s: kernels.time_of_noise(m, s))(sigma.astype(np.float32))
    got = jax.jit(noise_conditioning.discrete_time(schedule, start, end, count), static_argnums=0)(m, t)
    want = [*index, *between, 0.0, count - 1 if sigmas[-1] < 999 else got[-1]]
    # The logarithm of the noise is exact to 1e-6 of its range of about ten, which the indices divide.
    np.testing.assert_allclose(got, want, atol=3e-5 * count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("cosine",), r"`beta_schedule` is 'cosine'; it must be one of: linear, scaled_linear, squaredcos_cap_v2"),
        (("linear", 0.0), r"`beta_start` is 0.0; it must be between 0 and 1"),
        (("linear", 1e-4, 1.5), r"`beta_end` is 1.5"),
        (("linear", 1e-4, 0.02, 1), r"`num_times` is 1; it must be a whole number >= 2"),
    ],
)
def test_a_discrete_process_that_is_none(options, message):
    with pytest.raises(UserError, match=message):
        noise_conditioning.discrete_time(*options)


def test_discrete_noise_is_the_index_of_a_geometric_sequence_and_its_ends_beyond():
    m, levels = sde.hold(order=3), np.geomspace(50.0, 0.05, 7)
    at = np.array([60.0, *levels, 0.01])
    got = noise_conditioning.discrete_noise(0.05, 50.0, 7)(m, kernels.time_of_noise(m, jnp.asarray(at, jnp.float32)))
    np.testing.assert_allclose(got, [0, *range(7), 6], atol=1e-5)
    between = noise_conditioning.discrete_noise(0.05, 50.0, 7)(
        m, kernels.time_of_noise(m, jnp.float32(np.sqrt(levels[2] * levels[3])))
    )
    np.testing.assert_allclose(between, 2.5, atol=1e-5)
    with pytest.raises(UserError, match=r"`noise_min` is 2.0; it must be between 0 and noise_max = 1.0"):
        noise_conditioning.discrete_noise(2.0, 1.0)


def test_times_are_scaled():
    t = np.array([1e-5, 0.3, 1.0], np.float32)
    m = sde.cld(T=2.0)
    np.testing.assert_allclose(noise_conditioning.scaled_time_by(10.0)(m, t), 5 * t, rtol=1e-6)
    want = np.log(999 * t.astype(np.float64))
    np.testing.assert_allclose(noise_conditioning.log_time_by(999.0)(m, t), want, rtol=1e-6)


def test_cld_s_clock_is_the_logarithm_of_time():
    t = np.array([1e-5, 0.3, 1.0], np.float32)
    np.testing.assert_allclose(noise_conditioning.log_time(sde.cld(), t), np.log(t.astype(np.float64)), rtol=1e-6)
