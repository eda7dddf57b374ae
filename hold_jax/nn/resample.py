"""Resampling of images by a factor of two, with or without a FIR filter (StyleGAN2's upfirdn).

`taps` is always a separable filter such as (1, 3, 3, 1), normalized here to gain 1, or None: nearest neighbor up, 2x2
mean down. Pixels outside of the image are zero, so a constant image stays constant except at the border. The filter
phases follow StyleGAN2 (arXiv:1912.04958, appendix B) and score_sde (arXiv:2011.13456, appendix H).
"""

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from hold_jax.nn import products
from hold_jax.nn.layers import add_broadcast, conv3x3, default_init, precision_of

Taps = Sequence[float] | None


def upsample(x: jax.Array, taps: Taps) -> jax.Array:
    """Upsamples (B, H, W, C) to (B, 2H, 2W, C) without parameters."""
    if taps is None:
        return x.repeat(2, axis=1).repeat(2, axis=2)
    p = len(taps) - 2
    return _filter(x, taps, gain=2, pad=((p + 1) // 2 + 1, p // 2 + 1), up=2)


def downsample(x: jax.Array, taps: Taps) -> jax.Array:
    """Downsamples (B, H, W, C) to (B, H/2, W/2, C) without parameters; H and W must be even."""
    if taps is None:
        B, H, W, C = x.shape
        return x.reshape(B, H // 2, 2, W // 2, 2, C).mean(axis=(2, 4))
    p = len(taps) - 2
    return _filter(x, taps, gain=1, pad=((p + 1) // 2, p // 2), down=2)


class ConvUpsample(nn.Module):
    """Upsampling by two with a learned 3x3 convolution: (B, H, W, C) -> (B, 2H, 2W, features).

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
        """Maps (B, H, W, C) to (B, 2H, 2W, features)."""
        if self.taps is None:
            return conv3x3(self.features, name="conv", dtype=self.dtype)(upsample(x, None))
        kernel, bias = _ConvParameters(self.features, name="conv")(x.shape[-1])
        x, precision = x.astype(self.dtype), precision_of(self.dtype)
        h = products.conv(x, kernel, (1, 1), [(2, 2), (2, 2)], lhs_dilation=(2, 2), precision=precision)
        p = len(self.taps) - 4
        return add_broadcast(_filter(h, self.taps, gain=2, pad=((p + 1) // 2 + 1, p // 2 + 1)), bias[None, None, None])


class ConvDownsample(nn.Module):
    """Downsampling by two with a learned 3x3 convolution: (B, H, W, C) -> (B, H/2, W/2, features).

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
        """Maps (B, H, W, C) to (B, H/2, W/2, features)."""
        if self.taps is None:
            padding = {"after": "SAME", "around": 1}[self.padding]
            return conv3x3(self.features, name="conv", dtype=self.dtype, stride=2, padding=padding)(x)
        kernel, bias = _ConvParameters(self.features, name="conv")(x.shape[-1])
        p = len(self.taps)
        h = _filter(x.astype(self.dtype), self.taps, gain=1, pad=((p + 1) // 2, p // 2))
        h = products.conv(h, kernel, (2, 2), "VALID", precision=precision_of(self.dtype))
        return add_broadcast(h, bias[None, None, None])


class _ConvParameters(nn.Module):
    """The parameters of a 3x3 `nn.Conv`, at the same place in the tree with and without a filter."""

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", default_init(), (3, 3, channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def _filter(
    x: jax.Array, taps: Sequence[float], *, gain: int, pad: tuple[int, int], up: int = 1, down: int = 1
) -> jax.Array:
    """Inserts `up` - 1 zeros between pixels, pads, convolves each channel with `taps`, keeps each `down`-th pixel.

    Zeros are inserted between pixels only (StyleGAN2 also adds them after the last), so the second pad is `up` - 1
    larger here. Sums are in float32. At least one of `up` and `down` is 1.

    The filter is computed in polyphase form, without the zeros: the outputs of one phase, up m + r, are a sum of
    shifted copies of x, which XLA fuses. A depthwise convolution dilated by `up` or `down` was 10 to 70 times slower
    on CPU. The phases are cast before they are interleaved, because XLA writes the interleaved array to memory.
    """
    # Flipped, because `_phases` computes a correlation, not a convolution.
    weights = np.asarray(taps, np.float64)[::-1] * gain / np.sum(taps)
    rows = _phases(x.astype(jnp.float32), weights, pad, up, down, axis=1)
    columns = [
        _interleave([phase.astype(x.dtype) for phase in _phases(row, weights, pad, up, down, axis=2)], axis=2)
        for row in rows
    ]
    return _interleave(columns, axis=1)


def _phases(x: jax.Array, weights: np.ndarray, pad: tuple[int, int], up: int, down: int, axis: int) -> list[jax.Array]:
    """Phases y[r::up] of y[o] = sum_j weights[j] z[down o - pad[0] + j], z[up i] = x[i], z = 0 elsewhere."""
    size, margin = x.shape[axis], len(weights)
    length = ((size - 1) * up + 1 + sum(pad) - len(weights)) // down + 1
    padded = jnp.pad(x, [(margin, margin) if a == axis else (0, 0) for a in range(x.ndim)])
    span = (length // up - 1) * down + 1

    phases = []
    for r in range(up):
        shifts = [(j, (r - pad[0] + j) // up) for j in range(len(weights)) if (r - pad[0] + j) % up == 0]
        copies = [
            float(weights[j]) * lax.slice_in_dim(padded, margin + shift, margin + shift + span, down, axis)
            for j, shift in shifts
        ]
        phases.append(functools.reduce(jnp.add, copies))
    return phases


def _interleave(phases: list[jax.Array], axis: int) -> jax.Array:
    """Returns y with y[r::k] = phases[r] along `axis`, for k phases of equal shape."""
    if len(phases) == 1:
        return phases[0]
    shape = phases[0].shape
    return jnp.stack(phases, axis + 1).reshape(*shape[:axis], len(phases) * shape[axis], *shape[axis + 1 :])
