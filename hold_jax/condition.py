"""`Condition`: what an example is conditioned on, a class, a picture, a vector, or several of these.

Training adds how the example was augmented.

Conditions are in data units where users meet them (`Model.eps_fn`, files, batches of data): class numbers, uint8 or
float pictures, float vectors. A network receives them in its own range (`hold_jax.condition_encoder`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hold_jax.errors import UserError

__all__ = ["FIELDS", "Condition", "as_condition", "conditions_of"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
    """The conditions of a batch of B examples, a pytree; None: not conditioned on that.

    Attributes:
      label: (B,) integer classes.
      picture: (B, H, W, C) pictures.
      vector: (B, k) vectors.
      augmentation: (B, 9) labels of `data.augment`, in training only; None is the same as zeros: not augmented.
    """

    label: Any = None
    picture: Any = None
    vector: Any = None
    augmentation: Any = None


FIELDS = ("label", "picture", "vector")
"""The conditions that data have and users give."""


def as_condition(given: Condition | Mapping[str, Any] | None) -> Condition:
    """Returns the `Condition` that a dictionary of its fields stands for; None stands for no condition.

    Lists of numbers become arrays.

    Raises:
      UserError: for anything else, and for a key that is not a field.
    """
    if isinstance(given, Condition):
        return dataclasses.replace(given, **{name: _array(name, getattr(given, name)) for name in FIELDS})
    allowed = f"a Condition or a dictionary with keys among {', '.join(FIELDS)}"
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"`condition` is of type {type(given).__name__}; it must be {allowed}")
    wrong = sorted(map(str, set(given or {}) - set(FIELDS)))
    if wrong:
        raise UserError(f"`condition` has the keys {', '.join(wrong)}; it must be {allowed}")
    return as_condition(Condition(**(given or {})))


def _array(name: str, value: Any) -> Any:
    """The value as an array, or None; what has a shape stays."""
    if value is None or hasattr(value, "shape"):
        return value
    try:
        return np.asarray(value)
    except ValueError:
        raise UserError(f"`condition.{name}` is no array: its rows differ in length") from None


def conditions_of(batch: Mapping[str, Any]) -> Condition:
    """Returns the conditions among the arrays of a batch of data."""
    return Condition(**{name: batch[name] for name in FIELDS if name in batch})


def __dir__() -> list[str]:
    return __all__
