"""Data sets, batches that can start at any step, and their transfer to the devices."""

from hold_jax.data.dataset import Dataset, Statistics, deviation, measure
from hold_jax.data.pipeline import batches, eval_batches
from hold_jax.data.sources import load
from hold_jax.data.transfer import from_model_range, prefetch, to_model_range

__all__ = [
    "Dataset",
    "Statistics",
    "batches",
    "deviation",
    "eval_batches",
    "from_model_range",
    "load",
    "measure",
    "prefetch",
    "to_model_range",
]


def __dir__() -> list[str]:
    return __all__
