"""Distances between sets of samples, in float64 NumPy on the host; they do not depend on the rest of the package."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hold_jax.metrics import frechet, inception_score, kernel, neighbors, resampling, sliced_wasserstein

__all__ = ["frechet", "inception_score", "kernel", "neighbors", "resampling", "sliced_wasserstein"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"hold_jax.metrics.{name}")
    raise AttributeError(f"module 'hold_jax.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
