import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle

from hold_jax import sde
from hold_jax.errors import UserError
from hold_jax.samplers import GRIDS, grids

SDES = {
    **{f"hold{n}": sde.hold(order=n) for n in (1, 2, 3, 4)},
    "told": sde.hold(damping="told"),
    "cld": sde.cld(),
    "psld": sde.psld(),
    "vp": sde.vp(),
    "ve": sde.ve(),
}
every_sde = pytest.mark.parametrize("m", SDES.values(), ids=SDES)


def noises(m, times):
    return np.array([oracle.effective_noise(m, float(oracle.integral(m, t))) for t in times])


@every_sde
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_falls_from_T_to_t_min_to_the_last_bit(name, m):
    # Rounding may put the first time above T, which is an error.
    for num_steps in (1, 9):
        times = grids.times_of(m, name, m.t_min, num_steps)
        assert times.shape == (num_steps + 1,) and times.dtype == np.float64
        assert (times[0], times[-1]) == (m.T, m.t_min)
        assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("m", [SDES[k] for k in ("hold1", "hold3", "psld", "vp", "ve")])
@pytest.mark.parametrize(("name", "scale"), [("karras", lambda s: s ** (1 / 7)), ("log", np.log)])
def test_karras_and_log_take_equal_steps_of_the_noise(name, scale, m):
    # EDM eq. 5 is linear in sigma^(1/7), DPM-Solver's clock in log sigma; the noise is the oracle's, in 80 digits.
    steps = np.diff(scale(noises(m, grids.times_of(m, name, m.t_min, 9))))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-8)


def test_uniform_and_own_grids():
    m = sde.vp()
    np.testing.assert_allclose(np.diff(grids.times_of(m, "uniform", 0.01, 5)), -0.99 / 5, rtol=1e-12)
    own = [0.9, 0.5, 0.1]
    np.testing.assert_array_equal(grids.times_of(m, own, 0.05, 2), own)
    steps = np.diff(noises(m, grids.times_of(m, lambda m, t, n: grids.karras(m, t, n, rho=1.0), 0.01, 4)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-8)


@every_sde
def test_times_of_float32_begin_at_T(m):
    own = jnp.linspace(m.T, m.t_min, 5)
    times = grids.times_of(m, own, m.t_min, 4)
    assert times[0] == min(float(np.float32(m.T)), m.T)
    np.testing.assert_array_equal(times[1:], own[1:])


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (["a"] * 5, "could not convert string to float: 'a'"),
        (lambda sde, t_min: [1.0], "takes 2 positional arguments but 3 were given"),
        ([[1.0], [0.5, 0.1]], "inhomogeneous"),
    ],
)
def test_a_grid_that_is_none_is_named(grid, reason):
    with pytest.raises(UserError, match=f"^`grid` cannot be used .*{reason}.*; it must be a name of `samplers.GRIDS`"):
        grids.times_of(sde.vp(), grid, 0.1, 4)


@pytest.mark.parametrize("name", GRIDS)
def test_a_t_min_without_a_kernel_is_named(name):
    for t_min in (1e-12, 1e-5):
        assert grids.times_of(SDES["hold3"], name, t_min, 4)[-1] == t_min
    for t_min in (1e-16, 1e-60, 1e-100, 1e-300):
        with pytest.raises(
            UserError, match=f"^`t_min` is {t_min}; it must be a time of an effective noise above 1.2e-38"
        ):
            grids.times_of(SDES["hold3"], name, t_min, 4)


def test_a_t_min_below_the_clock_of_a_grid_is_named():
    assert grids.times_of(SDES["vp"], "uniform", 1e-30, 4)[-1] == 1e-30
    for name in ("log", "karras"):
        with pytest.raises(UserError, match=r"^`t_min` is 1e-30; it must be .* noise above 3\.1e-07, not"):
            grids.times_of(SDES["vp"], name, 1e-30, 99)


def test_a_t_min_that_own_times_do_not_end_at_is_named():
    with pytest.raises(UserError, match=r"`t_min` is 0.2; it must be left out, or the end of the times of `grid`, 0.1"):
        grids.fixed_grid(sde.vp(), [0.9, 0.5, 0.1], 0.2, 2)
    assert grids.fixed_grid(sde.vp(), [0.9, 0.5, 0.1], 0.1, 2) == (0.9, 0.5, 0.1)


@pytest.mark.parametrize("num_steps", [50, 1000])
def test_quadratic_times_are_those_of_the_papers(num_steps):
    # CLD and PSLD run in s = T - t, from 0 to T - eps, at s_j = (T - eps) (1 - (1 - j/N)^2) with eps = 1e-3.
    eps, j = 1e-3, np.arange(num_steps + 1)
    published = 1 - (1 - eps) * (1 - (1 - j / num_steps) ** 2)
    times = grids.times_of(sde.psld(), "quadratic", eps, num_steps)
    np.testing.assert_allclose(times, published, rtol=1e-11)
    # Equal steps in sqrt(t) make the last step longer: 4.1 times at N = 50.
    assert times[-2] - times[-1] == pytest.approx((1 - eps) / num_steps**2, rel=1e-9)


@pytest.mark.parametrize("rho", [0, -1.0])
def test_a_bad_rho_is_named(rho):
    with pytest.raises(ValueError, match=f"`rho` is {rho}; it must be positive"):
        grids.karras(sde.vp(), 0.01, 4, rho=rho)
