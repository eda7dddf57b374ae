"""Two-dimensional toy distributions: Swiss rolls, Gaussians, a checkerboard.

Each coordinate has mean 0 and standard deviation 1. The constants are those of the distribution, not of a sample, so
that all draws have the same scale.
"""

import math
from collections.abc import Callable

import numpy as np

from hold_jax.data.dataset import Dataset, array_dataset
from hold_jax.errors import require, require_choice

DEFAULT_SIZE = {"train": 50_000, "test": 10_000}
_STREAMS = {"train": 0, "test": 1, "sample": 2}

_CORNERS = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
_ROLL_ANGLES = (1.5 * math.pi, 4.5 * math.pi)
_ROLL_RADIUS = 0.7
_ROLL_NOISE = 0.02
_RING_RADIUS = 1.0
_RING_NOISE = 0.1


def _roll_moments() -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance of `t (cos t, sin t)` for t uniform on `_ROLL_ANGLES`, integrated in closed form."""
    a, b = _ROLL_ANGLES

    def mean_of(antiderivative: Callable[[float], float]) -> float:
        return (antiderivative(b) - antiderivative(a)) / (b - a)

    mean = np.array(
        [
            mean_of(lambda t: math.cos(t) + t * math.sin(t)),
            mean_of(lambda t: math.sin(t) - t * math.cos(t)),
        ]
    )
    # (t cos t)^2 and (t sin t)^2 are t^2/2 +- t^2 cos(2t)/2.
    half = mean_of(lambda t: t**3 / 6)
    wave = mean_of(lambda t: (t**2 / 2 - 1 / 4) * math.sin(2 * t) / 2 + t * math.cos(2 * t) / 4)
    return mean, np.array([half + wave, half - wave]) - mean**2


def _rolls(
    num: int, rng: np.random.Generator, centers: np.ndarray, scale: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draws from equal rolls scale * t (cos t, sin t), with means at `centers` (k, 2), and Gaussian noise.

    The centers must have mean 0.
    """
    label = rng.integers(len(centers), size=num)
    t = rng.uniform(*_ROLL_ANGLES, size=num)
    mean, var = _roll_moments()
    roll = t[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1) - mean
    x = centers[label] + scale * roll + noise * rng.standard_normal((num, 2))
    return x / np.sqrt(np.mean(centers**2, axis=0) + scale**2 * var + noise**2), label


def _swissroll(num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Four rolls at the corners of a square: a multimodal Swiss roll like that of TOLD++ (2409.07697)."""
    return _rolls(num, rng, _CORNERS, _ROLL_RADIUS / _ROLL_ANGLES[1], _ROLL_NOISE)


def _swissroll5(num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """CLD's multimodal Swiss roll (2112.07068, code), standardized.

    One roll is at the origin and four at (+-0.8, +-0.8). Each is 0.01 times the roll of scikit-learn with noise 0.2.
    """
    return _rolls(num, rng, np.concatenate([np.zeros((1, 2)), 0.8 * _CORNERS]), 0.01, 0.002)


def _diamond9(num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """CLD's diamond (2112.07068, code): nine Gaussians of deviation 0.04 on a square of side 1, turned 45 degrees.

    The variance of each coordinate of the centers is 1/6; here standardized.
    """
    label = rng.integers(9, size=num)
    square = np.stack([label // 3, label % 3], axis=1) / 2 - 0.5
    x = square @ np.array([[1.0, -1.0], [1.0, 1.0]]) / math.sqrt(2) + 0.04 * rng.standard_normal((num, 2))
    return x / math.sqrt(1 / 6 + 0.04**2), label


def _gaussians8(num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Eight Gaussians on a circle; each coordinate of the centers has variance radius^2 / 2."""
    label = rng.integers(8, size=num)
    angle = label * (math.pi / 4)
    x = _RING_RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1) + _RING_NOISE * rng.standard_normal((num, 2))
    return x / math.sqrt(_RING_RADIUS**2 / 2 + _RING_NOISE**2), label


def _checkerboard(num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The dark squares of a 4x4 board: each coordinate is uniform over 4 squares, of variance 4^2 / 12."""
    label = rng.integers(8, size=num)
    row, pair = label % 4, label // 4
    corner = np.stack([2 * pair + row % 2, row], axis=1) - 2
    return (corner + rng.uniform(size=(num, 2))) / math.sqrt(16 / 12), label


# name -> (sampler of points and labels, number of modes)
TOYS = {
    "swissroll": (_swissroll, 4),
    "swissroll5": (_swissroll5, 5),
    "gaussians8": (_gaussians8, 8),
    "diamond9": (_diamond9, 9),
    "checkerboard": (_checkerboard, 8),
}


def _draw(name: str, num: int, seed: int, stream: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=[seed, _STREAMS[stream]]))
    x, label = TOYS[name][0](num, rng)
    return x.astype(np.float32), label


def load(name: str, *, split: str, size: int | None = None, seed: int = 0) -> Dataset:
    """Returns `size` points, float32 `(2,)`; the label of a point is its mode (roll, Gaussian or square)."""
    x, label = _draw(name, size or DEFAULT_SIZE[split], seed, split)
    return array_dataset(name, split, x, label, TOYS[name][1])


def sample(name: str, num: int, seed: int) -> np.ndarray:
    """Returns `num` points `(num, 2)` float32, independent of both splits of every seed."""
    require_choice("name", name, TOYS)
    require(num >= 1, "num", num, "a positive integer")
    require(0 <= seed < 2**32, "seed", seed, "an integer in [0, 2^32)")
    return _draw(name, num, seed, "sample")[0]
