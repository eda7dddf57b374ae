"""Equal draws made together are the draws made one by one, and few."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import small

from hold_jax.numerics import draws
from hold_jax.training.state import init_state

SHAPES = ((3, 4), (4, 3), (3, 4), (2,), (3, 4), (4, 3))


def nested(key):
    """Draws of two laws; one key comes from a number that was drawn."""
    keys = [jax.random.fold_in(key, i) for i in range(len(SHAPES))]
    uniforms = [
        jax.random.uniform(k, shape, minval=-1.0, maxval=i + 1.0)
        for i, (k, shape) in enumerate(zip(keys, SHAPES, strict=True))
    ]
    drawn = jax.random.fold_in(key, (1000 * uniforms[0][0, 0]).astype(jnp.int32))
    return {
        "uniform": uniforms,
        "normal": [2 * jax.random.normal(k, s) for k, s in zip(keys, SHAPES, strict=True)],
        "late": jax.random.normal(drawn, (3, 4)),
        "constant": jnp.zeros((2,)),
        "key": key,
    }


def raw(tree):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


@pytest.mark.parametrize("call", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_the_numbers_are_those_of_draws_one_by_one(call):
    want, got = call(nested)(jax.random.key(3)), call(draws.together(nested))(jax.random.key(3))
    assert jax.tree.structure(want) == jax.tree.structure(got)
    for a, b in zip(raw(want), raw(got), strict=True):
        if call is jax.jit and a.dtype == np.float32:
            np.testing.assert_array_max_ulp(a, b, maxulp=2)  # u (b - a) + a may be rounded once or twice
        else:
            np.testing.assert_array_equal(a, b)


def test_the_state_of_a_network_starts_from_the_same_bits():
    new_state = functools.partial(init_state, small.unet(), optax.sgd(0.1), 0)
    want, got = jax.jit(new_state)(), jax.jit(draws.together(new_state))()
    assert all((a == b).all() for a, b in zip(raw(want), raw(got), strict=True))


def test_there_is_one_draw_for_each_shape_and_law():
    text = str(jax.make_jaxpr(draws.together(nested))(jax.random.key(0)))
    assert text.count("random_bits") == 2 * len({*SHAPES}) + 1  # and the late one
    # One step for all keys, and one for the late one.
    assert text.count("random_fold_in") == 2


def test_what_no_output_needs_is_not_computed():
    def wasteful(key):
        jax.random.normal(key, (5,)).sum()
        return jax.random.uniform(key, (2,))

    assert str(jax.make_jaxpr(draws.together(wasteful))(jax.random.key(0))).count("random_bits") == 1
