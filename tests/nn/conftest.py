"""Settings and parameters for the tests of networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def random_params():
    """A function (module, *args, seed=0) -> parameters: kernels N(0, 1/fan_in), vectors N(1/2, 1/4).

    At initialisation the networks' last layers are near zero and would hide mistakes.
    """

    def draw(module, *args, seed=0):
        rng = np.random.default_rng(seed)

        def leaf(spec):
            value = rng.normal(size=spec.shape)
            value = 0.5 + 0.5 * value if len(spec.shape) == 1 else value / np.sqrt(np.prod(spec.shape[:-1]))
            return jnp.asarray(value, jnp.float32)

        return jax.tree.map(leaf, jax.eval_shape(module.init, jax.random.key(0), *args)["params"])

    return draw
