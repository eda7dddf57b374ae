import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle
from samplers import suite
from samplers.suite import FIRST_ORDER, hold, signal_and_noise, stepped

from hold_jax import sde
from hold_jax.samplers import Heun, grids, sample

BUDGET = np.array([2.0, 1.4, 0.9, 0.5, 0.2])


def edm(denoiser, x, t, *, s_churn=0.0, s_min=0.0, s_max=np.inf, s_noise=1.0, noise=None, last=True):
    """2206.00364, algorithm 2 (algorithm 1 without churn) on falling noises t, the last of them may be 0.

    One difference: the rise before a step never goes above t[0], where the process ends.
    """
    num = len(t) - 1
    for i in range(num):
        gamma = min(s_churn / num, np.sqrt(2) - 1) if s_min <= t[i] <= s_max else 0.0
        raised = min(t[i] * (1 + gamma), t[0])
        if raised > t[i]:
            x = x + np.sqrt(raised**2 - t[i] ** 2) * s_noise * noise[i]
        slope = (x - denoiser(x, raised)) / raised
        end = x + (t[i + 1] - raised) * slope
        if t[i + 1] != 0:
            slope = 0.5 * slope + 0.5 * (end - denoiser(end, t[i + 1])) / t[i + 1]
            end = x + (t[i + 1] - raised) * slope
        x = end
    return x


@pytest.mark.parametrize("name", FIRST_ORDER)
@pytest.mark.parametrize(
    "churn",
    [{}, {"s_churn": 0.8}, {"s_churn": 40.0, "s_noise": 1.1}, {"s_churn": 0.8, "s_min": 0.6, "s_max": 1.3}],
    ids=["algorithm_1", "algorithm_2", "largest_rise", "window"],
)
def test_heun_is_edm_s_sampler(name, churn):
    # In y = x / a = x_0 + sigma eps, the space EDM writes its algorithm in; D is any function of x.
    m = FIRST_ORDER[name]
    times = m.schedule.time(BUDGET * (0.1 if name == "ve" else 1))
    a, s = signal_and_noise(name, times)
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((3, 1, 2)), rng.standard_normal((len(times) - 1, 4, 3, 1, 2))

    def denoiser(y, sigma):
        t = m.schedule.time(oracle.integral_of_noise(m, sigma))
        a, _ = signal_and_noise(name, t)
        return suite.data(name, y * a, t)

    got = stepped(Heun(**churn), m, suite.network, x, times, noise)[-1]
    want = a[-1] * edm(denoiser, x / a[0], s / a, noise=noise[:, 0], **churn)
    np.testing.assert_allclose(got, want, rtol=1e-8)


def test_with_the_karras_grid_and_the_final_denoising_all_of_it_is_edm_s():
    # N steps and the denoising are EDM's N + 1, whose last one ends at noise 0: through `sample`, in float32.
    m = sde.hold(order=1)
    eps_fn = suite.mixture_eps(m, grids.karras(m, m.t_min, 6))
    start = 56.0 * jax.random.normal(jax.random.key(0), (64, 1, 2)) * float(jnp.exp(-m.T))
    options = {"key": jax.random.key(1), "shape": (64, 2), "num_steps": 6, "start": start, "grid": "karras"}
    out = jax.jit(lambda: sample(Heun(), m, eps_fn, **options))()
    steps = np.arange(7) / 6
    t = (80.0 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    y = np.asarray(start, np.float64)[:, 0] / np.exp(-m.T)
    want = edm(suite.mixture_denoiser, y, np.append(t, 0.0))
    np.testing.assert_allclose(out.x, want, atol=2e-4)
    assert out.nfe == 2 * 6 + 1


@pytest.mark.parametrize("n", [2, 3])
def test_the_rise_is_the_process_itself(n):
    # From an exact law at t a rise leaves the exact law at the raised time: u -> Phi u + chol(Q) xi.
    m = hold(n)
    times = np.array([1.5, 1.0, 0.6])
    stage = Heun(s_churn=0.5).coefficients(m, times)[0]
    noise = np.array([oracle.effective_noise(m, t) for t in times])
    raised = oracle.integral_of_noise(m, noise[1] * 1.25)
    np.testing.assert_allclose(stage.time, [1.5, raised], rtol=1e-9)
    phi, chol = oracle.transition(m, float(raised - times[1]))
    assert oracle.row_error(stage.before.state[1], phi) < 1e-7
    assert oracle.row_error(stage.before.noise[1], chol) < 1e-7
    np.testing.assert_array_equal(stage.before.state[0], np.eye(n))
    np.testing.assert_array_equal(stage.before.noise[0], np.zeros((n, n)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"s_churn": -1.0}, "`s_churn` is -1.0; it must be finite and >= 0"),
        ({"s_churn": float("nan")}, "`s_churn` is nan"),
        ({"s_min": -0.1}, "`s_min` is -0.1; it must be >= 0"),
        ({"s_min": 2.0, "s_max": 1.0}, "`s_max` is 1.0; it must be above s_min = 2.0"),
        ({"s_noise": 0.0}, "`s_noise` is 0.0; it must be positive"),
        ({"gauge": "signl"}, "`gauge` is 'signl' .did you mean 'signal'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Heun(**options)
