"""The weights of the FID's Inception network, from pytorch-fid's file or from a converted one."""

import functools
import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from hold_jax.errors import UserError, require
from hold_jax.evaluation import inception_script
from hold_jax.evaluation.feature_network import digest_of
from hold_jax.evaluation.inception_network import SIZE, Inception
from hold_jax.runtime import fetch
from hold_jax.runtime.npz import Npz
from hold_jax.runtime.storage import open_regular
from hold_jax.weights import torch_file
from hold_jax.weights.files import replacing
from hold_jax.weights.match import require_shapes

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = "https://github.com/mseitzer/pytorch-fid/releases"
FILE_URL = f"{URL}/download/fid_weights/{FILE}"
_SHA256 = "6726825d"  # by PyTorch's convention the name of a published file ends with the first digits
_BATCH_NORM_EPS = 1e-3
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_WHOSE = "the FID's Inception network"

Params = dict[str, Any]
_Shapes = dict[str, tuple[int, ...]]


def published(argument: str, otherwise: str = "") -> Path:
    """Returns pytorch-fid's file in the user's cache folder; fetches it from its release on first use.

    Args:
      argument: what the user sets to give a file of their own, for the errors.
      otherwise: what else the user can do, for the errors.

    Raises:
      UserError: if it cannot be fetched.
    """
    advice = f"get {FILE} on a machine with a network, and set {argument} to its path{otherwise}"
    return fetch.fetch(FILE_URL, _SHA256, "the FID's Inception network", advice)


def load(path: str | Path, argument: str = "weights") -> tuple[Params, str]:
    """Parameters of `inception_network.Inception`, NumPy float32, and the identity of these numbers.

    The identity is of the parameters, not of the file: that of a .pth and of an .npz made from it are the same. The
    last layer, which only the inception score needs, may be missing.

    Args:
      path: pytorch-fid's .pth, a TorchScript archive of TensorFlow's graph (`inception_script`), or an .npz of
        `save_npz`. If the name of a file that is no .npz ends in -XXXXXXXX, its SHA-256 must begin so.
      argument: what errors call it.

    Raises:
      UserError: if the file is missing, damaged, or of another network.
    """
    path = Path(path).expanduser()
    where = f"`{argument}` is {str(path)!r}"
    if not path.is_file():
        raise UserError(f"{where}; there is no such file; get {FILE} from {URL}")
    if path.suffix == ".npz":
        params = _read_npz(path, where)
    else:
        _check_name(path, where)
        params = from_state_dict(torch_file.read(path, argument), where)
    return params, f"fid_inception {digest_of(params)}"


def from_state_dict(state: Any, where: str = "the state dict") -> Params:
    """The network's parameters from pytorch-fid's (torchvision's names), every one used, none left over.

    Without the last layer, `fc`, the parameters have none.

    Batch normalization, y = g (conv(x, K) - m) / sqrt(v + 1e-3) + b, becomes part of the convolution, in float64:
    K g / sqrt(v + 1e-3) is the kernel and b - m g / sqrt(v + 1e-3) the bias.

    Args:
      state: name -> array.
      where: what errors call it.
    """
    if isinstance(state, Mapping) and any(isinstance(value, Mapping) for value in state.values()):
        state = inception_script.renamed(dict(inception_script.flattened(state)))
    if not isinstance(state, Mapping) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise UserError(f"{where}; it is no state dict: it must be a dict of tensors by name")
    logits = any(name.startswith("fc.") for name in state)
    modules = sorted({path.rpartition("/")[0] for path in _shapes(logits)})
    # A counter of training steps, which files have or lack by PyTorch's version.
    counters = {f"{_torch_name(module)}.bn.num_batches_tracked" for module in modules}
    state = {name: value for name, value in state.items() if name not in counters}
    require_shapes({name: value.shape for name, value in state.items()}, state_shapes(logits), where, _WHOSE)

    params = {}
    for module in modules:
        name = _torch_name(module)
        if module == "fc":
            kernel, bias = state[f"{name}.weight"].T, state[f"{name}.bias"]
        else:
            gain, shift, mean, variance = (state[f"{name}.bn.{part}"].astype(np.float64) for part in _BATCH_NORM)
            gain = gain / np.sqrt(variance + _BATCH_NORM_EPS)
            kernel = state[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * gain
            bias = shift - mean * gain
        for part, value in (("kernel", kernel), ("bias", bias)):
            value = np.ascontiguousarray(value, np.float32)
            if not np.isfinite(value).all():
                raise UserError(f"{where}; its {name} has values that are not finite")
            params[f"{module}/{part}"] = value
    return traverse_util.unflatten_dict(params, sep="/")


@functools.cache
def state_shapes(logits: bool = True) -> _Shapes:
    """Names and shapes of the state dict that `from_state_dict` takes, with or without the last layer."""
    shapes = {}
    for path, shape in _shapes(logits).items():
        module, _, part = path.rpartition("/")
        name = _torch_name(module)
        if part == "kernel" and len(shape) == 4:
            shapes[f"{name}.conv.weight"] = (shape[3], shape[2], *shape[:2])
        elif part == "kernel":
            shapes[f"{name}.weight"] = shape[::-1]
        elif module == "fc":
            shapes[f"{name}.bias"] = shape
        else:
            shapes |= {f"{name}.bn.{part}": shape for part in _BATCH_NORM}
    return shapes


def save_npz(params: Params, path: str | Path) -> None:
    """Writes `params` for `load`; what was at `path` stays until the new file is complete.

    Raises:
      UserError: if `path` cannot be written or does not end in .npz.
    """
    path = Path(path)
    require(path.suffix == ".npz", "output", str(path), "a path that ends in .npz")
    with replacing(path) as file:
        arrays: dict[str, Any] = dict(traverse_util.flatten_dict(params, sep="/"))
        np.savez(file, **arrays)


def convert(source: Path, target: Path) -> str:
    """pytorch-fid's file at `source` to an .npz at `target`; returns what was done, in words."""
    params, identity = load(source, "input")
    save_npz(params, target)
    return f"{identity}: {len(jax.tree.leaves(params))} arrays"


def _check_name(path: Path, where: str) -> None:
    named = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if named is None:
        return
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{where}; it cannot be read: {error.strerror or error}") from None
    expected = named[1]
    if not found.startswith(expected):
        raise UserError(
            f"{where}; the end of its name, {expected}, says how the file's SHA-256 begins, and that begins with "
            f"{found[: len(expected)]}: the file is damaged, or is another one under this name; get {FILE} again from "
            f"{URL}, or give another file a name without such an end"
        )


def _read_npz(path: Path, where: str) -> Params:
    try:
        with open_regular(path) as file:
            size = file.seek(0, io.SEEK_END)
            archive = Npz(file, size)  # `save_npz` compresses nothing
            params = {name: archive.read(name) for name in archive.names}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where}; NumPy cannot read it ({error}); make it again: "
            f"python -m hold_jax.convert --from=pytorch_fid --input={FILE} --output={path}"
        ) from None
    logits = any(name.startswith("fc/") for name in params)
    require_shapes({name: value.shape for name, value in params.items()}, _shapes(logits), where, _WHOSE)
    for name, value in params.items():
        if value.dtype != np.float32:
            raise UserError(f"{where}; its {name} is of type {value.dtype}; it must be float32")
    return traverse_util.unflatten_dict(params, sep="/")


@functools.cache
def _shapes(logits: bool) -> _Shapes:
    """Shapes of the network's parameters, by path such as Mixed_5b/branch1x1/kernel."""
    network, pictures = Inception(logits=logits), jnp.zeros((1, SIZE, SIZE, 3))
    spec: Any = jax.eval_shape(lambda: network.init(jax.random.key(0), pictures))["params"]
    leaves: dict[str, Any] = dict(traverse_util.flatten_dict(spec, sep="/"))
    return {path: leaf.shape for path, leaf in leaves.items()}


def _torch_name(module: str) -> str:
    return module.replace("/", ".")
