"""Feature networks: from examples to the features that metrics compare."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

# What the squared Frechet distance in the features of each network is called.
DISTANCES = {
    "inception": "fid",
    "dinov2": "fd_dinov2",
    "classifier": "frechet_classifier_distance",
    "pixels": "frechet_raw",
}


class Features(NamedTuple):
    """values (B, d) float32; logits (B, k) float32 of the network's classes, or None."""

    values: jax.Array | np.ndarray
    logits: jax.Array | np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A fixed map from data to features.

    Attributes:
      name: a key of `DISTANCES`, or the name of a user's own function.
      identity: of the map and its weights; statistics made with another are not used.
      params: of `apply`.
      apply: (params, x (B, *shape)) -> Features, jittable; x is data as a `Dataset` holds it: uint8 pictures,
        float32 vectors.
    """

    name: str
    identity: str
    params: Any
    apply: Callable[[Any, jax.Array], Features]


def distance_of(name: str) -> str:
    """Returns what the squared Frechet distance in the features of the network `name` is called, e.g. "fid"."""
    return DISTANCES.get(name, f"frechet_{name}")


def digest_of(params: Any) -> str:
    """Returns a digest of nested dicts of arrays: their names, shapes and float32 values."""
    digest = hashlib.sha256()
    for name, value in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        digest.update(f"{name} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value, "<f4").data)
    return digest.hexdigest()[:16]
