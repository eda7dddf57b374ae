"""The loop around the samplers: one scan, its keys, calls, frames and memory, jit, vmap, pmap and sharding."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle
from reference.propagate import denoised, propagate, propagate_poisson
from samplers.suite import MEAN, STD, gaussian_eps, hold, network

from hold_jax import samplers, sde
from hold_jax.errors import UserError
from hold_jax.samplers import (
    SAMPLERS,
    EulerMaruyama,
    Heun,
    LieTrotter,
    PoissonMidpoint,
    PredictorCorrector,
    Strang,
    grids,
    sample,
    unipc,
)
from hold_jax.samplers.loop import StepSampler

M = hold(2)
SHORT = {"shape": (8, 2), "num_steps": 4, "denoise": False}
START = 0.7 * jax.random.normal(jax.random.key(0), (8, 2, 2))
STEPPING = [name for name in SAMPLERS if name != "probability_flow"]
every_sampler = pytest.mark.parametrize("name", STEPPING)
# Network calls of a step; poisson_midpoint's are random.
CALLS = {"heun": 2, "predictor_corrector": 2}

calls: list[float] = []


def counted(u, t):
    """`network`, which notes the time of each call really made."""
    jax.debug.callback(lambda t: calls.append(float(t)), t)
    return network(u, t)


@functools.cache
def compiled(name):
    """Four steps of a sampler with default options from a given start."""
    sampler = SAMPLERS[name]()
    return jax.jit(lambda key, start: sample(sampler, M, counted, key=key, start=start, **SHORT))


def drawn(name, key, start):
    """What `compiled` returns, and the times of its calls."""
    calls.clear()
    out = compiled(name)(jax.random.key(key), start)
    out.x.block_until_ready()
    jax.effects_barrier()
    return out, list(calls)


# --- The law, the keys, the calls -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("psld", Strang()),
        ("hold3", PredictorCorrector(predictor="euler_maruyama")),
        ("hold2", Heun(s_churn=4.0)),
        ("hold1", PoissonMidpoint(K=3)),
    ],
)
def test_samples_follow_the_exactly_propagated_law(name, sampler):
    # A few coarse steps, far from converged: the law is the sampler's own. A draw of noise used twice, a row of
    # coefficients out of place or a wrong prior would each show as many standard errors.
    m = {"hold1": hold(1), "hold2": hold(2), "hold3": hold(3), "psld": sde.psld(), "ve": sde.ve(sigma_max=5.0)}[name]
    t_min = float(m.schedule.time(oracle.integral_of_noise(m, 0.2)))
    times = grids.karras(m, t_min, 6)
    options = {"num_steps": 6, "t_min": t_min, "grid": "karras"}
    if isinstance(sampler, PoissonMidpoint):
        # A batch has one clock: independent samples are batches of one.
        law, keys = propagate_poisson(sampler, m, times, mean=MEAN, std=STD), jax.random.split(jax.random.key(1), 4096)
        one = lambda key: sample(sampler, m, gaussian_eps(m), key=key, shape=(1, 1), **options)  # noqa: E731
        out = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
        out = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out)
    else:
        law = propagate(sampler, m, times, mean=MEAN, std=STD)
        told = [stage.time for stage in sampler.coefficients(m, times)]
        eps_fn = gaussian_eps(m, np.append(told, times[-1]))
        draw = jax.jit(lambda key: sample(sampler, m, eps_fn, key=key, shape=(4096, 4), **options))
        out = draw(jax.random.key(1))
    num = out.x.size
    u = np.asarray(out.u, np.float64).transpose(0, 2, 1).reshape(-1, m.order)
    std = np.sqrt(np.diagonal(law.cov))
    assert (np.abs(u.mean(axis=0) - law.mean) < 4 * std / np.sqrt(num)).all()
    spread = np.sqrt((np.outer(std, std) ** 2 + law.cov**2) / num)
    assert (np.abs(np.cov(u, rowvar=False).reshape(law.cov.shape) - law.cov) < 4 * spread).all()
    mean, variance = denoised(m, law, t_min, mean=MEAN, std=STD)
    x = np.asarray(out.x, np.float64).ravel()
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / num)
    assert abs(x.var() - variance) < 4 * variance * np.sqrt(2 / num)


@every_sampler
def test_nfe_counts_the_calls_really_made(name):
    out, times = drawn(name, 1, START)
    assert out.nfe == len(times) and out.nfe.dtype == jnp.int32
    if name != "poisson_midpoint":
        assert out.nfe == 4 * CALLS.get(name, 1)
    assert M.t_min <= min(times) * (1 + 1e-6) and max(times) <= np.float32(M.T)


@every_sampler
def test_a_deterministic_sampler_draws_nothing_and_the_others_do(name):
    one, other = (drawn(name, key, START)[0].u for key in (1, 2))
    deterministic = name in ("conjugate", "ddim", "dpmpp_2m", "dpmpp_3m", "heun", "unipc")
    assert np.array_equal(one, other) == SAMPLERS[name]().deterministic == deterministic


@every_sampler
def test_an_example_does_not_know_its_neighbors(name):
    # Not through norms of the batch, not through steps chosen for the worst: to the last bit.
    out, _ = drawn(name, 1, START)
    beside, _ = drawn(name, 1, START.at[3].set(1e4))
    others = np.arange(8) != 3
    np.testing.assert_array_equal(out.x[others], beside.x[others])
    assert np.abs(out.x[3] - beside.x[3]).min() > 1


class Still(StepSampler):
    """A sampler that does nothing."""

    class State(NamedTuple):
        u: jax.Array
        nfe: jax.Array

    def coefficients(self, m, times):
        return np.zeros(len(times) - 1)

    def start(self, coefficients, u):
        return self.State(u, jnp.int32(0))

    def step(self, coefficients, state, eps_fn, normal):
        return state


@pytest.mark.parametrize("m", [sde.psld(), sde.ve()], ids=["psld", "ve"])
def test_without_a_start_it_is_the_prior(m):
    out = sample(Still(), m, network, key=jax.random.key(2), shape=(8192, 2), num_steps=1, frames=1, denoise=False)
    assert out.nfe == 0
    np.testing.assert_array_equal(out.frames[0], out.x)
    u = np.asarray(out.u, np.float64).transpose(0, 2, 1).reshape(-1, m.order)
    spread = np.sqrt((np.outer(*(np.diagonal(m.prior_cov),) * 2) + m.prior_cov**2) / len(u))
    assert (np.abs(np.cov(u, rowvar=False).reshape(m.prior_cov.shape) - m.prior_cov) < 4 * spread).all()


def test_frames_are_the_states_on_the_way_and_change_nothing():
    times = np.array([2.0, 1.5, 1.0, 0.5, 0.2])

    def run(steps, **more):
        options = {**SHORT, "num_steps": steps, "grid": times[: steps + 1], "start": START, **more}
        return jax.jit(lambda: sample(EulerMaruyama(), M, network, key=jax.random.key(3), **options))()

    # The same keys: a run that stops half way is the first half.
    half, whole = run(2), run(4, frames=2)
    assert half.frames is None and whole.frames.shape == (3, 8, 2)
    np.testing.assert_array_equal(half.x, half.u[..., 0, :])
    np.testing.assert_array_equal(whole.frames[0], START[..., 0, :])
    np.testing.assert_allclose(whole.frames[1], half.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(whole.frames[2], whole.u[..., 0, :])
    assert (half.nfe, whole.nfe) == (2, 4)


# --- Transformations ------------------------------------------------------------------------------------


@pytest.mark.eight_devices
@pytest.mark.parametrize("sampler", [unipc(), PoissonMidpoint(K=2)], ids=["unipc", "poisson_midpoint"])
def test_jit_vmap_and_pmap_equal_plain_calls(sampler):
    keys = jax.random.split(jax.random.key(4), 8)

    def draw(key):
        out = sample(sampler, hold(1), network, key=key, shape=(2, 2), num_steps=2, denoise=False)
        return out.x, out.nfe

    jitted = jax.jit(draw)
    plain, nfe = (np.stack(v) for v in zip(*map(jitted, keys), strict=True))
    assert plain.std(axis=0).min() > 0  # eight different draws
    for many in (jax.jit(jax.vmap(draw)), jax.pmap(draw)):
        x, count = many(keys)
        np.testing.assert_allclose(x, plain, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(count, nfe)


@pytest.mark.eight_devices
@pytest.mark.parametrize("sampler", [unipc(), PoissonMidpoint()], ids=["unipc", "poisson_midpoint"])
def test_a_sharding_spreads_the_batch_and_changes_nothing(sampler):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    options = {"key": jax.random.key(6), "shape": (8, 2), "num_steps": 3, "denoise": False}
    spread = jax.jit(lambda: sample(sampler, hold(1), network, sharding=sharding, **options))()
    alone = jax.jit(lambda: sample(sampler, hold(1), network, **options))()
    assert len(spread.u.sharding.device_set) == 8 and not spread.u.sharding.is_fully_replicated
    np.testing.assert_allclose(spread.u, alone.u, rtol=1e-4, atol=1e-5)
    assert spread.nfe == alone.nfe


@pytest.mark.eight_devices
def test_a_sharding_that_cannot_be_is_named():
    spread = lambda mesh: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))  # noqa: E731
    explicit = spread(jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,)))
    auto = spread(jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)))
    for sharding, size, message in (
        (
            explicit,
            8,
            r"`sharding` is NamedSharding.*; it must be over Auto axes of a mesh: `jax.make_mesh",
        ),
        (auto, 15, r"`sharding` does not divide a batch of 15 into equal parts; it must"),
        ("data", 8, "`sharding` is 'data'; it must be a sharding of JAX, such as `NamedSharding"),
    ):
        with pytest.raises(UserError, match=message):
            sample("unipc", hold(1), network, key=jax.random.key(6), shape=(size, 2), num_steps=3, sharding=sharding)


def test_memory_does_not_grow_with_the_number_of_steps():
    # A state of 256 KiB: of a thousand steps nothing is kept but the tables of coefficients.
    sampler, temporary = unipc(), []
    for num_steps in (10, 1000):
        options = {"key": jax.random.key(0), "shape": (256, 256), "num_steps": num_steps, "denoise": False}
        draw = lambda start, options=options: sample(sampler, hold(1), network, start=start, **options).x  # noqa: E731
        analysis = jax.jit(draw).lower(jnp.zeros((256, 1, 256))).compile().memory_analysis()
        temporary.append(analysis.temp_size_in_bytes)
    tables = jax.tree.leaves(sampler.coefficients(hold(1), grids.karras(hold(1), hold(1).t_min, 1000)))
    assert temporary[0] > 2**18  # it counts the state at all
    assert temporary[1] <= temporary[0] + 2 * 4 * sum(table.size for table in tables)


# --- Bad input ------------------------------------------------------------------------------------------

BAD = [
    ({"key": 0}, "`key` is 0; it must be one key of JAX"),
    ({"key": jax.random.split(jax.random.key(0), 3)}, "`key` is .*; it must be one key of JAX"),
    ({"num_steps": 0}, "`num_steps` is 0; .* whole number >= 1"),
    ({"num_steps": 2.5}, "`num_steps` is 2.5"),
    ({"grid": "karas"}, r"`grid` is 'karas' \(did you mean 'karras'\?\); .*: karras, log, quadratic, uniform"),
    ({"t_min": 0.0}, "`t_min` is 0.0; .* between 0 and T"),
    ({"t_min": 100.0}, "`t_min` is 100.0"),
    ({"t_min": 1e-60}, "`t_min` is 1e-60; it must be a time of an effective noise above 1.2e-38, not 8.2e-91; `sde.t"),
    ({"t_min": 1e-300, "grid": "karras"}, "`t_min` is 1e-300; it must be a time of an effective noise above 1.2e-38"),
    ({"grid": [1.0, 0.8, 0.6, 0.4, 1e-60]}, r"`grid\[-1\]` is 1e-60; it must be a time of an effective noise above"),
    ({"frames": 3}, "`frames` is 3; .* divisor of num_steps = 4"),
    ({"frames": -1}, "`frames` is -1"),
    ({"grid": [2.0, 1.0, 1.0, 0.5, 0.1]}, "`grid` is .* strictly falling"),
    ({"grid": [0.1, 0.5, 1.0, 2.0, 3.0]}, "`grid` is .* strictly falling"),
    ({"grid": [100.0, 1.0, 0.5, 0.2, 0.1]}, "`grid` is .* strictly falling within .0, T = "),
    ({"grid": [1.0, 0.8, 0.6, 0.4, 0.0]}, "`grid` is .* strictly falling"),
    ({"grid": [1.0, float("nan"), 0.6, 0.4, 0.1]}, "`grid` is .* strictly falling"),
    ({"grid": [2.0, 1.0, 0.6, 0.4, 0.1]}, "`grid` is .*; it must be times from T = .* on, or given a `start` at 2"),
    ({"grid": [1.0, 0.5]}, r"`grid` is \(2,\); it must be of shape \(5,\)"),
    ({"start": START[:3]}, r"`start` is \(3, 2, 2\); it must be a state of shape \(8, 2, 2\)"),
    ({"start": START[:, 0]}, r"`start` is .float32\[8, 2\].; it must be a state \(B, \*S, 2, C\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message) as error:
        sample(LieTrotter(), M, network, **{"key": jax.random.key(0), **SHORT, **change})
    assert "\n" not in str(error.value)


def test_an_unknown_option_is_refused():
    for constructor in SAMPLERS.values():
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
            constructor(nonsense=1)


def test_every_sampler_is_a_value():
    # Static under jit: equal options compile once.
    for name, constructor in SAMPLERS.items():
        assert constructor() == constructor() and hash(constructor()) == hash(constructor()), name
    assert samplers.ddim() != samplers.ddim(churn=1.0)


@pytest.mark.parametrize("name", ["gaussian_fitted", "strang", "predictor_corrector"])
def test_a_numbered_sample_is_the_same_in_every_batch(name):
    m, key = sde.hold(order=2), jax.random.key(3)
    eps_fn = lambda u, t: u[..., -1:, :]  # noqa: E731
    draw = jax.jit(
        lambda index: (
            samplers.sample(
                samplers.SAMPLERS[name](),
                m,
                eps_fn,
                key=key,
                shape=(index.size, 3),
                index=index,
                num_steps=4,
                grid="log",
            ).x
        )
    )
    eight = draw(jnp.arange(8))
    np.testing.assert_array_equal(draw(jnp.array([5, 2, 7])), eight[jnp.array([5, 2, 7])])
    assert len(np.unique(eight)) == eight.size
    # Numbers beyond the first batch are other samples.
    assert np.abs(draw(jnp.arange(8, 16)) - eight).min() > 0
