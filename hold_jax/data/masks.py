"""Masks by name, or from a picture file: which part of an example is known."""

import math

import numpy as np

from hold_jax.data.inputs import read_input
from hold_jax.errors import require
from hold_jax.runtime import storage

MASKS = ("box", "left", "right", "upper", "lower", "random")


def known_part(data_shape: tuple[int, ...], mask: str, share: float = 0.5) -> np.ndarray:
    """Returns which values are known, the same for all channels.

    Args:
      data_shape: (*S, C) of one example, or (d,).
      mask: the unknown part, one of `MASKS`, or the path of a picture that is white where the data are known.
      share: of known places, for mask = "random": a fixed draw.

    Returns:
      bool, broadcastable to `data_shape`.

    Raises:
      UserError: for a mask that does not fit the data, or that leaves nothing known.
    """
    sizes = data_shape[:-1] if len(data_shape) > 1 else data_shape
    if mask == "random":
        known = np.random.default_rng(0).permutation(math.prod(sizes)) < round(share * math.prod(sizes))
        known = known.reshape(sizes)
    elif mask == "box":
        known = np.ones(sizes, bool)
        known[tuple(slice(round(size / 4), round(size / 4) + round(size / 2)) for size in sizes)] = False
    elif mask in MASKS:
        axis = -1 if mask in ("left", "right") else 0
        require(axis == -1 or len(sizes) > 1, "mask", mask, "box, left, right or random for data that are no pictures")
        first = np.arange(sizes[axis]) < sizes[axis] // 2
        hidden = first if mask in ("left", "upper") else ~first
        known = np.broadcast_to(~hidden if axis == -1 else ~hidden[:, None], sizes)
    else:
        there = storage.is_file(storage.path(mask, "mask"))
        require(there, "mask", mask, f"{', '.join(MASKS)}, or a picture file, white where known")
        found = read_input(mask, "mask", (*sizes, 1), picture=True)
        require(len(found) == 1, "mask", mask, f"one mask; it holds {len(found)}")
        known = found[0, ..., 0] > 127
    require(bool(known.any()), "mask", mask, "one that leaves something known")
    return known if len(data_shape) == 1 else known[..., None]
