import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax.parameterization import PARAMETERIZATIONS

CASES = {
    "points": (small.mlp(order=3), (2,)),
    "one block of input": (dataclasses.replace(small.mlp(), parameterization=PARAMETERIZATIONS["sufficient"]), (2,)),
    "pictures": (small.unet(), (8, 8, 1)),
    "bfloat16": (small.mlp(dtype=jnp.bfloat16), (2,)),
}


def draw(model, shape, batch=4):
    u = jax.random.normal(jax.random.key(1), (batch, *shape[:-1], model.sde.order, shape[-1]))
    return u, jnp.linspace(model.sde.t_min, model.sde.T, batch)


@pytest.mark.parametrize(("model", "shape"), CASES.values(), ids=CASES)
def test_the_noise_of_the_last_block_in_float32(model, shape):
    params = jax.jit(model.init)(jax.random.key(0))
    assert isinstance(params, dict)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    u, t = draw(model, shape)
    eps = jax.jit(lambda p, u, t: model.eps_fn(p)(u, t))(params, u, t)
    assert eps.shape == (4, *shape[:-1], 1, shape[-1]) and eps.dtype == jnp.float32
    assert np.isfinite(eps).all()


def test_one_time_for_all_is_that_time_for_each():
    model = small.mlp(order=3)
    params = jax.jit(model.init)(jax.random.key(0))
    u, t = draw(model, (2,))
    eps_fn = jax.jit(lambda u, t: model.eps_fn(params)(u, t))
    np.testing.assert_allclose(eps_fn(u, t[1]), eps_fn(u, jnp.full(4, t[1])), rtol=1e-5, atol=1e-6)


def test_labels_reach_a_network_that_has_classes_and_no_other():
    u, t = draw(small.mlp(), (2,))
    found = {}
    for classes in (0, 3):
        model = small.mlp(num_classes=classes)
        assert model.takes_labels == (classes > 0)
        params = jax.jit(model.init)(jax.random.key(0))
        of = jax.jit(lambda labels, model=model, params=params: model.eps_fn(params, labels=labels)(u, t))
        found[classes] = [np.asarray(of(jnp.full(4, label, jnp.int32))) for label in (0, 2)]
    np.testing.assert_array_equal(*found[0])
    assert np.abs(found[3][0] - found[3][1]).max() > 1e-3
