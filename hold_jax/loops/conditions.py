"""Conditions of samples: those of the examples of a data set, or of a file, by the samples' numbers."""

import dataclasses
import hashlib
import io
from collections.abc import Callable

import jax
import numpy as np

from hold_jax.condition import FIELDS, Condition, conditions_of
from hold_jax.condition_encoder import ConditionEncoder
from hold_jax.data import Dataset
from hold_jax.data import conditions as arrays
from hold_jax.errors import UserError, require
from hold_jax.model import Model
from hold_jax.runtime import storage
from hold_jax.runtime.npz import Npz, NpzError
from hold_jax.runtime.storage import Path

_LIMIT_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True, eq=False)
class Conditions:
    """The conditions of samples: sample i has those of row i mod `num`.

    Attributes:
      num: number of rows.
      take: returns the rows (b,) as a `Condition` of arrays on the host, in data units.
      digest: of the content.
    """

    num: int
    take: Callable[[np.ndarray], Condition]
    digest: str

    def of(self, index: np.ndarray) -> Condition:
        """Returns the conditions of samples (b,)."""
        return self.take(index % self.num)


NONE = Conditions(1, lambda rows: Condition(), "")
"""Samples without conditions, or with classes alone, which `generate.draw_labels` chooses."""


def of_data(model: Model, data: Dataset) -> Conditions:
    """Returns the conditions of the examples of a data set, in a fixed random order, the one of `Dataset.subset`.

    The label of an example belongs to its picture and vector, so a model that takes these takes the three together. A
    model of classes alone gets `NONE`.

    Raises:
      UserError: if the data lack a condition of the model, or theirs have another shape.
    """
    takes = model.conditions.takes
    if set(takes) <= {"label"}:
        return NONE
    shuffled = data.subset(None)

    def take(rows: np.ndarray) -> Condition:
        found = conditions_of(shuffled.gather(rows))
        return Condition(**{name: getattr(found, name) for name in takes})

    model.conditions.check("data.condition", take(np.arange(1)))
    return Conditions(len(shuffled), take, shuffled.digest)


def of_arrays(condition: Condition) -> Conditions:
    """Returns the conditions in arrays that `ConditionEncoder.check` has checked, in data units.

    Raises:
      UserError: for arrays of different lengths, or empty ones.
    """
    given = {name: np.asarray(getattr(condition, name)) for name in FIELDS if getattr(condition, name) is not None}
    if not given:
        return NONE
    sizes = {f"{name} {array.shape}" for name, array in given.items()}
    num = len(next(iter(given.values())))
    require(all(len(array) == num for array in given.values()) and num > 0, "condition", sizes, "of one length")
    digest = hashlib.sha256()
    for name, array in given.items():
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    arrays = Condition(**given)
    return Conditions(num, lambda rows: jax.tree.map(lambda a: a[rows], arrays), digest.hexdigest())


def of_file(model: Model, path: Path) -> Conditions:
    """Returns the conditions in a .npz file, with arrays `label`, `picture` and `vector` of equal length.

    Args:
      model: the model that takes them.
      path: the file; its conditions must be those that the model takes.

    Raises:
      UserError: if the file cannot be read, or its arrays do not fit the model.
    """
    where = "sampling.condition"
    require(storage.is_file(path), where, str(path), "a .npz file with the arrays label, picture or vector")
    try:
        archive = Npz(io.BytesIO(storage.read(path)), _LIMIT_BYTES)
        found = _read(archive, f"`{where}` is {str(path)!r}", model.conditions)
    except (OSError, NpzError) as error:
        raise UserError(f"`{where}` {path} cannot be read: {error}") from None
    condition = Condition(**found)
    model.conditions.check(where, condition)
    return of_arrays(condition)


def _read(archive: Npz, where: str, encoder: ConditionEncoder) -> dict[str, np.ndarray]:
    keys = [name for name in FIELDS if name in archive]
    if not keys:
        raise UserError(f"{where}; it must hold arrays named {', '.join(FIELDS)}; it holds {archive.describe()}")
    num = (archive.shape(keys[0]) or (0,))[0]
    found = arrays.read(archive, [key for key in keys if key != "label"], num, where)
    for kind in found:
        if kind not in keys:
            raise UserError(f"{where}; array {(set(keys) - {'label', *found}).pop()} is a {kind}: name it {kind}")
    if "label" in keys:
        label = archive.read("label")
        fits = label.ndim == 1 and np.issubdtype(label.dtype, np.integer) and len(label) == num > 0
        if not fits or label.min() < 0 or label.max() > encoder.largest_label:
            raise UserError(
                f"{where}; array label is {label.dtype}{list(label.shape)}; it must be {num:,} integers, "
                f"{encoder.labels_in_words}"
            )
        found["label"] = label.astype(np.int32)
    return found
