import functools
import itertools

import jax
import numpy as np
import pytest
import scipy.linalg
from reference import oracle
from reference.propagate import propagate_poisson, truth
from samplers.suite import MEAN, STD, errors, gaussian_eps, hold, kl_of_x, network

from hold_jax import sde
from hold_jax.samplers import EulerMaruyama, PoissonMidpoint, grids, sample

RNG = np.random.default_rng(0)


def clocked(sampler, m, eps_fn, u, times, events, noise):
    """One step under given events, in float64: the state, and the calls made. noise (K, B, n, C)."""
    with jax.enable_x64(True):
        c = jax.tree.map(lambda a: a[0], sampler.coefficients(m, np.asarray(times, np.float64)))
        out = _clocked(sampler, eps_fn, c, u, np.array(events, bool), noise)
        return np.asarray(out.u), int(out.nfe)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _clocked(sampler, eps_fn, c, u, events, noise):
    # Draw i of a step belongs to sub-step i - 1; draw 0 is the clock's.
    normal = lambda i, shape: noise[i - 1, ..., : shape[-2], :]  # noqa: E731
    return sampler.clocked(c, sampler.start(c, u), eps_fn, normal, events)


def written_out(m, times, u, events, noise_factor, noise):
    """The step of `PoissonMidpoint`'s docstring: u^ and u side by side, each matrix from scipy's exponential."""
    k = len(events)
    b = np.linspace(*oracle.integral(m, np.asarray(times)), k + 1)
    drift = -m.F - m.G @ m.G.T @ m.precision_inf
    p = scipy.linalg.expm(drift * (b[0] - b[1]))
    gamma = np.linalg.solve(drift, p - np.eye(m.order))

    def kick(u, i):
        t = times[0] if i == 0 else float(m.schedule.time(b[i]))
        phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(b[i])))
        eps, inverse = network(u, t), oracle.inverse_lower(chol)
        w = inverse @ phi[:, :1]
        d = (inverse[-1:] @ u - eps) / w[-1]
        score = -inverse.T @ (inverse @ u - w * d)
        return m.G @ m.G.T @ (score + m.precision_inf @ u)

    held, first = u, kick(u, 0)
    for i in range(k):
        push = first + events[i] * k * (kick(held, i) - first)
        fresh = noise_factor @ noise[i]
        u, held = p @ u + gamma @ push + fresh, p @ held + gamma @ first + fresh
    return u


@pytest.mark.parametrize("m", [hold(1), hold(2), hold(3), sde.psld()], ids=["hold1", "hold2", "hold3", "psld"])
@pytest.mark.parametrize("events", [(0,), (0, 0, 0), (0, 1, 0), (0, 1, 1)], ids=str)
def test_a_step_is_the_method_written_out(events, m):
    # K = 1 is the exponential Euler step that is exact in the stationary part.
    sampler, times = PoissonMidpoint(K=len(events)), m.schedule.time(np.array([1.3, 0.9]))
    u, noise = RNG.standard_normal((3, m.order, 2)), RNG.standard_normal((len(events), 3, m.order, 2))
    got, nfe = clocked(sampler, m, network, u, times, events, noise)
    factor = sampler.coefficients(m, times).noise[0, 0]
    h = (1.3 - 0.9) / len(events)
    drift = -m.F - m.G @ m.G.T @ m.precision_inf
    # Q = int_0^h e^{As} G G' e^{A's} ds solves A Q + Q A' = e^{Ah} G G' e^{A'h} - G G'.
    end = scipy.linalg.expm(drift * h) @ m.G
    cov = scipy.linalg.solve_continuous_lyapunov(drift, end @ end.T - m.G @ m.G.T)
    np.testing.assert_allclose(factor @ factor.T, cov, atol=1e-10)
    np.testing.assert_allclose(got, written_out(m, times, u, events, factor, noise), rtol=1e-8, atol=1e-9)
    assert nfe == 1 + sum(events)


def test_propagation_over_the_clock_is_the_sum_over_all_its_events():
    # K = 3: four clocks with probabilities 4/9, 2/9, 2/9, 1/9, two steps, each branch an affine map of basis columns.
    m, sampler = hold(2), PoissonMidpoint(K=3)
    times = np.array([1.5, 1.0, 0.6])
    start = truth(m, times[0], mean=MEAN, std=0.2)
    want = propagate_poisson(sampler, m, times, mean=MEAN, std=STD, start=start)
    eps_fn = gaussian_eps(m, sampler.coefficients(m, times).times)
    # Examples: the origin, the two unit states, the six unit draws.
    u, noise = np.zeros((9, 2, 1)), np.zeros((3, 9, 2, 1))
    u[1:3, :, 0] = np.eye(2)
    noise[:, 3:, :, 0] = np.eye(6).reshape(6, 3, 2).transpose(1, 0, 2)
    branches = [(1.0, start.mean, start.cov)]
    for ends in itertools.pairwise(times):
        after = []
        for later in itertools.product((False, True), repeat=2):
            moved = clocked(sampler, m, eps_fn, u, ends, (False, *later), noise)[0][..., 0]
            origin, columns = moved[0], (moved[1:] - moved[0]).T
            chance = np.prod(np.where(later, 1 / 3, 2 / 3))
            for w, mean, cov in branches:
                state, draws = columns[:, :2], columns[:, 2:]
                after.append((w * chance, origin + state @ mean, state @ cov @ state.T + draws @ draws.T))
        branches = after
    assert sum(w for w, _, _ in branches) == pytest.approx(1)
    mean = sum(w * v for w, v, _ in branches)
    cov = sum(w * (c + np.outer(v - mean, v - mean)) for w, v, c in branches)
    np.testing.assert_allclose(want.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(want.cov, cov, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_bias_is_that_of_K_small_steps(n):
    # The method's point: N steps with K sub-steps err as N K steps of exponential Euler do, for about 2 N calls.
    m, clock = hold(n), lambda num: np.linspace(2.0, 0.5, num + 1)
    few = errors(PoissonMidpoint(K=4), m, clock(64))
    many = errors(PoissonMidpoint(K=1), m, clock(256))
    np.testing.assert_allclose(few, many, rtol=0.1)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_it_beats_euler_maruyama_at_equal_calls_on_wide_data(n):
    # K = 4 makes 1.75 calls a step in the mean. (On narrow data the corrections are large, and so is their variance.)
    m, calls = hold(n), 49
    by_euler = kl_of_x(EulerMaruyama(), m, grids.uniform(m, m.t_min, calls - 1), STD)
    by_poisson = kl_of_x(PoissonMidpoint(K=4), m, grids.uniform(m, m.t_min, (calls - 1) * 4 // 7), STD)
    assert by_poisson < by_euler / 5


def test_a_sub_step_without_an_event_makes_no_call():
    # nfe is what a callback counts, for every key; its mean is 2 - 1/K a step.
    m, calls, steps, k = hold(1), [], 12, 4

    def counted(u, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return network(u, t)

    options = {"shape": (2, 1), "num_steps": steps, "denoise": False}
    draw = jax.jit(lambda key: sample(PoissonMidpoint(K=k), m, counted, key=key, **options).nfe)
    counts = []
    for seed in range(60):
        calls.clear()
        counts.append(int(draw(jax.random.key(seed))))
        jax.effects_barrier()
        assert len(calls) == counts[-1]
    assert len(set(counts)) > 3
    chances = 60 * steps * (k - 1)
    events = sum(counts) - 60 * steps
    assert abs(events - chances / k) < 4 * np.sqrt(chances / k * (1 - 1 / k))


@pytest.mark.parametrize("k", [0, -2, 1.5, True])
def test_a_bad_number_of_sub_steps_is_named(k):
    with pytest.raises(ValueError, match=f"`K` is {k}; it must be a whole number >= 1"):
        PoissonMidpoint(K=k)
