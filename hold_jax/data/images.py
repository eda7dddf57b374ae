"""Pictures to uint8 arrays: decoding, channels, resizing."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hold_jax.errors import UserError
from hold_jax.runtime.storage import open_regular

# What Pillow raises on files that are damaged, cut short, or not pictures.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_MODES = {1: "L", 3: "RGB"}
_EXIF_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


def suffixes() -> frozenset[str]:
    """Returns the file name endings, in lower case, of the formats that Pillow reads."""
    known = _formats()
    return frozenset(end for end, format_ in Image.registered_extensions().items() if format_ in known)


def is_picture(path: Path) -> bool:
    """Whether the content of a file begins as a picture's does, whatever the file is called."""
    try:
        with _opened(path):
            return True
    except UNREADABLE:
        return False


def read_picture(path: Path, size: int | None, channels: int, bits: int | None = None) -> np.ndarray:
    """Decodes the file to uint8 `(H, W, channels)`, upright, transparency over white, fitted to `size`.

    Args:
      path: a regular file with one picture.
      size: side of the square that it is scaled and cut to; None: as it is.
      channels: 1 or 3.
      bits: how many bits the grays of a 16-bit file use.

    Raises:
      UserError: for a 16-bit file without `bits`, or with more of them.
      UNREADABLE: if it is no regular file, holds several pictures, or Pillow cannot decode it.
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
    """Returns (height, width) as `read_picture` would give them, from the file's header alone."""
    with _opened(path) as opened:
        width, height = opened.size
        sideways = opened.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
    return (width, height) if sideways else (height, width)


def _formats() -> frozenset[str]:
    """What Pillow decodes itself; for EPS it would run Ghostscript."""
    Image.init()
    return frozenset(Image.OPEN) - {"EPS"}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with open_regular(path) as file, Image.open(file, formats=sorted(_formats())) as picture:
        yield picture


def _eight_bits(path: Path, grays: np.ndarray, bits: int | None) -> Image.Image:
    """Returns 16-bit grays as 8 bits: scaled by the range that they use, which the file does not state."""
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
    """Scales the shorter side to `size` and cuts the middle square."""
    if size is None or picture.size == (size, size):
        return picture
    return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)


def _to_array(picture: Image.Image) -> np.ndarray:
    x = np.asarray(picture)
    return x[..., None] if x.ndim == 2 else x
