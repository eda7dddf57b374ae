"""The warm-up finds scales and a step size."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax import langevin
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_acceptance": 1.0}, "`target_acceptance` is 1.0; it must be between 0 and 1"),
        ({"num_steps": 5}, "`num_steps` is 5; it must be at least 200"),
        ({"step_size": 0.0}, "`step_size` is 0.0; it must be a positive number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        langevin.adapt(log_density, jax.random.key(0), {"a": jnp.zeros(3)}, **arguments)
