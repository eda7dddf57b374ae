"""The one type every source returns and every pipeline reads."""

import dataclasses
import functools
import hashlib
from typing import Any, Protocol

import numpy as np

from hold_jax.numerics import random

SPLITS = ("test", "train")
# Examples that are read to measure a set that does not lie in memory.
_MEASURED = 10_000


class RandomAccess(Protocol):
    """Examples read one at a time, for sets that do not fit in memory."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Returns `{'x': array of Dataset.shape, 'label': int}`; must be safe to call from several threads."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set: uint8 pictures (channels last) or float32 vectors.

    Attributes:
      name: the name given to `load`, e.g. "digits" or "folder:/x".
      split: "train" or "test".
      source: an array `(N, *shape)`, or a `RandomAccess` object.
      labels: `(N,)` int32; None if unlabeled, or if a `RandomAccess` source alone knows them.
      shape: `(H, W, C)` of a picture or `(d,)` of a vector.
      num_classes: 0 if unlabeled; batches then carry label 0.
      class_names: one a class; empty if the classes have numbers only.
    """

    name: str
    split: str
    source: np.ndarray | RandomAccess
    labels: np.ndarray | None
    shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def in_memory(self) -> bool:
        """Whether `source` is an array."""
        return isinstance(self.source, np.ndarray)

    @property
    def is_image(self) -> bool:
        """Whether an example is a picture `(H, W, C)` of uint8, not a vector of float32."""
        return len(self.shape) == 3

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the content: the examples in order and their labels, whatever the set is called.

        Of a source that does not lie in memory it covers the number of examples, all labels that are known, and 256
        examples spread over the set.
        """
        some = np.arange(len(self)) if self.in_memory else np.unique(np.linspace(0, len(self) - 1, 256).astype(int))
        found = hashlib.sha256(repr((len(self), self.shape, self.num_classes)).encode())
        batch = self.gather(some)
        for array in (batch["x"], batch["label"] if self.labels is None else self.labels):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns fresh arrays `x` `(b, *shape)` and `label` `(b,)` int32 of the examples at `indices`."""
        if isinstance(self.source, np.ndarray):
            x = self.source.take(indices, axis=0)
            label = np.zeros(len(indices), np.int32) if self.labels is None else self.labels.take(indices)
            return {"x": x, "label": label}
        examples = [self.source[i] for i in indices.tolist()]
        return {
            "x": np.stack([e["x"] for e in examples]),
            "label": np.array([e["label"] for e in examples], np.int32),
        }

    def subset(self, size: int | None, seed: int = 0) -> "Dataset":
        """Returns `size` examples drawn at random, without repetition, in random order; None or more than all: all.

        A larger subset of the same seed begins with the smaller one. The examples themselves are not copied unless
        they lie in memory.
        """
        rows = random.subset(len(self), len(self) if size is None else size, seed)
        labels = None if self.labels is None else self.labels.take(rows)
        source = self.source.take(rows, axis=0) if isinstance(self.source, np.ndarray) else _Rows(self.source, rows)
        return dataclasses.replace(self, source=source, labels=labels)


class _Rows:
    """Some examples of a `RandomAccess` source, in an order of their own."""

    def __init__(self, source: RandomAccess, rows: np.ndarray):
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._rows[index])]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a model needs to know of its training data besides their shape; kept in the record of a run.

    Attributes:
      class_counts: training examples of each class; empty if unlabeled.
      class_names: one a class; empty if the classes have numbers only.
      mean: of each coordinate of vectors, in data units; empty for pictures.
      std: standard deviation of each coordinate of vectors, in data units; empty for pictures.
    """

    class_counts: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def measure(data: Dataset) -> Statistics:
    """Returns the statistics of `data`; a set that is not in memory is measured on 10,000 random examples.

    A coordinate that is constant, to float32's accuracy, has standard deviation 1.
    """
    counts: tuple[int, ...] = ()
    batch = None
    if not data.in_memory and (data.labels is None or not data.is_image):
        some = data.subset(_MEASURED)
        batch = some.gather(np.arange(len(some)))
    if data.num_classes:
        labels = data.labels if batch is None else batch["label"]
        assert labels is not None, "a labeled set in memory has its labels"
        counts = tuple(np.bincount(labels, minlength=data.num_classes).tolist())
    if data.is_image:
        return Statistics(counts, data.class_names)
    x = np.asarray(data.source if batch is None else batch["x"], np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
    return Statistics(counts, data.class_names, tuple(mean.tolist()), tuple(std.tolist()))


def array_dataset(
    name: str,
    split: str,
    x: np.ndarray,
    labels: np.ndarray | None,
    num_classes: int,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Returns the in-memory `Dataset` of `x` `(N, *shape)` and optional `labels` `(N,)`."""
    labels = None if labels is None else np.ascontiguousarray(labels, np.int32)
    return Dataset(name, split, np.ascontiguousarray(x), labels, x.shape[1:], num_classes, class_names)


def split_by_permutation(num: int, num_test: int, split: str) -> np.ndarray:
    """Returns the sorted indices of `split` when a fixed permutation of `num` holds out its first `num_test`.

    The permutation never changes (Philox, key 0), so that a set without a test split of its own always has the same.
    """
    order = np.random.Generator(np.random.Philox(key=0)).permutation(num)
    return np.sort(order[:num_test] if split == "test" else order[num_test:])
