import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import convolve2d, correlate2d

from hold_jax.nn.resample import ConvDownsample, ConvUpsample, downsample, upsample

TAPS = [(1, 3, 3, 1), (1, 1), (1, 2, 1), (1, 2, 3, 2)]  # the last two: odd length; asymmetric
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)


def upfirdn(image, taps, gain, up, down, pad0, pad1):
    """StyleGAN2's definition for one channel: zeros after each pixel, pad, convolve, decimate."""
    H, W = image.shape
    zeros = np.zeros((H * up, W * up))
    zeros[::up, ::up] = image
    kernel = np.outer(taps, taps) / np.sum(taps) ** 2 * gain
    return convolve2d(np.pad(zeros, (pad0, pad1)), kernel, mode="valid")[::down, ::down]


def each_channel(function, x):
    return np.stack([np.stack([function(x[b, :, :, c]) for c in range(x.shape[-1])], -1) for b in range(len(x))])


def correlate_channels(x, kernel, mode):
    """A convolution layer's correlation, summed over input channels."""
    return np.stack(
        [
            np.stack(
                [
                    sum(correlate2d(image[:, :, i], kernel[:, :, i, o], mode) for i in range(image.shape[-1]))
                    for o in range(kernel.shape[-1])
                ],
                -1,
            )
            for image in x
        ]
    )


@pytest.mark.parametrize("taps", TAPS)
def test_fir_upsample_equals_upfirdn(taps):
    p = len(taps) - 2
    expected = each_channel(lambda image: upfirdn(image, taps, 4, 2, 1, (p + 1) // 2 + 1, p // 2), X)
    np.testing.assert_allclose(upsample(jnp.asarray(X), taps), expected, atol=1e-5)


@pytest.mark.parametrize("taps", TAPS)
def test_fir_downsample_equals_upfirdn(taps):
    p = len(taps) - 2
    expected = each_channel(lambda image: upfirdn(image, taps, 1, 1, 2, (p + 1) // 2, p // 2), X)
    np.testing.assert_allclose(downsample(jnp.asarray(X), taps), expected, atol=1e-5)


@pytest.mark.parametrize("taps", TAPS)
def test_conv_upsample_equals_transposed_convolution_then_filter(random_params, taps):
    layer = ConvUpsample(2, taps, jnp.float32)
    conv = jax.tree.map(np.asarray, random_params(layer, X)["conv"])
    zeros = np.zeros((2, 7, 11, 3))
    zeros[:, ::2, ::2] = X
    h = correlate_channels(zeros, np.asarray(conv["kernel"]), "full")
    p = len(taps) - 4
    expected = each_channel(lambda image: upfirdn(image, taps, 4, 1, 1, (p + 1) // 2 + 1, p // 2 + 1), h)
    out = layer.apply({"params": {"conv": conv}}, X)
    np.testing.assert_allclose(out, expected + conv["bias"], atol=1e-5)


@pytest.mark.parametrize("taps", TAPS)
def test_conv_downsample_equals_filter_then_strided_convolution(random_params, taps):
    layer = ConvDownsample(2, taps, jnp.float32)
    conv = jax.tree.map(np.asarray, random_params(layer, X)["conv"])
    p = len(taps)
    h = each_channel(lambda image: upfirdn(image, taps, 1, 1, 1, (p + 1) // 2, p // 2), X)
    expected = correlate_channels(h, np.asarray(conv["kernel"]), "valid")[:, ::2, ::2]
    out = layer.apply({"params": {"conv": conv}}, X)
    np.testing.assert_allclose(out, expected + conv["bias"], atol=1e-5)


def test_plain_resampling_repeats_and_averages():
    np.testing.assert_array_equal(upsample(jnp.asarray(X), None), np.kron(X, np.ones((1, 2, 2, 1))))
    mean = (X[:, ::2, ::2] + X[:, 1::2, ::2] + X[:, ::2, 1::2] + X[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(downsample(jnp.asarray(X), None), mean, atol=1e-6)


def test_plain_conv_resampling_equals_numpy(random_params):
    up, down = ConvUpsample(2, None, jnp.float32), ConvDownsample(2, None, jnp.float32)
    conv = jax.tree.map(np.asarray, random_params(up, X)["conv"])
    kernel = np.asarray(conv["kernel"])
    expected = correlate_channels(np.kron(X, np.ones((1, 2, 2, 1))), kernel, "same") + conv["bias"]
    np.testing.assert_allclose(up.apply({"params": {"conv": conv}}, X), expected, atol=1e-5)
    # 'SAME' with stride 2 on even sizes pads below and to the right only.
    padded = np.pad(X, [(0, 0), (0, 1), (0, 1), (0, 0)])
    expected = correlate_channels(padded, kernel, "valid")[:, ::2, ::2] + conv["bias"]
    np.testing.assert_allclose(down.apply({"params": {"conv": conv}}, X), expected, atol=1e-5)


@pytest.mark.parametrize("taps", [None, *TAPS])
def test_up_then_down_keeps_a_constant(taps):
    constant = jnp.full((1, 8, 8, 1), 3.0)
    up = upsample(constant, taps)
    margin = 0 if taps is None else 3  # pixels outside count as zero
    np.testing.assert_allclose(up[:, margin : 16 - margin, margin : 16 - margin], 3, rtol=1e-6)
    np.testing.assert_allclose(downsample(up, taps)[:, margin : 8 - margin, margin : 8 - margin], 3, rtol=1e-6)


@pytest.mark.parametrize("taps", [None, (1, 3, 3, 1), (1, 1)])
def test_up_is_four_times_the_adjoint_of_down(taps):
    y = RNG.normal(size=(2, 8, 12, 3)).astype(np.float32)
    up, down = upsample(jnp.asarray(X), taps), downsample(jnp.asarray(y), taps)
    np.testing.assert_allclose(np.vdot(up, y), 4 * np.vdot(X, down), rtol=1e-4)


def test_one_by_one_taps_are_plain_resampling():
    np.testing.assert_allclose(upsample(jnp.asarray(X), (1, 1)), upsample(jnp.asarray(X), None), atol=1e-6)
    np.testing.assert_allclose(downsample(jnp.asarray(X), (1, 1)), downsample(jnp.asarray(X), None), atol=1e-6)
