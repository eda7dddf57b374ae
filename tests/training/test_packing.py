import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax.runtime.mesh import LARGE
from hold_jax.training.packing import Packing
from hold_jax.training.state import TrainState

SIDE = 128  # SIDE^2 = LARGE
SHAPES = {"a": (SIDE, SIDE), "b": (7,), "c": {"d": (SIDE, SIDE), "e": (), "f": (2, SIDE, SIDE), "g": (3, 2)}}


def tree(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def test_equal_large_arrays_are_stacked_and_small_ones_concatenated():
    assert SIDE**2 == LARGE
    whole = tree()
    packed = Packing.of(whole).pack(whole)
    want = {
        "small": np.concatenate([np.ravel(whole["b"]), np.ravel(whole["c"]["e"]), np.ravel(whole["c"]["g"])]),
        "128x128": np.stack([whole["a"], whole["c"]["d"]]),
        "2x128x128": np.asarray(whole["c"]["f"])[None],
    }
    small.assert_bitwise(packed, want)


@pytest.mark.parametrize("part", [("b",), ("a",), ("a", "b", "c")])
def test_unpack_inverts_pack_bitwise(part):
    whole = {name: tree()[name] for name in part}
    packing = Packing.of(whole)
    small.assert_bitwise(packing.unpack(packing.pack(whole)), whole)


@pytest.mark.parametrize("copied, slices", [(False, 4), (True, 1)])
def test_copied_leaves_are_the_same_and_their_places_no_constants_of_kernels(copied, slices):
    whole = {name: jnp.arange(7.0) * i for i, name in enumerate("abcd")}
    packing = Packing.of(whole)

    def unpack(packed):
        return jax.tree.map(lambda leaf: jnp.tanh(leaf) + 2 * leaf, packing.unpack(packed, copied=copied))

    compiled = jax.jit(unpack).lower(packing.pack(whole)).compile()
    # The place of the first is a constant, since nothing is before it.
    assert compiled.as_text().count(" slice(") == slices
    got = jax.jit(lambda packed: packing.unpack(packed, copied=copied))(packing.pack(whole))
    small.assert_bitwise(got, whole)


@pytest.mark.slow
def test_the_optimizer_s_trees_are_packed_too_and_its_counters_stay():
    params = tree()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    _, opt_state = optimizer.update(tree(1), optimizer.init(params), params)
    state = TrainState(jnp.int32(3), params, opt_state, tree(2), jax.random.key(0))
    packing = Packing.of(params)
    packed = packing.pack_state(state)
    small.assert_bitwise(packed.opt_state[1][0].nu, packing.pack(opt_state[1][0].nu))
    assert int(packed.opt_state[1][0].count) == 1 and int(packed.step) == 3
    # What Optax makes of packed parameters is what packing makes of its state.
    assert jax.tree.structure(packed.opt_state) == jax.tree.structure(optimizer.init(packing.pack(params)))
    small.assert_bitwise(packing.unpack_state(packed), state)
