"""`npz:PATH`: pictures or vectors in one NumPy archive."""

import numpy as np

from hold_jax.data.dataset import Dataset, array_dataset, split_by_permutation
from hold_jax.data.images import fit_arrays
from hold_jax.data.paths import local_path
from hold_jax.errors import UserError
from hold_jax.runtime.npz import Npz, NpzError
from hold_jax.runtime.storage import open_regular

_X = {"train": ("x", "images", "x_train", "arr_0"), "test": ("x_test", "images_test")}
_Y = {"train": ("y", "labels", "y_train"), "test": ("y_test", "labels_test")}
# Without a test array, one row in ten is held out as the test split.
HOLDOUT_DIVISOR = 10
# Labels are numbers from 0. Each class has a count in the record and a row in the network, so larger labels are errors.
_MAX_CLASSES = 1 << 16


def load(
    name: str,
    *,
    split: str,
    image_size: int | None = None,
    channels: int | None = None,
    data_dir: str | None = None,
    memory_limit_bytes: int,
) -> Dataset:
    """Loads uint8 pictures `(N, H, W, C)` or `(N, H, W)`, or floating-point vectors `(N, d)`, converted to float32.

    The array is named `x`, `images`, `x_train` or `arr_0`; optional integer labels are `y`, `labels` or `y_train`. The
    test split is `x_test` or `images_test`, with labels `y_test` or `labels_test`. Without a test array, a tenth of the
    rows (rounded up, by a fixed permutation) is the test split.

    Args:
      name: "npz:PATH".
      split: "train" or "test".
      image_size: side of the square pictures; None: as in the archive.
      channels: 1 or 3; None: as in the archive.
      data_dir: root of a relative PATH.
      memory_limit_bytes: a larger array is an error, raised before it is decompressed.

    Raises:
      UserError: if the archive or one of its arrays cannot be used.
    """
    path = local_path(name, data_dir)
    if not path.is_file():
        raise UserError(f"`name` is {name!r}; there is no file {path}")
    with open_regular(path) as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise UserError(f"`name` is {name!r}; {path} holds a single array: save it with np.savez(path, x=array)")
        try:
            reader = _Reader(name, Npz(file, memory_limit_bytes))
        except NpzError as error:
            raise UserError(f"`name` is {name!r}; {path} is not a readable .npz archive: {error}") from None
        x, labels, num_classes = reader.split(split)
    if x.ndim == 4:
        x = fit_arrays(x, image_size, channels)
    elif image_size or channels:
        raise UserError(f"`image_size` and `channels` must be None: {name!r} holds vectors, not pictures")
    return array_dataset(name, split, x, labels, num_classes)


class _Reader:
    """Finds and checks the arrays of an open archive; each error lists the arrays of the archive."""

    def __init__(self, name: str, archive: Npz):
        self._name = name
        self._archive = archive

    def split(self, split: str) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Returns (x, labels or None, num_classes) of `split`."""
        keys = {which: (self._find(_X[which]), self._find(_Y[which])) for which in ("train", "test")}
        train = keys["train"][0]
        if train is None:
            raise self._error(f"it needs an array named {', '.join(_X['train'][:-1])} or {_X['train'][-1]}")
        labels = {which: self._labels(y_key) for which, (_, y_key) in keys.items()}
        num_classes = max((int(y.max()) + 1 for y in labels.values() if y is not None), default=0)
        if keys["test"][0] is not None:
            x, y = self._x(keys[split][0] or train), labels[split]
            self._check_rows(x, y, keys[split])
            return x, y, num_classes
        x, y = self._x(train), labels["train"]
        self._check_rows(x, y, keys["train"])
        if len(x) < 2:
            raise self._error("it needs at least two rows, since one is held out for the test split")
        rows = split_by_permutation(len(x), -(-len(x) // HOLDOUT_DIVISOR), split)
        return x[rows], None if y is None else y[rows], num_classes

    def _error(self, problem: str) -> UserError:
        return UserError(f"`name` is {self._name!r}; {problem}; the archive holds {self._archive.describe()}")

    def _find(self, keys: tuple[str, ...]) -> str | None:
        return next((key for key in keys if key in self._archive), None)

    def _read(self, key: str) -> np.ndarray:
        try:
            return self._archive.read(key)
        except NpzError as error:
            raise UserError(f"`name` is {self._name!r}; array {key} cannot be read: {error}") from None

    def _x(self, key: str) -> np.ndarray:
        x = self._read(key)
        if x.size == 0:
            raise self._error(f"array {key} is empty")
        if x.ndim == 2 and np.issubdtype(x.dtype, np.floating):
            with np.errstate(over="ignore"):
                x = x.astype(np.float32)
            if not np.isfinite(x).all():
                raise self._error(f"array {key} has values that are not finite as float32")
            return x
        if x.ndim == 3 and x.dtype == np.uint8:
            return x[..., None]
        if x.ndim == 4 and x.dtype == np.uint8 and x.shape[-1] in (1, 3):
            return x
        raise self._error(
            f"array {key} must be uint8 pictures [N, H, W] or [N, H, W, 1 or 3], channels last, or float [N, d]"
        )

    def _labels(self, key: str | None) -> np.ndarray | None:
        if key is None:
            return None
        y = self._read(key)
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        whole = y.ndim == 1 and y.size > 0 and np.issubdtype(y.dtype, np.integer)
        if not whole or y.min() < 0 or y.max() >= _MAX_CLASSES:
            raise self._error(f"array {key} must hold one integer label, 0 to {_MAX_CLASSES - 1}, for each row")
        return y

    def _check_rows(self, x: np.ndarray, y: np.ndarray | None, keys: tuple[str | None, str | None]) -> None:
        if y is not None and len(x) != len(y):
            raise self._error(f"arrays {keys[0]} and {keys[1]} differ in length")
