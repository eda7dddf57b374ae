"""A denoiser of discrete times as the folder of a pipeline of diffusers: what `diffusers.read` reads, written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from hold_jax.app.config import Config
from hold_jax.convert import diffusers
from hold_jax.convert.diffusers_parameters import entries
from hold_jax.errors import UserError, require
from hold_jax.model import Model
from hold_jax.nn import NCSNpp
from hold_jax.weights import safetensors
from hold_jax.weights.files import replacing

_PREDICTIONS = {ours: theirs for theirs, ours in diffusers.PREDICTIONS.items()}
_INDEX = {
    "_class_name": "DDPMPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


def write(params: Mapping[str, Any], model: Model, network: NCSNpp, config: Config, folder: Path) -> int:
    """Writes a folder that `DDPMPipeline.from_pretrained` of diffusers opens.

    Args:
      params: of the network.
      model: of pictures, one block in, conditioned on discrete times.
      network: the model's.
      config: the resolved settings.
      folder: a new folder, or an empty one.

    Returns:
      The number of tensors.

    Raises:
      UserError: if no `UNet2DModel` with a scheduler of betas is this model, or the folder cannot be written.
    """
    c = config.model
    require(c.parameterization in _PREDICTIONS, "model.parameterization", c.parameterization, " or ".join(_PREDICTIONS))
    require(c.conditioning == "discrete_time", "model.conditioning", c.conditioning, "discrete_time")
    height, width, _ = model.data_shape
    require(height == width, "data.image_size", (height, width), "square pictures")
    unet = _unet(network, width)
    _require_same(network, diffusers.network_options(unet))
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": c.num_times,
        "beta_start": c.beta_start,
        "beta_end": c.beta_end,
        "beta_schedule": c.beta_schedule,
        "prediction_type": _PREDICTIONS[c.parameterization],
    }
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    arrays = {
        entry.name: np.ascontiguousarray(entry.to_theirs(np.asarray(flat[entry.path], np.float32)))
        for entry in entries(network, model.input_shape, cosines_first=False)
    }
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(empty, "output", str(folder), "a new folder, or an empty one")
    try:
        for name in ("unet", "scheduler"):
            (folder / name).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"`output` is {str(folder)!r}; it cannot be written: {error.strerror or error}") from None
    _write_json(folder / "model_index.json", _INDEX)
    _write_json(folder / "scheduler/scheduler_config.json", scheduler)
    _write_json(folder / "unet/config.json", {"_class_name": "UNet2DModel", **unet})
    safetensors.write(folder / "unet" / f"{diffusers.WEIGHTS}.safetensors", arrays)
    return len(arrays)


def _unet(network: NCSNpp, size: int) -> dict[str, Any]:
    """unet/config.json of the nearest `UNet2DModel`."""
    widths = [network.channels * multiplier for multiplier in network.channel_multipliers]
    attended = [size >> level in network.attention_resolutions for level in range(len(widths))]
    return {
        "sample_size": size,
        "in_channels": network.out_channels,
        "out_channels": network.out_channels,
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attended],
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in attended[::-1]],
        "block_out_channels": widths,
        "layers_per_block": network.num_res_blocks,
        "attention_head_dim": network.attention_head_dim,
        "norm_num_groups": network.norm_groups or 32,
        "norm_eps": network.norm_eps,
        "dropout": network.dropout,
        "downsample_padding": {"around": 1, "after": 0}[network.downsample_padding],
        "flip_sin_to_cos": False,
        "freq_shift": int(network.max_period == type(network).max_period),
    }


def _require_same(network: NCSNpp, theirs: Mapping[str, Any]) -> None:
    """Raises `UserError` naming an option that a `UNet2DModel` has not."""
    written = NCSNpp(network.out_channels, **theirs)
    free = {"attention_resolutions", "init_scale", "fir_kernel", "fourier_scale", "dtype", "remat", "parent", "name"}
    for key in sorted(set(network.__dataclass_fields__) - free):
        value, allowed = getattr(network, key), getattr(written, key)
        require(value == allowed, f"model.{key}", value, f"{allowed!r} for a network of diffusers")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())
