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
from hold_jax.samplers import Ancestral, PoissonMidpoint, grids, sample

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


def score_scheme(m, u, t, ends, eps):
    """The exponential Euler step: P u + W o, with o = G G' (score + Sigma_inf^-1 u), from scipy's exponential."""
    phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(ends[0])))
    inverse = oracle.inverse_lower(chol)
    w = inverse @ phi[:, :1]
    d = (inverse[-1:] @ u - eps) / w[-1]
    score = -inverse.T @ (inverse @ u - w * d)
    drift = -m.F - m.G @ m.G.T @ m.precision_inf
    p = scipy.linalg.expm(drift * (ends[0] - ends[1]))
    return p, np.linalg.solve(drift, p - np.eye(m.order)), m.G @ m.G.T @ (score + m.precision_inf @ u)


def denoiser_scheme(m, u, t, ends, eps):
    """The mean of u(s) given u(t) and q0 = D, by conditioning the joint Gaussian of u(s) and u(t) given q0."""
    (phi, chol), (phi_s, chol_s) = ([v.astype(np.float64) for v in oracle.marginal(m, float(b))] for b in ends)
    inverse = oracle.inverse_lower(chol)
    d = (inverse[-1:] @ u - eps) / (inverse @ phi[:, :1])[-1]
    between = scipy.linalg.expm(m.F * (ends[0] - ends[1]))
    gain = chol_s @ chol_s.T @ between.T @ np.linalg.inv(chol @ chol.T)
    return gain, phi_s[:, :1] - gain @ phi[:, :1], d


def noise_scheme(m, u, t, ends, eps):
    """The same with D = y - sigma e and the noise e held."""
    p, w, d = denoiser_scheme(m, u, t, ends, eps)
    phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(ends[0])))
    signal = np.linalg.solve(chol @ chol.T, phi[:, :1])
    row = signal.T / (phi[:, :1].T @ signal)
    sigma = np.sqrt(1 / (phi[:, 0] @ signal[:, 0]))
    return p + w @ row, -sigma * w, (row @ u - d) / sigma


SCHEMES = {"denoiser": denoiser_scheme, "noise": noise_scheme, "score": score_scheme}


def written_out(scheme, m, times, u, events, factors, noise):
    """The step of `PoissonMidpoint`'s docstring: u^ and u side by side."""
    k = len(events)
    b = np.linspace(*oracle.integral(m, np.asarray(times)), k + 1)
    held = u
    for i in range(k):
        t = times[0] if i == 0 else float(m.schedule.time(b[i]))
        p, w, output = scheme(m, held, t, b[i : i + 2], network(held, t))
        first = output if i == 0 else first  # noqa: F821
        fresh = factors[i] @ noise[i][..., : factors[i].shape[-1], :]
        u = p @ u + w @ (first + events[i] * k * (output - first)) + fresh
        held = p @ held + w @ first + fresh
    return u


@pytest.mark.parametrize("m", [hold(1), hold(2), hold(3), sde.psld()], ids=["hold1", "hold2", "hold3", "psld"])
@pytest.mark.parametrize("base", SCHEMES)
@pytest.mark.parametrize("events", [(0,), (0, 1, 1)], ids=str)
def test_a_step_is_the_method_written_out(events, base, m):
    # K = 1 is the base scheme itself.
    sampler, times = PoissonMidpoint(K=len(events), base=base), m.schedule.time(np.array([1.3, 0.9]))
    u, noise = RNG.standard_normal((3, m.order, 2)), RNG.standard_normal((len(events), 3, m.order, 2))
    got, nfe = clocked(sampler, m, network, u, times, events, noise)
    factors = sampler.coefficients(m, times).noise[0]
    np.testing.assert_allclose(
        got, written_out(SCHEMES[base], m, times, u, events, factors, noise), rtol=1e-7, atol=1e-8
    )
    assert nfe == 1 + sum(events)


@pytest.mark.parametrize("m", [hold(1), hold(3), sde.psld()], ids=["hold1", "hold3", "psld"])
def test_the_noise_of_a_sub_step_is_that_of_its_scheme(m):
    times = m.schedule.time(np.array([1.3, 0.9]))
    drift = -m.F - m.G @ m.G.T @ m.precision_inf
    # Q = int_0^h e^{As} G G' e^{A's} ds solves A Q + Q A' = e^{Ah} G G' e^{A'h} - G G'.
    end = scipy.linalg.expm(drift * 0.4) @ m.G
    cov = scipy.linalg.solve_continuous_lyapunov(drift, end @ end.T - m.G @ m.G.T)
    factor = PoissonMidpoint(K=1, base="score").coefficients(m, times).noise[0, 0]
    np.testing.assert_allclose(factor @ factor.T, cov, atol=1e-10)
    # The covariance of u(s) given u(t) and q0.
    (_, chol), (_, chol_s) = ([v.astype(np.float64) for v in oracle.marginal(m, b)] for b in (1.3, 0.9))
    cross = chol_s @ chol_s.T @ scipy.linalg.expm(m.F * 0.4).T
    cov = chol_s @ chol_s.T - cross @ np.linalg.solve(chol @ chol.T, cross.T)
    for base in ("denoiser", "noise"):
        factor = PoissonMidpoint(K=1, base=base).coefficients(m, times).noise[0, 0]
        np.testing.assert_allclose(factor @ factor.T, cov, atol=1e-9)


def test_sub_steps_are_equal_in_the_chosen_clock():
    m = hold(3)
    times = np.array([m.T, 1.0, m.t_min])
    b = m.schedule.integral(0.0, PoissonMidpoint(K=4).coefficients(m, times).times)
    np.testing.assert_allclose(
        np.diff(b, axis=1), np.repeat(-np.diff(m.schedule.integral(0.0, times)) / -4, 3).reshape(2, 3)
    )
    starts = PoissonMidpoint(K=4, spacing="log").coefficients(m, times).times
    noise = np.array([[oracle.effective_noise(m, float(oracle.integral(m, t))) for t in row] for row in starts])
    steps = np.diff(np.log(noise), axis=1)
    np.testing.assert_allclose(steps, steps[:, :1] * np.ones(3), rtol=1e-8)


def test_propagation_over_the_clock_is_the_sum_over_all_its_events():
    # K = 3: four clocks with probabilities 4/9, 2/9, 2/9, 1/9, two steps, each branch an affine map of basis columns.
    m, sampler = hold(2), PoissonMidpoint(K=3, base="score")
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


@pytest.mark.parametrize("base", ["denoiser", "score"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_bias_is_that_of_K_small_steps(n, base):
    # The method's point: N steps with K sub-steps err as N K steps of the base scheme do, for about 2 N calls.
    m, clock = hold(n), lambda num: np.linspace(2.0, 0.5, num + 1)
    few = errors(PoissonMidpoint(K=4, base=base), m, clock(64))
    many = errors(PoissonMidpoint(K=1, base=base), m, clock(256))
    np.testing.assert_allclose(few, many, rtol=0.15)


# KL for data of std 0.5, 0.1 and 0.02, rounded up in the second digit, by `kl_of_x` (2026-11-26): mean and covariance
# propagate exactly, in float64 and without Monte Carlo. Ancestral sampling has the same at every order.
WIDTHS = (0.5, 0.1, 0.02)
FIFTY_CALLS = {1: (2.7e-8, 1.6e-6, 1.1e-5), 3: (2.4e-5, 2.2e-5, 7.4e-5)}
ANCESTRAL_1000 = (2.8e-5, 3.0e-5, 1.04e-4)


@pytest.mark.parametrize("n", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_fifty_calls_are_as_good_as_a_thousand_of_ancestral_sampling(n):
    # The paper's claim for pictures (50 to 80 calls against DDPM's 1,000), for data of every width. K = 40.
    m = hold(n)
    few = [kl_of_x(PoissonMidpoint(K=40), m, grids.log(m, m.t_min, 25), std) for std in WIDTHS]
    many = [kl_of_x(Ancestral(), m, grids.log(m, m.t_min, 1000), std) for std in WIDTHS]
    np.testing.assert_array_less(few, FIFTY_CALLS[n])
    np.testing.assert_array_less(few, many)
    np.testing.assert_allclose(many, ANCESTRAL_1000, rtol=0.01)


def test_the_denoiser_is_the_base_to_hold_on_narrow_data():
    # What the score base holds is stiff where the noise is below the data's width; 5.5e-5, 0.227 and 1.28e3.
    m = hold(1)
    times = grids.log(m, m.t_min, 12)
    kl = {base: kl_of_x(PoissonMidpoint(K=16, base=base), m, times, 0.1) for base in SCHEMES}
    assert kl["denoiser"] < 5.6e-5
    assert 0.22 < kl["score"] < 0.23
    assert kl["noise"] > 1e3


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


@pytest.mark.parametrize(("option", "value"), [("base", "eps"), ("spacing", "karras")])
def test_a_bad_option_is_named(option, value):
    with pytest.raises(ValueError, match=f"`{option}` is '{value}'"):
        PoissonMidpoint(**{option: value})
