"""Unconditional pictures of diffusers' `UNet2DModel`: a pipeline's folder as our config and our NCSN++'s parameters.

DDPM's U-Net (2006.11239) with its discrete times, and score_sde's NCSN++ (2011.13456): a `UNet2DModel` with a scheduler
of betas, or with `ScoreSdeVeScheduler`. Attention, normalization, padding and embedding differ from score_sde's code by
options of `nn.NCSNpp`; the names of the parameters are in `diffusers_parameters`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from hold_jax.app import config as base
from hold_jax.convert.diffusers_parameters import entries, modern
from hold_jax.convert.score_sde import Weights, is_state_dict
from hold_jax.errors import UserError
from hold_jax.nn import NCSNpp
from hold_jax.noise_conditioning import betas
from hold_jax.weights import state_file
from hold_jax.weights.match import convert, renamed

_SCHEDULER_FILES = ("scheduler/scheduler_config.json", "scheduler_config.json")
_INDEX, _COMPONENTS = "model_index.json", ("unet", "scheduler")
WEIGHTS = "diffusion_pytorch_model"
# Endings of the weights, the first that there is: one file, an index of several, the same of a variant such as fp16.
_ENDINGS = (
    ".safetensors",
    ".bin",
    ".safetensors.index.json",
    ".bin.index.json",
    ".safetensors.index.*.json",
    ".bin.index.*.json",
    ".*.safetensors",
    ".*.bin",
)
# Keys of unet/config.json -> what diffusers takes where they are missing.
_UNET = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_FIXED = {
    "mid_block_type": ("UNetMidBlock2D",),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "attn_norm_num_groups": (None,),
    "resnet_time_scale_shift": ("default",),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "time_embedding_type": ("positional", "fourier"),
    "downsample_padding": (0, 1),
    "freq_shift": (0, 1),
    "flip_sin_to_cos": (True, False),
    "center_input_sample": (True, False),
}
# Settings with the range of a key of ours.
_UNET_KEYS = {"norm_eps": "model.norm_eps", "dropout": "model.dropout"}
_SCHEDULER_KEYS = {
    "beta_start": "model.beta_start",
    "beta_end": "model.beta_end",
    "beta_schedule": "model.beta_schedule",
    "num_train_timesteps": "model.num_times",
}
# What a scheduler means for a network; the rest of its file is about sampling.
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
_HEUN = {"beta_start": 0.00085, "beta_end": 0.012}
_SIGMAS = {"sigma_min": 0.01, "sigma_max": 1348.0}
_VE = "ScoreSdeVeScheduler"
_BETAS = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
)
PREDICTIONS = {"epsilon": "vp", "v_prediction": "v", "sample": "x0"}
_SQRT_TWO = math.sqrt(2)


class _Folder(NamedTuple):
    """The two files of settings, checked, and the file of weights; `where` is what errors call the network's."""

    unet: dict[str, Any]
    scheduler: dict[str, Any]
    weights: Path
    where: str


def is_pipeline(folder: Path) -> bool:
    """Whether a folder has the settings of a scheduler of diffusers, or weights of diffusers."""
    return _has_scheduler(folder) or any(folder.glob(f"{WEIGHTS}*"))


def _has_scheduler(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SCHEDULER_FILES)


def config(folder: Path, argument: str = "input") -> ml_collections.ConfigDict:
    """The experiment that a folder's json files describe; its process is of order one.

    Args:
      folder: of the pipeline, or of the network.
      argument: what errors call it.

    Raises:
      UserError: if a file is missing or damaged, or the network is not one of those that are read.
    """
    found = _open(folder, argument)
    unet, scheduler = found.unet, found.scheduler
    c: Any = base.get_config()
    c.unlock()
    c.sde.order = 1
    c.data.image_size, c.data.channels = unet["sample_size"], unet["in_channels"]
    c.model.update(_network(unet, found.where))
    _require_divisors(unet, c.model, found.where)
    if scheduler["_class_name"] == _VE:
        c.model.update(
            parameterization="ve",
            conditioning="ve_noise",
            noise_min=2.0 * scheduler["sigma_min"],  # theirs is the noise of pictures in [0, 1], half of ours
            unit_input=not unet["center_input_sample"],
        )
    else:
        c.model.update(
            parameterization=PREDICTIONS[scheduler["prediction_type"]],
            conditioning="discrete_time",
            beta_schedule=scheduler["beta_schedule"],
            beta_start=float(scheduler["beta_start"]),
            beta_end=float(scheduler["beta_end"]),
            num_times=scheduler["num_train_timesteps"],
        )
    if unet["sample_size"] > 64:
        # `sde.hold` says why. Beyond the greatest noise of its training a network knows nothing.
        c.sde.sigma_max = max(80.0, min(_greatest_noise(scheduler), 80.0 * unet["sample_size"] / 64))
    c.training.report = False
    return c.lock()


def _greatest_noise(scheduler: dict[str, Any]) -> float:
    """The greatest noise that the network was trained with, in units of pictures in [-1, 1]."""
    if scheduler["_class_name"] == _VE:
        return 2.0 * scheduler["sigma_max"]
    keys = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
    signal = np.prod(1 - betas(*(scheduler[key] for key in keys)))
    return math.sqrt(1 / signal - 1)


def read(folder: Path, network: NCSNpp, inputs: tuple[int, ...], where: str) -> Weights:
    """The weights of a folder, of its first file of `_ENDINGS`.

    Args:
      folder: of the pipeline, or of the network.
      network: what it must fit, as `config` says.
      inputs: (H, W, C) of what the network sees.
      where: what errors call the folder.
    """
    found = _open(folder)
    path = found.weights
    state = _of_index(path, where) if path.suffix == ".json" else _state_dict(path, where)
    flipped = found.unet["flip_sin_to_cos"] and found.unet["time_embedding_type"] == "positional"
    rules = [entry.rule for entry in entries(network, inputs, cosines_first=flipped)]
    whose, side, own = "the network of its config.json", max(inputs[:2]), tuple(network.attention_resolutions)
    attended = _attended(found.unet, side)
    if own != attended:
        whose += f", which needs `model.attention_resolutions` {attended} for pictures of {side} pixels, not {own}"
    params = convert(rules, renamed(state, modern, where), where, whose)
    return Weights(params, 0, f"the weights of {path.name}")


def _state_dict(path: Path, where: str) -> dict[str, np.ndarray]:
    state = state_file.read(path)
    if not is_state_dict(state):
        raise UserError(f"{where}; its {path.name} is no state dict: it must be a dict of tensors by name")
    return state


def _of_index(path: Path, where: str) -> dict[str, np.ndarray]:
    """The state dict in the files beside an index, whose `weight_map` has the file of every tensor."""
    found = _json(path, where).get("weight_map")
    index = found if isinstance(found, dict) else {}
    if not index or not all(isinstance(name, str) and name == Path(name).name for name in index.values()):
        raise UserError(f"{where}; its {path.name} has no weight_map: it must have a file beside it for every tensor")
    shards = {name: _state_dict(path.parent / name, where) for name in dict.fromkeys(index.values())}
    if sorted(index.items()) != sorted((tensor, name) for name, shard in shards.items() for tensor in shard):
        raise UserError(f"{where}; the files of its {path.name} hold other tensors than its weight_map has")
    return {tensor: shards[name][tensor] for tensor, name in index.items()}


def network_options(given: dict[str, Any], where: str = "unet/config.json") -> dict[str, Any]:
    """The options of our NCSN++ that is a `UNet2DModel` of these settings; those left out are diffusers' defaults.

    Raises:
      UserError: if it is not one that is read; `where` begins the message.
    """
    return _network(_checked_unet(given, where), where)


def _network(unet: dict[str, Any], where: str) -> dict[str, Any]:
    widths, down = unet["block_out_channels"], unet["down_block_types"]
    skip = any("Skip" in name for name in down)
    kinds = ("SkipDownBlock2D", "SkipUpBlock2D") if skip else ("DownBlock2D", "UpBlock2D")
    attended = [name.startswith("Attn") for name in down]
    for key, kind, order in (("down_block_types", kinds[0], 1), ("up_block_types", kinds[1], -1)):
        wanted = [f"Attn{kind}" if here else kind for here in attended[::order]]
        _require(
            unet[key] == wanted, where, key, unet[key], f"{wanted}, blocks of one kind, the way up as the way down"
        )
    multiples = len(widths) == len(down) and all(width % widths[0] == 0 for width in widths)
    _require(multiples, where, "block_out_channels", widths, f"{len(down)} multiples of the first")
    embedded = unet["time_embedding_dim"]
    _require(embedded in (None, 4 * widths[0]), where, "time_embedding_dim", embedded, f"{4 * widths[0]}")
    scale = _SQRT_TWO if skip else 1.0
    factor = unet["mid_block_scale_factor"]
    _require(math.isclose(factor, scale, rel_tol=1e-6), where, "mid_block_scale_factor", factor, f"{scale:.6g}")
    groups = unet["norm_num_groups"]
    if skip:
        # Their blocks count groups by the width; the middle, the end and attention by these settings.
        same = all(min(width // 4, 32) == (groups or min(width // 4, 32)) for width in (widths[0], widths[-1]))
        of_attention = [width for width, here in zip(widths, attended, strict=True) if here]
        same = same and all(width >= 128 for width in of_attention)
        _require(same, where, "norm_num_groups", groups, "None, with attention of 128 channels or more")
        groups = None
    else:
        _require(groups is not None, where, "norm_num_groups", groups, "a whole number from 1 for these blocks")
    half = widths[0] // 2
    fourier = unet["time_embedding_type"] == "fourier"
    model: dict[str, Any] = {
        "channels": widths[0],
        "channel_multipliers": tuple(width // widths[0] for width in widths),
        "num_res_blocks": unet["layers_per_block"],
        "attention_resolutions": _attended(unet, unet["sample_size"]),
        "attention_up": "last" if skip else "every",
        "norm_eps": float(unet["norm_eps"]),
        "dropout": float(unet["dropout"]),
        "resblock_type": "biggan" if skip else "ddpm",
        "fir": skip,
        "skip_rescale": skip,
        "progressive": "output_skip" if skip else "none",
        "progressive_input": "input_skip" if skip else "none",
        "embedding": "fourier" if fourier else "positional",
    }
    if unet["attention_head_dim"] is not None:
        model["attention_head_dim"] = unet["attention_head_dim"]
    if groups is not None:
        model["norm_groups"] = groups
    if not skip:
        model["downsample_padding"] = "around" if unet["downsample_padding"] else "after"
    if not fourier and unet["freq_shift"] == 0:
        # Frequencies 10000^(-i / half) where freq_shift 1 has 10000^(-i / (half - 1)).
        model["max_period"] = 10_000 ** ((half - 1) / half)
    return model


def _attended(unet: dict[str, Any], size: int) -> tuple[int, ...]:
    """The sides, in pixels, at which pictures of side `size` have attention."""
    return tuple(size >> level for level, name in enumerate(unet["down_block_types"]) if name.startswith("Attn"))


def _open(folder: Path, argument: str = "input") -> _Folder:
    """The folder's files, checked."""
    where = f"`{argument}` is {str(folder)!r}"
    if not folder.is_dir():
        raise UserError(f"{where}; it must be a folder with unet/config.json and scheduler/scheduler_config.json")
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler_path = next((folder / name for name in _SCHEDULER_FILES if (folder / name).is_file()), folder)
    if scheduler_path == folder:
        hint = f": give the pipeline's folder, {str(folder.parent)!r}" if _has_scheduler(folder.parent) else ""
        raise UserError(f"{where}; it has none of {' and '.join(_SCHEDULER_FILES)}{hint}")
    index = _json(folder / _INDEX, where) if (folder / _INDEX).is_file() else {}
    # A component is [library, class], of nulls where an optional one is left out.
    components = {name: of for name, of in index.items() if isinstance(of, list) and not name.startswith("_")}
    named = [name for name, of in components.items() if any(isinstance(word, str) for word in of)]
    others = [name for name in named if name not in _COMPONENTS]
    if others:
        raise UserError(
            f"{where}; its {_INDEX} has {', '.join(others)} beside the network; it must be of a pipeline of pictures "
            f"without conditions, which has {' and '.join(_COMPONENTS)} alone: latents and texts are not read"
        )
    unet, scheduler = (_json(path, where) for path in (inner / "config.json", scheduler_path))
    of_unet = f"{where}; its {(inner / 'config.json').relative_to(folder)}"
    unet = _checked_unet(unet, of_unet)
    scheduler = _checked_scheduler(scheduler, f"{where}; its {scheduler_path.relative_to(folder)}")
    fourier = unet["time_embedding_type"] == "fourier"
    if fourier != (scheduler["_class_name"] == _VE):
        raise UserError(
            f"{where}; time_embedding_type 'fourier' goes with {_VE}, 'positional' with betas; it has "
            f"{unet['time_embedding_type']!r} with {scheduler['_class_name']}"
        )
    # The pipelines of betas have pictures in [-1, 1]; that of VE in [0, 1], which the network centers or not.
    centers = unet["center_input_sample"]
    _require(fourier or not centers, of_unet, "center_input_sample", centers, "False without 'fourier'")
    files = ([path for path in sorted(inner.glob(f"{WEIGHTS}{ending}")) if path.is_file()] for ending in _ENDINGS)
    found = next(filter(None, files), [])
    if not found:
        raise UserError(f"{where}; there is no {inner.relative_to(folder) / WEIGHTS}.safetensors or .bin in it")
    if len(found) > 1:
        raise UserError(f"{where}; it has {', '.join(path.name for path in found)}; keep only the one to be read")
    return _Folder(unet, scheduler, found[0], of_unet)


def _checked_unet(given: dict[str, Any], where: str) -> dict[str, Any]:
    unknown = [key for key in given if key not in _UNET and not key.startswith("_")]
    if unknown or given.get("_class_name", "UNet2DModel") != "UNet2DModel":
        what = f"has {', '.join(unknown)}" if unknown else f"is of {given['_class_name']}"
        raise UserError(f"{where} {what}; it must be of an unconditional UNet2DModel")
    unet = {key: list(value) if isinstance(value, tuple) else value for key, value in {**_UNET, **given}.items()}
    for key, allowed in _FIXED.items():
        _require(unet[key] in allowed, where, key, unet[key], " or ".join(map(repr, allowed)))
    for key in ("sample_size", "in_channels", "layers_per_block"):
        _require(_counts(unet[key]), where, key, unet[key], "a whole number from 1")
    for key in ("attention_head_dim", "norm_num_groups"):
        _require(unet[key] is None or _counts(unet[key]), where, key, unet[key], "None or a whole number from 1")
    factor = unet["mid_block_scale_factor"]
    _require(_is_number(factor), where, "mid_block_scale_factor", factor, "a number")
    _require_in_range(unet, _UNET_KEYS, where)
    for key, kind in (("block_out_channels", int), ("down_block_types", str), ("up_block_types", str)):
        right = isinstance(unet[key], list) and unet[key] and all(type(value) is kind for value in unet[key])
        _require(bool(right), where, key, unet[key], f"a list of {kind.__name__}")
    wide = min(unet["block_out_channels"]) >= 4
    _require(wide, where, "block_out_channels", unet["block_out_channels"], "widths from 4")
    _require(unet["out_channels"] == unet["in_channels"], where, "out_channels", unet["out_channels"], "in_channels")
    return unet


def _checked_scheduler(given: dict[str, Any], where: str) -> dict[str, Any]:
    name = given.get("_class_name")
    _require(name in (_VE, *_BETAS), where, "_class_name", name, f"one of {', '.join((_VE, *_BETAS))}")
    if name == _VE:
        found = {key: given.get(key, value) for key, value in _SIGMAS.items()}
        for key, sigma in found.items():
            _require(_is_number(sigma) and sigma > 0, where, key, sigma, "a positive number")
        return {"_class_name": name, **found}
    defaults = _SCHEDULER | (_HEUN if name == "HeunDiscreteScheduler" else {})
    found = {key: given.get(key, value) for key, value in defaults.items()}
    times = given.get("timestep_type", "discrete")
    _require(times == "discrete", where, "timestep_type", times, "'discrete'")
    _require_in_range(found, _SCHEDULER_KEYS, where)
    flow, prediction = given.get("use_flow_sigmas"), found["prediction_type"]
    _require(not flow, where, "use_flow_sigmas", flow, "False")
    of_noise = given.get("predict_epsilon", True)  # of early versions
    _require(of_noise is True, where, "predict_epsilon", of_noise, "True, or left out and prediction_type set")
    known = isinstance(prediction, str) and prediction in PREDICTIONS
    _require(known, where, "prediction_type", prediction, " or ".join(map(repr, PREDICTIONS)))
    _require(found["trained_betas"] is None, where, "trained_betas", found["trained_betas"], "None")
    _require(not found["rescale_betas_zero_snr"], where, "rescale_betas_zero_snr", True, "False")
    return {"_class_name": name, **found}


def _require_in_range(settings: dict[str, Any], keys: Mapping[str, str], where: str) -> None:
    """Checks settings by our keys, which `keys` has by their names."""
    for key, ours in keys.items():
        _require(base.KEYS[ours].accepts(settings[key]), where, key, settings[key], base.KEYS[ours].allowed)


def _require_divisors(unet: dict[str, Any], model: Any, where: str) -> None:
    """Checks the groups and the heads of `model`, the options of our network, against the widths."""
    widths, groups, head = unet["block_out_channels"], model.norm_groups, model.attention_head_dim
    _require(not groups or widths[0] % groups == 0, where, "norm_num_groups", groups, f"a divisor of {widths[0]}")
    seen = [width for width, name in zip(widths, unet["down_block_types"], strict=True) if name.startswith("Attn")]
    seen = sorted({*seen, widths[-1]})
    fits = not head or all(width % head == 0 for width in seen)
    _require(fits, where, "attention_head_dim", head, f"a divisor of {' and '.join(map(str, seen))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e30


def _counts(value: Any) -> bool:
    return type(value) is int and value >= 1


def _require(condition: bool, where: str, key: str, value: Any, allowed: str) -> None:
    if not condition:
        raise UserError(f"{where}: {key} is {value!r}; it must be {allowed}")


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{where}; its {path.name} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}; its {path.name} is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}; its {path.name} is no JSON object")
    return value
