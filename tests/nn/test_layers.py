import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.nn.layers import (
    OutputHead,
    SelfAttention,
    add_broadcast,
    conv1,
    conv3,
    default_init,
    dense,
    group_norm,
    residual_sum,
    scale_and_shift,
)
from hold_jax.nn.resample import ConvDownsample, ConvUpsample


def numpy_group_norm(x, groups, scale, bias):
    B, H, W, C = x.shape
    g = x.astype(np.float64).reshape(B, H * W, groups, C // groups)
    g = (g - g.mean(axis=(1, 3), keepdims=True)) / np.sqrt(g.var(axis=(1, 3), keepdims=True) + 1e-6)
    return g.reshape(B, H, W, C) * np.asarray(scale) + np.asarray(bias)


@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (160, 32)])
def test_group_norm_equals_numpy(random_params, channels, groups):
    x = 3 + np.random.default_rng(0).normal(size=(2, 4, 5, channels)).astype(np.float32)
    norm = group_norm(channels, name=None, dtype=jnp.float32)
    params = random_params(norm, x)
    np.testing.assert_allclose(
        norm.apply({"params": params}, x), numpy_group_norm(x, groups, params["scale"], params["bias"]), atol=2e-5
    )


def test_group_norm_statistics_are_float32_in_bfloat16():
    x = jnp.asarray(8 + np.random.default_rng(0).normal(size=(1, 32, 32, 8)), jnp.bfloat16)
    norm = group_norm(8, name=None, dtype=jnp.bfloat16)
    out = norm.apply(norm.init(jax.random.key(0), x), x)
    assert out.dtype == jnp.bfloat16
    # In bfloat16 E[x^2] = 65 is known to 0.25 only, hence the variance, 1, too.
    np.testing.assert_allclose(out.astype(np.float32), numpy_group_norm(np.asarray(x), 2, 1, 0), atol=2e-2)


@pytest.mark.parametrize("channels", [3, 257])
def test_group_norm_names_impossible_channels(channels):
    with pytest.raises(ValueError, match=f"`channels` is {channels}"):
        group_norm(channels, name=None, dtype=jnp.float32)


@pytest.mark.parametrize("skip_rescale", [True, False])
def test_attention_equals_explicit_softmax(random_params, skip_rescale):
    x = np.random.default_rng(1).normal(size=(2, 3, 5, 8)).astype(np.float32)
    attention = SelfAttention(skip_rescale, 0.0, jnp.float32)
    params = random_params(attention, x)

    params = jax.tree.map(np.asarray, params)
    h = numpy_group_norm(x, 2, **params["norm"]).reshape(2, 15, 8)
    q, k, v = (h @ params[name]["kernel"] + params[name]["bias"] for name in ("query", "key", "value"))
    weights = np.exp(np.einsum("bqc,bkc->bqk", q, k) / np.sqrt(8))
    weights /= weights.sum(axis=-1, keepdims=True)
    h = (weights @ v @ params["out"]["kernel"] + params["out"]["bias"]).reshape(x.shape)
    expected = (x + h) / np.sqrt(2) if skip_rescale else x + h

    np.testing.assert_allclose(attention.apply({"params": params}, x), expected, atol=1e-5)


def test_default_init_is_uniform_with_fan_avg_variance():
    kernel = default_init(0.1)(jax.random.key(0), (3, 3, 64, 32))
    bound = np.sqrt(3 * 0.1 / (9 * (64 + 32) / 2))
    assert 0.999 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.02)


def test_init_scale_zero_means_1e_minus_10():
    kernel = default_init(0.0)(jax.random.key(0), (64, 64))
    np.testing.assert_allclose(kernel, default_init(1e-10)(jax.random.key(0), (64, 64)))
    assert 0 < np.abs(kernel).max() < 1e-5


def test_residual_sum_rescales_to_keep_variance():
    assert residual_sum(jnp.float32(1), jnp.float32(2), False) == 3
    np.testing.assert_allclose(residual_sum(jnp.float32(1), jnp.float32(2), True), 3 / np.sqrt(2), rtol=1e-6)
    assert residual_sum(jnp.bfloat16(1), jnp.bfloat16(2), True).dtype == jnp.bfloat16


def test_output_head_of_bfloat16_is_more_than_bfloat16(random_params):
    h = np.random.default_rng(2).normal(size=(1, 4, 4, 8)).astype(np.float32)
    head = OutputHead(2, 0.0, jnp.bfloat16)
    out = head.apply({"params": random_params(head, h)}, h)
    assert out.dtype == jnp.float32
    assert np.any(out != out.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize(
    "layer",
    [
        conv3(2, name=None, dtype=jnp.bfloat16),
        conv1(2, name=None, dtype=jnp.bfloat16),
        dense(2, name=None, dtype=jnp.bfloat16),
        ConvUpsample(2, (1, 3, 3, 1), jnp.bfloat16),
        ConvDownsample(2, (1, 3, 3, 1), jnp.bfloat16),
    ],
    ids=["conv3", "conv1", "dense", "up", "down"],
)
def test_bfloat16_bias_gradient_is_a_float32_sum(layer):
    x = jnp.ones((4, 64, 64, 2))
    specs = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda spec: jnp.zeros(spec.shape), specs)
    out, back = jax.vjp(lambda p: layer.apply({"params": p}, x), params)
    assert out.dtype == jnp.bfloat16
    gradient = jax.tree_util.tree_leaves_with_path(back(jnp.ones_like(out))[0])
    (bias,) = [leaf for path, leaf in gradient if "bias" in jax.tree_util.keystr(path)]
    np.testing.assert_array_equal(bias, np.full(2, out.size // 2))


def test_scale_and_shift_sum_their_gradients_in_float32():
    h, scale = jnp.full((2, 64, 64, 1), 0.5, jnp.bfloat16), jnp.full((2, 1, 1, 1), 0.25)
    out, back = jax.vjp(scale_and_shift, h, scale, jnp.full((2, 1, 1, 1), 2.0))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, 0.5 * 1.25 + 2)
    of_h, of_scale, of_shift = back(jnp.ones_like(out))
    np.testing.assert_array_equal(of_h, 1.25)
    np.testing.assert_array_equal(of_scale, 64 * 64 / 2)
    np.testing.assert_array_equal(of_shift, 64 * 64)


def test_add_broadcast_sums_the_gradient_in_float32():
    h, b = jnp.ones((2, 64, 64, 1), jnp.bfloat16), jnp.ones((2, 1, 1, 1), jnp.bfloat16)
    out, back = jax.vjp(add_broadcast, h, b)
    assert out.dtype == jnp.bfloat16
    of_h, of_b = back(jnp.ones_like(out))
    np.testing.assert_array_equal(of_h, 1)
    np.testing.assert_array_equal(of_b, 64 * 64)
