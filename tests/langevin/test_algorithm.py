"""The public functions: what a step does with positions, mass matrices, densities and keys; one-line errors."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import langevin_law

from hold_jax import langevin, sde
from hold_jax.errors import UserError
from hold_jax.langevin.algorithm import METHODS
from hold_jax.langevin.dynamics import Dynamics

KEY = jax.random.key(0)
VARIANCE = np.array([0.5, 2.0, 3.0])
COVARIANCE = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 0.7]])


def log_density(q):
    return -jnp.sum(q**4) / 4 - jnp.sum(jnp.cos(q))


def run(algorithm, position, steps=3):
    state = algorithm.init(position, KEY)
    for i in range(steps):
        state, _ = algorithm.step(jax.random.key(i), state)
    return state.position


@pytest.mark.slow
@pytest.mark.parametrize("mass", ["number", "diagonal", "tree", "dense", "callable"])
@pytest.mark.parametrize("method", ["strang", "metropolis"])
def test_a_mass_matrix_is_a_change_of_coordinates(mass, method):
    """q = S z: the chain of q with the mass matrix is S times the chain of z without."""
    covariance = {"number": 2.0 * np.eye(3), "dense": COVARIANCE}.get(mass, np.diag(VARIANCE))
    factor = np.linalg.cholesky(covariance)
    arguments = {
        "number": {"inverse_mass_matrix": 2.0},
        "diagonal": {"inverse_mass_matrix": VARIANCE},
        "tree": {"inverse_mass_matrix": {"a": VARIANCE[:2], "b": VARIANCE[2]}},
        "dense": {"inverse_mass_matrix": COVARIANCE},
        "callable": {"preconditioner": lambda q: jnp.sqrt(jnp.asarray(VARIANCE, jnp.float32)) * q},
    }[mass]
    start = np.array([0.3, -0.2, 0.5], np.float32)
    join = (lambda q: jnp.concatenate([q["a"], q["b"][None]])) if mass == "tree" else (lambda q: q)
    position = {"a": start[:2], "b": start[2]} if mass == "tree" else start
    common = dict(order=2, step_size=0.2, method=method)
    mapped = langevin.langevin(lambda q: log_density(join(q)), **common, **arguments)
    scaled = functools.partial(jnp.matmul, jnp.asarray(factor, jnp.float32), precision="highest")
    plain = langevin.langevin(lambda z: log_density(scaled(z)), **common)
    with jax.disable_jit():
        found = join(run(mapped, position))
        truth = factor @ np.asarray(run(plain, np.linalg.solve(factor, start).astype(np.float32)))
    np.testing.assert_allclose(found, truth, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "splitting"])
@pytest.mark.parametrize("order", [1, 3])
def test_gradients_are_counted_as_made(method, order):
    """A counter in the user's gradient, step by step, annealed or not."""
    calls = 0

    def gradient(q, *level):
        nonlocal calls
        calls += 1
        return -q

    for levels in (None, np.ones(9)):
        algorithm = langevin.langevin(
            lambda q, *level: -jnp.sum(q**2) / 2,
            gradient=gradient,
            order=order,
            step_size=0.1,
            method=method,
            levels=levels,
        )
        with jax.disable_jit():
            state = algorithm.init(jnp.ones(2), KEY)
            for i in range(3):
                calls = 0
                state, info = algorithm.step(jax.random.key(i), state)
                assert int(info.num_gradients) == calls
                assert calls >= 1


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "splitting"])
def test_the_kept_force_is_that_of_the_position(method, order):
    algorithm = langevin.langevin(lambda q: -jnp.sum(q**4) / 4, order=order, step_size=0.1, method=method)
    with jax.disable_jit():
        state, _ = algorithm.step(jax.random.key(1), algorithm.init(jnp.array([0.7, -0.4]), KEY))
    if state.start is not None:
        np.testing.assert_allclose(state.start.force, -(state.position**3), rtol=1e-4)


@pytest.mark.parametrize(
    ("mass", "position"),
    [
        ({"a": np.ones(2), "b": 2.0}, {"a": jnp.zeros(2), "b": jnp.zeros(())}),
        ([1.0, 2.0], jnp.zeros(2)),
        (np.ones(5), (jnp.zeros(3), jnp.zeros(2))),
        (np.ones(4), [jnp.zeros(2), jnp.zeros(2)]),
    ],
)
def test_mass_matrices_of_trees_compile(mass, position):
    def density(q):
        return -sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(q)) / 2

    found = langevin.langevin(density, order=2, step_size=jnp.float32(0.1), gammas=1.0, inverse_mass_matrix=mass)
    sampled = langevin.sample(found, KEY, position, num_samples=2).position
    assert jax.tree.structure(sampled) == jax.tree.structure(position)


def test_a_level_or_a_gradient_of_another_type_keeps_the_type_of_the_position():
    levels = np.geomspace(2, 1, 5)
    wide = langevin.langevin(
        gradient=lambda q, s: -(q / s**2).astype(jnp.float32),
        order=2,
        step_size=0.1,
        levels=levels,
        level_scale=lambda s: s,
    )
    found = langevin.sample(wide, KEY, jnp.ones(2, jnp.bfloat16), num_samples=3)
    assert found.position.dtype == jnp.bfloat16
    matrix = jnp.array([[1.0, 0.5], [0.0, 1.0]])
    mapped = langevin.langevin(
        lambda q: -jnp.sum(q**2) / 2, order=2, step_size=0.1, preconditioner=lambda q: matrix @ q
    )
    assert langevin.sample(mapped, KEY, jnp.ones(2, jnp.bfloat16), num_samples=3).position.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        found = langevin.sample(wide, KEY, jnp.ones(2, jnp.float32), num_samples=3)
        assert found.position.dtype == jnp.float32


def test_chains_have_midpoints_of_their_own():
    """Their second moment over 20,000 chains has a sampling error of .01; with one clock it is off by .2."""
    found = langevin.langevin(lambda q: -jnp.sum(q**2) / 2, order=2, step_size=0.75, method="randomized_midpoint")
    start = jax.random.normal(KEY, (20_000, 1))
    x = langevin.sample(found, KEY, start, stacked=True, num_chains=20_000, num_samples=6, thin=10).position
    law = langevin_law.stationary(langevin_law.maps(METHODS["randomized_midpoint"](), Dynamics(2), 0.75, [1.0]))
    np.testing.assert_allclose(x[..., 0].var(0), law[0, 0, 0], atol=0.05)


def test_chains_share_the_clock_of_poisson_midpoint():
    """Over chains the sub-step's condition stays one, so that a sub-step without an event evaluates nothing."""
    algorithm = langevin.langevin(log_density, order=2, step_size=0.1, method="poisson_midpoint", K=4)
    states = jax.vmap(algorithm.init, (None, 0))(jnp.ones(2), jax.random.split(KEY, 3))
    assert "cond[" in str(jax.make_jaxpr(algorithm.step_chains)(KEY, states))
    vmapped = jax.make_jaxpr(jax.vmap(algorithm.step))(jax.random.split(KEY, 3), states)
    assert "cond[" not in str(vmapped)


@pytest.fixture(scope="module")
def algorithm():
    return langevin.langevin(lambda q: -jnp.sum(q["a"] ** 2) / 2, order=2, step_size=0.5)


@pytest.mark.slow
def test_thinning_keeps_every_third_step(algorithm):
    start = {"a": jnp.ones(2)}
    every = langevin.sample(algorithm, KEY, start, num_samples=12, num_chains=2)
    third = langevin.sample(algorithm, KEY, start, num_samples=3, num_chains=2, thin=3, burn_in=3)
    np.testing.assert_array_equal(third.position["a"], every.position["a"][:, 5::3])
    assert every.position["a"].shape == (2, 12, 2)
    assert every.num_gradients == third.num_gradients == 2 * 12
    assert not np.array_equal(every.position["a"][0], every.position["a"][1])


def test_parts_of_a_run_do_not_matter(algorithm, monkeypatch):
    from hold_jax.langevin import chains

    start = {"a": jnp.ones(2)}
    whole = langevin.sample(algorithm, KEY, start, num_samples=12, num_chains=2)
    monkeypatch.setattr(chains, "_PARTS", 3)
    parts = langevin.sample(algorithm, KEY, start, num_samples=12, num_chains=2)
    np.testing.assert_array_equal(whole.position["a"], parts.position["a"])
    stacked = {"a": jnp.ones((2, 2))}
    np.testing.assert_array_equal(
        langevin.sample(algorithm, KEY, stacked, stacked=True, num_samples=12, num_chains=2).position["a"],
        whole.position["a"],
    )


def test_a_run_that_goes_on_is_the_rest_of_one_long_run(algorithm):
    start = {"a": jnp.ones(2)}
    whole = langevin.sample(algorithm, KEY, start, num_samples=24, num_chains=2)
    first = langevin.sample(algorithm, KEY, start, num_samples=12, num_chains=2)
    more = langevin.sample(algorithm, KEY, state=first.state, num_samples=6, burn_in=2, num_chains=2)
    np.testing.assert_array_equal(first.position["a"], whole.position["a"][:, :12])
    np.testing.assert_array_equal(more.position["a"], whole.position["a"][:, 14:20])
    assert int(more.state.step[0]) == 20


@pytest.mark.slow
def test_the_sampled_law_is_the_target(algorithm):
    """Mean 0 and the method's exact variance: at h = 0.5 UBU's is 4 % below the target's."""
    start = {"a": jnp.zeros(50)}
    found = langevin.sample(algorithm, KEY, start, num_samples=200, num_chains=8, thin=10, burn_in=50).position["a"]
    # Neighboring kept samples, five time units apart, correlate by less than 0.05.
    assert abs(found.mean()) < 5 / np.sqrt(found.size)
    law = langevin_law.stationary(langevin_law.maps(METHODS["strang"](), langevin.Dynamics(2), 0.5, [1.0]))[0, 0, 0]
    assert law == pytest.approx(0.9593, abs=1e-4)
    assert abs(found.var() - law) < 5 * np.sqrt(2 / found.size)


def test_annealed_steps_use_their_level():
    """Step i has the force of level min(i, last), and the scale of that level."""
    levels = np.array([1.0, 3.0], np.float32)

    def density(q, level):
        return jnp.sum(level * q)

    algorithm = langevin.langevin(density, order=1, step_size=0.5, levels=levels, level_scale=lambda level: 2 * level)
    still = langevin.langevin(
        lambda q, level: 0 * jnp.sum(q), order=1, step_size=0.5, levels=levels, level_scale=lambda level: 2 * level
    )
    states = algorithm.init(jnp.zeros(2), KEY), still.init(jnp.zeros(2), KEY)
    for i, level in enumerate([1.0, 3.0, 3.0]):
        states = [
            a.step(jax.random.key(i), s._replace(position=jnp.zeros(2)))[0]
            for a, s in zip((algorithm, still), states, strict=True)
        ]
        np.testing.assert_allclose(states[0].position - states[1].position, 0.5 * (2 * level) ** 2 * level, rtol=1e-4)


@pytest.mark.parametrize("order", [1, 3])
def test_smoothed_score_of_a_gaussian(order):
    """From the exact eps_fn of N(0.5, 0.3^2) at any order: the score of N(0.5, 0.3^2 + sigma^2)."""
    from hold_jax import kernels

    process = sde.vp() if order == 1 else sde.hold(order=order)

    def eps_fn(u, t):
        statistic, sigma = kernels.sufficient_statistic(process, u, t)
        clean = (0.3**2 * statistic + sigma**2 * 0.5) / (0.3**2 + sigma**2)
        return kernels.last_noise(process, u, t, clean)

    y, sigma = jnp.array([[0.2], [-1.0]]), jnp.float32(0.7)
    score = langevin.smoothed_score(process, eps_fn)
    np.testing.assert_allclose(score(y, sigma), -(y - 0.5) / (0.3**2 + 0.7**2), rtol=1e-3)
    largest = float(kernels.effective_noise(process, process.T))
    at = [bool(jnp.isfinite(score(y, jnp.float32(largest * factor))).all()) for factor in (0.99, 1.0, 1.01, 10.0)]
    assert at == [True, True, False, False]
    algorithm = langevin.langevin(gradient=functools.partial(score, sigma=sigma), order=2, step_size=0.2)
    state, info = algorithm.step(KEY, algorithm.init(y, KEY))
    assert state.position.shape == y.shape and int(info.num_gradients) == 1


def test_blackjax_runs_our_algorithm():
    blackjax = pytest.importorskip("blackjax", reason="pip install blackjax")
    algorithm = langevin.langevin(log_density, order=3, step_size=0.1)
    assert algorithm._fields[:2] == blackjax.base.SamplingAlgorithm._fields
    state, (states, infos) = blackjax.util.run_inference_algorithm(KEY, algorithm, 5, initial_position=jnp.ones(2))
    assert int(state.step) == 5 and states.position.shape == (5, 2) and int(infos.num_gradients.sum()) == 5


def test_arviz_reads_our_chains(algorithm):
    arviz = pytest.importorskip("arviz", reason="pip install arviz")
    found = langevin.sample(algorithm, KEY, {"a": jnp.zeros(2)}, num_samples=12, num_chains=2)
    data = arviz.convert_to_dataset(found.position)
    assert dict(data.sizes)["chain"] == 2 and dict(data.sizes)["draw"] == 12
    assert np.all(np.isfinite(np.asarray(arviz.ess(data)["a"])))


def test_an_order_of_numpy_is_an_order():
    assert Dynamics(np.int64(3)) == Dynamics(3)


def build(**changes):
    return langevin.langevin(**{"log_density": log_density, "step_size": 0.1, **changes})


def start(position=(1.0, 2.0), key=KEY, **changes):
    return build(**changes).init(position if isinstance(position, (dict, str)) else jnp.asarray(position), key)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build(log_density=None), "`log_density` is None; it must be a function, unless `gradient` is given"),
        (lambda: build(step_size=-0.1), "`step_size` is -0.1; it must be a positive number"),
        (lambda: build(step_size=float("nan")), "`step_size` is nan; it must be a positive number"),
        (lambda: build(step_size=np.int64(0)), "`step_size` is np.int64(0); it must be a positive number"),
        (lambda: build(method="strangg"), "`method` is 'strangg' (did you mean 'strang'?); it must be one of: baoab"),
        (lambda: build(K=4), "`K` is 4; it must be left out with `method` 'strang', which has no such option"),
        (lambda: build(method="poisson_midpoint", K=0), "`K` is 0; it must be a whole number >= 1"),
        (lambda: build(log_density=None, gradient=lambda q: -q, method="metropolis"), "`log_density` is None"),
        (lambda: build(inverse_mass_matrix=1.0, preconditioner=lambda q: q), "left out where `inverse_mass_matrix`"),
        (lambda: build(levels=np.ones((2, 2))), "`levels.shape` is (2, 2); it must be one axis, not empty"),
        (lambda: build(level_scale=lambda level: level), "it must be left out where `levels` is"),
        (lambda: start(log_density=lambda q: q), "`log_density` is 'a function that returns float32[2]'"),
        (lambda: start(log_density=lambda q: jnp.argmax(q)), "it must be a function to a float scalar"),
        (lambda: start(log_density=lambda q: np.sum(np.asarray(q))), "JAX cannot trace or differentiate"),
        (lambda: start(log_density=lambda q: jnp.log(q[0] - 5)), "`log_density` is 'nan at the start'"),
        (lambda: start(log_density=lambda q: -jnp.linalg.norm(0 * q)), "`gradient of log_density` is 'not finite"),
        (lambda: start(position=(jnp.nan, 1.0)), "`position` is 'not finite'; it must be finite at the start"),
        (lambda: start(position=(1, 2)), "it must be of floating-point arrays"),
        (lambda: start(position="a"), "`position` is dtype('<U1'); it must be of floating-point arrays"),
        (
            lambda: langevin.sample(None, jax.random.key(0), jnp.zeros(2), num_samples=1),
            "`algorithm` is None; it must be what `langevin(log_density, step_size=...)` returns",
        ),
        (
            lambda: langevin.sample(
                build(), jax.random.key(0), jnp.zeros(2), num_samples=1, num_chains=4, stacked=True
            ),
            "`position.shape[:1]` is [(2,)]; it must be of 4 chains (`stacked`)",
        ),
        (lambda: start(key=None), "`rng_key` is None; it must be a key at orders above 1"),
        (lambda: start(gradient=lambda q: q[:1]), "`gradient` is 'a function that returns float32[1]'"),
        (lambda: start(inverse_mass_matrix=np.ones(3)), "`inverse_mass_matrix.shape` is (3,); it must be a number"),
        (lambda: start(inverse_mass_matrix=np.array([1.0, -1.0])), "it must be positive and finite"),
        (lambda: start(inverse_mass_matrix=np.ones((2, 2))), "it must be symmetric and positive definite"),
        (lambda: start(inverse_mass_matrix={"b": np.ones(2)}), "it must be a number, an array, or a tree like the"),
        (
            lambda: start(inverse_mass_matrix=(np.ones(2), np.ones(1))),
            "it must be a number, an array, or a tree like the",
        ),
        (lambda: start(preconditioner=lambda q: q + 1), "`preconditioner` is 'not zero at zero'; it must be linear"),
        (lambda: start(preconditioner=lambda q: q[:1]), "it must be a function to a tree like the position"),
        (lambda: build(gammas=0.0), "`gammas` is 0.0; it must be 2 positive numbers at order 3"),
    ],
)
def test_errors_are_one_clear_line(make, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "`num_samples` is 0; it must be a whole number >= 1"),
        ({"thin": 0}, "`thin` is 0; it must be a whole number >= 1"),
        ({"num_chains": 3, "stacked": True}, "of 3 chains (`stacked`)"),
        ({"state": 1}, "it must be given, or `state`, and not both"),
    ],
)
def test_bad_runs(algorithm, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        langevin.sample(algorithm, KEY, {"a": jnp.ones(2)}, **{"num_samples": 4, **arguments})


@pytest.mark.parametrize(
    ("order", "step_size", "num_samples", "message"),
    [
        (2, 3.0, 400, "left the finite numbers between steps"),  # twice the stability limit: overflows
        (2, 2.1, 60, "diverges (mean square of its velocities"),  # just above it: grows, without overflow
        (1, 2.5, 400, "left the finite numbers between steps"),
    ],
)
def test_a_step_size_that_diverges_is_named(order, step_size, num_samples, message):
    algorithm = langevin.langevin(
        lambda q: -jnp.sum(q**2) / 2,
        order=order,
        step_size=step_size,
        method="obabo" if order == 2 else "euler_maruyama",
    )
    with pytest.raises(UserError, match=re.escape("`step_size` is too large for this density: chain")) as caught:
        langevin.sample(algorithm, KEY, jnp.ones(3), num_samples=num_samples, num_chains=2)
    assert message in str(caught.value)


def test_a_loop_of_single_samples_that_diverges_is_named():
    algorithm = langevin.langevin(lambda q: -jnp.sum(q**2) / 2, order=2, step_size=2.1, method="obabo")
    found = langevin.sample(algorithm, KEY, jnp.ones(3), num_samples=1, num_chains=2)
    with pytest.raises(UserError, match=r"diverges \(mean square of its velocities"):
        for _ in range(60):
            found = langevin.sample(algorithm, KEY, state=found.state, num_samples=1, num_chains=2)


def test_a_state_of_another_algorithm_is_an_error(algorithm):
    found = langevin.sample(algorithm, KEY, {"a": jnp.ones(2)}, num_samples=1)
    other = langevin.langevin(lambda q: -jnp.sum(q["a"] ** 2), order=4, step_size=0.1)
    with pytest.raises(UserError, match=r"`state` is .of shapes .*; it must be of this algorithm, "):
        langevin.sample(other, KEY, state=found.state, num_samples=1)
    with pytest.raises(UserError, match="`state` is 'tuple'; it must be the state of an earlier run"):
        langevin.sample(algorithm, KEY, state=(1, 2), num_samples=1)


@pytest.mark.parametrize(("order", "step_size"), [(1, 0.04), (2, 0.2), (3, 0.2)])
def test_the_temperature_is_one_under_the_target(order, step_size):
    """A mean over 200 coordinates, of unit scale in the preconditioned position; the sampling error is below 1 %."""
    xi = 0.5 if order == 1 else None
    algorithm = langevin.langevin(
        lambda q: -jnp.sum(q**2) / 18, order=order, step_size=step_size, xi=xi, inverse_mass_matrix=9.0
    )
    start = 3 * jax.random.normal(KEY, (4, 200))
    found = langevin.sample(algorithm, KEY, start, stacked=True, num_chains=4, num_samples=40)
    assert found.info.temperature.mean() == pytest.approx(1, rel=0.05)


def test_a_start_far_out_is_no_divergence(algorithm):
    langevin.sample(algorithm, KEY, {"a": jnp.full(2, 1e3)}, num_samples=60)


@pytest.mark.slow
def test_annealing_finds_the_weights_of_far_modes():
    """Modes at -6 and 6 of std 0.5, weights 1/4 and 3/4: through noise that falls from 10 to 0.01, at each level the
    exact smoothed score (as a model's), every chain chooses a mode with about the right probability."""
    levels = np.geomspace(10, 0.01, 500).astype(np.float32)

    def score(q, sigma):
        variance = 0.25 + sigma**2
        right = jax.nn.sigmoid(jnp.log(3.0) + 12 * q / variance)
        return -(q - 6 * (2 * right - 1)) / variance

    algorithm = langevin.langevin(
        gradient=score, order=2, step_size=0.5, levels=levels, level_scale=lambda sigma: jnp.sqrt(0.25 + sigma**2)
    )
    start = 10 * jax.random.normal(KEY, (1000, 1))
    found = langevin.sample(algorithm, KEY, start, stacked=True, num_chains=1000, num_samples=1, thin=600).position
    right = found > 0
    assert right.mean() == pytest.approx(0.75, abs=0.06)  # 4.4 Monte Carlo errors
    assert found[right].mean() == pytest.approx(6, abs=0.1) and found[~right].mean() == pytest.approx(-6, abs=0.15)
    assert found[right].std() == pytest.approx(0.5, rel=0.12)
