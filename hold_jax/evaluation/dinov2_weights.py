"""The weights of DINOv2, from the authors' files or from those of transformers."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from hold_jax.errors import UserError, require_given
from hold_jax.evaluation.resize import keys
from hold_jax.weights import state_file
from hold_jax.weights.match import require_shapes

FILE = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
PATCH = 14
GRID = 16  # patches along each side of a picture of 224 pixels
_OFFSET = 0.1  # of the authors' code, in patches
_WHOSE = "DINOv2 without registers"
# The authors' names for parts of those of transformers, in the order in which they are replaced.
_TRANSFORMERS = {
    r"^dinov2\.": "",
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^embeddings\.position_embeddings": "pos_embed",
    r"^embeddings\.": "",
    r"^encoder\.layer\.": "blocks.",
    r"^layernorm\.": "norm.",
    r"\.attention\.attention\.": ".attn.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.layer_scale(\d)\.lambda1$": r".ls\1.gamma",
    r"\.weights_in\.": ".w12.",
    r"\.weights_out\.": ".w3.",
}


def load(path: str | Path | None, argument: str = "weights") -> dict[str, Any]:
    """Returns the parameters of `dinov2.class_token`, NumPy float32, in nested dicts by the authors' names.

    Those of the blocks are stacked: their first axis is the block.

    Args:
      path: dinov2_vitl14_pretrain.pth, that of another size (S, B, g), or model.safetensors of transformers, such as
        facebook/dinov2-large has.
      argument: what errors call it.

    Raises:
      UserError: if the file is missing, damaged, or of another network.
    """
    path = Path(require_given(argument, path, f"the path of DINOv2's weights: {FILE}")).expanduser()
    where = f"`{argument}` is {str(path)!r}"
    if not path.is_file():
        raise UserError(f"{where}; there is no such file; get {FILE}")
    return from_state_dict(state_file.read(path, argument), where)


def from_state_dict(state: Any, where: str = "the state dict", offset: float = _OFFSET) -> dict[str, Any]:
    """Returns the parameters from the authors' state dict or from that of transformers; every array is used.

    Args:
      state: name -> array; the mask token, which only training needs, may be missing.
      where: what errors call it.
      offset: as in `interpolated`; 0 for the positions that transformers uses.

    Raises:
      UserError: if an array is missing, left over, of another shape, or not finite.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise UserError(f"{where}; it is no state dict: it must be a dict of tensors by name")
    state = _authors(state)
    state.pop("mask_token", None)
    width = state["cls_token"].shape[-1] if "cls_token" in state else 0
    depth = 1 + max((int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d+\.", name)), default=0)
    positions = len(state["pos_embed"][0]) if "pos_embed" in state and state["pos_embed"].ndim == 3 else 1
    top, block = _shapes(width, positions, gated="blocks.0.mlp.w12.weight" in state)
    expected = top | {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}
    require_shapes({name: value.shape for name, value in state.items()}, expected, where, _WHOSE)
    if math.isqrt(positions - 1) ** 2 != positions - 1 or positions == 1 or width % 64:
        raise UserError(f"{where}; its pos_embed is {list(state['pos_embed'].shape)}; it must be [1, 1 + n^2, 64 k]")

    found = {name: np.asarray(state[name], np.float32) for name in top}
    found["pos_embed"] = interpolated(found["pos_embed"], offset)
    for name in block:
        found[f"blocks.{name}"] = np.stack([np.asarray(state[f"blocks.{i}.{name}"], np.float32) for i in range(depth)])
    for name, value in found.items():
        if not np.isfinite(value).all():
            raise UserError(f"{where}; its {name} has values that are not finite")
    return traverse_util.unflatten_dict(found, sep=".")


def interpolated(positions: np.ndarray, offset: float) -> np.ndarray:
    """Returns embeddings of positions (1, 1 + n^2, width) for 16 x 16 patches, (1, 257, width), float32.

    Bicubic without antialiasing, as PyTorch interpolates: Keys' kernel with a = -0.75, border values repeated. The
    authors' code adds `offset` to the number of patches, which moves the neighbors a little; transformers does not.

    Args:
      positions: the class token's embedding, then those of n x n patches.
      offset: 0.1 or 0.
    """
    n = math.isqrt(positions.shape[1] - 1)
    if n == GRID:
        return positions
    at = (np.arange(GRID) + 0.5) * (n / (GRID + offset)) - 0.5
    low = np.floor(at).astype(int)
    matrix = np.zeros((GRID, n))
    for k in range(-1, 3):
        np.add.at(matrix, (np.arange(GRID), np.clip(low + k, 0, n - 1)), keys(at - low - k, -0.75))
    patches = positions[0, 1:].reshape(n, n, -1).astype(np.float64)
    patches = np.einsum("yi,xj,ijw->yxw", matrix, matrix, patches, optimize=True)
    return np.concatenate([positions[:, :1], patches.reshape(1, GRID**2, -1)], axis=1, dtype=np.float32)


def _authors(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a state dict under the authors' names; query, key and value become one array."""
    found: dict[str, np.ndarray] = {}
    for name, value in state.items():
        for theirs, ours in _TRANSFORMERS.items():
            name = re.sub(theirs, ours, name)
        found[name] = value
    for name in [name for name in found if ".attn.query." in name]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        if all(part in found for part in parts):
            found[name.replace("query", "qkv")] = np.concatenate([found.pop(part) for part in parts])
    return found


def _shapes(width: int, positions: int, gated: bool) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Returns the shapes of the state dict's arrays by name: those outside of the blocks, and those of a block."""
    top = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    inner = 4 * width
    gate = -(-2 * inner // 3 // 8) * 8  # two thirds, in steps of eight
    mlp = {"w12": (2 * gate, width), "w3": (width, gate)} if gated else {"fc1": (inner, width), "fc2": (width, inner)}
    dense = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    dense |= {f"mlp.{name}": shape for name, shape in mlp.items()}
    block: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in dense.items()}
    block |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    block |= {f"norm{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")}
    return top, block | {f"ls{i}.gamma": (width,) for i in (1, 2)}
