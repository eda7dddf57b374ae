"""`Dataset`, the type that all sources return and all pipelines read."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from hold_jax.errors import require
from hold_jax.numerics import random

SPLITS = ("test", "train")
KINDS = ("picture", "vector", "signal", "array")
_KIND_OF_RANK = {1: "vector", 2: "signal", 3: "picture"}
# Without a test split, one example in ten is held out.
HOLDOUT_DIVISOR = 10
# Labels are numbers from 0. Each class has a count in the record and a row in the network, so larger labels are errors.
MAX_CLASSES = 1 << 16
# Number of examples from which a set that is not in memory is measured.
_MEASURED = 10_000
# `deviation` reads as many examples as have this many values, but at least 1,000 and at most `_MEASURED`.
_VALUES = 1 << 27
_BLOCK = 1 << 22  # values that `deviation` reads at once


class RandomAccess(Protocol):
    """Interface of a set that does not fit in memory; examples are read one at a time."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Returns an example; must be safe to call from several threads.

        It is `{'x': array of Dataset.shape, 'label': int}`, and may have the conditions `'picture'` and `'vector'`.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Lazy:
    """A `RandomAccess` set of `num` examples, of which `read` makes the one of an index."""

    num: int
    read: Callable[[int], dict[str, Any]]

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self.read(index)


def _row(source: RandomAccess, rows: np.ndarray, index: int) -> dict[str, Any]:
    return source[int(rows[index])]


def default_kind(shape: tuple[int, ...]) -> str:
    """Returns what an example of a shape is taken for: `(d,)` vector, `(length, C)` signal, `(H, W, C)` picture."""
    return _KIND_OF_RANK[len(shape)]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set: uint8 pictures, or float32 vectors, signals or arrays; channels are last.

    Attributes:
      name: the name given to `load`, e.g. "digits" or "folder:/x".
      split: "train" or "test".
      source: an array `(N, *shape)`, or a `RandomAccess` object.
      labels: `(N,)` int32; None if unlabeled, or if the labels are only in a `RandomAccess` source.
      shape: `(H, W, C)` of a picture or an array, `(d,)` of a vector, `(length, C)` of a signal.
      num_classes: 0 if unlabeled; all labels in batches are then 0.
      class_names: one per class; empty if the classes have no names.
      kind: one of `KINDS`; `default_kind` unless it is given.
      picture: a condition picture of each example, `(N, H, W, C)` uint8 or float32; None if there are none, or if they
        are in the examples of a `RandomAccess` source.
      vector: a condition vector of each example, `(N, k)` float32; None in the same cases.
      integers: whether the values of vectors, signals or arrays were integers, all exact in float32.
    """

    name: str
    split: str
    source: np.ndarray | RandomAccess
    labels: np.ndarray | None
    shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] = ()
    kind: str = ""
    picture: np.ndarray | None = None
    vector: np.ndarray | None = None
    integers: bool = False

    def __post_init__(self):
        object.__setattr__(self, "kind", self.kind or default_kind(self.shape))
        found = self.source.dtype if isinstance(self.source, np.ndarray) else self.dtype
        require(found == self.dtype, "source", found.name, f"{self.dtype}, the type of a {self.kind}")

    def __len__(self) -> int:
        return len(self.source)

    @property
    def in_memory(self) -> bool:
        """True if `source` is an array."""
        return isinstance(self.source, np.ndarray)

    @property
    def is_image(self) -> bool:
        """True if an example is a uint8 picture `(H, W, C)`, False if it is float32."""
        return self.kind == "picture"

    @property
    def dtype(self) -> np.dtype:
        """Type of the examples: uint8 or float32."""
        return np.dtype(np.uint8 if self.is_image else np.float32)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 digest of the content: the examples in order, their labels and conditions, but not the name.

        For a source that is not in memory it covers the number of examples, all known labels, and 256 examples spread
        over the set.
        """
        batch = self.gather(np.arange(len(self)) if self.in_memory else self._spread())
        return self._digest_of(batch | ({} if self.labels is None else {"label": self.labels}))

    @functools.cached_property
    def digest_of_some(self) -> str:
        """SHA-256 digest of 256 examples spread over the set, and of their number; the same in memory and on disk."""
        return self._digest_of(self.gather(self._spread()))

    def _spread(self) -> np.ndarray:
        return np.unique(np.linspace(0, len(self) - 1, 256).astype(int))

    def _digest_of(self, batch: dict[str, np.ndarray]) -> str:
        found = hashlib.sha256(repr((len(self), self.shape, self.num_classes)).encode())
        for array in batch.values():
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns new arrays of the examples at `indices` `(b,)`.

        They are `x` `(b, *shape)`, `label` `(b,)` int32, and of the conditions `picture` `(b, H, W, C)` and `vector`
        `(b, k)` those that there are.
        """
        if isinstance(self.source, np.ndarray):
            label = np.zeros(len(indices), np.int32) if self.labels is None else self.labels.take(indices)
            batch = {"x": self.source.take(indices, axis=0), "label": label}
        else:
            examples = [self.source[i] for i in indices.tolist()]
            batch = {
                "x": np.stack([e["x"] for e in examples]),
                "label": np.array([e["label"] for e in examples], np.int32),
            }
            for name in ("picture", "vector"):
                if name in examples[0]:
                    batch[name] = np.stack([e[name] for e in examples])
        for name, array in (("picture", self.picture), ("vector", self.vector)):
            if array is not None:
                batch[name] = array.take(indices, axis=0)
        return batch

    @functools.cached_property
    def layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of one example in each of the arrays of `gather`."""
        return {name: (array.shape[1:], array.dtype) for name, array in self.gather(np.arange(1)).items()}

    def subset(self, size: int | None, seed: int = 0) -> "Dataset":
        """Draws examples at random, without replacement, in random order.

        A larger subset of the same seed begins with the smaller one. Examples are copied only if they are in memory.

        Args:
          size: number of examples; None, or more than there are: all.
          seed: seed of the random order.
        """
        rows = random.subset(len(self), len(self) if size is None else size, seed)

        def take(source: Any) -> Any:
            if isinstance(source, np.ndarray):
                return source.take(rows, axis=0)
            return None if source is None else Lazy(len(rows), functools.partial(_row, source, rows))

        parts = {name: take(getattr(self, name)) for name in ("source", "labels", "picture", "vector")}
        return dataclasses.replace(self, **parts)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of the training data that a model needs; saved in the record of a run.

    Attributes:
      class_counts: number of training examples of each class, estimated for a set on disk without a list of labels;
        empty if unlabeled.
      class_names: one per class; empty if the classes have no names.
      mean: of each coordinate of vectors, or each channel of signals and arrays, in data units; empty for pictures.
      std: their standard deviations, in data units; empty for pictures.
      kind: one of `KINDS`; empty in records of earlier versions, for `default_kind`.
      picture_shape: (H, W, C) of condition pictures; empty if there are none.
      picture_mean: of each channel of condition pictures; empty if they are uint8.
      picture_std: standard deviation of each channel of condition pictures; empty if they are uint8.
      vector_mean: of each entry of condition vectors; empty if there are none.
      vector_std: standard deviation of each entry of condition vectors.
      integers: as in `Dataset`: bits per dimension are then those of discrete data.
    """

    class_counts: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    kind: str = ""
    picture_shape: tuple[int, ...] = ()
    picture_mean: tuple[float, ...] = ()
    picture_std: tuple[float, ...] = ()
    vector_mean: tuple[float, ...] = ()
    vector_std: tuple[float, ...] = ()
    integers: bool = False


def measure(data: Dataset) -> Statistics:
    """Returns the statistics of `data`; a set that is not in memory is measured on 10,000 random examples.

    Means and standard deviations are over the examples and, for signals and arrays, over all positions. A coordinate or
    channel that is constant up to float32 rounding gets standard deviation 1.
    """
    counts: tuple[int, ...] = ()
    batch: dict[str, np.ndarray] = {}
    floats = [name for name, (_, dtype) in data.layout.items() if dtype == np.float32]
    if not data.in_memory and ((data.num_classes and data.labels is None) or floats):
        some = data.subset(_MEASURED)
        batch = some.gather(np.arange(len(some)))
    if data.num_classes:
        labels = batch.get("label") if data.labels is None else data.labels
        assert labels is not None, "a labeled set in memory has its labels"
        found = np.bincount(labels, minlength=data.num_classes)
        if len(labels) < len(data):  # an estimate; a class that these examples lack may be there
            found = np.maximum(np.rint(found * (len(data) / len(labels))), 1).astype(np.int64)
        counts = tuple(found.tolist())
    whole = {"x": data.source, "picture": data.picture, "vector": data.vector}
    moments = {name: _moments(np.asarray(batch.get(name, whole[name]))) for name in floats}
    (mean, std), (picture_mean, picture_std), (vector_mean, vector_std) = (
        moments.get(name, ((), ())) for name in whole
    )
    return Statistics(
        class_counts=counts,
        class_names=data.class_names,
        mean=mean,
        std=std,
        kind=data.kind,
        picture_shape=data.layout["picture"][0] if "picture" in data.layout else (),
        picture_mean=picture_mean,
        picture_std=picture_std,
        vector_mean=vector_mean,
        vector_std=vector_std,
        integers=data.integers,
    )


def _moments(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation along the last axis; 1 for one that is constant up to float32 rounding."""
    axes = tuple(range(x.ndim - 1))
    mean, std = x.mean(axes, np.float64), x.std(axes, np.float64)
    std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def deviation(data: Dataset) -> float:
    """Returns the standard deviation of all values of `data` in the model's range, with four significant digits.

    It is measured on up to 10,000 random examples, fewer for large pictures, the same ones in every call. The range is
    that of `to_model_range`: pictures in [-1, 1], vectors as they are. Data that are constant up to rounding have
    standard deviation 1.
    """
    size = int(np.prod(data.shape))
    rows = random.subset(len(data), max(1000, min(_MEASURED, _VALUES // size)))
    step = max(1, _BLOCK // size)
    count, shift, total, squares = 0, None, 0.0, 0.0
    for start in range(0, len(rows), step):
        x = np.asarray(data.gather(rows[start : start + step])["x"], np.float64)
        # Sums of uint8 values and of their squares are exact in float64; other values are first shifted to mean 0.
        shift = (0.0 if data.is_image else x.mean()) if shift is None else shift
        x -= shift
        count, total, squares = count + x.size, total + x.sum(), squares + np.square(x).sum()
    mean = total / count
    std = np.sqrt(max(squares / count - mean**2, 0.0)) / (127.5 if data.is_image else 1.0)
    return float(f"{std:.4g}") if std > 1e-6 * abs(mean + (shift or 0.0)) else 1.0


def array_dataset(
    name: str,
    split: str,
    x: np.ndarray,
    labels: np.ndarray | None,
    num_classes: int,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Returns the in-memory `Dataset` of `x` `(N, *shape)`, uint8 or float32, and optional `labels` `(N,)`."""
    labels = None if labels is None else np.ascontiguousarray(labels, np.int32)
    kind = "array" if x.ndim == 4 and x.dtype != np.uint8 else default_kind(x.shape[1:])
    return Dataset(name, split, np.ascontiguousarray(x), labels, x.shape[1:], num_classes, class_names, kind)


def hold_out(num: int, split: str) -> np.ndarray:
    """Returns the sorted indices of `split` in a set without a test split: a tenth, rounded up, is held out."""
    return split_by_permutation(num, -(-num // HOLDOUT_DIVISOR), split)


def split_by_permutation(num: int, num_test: int, split: str) -> np.ndarray:
    """Splits the indices of a set without a test split by a fixed permutation (Philox, key 0).

    Args:
      num: number of examples.
      num_test: the first `num_test` indices of the permutation are the test split.
      split: "train" or "test".

    Returns:
      The sorted indices of `split`, int64.
    """
    order = np.random.Generator(np.random.Philox(key=0)).permutation(num)
    return np.sort(order[:num_test] if split == "test" else order[num_test:])
