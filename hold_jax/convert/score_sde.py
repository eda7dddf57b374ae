"""score_sde's networks (2011.13456) and those of CLD, PSLD and gDDIM: their files, and our NCSN++'s parameters in them.

The projects share one network; score_sde's `ddpm`, the network of DDPM (2006.11239), is the same with other options.
PyTorch's code numbers its modules in a list; score_sde's first code, in Flax, counts them by class. EMA weights of
PyTorch's are a list without names, in the order of the trained parameters.
"""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from flax import serialization, traverse_util

from hold_jax.convert.layers import Layer, layers
from hold_jax.errors import UserError, require
from hold_jax.nn import NCSNpp
from hold_jax.runtime import schema
from hold_jax.weights import state_file
from hold_jax.weights.match import Rule, convert, renamed, transposed

_RES_BLOCK = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "time": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}
# Our layer within a block -> theirs. The resampling convolution has a name of its own where a filter is fused with it.
_INNER = {
    "ResBlockBigGAN": {**_RES_BLOCK, "shortcut": "Conv_2"},
    "ResBlockDDPM": {**_RES_BLOCK, "shortcut": "NIN_0"},
    "SelfAttention": {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"},
    "ConvUpsample": {"conv": "Conv_0"},
    "ConvDownsample": {"conv": "Conv_0"},
    "InputSkip": {"conv": "Conv_0"},
}
# Options that all networks of score_sde have.
_FIXED = {
    "attention_up": "last",
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "scale_shift": False,
    "unit_input": False,
    "resample_shortcut": True,
    "downsample_padding": "after",
    "max_period": 10_000.0,
}
_FLAX_CLASSES = {
    "GaussianFourierFeatures": "GaussianFourierProjection",
    "ResBlockBigGAN": "ResnetBlockBigGANpp",
    "ResBlockDDPM": "ResnetBlockDDPMpp",
    "SelfAttention": "AttnBlockpp",
    "ConvUpsample": "Upsample",
    "ConvDownsample": "Downsample",
    "InputSkip": "Combine",
}
# The classes that `ddpm` has in place of `ncsnpp`'s.
_FLAX_DDPM_CLASSES = {**_FLAX_CLASSES, "ResBlockDDPM": "ResnetBlockDDPM", "SelfAttention": "AttnBlock"}
_FUSED = "Conv2d_0"
# Our parameter -> (theirs, the axes of theirs in our order), by the kind of the layer.
_Table = dict[str, tuple[str, tuple[int, ...] | None]]
_TORCH: dict[str, _Table] = {
    "GaussianFourierProjection": {"frequencies": ("W", None)},
    "Dense": {"kernel": ("weight", (1, 0)), "bias": ("bias", None)},
    "Conv": {"kernel": ("weight", (2, 3, 1, 0)), "bias": ("bias", None)},
    "Conv2d": {"kernel": ("weight", (2, 3, 1, 0)), "bias": ("bias", None)},
    "GroupNorm": {"scale": ("weight", None), "bias": ("bias", None)},
    "NIN": {"kernel": ("W", None), "bias": ("b", None)},
}
_FLAX: dict[str, _Table] = {
    "GaussianFourierProjection": {"frequencies": ("W", None)},
    "Dense": {"kernel": ("kernel", None), "bias": ("bias", None)},
    "Conv": {"kernel": ("kernel", None), "bias": ("bias", None)},
    "Conv2d": {"kernel": ("weight", None), "bias": ("bias", None)},
    "GroupNorm": {"scale": ("scale", None), "bias": ("bias", None)},
    "NIN": {"kernel": ("W", None), "bias": ("b", None)},
}
_NO_AVERAGE = "the weights as trained: the file has no average"
# Names of PSLD's networks in its checkpoints.
_AVERAGED, _TRAINED = "ema_score_fn.", "score_fn."
# Noise levels of the discrete-time objectives, part of PyTorch's state and of nothing that is computed here.
_BUFFERS = ("sigmas",)


class Weights(NamedTuple):
    """What a file holds for us.

    Attributes:
      params: our parameters.
      step: optimizer steps taken.
      which: which of the file's weights these are, in words.
    """

    params: dict[str, Any]
    step: int
    which: str


class _Entry(NamedTuple):
    """One parameter: our path and shape, their name, and the axes of theirs in our order."""

    path: str
    shape: tuple[int, ...]
    name: str
    axes: tuple[int, ...] | None

    @property
    def rule(self) -> Rule:
        return transposed(self.name, self.path, self.shape, self.axes)


def torch_entries(network: NCSNpp, inputs: tuple[int, ...]) -> list[_Entry]:
    """The network's parameters with their names in PyTorch's state dict, in the order of its parameters."""
    index: dict[str, int] = {}
    found = []
    for layer in _known(layers(network, inputs)):
        number = index.setdefault(layer.owner_path, len(index))
        found += _entries(layer, f"all_modules.{number}", ".", _TORCH, network.fir)
    return found


def flax_entries(network: NCSNpp, inputs: tuple[int, ...], classes: Mapping[str, str] = _FLAX_CLASSES) -> list[_Entry]:
    """The network's parameters with their paths in Flax's; `classes`: our classes -> theirs."""
    names: dict[str, str] = {}
    counters: collections.Counter[str] = collections.Counter()
    output_skips = 0
    found = []
    for layer in _known(layers(network, inputs)):
        if layer.owner_path not in names:
            kind = classes.get(layer.owner, layer.owner)
            # A pyramid of pictures has resampling modules without parameters, which are counted too.
            if layer.owner == "InputSkip":
                counters["Downsample"] += 1
            if network.progressive == "output_skip" and layer.path.endswith("_pyramid/head/norm"):
                counters["Upsample"] += output_skips > 0
                output_skips += 1
            names[layer.owner_path] = f"{kind}_{counters[kind]}"
            counters[kind] += 1
        found += _entries(layer, names[layer.owner_path], "/", _FLAX, network.fir)
    return found


def _known(found: tuple[Layer, ...]) -> tuple[Layer, ...]:
    if any(layer.kind == "Embed" for layer in found):
        raise UserError("`model.class_conditional` is True; it must be False: score_sde's networks have no classes")
    return found


def _entries(layer: Layer, owner: str, dot: str, tables: dict[str, _Table], fir: bool) -> list[_Entry]:
    inner = _INNER[layer.owner][layer.name] if layer.name else ""
    if layer.kind == "_ConvParameters" and fir:
        inner = _FUSED
    kind = inner.rpartition("_")[0] or _FLAX_CLASSES.get(layer.kind, layer.kind)
    where = f"{owner}{dot}{inner}" if inner else owner
    return [
        _Entry(f"{layer.path}/{ours}", layer.shapes[ours], f"{where}{dot}{theirs}", axes)
        for ours, (theirs, axes) in tables[kind].items()
    ]


def read_torch(path: Path, network: NCSNpp, inputs: tuple[int, ...], where: str) -> Weights:
    """The weights of a checkpoint of score_sde_pytorch or CLD-SGM, or of a plain state dict: averaged, if it has them.

    Args:
      path: a dict with `model` and, normally, `ema` and `step`; or the model's state dict alone.
      network: what it must fit.
      inputs: (H, W, C) of what the network sees.
      where: what errors call the file.
    """
    file = state_file.read(path)
    state = file.get("model", file) if isinstance(file, Mapping) else file
    if not is_state_dict(state):
        raise UserError(
            f"{where}; it is no checkpoint: it must be a dict with the state dict `model` and, for averaged weights, "
            "`ema`, or a state dict, a dict of tensors by name"
        )
    state = renamed(state, lambda name: name.removeprefix("module."), where)
    state = {name: value for name, value in state.items() if name not in _BUFFERS}
    entries = torch_entries(network, inputs)
    whose = "the config's network"
    params = convert([entry.rule for entry in entries], state, where, whose)
    average = file.get("ema") if file is not state and isinstance(file, Mapping) else None
    if average is None:
        return Weights(params, step_of(file, where), _NO_AVERAGE)

    trained = [entry.name for entry in entries if not entry.path.endswith("/frequencies")]
    order = [name for name in state if name in set(trained)]
    shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
    if not isinstance(shadow, list) or not all(isinstance(value, np.ndarray) for value in shadow):
        raise UserError(f"{where}; its `ema` is none that is known: it must have `shadow_params`, a list of tensors")
    if len(shadow) != len(order):
        raise UserError(f"{where}; its average has {len(shadow)} tensors, its model {len(order)} trained ones")
    fixed = {name: value for name, value in state.items() if name not in set(trained)}
    averaged = fixed | dict(zip(order, shadow, strict=True))
    params = convert([entry.rule for entry in entries], averaged, f"{where}; of its average", whose)
    return Weights(params, step_of(file, where), "the averaged weights (ema)")


def read_lightning(path: Path, network: NCSNpp, inputs: tuple[int, ...], where: str) -> Weights:
    """The weights of a checkpoint of PSLD, PyTorch Lightning's of its two networks; arguments as of `read_torch`.

    The network's own state dict is read too.
    """
    file = state_file.read(path)
    state = file.get("state_dict", file) if isinstance(file, Mapping) else file
    if not is_state_dict(state):
        raise UserError(
            f"{where}; it is no checkpoint of PSLD: it must be a dict with `state_dict`, or a dict of tensors by name"
        )
    averaged = {name: value for name, value in state.items() if name.startswith(_AVERAGED)}
    chosen = averaged or state
    arrays = renamed(chosen, lambda name: name.removeprefix(_AVERAGED).removeprefix(_TRAINED), where)
    rules = [entry.rule for entry in torch_entries(network, inputs)]
    which = f"the averaged weights ({_AVERAGED[:-1]})" if averaged else _NO_AVERAGE
    step = step_of({"step": file.get("global_step", 0)}, where)
    return Weights(convert(rules, arrays, where, "the config's network"), step, which)


def read_flax(path: Path, network: NCSNpp, inputs: tuple[int, ...], where: str) -> Weights:
    """The averaged weights of a checkpoint of score_sde, Flax's msgpack of its `State`."""
    try:
        file = serialization.msgpack_restore(path.read_bytes())
    except OSError as error:
        raise UserError(f"{where}; it cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, msgpack.exceptions.UnpackException) as error:
        raise UserError(f"{where}; it is no msgpack of Flax, or is damaged or cut ({error})") from None
    optimizer = file.get("optimizer") if isinstance(file, Mapping) else None
    if not isinstance(file, Mapping) or not (isinstance(optimizer, Mapping) or "params_ema" in file):
        raise UserError(
            f"{where}; it is no checkpoint of score_sde: it must be a dict with `params_ema` or `optimizer`"
        )
    averaged = file.get("params_ema")
    without = averaged is None or (isinstance(averaged, Mapping) and not averaged)
    tree = averaged
    if without:
        tree = optimizer.get("target") if isinstance(optimizer, Mapping) else None
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{where}; it has no parameters: it must have `params_ema`, or `target` in `optimizer`, a dict of arrays"
        )
    arrays = traverse_util.flatten_dict(dict(tree), sep="/")
    if not all(isinstance(value, np.ndarray) for value in arrays.values()):
        raise UserError(f"{where}; its parameters are not all arrays")
    of_ddpm = any(name.startswith(f"{_FLAX_DDPM_CLASSES['ResBlockDDPM']}_") for name in arrays)
    rules = [entry.rule for entry in flax_entries(network, inputs, _FLAX_DDPM_CLASSES if of_ddpm else _FLAX_CLASSES)]
    which = _NO_AVERAGE if without else "the averaged weights (params_ema)"
    return Weights(convert(rules, arrays, where, "the config's network"), step_of(file, where), which)


def to_torch(params: Mapping[str, Any], network: NCSNpp, inputs: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Our parameters as the state dict of score_sde_pytorch's network, in its order, without its buffer `sigmas`.

    Raises:
      UserError: for an option that no network of score_sde has.
    """
    for key, value in _FIXED.items():
        own = getattr(network, key)
        require(own == value, f"model.{key}", own, f"{value!r} for a network of score_sde")
    groups, ddpm = network.norm_groups, network.resblock_type == "ddpm" and not network.skip_rescale
    theirs = groups is None or (groups == 32 and (ddpm or network.channels >= 128))
    require(theirs, "model.norm_groups", groups, "None for a network of score_sde, or 32 for its `ddpm`")
    ours = traverse_util.flatten_dict(dict(params), sep="/")
    state = {}
    for entry in torch_entries(network, inputs):
        value = np.asarray(ours[entry.path], np.float32)
        state[entry.name] = value if entry.axes is None else value.transpose(np.argsort(entry.axes))
    return state


def is_state_dict(value: Any) -> bool:
    """Whether `value` is a dict of arrays by name."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(array, np.ndarray) for name, array in value.items())
    )


def step_of(file: Mapping[str, Any], where: str) -> int:
    """The file's `step`, 0 if it has none."""
    given = file.get("step", 0)
    step = np.asarray(given)
    if step.shape != () or step.dtype.kind not in "iu" or not 0 <= step < 2**31:
        raise UserError(f"{where}; its step is {schema.shown(given)}; it must be a whole number from 0, below 2^31")
    return int(step)
