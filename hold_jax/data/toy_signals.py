"""`damped_sines`: toy signals whose law is known: a mixture of Gaussians.

With t = i / 64, i = 0, ..., 63, and the two frequencies f of its class, a signal is

    x(t) = sum_f exp(-2 t) (a_f sin(2 pi f t) + b_f cos(2 pi f t)) + 0.05 noise,   a_f, b_f, noise ~ N(0, 1),

divided by the standard deviation of all values. So each class is a Gaussian of mean zero and covariance
exp(-2 (t + t')) sum_f cos(2 pi f (t - t')) + 0.05^2 1[t = t'], divided by the variance.
"""

import numpy as np

from hold_jax.data.dataset import Dataset, array_dataset

LENGTH = 64
DEFAULT_SIZE = {"train": 20_000, "test": 2_000}
_FREQUENCIES = ((1, 3), (2, 5), (4, 8))  # of each class, in cycles per signal
_DECAY = 2.0
_NOISE = 0.05
_TIMES = np.arange(LENGTH) / LENGTH
# The variance of all values; the same in every class.
_VARIANCE = 2 * float(np.mean(np.exp(-2 * _DECAY * _TIMES))) + _NOISE**2
_STREAMS = {"train": 0, "test": 1}


def load(name: str, *, split: str, size: int | None = None, seed: int = 0) -> Dataset:
    """Returns `size` signals, float32 `(64, 1)`, of three classes; mean 0 and standard deviation 1 over all values."""
    rng = np.random.Generator(np.random.Philox(key=[seed, _STREAMS[split]]))
    num = size or DEFAULT_SIZE[split]
    label = rng.integers(len(_FREQUENCIES), size=num)
    angles = 2 * np.pi * np.array(_FREQUENCIES)[label][..., None] * _TIMES  # (num, 2, LENGTH)
    a, b = rng.standard_normal((2, num, 2, 1))
    waves = np.sum(a * np.sin(angles) + b * np.cos(angles), axis=1)
    x = np.exp(-_DECAY * _TIMES) * waves + _NOISE * rng.standard_normal((num, LENGTH))
    x = (x / np.sqrt(_VARIANCE)).astype(np.float32)
    return array_dataset(name, split, x[..., None], label, len(_FREQUENCIES))
