"""Residual blocks of NCSN++ and DDPM++ (arXiv:2011.13456, section 4.1 and appendix H)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hold_jax.nn.layers import Norm, add_broadcast, conv1, conv3, dense, group_norm, nin, residual_sum
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
    """

    features: int
    dropout: float
    skip_rescale: bool
    init_scale: float
    dtype: DTypeLike
    norm: Norm = Norm()

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None, train: bool) -> jax.Array:
        """Maps (B, *S, C), and the embedding (B, E) or None, to (B, *S, features)."""
        h = nn.silu(group_norm(x.shape[-1], self.norm, name="norm0", dtype=self.dtype)(x))
        h = _conv_time_conv(self, h, temb, train)
        if x.shape[-1] != self.features:
            x = nin(self.features, name="shortcut", dtype=self.dtype)(x)
        return residual_sum(x, h, self.skip_rescale)


class ResBlockBigGAN(nn.Module):
    """BigGAN's residual block: that of DDPM with resampling inside (arXiv:1809.11096, appendix B).

    Attributes:
      features, dropout, skip_rescale, init_scale, dtype, norm: as in `ResBlockDDPM`.
      taps: filter of the resampling; None: nearest neighbor up, mean of neighbors down.
      resample: 'up', 'down' or None.
    """

    features: int
    dropout: float
    skip_rescale: bool
    init_scale: float
    dtype: DTypeLike
    norm: Norm = Norm()
    taps: Taps = None
    resample: Literal["up", "down"] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None, train: bool) -> jax.Array:
        """Maps (B, *S, C), and the embedding (B, E) or None, to (B, *S', features)."""
        h = nn.silu(group_norm(x.shape[-1], self.norm, name="norm0", dtype=self.dtype)(x))
        if self.resample is not None:
            change = {"up": upsample, "down": downsample}[self.resample]
            h, x = change(h, self.taps), change(x, self.taps)
        h = _conv_time_conv(self, h, temb, train)
        if x.shape[-1] != self.features or self.resample is not None:
            x = conv1(self.features, name="shortcut", dtype=self.dtype)(x)
        return residual_sum(x, h, self.skip_rescale)


def _conv_time_conv(
    block: ResBlockDDPM | ResBlockBigGAN, h: jax.Array, temb: jax.Array | None, train: bool
) -> jax.Array:
    """The part common to both blocks; its layers belong to `block`, whose compact call includes this function."""
    dtype, features = block.dtype, block.features
    h = conv3(features, name="conv0", dtype=dtype)(h)
    if temb is not None:
        # Always float32, see `add_broadcast`: this is one product per example, not per pixel.
        shift = dense(features, name="time", dtype=jnp.float32)(nn.silu(temb))
        h = add_broadcast(h, jnp.expand_dims(shift, range(1, h.ndim - 1)))
    h = nn.silu(group_norm(features, block.norm, name="norm1", dtype=dtype)(h))
    h = nn.Dropout(block.dropout)(h, deterministic=not train)
    return conv3(features, name="conv1", dtype=dtype, init_scale=block.init_scale)(h)
