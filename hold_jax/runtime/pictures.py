"""Pictures of samples: grids, bands with names, films, and arrays as shades of gray."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import ArrayLike

from hold_jax.errors import UserError, require
from hold_jax.runtime import storage

_GRID_WIDTH_PX = 800  # largest width if no scale is given
_MARGIN_PX = 2
_LABEL_PX = 14  # height of a name in `bands`
_FILM_FRAMES_PER_SECOND = 15
_FILM_GRAYS = 32  # noise in 256 grays doubles the size of the file


def image_grid(images_u8: ArrayLike, columns: int | None = None, scale: int | None = None) -> PIL.Image.Image:
    """Returns the images side by side, row by row, on white with a thin margin.

    Args:
        images_u8: `(N, H, W, C)`, uint8, C = 1 (gray) or 3 (RGB).
        columns: images in a row; by default the number that makes the grid nearly square.
        scale: how many times larger each image is drawn, by cubic interpolation; by default the largest number for
            which the grid is at most 800 pixels wide, so that small images are visible.

    Raises:
        UserError: on another shape or dtype, or a count below 1.
    """
    images = np.asarray(images_u8)
    fits = images.ndim == 4 and images.size > 0 and images.shape[3] in (1, 3) and images.dtype == np.uint8
    if not fits:
        raise UserError(
            f"`images_u8` is {images.dtype} of shape {images.shape}; it must be uint8 (N, H, W, 1) or (N, H, W, 3)"
        )
    n, h, w, c = images.shape
    columns = int(min(n, math.ceil(math.sqrt(n * h / w))) if columns is None else columns)
    require(columns >= 1, "columns", columns, "at least 1")
    largest = max(1, (_GRID_WIDTH_PX - (columns + 1) * _MARGIN_PX) // (columns * w))
    scale = int(largest if scale is None else scale)
    require(scale >= 1, "scale", scale, "at least 1")

    rows = math.ceil(n / columns)
    cell_h, cell_w = h * scale + _MARGIN_PX, w * scale + _MARGIN_PX
    canvas = np.full((rows * cell_h + _MARGIN_PX, columns * cell_w + _MARGIN_PX, c), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * cell_h + _MARGIN_PX, (i % columns) * cell_w + _MARGIN_PX
        larger = PIL.Image.fromarray(image[..., 0] if c == 1 else image).resize(
            (w * scale, h * scale), PIL.Image.Resampling.BICUBIC
        )
        canvas[top : top + h * scale, left : left + w * scale] = np.asarray(larger).reshape(h * scale, w * scale, c)
    return PIL.Image.fromarray(canvas[..., 0] if c == 1 else canvas)


def bands(panels: Mapping[str, np.ndarray], columns: int) -> PIL.Image.Image:
    """Returns several versions of the same images, one below the other, with the versions' names at the left.

    Args:
        panels: images `(N, H, W, C)`, uint8, by the name of the version; the same shape for all.
        columns: images in a row; the next ones follow below in another band.

    Raises:
        UserError: as `image_grid`.
    """
    arrays = list(panels.values())
    columns = min(columns, len(arrays[0]))
    parts = [
        image_grid(np.concatenate([a[start : start + columns] for a in arrays]), columns)
        for start in range(0, len(arrays[0]) - len(arrays[0]) % columns, columns)
    ]
    left = 2 * _MARGIN_PX + int(max(PIL.ImageFont.load_default(_LABEL_PX).getlength(name) for name in panels))
    gap = 4 * _MARGIN_PX
    height = sum(part.height + gap for part in parts) - gap
    canvas = PIL.Image.new(parts[0].mode, (left + parts[0].width, height), "white")
    draw = PIL.ImageDraw.Draw(canvas)
    top = 0
    for part in parts:
        canvas.paste(part, (left, top))
        for i, name in enumerate(panels):
            middle = top + (i + 0.5) * part.height / len(panels)
            draw.text((_MARGIN_PX, middle), name, fill="black", anchor="lm", font_size=_LABEL_PX)
        top += part.height + gap
    return canvas


def shades(x: ArrayLike, columns: int = 4) -> np.ndarray:
    """Returns arrays as uint8 pictures: uint8 as they are, floats from black to white between two of their quantiles.

    The quantiles are those of 0.5 % and 99.5 %. One channel becomes gray, three become red, green and blue. Other
    numbers of channels become gray pictures side by side, each with its own black and white.

    Args:
        x: `(..., H, W, C)`, uint8 or floating.
        columns: how many channels are shown at most.

    Returns:
        uint8 `(..., H, W', 1 or 3)`.
    """
    x = np.asarray(x)
    if x.dtype == np.uint8:
        return x
    channels = x.shape[-1]
    rows = x.reshape(-1, channels) if channels != 3 else x.reshape(-1, 1)
    low, high = np.nanquantile(rows, (0.005, 0.995), axis=0)
    levels = np.clip(255 * (x - low) / np.where(high > low, high - low, 1), 0, 255)
    levels = np.rint(np.where(np.isnan(levels), 0, levels)).astype(np.uint8)  # a value that is not there is black
    if channels in (1, 3):
        return levels
    side_by_side = np.moveaxis(levels[..., :columns], -1, -2)  # (..., H, C, W)
    return np.concatenate([side_by_side[..., i, :] for i in range(side_by_side.shape[-2])], axis=-1)[..., None]


def write_png(image: PIL.Image.Image, path: str | os.PathLike[str], *, sync: bool = True) -> None:
    """Writes a PNG atomically; `sync` as in `storage.writing`."""
    with storage.writing(storage.path(path, "path"), sync=sync) as file:
        image.save(file, format="PNG")


def film(
    frames: Sequence[PIL.Image.Image], path: str | os.PathLike[str], seconds: float = 4.0, hold_seconds: float = 1.5
) -> None:
    """Writes a GIF that repeats endlessly.

    At more than 15 frames per second, frames are dropped evenly; the first and the last are always kept. Gray frames
    are rounded to 32 levels. RGB frames share one palette without dithering, because separate palettes flicker and
    dithering makes the file large. Noise does not compress, so use a small `scale` for the grids of a film.

    Args:
        frames: images of equal size; unless all are gray, they are converted to RGB.
        path: the file to write.
        seconds: total time of the frames before the last.
        hold_seconds: time for which the last frame is shown.

    Raises:
        UserError: if there is no frame, sizes differ, or a time is not positive.
    """
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) != 1:
        raise UserError(f"`frames` has pictures of the sizes {sizes}; there must be at least one, all of one size")
    require(seconds > 0, "seconds", seconds, "positive")
    require(hold_seconds > 0, "hold_seconds", hold_seconds, "positive")

    shown = min(len(frames), max(2, int(seconds * _FILM_FRAMES_PER_SECOND) + 1))
    frames = [frames[i] for i in np.linspace(0, len(frames) - 1, shown).round().astype(int)]
    if all(frame.mode == "L" for frame in frames):
        levels = np.linspace(0, 255, _FILM_GRAYS)
        nearest = [int(levels[np.abs(levels - gray).argmin()]) for gray in range(256)]
        ready = [frame.point(nearest) for frame in frames]
    else:
        ready = _with_one_palette([frame.convert("RGB") for frame in frames])
    # GIF times are in hundredths of a second. Round the instants, not the durations, to keep the total.
    instants = np.linspace(0, 100 * seconds, len(ready)).round()
    durations = [10 * int(d) for d in np.diff(instants)] + [10 * round(100 * hold_seconds)]
    more = {"save_all": True, "append_images": ready[1:], "duration": durations, "loop": 0, "optimize": True}
    with storage.writing(storage.path(path, "path")) as file:
        ready[0].save(file, format="GIF", **more)


def _with_one_palette(frames: list[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """Returns the RGB frames in at most 256 colors, chosen mostly for the last frame, which is shown longest."""
    w, h = frames[0].size
    chosen = [frames[0], frames[len(frames) // 2], *[frames[-1]] * 4]
    montage = PIL.Image.new("RGB", (w, h * len(chosen)))
    for row, frame in enumerate(chosen):
        montage.paste(frame, (0, row * h))
    palette = montage.quantize(256, method=PIL.Image.Quantize.FASTOCTREE)
    colors = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)
    colors[(colors >= 250).all(axis=1)] = 255  # else the background would not be pure white
    palette.putpalette(colors.tobytes())
    return [frame.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for frame in frames]
