"""Progressive growing inside one network (arXiv:2011.13456, appendix H; arXiv:1912.04958, section 4.2).

An input pyramid brings downsampled images to every level on the way down; an output pyramid gathers images from every
level on the way up. Each class is one level: it maps (pyramid, h) to the next (pyramid, h).
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hold_jax.nn.layers import Norm, OutputHead, conv1, conv3, group_norm, residual_sum
from hold_jax.nn.resample import ConvDownsample, ConvUpsample, Taps, downsample, upsample

Level = tuple[jax.Array, jax.Array]


class InputSkip(nn.Module):
    """'input_skip': the downsampled image goes through a 1x1 convolution and is added to h or concatenated.

    Attributes:
      combine: 'sum' or 'cat'.
      taps: filter of the downsampling; None for plain.
      dtype: compute type.
    """

    combine: Literal["sum", "cat"]
    taps: Taps
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pyramid: jax.Array, h: jax.Array) -> Level:
        """Maps the image (B, *2S, C) and h (B, *S, F) to (B, *S, C) and (B, *S, F or 2F)."""
        pyramid = downsample(pyramid, self.taps)
        image = conv1(h.shape[-1], name="conv", dtype=self.dtype)(pyramid)
        return pyramid, image + h if self.combine == "sum" else jnp.concatenate([image, h], axis=-1)


class InputResidual(nn.Module):
    """'residual': the image is downsampled by learned convolutions and added to h.

    Attributes:
      skip_rescale: divide the sum by sqrt(2).
      taps: filter of the downsampling; None for plain.
      dtype: compute type.
    """

    skip_rescale: bool
    taps: Taps
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pyramid: jax.Array, h: jax.Array) -> Level:
        """Maps the image (B, *2S, C) and h (B, *S, F) to their sum (B, *S, F), twice."""
        pyramid = ConvDownsample(h.shape[-1], self.taps, self.dtype, name="down")(pyramid)
        h = residual_sum(pyramid, h, self.skip_rescale)
        return h, h


class OutputSkip(nn.Module):
    """'output_skip': each level adds an image to the upsampled sum of the levels below; the sum is the output.

    Attributes:
      out_channels: channels of the image.
      init_scale: variance scale of the convolution to an image.
      taps: filter of the upsampling; None for plain.
      dtype: compute type; the images are float32.
      norm: of the group normalization.
    """

    out_channels: int
    init_scale: float
    taps: Taps
    dtype: DTypeLike
    norm: Norm = Norm()

    @nn.compact
    def __call__(self, pyramid: jax.Array | None, h: jax.Array) -> Level:
        """Maps the sum (B, *S/2, out_channels), None at the deepest level, and h (B, *S, F) to the next."""
        image = OutputHead(self.out_channels, self.init_scale, self.dtype, self.norm, name="head")(h)
        return image if pyramid is None else upsample(pyramid, self.taps) + image, h


class OutputResidual(nn.Module):
    """'residual': features are upsampled by learned convolutions and added to h.

    Attributes:
      skip_rescale: divide the sum by sqrt(2).
      taps: filter of the upsampling; None for plain.
      dtype: compute type.
      norm: of the group normalization.
    """

    skip_rescale: bool
    taps: Taps
    dtype: DTypeLike
    norm: Norm = Norm()

    @nn.compact
    def __call__(self, pyramid: jax.Array | None, h: jax.Array) -> Level:
        """Maps features (B, *S/2, E), None at the deepest level, and h (B, *S, F) to (B, *S, F), twice."""
        if pyramid is None:
            features = nn.silu(group_norm(h.shape[-1], self.norm, name="norm", dtype=self.dtype)(h))
            return conv3(h.shape[-1], name="conv", dtype=self.dtype)(features), h
        pyramid = ConvUpsample(h.shape[-1], self.taps, self.dtype, name="up")(pyramid)
        h = residual_sum(pyramid, h, self.skip_rescale)
        return h, h
