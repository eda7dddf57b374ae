"""`digits`: the 1,797 handwritten digits of scikit-learn, 8x8 gray; needs no download."""

from typing import Any

import numpy as np

from hold_jax.data.dataset import Dataset, array_dataset, split_by_permutation
from hold_jax.data.images import Size, fit_arrays

NUM_TEST = 297


def load(name: str, *, split: str, image_size: Size = None, channels: int | None = None) -> Dataset:
    """Returns 1,500 training or 297 test digits, uint8 `(8, 8, 1)` unless resized, 10 classes.

    Pixels of the source are counts 0..16; here they are `round(255 * count / 16)`. The split is a fixed permutation,
    because the classes in the file are in periodic order.
    """
    # The import of scikit-learn takes a second, and no other source needs it.
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    rows = split_by_permutation(len(bunch.target), NUM_TEST, split)
    x = np.rint(bunch.images[rows] * (255 / 16)).astype(np.uint8)[..., None]
    return array_dataset(name, split, fit_arrays(x, image_size, channels), bunch.target[rows], 10)
