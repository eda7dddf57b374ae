"""EDM's `SongUNet` (2206.00364), DDPM++ and NCSN++, and `DhariwalUNet`, ADM: our NCSN++'s parameters in them.

The networks are one, with differences in how parameters are kept: query, key and value are one convolution with
interleaved rows; attention belongs to the residual block before it; the class is a one-hot vector through a linear map,
with a bias in `SongUNet`, ours a table; the features of the noise level begin with the cosines in `DhariwalUNet`; and a
network trained with augmentation has a linear map of its labels, which is read if ours takes them (`data.augment` above
0). Sampling feeds no labels, so that the map then has no effect.
"""

import re
from pathlib import Path

import numpy as np

from hold_jax.convert.layers import Layer, layers
from hold_jax.convert.score_sde import Weights, is_state_dict
from hold_jax.errors import UserError
from hold_jax.nn import NCSNpp
from hold_jax.weights import state_file
from hold_jax.weights.match import Rule, convert, renamed, transposed

EXPORT = (
    "python -c \"import pickle, sys, torch; net = pickle.load(open(sys.argv[1], 'rb'))['ema']; "
    'torch.save(net.float().cpu().state_dict(), sys.argv[2])" network.pkl network.pth'
)
_UNUSED = re.compile(r"\.resample_filter$")  # filters of the resampling, which are options of ours
_AUGMENT = "map_augment.weight"
_NAMES = {
    "embedding/fourier": "map_noise",
    "embedding/augmentation": "map_augment",
    "embedding/dense0": "map_layer0",
    "embedding/dense1": "map_layer1",
    "conv_in": "enc.{0}_conv",
    "head/norm": "dec.{0}_aux_norm",
    "head/conv": "dec.{0}_aux_conv",
    "mid_block0": "dec.{deepest}_in0",
    "mid_block1": "dec.{deepest}_in1",
    "mid_attention": "dec.{deepest}_in0",
}
# Our names at a level -> theirs; {here} is the level's resolution, {below} that of the next level, {above} of the last.
_LEVEL_NAMES = {
    r"down\d+_block(\d+)": "enc.{here}_block{index}",
    r"down\d+_attention(\d+)": "enc.{here}_block{index}",
    r"down\d+_resample": "enc.{below}_down",
    r"down\d+_pyramid/down": "enc.{below}_aux_residual",
    r"down\d+_pyramid": "enc.{below}_aux_skip",
    r"up\d+_block(\d+)": "dec.{here}_block{index}",
    r"up\d+_attention": "dec.{here}_block{last}",
    r"up\d+_resample": "dec.{above}_up",
    r"up\d+_pyramid/head/norm": "dec.{here}_aux_norm",
    r"up\d+_pyramid/head/conv": "dec.{here}_aux_conv",
}
# What ADM's network, known by `scale_shift`, names otherwise.
_ADM_NAMES = {**_NAMES, "head/norm": "out_norm", "head/conv": "out_conv"}
_ADM_LEVEL_NAMES = {**_LEVEL_NAMES, r"up\d+_attention(\d+)": "dec.{here}_block{index}"}
_INNER = {"time": "affine", "shortcut": "skip"}
_PARAMETERS = {"kernel": "weight", "scale": "weight", "bias": "bias", "frequencies": "freqs"}
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: None}


def read(path: Path, network: NCSNpp, inputs: tuple[int, ...], where: str) -> Weights:
    """The weights of a state dict of EDM's network, with its preconditioning or without.

    Args:
      path: what `EXPORT` writes: EDM's own pickles run code when they are opened, so they are not read.
      network: what it must fit.
      inputs: (H, W, C) of what the network sees.
      where: what errors call the file.
    """
    state = {name: value for name, value in _state_dict(path, where).items() if not _UNUSED.search(name)}
    found = rules(network, inputs)
    taken = [rule.shapes[_AUGMENT] for rule in found if _AUGMENT in rule.shapes]
    if taken:
        state.setdefault(_AUGMENT, np.zeros(taken[0], np.float32))  # it was trained without augmentation
    else:
        state.pop(_AUGMENT, None)
    params = convert(found, state, where, "the config's network")
    return Weights(params, 0, "the weights in the file (EDM's pickles keep the averaged ones)")


def num_classes(path: Path) -> int:
    """The number of classes of the network in the file; 0: none."""
    weight = _state_dict(path, f"`input` is {str(path)!r}").get("map_label.weight")
    return 0 if weight is None else np.atleast_1d(weight).shape[-1]


def _state_dict(path: Path, where: str) -> dict[str, np.ndarray]:
    """The file's, with the names that the network itself gives, without its preconditioning."""
    try:
        state = state_file.read(path)
    except UserError as error:
        raise UserError(f"{error}; EDM's own .pkl is not read: with PyTorch and EDM's code, run {EXPORT}") from None
    if not is_state_dict(state):
        raise UserError(f"{where}; it is no state dict: it must be a dict of tensors by name, as of {EXPORT}")
    return renamed(state, lambda name: name.removeprefix("model."), where)


def rules(network: NCSNpp, inputs: tuple[int, ...]) -> list[Rule]:
    """How the network's parameters come from the state dict of a `SongUNet`, or with `scale_shift` a `DhariwalUNet`."""
    found = []
    attention: dict[str, list[Layer]] = {}
    for layer in layers(network, inputs):
        if layer.kind == "Embed":
            found.append(_table(layer, network))
        elif network.scale_shift and layer.path in ("embedding/dense0", "embedding/augmentation"):
            found += _sines_first(layer)
        elif layer.owner == "SelfAttention":
            attention.setdefault(layer.owner_path, []).append(layer)
        else:
            found += _simple(layer, _name(layer.owner_path, network, inputs))
    for path, of_path in attention.items():
        found += _attention({layer.name: layer for layer in of_path}, _name(path, network, inputs))
    return found


def _name(path: str, network: NCSNpp, inputs: tuple[int, ...]) -> str:
    """Their name of our block or layer at `path`."""
    sizes = [f"{inputs[0] >> i}x{inputs[0] >> i}" for i in range(len(network.channel_multipliers))]
    names = _ADM_NAMES if network.scale_shift else _NAMES
    if path in names:
        return names[path].format(sizes[0], deepest=sizes[-1])
    for pattern, name in (_ADM_LEVEL_NAMES if network.scale_shift else _LEVEL_NAMES).items():
        match = re.fullmatch(pattern, path)
        if match is None:
            continue
        level = int(re.findall(r"\d+", path)[0])
        index = match.group(1) if match.groups() else None
        below, above = sizes[min(level + 1, len(sizes) - 1)], sizes[max(level - 1, 0)]
        return name.format(here=sizes[level], below=below, above=above, index=index, last=network.num_res_blocks)
    raise UserError(
        f"`model` has {path}, which EDM's network has not; it must be a network like that of configs/cifar10_edm.py or "
        "configs/imagenet64_edm.py"
    )


def _simple(layer: Layer, owner: str) -> list[Rule]:
    # The convolutions of their pyramids are the modules themselves.
    inside = layer.name if layer.owner.startswith("ResBlock") else ""
    where = f"{owner}.{_INNER.get(inside, inside)}" if inside else owner
    return [
        transposed(f"{where}.{_PARAMETERS[ours]}", f"{layer.path}/{ours}", shape, _AXES[len(shape)])
        for ours, shape in layer.shapes.items()
    ]


def _attention(of: dict[str, Layer], owner: str) -> list[Rule]:
    channels = of["norm"].shapes["scale"][0]
    parts = ("query", "key", "value")

    def kernels(weight: np.ndarray) -> dict[str, np.ndarray]:
        # Row 3 c + j is channel c of query, key and value, j = 0, 1, 2.
        split = weight.reshape(channels, 3, channels)
        return {f"{of[part].path}/kernel": split[:, j].T for j, part in enumerate(parts)}

    def biases(bias: np.ndarray) -> dict[str, np.ndarray]:
        return {f"{of[part].path}/bias": bias.reshape(channels, 3)[:, j] for j, part in enumerate(parts)}

    norm = [
        transposed(f"{owner}.norm2.{_PARAMETERS[ours]}", f"{of['norm'].path}/{ours}", (channels,), None)
        for ours in ("scale", "bias")
    ]
    return [
        *norm,
        Rule({f"{owner}.qkv.weight": (3 * channels, channels, 1, 1)}, kernels),
        Rule({f"{owner}.qkv.bias": (3 * channels,)}, biases),
        Rule(
            {f"{owner}.proj.weight": (channels, channels, 1, 1)},
            lambda weight: {f"{of['out'].path}/kernel": weight[:, :, 0, 0].T},
        ),
        transposed(f"{owner}.proj.bias", f"{of['out'].path}/bias", (channels,), None),
    ]


def _sines_first(layer: Layer) -> list[Rule]:
    """A layer on either side of the features of the noise level, which begin with the cosines there."""
    axis = 0 if layer.path == "embedding/dense0" else 1
    kernel = layer.shapes["kernel"]
    name = _NAMES[layer.path]
    moved = Rule(
        {f"{name}.weight": kernel[::-1]},
        lambda weight: {f"{layer.path}/kernel": np.roll(weight.T, kernel[axis] // 2, axis=axis)},
    )
    bias = [transposed(f"{name}.bias", f"{layer.path}/bias", layer.shapes["bias"], None)] if axis == 0 else []
    return [moved, *bias]


def _table(layer: Layer, network: NCSNpp) -> Rule:
    rows, features = layer.shapes["embedding"]
    place = "embedding" if network.scale_shift else "features"
    if network.label_place != place:
        raise UserError(f"`model.label_place` is {network.label_place!r}; it must be {place!r}, as in EDM's network")

    def of_song(weight: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
        # A one-hot vector times sqrt(classes), so of unit variance; without a class all zeros.
        table = weight.T.astype(np.float64) * np.sqrt(rows - 1)
        return {f"{layer.path}/embedding": np.concatenate([table, np.zeros((1, features))]) + bias}

    def of_adm(weight: np.ndarray) -> dict[str, np.ndarray]:
        return {f"{layer.path}/embedding": np.concatenate([weight.T, np.zeros((1, features))])}

    weight = {"map_label.weight": (features, rows - 1)}
    return Rule(weight, of_adm) if network.scale_shift else Rule(weight | {"map_label.bias": (features,)}, of_song)
