"""`folder:PATH`: pictures in a folder, a zip archive or a bucket, in any format that Pillow reads, or as .npy files."""

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import numpy as np

from hold_jax.data import images
from hold_jax.data.dataset import MAX_CLASSES, Dataset, hold_out
from hold_jax.data.files import Archive, Bucket, File, Folder, Root, is_url, local_path, system
from hold_jax.data.images import Size
from hold_jax.errors import UserError, naming, require
from hold_jax.runtime import schema, storage

T = TypeVar("T")
Read = Callable[[File], np.ndarray]

# Damaged files are replaced with a warning up to this share of all files; more are an error.
MAX_UNREADABLE_FRACTION = 0.01
# The labels of EDM's data sets (2206.00364, code): {"labels": [["00000/img00000000.png", 6], ...]}; null: no labels.
LABELS_FILE = "dataset.json"
_TESTS = ("test", "val", "validation")
# What else folders of splits are called, in any letters.
_TRAIN_OR_TEST = ("train", "training", "test", "testing")
_VALIDATION = ("val", "valid", "validation")
_NAMES_SHOWN = 5
_CHUNK = 256


def load(
    name: str,
    *,
    split: str,
    kind: str = "picture",
    image_size: Size = None,
    channels: int | None = None,
    bits: int | None = None,
    condition: str | None = None,
    data_dir: str | None = None,
    memory_limit_bytes: int,
) -> Dataset:
    """Loads the pictures below PATH, sorted by path. PATH is a folder or a zip archive, on a disk or a URL for fsspec.

    If there is a folder PATH/train, it holds the training split, and PATH/test, PATH/val or PATH/validation the test
    split; pictures beside these folders are not used, with a warning, and folders of splits by other names, such as
    Test or testing, are an error. Otherwise a tenth of all pictures is held out as the test split
    (`dataset.hold_out`). The first folder level below, if any, is the class; the numbers of the classes follow the
    sorted names of the training split's. If there is a `dataset.json`, as EDM's tools write it, the labels are those
    in it.

    Ignored are hidden files, files with another extension than those of pictures, and files without an extension that
    contain no picture. In place of a picture that cannot be read, also a pipe or a device, is the next one of its
    class, with a warning; more than 1 % of these are an error.

    Args:
      name: "folder:PATH".
      split: "train" or "test".
      kind: "picture"; or "array": the values of the files without conversion, with any number of channels, as float32.
      image_size: of pictures; None, and for arrays: the size of the files, which must then be the same for all.
      channels: of pictures: 1 or 3; None: 3.
      bits: of pictures: see `images.read_picture`.
      condition: a second PATH with a condition picture for each picture, of the same name but perhaps another
        extension. They are read as the pictures are: with `image_size`, `bits`, and `channels` or else 3.
      data_dir: root of a relative PATH.
      memory_limit_bytes: larger sets are not read into memory; a picture is decoded each time it is used.

    Raises:
      UserError: if the folders or the pictures cannot be used.
    """
    require(kind in ("picture", "array"), "kind", kind, "picture or array for files of pictures")
    # The folder of the condition's pictures, if it is in that of the set.
    used = (condition or "").removeprefix(f"{name.partition(':')[2].rstrip('/')}/").partition("/")[0]
    files, labels, names, num_classes = _split(name, _root(name, data_dir), split, used)
    if kind == "array":
        for argument, value in (("image_size", image_size), ("channels", channels), ("bits", bits)):
            require(value is None, argument, value, "None for kind = 'array', which keeps the values of the files")
        dtype = np.dtype(np.float32)
        integers = _first(name, files, images.has_integers)
        read: Read = lambda file: images.read_values(file, integers)  # noqa: E731
        shape = _first(name, files, lambda file: read(file).shape)
    else:
        depth, dtype, integers = channels or 3, np.dtype(np.uint8), False
        read = lambda file: images.read_picture(file, image_size, depth, bits)  # noqa: E731
        shape = (*(images.sides(image_size) or _first(name, files, images.picture_size)), depth)

    parts = [_Part("x", files, read, shape, dtype)]
    if condition is not None:
        pairs = _paired(name, condition, data_dir, files)
        read_pair: Read = lambda file: images.read_picture(file, image_size, channels or 3, bits)  # noqa: E731
        pair_shape = _first(condition, pairs, lambda file: read_pair(file).shape)
        parts.append(_Part("picture", pairs, read_pair, pair_shape, np.dtype(np.uint8)))
    source = LazyPictures(name, labels, parts)
    found = Dataset(name, split, source, labels, shape, num_classes, names, kind, integers=integers)
    if len(files) * sum(int(np.prod(part.shape)) * part.dtype.itemsize for part in parts) > memory_limit_bytes:
        if image_size is None:
            source.scan(lambda i: _require_size(files, i, images.picture_size(files[i]), shape[:2]))
        return found
    arrays = {part.key: np.empty((len(files), *part.shape), part.dtype) for part in parts}

    def keep(i: int, example: dict[str, Any]) -> None:
        for key, array in arrays.items():
            array[i] = example[key]

    for i in source.scan(lambda i: keep(i, source.read(i))):
        keep(i, source[i])
    return dataclasses.replace(found, source=arrays["x"], picture=arrays.get("picture"))


def _paired(name: str, condition: str, data_dir: str | None, files: list[File]) -> list[File]:
    """Returns the condition picture of each file: that with its name, without the extension, below `condition`."""
    with naming("`name` is", "`condition` is"):
        root = _root(f"folder:{condition}", data_dir)
    there: dict[str, list[File]] = {}
    for file in _pictures(root, sorted(root.names())):
        there.setdefault(os.path.splitext(file.name)[0], []).append(file)
    keys = [os.path.splitext(file.name)[0] for file in files]
    missing = [file.name for file, key in zip(files, keys, strict=True) if key not in there]
    if missing:
        raise UserError(
            f"`condition` is {condition!r}; it must hold a picture of the same name for each of {name!r}, and has none "
            f"for {len(missing):,} of {len(files):,}, such as {missing[0]}"
        )
    twice = next((key for key in keys if len(there[key]) > 1), None)
    if twice is not None:
        names = " and ".join(file.name for file in there[twice])
        raise UserError(f"`condition` is {condition!r}; it holds {names}: keep one of them, or give them other names")
    return [there[key][0] for key in keys]


class _Part(NamedTuple):
    """One array of each example: its name, the files of all examples, how one is read, its shape and type."""

    key: str
    files: list[File]
    read: Read
    shape: tuple[int, ...]
    dtype: np.dtype


class LazyPictures:
    """Picture files that are decoded each time they are read.

    A damaged file is replaced by the next one of its class, with a warning, so that the set is the same in memory and
    on disk, and in all processes. More than 1 % of damaged files are an error. The first part is the example itself; a
    second one is its condition picture, of which a damaged one counts as a damaged file.
    """

    def __init__(self, name: str, labels: np.ndarray | None, parts: list[_Part]):
        self._name, self._files, self._labels, self._parts = name, parts[0].files, labels, parts
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        for i in self._in_turn(index):
            try:
                return self.read(i)
            except UserError:
                raise
            except images.UNREADABLE as error:
                self._note(i, error)
        raise UserError(f"`name` is {self._name!r}; {self._files[index]} and all others of its class cannot be read")

    def read(self, index: int) -> dict[str, Any]:
        """Returns an example; raises one of `images.UNREADABLE` for a damaged file."""
        example: dict[str, Any] = {"label": 0 if self._labels is None else int(self._labels[index])}
        for key, files, read, shape, _ in self._parts:
            try:
                example[key] = _sized(files, index, read(files[index]), shape)
            except UserError:
                raise
            except images.UNREADABLE as error:
                raise ValueError(f"{files[index]}: {error}" if key == "picture" else str(error)) from None
        return example

    def scan(self, visit: Callable[[int], None]) -> list[int]:
        """Calls `visit(i)` for each file, in threads; warns about the damaged ones, and returns their indices.

        Raises:
          UserError: if they are more than `MAX_UNREADABLE_FRACTION` of all.
        """

        def visit_chunk(start: int) -> dict[int, str]:
            bad = {}
            for i in range(start, min(start + _CHUNK, len(self))):
                try:
                    visit(i)
                except UserError:
                    raise
                except images.UNREADABLE as error:
                    bad[i] = str(error)
            return bad

        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            for found in pool.map(visit_chunk, range(0, len(self), _CHUNK)):
                self._bad |= found
        if self._bad:
            _check_unreadable(self._name, self._files, self._bad)
        return sorted(self._bad)

    def _in_turn(self, index: int) -> Iterator[int]:
        """Yields a file, and then those that replace it where it is damaged."""
        yield index
        after = np.roll(np.arange(len(self)), -index)[1:]
        yield from (after if self._labels is None else after[self._labels[after] == self._labels[index]]).tolist()

    def _note(self, index: int, error: BaseException) -> None:
        with self._lock:
            if index in self._bad:
                return
            self._bad[index] = str(error)
            _check_unreadable(self._name, self._files, self._bad)


class _Split(NamedTuple):
    """Files of a split with their labels `(N,)` int32, None without labels; names of the classes, if they have any."""

    files: list[File]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    num_classes: int


def _root(name: str, data_dir: str | None) -> Root:
    """Opens the folder, archive or bucket of a name."""
    text = name.partition(":")[2]
    if is_url(name):
        if not text.lower().endswith(".zip"):
            return Bucket(text)
        found, path = system(text)
        with storage.bucket_errors(text):
            require(found.exists(path), "name", name, "the URL of a file that exists")
            return Archive(text, cast(BinaryIO, found.open(path, "rb")))
    path = local_path(name, data_dir)
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise UserError(f"`name` is {name!r}; there is no folder {path}")
    if path.suffix in (".npz", images.ARRAY_SUFFIX):
        raise UserError(f"`name` is {name!r}; {path} is a file of arrays: write npz:{text}")
    try:
        return Archive(str(path), storage.open_regular(path))
    except OSError as error:
        raise UserError(f"`name` is {name!r}; {path} cannot be opened: {error.strerror or error}") from None


def _split(name: str, root: Root, split: str, used: str) -> _Split:
    """Finds the pictures of a split by the rules of `load`."""
    tops = root.folders()
    # Where the splits are found by their names, another folder for validation is not used: it may have any name.
    found = "test" in tops or ("train" in tops and not set(_TESTS).isdisjoint(tops))
    validation = () if found else _VALIDATION
    splits = [top for top in tops if top.lower() in (*_TRAIN_OR_TEST, *validation)]
    if not {"train", *_TESTS}.issuperset(splits) and (len(splits) > 1 or len(tops) == 1):
        raise UserError(
            f"`name` is {name!r}; {root} has {', '.join(splits)}: the folders of the splits must be called train and "
            f"test (or val, validation), in small letters; rename them, or write {name.rstrip('/')}/FOLDER to use one"
        )
    if "train" not in tops:
        if "test" in tops and split == "test":  # as for a distance to it
            return _labeled(name, root, "test", None)
        if "test" in tops:
            raise UserError(f"`name` is {name!r}; {root} has a folder test and no folder train")
        every = _labeled(name, root, "", None)
        if len(every.files) < 2:
            raise UserError(f"`name` is {name!r}; {root} must hold two pictures or more: one is held out for the test")
        rows = hold_out(len(every.files), split)
        labels = None if every.labels is None else every.labels[rows]
        return every._replace(files=[every.files[i] for i in rows], labels=labels)
    train = _labeled(name, root, "train", None)
    if split == "train":
        _warn_of_others(name, root, used)
        return train
    test = next((top for top in _TESTS if top in tops), None)
    if test is None:
        raise UserError(
            f"`name` is {name!r}; {root} has a folder train and none of {', '.join(_TESTS)}: add one, or write "
            f"{name.rstrip('/')}/train, of which a tenth is then held out"
        )
    return _labeled(name, root, test, train)


def _warn_of_others(name: str, root: Root, used: str) -> None:
    """Warns about pictures and labels beside the folders of the splits and the folder `used`."""
    endings = images.suffixes()

    def holds_pictures(top: str) -> bool:
        try:
            return any(File(root, file).suffix in endings for file in root.names(top))
        except UserError:  # it cannot be listed
            return False

    folders = [top for top in root.folders() if top.lower() not in (*_TRAIN_OR_TEST, *_VALIDATION, used.lower())]
    others = [top for top in folders if holds_pictures(top)]
    others += sorted(file for file in root.loose() if file == LABELS_FILE or File(root, file).suffix in endings)
    if others:
        logging.getLogger(__name__).warning(
            "%s: %s has folders of splits, so that what lies beside them is not used: %s", name, root, _some(others)
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _labeled(name: str, root: Root, top: str, train: _Split | None) -> _Split:
    """Returns the pictures below folder `top` with their labels; the classes are those of `train`, if it is given."""
    prefix = f"{top}/" if top else ""
    entries = sorted(root.names(top))
    files = _pictures(root, entries)
    names = [file.name.removeprefix(prefix) for file in files]
    if not files:
        found = sorted({entry.removeprefix(prefix).partition("/")[0] for entry in entries})
        where = f"{root}/{top}" if top else f"{root}"
        raise UserError(
            f"`name` is {name!r}; {where} holds no picture that Pillow reads (png, jpg, webp, ...), and no .npy; it "
            f"holds {_some(found) or 'nothing'}"
        )
    if f"{prefix}{LABELS_FILE}" in entries:
        labels = _listed_labels(File(root, f"{prefix}{LABELS_FILE}"), names)
        if labels is None:
            return _Split(files, None, (), 0)
        num_classes = int(labels.max()) + 1
        if train is not None and num_classes > train.num_classes:
            raise UserError(f"`name` is {name!r}; {root}/{top} has classes that {root}/train lacks")
        return _Split(files, labels, (), num_classes if train is None else train.num_classes)
    of_file = [name.partition("/")[0] if "/" in name else "" for name in names]
    classes = sorted(set(of_file))
    if "" in classes and len(classes) > 1:
        raise UserError(
            f"{root}/{top} holds class folders and also pictures outside them, such as "
            f"{names[of_file.index('')]}: move those"
        )
    classes = [] if classes == [""] else classes
    known = classes if train is None else list(train.class_names)
    if extra := sorted(set(classes) - set(known)):
        raise UserError(f"`name` is {name!r}; classes of {root}/{top} that {root}/train lacks: {extra[:5]}")
    if known and not classes:
        raise UserError(f"`name` is {name!r}; {root}/train has class folders and {root}/{top} has none")
    number = {label: i for i, label in enumerate(known)}
    labels = np.array([number[label] for label in of_file], np.int32) if classes else None
    return _Split(files, labels, tuple(known), len(known))


def _pictures(root: Root, names: list[str]) -> list[File]:
    """Returns the picture files among `names`."""
    endings = images.suffixes()
    files = (File(root, name) for name in names)
    return [f for f in files if f.suffix in endings or (not f.suffix and images.is_picture(f))]


def _listed_labels(file: File, names: list[str]) -> np.ndarray | None:
    """Returns the labels `(N,)` of files in the order of their names from EDM's `dataset.json`; None if it has none."""
    try:
        with file.open() as stream:
            found = schema.json_object(stream.read()).get("labels")
        if found is None:
            return None
        listed: dict[str, Any] = {}
        for picture, label in found:
            if listed.setdefault(picture, label) != label:
                raise UserError(f"{file} lists {picture} with the labels {listed[picture]} and {label}: remove one")
        labels = [listed[name] for name in names]
    except KeyError as error:
        raise UserError(f"{file} has no label of {error}, which is there: it must have one of each picture") from None
    except UserError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be used as a list of labels: {error}") from None
    whole = all(type(label) is int and 0 <= label < MAX_CLASSES for label in labels)
    require(whole, f"{file}: labels", schema.shown(labels), f"whole numbers from 0 to {MAX_CLASSES - 1}")
    return np.array(labels, np.int32)


def _first(name: str, files: list[File], measure: Callable[[File], T]) -> T:
    """Returns `measure` of the first file that can be read."""
    for file in files:
        try:
            return measure(file)
        except UserError:
            raise
        except images.UNREADABLE:
            continue
    raise UserError(f"`name` is {name!r}; none of its {len(files)} pictures can be read, such as {files[0]}")


def _check_unreadable(name: str, files: list[File], bad: dict[int, str]) -> None:
    """Warns about unreadable files; raises `UserError` if they are more than `MAX_UNREADABLE_FRACTION` of all."""
    shown = "; ".join(f"{files[i]} ({bad[i]})" for i in list(bad)[:_NAMES_SHOWN])
    text = f"{name}: {len(bad)} of {len(files)} pictures cannot be read: {shown}"
    if len(bad) > MAX_UNREADABLE_FRACTION * len(files):
        raise UserError(f"{text}; more than {MAX_UNREADABLE_FRACTION:.0%}: repair or remove them")
    logging.getLogger(__name__).warning("%s; the next of their classes are in their place", text)


def _require_size(files: list[File], i: int, size: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if size != expected:
        other = next((f for f in files if f != files[i] and _size_or_none(f) == expected), files[0])
        raise UserError(
            f"`image_size` is None; all pictures must then be equal in size, but {other} is "
            f"{expected[1]}x{expected[0]} and {files[i]} is {size[1]}x{size[0]}: give an image_size"
        )


def _size_or_none(file: File) -> tuple[int, int] | None:
    try:
        return images.picture_size(file)
    except images.UNREADABLE:
        return None


def _sized(files: list[File], i: int, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns `x` of file `i` if it has the shape of all."""
    _require_size(files, i, x.shape[:2], shape[:2])
    if x.shape != shape:
        raise ValueError(f"its shape is {x.shape}, and that of the others {shape}")
    return x
