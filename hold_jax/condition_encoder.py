"""How conditions enter a network: checked, brought to its range, and replaced by null conditions.

A network receives pictures of the size of the data and standardized vectors, both with one more channel or entry, the
last, which is 1. The null condition of classifier-free guidance (2207.12598) is class `num_classes`, and a picture or
vector of zeros, the last channel or entry included, so that it differs from all conditions of the data.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from hold_jax.condition import FIELDS, Condition
from hold_jax.data.transfer import to_model_range
from hold_jax.errors import require, require_given


@dataclasses.dataclass(frozen=True)
class ConditionEncoder:
    """What conditions a network takes, and their conversion from data units to the network's range.

    Attributes:
      num_classes: of labels; 0: the network takes no labels.
      picture_shape: (H, W, C) of the data's condition pictures; empty: the network takes none.
      picture_mean: of each channel of float pictures; empty: pictures are uint8.
      picture_std: standard deviation of each channel of float pictures.
      vector_mean: of each entry of vectors; empty: the network takes none.
      vector_std: standard deviation of each entry of vectors.
      size: (H, W) that pictures are resized to, that of the data.
      dropout: probability of training with the null condition, for each of `FIELDS`.
    """

    num_classes: int
    picture_shape: tuple[int, ...]
    picture_mean: tuple[float, ...]
    picture_std: tuple[float, ...]
    vector_mean: tuple[float, ...]
    vector_std: tuple[float, ...]
    size: tuple[int, ...]
    dropout: tuple[float, ...]

    def __post_init__(self):
        needs = ("model.class_conditional is True", "data.condition has a picture", "data.condition has a vector")
        for name, rate, need in zip(FIELDS, self.dropout, needs, strict=True):
            require(0 <= rate < 1, f"{name}_dropout", rate, "in [0, 1)")
            require(rate == 0 or name in self.takes, f"{name}_dropout", rate, f"0 or None unless {need}")

    @property
    def takes(self) -> tuple[str, ...]:
        """The fields of `Condition` that the network takes."""
        taken = (self.num_classes, self.picture_shape, self.vector_mean)
        return tuple(name for name, value in zip(FIELDS, taken, strict=True) if value)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of one example's conditions, in data units, in the order of `takes`."""
        return tuple(map(self._shape, self.takes))

    @property
    def droppable(self) -> tuple[str, ...]:
        """The fields that the network was trained without, some of the time."""
        return tuple(name for name, rate in zip(FIELDS, self.dropout, strict=True) if rate > 0)

    @property
    def largest_label(self) -> int:
        """The largest label: the null class `num_classes`, if labels have dropout, for otherwise it is not trained."""
        return max(0, self.num_classes - ("label" not in self.droppable))

    @property
    def labels_in_words(self) -> str:
        """The labels that are allowed."""
        none = f", or {self.num_classes} for none" if "label" in self.droppable else ""
        return f"classes from 0 to {max(0, self.num_classes - 1)}{none}"

    def check(self, argument: str, condition: Condition) -> None:
        """Checks shapes and types of conditions in data units, and the values of arrays that are not traced.

        Args:
          argument: what errors call them.
          condition: arrays, or their shapes and dtypes.

        Raises:
          UserError: for a condition that is missing and has no dropout, that the network does not take, or of another
            shape or type, or with values that are not finite or no class. Labels are allowed for every network, because
            every batch of data has them.
        """
        eight_bits = not self.picture_mean
        floats = ("floats", lambda kind: jnp.issubdtype(kind, jnp.floating))
        kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {
            "label": ("integers", lambda kind: np.issubdtype(kind, np.integer)),
            "picture": (("uint8", lambda kind: kind == np.uint8) if eight_bits else floats),
            "vector": floats,
        }
        for name in FIELDS:
            array, where = getattr(condition, name), f"{argument}.{name}"
            if name not in self.takes:
                allowed = f"None: the network takes no {name}, because it was trained without `data.condition` of one"
                require(array is None or name == "label", where, getattr(array, "shape", array), allowed)
                continue
            shape = self._shape(name)
            kind, is_kind = kinds[name]
            expected = f"an array of {kind}, of shape ({', '.join(map(str, ('B', *shape)))}{',' * (not shape)})"
            if array is None:
                require(name in self.droppable, where, None, f"{expected}: the network is conditioned on it")
                continue
            # Height and width of a picture are free: it is resized.
            fits = len(array.shape) == 1 + len(shape) and array.shape[1:][-1:] == shape[-1:]
            require(fits and is_kind(array.dtype), where, f"{array.dtype}{list(array.shape)}", expected)
            values = _known(array)
            if not values.size:
                continue
            require(bool(np.isfinite(values).all()), where, "not finite", "finite")
            if name == "label":
                low, high = int(values.min()), int(values.max())
                require(0 <= low <= high <= self.largest_label, where, f"from {low} to {high}", self.labels_in_words)

    def encode(self, condition: Condition) -> Condition:
        """Returns conditions in the network's range; those that are not given, or that it does not take, are None.

        Pictures become x / 127.5 - 1 (uint8) or (x - mean) / std by channel (float), and are resized to the data's
        height and width: bilinear, with an antialiasing filter where they shrink (`jax.image.resize`).
        """
        self.check("condition", condition)
        picture, vector = condition.picture, condition.vector
        if picture is not None:
            picture = jnp.asarray(picture)
            picture = (
                _standardized(picture, self.picture_mean, self.picture_std)
                if self.picture_mean
                else to_model_range(picture)
            )
            shape = (picture.shape[0], *self.size, picture.shape[-1])
            picture = picture if picture.shape == shape else jax.image.resize(picture, shape, "linear")
            picture = _with_one(picture)
        if vector is not None:
            vector = _with_one(_standardized(jnp.asarray(vector), self.vector_mean, self.vector_std))
        return Condition(condition.label if self.num_classes else None, picture, vector, condition.augmentation)

    def null(self, name: str, size: int) -> jax.Array:
        """Returns `size` null conditions, in the network's range, for one of the fields that the network takes."""
        if name == "label":
            return jnp.full((size,), self.num_classes, jnp.int32)
        inner = self.size if name == "picture" else ()
        return jnp.zeros((size, *inner, self._shape(name)[-1] + 1), jnp.float32)

    def without(self, condition: Condition, names: Sequence[str], size: int) -> Condition:
        """Returns the conditions of a batch of `size` with the fields `names` null."""
        return dataclasses.replace(condition, **{name: self.null(name, size) for name in names})

    def complete(self, encoded: Condition, size: int) -> Condition:
        """Returns the conditions of a batch of `size`, null ones in place of those that are not given.

        Raises:
          UserError: for conditions of another length.
        """
        missing = [name for name in self.takes if getattr(encoded, name) is None]
        for name in set(self.takes) - set(missing):
            length = getattr(encoded, name).shape[0]
            require(length == size, f"condition.{name}", f"of length {length}", f"of length {size}, that of the batch")
        return self.without(encoded, missing, size)

    def drop(self, encoded: Condition, key: jax.Array) -> Condition:
        """Makes each condition of a training batch null with its probability.

        If several have dropout, half of the examples draw for each of them, and half once for all: so the network
        learns to be without one of them as well as without all (as InstructPix2Pix does, 2211.09800, section 3.2.1).

        Raises:
          UserError: for one that is not given.
        """
        values: dict[str, jax.Array] = {}
        for i, name in enumerate(self.droppable):
            array = require_given(f"condition.{name}", getattr(encoded, name), "given in training")
            size = array.shape[0]
            draw = jax.random.uniform(key, (size,), jnp.float32)
            if i:
                own = jax.random.uniform(jax.random.fold_in(key, i), (size,), jnp.float32)
                alone = jax.random.bernoulli(jax.random.fold_in(key, 0), jnp.float32(0.5), (size,))
                draw = jnp.where(alone, own, draw)
            drop = (draw < self.dropout[FIELDS.index(name)]).reshape(-1, *(1,) * (array.ndim - 1))
            values[name] = jnp.where(drop, self.null(name, size), array)
        return dataclasses.replace(encoded, **values)

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of one example's condition, in data units."""
        return {"label": (), "picture": self.picture_shape, "vector": (len(self.vector_mean),)}[name]


def _known(array: Any) -> np.ndarray:
    """The array's values; none where they are not known here: traced, a shape alone, or partly on other hosts."""
    concrete = isinstance(array, np.ndarray | jax.Array) and not isinstance(array, jax.core.Tracer)
    return np.asarray(array) if concrete and getattr(array, "is_fully_addressable", True) else np.empty(0)


def _standardized(x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """(x - mean) / std along the last axis, float32."""
    shape = (1,) * (x.ndim - 1) + (-1,)
    center, scale = (jnp.asarray(np.reshape(moment, shape), jnp.float32) for moment in (mean, std))
    return (x.astype(jnp.float32) - center) / scale


def _with_one(x: jax.Array) -> jax.Array:
    """Returns x with a last channel of ones."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
