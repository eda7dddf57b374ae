"""The layers of the score networks, for pictures (B, H, W, C) and signals (B, length, C): S is (H, W) or (length,).

In this package `dtype` is the type of activations and products. Parameters, the statistics of normalization and
softmax, and all sums over positions are float32, also in the backward pass. Each product has an explicit precision
(`precision_of`), so that results do not depend on the default of a backend.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hold_jax.errors import require
from hold_jax.nn import products


def precision_of(dtype: DTypeLike) -> jax.lax.Precision:
    """Returns the precision of products of `dtype`, such that float32 products are float32 on all backends.

    By default a TPU rounds float32 factors to bfloat16 and an NVIDIA GPU to TF32, with errors of 2^-9 and 2^-11.

    Args:
      dtype: type of both factors, float32 or bfloat16.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT


def default_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """Returns a uniform initializer of variance `scale` / mean(fan_in, fan_out) (DDPM, arXiv:2006.11239, code).

    A `scale` of 0 is replaced by 1e-10.
    """
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def add_broadcast(h: jax.Array, b: jax.Array) -> jax.Array:
    """Returns h + b, added in float32, in the type of h.

    The gradient of b is the sum of the gradient of h over the broadcast axes, in the type of the addition. A bfloat16
    sum of positive numbers stops growing when it is 2^8 times as large as each of them: over 64 pictures of 32x32 it
    was 25 times too small. b itself must be float32: if it was rounded to bfloat16, XLA still sums in bfloat16.

    Args:
      h: activations, float32 or bfloat16.
      b: float32, broadcast to the shape of h.
    """
    return (h.astype(jnp.float32) + b.astype(jnp.float32)).astype(h.dtype)


def scale_and_shift(h: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns h (1 + scale) + shift, computed in float32, in the type of h; scale and shift as b of `add_broadcast`."""
    return (h.astype(jnp.float32) * (1 + scale) + shift).astype(h.dtype)


def _keep_parameters(*args: jax.Array | None, dtype: Any = None, inexact: bool = True) -> list[jax.Array | None]:
    """A `promote_dtype` for Flax that converts only x.

    The bias stays float32 and is added in float32, see `add_broadcast`. The kernel stays float32 until the product
    rounds it, see `products`.
    """
    del inexact
    x, *parameters = args
    return [None if x is None else x.astype(dtype), *parameters]


def conv_parameters(
    module: nn.Module, x: jax.Array, taps: int, features: int, init_scale: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Returns a kernel (*taps, C, features) and a bias (1, ..., 1, features) of `module` for inputs x (B, *S, C)."""
    rank = x.ndim - 2
    kernel = module.param("kernel", default_init(init_scale), (taps,) * rank + (x.shape[-1], features))
    return kernel, module.param("bias", nn.initializers.zeros, (features,)).reshape((1,) * (rank + 1) + (-1,))


class Conv(nn.Module):
    """A convolution of pictures or signals, with the parameters of `nn.Conv`.

    Its bias is added in float32, and its kernel has a float32 gradient (`products`).

    Attributes:
      features: channels of the output.
      taps: length of the kernel on every spatial axis.
      dtype: compute type.
      stride: on every spatial axis.
      padding: "SAME", "VALID", or zeros on both ends of every spatial axis.
      init_scale: variance scale of the kernel.
    """

    features: int
    taps: int
    dtype: DTypeLike
    stride: int = 1
    padding: str | int = "SAME"
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, *S, C) to (B, *S', features)."""
        rank = x.ndim - 2
        kernel, bias = conv_parameters(self, x, self.taps, self.features, self.init_scale)
        padding = self.padding if isinstance(self.padding, str) else [(self.padding, self.padding)] * rank
        precision = precision_of(self.dtype)
        h = products.conv(x.astype(self.dtype), kernel, (self.stride,) * rank, padding, precision=precision)
        return add_broadcast(h, bias)


class _Dense(nn.Dense):
    """`nn.Dense` that adds its bias in float32 and whose kernel has a float32 gradient."""

    dot_general: Any = products.dot

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x).astype(self.dtype)


def conv3(features: int, *, name: str, dtype: DTypeLike, **options: Any) -> Conv:
    """Returns a convolution with 3 taps on every spatial axis; further options are those of `Conv`."""
    return Conv(features, 3, dtype, name=name, **options)


def conv1(features: int, *, name: str, dtype: DTypeLike) -> Conv:
    """Returns a pointwise convolution."""
    return Conv(features, 1, dtype, name=name)


def dense(features: int, *, name: str, dtype: DTypeLike, init_scale: float = 1.0, use_bias: bool = True) -> nn.Dense:
    """Returns an affine map of the last axis, (..., C) -> (..., features); without a bias a linear one."""
    return _Dense(
        features,
        use_bias=use_bias,
        kernel_init=default_init(init_scale),
        dtype=dtype,
        promote_dtype=_keep_parameters,
        precision=precision_of(dtype),
        name=name,
    )


def nin(features: int, *, name: str, dtype: DTypeLike, init_scale: float = 0.1) -> nn.Dense:
    """Returns DDPM's "network in network": a pointwise affine map with smaller initial weights than `conv1`."""
    return dense(features, name=name, dtype=dtype, init_scale=init_scale)


class Norm(NamedTuple):
    """The options of a group normalization.

    Attributes:
      groups: number of groups; None: min(channels // 4, 32).
      eps: added to the variance.
    """

    groups: int | None = None
    eps: float = 1e-6


DEFAULT_NORM = Norm()


class GroupNorm(nn.Module):
    """Group normalization (arXiv:1803.08494), y = a x + c with a = scale / std and c = bias - a mean, in float32.

    Flax computes (x - mean) a + bias. Here x itself is all that the backward pass needs of the picture, so forward and
    backward pass read and write less: with a SiLU they take 0.6 of the time on CPU.

    Attributes:
      groups: number of groups; it divides the channels.
      eps: added to the variance.
      dtype: type of the output.
    """

    groups: int
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes (B, *S, C) over S and the channels of each group."""
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).reshape(shape)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).reshape(shape)
        x = x.astype(jnp.float32)
        mean, square = self._mean(x), self._mean(x * x)
        a = scale * jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + self.eps)
        return (x * a + (bias - mean * a)).astype(self.dtype)

    def _mean(self, x: jax.Array) -> jax.Array:
        """The mean over pixels and the channels of a group, (B, 1, ..., C).

        The sum over channels is a product with a matrix: a reduction and a broadcast are kernels of their own, here and
        in the backward pass, and a network has them twice a layer.
        """
        B, *pixels, C = x.shape
        group = jnp.arange(C) * self.groups // C
        average = (group[:, None] == group[None, :]).astype(jnp.float32) * (self.groups / math.prod(x.shape[1:]))
        means = jnp.dot(jnp.sum(x, range(1, x.ndim - 1)), average, precision=jax.lax.Precision.HIGHEST)
        return means.reshape(B, *[1 for _ in pixels], C)


def group_norm(channels: int, norm: Norm = DEFAULT_NORM, *, name: str, dtype: DTypeLike) -> GroupNorm:
    """Returns a group normalization (arXiv:1803.08494) of `channels` channels.

    Raises:
      UserError: if the number of groups does not divide `channels`.
    """
    groups = min(channels // 4, 32) if norm.groups is None else norm.groups
    require(
        groups > 0 and channels % groups == 0,
        "channels",
        channels,
        f"a multiple of {groups or 4}, the number of groups, at every width that the network reaches",
    )
    return GroupNorm(groups, norm.eps, dtype, name=name)


def residual_sum(x: jax.Array, h: jax.Array, rescale: bool) -> jax.Array:
    """Returns x + h, divided by sqrt(2) if `rescale` to keep the variance (arXiv:2011.13456, appendix H)."""
    return (x + h) / math.sqrt(2) if rescale else x + h


class SelfAttention(nn.Module):
    """Self-attention over all positions, as a residual block (arXiv:2006.11239, appendix B).

    h = x + W_o softmax(q k' / sqrt(C)) v for each head of C channels, with q, k, v affine in GroupNorm(x).

    Attributes:
      skip_rescale: divide the residual sum by sqrt(2).
      init_scale: variance scale of the last map W_o.
      dtype: compute type.
      head_dim: channels of a head; None: one head of all channels.
      norm: of the group normalization.
    """

    skip_rescale: bool
    init_scale: float
    dtype: DTypeLike
    head_dim: int | None = None
    norm: Norm = Norm()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, *S, C) to (B, *S, C)."""
        B, C = x.shape[0], x.shape[-1]
        size = self.head_dim or C
        require(C % size == 0, "attention_head_dim", size, f"a divisor of {C}, the channels that attention sees")
        heads = (B, -1, C // size, size)
        h = group_norm(C, self.norm, name="norm", dtype=self.dtype)(x)
        parts = (nin(C, name=name, dtype=self.dtype)(h).reshape(heads) for name in ("query", "key", "value"))
        q, k, v = (jnp.swapaxes(part, 1, 2) for part in parts)
        precision = precision_of(self.dtype)
        logits = jnp.einsum("bhqc,bhkc->bhqk", q, k, precision=precision, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / math.sqrt(size)).astype(self.dtype)
        h = jnp.einsum("bhqk,bhkc->bhqc", weights, v, precision=precision)
        h = jnp.swapaxes(h, 1, 2).reshape(x.shape)
        h = nin(C, name="out", dtype=self.dtype, init_scale=self.init_scale)(h)
        return residual_sum(x, h, self.skip_rescale)


class OutputHead(nn.Module):
    """GroupNorm, SiLU, convolution to the output channels, the convolution in float32.

    Samplers divide the output by small numbers, and a bfloat16 output has a relative error of 2**-9 even after long
    training. A float32 convolution to a few channels costs very little.

    Attributes:
      out_channels: channels of the output.
      init_scale: variance scale of the convolution.
      dtype: compute type of the layers before the convolution.
      norm: of the group normalization.
    """

    out_channels: int
    init_scale: float
    dtype: DTypeLike
    norm: Norm = Norm()

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Maps (B, *S, C) to (B, *S, out_channels) float32."""
        h = nn.silu(group_norm(h.shape[-1], self.norm, name="norm", dtype=self.dtype)(h))
        return conv3(self.out_channels, name="conv", dtype=jnp.float32, init_scale=self.init_scale)(h)
