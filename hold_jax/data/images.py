"""Conversion of pictures to uint8 arrays: decoding, channels, size."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hold_jax.errors import UserError
from hold_jax.runtime.storage import open_regular

# Errors that Pillow raises for files that are damaged, truncated, or not pictures.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_MODES = {1: "L", 3: "RGB"}
_EXIF_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


def suffixes() -> frozenset[str]:
    """Returns the file name extensions, in lower case, of the formats that Pillow reads."""
    known = _formats()
    return frozenset(end for end, format_ in Image.registered_extensions().items() if format_ in known)


def is_picture(path: Path) -> bool:
    """Returns whether the content of a file begins like that of a picture; the name does not matter."""
    try:
        with _opened(path):
            return True
    except UNREADABLE:
        return False


def read_picture(path: Path, size: int | None, channels: int, bits: int | None = None) -> np.ndarray:
    """Decodes a picture file, in the orientation of its EXIF data, with transparent pixels on white.

    Args:
      path: a regular file with one picture.
      size: side of the square to which the picture is scaled and cropped; None: its own size.
      channels: 1 or 3.
      bits: number of bits that the gray values of a 16-bit file use.

    Returns:
      uint8 `(H, W, channels)`.

    Raises:
      UserError: for a 16-bit file if `bits` is None or its values use more bits.
      UNREADABLE: if it is not a regular file, holds several pictures, or Pillow cannot decode it.
    """
    with _opened(path) as picture:
        pages = getattr(picture, "n_frames", 1)
        if pages > 1:
            raise ValueError(f"it holds {pages} pictures; a file must hold one")
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode.startswith("I;16"):
            picture = _eight_bits(path, np.asarray(picture), bits)
        return _to_array(_fit(_to_channels(picture, channels), size))


def picture_size(path: Path) -> tuple[int, int]:
    """Returns the (height, width) of `read_picture` without a `size`, from the header of the file alone."""
    with _opened(path) as opened:
        width, height = opened.size
        sideways = opened.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
    return (width, height) if sideways else (height, width)


def _formats() -> frozenset[str]:
    """Returns the formats that Pillow decodes itself, so not EPS, for which it runs Ghostscript."""
    Image.init()
    return frozenset(Image.OPEN) - {"EPS"}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with open_regular(path) as file, Image.open(file, formats=sorted(_formats())) as picture:
        yield picture


def _eight_bits(path: Path, grays: np.ndarray, bits: int | None) -> Image.Image:
    """Converts 16-bit gray values to 8 bits by their number of used bits, which the file does not contain."""
    used = int(grays.max()).bit_length()
    if bits is None or used > bits:
        raise UserError(
            f"`bits` is {bits}; {path} has 16-bit grays up to {grays.max()}: set it to the bits that all of the "
            f"pictures use, such as {max(used, 9)}, so that they keep their contrast in 8 bits"
        )
    return Image.fromarray((grays >> (bits - 8)).astype(np.uint8))


def fit_arrays(x: np.ndarray, size: int | None, channels: int | None) -> np.ndarray:
    """Returns uint8 pictures `(N, H, W, 1 or 3)` fitted to `size` and `channels`; None keeps either as it is."""
    same_size = size is None or x.shape[1:3] == (size, size)
    if same_size and channels in (None, x.shape[-1]):
        return x
    return np.stack([fit_array(picture, size, channels) for picture in x])


def fit_array(x: np.ndarray, size: int | None, channels: int | None) -> np.ndarray:
    """Returns one uint8 picture `(H, W, 1 or 3)` fitted to `size` and `channels`; None keeps either as it is."""
    if (size is None or x.shape[:2] == (size, size)) and channels in (None, x.shape[-1]):
        return x
    picture = Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)
    return _to_array(_fit(_to_channels(picture, channels or x.shape[-1]), size))


def _to_channels(picture: Image.Image, channels: int) -> Image.Image:
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode!r} have no fixed range; convert the picture to 8 bits")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == _MODES[channels] else picture.convert(_MODES[channels])


def _fit(picture: Image.Image, size: int | None) -> Image.Image:
    """Scales the shorter side to `size` and crops the central square."""
    if size is None or picture.size == (size, size):
        return picture
    return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)


def _to_array(picture: Image.Image) -> np.ndarray:
    x = np.asarray(picture)
    return x[..., None] if x.ndim == 2 else x
