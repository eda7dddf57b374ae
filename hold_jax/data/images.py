"""Conversion of picture files to arrays: decoding, channels, size."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hold_jax.data.files import File, opened
from hold_jax.errors import UserError
from hold_jax.runtime import npz

# Errors that Pillow raises for files that are damaged, truncated, or not pictures.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
ARRAY_SUFFIX = ".npy"
Size = int | tuple[int, int] | None
"""Size of pictures: the side of a square, (height, width), or None for their own."""
_MODES = {1: "L", 3: "RGB"}
_EXIF_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_LARGEST_ARRAY_BYTES = 1 << 30  # of one picture


def suffixes() -> frozenset[str]:
    """Returns the file name extensions, in lower case, of what `read_picture` reads."""
    known = _formats()
    return frozenset(end for end, format_ in Image.registered_extensions().items() if format_ in known) | {ARRAY_SUFFIX}


def is_picture(file: File | Path) -> bool:
    """Returns whether the content of a file begins like that of a picture; the name does not matter."""
    try:
        with open_picture(file):
            return True
    except UNREADABLE:
        return False


def sides(size: Size) -> tuple[int, int] | None:
    """Returns a size as (height, width)."""
    return (size, size) if isinstance(size, int) else size


def read_picture(file: File | Path, size: Size, channels: int, bits: int | None = None) -> np.ndarray:
    """Reads a picture file, in the orientation of its EXIF data, with transparent pixels on white.

    Floating-point pictures, in a TIFF or .npy file, must have values in [0, 1]; they become `round(255 x)`.

    Args:
      file: a regular file with one picture; with the extension .npy, an array (H, W), (H, W, 1) or (H, W, 3).
      size: size to which the picture is scaled, so that it covers it, and cropped around its center.
      channels: 1 or 3.
      bits: number of bits that the gray values of a 16-bit file use.

    Returns:
      uint8 `(H, W, channels)`.

    Raises:
      UserError: for a 16-bit file if `bits` is None or its values use more bits, and for floats outside [0, 1].
      UNREADABLE: if it is not a regular file, holds several pictures, or cannot be decoded.
    """
    if file.suffix == ARRAY_SUFFIX:
        x = _npy(file)
        if x.ndim not in (2, 3) or x.shape[2:] not in ((), (1,), (3,)):
            raise ValueError(f"its shape is {x.shape}; it must be (H, W), (H, W, 1) or (H, W, 3)")
        return fit_array(eight_bits(file, x if x.ndim == 3 else x[..., None], bits), size, channels)
    with _decoded(file) as picture:
        if picture.mode.startswith("I;16") or picture.mode == "F":
            picture = Image.fromarray(eight_bits(file, np.asarray(picture), bits))
        return _to_array(_fit(_to_channels(picture, channels), size))


def read_values(file: File | Path, integers: bool | None = None) -> np.ndarray:
    """Reads a picture file without conversion: the values as they are, of any type and number of channels.

    Args:
      file: a regular file with one picture; with the extension .npy, an array (H, W) or (H, W, C).
      integers: whether the values must be integers, as those of another file are; None: either.

    Returns:
      float32 `(H, W, C)`.

    Raises:
      UserError: if they are integers and must not be, or the other way round.
      UNREADABLE: as in `read_picture`; also for values that are not finite.
    """
    x = _values(file)
    if integers is not None and are_integers(x) != integers:
        kinds = ("other numbers", "integers up to 2^24")
        raise UserError(
            f"`kind` is 'array'; {file} holds {kinds[not integers]} ({x.dtype}), and the first file "
            f"{kinds[integers]}: all files must hold the same"
        )
    return as_float32(x)


def has_integers(file: File | Path) -> bool:
    """Returns whether the values of `read_values` are integers, all exact in float32; it raises the same errors."""
    return are_integers(_values(file))


def are_integers(x: np.ndarray) -> bool:
    """Returns whether numbers are integers, all exact in float32."""
    return x.dtype.kind in "uib" and -(1 << 24) <= int(x.min()) <= int(x.max()) <= 1 << 24


def _values(file: File | Path) -> np.ndarray:
    """The numbers `(H, W, C)` of a picture file, of any type."""
    if file.suffix == ARRAY_SUFFIX:
        x = _npy(file)
    else:
        with _decoded(file) as picture:
            palette = picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
            x = np.asarray(picture.convert("RGB") if palette else picture)
    if x.ndim not in (2, 3) or x.size == 0 or x.dtype.kind not in "uifb":
        raise ValueError(f"it holds {x.dtype} of shape {x.shape}; it must hold numbers of shape (H, W) or (H, W, C)")
    return x if x.ndim == 3 else x[..., None]


def as_float32(x: np.ndarray) -> np.ndarray:
    """Returns numbers as float32.

    Raises:
      ValueError: if one is not finite as float32.
    """
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError("it has values that are not finite as float32")
    return x


def picture_size(file: File | Path) -> tuple[int, int]:
    """Returns the (height, width) of `read_picture` without a `size`, from the header of the file alone."""
    if file.suffix == ARRAY_SUFFIX:
        with opened(file) as stream:
            shape = npz.npy_shape(stream)
        if len(shape) < 2:
            raise ValueError(f"its shape is {shape}; it must be (H, W) or (H, W, C)")
        return shape[0], shape[1]
    with open_picture(file) as picture:
        width, height = picture.size
        sideways = picture.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
    return (width, height) if sideways else (height, width)


def _npy(file: File | Path) -> np.ndarray:
    with opened(file) as stream:
        return npz.read_npy(stream, _LARGEST_ARRAY_BYTES)


def _formats() -> frozenset[str]:
    """Returns the formats that Pillow decodes itself, so not EPS, for which it runs Ghostscript."""
    Image.init()
    return frozenset(Image.OPEN) - {"EPS"}


@contextlib.contextmanager
def open_picture(file: File | Path) -> Iterator[Image.Image]:
    """Opens a picture with Pillow; whatever goes wrong while it is open is one of `UNREADABLE`."""
    try:
        with opened(file) as stream, Image.open(stream, formats=sorted(_formats())) as picture:
            yield picture
    except UnidentifiedImageError:  # its own message is of the open file, an object of Python
        raise ValueError("it is no picture of a format that Pillow reads") from None
    except UNREADABLE:
        raise
    except Exception as error:  # for damaged files Pillow raises any kind, KeyError and TypeError among them
        raise ValueError(f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _decoded(file: File | Path) -> Iterator[Image.Image]:
    """The one picture of a file, upright."""
    with open_picture(file) as picture:
        pages = getattr(picture, "n_frames", 1)
        if pages > 1:
            raise ValueError(f"it holds {pages} pictures; a file must hold one")
        ImageOps.exif_transpose(picture, in_place=True)
        yield picture


def eight_bits(where: object, x: np.ndarray, bits: int | None) -> np.ndarray:
    """Converts pixels to uint8: 16-bit ones by their number of used bits, which a file does not say, floats by 255 x.

    Raises:
      UserError: for values that this cannot convert.
    """
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind == "f":
        low, high = float(x.min()), float(x.max())
        if not 0 <= low <= high <= 1:
            raise UserError(
                f"{where} has floating-point pixels from {low:.4g} to {high:.4g}; those of pictures must be in [0, 1]: "
                "rescale them, or set data.kind=array to keep the values as they are"
            )
        return np.rint(255 * x).astype(np.uint8)
    if x.dtype.kind not in "ui" or int(x.min()) < 0 or int(x.max()) >= 1 << 16:
        raise ValueError(f"pixels of type {x.dtype} have no fixed range; convert the picture to 8 bits")
    used = int(x.max()).bit_length()
    if bits is None and used <= 8:
        raise UserError(
            f"{where} has values up to {x.max()} as {x.dtype}: save it as uint8 if they are 8-bit grays; if they are "
            "not, set `bits` to the bits that all of the pictures use, 9 to 16"
        )
    if bits is None or used > bits:
        raise UserError(
            f"`bits` is {bits}; {where} has 16-bit grays up to {x.max()}: set it to the bits that all of the "
            f"pictures use, such as {max(used, 9)}, so that they keep their contrast in 8 bits, or set data.kind=array "
            "to keep the values as they are"
        )
    return (x >> (bits - 8)).astype(np.uint8)


def fit_arrays(x: np.ndarray, size: Size, channels: int | None) -> np.ndarray:
    """Returns uint8 pictures `(N, H, W, 1 or 3)` fitted to `size` and `channels`; None keeps either as it is."""
    same_size = size is None or x.shape[1:3] == sides(size)
    if same_size and channels in (None, x.shape[-1]):
        return x
    return np.stack([fit_array(picture, size, channels) for picture in x])


def fit_array(x: np.ndarray, size: Size, channels: int | None) -> np.ndarray:
    """Returns one uint8 picture `(H, W, 1 or 3)` fitted to `size` and `channels`; None keeps either as it is."""
    if (size is None or x.shape[:2] == sides(size)) and channels in (None, x.shape[-1]):
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


def _fit(picture: Image.Image, size: Size) -> Image.Image:
    """Scales a picture so that it covers `size`, and crops it around its center."""
    if size is None:
        return picture
    height, width = (size, size) if isinstance(size, int) else size
    same = picture.size == (width, height)
    return picture if same else ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def _to_array(picture: Image.Image) -> np.ndarray:
    x = np.asarray(picture)
    return x[..., None] if x.ndim == 2 else x
