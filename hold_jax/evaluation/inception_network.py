"""The Inception network of 2015 that defines the Frechet Inception distance (arXiv:1706.08500, 1512.00567).

TensorFlow's "inception-2015-12-05" in pytorch-fid's reading of it, number for number: bilinear resizing with half-pixel
centers, average pooling that leaves the padding out of the count, and max pooling in the last block. It only infers:
batch normalization is part of each convolution's kernel and bias (`evaluation.inception_weights` puts it there). Names
of parameters are torchvision's. All of it is float32 with full products; TF32, where a device prefers it, would leave
three digits.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from hold_jax.errors import require
from hold_jax.evaluation.resize import bilinear

SIZE = 299
NUM_CLASSES = 1008
_PRECISION = lax.Precision.HIGHEST
_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Inception(nn.Module):
    """Pictures to the features of the FID and the logits of the inception score.

    Attributes:
      logits: whether the last layer is there.
    """

    logits: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Maps (B, H, W, 3), uint8 or float in [0, 255], to pool3 features (B, 2048) and logits (B, 1008) or None."""
        require(x.ndim == 4 and x.shape[-1] == 3, "x.shape", x.shape, "(B, H, W, 3)")
        h = bilinear(x.astype(jnp.float32), SIZE) * (2 / 255) - 1

        h = _Conv(32, (3, 3), stride=2, same=False, name="Conv2d_1a_3x3")(h)
        h = _Conv(32, (3, 3), same=False, name="Conv2d_2a_3x3")(h)
        h = _Conv(64, (3, 3), name="Conv2d_2b_3x3")(h)
        h = _halve(h)
        h = _Conv(80, name="Conv2d_3b_1x1")(h)
        h = _Conv(192, (3, 3), same=False, name="Conv2d_4a_3x3")(h)
        h = _halve(h)
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            h = _BlockA(pooled, name=f"Mixed_5{letter}")(h)
        h = _BlockB(name="Mixed_6a")(h)
        for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True):
            h = _BlockC(inner, name=f"Mixed_6{letter}")(h)
        h = _BlockD(name="Mixed_7a")(h)
        h = _BlockE(max_pool=False, name="Mixed_7b")(h)
        h = _BlockE(max_pool=True, name="Mixed_7c")(h)

        features = h.mean(axis=(1, 2))
        return features, _Logits(name="fc")(features) if self.logits else None


class _Conv(nn.Module):
    """Convolution, optionally 3x3 averages, bias, ReLU.

    Attributes:
      features: channels of the output.
      size: of the kernel; odd.
      stride: in both directions.
      same: pad so that stride 1 keeps the size; otherwise nothing is padded.
      average: average 3x3 pixels, those beyond the border not counted. The original averages before its 1x1
        convolution; the two commute, and there are fewer channels afterwards.
    """

    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    same: bool = True
    average: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.he_normal(), (*self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.size == (1, 1):
            h = jnp.einsum("bhwc,cf->bhwf", x, kernel[0, 0], precision=_PRECISION)
        else:
            h = _convolve(x, kernel, self.stride, self.same)
        if self.average:
            h = nn.avg_pool(h, (3, 3), padding="SAME", count_include_pad=False)
        return nn.relu(h + bias.reshape(1, 1, 1, -1))


class _Logits(nn.Module):
    """(B, C) -> (B, NUM_CLASSES), the logits of the inception score: by convention without the bias.

    The score's first code (arXiv:1606.03498) multiplied by the matrix alone, and others' figures follow it. The bias is
    a parameter all the same, so that the network has all of the published weights.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], NUM_CLASSES))
        self.param("bias", nn.initializers.zeros, (NUM_CLASSES,))
        return jnp.dot(x, kernel, precision=_PRECISION)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, same: bool) -> jax.Array:
    rows = x.shape[1] if same else (x.shape[1] - kernel.shape[0]) // stride + 1
    # XLA's CPU convolution takes two to three times as long without any padding: pad one row, and drop what it adds.
    padding = "SAME" if same else [(0, 1), (0, 0)]
    h = lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT, precision=_PRECISION)
    return h[:, :rows]


def _halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2))


class _BlockA(nn.Module):
    """35x35 block: (B, H, W, C) -> (B, H, W, 224 + pooled)."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        five = _Conv(48, name="branch5x5_1")(x)
        five = _Conv(64, (5, 5), name="branch5x5_2")(five)
        double = _Conv(64, name="branch3x3dbl_1")(x)
        double = _Conv(96, (3, 3), name="branch3x3dbl_2")(double)
        double = _Conv(96, (3, 3), name="branch3x3dbl_3")(double)
        pooled = _Conv(self.pooled, average=True, name="branch_pool")(x)
        return jnp.concatenate([_Conv(64, name="branch1x1")(x), five, double, pooled], axis=-1)


class _BlockB(nn.Module):
    """From 35x35 to 17x17 (arXiv:1512.00567, figure 10): (B, H, W, C) -> (B, (H-1)/2, (W-1)/2, 480 + C)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _Conv(384, (3, 3), stride=2, same=False, name="branch3x3")(x)
        double = _Conv(64, name="branch3x3dbl_1")(x)
        double = _Conv(96, (3, 3), name="branch3x3dbl_2")(double)
        double = _Conv(96, (3, 3), stride=2, same=False, name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _halve(x)], axis=-1)


class _BlockC(nn.Module):
    """17x17 block of 1x7 and 7x1 convolutions (arXiv:1512.00567, figure 6): (B, H, W, C) -> (B, H, W, 768)."""

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        seven = _Conv(self.inner, name="branch7x7_1")(x)
        seven = _Conv(self.inner, (1, 7), name="branch7x7_2")(seven)
        seven = _Conv(192, (7, 1), name="branch7x7_3")(seven)
        double = _Conv(self.inner, name="branch7x7dbl_1")(x)
        double = _Conv(self.inner, (7, 1), name="branch7x7dbl_2")(double)
        double = _Conv(self.inner, (1, 7), name="branch7x7dbl_3")(double)
        double = _Conv(self.inner, (7, 1), name="branch7x7dbl_4")(double)
        double = _Conv(192, (1, 7), name="branch7x7dbl_5")(double)
        pooled = _Conv(192, average=True, name="branch_pool")(x)
        return jnp.concatenate([_Conv(192, name="branch1x1")(x), seven, double, pooled], axis=-1)


class _BlockD(nn.Module):
    """From 17x17 to 8x8: (B, H, W, C) -> (B, (H-1)/2, (W-1)/2, 512 + C)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _Conv(192, name="branch3x3_1")(x)
        three = _Conv(320, (3, 3), stride=2, same=False, name="branch3x3_2")(three)
        seven = _Conv(192, name="branch7x7x3_1")(x)
        seven = _Conv(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = _Conv(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = _Conv(192, (3, 3), stride=2, same=False, name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _halve(x)], axis=-1)


class _BlockE(nn.Module):
    """8x8 block of parallel 1x3 and 3x1 convolutions (arXiv:1512.00567, figure 7): (B, H, W, C) -> (B, H, W, 2048).

    `max_pool`: the last block of the weights' own graph pools so; Inception elsewhere averages.
    """

    max_pool: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _Conv(384, name="branch3x3_1")(x)
        double = _Conv(448, name="branch3x3dbl_1")(x)
        double = _Conv(384, (3, 3), name="branch3x3dbl_2")(double)
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.max_pool else x
        return jnp.concatenate(
            [
                _Conv(320, name="branch1x1")(x),
                _Conv(384, (1, 3), name="branch3x3_2a")(three),
                _Conv(384, (3, 1), name="branch3x3_2b")(three),
                _Conv(384, (1, 3), name="branch3x3dbl_3a")(double),
                _Conv(384, (3, 1), name="branch3x3dbl_3b")(double),
                _Conv(192, average=not self.max_pool, name="branch_pool")(pooled),
            ],
            axis=-1,
        )
