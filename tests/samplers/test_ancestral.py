import numpy as np
import pytest
from reference import oracle
from samplers import suite
from samplers.suite import hold, stepped

from hold_jax import sde
from hold_jax.samplers import Ancestral


def conditioned(m, b_start, b_end):
    """u_s | u_t, q0 by brute force from covariances formed in 80 digits: weights of u_t and of q0, covariance."""

    def law(b):
        phi, chol = oracle.marginal(m, b)
        return phi[:, :1], chol @ chol.T

    (a_s, cov_s), (a_t, cov_t) = law(b_end), law(b_start)
    phi, _ = oracle.moments(m, b_start - b_end)
    inverse = oracle.inverse_lower(oracle.cholesky(cov_t))
    gain = cov_s @ phi.T @ inverse.T @ inverse
    return gain, a_s - gain @ a_t, cov_s - gain @ phi @ cov_s


SDES = {**{f"hold{n}": sde.hold(order=n) for n in (1, 2, 3, 4)}, "psld": sde.psld(), "vp": sde.vp(), "ve": sde.ve()}


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(("first", "last"), [(2.0, 1.0), (0.3, 0.29), (0.05, 0.01)])
def test_a_step_is_gaussian_conditioning(name, first, last):
    m = SDES[name]
    times = m.schedule.time(np.array([first, last]))
    b = oracle.integral(m, times)
    (stage,) = Ancestral().coefficients(m, times)
    state, output, cov = conditioned(m, *(float(x) for x in b))
    # Gains of small noises are large numbers that nearly cancel: errors count on the scale of the laws at both ends.
    scale_t, scale_s = (np.sqrt(np.diagonal(c @ c.T).astype(np.float64)) for c in (oracle.marginal(m, x)[1] for x in b))
    close = lambda got, want, scale: np.testing.assert_allclose(got / scale, want.astype(np.float64) / scale, atol=1e-9)  # noqa: E731
    close(stage.after.state[0], state, scale_s[:, None] / scale_t)
    close(stage.outputs[0], output, 1.0)
    noise = stage.after.noise[0]
    close(noise @ noise.T, cov, np.outer(scale_s, scale_s))


def test_at_order_one_it_is_ddpm():
    # 2006.11239, eq. 6 and 7, with alpha-bar = a^2: beta_t and alpha_t are those of the step.
    m = sde.vp()
    times = m.schedule.time(np.array([2.0, 1.4, 0.5, 0.2]))
    a, _ = suite.signal_and_noise("vp", times)
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((3, 1, 2)), rng.standard_normal((3, 2, 3, 1, 2))
    got = stepped(Ancestral(), m, suite.network, x, times, noise)
    for i in range(3):
        bar, bar_before = a[i] ** 2, a[i + 1] ** 2
        alpha = bar / bar_before
        beta = 1 - alpha
        x0 = (x - np.sqrt(1 - bar) * suite.network(x, times[i])) / np.sqrt(bar)
        mean = np.sqrt(bar_before) * beta / (1 - bar) * x0 + np.sqrt(alpha) * (1 - bar_before) / (1 - bar) * x
        x = mean + np.sqrt((1 - bar_before) / (1 - bar) * beta) * noise[i, 1]
        np.testing.assert_allclose(got[i + 1], x, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_steps_too_small_to_see_stay_put(n):
    # 1 - S^2 of the noise is rounding there: never a NaN, and no more noise than the square root of it.
    m = hold(n)
    (stage,) = Ancestral().coefficients(m, np.array([1.0, 1.0 - 1e-13]))
    np.testing.assert_allclose(stage.after.state[0], np.eye(n), atol=1e-9)
    assert np.abs(stage.after.noise).max() < 1e-6
