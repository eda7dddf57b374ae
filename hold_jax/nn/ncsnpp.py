"""NCSN++ and DDPM++: the U-Nets of score_sde (arXiv:2011.13456, section 4.1 and appendix H) and of CLD and HOLD."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hold_jax.condition import Condition
from hold_jax.errors import require, require_choice
from hold_jax.nn.blocks import ResBlockBigGAN, ResBlockDDPM
from hold_jax.nn.embeddings import EMBEDDINGS, LABEL_PLACES, ConditionEmbedding, EmbeddingKind, LabelPlace
from hold_jax.nn.layers import Norm, OutputHead, SelfAttention, conv3
from hold_jax.nn.pyramids import InputResidual, InputSkip, OutputResidual, OutputSkip
from hold_jax.nn.resample import ConvDownsample, ConvUpsample, Taps, downsample, upsample


def check_sides(sides: Sequence[int], num_levels: int) -> None:
    """Checks that the sides of a picture, or the length of a signal, can be halved `num_levels` - 1 times.

    Args:
      sides: (height, width) or (length,).
      num_levels: number of resolutions of the network, `len(channel_multipliers)`.

    Raises:
      UserError: if one cannot; the message contains the nearest valid sizes.
    """
    factor = 2 ** (num_levels - 1)
    for argument, size in zip(("height", "width") if len(sides) == 2 else ("length",), sides, strict=True):
        below, above = size // factor * factor, -(-size // factor) * factor
        nearest = f"{below} or {above}" if below > 0 else f"{max(above, factor)}"
        require(
            size > 0 and size % factor == 0,
            argument,
            size,
            f"a multiple of {factor} = 2**(num_levels - 1) for the {num_levels} levels of `channel_multipliers`; give "
            f"fewer levels, or another size, nearest: {nearest}",
        )


class NCSNpp(nn.Module):
    """The U-Net of score_sde with all options of its `ncsnpp`; the defaults are CLD's network for CIFAR-10.

    For signals the same blocks have convolutions, resampling and attention along their one axis.

    With `label_place` 'features' it is EDM's `SongUNet` (arXiv:2206.00364). With `resblock_type` 'ddpm' and
    `attention_up` 'every' it is the network of DDPM (arXiv:2006.11239) as implemented in diffusers. With `attention_up`
    'every', `scale_shift` and without `resample_shortcut` it is ADM (arXiv:2105.05233) as EDM has it.

    The network does not scale its input or output: this is the task of the preconditioning. Parameters are float32.
    The first and last convolutions and the embedding always compute in float32: in a bfloat16 image the noise would be
    lost at low noise levels. Training in float16 is not supported: gradients below 6e-8 would be zero.

    Attributes:
      out_channels: channels of the output.
      channels: width of the first level.
      channel_multipliers: width of each level divided by `channels`; its length is the number of levels.
      num_res_blocks: residual blocks per level on the way down; one more on the way up.
      attention_resolutions: levels whose longer side is one of these have self-attention.
      attention_up: place of the attention in such a level on the way up: after its 'last' or after 'every' block.
      attention_head_dim: channels of an attention head; None: one head of all channels.
      norm_groups: groups of every group normalization; None: min(channels // 4, 32).
      norm_eps: constant that group normalizations add to the variance.
      dropout: probability to drop an activation in a residual block in training.
      resblock_type: 'biggan' (resolution changes inside a residual block) or 'ddpm' (between blocks).
      scale_shift: the embedding scales and shifts the output of a block's second normalization; False: it is added to
        its input.
      resample_shortcut: whether 'biggan' has a convolution in the shortcut of a block that resamples.
      resample_with_conv: whether 'ddpm' resamples with a learned convolution; 'biggan' ignores it.
      downsample_padding: zeros of 'ddpm's strided convolution: 'after' the last pixels, or 'around' the picture.
      fir: resample with `fir_kernel`; False: nearest neighbor up and mean of neighbors (or strided convolution) down.
      fir_kernel: separable filter, normalized to sum 1, at least 2 taps.
      skip_rescale: divide every residual sum by sqrt(2).
      init_scale: variance scale of each residual branch's last layer and of the output layer; 0 stands for 1e-10.
      progressive: output pyramid: 'none', 'output_skip' (sum of images) or 'residual' (sum of features).
      progressive_input: input pyramid: 'none', 'input_skip' or 'residual'.
      progressive_combine: how 'input_skip' is combined with the features: 'sum' or 'cat' (concatenation).
      embedding: of the noise level: 'fourier' (random frequencies, for log sigma) or 'positional' (for 999 t).
      fourier_scale: standard deviation of the random frequencies, in cycles per unit of `noise_cond`.
      max_period: longest period of the positional embedding divided by 2 pi, in units of `noise_cond`.
      conditional: whether the network sees the noise level; if False `noise_cond` is ignored.
      num_classes: number of classes; label `num_classes` is the null class of classifier-free guidance; 0: no labels.
      label_place: where the vector of the class is added: 'embedding', after the dense layers of the noise level, or
        'features', before them (EDM).
      augment_labels: number of labels of the augmentation (`data.augment`) that it takes; 0: none.
      unit_input: True for a network trained on pictures in [0, 1]: its input is then (x + 1) / 2.
      dtype: compute type, jnp.float32, jnp.bfloat16 or, not for training, jnp.float16.
      remat: recompute residual blocks in the backward pass, which saves memory and takes about a third more time.
    """

    out_channels: int
    channels: int = 128
    channel_multipliers: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 8
    attention_resolutions: Sequence[int] = (16,)
    attention_up: Literal["last", "every"] = "last"
    attention_head_dim: int | None = None
    norm_groups: int | None = None
    norm_eps: float = 1e-6
    dropout: float = 0.1
    resblock_type: Literal["biggan", "ddpm"] = "biggan"
    scale_shift: bool = False
    resample_shortcut: bool = True
    resample_with_conv: bool = True
    downsample_padding: Literal["after", "around"] = "after"
    fir: bool = True
    fir_kernel: Sequence[float] = (1, 3, 3, 1)
    skip_rescale: bool = True
    init_scale: float = 0.0
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    progressive_combine: Literal["sum", "cat"] = "sum"
    embedding: EmbeddingKind = "fourier"
    fourier_scale: float = 16.0
    max_period: float = 10_000.0
    conditional: bool = True
    num_classes: int = 0
    label_place: LabelPlace = "embedding"
    augment_labels: int = 0
    unit_input: bool = False
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        """Raises `UserError` for an option out of range."""
        require_choice("resblock_type", self.resblock_type, ("biggan", "ddpm"))
        require_choice("attention_up", self.attention_up, ("last", "every"))
        require_choice("downsample_padding", self.downsample_padding, ("after", "around"))
        require_choice("progressive", self.progressive, ("none", "output_skip", "residual"))
        require_choice("progressive_input", self.progressive_input, ("none", "input_skip", "residual"))
        require_choice("progressive_combine", self.progressive_combine, ("sum", "cat"))
        require_choice("embedding", self.embedding, EMBEDDINGS)
        require_choice("label_place", self.label_place, LABEL_PLACES)
        with_noise = self.label_place == "embedding" or self.conditional
        require(with_noise, "label_place", self.label_place, "'embedding' where `conditional` is False")
        with_noise = self.augment_labels == 0 or self.conditional
        require(with_noise, "conditional", self.conditional, "True for a network that takes labels of the augmentation")
        require(len(self.channel_multipliers) > 0, "channel_multipliers", self.channel_multipliers, "not empty")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        require(self.num_classes >= 0, "num_classes", self.num_classes, "0 or more")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, noise_cond: jax.Array, condition: Condition | None = None, train: bool = False
    ) -> jax.Array:
        """Maps a picture or a signal and its noise level to one of `out_channels` channels.

        Args:
          x: (B, *S, C) float32, S = (H, W) or (length,), any C; the sides divisible by 2**(levels - 1).
          noise_cond: (B,) float32, the conditioning scalar as embedded: log(sigma) / 4, 999 t or the like.
          condition: in the network's range, `label` (B,) int32, 0 to `num_classes`, and `vector` (B, k) float32 as in
            `ConditionEmbedding`, `picture` (B, H, W, C') float32, concatenated to x, and `augmentation`
            (B, augment_labels) float32, None: zeros; None: no condition.
          train: whether to use dropout, which needs `rngs={'dropout': key}`.

        Returns:
          (B, *S, out_channels) float32.
        """
        self._check_input(x, noise_cond)
        widths = [self.channels * multiplier for multiplier in self.channel_multipliers]
        deepest = len(widths) - 1
        block, feed, gather = self._res_block(), self._input_pyramid(), self._output_pyramid()

        temb = ConditionEmbedding(
            4 * self.channels,
            self.channels,
            self.embedding,
            self.fourier_scale,
            self.conditional,
            self.num_classes,
            self.label_place,
            self.max_period,
            self.augment_labels,
            name="embedding",
        )(noise_cond, condition)

        def res_block(h: jax.Array, features: int, name: str, **change: str) -> jax.Array:
            return block(features, name=name, **change)(h, temb, train)

        def attention(h: jax.Array, name: str) -> jax.Array:
            head_dim, norm = self.attention_head_dim, self._norm
            return SelfAttention(self.skip_rescale, self.init_scale, self.dtype, head_dim, norm, name=name)(h)

        def attention_if_listed(h: jax.Array, name: str) -> jax.Array:
            return attention(h, name) if max(h.shape[1:-1]) in self.attention_resolutions else h

        def resample(h: jax.Array, change: Literal["up", "down"], name: str) -> jax.Array:
            if self.resblock_type == "biggan":
                return res_block(h, h.shape[-1], name, resample=change)
            if self.resample_with_conv:
                padding = {"up": {}, "down": {"padding": self.downsample_padding}}[change]
                layer = {"up": ConvUpsample, "down": ConvDownsample}[change]
                return layer(h.shape[-1], self._taps, self.dtype, name=name, **padding)(h)
            return {"up": upsample, "down": downsample}[change](h, self._taps)

        x = (x + 1) / 2 if self.unit_input else x
        if condition is not None and condition.picture is not None:
            x = jnp.concatenate([x, condition.picture], axis=-1)
        h = conv3(self.channels, name="conv_in", dtype=jnp.float32)(x)
        h = h.astype(self.dtype)
        skips, pyramid = [h], x
        for level, width in enumerate(widths):
            for i in range(self.num_res_blocks):
                h = res_block(h, width, f"down{level}_block{i}")
                h = attention_if_listed(h, f"down{level}_attention{i}")
                skips.append(h)
            if level < deepest:
                h = resample(h, "down", f"down{level}_resample")
                if feed is not None:
                    pyramid, h = feed(name=f"down{level}_pyramid")(pyramid, h)
                skips.append(h)

        h = res_block(h, h.shape[-1], "mid_block0")
        h = attention(h, "mid_attention")
        h = res_block(h, h.shape[-1], "mid_block1")

        pyramid = None
        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.num_res_blocks + 1):
                h = res_block(jnp.concatenate([h, skips.pop()], axis=-1), width, f"up{level}_block{i}")
                if self.attention_up == "every":
                    h = attention_if_listed(h, f"up{level}_attention{i}")
            if self.attention_up == "last":
                h = attention_if_listed(h, f"up{level}_attention")
            if gather is not None:
                pyramid, h = gather(name=f"up{level}_pyramid")(pyramid, h)
            if level > 0:
                h = resample(h, "up", f"up{level}_resample")

        if pyramid is not None and self.progressive == "output_skip":
            return pyramid
        return OutputHead(self.out_channels, self.init_scale, self.dtype, self._norm, name="head")(h)

    @property
    def _norm(self) -> Norm:
        return Norm(self.norm_groups, self.norm_eps)

    @property
    def _taps(self) -> Taps:
        return tuple(self.fir_kernel) if self.fir else None

    def _res_block(self) -> Callable[..., nn.Module]:
        cls = {"biggan": ResBlockBigGAN, "ddpm": ResBlockDDPM}[self.resblock_type]
        if self.remat:
            cls = nn.remat(cls, static_argnums=(3,))  # `train`, counting `self`
        extra = {"biggan": {"taps": self._taps, "resample_shortcut": self.resample_shortcut}, "ddpm": {}}
        return partial(
            cls,
            dropout=self.dropout,
            skip_rescale=self.skip_rescale,
            init_scale=self.init_scale,
            dtype=self.dtype,
            norm=self._norm,
            scale_shift=self.scale_shift,
            **extra[self.resblock_type],
        )

    def _input_pyramid(self) -> Callable[..., nn.Module] | None:
        return {
            "none": None,
            "input_skip": partial(InputSkip, self.progressive_combine, self._taps, self.dtype),
            "residual": partial(InputResidual, self.skip_rescale, self._taps, self.dtype),
        }[self.progressive_input]

    def _output_pyramid(self) -> Callable[..., nn.Module] | None:
        return {
            "none": None,
            "output_skip": partial(OutputSkip, self.out_channels, self.init_scale, self._taps, self.dtype, self._norm),
            "residual": partial(OutputResidual, self.skip_rescale, self._taps, self.dtype, self._norm),
        }[self.progressive]

    def _check_input(self, x: jax.Array, noise_cond: jax.Array) -> None:
        shapes = "(batch, height, width, channels) or (batch, length, channels)"
        require(x.ndim in (3, 4), "x", x.shape, f"an array of shape {shapes}")
        require(noise_cond.shape == x.shape[:1], "noise_cond", noise_cond.shape, f"an array of shape {x.shape[:1]}")
        check_sides(x.shape[1:-1], len(self.channel_multipliers))
