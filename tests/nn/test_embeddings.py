import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.condition import Condition
from hold_jax.nn.embeddings import ConditionEmbedding, GaussianFourierFeatures, sinusoidal_features

T = jnp.asarray([0.0, -1.3, 2.0], jnp.float32)


def test_fourier_features_equal_numpy_and_have_the_scale():
    layer = GaussianFourierFeatures(4096, 16.0)
    params = layer.init(jax.random.key(0), T)["params"]
    w = np.asarray(params["frequencies"], np.float64)
    np.testing.assert_allclose(w.std(), 16, rtol=0.05)
    angle = 2 * np.pi * np.asarray(T, np.float64)[:, None] * w
    out = layer.apply({"params": params}, T)
    np.testing.assert_allclose(out, np.concatenate([np.sin(angle), np.cos(angle)], -1), atol=1e-4)


def test_fourier_frequencies_get_no_gradient_but_time_does():
    layer = GaussianFourierFeatures(8, 1.0)
    params = layer.init(jax.random.key(0), T)["params"]
    by_params, by_t = jax.grad(lambda p, t: layer.apply({"params": p}, t).sum(), argnums=(0, 1))(params, T)
    np.testing.assert_array_equal(by_params["frequencies"], 0)
    assert np.all(by_t != 0)


@pytest.mark.parametrize("size", [8, 9])
def test_sinusoidal_features_equal_numpy(size):
    t = np.asarray([0.0, 1.5, 999.0])
    w = 10_000.0 ** -(np.arange(4) / 3)
    expected = np.concatenate([np.sin(t[:, None] * w), np.cos(t[:, None] * w)], -1)
    expected = np.pad(expected, [(0, 0), (0, size - 8)])
    np.testing.assert_allclose(sinusoidal_features(jnp.asarray(t, jnp.float32), size), expected, atol=2e-4)


def embedding(**options):
    return ConditionEmbedding(
        **{
            "size": 8,
            "num_frequencies": 4,
            "kind": "positional",
            "fourier_scale": 1.0,
            "conditional": True,
            "num_classes": 0,
            **options,
        }
    )


def test_class_vector_is_added_to_the_features_of_the_noise(random_params):
    labels = jnp.asarray([0, 2, 3])
    both = embedding(num_classes=3, label_place="features")
    params = random_params(both, T, Condition(labels))
    features = sinusoidal_features(T, 4) + params["labels"]["embedding"][labels]
    dot = functools.partial(jnp.dot, precision="highest")
    h = dot(features, params["dense0"]["kernel"]) + params["dense0"]["bias"].reshape(1, -1)
    want = dot(h / (1 + jnp.exp(-h)), params["dense1"]["kernel"]) + params["dense1"]["bias"].reshape(1, -1)
    np.testing.assert_allclose(both.apply({"params": params}, T, Condition(labels)), want, rtol=1e-5, atol=1e-5)


def test_class_vector_is_added_to_the_noise_embedding(random_params):
    labels = jnp.asarray([0, 2, 3])  # 3: the null class
    both, noise, label = embedding(num_classes=3), embedding(), embedding(num_classes=3, conditional=False)
    params = random_params(both, T, Condition(labels))
    total = both.apply({"params": params}, T, Condition(labels))
    table = params["labels"]["embedding"]
    np.testing.assert_allclose(
        label.apply({"params": {"labels": params["labels"]}}, T, Condition(labels)), table[labels]
    )
    del params["labels"]
    np.testing.assert_allclose(total, noise.apply({"params": params}, T, None) + table[labels], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["features", "embedding"])
def test_a_new_network_sees_the_class_as_well_as_the_noise(place):
    # Where the class's part is small at first, a network learns to use it only after thousands of steps.
    layer = embedding(size=64, num_frequencies=32, num_classes=10, label_place=place)
    t, labels = jnp.linspace(-2.0, 2.0, 10), jnp.arange(10)
    params = layer.init(jax.random.key(0), t, Condition(labels))["params"]
    out = jax.vmap(lambda s: layer.apply({"params": params}, jnp.full((10,), s), Condition(labels)))(t)
    of_noise, of_class = out.std(axis=0).mean(), out.std(axis=1).mean()
    assert of_class > 0.5 * of_noise


def test_unknown_label_gives_nan_not_another_class():
    module = embedding(num_classes=3)
    params = module.init(jax.random.key(0), T, Condition(jnp.zeros(3, jnp.int32)))
    out = module.apply(params, T, Condition(jnp.asarray([0, 4, 3])))
    np.testing.assert_array_equal(np.isnan(out).all(axis=1), [False, True, False])


def test_labels_must_agree_with_num_classes():
    with pytest.raises(ValueError, match=r"`condition\.label` is None; it must be an integer array of shape"):
        embedding(num_classes=3).init(jax.random.key(0), T, None)
    with pytest.raises(ValueError, match=r"`condition\.label` is \(2,\)"):
        embedding(num_classes=3).init(jax.random.key(0), T, Condition(jnp.zeros(2, jnp.int32)))
    with pytest.raises(ValueError, match="must be None, because the network's `num_classes` is 0"):
        embedding().init(jax.random.key(0), T, Condition(jnp.zeros(3, jnp.int32)))
