"""The data themselves as features: no network."""

import jax

from hold_jax.data import to_model_range
from hold_jax.evaluation.feature_network import FeatureNetwork, Features


def pixels() -> FeatureNetwork:
    """Values in the model's range, one after the other: the distance of TOLD++'s Swiss rolls (2409.07697, table I)."""
    return FeatureNetwork("pixels", "frechet_raw", "pixels in the model's range", None, _flatten)


def _flatten(params: None, x: jax.Array) -> Features:
    del params
    return Features(to_model_range(x).reshape(x.shape[0], -1), None)
