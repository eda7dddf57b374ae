"""The parameters of diffusers' `UNet2DModel` by name: which of ours each is, and the maps between the two.

The order of the time features, cosines first, is an order of a matrix's rows; a convolution of one pixel is a matrix
here.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hold_jax.convert.layers import layers
from hold_jax.errors import UserError
from hold_jax.nn import NCSNpp
from hold_jax.weights.match import Rule

_NAMES = {
    "embedding/fourier": "time_proj",
    "embedding/dense0": "time_embedding.linear_1",
    "embedding/dense1": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "head/norm": "conv_norm_out",
    "head/conv": "conv_out",
    "up0_pyramid/head/norm": "conv_norm_out",
    "up0_pyramid/head/conv": "conv_out",
    "mid_block0": "mid_block.resnets.0",
    "mid_block1": "mid_block.resnets.1",
    "mid_attention": "mid_block.attentions.0",
}
# Our names at a level -> theirs; {mirror} counts from the deepest level.
_LEVEL_NAMES = {
    r"down(\d+)_block(\d+)": "down_blocks.{level}.resnets.{index}",
    r"down(\d+)_attention(\d+)": "down_blocks.{level}.attentions.{index}",
    r"down(\d+)_resample": "down_blocks.{level}.{down}",
    r"down(\d+)_pyramid": "down_blocks.{level}.skip_conv",
    r"up(\d+)_block(\d+)": "up_blocks.{mirror}.resnets.{index}",
    r"up(\d+)_attention(\d*)": "up_blocks.{mirror}.attentions.{index}",
    r"up(\d+)_resample": "up_blocks.{mirror}.{up}",
    r"up(\d+)_pyramid/head/norm": "up_blocks.{mirror}.skip_norm",
    r"up(\d+)_pyramid/head/conv": "up_blocks.{mirror}.skip_conv",
}
_BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "time": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "shortcut": "conv_shortcut",
}
_INNER = {
    "ResBlockDDPM": _BLOCK,
    "ResBlockBigGAN": _BLOCK,
    "SelfAttention": {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
    "ConvUpsample": {"conv": "conv"},
    "ConvDownsample": {"conv": "conv"},
}
_PARAMETERS = {"kernel": "weight", "scale": "weight", "bias": "bias", "frequencies": "weight"}
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
# Names of diffusers before 0.12 (2023), which its published files keep.
_OLD_NAMES = {
    r"\.query\.(\w+)$": r".to_q.\1",
    r"\.key\.(\w+)$": r".to_k.\1",
    r"\.value\.(\w+)$": r".to_v.\1",
    r"\.proj_attn\.(\w+)$": r".to_out.0.\1",
    r"^time_proj\.W$": "time_proj.weight",
}


class _Entry(NamedTuple):
    """One parameter: its path here, its name and shape there, and the maps from theirs to ours and back."""

    path: str
    name: str
    shape: tuple[int, ...]
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]

    @property
    def rule(self) -> Rule:
        return Rule({self.name: self.shape}, lambda w: {self.path: self.to_ours(w)})


def entries(network: NCSNpp, inputs: tuple[int, ...], *, cosines_first: bool) -> list[_Entry]:
    """The network's parameters with their names in the state dict of a `UNet2DModel`.

    Args:
      network: the NCSN++.
      inputs: (H, W, C) of what it sees.
      cosines_first: whether their features of the time begin with the cosines (`flip_sin_to_cos`).
    """
    found = []
    for layer in layers(network, inputs):
        owner = _name(layer.owner_path, network)
        inner = f".{_INNER[layer.owner][layer.name]}" if layer.owner in _INNER else ""
        for ours, shape in layer.shapes.items():
            theirs, path = f"{owner}{inner}.{_PARAMETERS[ours]}", f"{layer.path}/{ours}"
            if layer.path == "embedding/dense0" and ours == "kernel" and cosines_first:
                found.append(_flipped(theirs, path, shape))
            elif layer.name == "shortcut" and len(shape) == 2:
                found.append(_pointwise(theirs, path, shape))
            else:
                found.append(_transposed(theirs, path, shape))
    return found


def _transposed(theirs: str, path: str, shape: tuple[int, ...]) -> _Entry:
    axes = _AXES[len(shape)]
    back = np.argsort(axes)
    return _Entry(path, theirs, tuple(shape[i] for i in back), lambda w: w.transpose(axes), lambda w: w.transpose(back))


def _flipped(theirs: str, path: str, shape: tuple[int, ...]) -> _Entry:
    half = shape[0] // 2
    return _Entry(path, theirs, shape[::-1], lambda w: np.roll(w.T, half, axis=0), lambda w: np.roll(w, half, axis=0).T)


def _pointwise(theirs: str, path: str, shape: tuple[int, ...]) -> _Entry:
    """A convolution of one pixel that is a matrix here."""
    return _Entry(path, theirs, (*shape[::-1], 1, 1), lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])


def _name(path: str, network: NCSNpp) -> str:
    """Their name of our block or layer at `path`."""
    if path in _NAMES:
        return _NAMES[path]
    biggan = network.resblock_type == "biggan"
    for pattern, name in _LEVEL_NAMES.items():
        match = re.fullmatch(pattern, path)
        if match is None:
            continue
        level = int(match[1])
        return name.format(
            level=level,
            mirror=len(network.channel_multipliers) - 1 - level,
            index=match[2] or 0 if match.re.groups > 1 else None,
            down="resnet_down" if biggan else "downsamplers.0",
            up="resnet_up" if biggan else "upsamplers.0",
        )
    raise UserError(f"`model` has {path}, which no UNet2DModel has; take the config that its folder gives")


def modern(name: str) -> str:
    """The name since 0.12 of a parameter of any version."""
    for old, new in _OLD_NAMES.items():
        name = re.sub(old, new, name)
    return name
