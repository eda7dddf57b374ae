import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from hold_jax.numerics.schedules import Constant, Geometric, Linear

SCHEDULES = [Constant(4.0), Linear(0.1, 19.9), Linear(3.0, 0.0), Geometric(0.01, 50.0)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("s", "t"), [(0.0, 1.0), (0.2, 0.7), (0.99, 1.0), (0.3, 0.3)])
def test_integral_is_the_quadrature_of_beta(schedule, s, t):
    want, _ = quad(schedule.beta, s, t, epsabs=0, epsrel=1e-12)
    assert schedule.integral(s, t) == pytest.approx(want, rel=1e-11, abs=0)


def test_beta_is_the_published_one():
    # 2011.13456, eq. 32 and eq. 30 (d sigma^2 / dt of sigma_min (sigma_max / sigma_min)^t).
    assert Linear(0.1, 19.9).beta(0.25) == pytest.approx(0.1 + 0.25 * 19.9, rel=1e-14)
    sigma = 0.01 * 5000**0.25
    assert Geometric(0.01, 50.0).beta(0.25) == pytest.approx(2 * np.log(5000) * sigma**2, rel=1e-13)
    assert Geometric(0.01, 50.0).integral(0.0, 0.25) == pytest.approx(sigma**2 - 0.01**2, rel=1e-13)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_inverts_the_integral(schedule):
    t = np.array([1e-6, 1e-3, 0.1, 0.5, 1.0])
    np.testing.assert_allclose(schedule.time(schedule.integral(0.0, t)), t, rtol=1e-11)
    assert schedule.time(0.0) == 0.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_integral_does_not_cancel_for_close_times(schedule):
    # Neighboring float32 numbers: B(0, t) - B(0, s) would keep no digit at all.
    s = np.float32(0.7)
    t = np.nextafter(s, np.float32(1))
    want = schedule.integral(np.float64(s), np.float64(t))
    got = schedule.integral(jnp.float32(s), jnp.float32(t))
    assert float(got) == pytest.approx(want, rel=3e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_time_of_a_small_integral_does_not_cancel(schedule):
    big_b = np.float32(1e-7) * np.float32(schedule.beta(0.0))
    assert float(schedule.time(jnp.float32(big_b))) == pytest.approx(schedule.time(np.float64(big_b)), rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_kind_of_array_is_kept(schedule):
    host, device = np.array([0.1, 0.4]), jnp.array([0.1, 0.4])
    for method in (schedule.beta, schedule.time, lambda t: schedule.integral(0.0, t)):
        assert isinstance(method(host), np.ndarray) and method(host).dtype == np.float64
        assert isinstance(method(device), jax.Array) and method(device).dtype == jnp.float32
        np.testing.assert_allclose(method(device), method(host), rtol=3e-6)
