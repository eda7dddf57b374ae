"""`folder:PATH`: pictures in PATH/train and PATH/test, in any format that Pillow reads."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hold_jax.data import images
from hold_jax.data.dataset import SPLITS, Dataset, array_dataset
from hold_jax.data.paths import local_path
from hold_jax.errors import UserError

# Damaged files are skipped with a warning up to this share of all files; more are an error.
MAX_UNREADABLE_FRACTION = 0.01
_NAMES_SHOWN = 5
_CHUNK = 256


def load(
    name: str,
    *,
    split: str,
    image_size: int | None = None,
    channels: int = 3,
    bits: int | None = None,
    data_dir: str | None = None,
    memory_limit_bytes: int,
) -> Dataset:
    """Loads the pictures below PATH/`split`, sorted by path. The first folder level, if any, is the class.

    The class numbers follow the sorted names of the folders in PATH/train. Ignored are hidden files, files with another
    extension than those of pictures, and files without an extension that contain no picture. Pictures that cannot be
    read, also pipes and devices, are skipped with a warning, up to 1 % of all.

    Args:
      name: "folder:PATH".
      split: "train" or "test".
      image_size: side of the square pictures; None: the size of the files, which must then be the same for all.
      channels: 1 or 3.
      bits: see `images.read_picture`.
      data_dir: root of a relative PATH.
      memory_limit_bytes: larger sets are not read into memory; a picture is decoded each time it is used.

    Raises:
      UserError: if the folders or the pictures cannot be used.
    """
    root = local_path(name, data_dir)
    files = _files(name, root, split)
    classes = _classes(root / split, files)
    known = _classes(root / "train", _files(name, root, "train")) if (root / "train").is_dir() else classes
    if extra := sorted(set(classes) - set(known)):
        raise UserError(f"`name` is {name!r}; classes of {root / split} that {root / 'train'} lacks: {extra[:5]}")
    if known and not classes:
        raise UserError(f"`name` is {name!r}; {root / 'train'} has class folders and {root / split} has none")
    number = {label: i for i, label in enumerate(known)}
    labels = np.array([number[str(_class_of(root / split, f))] for f in files], np.int32) if classes else None
    names = tuple(known) if classes else ()

    shape = (*((image_size, image_size) if image_size else _first_size(name, files)), channels)
    if len(files) * int(np.prod(shape)) > memory_limit_bytes:
        if image_size is None:
            keep = _probe(name, files, shape[:2])
            files, labels = [files[i] for i in keep], None if labels is None else labels[keep]
        source = LazyPictures(name, files, labels, image_size, channels, bits)
        return Dataset(name, split, source, labels, shape, len(names), names)
    x, keep = _decode(name, files, shape, image_size, bits)
    return array_dataset(name, split, x, None if labels is None else labels[keep], len(names), names)


class LazyPictures:
    """Picture files that are decoded each time they are read.

    A damaged file is replaced by the next one, with a warning. The choice is deterministic, so that all processes make
    the same. More than 1 % of damaged files are an error.
    """

    def __init__(
        self,
        name: str,
        files: list[Path],
        labels: np.ndarray | None,
        image_size: int | None,
        channels: int,
        bits: int | None = None,
    ):
        self._name, self._files, self._labels = name, files, labels
        self._options = (image_size, channels, bits)
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> dict:
        while True:
            try:
                x = images.read_picture(self._files[index], *self._options)
            except images.UNREADABLE as error:
                self._note(index, error)
                index = (index + 1) % len(self)
                continue
            return {"x": x, "label": 0 if self._labels is None else int(self._labels[index])}

    def _note(self, index: int, error: BaseException) -> None:
        with self._lock:
            if index in self._bad:
                return
            self._bad[index] = str(error)
            _check_unreadable(self._name, self._files, self._bad)


def _files(name: str, root: Path, split: str) -> list[Path]:
    """Returns the sorted picture files below root/split."""
    if not root.is_dir():
        raise UserError(f"`name` is {name!r}; there is no folder {root}")
    top = root / split
    if not top.is_dir():
        found = sorted(entry.name for entry in root.iterdir())
        shown = ", ".join(found[:_NAMES_SHOWN]) + (", ..." if len(found) > _NAMES_SHOWN else "")
        raise UserError(
            f"`name` is {name!r}; {root} must have the sub-folders {' and '.join(SPLITS)}, "
            f"and has no {split!r}; it holds {shown or 'nothing'}"
        )
    endings = images.suffixes()
    files = sorted(
        (
            f
            for f in _walk(top)
            if not f.name.startswith(".") and (f.suffix.lower() in endings or (not f.suffix and images.is_picture(f)))
        ),
        key=lambda f: f.as_posix(),
    )
    if not files:
        raise UserError(f"`name` is {name!r}; {top} holds no picture that Pillow reads (png, jpg, webp, ...)")
    return files


def _walk(top: Path) -> Iterator[Path]:
    """Yields the files below `top`; follows links to folders, and visits each real folder once."""
    seen = set()
    for folder, folders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (Path(folder, n) for n in names)


def _class_of(top: Path, file: Path) -> str | None:
    parts = file.relative_to(top).parts
    return parts[0] if len(parts) > 1 else None


def _classes(top: Path, files: list[Path]) -> list[str]:
    """Returns the sorted class names; none if all pictures are directly in `top`; a mixture is an error."""
    names = {_class_of(top, f) for f in files}
    if None in names and len(names) > 1:
        stray = next(f for f in files if _class_of(top, f) is None)
        raise UserError(f"{top} holds class folders and also pictures outside them, such as {stray.name}: move those")
    return sorted(name for name in names if name is not None)


def _first_size(name: str, files: list[Path]) -> tuple[int, int]:
    for file in files:
        try:
            return images.picture_size(file)
        except images.UNREADABLE:
            continue
    raise UserError(f"`name` is {name!r}; Pillow can read none of its {len(files)} pictures, such as {files[0]}")


def _scan(name: str, files: list[Path], visit: Callable[[int], None]) -> np.ndarray:
    """Calls `visit(i)` for each file, in threads; returns the indices of the files that could be read."""

    def visit_chunk(start: int) -> dict[int, str]:
        bad = {}
        for i in range(start, min(start + _CHUNK, len(files))):
            try:
                visit(i)
            except UserError:
                raise
            except images.UNREADABLE as error:
                bad[i] = str(error)
        return bad

    bad: dict[int, str] = {}
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for found in pool.map(visit_chunk, range(0, len(files), _CHUNK)):
            bad |= found
    if bad:
        _check_unreadable(name, files, bad)
    return np.array([i for i in range(len(files)) if i not in bad], np.int64)


def _check_unreadable(name: str, files: list[Path], bad: dict[int, str]) -> None:
    """Warns about unreadable files; raises `UserError` if they are more than `MAX_UNREADABLE_FRACTION` of all."""
    shown = "; ".join(f"{files[i]} ({bad[i]})" for i in list(bad)[:_NAMES_SHOWN])
    text = f"{name}: {len(bad)} of {len(files)} pictures cannot be read: {shown}"
    if len(bad) > MAX_UNREADABLE_FRACTION * len(files):
        raise UserError(f"{text}; more than {MAX_UNREADABLE_FRACTION:.0%}: repair or remove them")
    logging.getLogger(__name__).warning("%s; skipped", text)


def _require_size(files: list[Path], i: int, size: tuple[int, int], expected: tuple[int, int]) -> None:
    if size != expected:
        other = next((f for f in files if f != files[i] and _size_or_none(f) == expected), files[0])
        raise UserError(
            f"`image_size` is None; all pictures must then be equal in size, but {other} is "
            f"{expected[1]}x{expected[0]} and {files[i]} is {size[1]}x{size[0]}: give an image_size"
        )


def _size_or_none(file: Path) -> tuple[int, int] | None:
    try:
        return images.picture_size(file)
    except images.UNREADABLE:
        return None


def _probe(name: str, files: list[Path], expected: tuple[int, int]) -> np.ndarray:
    """Checks that all headers have the size `expected`; returns the indices of the files with a readable header."""
    return _scan(name, files, lambda i: _require_size(files, i, images.picture_size(files[i]), expected))


def _decode(
    name: str, files: list[Path], shape: tuple[int, ...], image_size: int | None, bits: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the readable pictures, `(n, *shape)` uint8, and their indices in `files`."""
    x = np.empty((len(files), *shape), np.uint8)

    def visit(i: int) -> None:
        picture = images.read_picture(files[i], image_size, shape[-1], bits)
        _require_size(files, i, picture.shape[:2], (shape[0], shape[1]))
        x[i] = picture

    keep = _scan(name, files, visit)
    return (x if len(keep) == len(files) else x[keep]), keep
