"""Writes the data of docs/conditions.md: points on circles with their directions.

python -m docs.conditional_data
python -m docs.conditional_data --samples=FOLDER     # draws docs/images/halves.png from the samples of digits
"""

import argparse
from pathlib import Path

import numpy as np

from hold_jax import data
from hold_jax.runtime import pictures


def circles(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns points (num, 2) near a circle of radius 1.5 or 2.5, as often, and their directions (num, 2) on it."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, num)
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = rng.choice([1.5, 2.5], num)[:, None] * direction + 0.1 * rng.standard_normal((num, 2))
    return points.astype(np.float32), direction.astype(np.float32)


def beside(samples: Path, num: int = 16) -> None:
    """Draws the first samples between the halves that were given and the digits that these are of."""
    true = data.load("digits", split="test", condition="inpaint:upper").subset(num)
    drawn = np.load(samples / "samples.npz")["x"][:num]
    given = np.load(samples / "condition.npz")["picture"][:num]
    np.testing.assert_array_equal(given, true.picture)
    image = pictures.bands({"given": given, "drawn": drawn, "true": true.source}, num)
    pictures.write_png(image, Path(__file__).parent / "images" / "halves.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--samples", type=Path, default=None, help="folder of samples of digits from their lower halves"
    )
    folder = parser.parse_args().samples
    if folder is not None:
        beside(folder)
    else:
        (x, direction), (x_test, direction_test) = circles(20_000, 0), circles(2_000, 1)
        np.savez("circles.npz", x=x, direction=direction, x_test=x_test, direction_test=direction_test)
        some = np.repeat([0.0, np.pi / 2, np.pi, 3 * np.pi / 2], 100)
        np.savez("directions.npz", vector=np.stack([np.cos(some), np.sin(some)], axis=1))
