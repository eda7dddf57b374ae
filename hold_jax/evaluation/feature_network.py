"""Feature networks: from examples to the features that metrics compare."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Features(NamedTuple):
    """values (B, d) float32; logits (B, k) float32 of the network's classes, or None."""

    values: jax.Array | np.ndarray
    logits: jax.Array | np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A fixed map from data to features.

    Attributes:
      name: what the config calls it.
      distance: what the squared Frechet distance of its features is called, e.g. "fid".
      identity: of the map and its weights; statistics made with another are not used.
      params: of `apply`.
      apply: (params, x (B, *shape)) -> Features, jittable; x is data as a `Dataset` holds it: uint8 pictures,
        float32 vectors.
    """

    name: str
    distance: str
    identity: str
    params: Any
    apply: Callable[[Any, jax.Array], Features]
