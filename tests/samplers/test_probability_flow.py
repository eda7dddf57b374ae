import itertools

import jax
import numpy as np
import pytest
from samplers.suite import MEAN, STD, gaussian_eps, hold, mixture_eps, network, signal_and_noise

from hold_jax.errors import UserError
from hold_jax.samplers import ProbabilityFlow, sample, unipc
from hold_jax.samplers.probability_flow import SOLVERS

START = 0.7 * jax.random.normal(jax.random.key(0), (16, 1, 2))
OPTIONS = {"key": jax.random.key(1), "shape": (16, 2), "num_steps": 1, "start": START}
ADAPTIVE = [name for name in SOLVERS if name != "euler"]


def counted(eps_fn, calls):
    """`eps_fn`, which notes the time of each call really made."""

    def noting(u, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return eps_fn(u, t)

    return noting


def flow(m, u, t):
    """u(t) of the flow at n = 1 from u at T: it stretches every Gaussian marginal, data N(mean, std^2), onto the next."""
    (a, s), (a_end, s_end) = (signal_and_noise("hold1", x) for x in (m.T, t))
    width = np.sqrt((a_end**2 * STD**2 + s_end**2) / (a**2 * STD**2 + s**2))
    return a_end * MEAN + width * (np.asarray(u, np.float64) - a * MEAN)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_an_adaptive_solver_follows_the_flow_and_counts_all_its_calls(solver):
    # A dozen steps and more, each with an error of 1e-5.
    m, calls = hold(1), []
    sampler = ProbabilityFlow(solver=solver, rtol=1e-5, atol=1e-5)
    out = jax.jit(lambda: sample(sampler, m, counted(gaussian_eps(m), calls), denoise=False, **OPTIONS))()
    assert np.abs(out.u - flow(m, START, m.t_min)).max() < 2e-4
    jax.effects_barrier()
    assert out.nfe == len(calls)
    # A rejected step goes back in time, to try a shorter one: its calls were made too. (dopri8's stages go back anyway.)
    assert (np.diff(calls) > 0).any()


def test_fixed_steps_are_the_grid_s():
    # Euler's, written out in the clock log sigma, sigma = s / a.
    m, calls = hold(1), []
    grid = [3.0, 2.0, 1.5, 1.0, 0.4]
    sampler = ProbabilityFlow(solver="euler", adaptive=False)
    options = {**OPTIONS, "num_steps": 4, "grid": grid, "frames": 2}
    out = jax.jit(lambda: sample(sampler, m, counted(network, calls), **options))()
    u, states = np.asarray(START, np.float64), []
    for t, t_next in itertools.pairwise(grid):
        (a, s), (a_next, s_next) = (signal_and_noise("hold1", x) for x in (t, t_next))
        # dx/dB = -x - score / 2, score = -eps / s; with a^2 + 2 s^2 = 1, d log sigma / dB = 1 / (2 s^2).
        slope = (-u + 0.5 * network(u, t) / s) * 2 * s**2
        u = u + slope * (np.log(s_next / a_next) - np.log(s / a))
        states.append(u[:, 0])
    np.testing.assert_allclose(out.u[:, 0], states[-1], atol=2e-5)
    np.testing.assert_array_equal(out.frames[0], START[:, 0])
    np.testing.assert_allclose(out.frames[1:], states[1::2], atol=2e-5)
    jax.effects_barrier()
    assert out.nfe == len(calls) == 4 + 1


def test_the_map_is_the_limit_of_unipc_in_the_same_gauge():
    # Mixture data: from a start to its x, example by example, not only in law. (At n = 1: the flow above.)
    m = hold(3)
    start = 0.7 * jax.random.normal(jax.random.key(3), (16, 3, 2))
    options = {"key": jax.random.key(1), "shape": (16, 2), "start": start, "grid": "log"}
    ends = []
    for sampler, steps in ((ProbabilityFlow(rtol=1e-6, atol=1e-6), 1), (unipc(gauge="probability_flow"), 200)):
        ends.append(jax.jit(lambda s=sampler, k=steps: sample(s, m, mixture_eps(m), num_steps=k, **options).x)())
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-3)


def test_an_end_that_is_not_reached_is_an_error_and_nan_under_jit():
    m, sampler = hold(1), ProbabilityFlow(max_steps=3)
    draw = lambda: sample(sampler, m, gaussian_eps(m), **OPTIONS)  # noqa: E731
    with pytest.raises(UserError, match=r"made `max_steps` steps before it came to t_min; .*raise max_steps"):
        draw()
    out = jax.jit(draw)()
    assert np.isnan(out.x).all() and np.isnan(out.u).all()
    assert out.nfe == 6 * 3 + 1 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "tsit"}, r"`solver` is 'tsit' \(did you mean 'tsit5'\?\); .*: bosh3, dopri5, .*, tsit5"),
        ({"solver": "euler"}, "`solver` is 'euler'; it must be one with an error estimate, or set adaptive = False"),
        ({"rtol": 0.0}, "`rtol` is 0.0; it must be positive"),
        ({"rtol": float("nan")}, "`rtol` is nan"),
        ({"atol": -1.0}, "`atol` is -1.0; it must be positive"),
        ({"max_steps": 0}, "`max_steps` is 0; it must be a whole number >= 1"),
        ({"max_steps": 10.5}, "`max_steps` is 10.5"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ProbabilityFlow(**options)
