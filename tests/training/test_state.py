import functools

import jax
import jax.numpy as jnp
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

MODEL, OPTIMIZER = small.mlp(), small.optimizer()


def start(seed=0, count=8):
    return small.devices(count).init(functools.partial(small.init_state, MODEL, OPTIMIZER, seed))


@pytest.mark.slow
def test_the_start_is_the_seed_s_and_the_same_on_any_devices():
    small.assert_bitwise(start(), start())
    small.assert_bitwise(start(count=1), start())
    assert small.largest_error(start(1).params, start().params) > 0.1
    assert jax.random.key_data(start(1).key).tolist() != jax.random.key_data(start().key).tolist()


def test_parameters_are_float32_and_the_average_is_a_copy_of_them():
    state = start()
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))} == {jnp.dtype("float32")}
    small.assert_bitwise(state.ema, state.params)
    places = [
        {shard.data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards}
        for tree in (state.params, state.ema)
    ]
    assert not places[0] & places[1]  # else donation would free what both hold
    assert state.step.dtype == jnp.int32 and int(state.step) == 0
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
