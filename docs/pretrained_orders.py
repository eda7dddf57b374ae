"""One network sampled at orders 1 to 4: the pictures of docs/importers.md and docs/results/h200.md.

python -m docs.pretrained_orders FOLDER                        # docs/images/pretrained_orders.png
python -m docs.pretrained_orders weights.safetensors NAME.png  # docs/images/NAME.png; minutes on two cores
"""

import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import hold_jax

IMAGES = Path(__file__).parent / "images"
ORDERS, COLUMNS = (1, 2, 3, 4), 14


def main(folder: str, name: str = "pretrained_orders.png") -> None:
    """Draws one row of samples for each order."""
    model = hold_jax.load(folder)
    figure, rows = plt.subplots(len(ORDERS), figsize=(9, 2.8), layout="constrained")
    for order, axes in zip(ORDERS, rows, strict=True):
        pictures = model.with_sde(order).sample(COLUMNS, jax.random.key(1), batch_size=COLUMNS)
        apart = np.pad(pictures.squeeze(), [(0, 0), (0, 0), (0, 1)] + [(0, 0)] * (pictures.shape[-1] > 1))
        axes.imshow(np.concatenate(apart, axis=1), cmap="gray", interpolation="bicubic", vmin=0, vmax=255)
        axes.set_ylabel(f"order {order}", rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.savefig(IMAGES / name, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
