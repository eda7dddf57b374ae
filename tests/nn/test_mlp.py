import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.condition import Condition
from hold_jax.nn import MLP

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32)
T = jnp.asarray([-1.0, 0.0, 0.5, 1.0], jnp.float32)


def test_equals_numpy(random_params):
    model = MLP(2, hidden_layers=3, width=8, conditional=False)
    params = random_params(model, X, T)
    params = jax.tree.map(np.asarray, params)
    h = np.asarray(X, np.float64)
    for i in range(3):
        h = h @ params[f"hidden{i}"]["kernel"] + params[f"hidden{i}"]["bias"]
        h = h / (1 + np.exp(-h))
    expected = h @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(model.apply({"params": params}, X, T), expected, atol=1e-5)


def test_default_is_seven_layers_of_128():
    shapes = jax.eval_shape(MLP(2, conditional=False).init, jax.random.key(0), X, T)["params"]
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == (6 * 128 + 128) + 6 * (128 * 128 + 128) + (128 * 2 + 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fourier", "positional"])
def test_every_parameter_learns_and_every_condition_matters(random_params, kind):
    model = MLP(2, hidden_layers=2, width=8, embedding=kind, num_classes=3)
    labels = jnp.asarray([0, 1, 2, 3])
    params = random_params(model, X, T, Condition(labels))
    out = model.apply({"params": params}, X, T, Condition(labels))
    assert out.shape == (4, 2) and out.dtype == jnp.float32
    other_t = model.apply({"params": params}, X, T.at[0].add(0.1), Condition(labels))
    other_label = model.apply({"params": params}, X, T, Condition(labels.at[1].set(3)))
    changed = lambda a: np.abs(a - out).max(axis=1) > 1e-3  # noqa: E731
    np.testing.assert_array_equal(changed(other_t), [True, False, False, False])
    np.testing.assert_array_equal(changed(other_label), [False, True, False, False])

    grads = jax.grad(lambda p: (model.apply({"params": p}, X, T, Condition(labels)) ** 2).sum())(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(grad)), name
        assert np.any(grad != 0) != ("frequencies" in name), name


def test_bfloat16_is_close_with_float32_parameters(random_params):
    full, half = MLP(2, width=32), MLP(2, width=32, dtype=jnp.bfloat16)
    params = random_params(full, X, T)
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), X, T))} == {
        jnp.dtype("float32")
    }
    a, b = (model.apply({"params": params}, X, T) for model in (full, half))
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.03 * np.abs(a).max()


def test_starts_near_zero(random_params):
    model = MLP(2, hidden_layers=2)
    out = jax.jit(lambda key: model.init(key, X, T)["params"]["out"])(jax.random.key(0))
    assert 0 < np.abs(model.apply({"params": {**random_params(model, X, T), "out": out}}, X, T)).max() < 1e-3


def test_errors_name_argument_value_and_choices():
    with pytest.raises(ValueError, match=r"`embedding` is 'forier' \(did you mean 'fourier'"):
        MLP(2, embedding="forier")
    with pytest.raises(ValueError, match="`hidden_layers` is 0; it must be 1 or more"):
        MLP(2, hidden_layers=0)
    with pytest.raises(ValueError, match=r"`x` is \(4, 2, 3\)"):
        MLP(2).init(jax.random.key(0), X.reshape(4, 2, 3), T)
    with pytest.raises(ValueError, match=r"`noise_cond` is \(4, 1\)"):
        MLP(2).init(jax.random.key(0), X, T[:, None])
