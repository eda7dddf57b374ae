"""Stretching pictures to the size that a feature network sees, by the rules of the networks' own pipelines.

The functions take arrays of NumPy and of JAX: pictures of many sizes are stretched as they are read, pictures of one
size on the device. They add up neighbors, a few along each axis, because `jax.image.resize` multiplies by matrices, a
product that XLA (JAX 0.10.2) fails to tile for an H100.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Pillow's fixed-point weights of uint8 pictures: 32 bits without 8 of the values and 2 for sums beyond 255.
_BITS = 22


class Stretch(NamedTuple):
    """How a feature network brings pictures of any shape to its own size.

    Attributes:
      size: in pixels, of both sides.
      words: the rule, in words.
      apply: the rule, (H, W, 3) uint8 -> (size, size, 3).
    """

    size: int
    words: str
    apply: Callable[[np.ndarray], np.ndarray]


def bilinear(x: Any, size: int) -> Any:
    """Bilinear with half-pixel centers and no antialiasing, as pytorch-fid resizes for Inception.

    Args:
      x: (..., H, W, C) float32.
      size: of both sides.

    Returns:
      (..., size, size, C) float32.
    """
    for axis in (-3, -2):
        last = x.shape[axis] - 1
        # In float32, as PyTorch computes them.
        at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32((last + 1) / size) - np.float32(0.5)
        at = np.clip(at, 0, last)
        low = np.floor(at).astype(np.int32)
        share = at - np.floor(at)
        x = _added(x, axis, [low, np.minimum(low + 1, last)], [1 - share, share])
    return x


def bicubic(x: Any, size: int) -> Any:
    """Bicubic with antialiasing, bit for bit as Pillow resizes uint8 pictures.

    The width is resized first and rounded to uint8, as Pillow up to 12 does for every shape; Pillow 13 resizes the
    height first where that is less work.

    Args:
      x: (..., H, W, C) uint8.
      size: of both sides.

    Returns:
      (..., size, size, C) uint8.
    """
    for axis in (-2, -3):
        index, weight = _bicubic_neighbors(x.shape[axis], size)
        total = _added(x.astype(np.int32), axis, list(index.T), list(weight.T)) + (1 << (_BITS - 1))
        x = (total >> _BITS).clip(0, 255).astype(np.uint8)
    return x


def _bicubic_neighbors(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (size, k) and fixed-point weights (size, k), int32, of the neighbors of each output."""
    scale = length / size
    stretch = max(scale, 1.0)  # a smaller picture is the mean over a wider kernel
    center = (np.arange(size)[:, None] + 0.5) * scale
    reach = 2 * stretch
    first = np.maximum(np.trunc(center - reach + 0.5), 0).astype(np.int32)
    stop = np.minimum(np.trunc(center + reach + 0.5), length).astype(np.int32)
    index = first + np.arange(math.ceil(reach) * 2 + 1, dtype=np.int32)[None]
    weight = np.where(index < stop, keys((index + 0.5 - center) / stretch, -0.5), 0)
    weight = weight / weight.sum(axis=1, keepdims=True) * (1 << _BITS)
    rounded = np.trunc(weight + np.copysign(0.5, weight)).astype(np.int32)
    return np.minimum(index, length - 1), rounded


def keys(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel of Keys (1981), eq. 4, with parameter `a`."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _added(x: Any, axis: int, indices: list[np.ndarray], weights: list[np.ndarray]) -> Any:
    """Returns the sum of x at `indices` along a negative `axis`, times weights of the same dtype."""
    shape = (*(1,) * (x.ndim + axis), -1, *(1,) * (-axis - 1))
    parts = (x.take(index, axis) * weight.reshape(shape) for index, weight in zip(indices, weights, strict=True))
    total = next(parts)
    for part in parts:
        total = total + part
    return total
