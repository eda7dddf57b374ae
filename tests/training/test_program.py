"""The running form of the step, packed and spread, beside the plain step on the network's own tree."""

import jax
import numpy as np
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax.nn import MLP
from hold_jax.runtime.mesh import LARGE
from hold_jax.training.step import Program, make_train_step

# Two of its kernels are large: (128, 128). Adam's usual eps would amplify the rounding of gradients near zero.
MODEL, OPTIMIZER = small.mlp(width=128, hidden_layers=2), small.optimizer(eps=1e-4)
BATCH, STEPS = 16, 3
COUNTS = (1, 2, 8)


def program(count, **options):
    return Program.make(MODEL, small.LOSS, OPTIMIZER, small.devices(count), seed=0, ema_decay=0.5, **options)


def batches(start=0, steps=STEPS):
    return small.host_batches(small.points(), BATCH, steps, start)


def go_on(running, state, start=0, steps=STEPS):
    for batch in batches(start, steps):
        state, metrics = running.step(state, running.devices.put(batch))
    return state, metrics


@pytest.fixture(scope="module")
def after():
    """Program, running state and metrics after three steps, on each number of devices."""
    made = {}
    for count in COUNTS:
        running = program(count)
        made[count] = (running, *go_on(running, running.start()))
    return made


@pytest.fixture(scope="module")
def plain():
    """State and metrics of the plain step on the tree."""
    step = jax.jit(make_train_step(MODEL, small.LOSS, OPTIMIZER, ema_decay=0.5))
    state = small.fresh_state(MODEL, OPTIMIZER)
    for batch in batches():
        state, metrics = step(state, batch)
    return state, metrics


@pytest.mark.slow
def test_the_start_is_the_plain_state_bitwise(after):
    for running, *_ in after.values():
        small.assert_bitwise(running.to_tree(running.start()), small.fresh_state(MODEL, OPTIMIZER))


@pytest.mark.parametrize("count", COUNTS)
def test_packed_and_spread_it_is_the_plain_step_to_rounding(after, plain, count):
    # Not bitwise: the norms and the batch's gradient are summed in another order.
    running, state, metrics = after[count]
    assert small.largest_error(running.to_tree(state), plain[0]) < 1e-5
    assert small.largest_error(metrics, plain[1]) < 1e-5


@pytest.mark.eight_devices
def test_each_device_holds_its_part_of_the_state(after):
    running, state, _ = after[8]
    assert isinstance(MODEL.network, MLP) and 128 * 128 == LARGE
    stack = "128x128"
    for tree, shard in (
        (state.opt_state[1][0].mu, (16, 128)),
        (state.opt_state[1][0].nu, (16, 128)),
        (state.ema, (16, 128)),
        (state.params, (16, 128)),
    ):
        assert {piece.data.shape[1:] for piece in tree[stack].addressable_shards} == {shard}
    assert state.params["small"].sharding.is_fully_replicated
    whole = running.to_tree(state)
    places = {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(whole.ema)}
    assert places == {True, False}
    average = running.average(state)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(average))
    small.assert_bitwise(average, whole.ema)


@pytest.mark.parametrize("count", COUNTS)
def test_through_the_tree_it_goes_on_bitwise(after, count):
    running, whole, metrics = after[count]
    state, _ = go_on(running, running.start(), steps=1)
    state, again = go_on(running, running.from_tree(running.to_tree(state)), start=1, steps=STEPS - 1)
    small.assert_bitwise(running.to_tree(state), running.to_tree(whole))
    small.assert_bitwise(again, metrics)


@pytest.mark.slow
def test_several_steps_a_call_and_parts_of_a_batch_run_spread():
    running = program(8, steps_per_call=2, accumulation_steps=2)
    group = batches(steps=2)
    stacked = {name: np.stack([batch[name] for batch in group]) for name in group[0]}
    state, metrics = running.step(running.start(), running.devices.put(stacked, axis=1))
    plain = make_train_step(MODEL, small.LOSS, OPTIMIZER, ema_decay=0.5, steps_per_call=2, accumulation_steps=2)
    want, want_metrics = jax.jit(plain)(small.fresh_state(MODEL, OPTIMIZER), stacked)
    # The moments show the gradients. The parameters do not: Adam's first step is g / (|g| + eps), which at a gradient
    # of the size of its rounding error is any number in [-1, 1].
    assert small.largest_error(running.to_tree(state).opt_state, want.opt_state) < 1e-5
    assert small.largest_error(metrics, want_metrics) < 1e-5


@pytest.mark.eight_devices
def test_gradients_are_summed_whole_before_they_are_split():
    """One all-reduce of every kernel's gradient on eight devices; nothing of the batch's extent is gathered."""
    running = program(8)
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=running.devices.batch()), batches()[0]
    )
    text = running.step.lower(running.abstract(), batch).compile().as_text()
    gathered = [line for line in text.splitlines() if " all-gather(" in line]
    assert gathered and all("128,128" in line.split(" all-gather(")[0] for line in gathered)
    assert "all-to-all(" not in text


def test_update_is_the_second_half_of_the_step(after):
    running, *_ = after[8]
    gradient = jax.tree.map(np.ones_like, small.to_host(running.to_tree(running.start()).params))
    state, norms = running.update(running.start(), gradient, np.float32(1.0))
    size = sum(leaf.size for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(norms["grad_norm"], np.sqrt(size), rtol=1e-5)
    kept, _ = running.update(running.start(), gradient, np.float32(np.nan))
    small.assert_bitwise(kept.params, running.start().params)
    assert int(kept.step) == int(state.step) == 1
