"""Picture files as what a feature network sees."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hold_jax.data import images
from hold_jax.data.dataset import Dataset, Lazy
from hold_jax.data.files import Folder
from hold_jax.errors import UserError
from hold_jax.evaluation.resize import Stretch

# pytorch-fid's list; it looks for these endings in lower case only.
ENDINGS = frozenset(f".{name}" for name in ("bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp"))


def pictures(folder: Path, crop: int | None, stretch: Stretch | None) -> tuple[Dataset, str]:
    """Returns the pictures of a folder, and in words how they are read.

    Args:
      folder: its own pictures count, as for pytorch-fid; if it has none, those of its sub-folders.
      crop: None: as pytorch-fid and dgm-eval do, each picture converted to RGB by Pillow, and stretched; a size in
        pixels: as `data` reads them for training, upright, shorter side scaled to it, center cropped.
      stretch: the rule of the feature network; None: it compares pictures of one size.

    Raises:
      UserError: if there are fewer than two pictures, or pictures of several sizes without a rule for them.
    """
    files = sorted(file for file in folder.iterdir() if _is_picture(file))
    files = files or sorted(file for name in Folder(folder).names() if _is_picture(file := folder / name))
    capital = sum(file.suffix.lower() in ENDINGS and file.suffix not in ENDINGS for file in folder.iterdir())
    left_out = f"; left out, as by pytorch-fid: {capital:,} of endings in capitals" if capital else ""
    if len(files) < 2:
        known = ", ".join(sorted(ENDINGS))
        raise UserError(f"{folder} has {len(files)} pictures ({known}{left_out}); it must have 2 or more")
    if crop is not None:
        how = f"shorter side to {crop} pixels, center cropped{left_out}"
        return _dataset(folder, files, lambda file: images.read_picture(file, crop, 3), (crop, crop, 3)), how
    sizes = set(_sizes(files))
    how = "" if stretch is None else f", stretched to {stretch.size} x {stretch.size} ({stretch.words})"
    how += left_out
    if len(sizes) == 1:  # the network stretches them
        width, height = sizes.pop()
        return _dataset(folder, files, _rgb, (height, width, 3)), f"{width} x {height} pixels{how}"
    if stretch is None:
        raise UserError(f"{folder} has pictures of {len(sizes)} sizes, and these features are of one size: give --crop")
    rule, shape = stretch.apply, (stretch.size, stretch.size, 3)
    return _dataset(folder, files, lambda file: rule(_rgb(file)), shape), f"of {len(sizes)} sizes{how}"


def digest(data: Dataset) -> str:
    """Returns a digest of the pixels; names and folders of the files do not matter."""
    found = hashlib.sha256(repr(data.shape).encode())
    for start in range(0, len(data), 256):
        found.update(data.gather(np.arange(start, min(start + 256, len(data))))["x"].tobytes())
    return found.hexdigest()[:16]


def _dataset(folder: Path, files: list[Path], read: Callable[[Path], np.ndarray], shape: tuple[int, ...]) -> Dataset:
    def example(index: int) -> dict[str, Any]:
        try:
            return {"x": read(files[index]), "label": 0}
        except images.UNREADABLE as error:
            raise UserError(f"{files[index]} cannot be read: {error}") from None

    return Dataset(str(folder), "test", Lazy(len(files), example), None, shape, 0)


def _is_picture(file: Path) -> bool:
    return file.suffix in ENDINGS and not file.name.startswith(".") and file.is_file()


def _rgb(file: Path) -> np.ndarray:
    with images.open_picture(file) as picture:
        return np.asarray(picture.convert("RGB"))


def _sizes(files: list[Path]) -> list[tuple[int, int]]:
    """(width, height) of each file, from its header."""

    def size(file: Path) -> tuple[int, int]:
        try:
            with images.open_picture(file) as picture:
                return picture.size
        except images.UNREADABLE as error:
            raise UserError(f"{file} cannot be read: {error}") from None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(size, files))
