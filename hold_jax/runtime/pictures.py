"""Pictures of samples and of training: grids, films, scatter plots, curves of signals, loss curves.

matplotlib is imported inside the functions, because the import takes a second. Its object interface is used, which has
no global state and needs no display.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import ArrayLike

from hold_jax.errors import UserError, require
from hold_jax.runtime import storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Limits = tuple[float, float, float, float]
"""The window of a plot: `(x_min, x_max, y_min, y_max)`."""

_GRID_WIDTH_PX = 800  # largest width if no scale is given
_MARGIN_PX = 2
_LABEL_PX = 14  # height of a name in `bands`
_FILM_FRAMES_PER_SECOND = 15
_FILM_GRAYS = 32  # noise in 256 grays doubles the size of the file
_PANEL_INCHES = 4.2
_DPI = 100
_PAIRS, _PAIR_INCHES = 4, 2.1  # coordinates of a pair plot, and the side of its panels
_CURVE_ROWS, _CURVE_COLUMNS, _CURVE_INCHES = 6, 2, 2.4  # panels of curves, and their width
_CURVE_STYLES = ("-", "--", "-.", ":")  # of the channels
_DOTS_AT_MOST = 20_000  # more points overlap too much as dots; a density is drawn instead
_BINS = 100
_BLUE, _INK, _FAINT = "#1f5fa8", "#333333", "#b8b8b8"


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


def plot_limits(points: ArrayLike) -> Limits:
    """Returns a square window with a margin around `points`, `(N, 2)`, without the outermost 0.2 % on each side.

    Raises:
        UserError: if `points` is not `(N, 2)` or has no finite point.
    """
    xy = _points_2d("points", points)
    if len(xy) == 0:
        raise UserError("`points` has no finite point to choose a window by; give `limits`")
    low, high = np.quantile(xy, (0.002, 0.998), axis=0)
    center, half = (low + high) / 2, 0.58 * max(float((high - low).max()), 1e-6)
    return (
        float(center[0] - half),
        float(center[0] + half),
        float(center[1] - half),
        float(center[1] + half),
    )


def scatter(
    points: ArrayLike, limits: Limits | None = None, reference: ArrayLike | None = None, title: str | None = None
) -> PIL.Image.Image:
    """Returns a scatter plot of two-dimensional samples, next to the data if given.

    Up to 20,000 points are drawn as dots, more as a density. All panels have the same window. For a film, calls with
    the same `limits` give the same layout. If more than 1 % of the points are outside of the window or not finite, a
    note in the panel gives their share.

    Args:
        points: `(N, 2)`.
        limits: the window, equal in both directions; by default `plot_limits` of `reference`, or else of `points`.
        reference: `(M, 2)`, the data, drawn in a panel on the left.
        title: one line above.

    Raises:
        UserError: on a shape other than `(N, 2)` or an empty window.
    """
    from matplotlib.figure import Figure

    if limits is None:
        limits = plot_limits(points if reference is None else reference)
    require(
        limits[0] < limits[1] and limits[2] < limits[3], "limits", limits, "(x_min, x_max, y_min, y_max), min < max"
    )
    panels = [("samples", _BLUE, points)]
    if reference is not None:
        panels.insert(0, ("data", _INK, reference))
    clouds = [_points_2d("points" if name == "samples" else "reference", values) for name, _, values in panels]
    as_density = max(len(cloud) for cloud in clouds) > _DOTS_AT_MOST

    side, left, below, above = _PANEL_INCHES - 0.55, 0.42, 0.3, 0.42 if title else 0.1
    width, height = _PANEL_INCHES * len(panels), below + side + above
    figure = Figure(figsize=(width, height), dpi=_DPI)
    for i, ((name, color, values), cloud) in enumerate(zip(panels, clouds, strict=True)):
        # Axes have fixed places: automatic layouts depend on the tick labels, so the frames of a film would shift.
        corner = (i * _PANEL_INCHES + left) / width, below / height
        axes = figure.add_axes((*corner, side / width, side / height))
        _draw_cloud(axes, cloud, color, limits, as_density)
        _style_panel(axes, limits)
        if len(panels) > 1:
            axes.text(0.03, 0.97, name, transform=axes.transAxes, va="top", fontsize=12, color=color)
        lost = 1.0 - _inside(cloud, limits).sum() / max(len(np.asarray(values)), 1)
        if lost > 0.01:
            note = f"{100 * lost:.0f} % out of view"
            axes.text(
                0.97,
                0.03,
                note,
                transform=axes.transAxes,
                ha="right",
                fontsize=9,
                color="#555555",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
            )
    if title:
        figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=13, color=_INK)
    return to_image(figure)


def pairs(points: ArrayLike, reference: ArrayLike | None = None, title: str | None = None) -> PIL.Image.Image:
    """Returns plots of the pairs of the first four coordinates, beside the data if given.

    Below the diagonal are the samples, on it the densities of each coordinate, above it the data.

    Args:
        points: `(N, d)`, d >= 2.
        reference: `(M, d)`, the data.
        title: one line above.
    """
    from matplotlib.figure import Figure

    samples = _finite_rows("points", points)
    data = None if reference is None else _finite_rows("reference", reference)
    count = min(samples.shape[1], _PAIRS)
    windows = [histogram_limits((samples if data is None else data)[:, i]) for i in range(count)]
    width, height = count * _PAIR_INCHES + 0.3, count * _PAIR_INCHES + (0.6 if title else 0.3)
    figure = Figure(figsize=(width, height), dpi=_DPI)
    for row in range(count):
        for column in range(count):
            if column > row and data is None:
                continue
            corner = (0.42 + column * _PAIR_INCHES) / width, (0.4 + (count - 1 - row) * _PAIR_INCHES) / height
            size = 0.9 * _PAIR_INCHES
            axes = figure.add_axes((*corner, size / width, size / height))
            if row == column:
                _draw_densities(axes, samples[:, row], None if data is None else data[:, row], windows[row])
            else:
                cloud, color = (samples, _BLUE) if row > column or data is None else (data, _INK)
                limits = (*windows[column][:2], *windows[row][:2])
                shown = cloud[:, (column, row)]
                _draw_cloud(axes, shown, color, limits, len(shown) > _DOTS_AT_MOST)
                axes.set(xlim=limits[:2], ylim=limits[2:], aspect="auto")
            _style_axes(axes)
            axes.tick_params(labelbottom=row == count - 1, labelleft=column == 0 and row > 0)
            if data is not None and (row, column) in ((1, 0), (0, 1)):
                name, color = ("samples", _BLUE) if row > column else ("data", _INK)
                axes.text(0.03, 0.97, name, transform=axes.transAxes, va="top", fontsize=12, color=color)
            if row == count - 1:
                axes.set_xlabel(f"x{column}", fontsize=8, labelpad=1)
    if title:
        figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=13, color=_INK)
    return to_image(figure)


def curve_limits(signals: ArrayLike) -> tuple[float, float]:
    """Returns the heights from the 0.2 % to the 99.8 % quantile of signals, with a margin."""
    low, high = np.nanquantile(np.asarray(signals, np.float64), (0.002, 0.998))
    margin = max(0.15 * float(high - low), 1e-6)
    return float(low) - margin, float(high) + margin


def curves(
    signals: ArrayLike, reference: ArrayLike | None = None, limits: tuple[float, float] | None = None
) -> PIL.Image.Image:
    """Returns the first signals as curves, one a panel, beside as many of the data if given.

    Args:
        signals: `(N, length, C)`; the first 12 are drawn, and of each the first four channels.
        reference: `(M, length, C)`, the data, drawn on the left.
        limits: lowest and highest value shown; by default `curve_limits` of `reference`, or else of `signals`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    groups = [("samples", _BLUE, np.asarray(signals))]
    if reference is not None:
        groups.insert(0, ("data", _INK, np.asarray(reference)))
    low, high = curve_limits(groups[0][2]) if limits is None else limits
    rows = min(_CURVE_ROWS, max(len(group) for _, _, group in groups))
    columns = len(groups) * _CURVE_COLUMNS
    width, height = columns * _CURVE_INCHES + 0.4, rows * 0.5 * _CURVE_INCHES + 0.45
    figure = Figure(figsize=(width, height), dpi=_DPI)
    for g, (name, color, group) in enumerate(groups):
        left = 0.45 + g * _CURVE_COLUMNS * _CURVE_INCHES
        figure.text(left / width, 1 - 0.18 / height, name, va="center", fontsize=12, color=color)
        for i, signal in enumerate(group[: rows * _CURVE_COLUMNS]):
            row, column = divmod(i, _CURVE_COLUMNS)
            corner = (left + column * _CURVE_INCHES) / width, ((rows - 1 - row) * 0.5 * _CURVE_INCHES + 0.1) / height
            size = (_CURVE_INCHES - 0.15) / width, (0.5 * _CURVE_INCHES - 0.08) / height
            axes = figure.add_axes((*corner, *size))
            for c in range(min(signal.shape[-1], len(_CURVE_STYLES))):
                axes.plot(signal[:, c], color=color, linewidth=1, linestyle=_CURVE_STYLES[c], alpha=1 - 0.2 * c)
            axes.set(xlim=(0, max(len(signal) - 1, 1)), ylim=(low, high), xticks=[])
            axes.axhline(0, color=_FAINT, linewidth=0.5, zorder=0)
            _style_axes(axes)
            axes.yaxis.set_major_locator(MaxNLocator(2))
            if column or g:
                axes.set(yticks=[])
    return to_image(figure)


def histogram_limits(values: ArrayLike) -> Limits:
    """Returns a window for `histogram` around `values`, `(N,)`, without the outermost 0.2 % on each side.

    Raises:
        UserError: if `values` is not `(N,)` or has no finite number.
    """
    x = _finite_1d("values", values)
    if len(x) == 0:
        raise UserError("`values` has no finite number to choose a window by; give `limits`")
    low, high = np.quantile(x, (0.002, 0.998))
    margin = max(0.08 * float(high - low), 1e-6)
    low, high = float(low) - margin, float(high) + margin
    counts, edges = np.histogram(x, _BINS, (low, high))
    return low, high, 0.0, 1.25 * float(counts.max()) / len(x) / float(edges[1] - edges[0])


def histogram(
    values: ArrayLike, limits: Limits | None = None, reference: ArrayLike | None = None, title: str | None = None
) -> PIL.Image.Image:
    """Returns a density histogram of one-dimensional samples, with the histogram of the data if given.

    Args:
        values: `(N,)`.
        limits: the window; by default `histogram_limits` of `reference`, or else of `values`.
        reference: `(M,)`, the data, drawn filled.
        title: one line above.

    Raises:
        UserError: on another shape or an empty window.
    """
    from matplotlib.figure import Figure

    if limits is None:
        limits = histogram_limits(values if reference is None else reference)
    require(limits[0] < limits[1] and limits[2] < limits[3], "limits", limits, "(x_min, x_max, 0, y_max), min < max")
    figure = Figure(figsize=(_PANEL_INCHES * 1.4, _PANEL_INCHES), dpi=_DPI)
    axes = figure.add_axes((0.1, 0.1, 0.87, 0.8))  # fixed, as in `scatter`
    _draw_densities(axes, values, reference, limits)
    _style_axes(axes)
    if reference is not None:
        axes.legend(frameon=False, fontsize=9)
    if title:
        figure.text(0.5, 0.95, title, ha="center", va="center", fontsize=13, color=_INK)
    return to_image(figure)


def _draw_densities(axes: Axes, values: ArrayLike, reference: ArrayLike | None, limits: Limits) -> None:
    """Draws the histogram of the data filled, if there are data, and that of the samples as a line."""
    for name, filled, color, numbers in (("data", True, _FAINT, reference), ("samples", False, _BLUE, values)):
        if numbers is not None:
            x = _finite_1d(name, numbers)
            counts, edges = np.histogram(x, _BINS, limits[:2])
            density = counts / max(len(x), 1) / (edges[1] - edges[0])
            axes.stairs(density, edges, fill=filled, color=color, label=name)
    axes.set(xlim=limits[:2], ylim=limits[2:])


def _draw_cloud(axes: Axes, cloud: np.ndarray, color: str, limits: Limits, as_density: bool) -> None:
    if as_density:
        from matplotlib.colors import LinearSegmentedColormap

        counts, _, _ = np.histogram2d(cloud[:, 0], cloud[:, 1], bins=120, range=(limits[:2], limits[2:]), density=False)
        # The square root makes low densities visible. The 99.5 % quantile limits the effect of a single full bin.
        shade = np.sqrt(counts.T)
        top = np.quantile(shade[shade > 0], 0.995) if (shade > 0).any() else 1.0
        colors = LinearSegmentedColormap.from_list("paper_to_ink", ["white", color])
        axes.imshow(shade, origin="lower", extent=limits, cmap=colors, vmin=0, vmax=top, interpolation="bilinear")
    else:
        n = max(len(cloud), 1)
        area = float(np.clip(9000 / n, 2.0, 20.0))
        alpha = float(np.clip(1500 / n, 0.25, 0.8))
        axes.scatter(cloud[:, 0], cloud[:, 1], s=area, alpha=alpha, color=color, linewidths=0)


def _style_panel(axes: Axes, limits: Limits) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlim=limits[:2], ylim=limits[2:], aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    _style_axes(axes)


def _style_axes(axes: Axes) -> None:
    axes.tick_params(labelsize=8, length=3, colors="#777777")
    for spine in axes.spines.values():
        spine.set_color("#cccccc")


def _inside(cloud: np.ndarray, limits: Limits) -> np.ndarray:
    x, y = cloud[:, 0], cloud[:, 1]
    return (limits[0] <= x) & (x <= limits[1]) & (limits[2] <= y) & (y <= limits[3])


def _points_2d(name: str, values: ArrayLike) -> np.ndarray:
    """Returns the finite rows of `values`, `(N, 2)`."""
    xy = np.asarray(values, np.float64)
    require(xy.ndim == 2 and xy.shape[1] == 2, f"{name}.shape", xy.shape, "(N, 2)")
    return xy[np.isfinite(xy).all(axis=1)]


def _finite_rows(name: str, values: ArrayLike) -> np.ndarray:
    """Returns the finite rows of `values`, `(N, d)`, d >= 2."""
    x = np.asarray(values, np.float64)
    require(x.ndim == 2 and x.shape[1] >= 2, f"{name}.shape", x.shape, "(N, d), d >= 2")
    return x[np.isfinite(x).all(axis=1)]


def _finite_1d(name: str, values: ArrayLike) -> np.ndarray:
    """Returns the finite numbers of `values`, `(N,)`."""
    x = np.asarray(values, np.float64)
    require(x.ndim == 1, f"{name}.shape", x.shape, "(N,)")
    return x[np.isfinite(x)]


def loss_curve(
    steps: ArrayLike,
    losses: ArrayLike,
    path: str | os.PathLike[str],
    title: str | None = None,
    reference: float | None = None,
) -> None:
    """Writes a PNG of the loss over the training steps: raw values in gray, their running mean in blue.

    The vertical axis is logarithmic if all finite losses are positive and span more than a decade. Losses that are not
    finite are gaps in the curves.

    Args:
        steps: `(T,)`, ascending.
        losses: `(T,)`.
        path: the file to write.
        title: one line above.
        reference: a loss for comparison, such as a known lower bound; drawn as a dashed line.

    Raises:
        UserError: if the shapes differ, or no loss is finite.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    x, y = np.asarray(steps, np.float64), np.asarray(losses, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise UserError(f"`steps` is {x.shape} and `losses` {y.shape}; both must be (T,)")
    finite = y[np.isfinite(y)]
    if finite.size == 0:
        raise UserError("`losses` has no finite value to draw")

    figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(x, y, color=_FAINT, linewidth=0.8, label="each logged step")
    axes.plot(x, smooth(y), color=_BLUE, linewidth=2.0, label="running mean")
    if reference is not None:
        axes.axhline(reference, color=_INK, linewidth=1.2, linestyle=(0, (5, 4)), label=f"reference {reference:.4g}")
    if finite.min() > 0 and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("training step (parameter updates)", color=_INK)
    axes.set_ylabel("training loss (dimensionless)", color=_INK)
    axes.margins(x=0.01)
    axes.grid(color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors="#555555", which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#aaaaaa")
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    if title:
        axes.set_title(title, color=_INK, fontsize=12)
    with storage.writing(storage.path(path, "path")) as file:
        figure.savefig(file, format="png")


def smooth(values: ArrayLike, half_width: int | None = None) -> np.ndarray:
    """Returns the centered running mean of `values` over windows of `2 half_width + 1` values.

    Near the start the window shrinks on both sides, so that the steep first part of a loss curve is not shifted. Near
    the end it is cut on the right side only. Values that are not finite are left out of the means.

    Args:
        values: `(T,)`.
        half_width: by default 3 % of T, at least 3.

    Returns:
        `(T,)` float64; NaN where the value is not finite.
    """
    y = np.asarray(values, np.float64)
    n = len(y)
    if half_width is None:
        half_width = max(3, math.ceil(0.03 * n))
    index = np.arange(n)
    reach = np.minimum(index, half_width)
    low, high = index - reach, np.minimum(index + reach, n - 1) + 1
    finite = np.isfinite(y)
    # Each window is summed on its own: differences of one cumulative sum would lose all digits after a huge loss.
    edges = np.stack([low, high], axis=1).ravel()
    sums = np.add.reduceat(np.append(np.where(finite, y, 0.0), 0.0), edges)[::2]
    counts = np.add.reduceat(np.append(finite, False).astype(np.int64), edges)[::2]
    mean = sums / np.maximum(counts, 1)
    return np.where(finite, mean, np.nan)


def to_image(figure: Figure) -> PIL.Image.Image:
    """Returns a matplotlib figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
