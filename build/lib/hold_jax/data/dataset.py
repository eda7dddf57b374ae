"""The one type every source returns and every pipeline reads."""

import dataclasses
from typing import Any, Protocol

import numpy as np

SPLITS = ("test", "train")


class RandomAccess(Protocol):
    """Examples read one at a time, for sets that do not fit in memory."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `{'x': array of Dataset.shape, 'label': int}`; must be safe to call from several threads."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set: uint8 pictures (channels last) or float32 vectors.

    Attributes:
      name: what `load` was asked for, e.g. "digits" or "folder:/x".
      split: "train" or "test".
      source: an array `(N, *shape)`, or a `RandomAccess` object.
      labels: `(N,)` int32 for an array source; None if unlabeled or if the source carries them.
      shape: `(H, W, C)` of a picture or `(d,)` of a vector.
      num_classes: 0 if unlabeled; batches then carry label 0.
    """

    name: str
    split: str
    source: np.ndarray | RandomAccess
    labels: np.ndarray | None
    shape: tuple[int, ...]
    num_classes: int

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

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns fresh arrays `x` `(b, *shape)` and `label` `(b,)` int32 of the examples at `indices`."""
        if self.in_memory:
            x = self.source.take(indices, axis=0)
            label = np.zeros(len(indices), np.int32) if self.labels is None else self.labels.take(indices)
            return {"x": x, "label": label}
        examples = [self.source[i] for i in indices.tolist()]
        return {
            "x": np.stack([e["x"] for e in examples]),
            "label": np.array([e["label"] for e in examples], np.int32),
        }


def array_dataset(name: str, split: str, x: np.ndarray, labels: np.ndarray | None, num_classes: int) -> Dataset:
    """Returns the in-memory `Dataset` of `x` `(N, *shape)` and optional `labels` `(N,)`."""
    labels = None if labels is None else np.ascontiguousarray(labels, np.int32)
    return Dataset(name, split, np.ascontiguousarray(x), labels, x.shape[1:], num_classes)


def split_by_permutation(num: int, num_test: int, split: str) -> np.ndarray:
    """Returns the sorted indices of `split` when a fixed permutation of `num` holds out its first `num_test`.

    The permutation never changes (Philox, key 0), so that a set without a test split of its own always has the same.
    """
    order = np.random.Generator(np.random.Philox(key=0)).permutation(num)
    return np.sort(order[:num_test] if split == "test" else order[num_test:])
