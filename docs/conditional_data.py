"""Writes the data of docs/conditions.md: digits with their lower halves, points on circles with their directions.

python -m docs.conditional_data
"""

import numpy as np

from hold_jax import data


def halves(pictures: np.ndarray) -> np.ndarray:
    """Returns uint8 pictures (N, H, W, 1) with the upper half gray."""
    return np.where(np.arange(pictures.shape[1])[:, None, None] < pictures.shape[1] // 2, 128, pictures).astype(
        np.uint8
    )


def circles(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns points (num, 2) near a circle of radius 1.5 or 2.5, as often, and their directions (num, 2) on it."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, num)
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = rng.choice([1.5, 2.5], num)[:, None] * direction + 0.1 * rng.standard_normal((num, 2))
    return points.astype(np.float32), direction.astype(np.float32)


if __name__ == "__main__":
    train, test = (data.load("digits", split=split) for split in ("train", "test"))
    np.savez(
        "digits_halves.npz",
        **{"x": train.source, "y": train.labels, "lower": halves(train.source)},
        **{"x_test": test.source, "y_test": test.labels, "lower_test": halves(test.source)},
    )
    (x, direction), (x_test, direction_test) = circles(20_000, 0), circles(2_000, 1)
    np.savez("circles.npz", x=x, direction=direction, x_test=x_test, direction_test=direction_test)
    some = np.repeat([0.0, np.pi / 2, np.pi, 3 * np.pi / 2], 100)
    np.savez("directions.npz", vector=np.stack([np.cos(some), np.sin(some)], axis=1))
