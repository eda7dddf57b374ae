"""Picture files as what a feature network sees, by the rules of two conventions."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hold_jax.data import images
from hold_jax.data.dataset import Dataset
from hold_jax.errors import UserError
from hold_jax.evaluation.inception_network import SIZE

# pytorch-fid's list; it looks for these endings in lower case only.
ENDINGS = frozenset(f".{name}" for name in ("bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp"))


class PictureFiles:
    """Random access to picture files (`data.dataset.RandomAccess`) through one function that reads a file."""

    def __init__(self, files: list[Path], read: Callable[[Path], np.ndarray]):
        self._files, self._read = files, read

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return {"x": self._read(self._files[index]), "label": 0}
        except images.UNREADABLE as error:
            raise UserError(f"{self._files[index]} cannot be read: {error}") from None


def pictures(folder: Path, crop: int | None) -> tuple[Dataset, str]:
    """The pictures of a folder, and in words how they are read.

    Args:
      folder: its own pictures count, as for pytorch-fid; if it has none, those of its sub-folders.
      crop: None: pytorch-fid's rule, each picture converted to RGB by Pillow and stretched to 299 x 299; a size in
        pixels: as `data` reads them for training, upright, shorter side scaled to it, center cropped.

    Raises:
      UserError: if there are fewer than two pictures.
    """
    files = sorted(file for file in folder.iterdir() if _is_picture(file))
    files = files or sorted(file for file in folder.rglob("*") if _is_picture(file))
    if len(files) < 2:
        raise UserError(f"{folder} has {len(files)} pictures ({', '.join(sorted(ENDINGS))}); it must have 2 or more")
    if crop is not None:
        how = f"shorter side to {crop} pixels, center cropped"
        return _dataset(folder, files, lambda file: images.read_picture(file, crop, 3), (crop, crop, 3)), how
    sizes = set(_sizes(files))
    if len(sizes) == 1:
        width, height = sizes.pop()
        return _dataset(folder, files, _rgb, (height, width, 3)), f"{width} x {height} pixels, stretched to 299 x 299"
    how = f"of {len(sizes)} sizes, each stretched to 299 x 299"
    return _dataset(folder, files, lambda file: stretched(_rgb(file)), (SIZE, SIZE, 3)), how


def digest(data: Dataset) -> str:
    """A short name of the pictures themselves, whatever they are called and wherever they lie."""
    found = hashlib.sha256(repr(data.shape).encode())
    for start in range(0, len(data), 256):
        found.update(data.gather(np.arange(start, min(start + 256, len(data))))["x"].tobytes())
    return found.hexdigest()[:16]


def stretched(x: np.ndarray) -> np.ndarray:
    """A picture (H, W, C) as (299, 299, C) float32, as the network does it: bilinear, half-pixel centers."""
    return _interpolated(_interpolated(x.astype(np.float32), 0), 1)


def _interpolated(x: np.ndarray, axis: int) -> np.ndarray:
    length = x.shape[axis]
    at = np.clip((np.arange(SIZE) + 0.5) * (length / SIZE) - 0.5, 0, length - 1)
    low = at.astype(int)
    share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, length - 1), axis) * share


def _dataset(folder: Path, files: list[Path], read: Callable[[Path], np.ndarray], shape: tuple[int, ...]) -> Dataset:
    return Dataset(str(folder), "test", PictureFiles(files, read), None, shape, 0)


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
