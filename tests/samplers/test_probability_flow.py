import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.suite import MEAN, STD, hold, mixture_eps, network, signal_and_noise, stepped

from hold_jax.errors import UserError
from hold_jax.numerics import ode
from hold_jax.numerics.ode import SOLVERS
from hold_jax.samplers import ProbabilityFlow, encode, grids, loop, sample, unipc

START = 0.7 * jax.random.normal(jax.random.key(0), (16, 1, 2))
OPTIONS = {"key": jax.random.key(1), "shape": (16, 2), "num_steps": 1, "start": START}


def counted(eps_fn, calls):
    """`eps_fn`, which notes the time of each call really made."""

    def noting(u, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return eps_fn(u, t)

    return noting


def flow(u, first, last):
    """The flow at n = 1, from u at `first`: one marginal of N(mean, std^2) data stretched onto another."""
    (a, s), (a_end, s_end) = (signal_and_noise("hold1", t) for t in (first, last))
    width = np.sqrt((a_end**2 * STD**2 + s_end**2) / (a**2 * STD**2 + s**2))
    return a_end * MEAN + width * (np.asarray(u, np.float64) - a * MEAN)


def gaussian_noise(u, t):
    """The exact eps_fn of N(mean, std^2) at n = 1, in closed form."""
    a, square = jnp.exp(-t), -0.5 * jnp.expm1(-2 * t)
    return jnp.sqrt(square) * (u - a * MEAN) / (a**2 * STD**2 + square)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "euler"])
def test_the_calls_of_a_step_are_the_stages_of_the_solver(solver):
    # A last stage that is the next step's first costs one call, once. (euler's one call: below.)
    constructor, calls = SOLVERS[solver]
    tableau = constructor.tableau
    assert (calls, solver in ode._FIRST_SAME_AS_LAST) == (tableau.num_stages - tableau.fsal, tableau.fsal)


@pytest.mark.parametrize("solver", ["heun", "tsit5", "dopri8"])
def test_an_adaptive_solver_follows_the_flow_and_counts_all_its_calls(solver):
    # A dozen steps and more, each with an error of 1e-5; frames are at the grid's times, between the solver's own.
    m, calls, times = hold(1), [], [4.0, 1.0, 0.6, 0.3, 1e-3]
    sampler = ProbabilityFlow(solver=solver, rtol=1e-5, atol=1e-5)
    options = {**OPTIONS, "num_steps": 4, "grid": times, "frames": 2, "denoise": False}
    out = jax.jit(lambda: sample(sampler, m, counted(gaussian_noise, calls), **options))()
    np.testing.assert_allclose(out.u, flow(START, times[0], times[-1]), atol=2e-4)
    np.testing.assert_allclose(out.frames[1], flow(START, times[0], times[2])[:, 0], atol=1e-3)
    jax.effects_barrier()
    assert out.nfe == len(calls)
    # A rejected step goes back, to try a shorter one: its calls were made too. (dopri8's stages go back anyway.)
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


@pytest.mark.slow
def test_data_come_back_from_their_latents_the_way_of_unipc_s_limit_and_sharded():
    # Mixture data in two dimensions at n = 2, the batch and its one sequence of steps spread over eight devices.
    m, sampler = hold(2), ProbabilityFlow(rtol=1e-5, atol=1e-5)
    eps_fn = mixture_eps(m)
    x = 0.3 * jax.random.normal(jax.random.key(0), (16, 2)) + 0.1
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))

    @jax.jit
    def there_and_back(x):
        there = encode(sampler, m, eps_fn, x, key=jax.random.key(1), num_steps=1)
        options = {"shape": x.shape, "num_steps": 1, "start": there.u, "sharding": sharding}
        return there, sample(sampler, m, eps_fn, key=jax.random.key(2), **options)

    there, back = there_and_back(x)
    assert len(back.u.sharding.device_set) == 8 and not back.u.sharding.is_fully_replicated
    # All that is lost is the noise of t_min, an effective 0.002.
    assert jnp.sqrt(jnp.mean(jnp.square(back.x - x))) < 0.0025
    # In its gauge unipc goes the same way, example by example: its own steps in float64.
    latent, times = np.asarray(there.u), grids.log(m, m.t_min, 120)
    limit = stepped(unipc(gauge="probability_flow"), m, mixture_eps(m, times), latent, times)[-1]
    np.testing.assert_allclose(back.u[:, 0], limit[:, 0], atol=1e-3)


def test_an_end_that_is_not_reached_is_nan_and_an_error_where_it_can_be_one():
    m, sampler = hold(1), ProbabilityFlow(max_steps=3)
    out = jax.jit(lambda: sample(sampler, m, network, **OPTIONS))()
    assert np.isnan(out.x).all() and np.isnan(out.u).all()
    assert out.nfe == 6 * 3 + 1 + 1

    class GaveUp:
        def integrate(self, m, eps_fn, u, times, *, key, index=None, frames=0):
            return loop.Trajectory(u, jnp.int32(19), None, jnp.bool_(False))

    with pytest.raises(UserError, match=r"made `max_steps` steps without reaching the end; .*raise max_steps"):
        sample(GaveUp(), m, network, **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"solver": "heun", "adaptive": False}])
def test_the_program_is_exported_because_it_never_calls_the_host(options):
    # Encoding and sampling, with frames: every path through the solver's loop, either way in time.
    m, sampler = hold(1), ProbabilityFlow(**options)

    @jax.jit
    def there_and_back(x):
        there = encode(sampler, m, network, x, key=jax.random.key(1), num_steps=4)
        back = {"shape": x.shape, "num_steps": 4, "start": there.u, "frames": 2, "denoise": False}
        out = sample(sampler, m, network, key=jax.random.key(2), **back)
        return out.u, out.frames

    exported = jax.export.export(there_and_back)(START[:, 0])
    for got, want in zip(exported.call(START[:, 0]), there_and_back(START[:, 0]), strict=True):
        np.testing.assert_array_equal(got, want)


def test_an_end_without_noise_is_named():
    sampler = ProbabilityFlow(solver="heun", adaptive=False)
    with pytest.raises(ValueError, match=r"`t_min` is 0.001; it must be a time of an effective noise above 1e-05"):
        sample(sampler, hold(3), gaussian_noise, start=jnp.zeros((2, 3, 1)), t_min=1e-3, num_steps=2)


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
