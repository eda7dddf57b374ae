import numpy as np
import pytest
from reference.propagate import denoised, propagate, truth
from samplers import suite
from samplers.suite import FIRST_ORDER, MEAN, STD, hold, log_times, signal_and_noise, stepped

from hold_jax import samplers, sde
from hold_jax.samplers import Ancestral, Multistep

# Unequal steps, on which multistep formulas with constant coefficients fail.
BUDGET = np.array([2.0, 1.4, 1.1, 0.6, 0.5, 0.2])
every_process = pytest.mark.parametrize("name", FIRST_ORDER)


def clock(name):
    """The process, times, a, s, lambda = log(a / s) and the steps h of lambda, h[0] the first."""
    m = FIRST_ORDER[name]
    times = m.schedule.time(BUDGET / (1 if name != "ve" else 0.1))
    a, s = signal_and_noise(name, times)
    return m, times, a, s, np.log(a / s), np.diff(np.log(a / s))


def start(draws=1):
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, 1, 2)), rng.standard_normal((len(BUDGET) - 1, 2 * draws, 3, 1, 2))


@every_process
def test_ddim_is_ddim(name):
    # 2010.02502, eq. 12 at eta = 0, for any a and s.
    m, times, a, s, _, _ = clock(name)
    x, _ = start()
    got = stepped(samplers.ddim(), m, suite.network, x, times)
    for i in range(len(times) - 1):
        eps = suite.network(got[i], times[i])
        want = a[i + 1] * (got[i] - s[i] * eps) / a[i] + s[i + 1] * eps
        np.testing.assert_allclose(got[i + 1], want, rtol=1e-9)


@every_process
@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_dpmpp_2m_is_algorithm_2_and_its_sde_twin(name, churn):
    # 2211.01095, algorithm 2, and the SDE's with e^-2h for e^-h and fresh noise; its first step is of first order.
    m, times, a, s, _, h = clock(name)
    x, noise = start()
    got = stepped(samplers.dpmpp_2m(churn=churn), m, suite.network, x, times, noise)
    power = 1 + churn
    past = None
    for i in range(len(times) - 1):
        d = suite.data(name, x, times[i])
        mixed = d
        if past is not None:
            r = h[i - 1] / h[i]
            mixed = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * past
        fresh = s[i + 1] * np.sqrt(-np.expm1(-2 * churn * h[i])) * noise[i, 1]
        x = s[i + 1] / s[i] * np.exp(-churn * h[i]) * x - a[i + 1] * np.expm1(-power * h[i]) * mixed + fresh
        past = d
        np.testing.assert_allclose(got[i + 1], x, rtol=1e-9)


@every_process
def test_ddim_with_churn_is_the_first_order_sde_solver_and_the_ancestral_step(name):
    # SDE-DPM-Solver++ of first order is DDIM at eta = 1 (2211.01095, section 6), which is DDPM's posterior.
    m, times, a, s, _, h = clock(name)
    x, noise = start()
    got = stepped(samplers.ddim(churn=1.0), m, suite.network, x, times, noise)
    np.testing.assert_allclose(stepped(Ancestral(), m, suite.network, x, times, noise), got, rtol=1e-9)
    for i in range(len(times) - 1):
        d = suite.data(name, x, times[i])
        x = s[i + 1] / s[i] * np.exp(-h[i]) * x - a[i + 1] * np.expm1(-2 * h[i]) * d
        x = x + s[i + 1] * np.sqrt(-np.expm1(-2 * h[i])) * noise[i, 1]
        np.testing.assert_allclose(got[i + 1], x, rtol=1e-9)


def exponential_step(x, i, j, nodes, values, churn, a, s, lam):
    """x at lambda_j from lambda_i, with the polynomial through (nodes, values) integrated in closed form.

    int (1 + c) e^{(1 + c)(l - l_j)} (l - l_i)^k dl = I_k:  I_0 = 1 - e^{-(1 + c) h}, I_k = h^k - k/(1 + c) I_{k-1}.
    """
    h, power = lam[j] - lam[i], 1 + churn
    moments = [-np.expm1(-power * h)]
    for k in range(1, len(nodes)):
        moments.append(h**k - k / power * moments[-1])
    weights = np.linalg.solve(np.vander(np.asarray(nodes) - lam[i], increasing=True).T, moments)
    mean = s[j] / s[i] * np.exp(-churn * h) * x
    return mean + a[j] * sum(w * v for w, v in zip(weights, values, strict=True))


@every_process
@pytest.mark.parametrize("churn", [0.0, 1.0])
@pytest.mark.parametrize(("order", "corrector"), [(3, False), (1, True), (2, True), (3, True), (4, True)])
def test_unipc_and_dpmpp_3m_integrate_the_polynomial_exactly(name, churn, order, corrector):
    # UniPC (2302.04867, algorithms 1 and 2, in data prediction): UniC corrects a step by the value at its end, which
    # is not evaluated again after the correction; the last step is not corrected. Its B(h) drops out of the solved
    # coefficients. Without the corrector and at order 3: DPM-Solver++(3M).
    m, times, a, s, lam, h = clock(name)
    x, noise = start()
    sampler = Multistep(order=order, corrector=corrector, churn=churn)
    got = stepped(sampler, m, suite.network, x, times, noise)
    values, corrected, fresh = [], x, 0.0
    for i in range(len(times) - 1):
        values.append(suite.data(name, x, times[i]))
        if corrector and i > 0:
            first = max(0, i - order)
            corrected = exponential_step(corrected, i - 1, i, lam[first : i + 1], values[first:], churn, a, s, lam)
            corrected = corrected + fresh
        else:
            corrected = x
        first = max(0, i + 1 - order)
        fresh = s[i + 1] * np.sqrt(-np.expm1(-2 * churn * h[i])) * noise[i, 1]
        x = exponential_step(corrected, i, i + 1, lam[first : i + 1], values[first:], churn, a, s, lam) + fresh
        np.testing.assert_allclose(got[i + 1], x, rtol=1e-8)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(
    "sampler",
    [samplers.ddim(), samplers.dpmpp_2m(), samplers.dpmpp_3m(churn=0.5), samplers.unipc(), samplers.gaussian_fitted()],
    ids=["ddim", "dpmpp_2m", "dpmpp_3m_churn", "unipc", "gaussian_fitted"],
)
def test_in_the_signal_gauge_order_n_draws_the_x_of_order_one(n, sampler):
    # On the same effective noises and from the exact law: the law of D, mean and variance.
    laws = []
    for m in (hold(1), hold(n)):
        times = log_times(m, 20.0, 0.1, 10)
        law = propagate(sampler, m, times, mean=MEAN, std=STD, start=truth(m, times[0], mean=MEAN, std=STD))
        laws.append(denoised(m, law, times[-1], mean=MEAN, std=STD))
    # Ten steps are too few to be exact: it is not the truth that they agree on.
    assert abs(laws[0][1] / STD**2 - 1) > 1e-6
    np.testing.assert_allclose(laws[1], laws[0], rtol=1e-9)


@pytest.mark.parametrize("gauge", ["cholesky", "probability_flow"])
def test_gauges_are_one_at_order_one(gauge):
    m = sde.vp()
    times = m.schedule.time(BUDGET)
    plain = samplers.unipc(churn=0.5).coefficients(m, times)[0]
    other = samplers.unipc(churn=0.5, gauge=gauge).coefficients(m, times)[0]
    np.testing.assert_array_equal(other.outputs, plain.outputs)
    np.testing.assert_array_equal(other.after.state, plain.after.state)


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.dpmpp_2m])
@pytest.mark.parametrize("n", [1, 3])
def test_the_mean_is_exact_with_any_churn(n, sampler):
    # All weight of D is then within 1/churn of a step's end in log noise, nearer than any node of the quadrature.
    m = hold(n)
    for churn in (30.0, 1e3):
        assert suite.errors(sampler(churn=churn), m, suite.log_times(m, 70.0, 0.002, 20))[1] < 1e-9


def test_fewer_steps_than_values():
    # One step of order 4 has one value: DDIM.
    m = hold(2)
    u = np.random.default_rng(1).standard_normal((3, 2, 2))
    one = stepped(samplers.unipc(order=4), m, suite.network, u, [1.0, 0.7])
    np.testing.assert_allclose(one, stepped(samplers.ddim(), m, suite.network, u, [1.0, 0.7]), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "`order` is 0; it must be a whole number from 1 to 4"),
        ({"order": 5}, "`order` is 5"),
        ({"order": 2.0}, "`order` is 2.0"),
        ({"order": True}, "`order` is True"),
        ({"churn": -1.0}, "`churn` is -1.0; it must be a finite number >= 0"),
        ({"churn": float("inf")}, "`churn` is inf"),
        ({"churn": float("nan")}, "`churn` is nan"),
        ({"churn": 31.0}, "`churn` is 31.0; it must be at most 30, above which extrapolation is unstable; `ddim`"),
        ({"gauge": "signl"}, r"`gauge` is 'signl' \(did you mean 'signal'\?\); .*: cholesky, probability_flow, signal"),
        ({"interpolation": "linear"}, "`interpolation` is 'linear'.*: gaussian_fit, midpoint, polynomial"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Multistep(**options)


def test_only_the_churnless_are_deterministic():
    assert samplers.unipc().deterministic and not samplers.unipc(churn=0.1).deterministic
