import numpy as np
import pytest
from reference import oracle
from reference.propagate import truth
from samplers.suite import MEAN, STD, errors, hold, log_times, network, stepped

from hold_jax import sde
from hold_jax.samplers import PredictorCorrector, ddim
from hold_jax.samplers.predictor_corrector import PREDICTORS


def pair(n, num_steps, snr):
    """The errors of the covariance at N and at 2 N steps. Three corrections a step, so that few steps forget."""
    m, sampler = hold(n), PredictorCorrector(corrector_steps=3, snr=snr)
    return [errors(sampler, m, log_times(m, 5.0, 0.2, num))[0] for num in (num_steps, 2 * num_steps)]


def test_many_steps_of_a_fixed_snr_end_in_the_corrector_s_own_stationary_law():
    # At n = 1, V the variance of u: u <- (1 - e/V) u + sqrt(2 e) xi, e = 2 snr^2 L^2, leaves V / (1 - e / 2V)
    # in place, whatever the predictor does: a relative excess x / (1 - x), x = snr^2 L^2 / V. Infinitely many
    # corrections at every noise bring it out; 1/N of it is lag.
    m, snr = hold(1), 0.5
    coarse, fine = pair(1, 256, snr)
    t = log_times(m, 5.0, 0.2, 256)[-1]
    _, chol = oracle.marginal(m, float(oracle.integral(m, t)))
    x = snr**2 * float(chol[0, 0]) ** 2 / truth(m, t, mean=MEAN, std=STD).cov.item()
    assert 2 * fine - coarse == pytest.approx(x / (1 - x), rel=5e-3)


@pytest.mark.parametrize("n", [1, 3])
def test_the_bias_of_many_steps_is_quadratic_in_snr(n):
    # No closed form at n > 1, where a biased last block drives the others; x / (1 - x) is not purely quadratic either.
    wide, narrow = (2 * fine - coarse for coarse, fine in (pair(n, 128, snr) for snr in (0.5, 0.25)))
    assert np.log2(wide / narrow) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_with_snr_squared_like_the_step_the_weak_order_is_one(n):
    # Then the corrections of the whole path stay of one total strength.
    m, shrinking = hold(n), []
    for num in (32, 64, 128):
        sampler = PredictorCorrector(corrector_steps=3, snr=0.15 * np.sqrt(32 / num))
        shrinking.append(errors(sampler, m, log_times(m, 5.0, 0.2, num))[0])
    slopes = np.log2(np.divide(shrinking[:-1], shrinking[1:]))
    assert 2 * slopes[1] - slopes[0] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("m", [sde.vp(), sde.hold(order=1)], ids=["vp", "hold1"])
def test_a_corrector_step_is_score_sde_s_with_the_ratio_of_the_marginals(m):
    # 2011.13456, algorithm 5: x <- x + e g + sqrt(2 e) z, e = 2 (r |z| / |g|)^2, g the score, whose norm is |z| / s.
    times = m.schedule.time(np.array([1.5, 1.1]))
    rng = np.random.default_rng(0)
    u, noise = rng.standard_normal((3, 1, 2)), rng.standard_normal((1, 6, 3, 1, 2))
    predicted = stepped(ddim(), m, network, u, times)[1]
    sampler = PredictorCorrector(predictor="ddim", corrector_steps=2, snr=0.3)
    got = stepped(sampler, m, network, u, times, noise)[1]
    _, chol = oracle.marginal(m, float(oracle.integral(m, times[1])))
    s, x = float(chol[0, 0]), predicted
    for draw in (3, 5):
        e = 2 * (0.3 * s) ** 2
        g = -network(x, times[1]) / s
        x = x + e * g + np.sqrt(2 * e) * noise[0, draw]
    np.testing.assert_allclose(got, x, rtol=1e-9)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_predictor_comes_first(predictor):
    # The corrector has a vanishing step: what is left is the predictor's.
    m = hold(2)
    times, u = np.array([1.0, 0.8]), np.random.default_rng(1).standard_normal((3, 2, 2))
    noise = np.random.default_rng(2).standard_normal((1, 4, 3, 2, 2))
    alone = stepped(PREDICTORS[predictor](), m, network, u, times, noise)
    np.testing.assert_allclose(
        stepped(PredictorCorrector(predictor=predictor, snr=1e-9), m, network, u, times, noise), alone, atol=1e-8
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor": "unipc"}, "`predictor` is 'unipc'; it must be one of: ancestral, ddim, "),
        ({"corrector_steps": 0}, "`corrector_steps` is 0; it must be a whole number >= 1"),
        ({"corrector_steps": True}, "`corrector_steps` is True"),
        ({"snr": 0.0}, r"`snr` is 0.0; it must be in \(0, 1\]"),
        ({"snr": 1.5}, "`snr` is 1.5"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PredictorCorrector(**options)
