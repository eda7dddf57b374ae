"""Conditions beside examples, read from the arrays of an archive: pictures and vectors, checked."""

from collections.abc import Sequence

import numpy as np

from hold_jax.data.images import Size, fit_arrays
from hold_jax.errors import UserError, require
from hold_jax.runtime.npz import Npy, Npz, NpzError

_ALLOWED = "uint8 or float pictures [N, H, W] or [N, H, W, C], or numbers [N] or [N, k]"


def read(archive: Npz | Npy, keys: Sequence[str], num: int, where: str) -> dict[str, np.ndarray]:
    """Reads condition arrays of an archive.

    An array of pictures, [N, H, W] or [N, H, W, C], uint8 or float, is the condition `picture`; an array of numbers,
    [N] or [N, k], is the condition `vector`. There may be one of each.

    Args:
      archive: holds the arrays.
      keys: their names.
      num: number of examples N.
      where: begins the errors' texts.

    Returns:
      `picture` (N, H, W, C) uint8 or float32 and `vector` (N, k) float32, those that there are.

    Raises:
      UserError: for an array that is missing or cannot be used, and for two of a kind.
    """
    found: dict[str, np.ndarray] = {}
    for key in keys:
        if key not in archive:
            raise UserError(f"{where}; there is no array {key}; the archive holds {archive.describe()}")
        try:
            kind, array = _checked(archive.read(key))
        except (NpzError, ValueError) as error:
            raise UserError(f"{where}; array {key} cannot be used: {error}") from None
        if len(array) != num:
            raise UserError(f"{where}; array {key} has {len(array):,} rows for {num:,} examples; they must be as many")
        if kind in found:
            raise UserError(f"{where}; two of its arrays are a {kind}: join them into one array")
        found[kind] = array
    return found


def fit(picture: np.ndarray, size: Size) -> np.ndarray:
    """Returns condition pictures scaled and cropped as `images.fit_arrays` does with the data.

    Raises:
      UserError: for pictures that are not gray or RGB in 8 bits.
    """
    usual = picture.dtype == np.uint8 and picture.shape[-1] in (1, 3)
    allowed = f"None, because the condition pictures are {picture.dtype}{list(picture.shape)}, not gray or RGB in uint8"
    require(usual, "image_size", size, allowed)
    return fit_arrays(picture, size, None)


def _checked(array: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns "picture" or "vector" and the array in the shape and type of `Dataset`; ValueError for others."""
    is_real = array.dtype.kind in "fiub"
    if array.ndim not in (1, 2, 3, 4) or not is_real or array.size == 0:
        raise ValueError(f"it is {array.dtype}{list(array.shape)}; it must be {_ALLOWED}")
    kind = "picture" if array.ndim >= 3 else "vector"
    array = array[..., None] if array.ndim in (1, 3) else array
    if kind == "picture" and array.dtype == np.uint8:
        return kind, array
    if kind == "picture" and array.dtype.kind != "f":
        raise ValueError(f"its pictures are {array.dtype}; they must be uint8 or floating")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if bad.any():
        raise ValueError(f"{bad.sum():,} of its {len(array):,} rows, such as {bad.argmax()}, are not finite as float32")
    return kind, array
