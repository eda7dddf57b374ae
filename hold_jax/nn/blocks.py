"""Residual blocks of NCSN++ and DDPM++ (arXiv:2011.13456, section 4.1 and appendix H)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hold_jax.nn.layers import (
    Norm,
    add_broadcast,
    conv1,
    conv3,
    dense,
    group_norm,
    nin,
    residual_sum,
    scale_and_shift,
)
from hold_jax.nn.resample import Taps, downsample, upsample


class ResBlockDDPM(nn.Module):
    """DDPM's residual block: norm, SiLU, conv, + time, norm, SiLU, dropout, conv (arXiv:2006.11239, appendix B).

    Attributes:
      features: channels of the output.
      dropout: probability to drop an activation in training.
      skip_rescale: divide the residual sum by sqrt(2).
      init_scale: variance scale of the last convolution.
      dtype: compute type.
      norm: of the group normalizations.
      scale_shift: the embedding scales and shifts the second normalization's output (arXiv:2105.05233, section 3.1);
        False: it shifts its input.
    """

    features: int
    dropout: float
    skip_rescale: bool
    init_scale: float
    dtype: DTypeLike
    norm: Norm = Norm()
    scale_shift: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None, train: bool) -> jax.Array:
        """Maps (B, *S, C), and the embedding (B, E) or None, to (B, *S, features)."""
        h = nn.silu(group_norm(x.shape[-1], self.norm, name="norm0", dtype=self.dtype)(x))
        h = _conv_time_conv(self, h, temb, train)
        if x.shape[-1] != self.features:
            x = nin(self.features, name="shortcut", dtype=self.dtype)(x)
        return residual_sum(x, h, self.skip_rescale)


class ResBlockBigGAN(ResBlockDDPM):
    """BigGAN's residual block: that of DDPM with resampling inside (arXiv:1809.11096, appendix B).

    Attributes:
      taps: filter of the resampling; None: nearest neighbor up, mean of neighbors down.
      resample: 'up', 'down' or None.
      resample_shortcut: whether a block that resamples has a convolution in the shortcut though its channels stay.
    """

    taps: Taps = None
    resample: Literal["up", "down"] | None = None
    resample_shortcut: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None, train: bool) -> jax.Array:
        """Maps (B, *S, C), and the embedding (B, E) or None, to (B, *S', features)."""
        h = nn.silu(group_norm(x.shape[-1], self.norm, name="norm0", dtype=self.dtype)(x))
        if self.resample is not None:
            change = {"up": upsample, "down": downsample}[self.resample]
            h, x = change(h, self.taps), change(x, self.taps)
        h = _conv_time_conv(self, h, temb, train)
        if x.shape[-1] != self.features or (self.resample is not None and self.resample_shortcut):
            x = conv1(self.features, name="shortcut", dtype=self.dtype)(x)
        return residual_sum(x, h, self.skip_rescale)


def _conv_time_conv(block: ResBlockDDPM, h: jax.Array, temb: jax.Array | None, train: bool) -> jax.Array:
    """The part common to both blocks; its layers belong to `block`, whose compact call includes this function."""
    dtype, features = block.dtype, block.features
    h = conv3(features, name="conv0", dtype=dtype)(h)
    norm = group_norm(features, block.norm, name="norm1", dtype=dtype)
    if temb is None:
        h = norm(h)
    else:
        # Always float32, see `add_broadcast`: this is one product per example, not per pixel.
        change = dense(features * (2 if block.scale_shift else 1), name="time", dtype=jnp.float32)(nn.silu(temb))
        change = jnp.expand_dims(change, range(1, h.ndim - 1))
        if block.scale_shift:
            h = scale_and_shift(norm(h), *jnp.split(change, 2, axis=-1))
        else:
            h = norm(add_broadcast(h, change))
    h = nn.silu(h)
    h = nn.Dropout(block.dropout)(h, deterministic=not train)
    return conv3(features, name="conv1", dtype=dtype, init_scale=block.init_scale)(h)
