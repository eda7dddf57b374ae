"""The warm-up finds scales and a step size."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax import langevin, sde
from hold_jax.errors import UserError

STD = np.array([0.1, 1.0, 30.0], np.float32)


def log_density(q):
    return -jnp.sum(jnp.square(q["a"] / STD)) / 2


@pytest.mark.slow
@pytest.mark.parametrize(("order", "dense"), [(1, False), (2, True)])
def test_adapt_finds_the_variances(order, dense):
    found = langevin.adapt(
        log_density, jax.random.key(0), {"a": jnp.zeros(3)}, order=order, dense=dense, num_steps=2000, num_chains=8
    )
    variance = np.diag(found.inverse_mass_matrix) if dense else found.inverse_mass_matrix
    assert found.inverse_mass_matrix.shape == ((3, 3) if dense else (3,))
    np.testing.assert_allclose(variance, STD**2, rtol=0.35)
    assert found.acceptance_rate == pytest.approx(0.574 if order == 1 else 0.9, abs=0.06)
    algorithm = langevin.langevin(
        log_density,
        order=order,
        method="metropolis",
        step_size=found.step_size,
        inverse_mass_matrix=found.inverse_mass_matrix,
    )
    chains = langevin.sample(
        algorithm, jax.random.key(1), found.position, stacked=True, num_chains=8, num_samples=1000, thin=5
    )
    np.testing.assert_allclose(chains.position["a"].std((0, 1)), STD, rtol=0.1)
    assert chains.info.acceptance_rate.mean() == pytest.approx(found.acceptance_rate, abs=0.06)


@pytest.mark.slow
def test_each_chain_has_its_own_start_and_every_gradient_is_counted():
    """Wells at -1 and 1 of deviation .1, which no chain leaves."""
    made = []

    def wells(q):
        jax.debug.callback(made.append, q)
        return -jnp.sum(jnp.square(jnp.abs(q) - 1)) / 0.02

    start = np.array([[1, 1], [-1, 1], [1, -1]], np.float32)
    found = langevin.adapt(
        wells, jax.random.key(0), start, stacked=True, num_chains=3, order=1, num_steps=200, step_size=0.01
    )
    np.testing.assert_array_equal(np.sign(found.position), start)
    jax.effects_barrier()
    # Of each chain: its start, twice, four new mass matrices and 200 steps; and one to check the start.
    assert len(made) == 3 * (1 + 1 + 4 + 200) + 1 == found.num_gradients + 1


@pytest.mark.slow
def test_dynamics_of_twice_the_speed_have_half_the_step_size():
    (gamma,), xi = sde.critical_damping(2)

    def adapted(speed):
        return langevin.adapt(
            log_density, jax.random.key(0), {"a": jnp.zeros(3)}, num_steps=200, num_chains=2,
            gammas=(speed * gamma,), xi=speed * xi, step_size=0.1 / speed,
        )  # fmt: skip

    once, twice = adapted(1), adapted(2)
    assert once.step_size == pytest.approx(2 * twice.step_size, rel=1e-3)
    np.testing.assert_allclose(once.inverse_mass_matrix, twice.inverse_mass_matrix, rtol=1e-3)


@pytest.mark.parametrize("order", [1, 2])
def test_adapt_takes_positions_in_double_precision(order):
    with jax.enable_x64(True):
        found = langevin.adapt(
            lambda q: -jnp.sum(jnp.square(q)) / 2, jax.random.key(0), jnp.zeros(2), order=order, num_steps=200
        )
        assert found.position.dtype == jnp.float64
    assert 0 < found.step_size < 10 and found.acceptance_rate > 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_acceptance": 1.0}, "`target_acceptance` is 1.0; it must be between 0 and 1"),
        ({"num_chains": 4, "stacked": True}, "of 4 chains (`stacked`)"),
        ({"num_steps": 5}, "`num_steps` is 5; it must be a whole number >= 200"),
        ({"step_size": 0.0}, "`step_size` is 0.0; it must be positive and below 16.0"),
        ({"step_size": "a"}, "`step_size` is 'a'; it must be a number, positive and below 16.0"),
        ({"target_acceptance": "a"}, "`target_acceptance` is 'a'; it must be a number, between 0 and 1"),
        ({"log_density": None}, "`log_density` is None; it must be a function"),
        ({"key": 0}, "`key` is 0; it must be one key of JAX"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        start = {"log_density": log_density, "key": jax.random.key(0), "position": {"a": jnp.zeros(3)}}
        langevin.adapt(**{**start, **arguments})
