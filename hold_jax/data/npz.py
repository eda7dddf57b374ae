"""`npz:PATH`: pictures, vectors, signals or arrays in one .npz or .npy file of NumPy."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import BinaryIO, cast

import numpy as np

from hold_jax.data import conditions
from hold_jax.data.dataset import MAX_CLASSES, Dataset, array_dataset, hold_out
from hold_jax.data.files import is_url, local_path, system
from hold_jax.data.images import Size, are_integers, as_float32, eight_bits, fit_arrays, suffixes
from hold_jax.errors import UserError, require
from hold_jax.runtime import storage
from hold_jax.runtime.npz import Npy, Npz, NpzError

_X = {"train": ("x", "images", "x_train", "arr_0"), "test": ("x_test", "images_test")}
_Y = {"train": ("y", "labels", "y_train"), "test": ("y_test", "labels_test")}
# kind -> the shapes that it may have
_SHAPES = {
    "picture": "[N, H, W] or [N, H, W, 1 or 3], uint8, uint16 with data.bits, or floats in [0, 1]",
    "vector": "[N, d] or [N]",
    "signal": "[N, length] or [N, length, C]",
    "array": "[N, H, W] or [N, H, W, C]",
}
_RANKS = {"picture": (3, 4), "vector": (1, 2), "signal": (2, 3), "array": (3, 4)}
_KINDS_OF_FLOATS = {1: "vector", 2: "vector", 3: "signal", 4: "array"}  # by rank


def load(
    name: str,
    *,
    split: str,
    kind: str | None = None,
    image_size: Size = None,
    channels: int | None = None,
    bits: int | None = None,
    condition: str | None = None,
    data_dir: str | None = None,
    memory_limit_bytes: int,
) -> Dataset:
    """Loads the arrays of a file, by this rule where `kind` is None; channels are last:

    - uint8 `(N, H, W)` or `(N, H, W, 1 or 3)`: pictures;
    - floats `(N, d)`: vectors, and `(N,)`: vectors of one coordinate;
    - floats `(N, length, C)`: signals of C channels;
    - floats `(N, H, W, C)`: arrays of C channels, unless H <= 4 and C >= 8: channels that are first, an error.

    With a `kind` floats in [0, 1] can be pictures, `(N, length)` signals of one channel, `(N, H, W)` arrays of one
    channel, and integers of any type vectors, signals or arrays. All but pictures become float32.

    In a .npz file the array is named `x`, `images`, `x_train` or `arr_0`; optional integer labels are `y`, `labels` or
    `y_train`. The test split is `x_test` or `images_test`, with labels `y_test` or `labels_test`. Without a test array,
    as in a .npy file, a tenth of the rows is the test split (`dataset.hold_out`).

    Args:
      name: "npz:PATH"; PATH may be a URL that fsspec reads.
      split: "train" or "test".
      kind: one of `dataset.KINDS`, or None.
      image_size: of pictures: side of square ones, or (height, width); None: as in the file.
      channels: of pictures: 1 or 3; None: as in the file.
      bits: of uint16 pictures: the number of bits that their values use.
      condition: comma-separated names of arrays with the conditions of the examples (`conditions.read`): NAME and
        NAME_test, or NAME alone where there is no test array. With `image_size`, condition pictures are scaled and
        cropped as the pictures are; without, they keep their size.
      data_dir: root of a relative PATH.
      memory_limit_bytes: a larger array is an error, raised before it is decompressed.

    Raises:
      UserError: if the file or one of its arrays cannot be used.
    """
    with _opened(name, data_dir) as file:
        try:
            single = file.read(6) == np.lib.format.MAGIC_PREFIX
            archive = Npy(file, memory_limit_bytes) if single else Npz(file, memory_limit_bytes)
        except NpzError as error:
            raise UserError(f"`name` is {name!r}; it is not a readable .npz archive: {error}") from None
        reader = _Reader(name, archive, kind, bits, _names(condition))
        x, labels, num_classes = reader.split(split)
        added = {} if condition is None else reader.conditions(condition, split)
    if x.dtype == np.uint8:
        x = fit_arrays(x, image_size, channels)
        if image_size and "picture" in added:
            added["picture"] = conditions.fit(added["picture"], image_size)
    elif image_size or channels or bits:
        raise UserError(f"`image_size`, `channels` and `bits` must be None: {name!r} holds floats, not pictures")
    found = array_dataset(name, split, x, labels, num_classes)
    return dataclasses.replace(found, integers=reader.integers, **added)


@contextlib.contextmanager
def _opened(name: str, data_dir: str | None) -> Iterator[BinaryIO]:
    text = name.partition(":")[2]
    if is_url(name):
        found, path = system(text)
        with storage.bucket_errors(text):
            require(found.isfile(path), "name", name, "the URL of a file that exists")
            stream = cast(BinaryIO, found.open(path, "rb"))
    else:
        local = local_path(name, data_dir)
        if not local.is_file():
            hint = f": write folder:{text}" if local.is_dir() else ""
            raise UserError(f"`name` is {name!r}; there is no file {local}{hint}")
        stream = storage.open_regular(local)
    with stream:
        yield stream


def _names(condition: str | None) -> list[str]:
    return [] if condition is None else [name.strip() for name in condition.split(",")]


class _Reader:
    """Finds and checks the arrays of an open file; each error lists the arrays of the file.

    Attributes:
      integers: `Dataset.integers` of what `split` returned.
    """

    def __init__(self, name: str, archive: Npz | Npy, kind: str | None, bits: int | None, conditions: list[str]):
        self._name, self._archive, self._kind, self._bits = name, archive, kind, bits
        self._conditions = {*conditions, *(f"{name}_test" for name in conditions)}
        self.integers = False

    def split(self, split: str) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Returns (x, labels or None, num_classes) of `split`."""
        keys = {which: (self._find(_X[which]), self._find(_Y[which])) for which in ("train", "test")}
        train = keys["train"][0]
        if train is None:
            pictures = any(name.lower().endswith(tuple(suffixes())) for name in self._archive.names)
            hint = f": for an archive of pictures write folder:{self._name.partition(':')[2]}" if pictures else ""
            raise self._error(f"it needs an array named {', '.join(_X['train'][:-1])} or {_X['train'][-1]}{hint}")
        labels = {which: self._labels(y_key) for which, (_, y_key) in keys.items()}
        num_classes = max((int(y.max()) + 1 for y in labels.values() if y is not None), default=0)
        if keys["test"][0] is not None:
            x, y = self._x(keys[split][0] or train), labels[split]
            self._check_rows(x, y, keys[split])
            return x, y, 0 if y is None else num_classes
        x, y = self._x(train), labels["train"]
        self._check_rows(x, y, keys["train"])
        if len(x) < 2:
            raise self._error("it needs at least two rows, since one is held out for the test split")
        rows = hold_out(len(x), split)
        return (x[rows], None, 0) if y is None else (x[rows], y[rows], num_classes)

    def conditions(self, names: str, split: str) -> dict[str, np.ndarray]:
        """Returns the conditions of the examples of `split` in the arrays `names`, by kind."""
        own_test = self._find(_X["test"]) is not None
        keys = [name + ("_test" if own_test and split == "test" else "") for name in _names(names)]
        x = self._find(_X[split] if own_test else _X["train"])
        assert x is not None, "split() found it"
        num = self._archive.shape(x)[0]
        found = conditions.read(self._archive, keys, num, f"`condition` is {names!r} for {self._name!r}")
        if own_test:
            return found
        rows = hold_out(num, split)
        return {kind: array[rows] for kind, array in found.items()}

    def _error(self, problem: str) -> UserError:
        held = " ".join(self._archive.describe().split())  # a name in a damaged file may be anything
        return UserError(f"`name` is {self._name!r}; {problem}; the file holds {held}")

    def _find(self, keys: tuple[str, ...]) -> str | None:
        found = [key for key in keys if key in self._archive]
        others = [key for key in found[1:] if key not in self._conditions]
        if others:
            raise self._error(f"it has {found[0]} and {others[0]}: one may be there, remove or rename the other")
        return found[0] if found else None

    def _read(self, key: str) -> np.ndarray:
        try:
            return self._archive.read(key)
        except NpzError as error:
            raise UserError(f"`name` is {self._name!r}; array {key} cannot be read: {error}") from None

    def _x(self, key: str) -> np.ndarray:
        """Returns uint8 pictures (N, H, W, 1 or 3), or float32 (N, d), (N, length, C) or (N, H, W, C)."""
        x = self._read(key)
        if x.size == 0:
            raise self._error(f"array {key} is empty")
        kind = self._kind or self._kind_of(x, key)
        if x.ndim not in _RANKS[kind] or x.dtype.kind not in "uif":
            raise self._error(f"array {key} must hold numbers of shape {_SHAPES[kind]} for data.kind = {kind!r}")
        x = x if x.ndim == _RANKS[kind][-1] else x[..., None]
        try:
            if kind != "picture":
                self.integers = are_integers(x)
                return as_float32(x)
            if x.shape[-1] not in (1, 3):
                raise self._error(f"array {key} must be {_SHAPES[kind]} for data.kind = {kind!r}")
            return eight_bits(f"array {key}", x, self._bits)
        except UserError:
            raise
        except ValueError as error:
            raise self._error(f"array {key} cannot be used: {error}") from None

    def _kind_of(self, x: np.ndarray, key: str) -> str:
        """Returns the kind of an array by the rule of `load`."""
        channels_first = x.ndim == 4 and x.shape[1] <= 4 and x.shape[3] >= 8
        if x.dtype.kind == "f" and x.ndim in _KINDS_OF_FLOATS and not channels_first:
            return _KINDS_OF_FLOATS[x.ndim]
        if x.ndim in _RANKS["picture"] and x.dtype in (np.uint8, np.uint16):
            return "picture"
        raise self._error(
            f"array {key} must be uint8 pictures [N, H, W] or [N, H, W, 1 or 3], channels last, or floats [N, d] "
            "(vectors), [N, length, C] (signals) or [N, H, W, C] (arrays); otherwise set data.kind to what it is"
        )

    def _labels(self, key: str | None) -> np.ndarray | None:
        if key is None:
            return None
        y = self._read(key)
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        whole = y.ndim == 1 and y.size > 0 and np.issubdtype(y.dtype, np.integer)
        if not whole or y.min() < 0 or y.max() >= MAX_CLASSES:
            raise self._error(f"array {key} must hold one integer label, 0 to {MAX_CLASSES - 1}, for each row")
        return y

    def _check_rows(self, x: np.ndarray, y: np.ndarray | None, keys: tuple[str | None, str | None]) -> None:
        if y is not None and len(x) != len(y):
            raise self._error(f"arrays {keys[0]} and {keys[1]} differ in length")
