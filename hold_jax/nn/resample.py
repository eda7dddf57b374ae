"""Resampling of pictures and signals by a factor of two, with or without a FIR filter (StyleGAN2's upfirdn).

`taps` is always a separable filter such as (1, 3, 3, 1), normalized here to gain 1, or None: nearest neighbor up, mean
of neighbors down. Values outside of the picture are zero, so a constant picture stays constant except at the border.
The filter phases follow StyleGAN2 (arXiv:1912.04958, appendix B) and score_sde (arXiv:2011.13456, appendix H).
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from hold_jax.nn import products
from hold_jax.nn.layers import add_broadcast, conv3, conv_parameters, precision_of

Taps = Sequence[float] | None


def upsample(x: jax.Array, taps: Taps) -> jax.Array:
    """Upsamples (B, *S, C) to (B, *2S, C) without parameters."""
    if taps is None:
        return functools.reduce(lambda h, axis: h.repeat(2, axis=axis), range(1, x.ndim - 1), x)
    p = len(taps) - 2
    return _filter(x, taps, gain=2, pad=((p + 1) // 2 + 1, p // 2 + 1), up=2)


def downsample(x: jax.Array, taps: Taps) -> jax.Array:
    """Downsamples (B, *S, C) to (B, *S/2, C) without parameters; the sides must be even."""
    if taps is None:
        pairs = [part for side in x.shape[1:-1] for part in (side // 2, 2)]
        return x.reshape(x.shape[0], *pairs, x.shape[-1]).mean(axis=tuple(range(2, 2 * x.ndim - 3, 2)))
    p = len(taps) - 2
    return _filter(x, taps, gain=1, pad=((p + 1) // 2, p // 2), down=2)


class ConvUpsample(nn.Module):
    """Upsampling by two with a learned convolution of 3 taps: (B, *S, C) -> (B, *2S, features).

    Attributes:
      features: channels of the output.
      taps: the filter, applied after a stride-2 transposed convolution; None: nearest neighbor, then the convolution.
      dtype: compute type.
    """

    features: int
    taps: Taps
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, *S, C) to (B, *2S, features)."""
        if self.taps is None:
            return conv3(self.features, name="conv", dtype=self.dtype)(upsample(x, None))
        kernel, bias = _ConvParameters(self.features, name="conv")(x)
        x, precision, rank = x.astype(self.dtype), precision_of(self.dtype), x.ndim - 2
        h = products.conv(x, kernel, (1,) * rank, [(2, 2)] * rank, dilation=(2,) * rank, precision=precision)
        p = len(self.taps) - 4
        return add_broadcast(_filter(h, self.taps, gain=2, pad=((p + 1) // 2 + 1, p // 2 + 1)), bias)


class ConvDownsample(nn.Module):
    """Downsampling by two with a learned convolution of 3 taps: (B, *S, C) -> (B, *S/2, features).

    Attributes:
      features: channels of the output.
      taps: the filter, applied before a stride-2 convolution; None: the stride-2 convolution alone.
      dtype: compute type.
      padding: zeros of the convolution alone: 'after' the last pixels (TensorFlow's), or 'around' the picture.
    """

    features: int
    taps: Taps
    dtype: DTypeLike
    padding: Literal["after", "around"] = "after"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, *S, C) to (B, *S/2, features)."""
        if self.taps is None:
            padding = {"after": "SAME", "around": 1}[self.padding]
            return conv3(self.features, name="conv", dtype=self.dtype, stride=2, padding=padding)(x)
        kernel, bias = _ConvParameters(self.features, name="conv")(x)
        p = len(self.taps)
        h = _filter(x.astype(self.dtype), self.taps, gain=1, pad=((p + 1) // 2, p // 2))
        h = products.conv(h, kernel, (2,) * (x.ndim - 2), "VALID", precision=precision_of(self.dtype))
        return add_broadcast(h, bias)


class _ConvParameters(nn.Module):
    """The parameters of `conv3`, at the same place in the tree with and without a filter."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return conv_parameters(self, x, 3, self.features)


@jax.named_scope("filter")
def _filter(
    x: jax.Array, taps: Sequence[float], *, gain: int, pad: tuple[int, int], up: int = 1, down: int = 1
) -> jax.Array:
    """Inserts `up` - 1 zeros between pixels, pads, convolves each channel with `taps`, keeps each `down`-th pixel.

    Zeros are inserted between pixels only (StyleGAN2 also adds them after the last), so the second pad is `up` - 1
    larger here. Sums are in float32. At least one of `up` and `down` is 1.

    The filter is one matrix for each spatial axis. Sums of shifted copies have fewer operations, but more and larger
    intermediate arrays: on a TPU two to three times the cycles, by its compiler's estimate. A depthwise convolution
    dilated by `up` or `down` was 10 to 70 times slower on CPU.
    """
    # Flipped, because this is a convolution, and a row of the matrix is a correlation.
    weights = np.asarray(taps, np.float64)[::-1] * gain / np.sum(taps)
    h = x.astype(jnp.float32)
    for axis in range(1, x.ndim - 1):
        matrix = _matrix(h.shape[axis], weights, pad, up, down)
        rows = math.prod(h.shape[:axis])
        # A product for each row of the axes before this one, so that no axis moves.
        product = lax.dot_general(
            jnp.broadcast_to(matrix, (rows, *matrix.shape)),
            h.reshape(rows, h.shape[axis], -1),
            (((2,), (1,)), ((0,), (0,))),
            precision=precision_of(jnp.float32),
        )
        h = product.reshape(*h.shape[:axis], len(matrix), *h.shape[axis + 1 :])
    return h.astype(x.dtype)


def _matrix(size: int, weights: np.ndarray, pad: tuple[int, int], up: int, down: int) -> np.ndarray:
    """Returns M with (M x)[o] = sum_j weights[j] z[down o - pad[0] + j], z[up i] = x[i], z = 0 elsewhere."""
    length = ((size - 1) * up + 1 + sum(pad) - len(weights)) // down + 1
    place = down * np.arange(length)[:, None] - pad[0] + np.arange(len(weights))
    output, tap = np.nonzero((place >= 0) & (place <= (size - 1) * up) & (place % up == 0))
    matrix = np.zeros((length, size), np.float32)
    matrix[output, place[output, tap] // up] = weights[tap]
    return matrix
