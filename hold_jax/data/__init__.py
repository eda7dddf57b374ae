"""Data sets, seekable batches, and their way to the device."""

from hold_jax.data.dataset import Dataset as Dataset
from hold_jax.data.dataset import Statistics as Statistics
from hold_jax.data.dataset import measure as measure
from hold_jax.data.pipeline import batches as batches
from hold_jax.data.pipeline import eval_batches as eval_batches
from hold_jax.data.sources import load as load
from hold_jax.data.transfer import from_model_range as from_model_range
from hold_jax.data.transfer import prefetch as prefetch
from hold_jax.data.transfer import to_model_range as to_model_range
