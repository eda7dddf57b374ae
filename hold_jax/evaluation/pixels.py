"""The data themselves as features: no network."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.data import Statistics, to_model_range
from hold_jax.evaluation.feature_network import FeatureNetwork, Features


def pixels(statistics: Statistics = Statistics()) -> FeatureNetwork:  # noqa: B008
    """Values one after the other: of pictures in the model's range, of other data standardized.

    On toys, which have mean 0 and standard deviation 1 already, it is the distance of TOLD++'s Swiss rolls (2409.07697,
    table I).

    Args:
      statistics: of the training data; without their mean, values are not standardized.
    """
    identity = "pixels in the model's range"
    if statistics.mean:
        units = hashlib.sha256(np.array([statistics.mean, statistics.std]).tobytes()).hexdigest()[:16]
        identity = f"standardized values {units}"
    return FeatureNetwork("pixels", identity, None, functools.partial(_flatten, statistics))


def _flatten(statistics: Statistics, params: None, x: jax.Array) -> Features:
    del params
    return Features(standardized(statistics, x).reshape(x.shape[0], -1), None)


def standardized(statistics: Statistics, x: jax.Array) -> jax.Array:
    """Returns pictures in [-1, 1], and other data with mean 0 and deviation 1 by channel, float32.

    Args:
      statistics: of the training data; without their mean, values are not standardized.
      x: a batch as the data hold it.
    """
    x = to_model_range(x)
    if not statistics.mean:
        return x
    shape = (1,) * (x.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(values, jnp.float32).reshape(shape) for values in (statistics.mean, statistics.std))
    return (x - mean) / std
