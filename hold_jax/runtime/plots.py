"""Plots of samples beside data: points in the plane, pairs of coordinates, numbers, signals.

matplotlib is imported inside the functions, because the import takes a second. Its object interface is used, which has
no global state and needs no display.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from numpy.typing import ArrayLike

from hold_jax.errors import UserError, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Limits = tuple[float, float, float, float]
"""The window of a plot: `(x_min, x_max, y_min, y_max)`."""

_PANEL_INCHES = 4.2
_DPI = 100
_PAIRS, _PAIR_INCHES = 4, 2.1  # coordinates of a pair plot, and the side of its panels
_SIGNAL_ROWS, _SIGNAL_COLUMNS, _SIGNAL_INCHES = 6, 2, 2.4  # panels of signals, and their width
_SIGNAL_STYLES = ("-", "--", "-.", ":")  # of the channels
_DOTS_AT_MOST = 20_000  # more points overlap too much as dots; a density is drawn instead
_BINS = 100
_BLUE, _INK, _FAINT = "#1f5fa8", "#333333", "#b8b8b8"


def plot_limits(points: ArrayLike) -> Limits:
    """Returns a square window with a margin around `points`, `(N, 2)`, without the outermost 0.2 % on each side.

    Raises:
        UserError: if `points` is not `(N, 2)` or has no finite point.
    """
    xy = _finite("points", points, "(N, 2)")
    if len(xy) == 0:
        raise UserError("`points` has no finite point to choose a window by; give `limits`")
    low, high = np.quantile(xy, (0.002, 0.998), axis=0)
    (x, y), half = ((low + high) / 2).tolist(), 0.58 * max(float((high - low).max()), 1e-6)
    return x - half, x + half, y - half, y + half


def scatter(points: ArrayLike, limits: Limits | None = None, reference: ArrayLike | None = None) -> PIL.Image.Image:
    """Returns a scatter plot of two-dimensional samples, next to the data if given.

    Up to 20,000 points are drawn as dots, more as a density. All panels have the same window. For a film, calls with
    the same `limits` give the same layout. If more than 1 % of the points are outside of the window or not finite, a
    note in the panel gives their share.

    Args:
        points: `(N, 2)`.
        limits: the window, equal in both directions; by default `plot_limits` of `reference`, or else of `points`.
        reference: `(M, 2)`, the data, drawn in a panel on the left.

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
    clouds = [_finite("points" if name == "samples" else "reference", values, "(N, 2)") for name, _, values in panels]
    as_density = max(len(cloud) for cloud in clouds) > _DOTS_AT_MOST

    side, left, below, above = _PANEL_INCHES - 0.55, 0.42, 0.3, 0.1
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
    return to_image(figure)


def pairs(points: ArrayLike, reference: ArrayLike | None = None) -> PIL.Image.Image:
    """Returns plots of the pairs of the first four coordinates, beside the data if given.

    Below the diagonal are the samples, on it the densities of each coordinate, above it the data.

    Args:
        points: `(N, d)`, d >= 2.
        reference: `(M, d)`, the data.
    """
    from matplotlib.figure import Figure

    samples = _finite("points", points, "(N, d), d >= 2")
    data = None if reference is None else _finite("reference", reference, "(N, d), d >= 2")
    count = min(samples.shape[1], _PAIRS)
    windows = [histogram_limits((samples if data is None else data)[:, i]) for i in range(count)]
    width = height = count * _PAIR_INCHES + 0.3
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
    return to_image(figure)


def signal_limits(x: ArrayLike) -> tuple[float, float]:
    """Returns the heights from the 0.2 % to the 99.8 % quantile of signals, with a margin."""
    low, high = np.nanquantile(np.asarray(x, np.float64), (0.002, 0.998))
    margin = max(0.15 * float(high - low), 1e-6)
    return float(low) - margin, float(high) + margin


def signals(
    x: ArrayLike, reference: ArrayLike | None = None, limits: tuple[float, float] | None = None
) -> PIL.Image.Image:
    """Returns the first signals as curves, one a panel, beside as many of the data if given.

    Args:
        x: `(N, length, C)`; the first 12 are drawn, and of each the first four channels.
        reference: `(M, length, C)`, the data, drawn on the left.
        limits: lowest and highest value shown; by default `signal_limits` of `reference`, or else of `x`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    groups = [("samples", _BLUE, np.asarray(x))]
    if reference is not None:
        groups.insert(0, ("data", _INK, np.asarray(reference)))
    low, high = signal_limits(groups[0][2]) if limits is None else limits
    rows = min(_SIGNAL_ROWS, max(len(group) for _, _, group in groups))
    columns = len(groups) * _SIGNAL_COLUMNS
    width, height = columns * _SIGNAL_INCHES + 0.4, rows * 0.5 * _SIGNAL_INCHES + 0.45
    figure = Figure(figsize=(width, height), dpi=_DPI)
    for g, (name, color, group) in enumerate(groups):
        left = 0.45 + g * _SIGNAL_COLUMNS * _SIGNAL_INCHES
        figure.text(left / width, 1 - 0.18 / height, name, va="center", fontsize=12, color=color)
        for i, signal in enumerate(group[: rows * _SIGNAL_COLUMNS]):
            row, column = divmod(i, _SIGNAL_COLUMNS)
            corner = (left + column * _SIGNAL_INCHES) / width, ((rows - 1 - row) * 0.5 * _SIGNAL_INCHES + 0.1) / height
            size = (_SIGNAL_INCHES - 0.15) / width, (0.5 * _SIGNAL_INCHES - 0.08) / height
            axes = figure.add_axes((*corner, *size))
            for c in range(min(signal.shape[-1], len(_SIGNAL_STYLES))):
                axes.plot(signal[:, c], color=color, linewidth=1, linestyle=_SIGNAL_STYLES[c], alpha=1 - 0.2 * c)
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
    x = _finite("values", values, "(N,)")
    if len(x) == 0:
        raise UserError("`values` has no finite number to choose a window by; give `limits`")
    low, high = np.quantile(x, (0.002, 0.998))
    margin = max(0.08 * float(high - low), 1e-6)
    low, high = float(low) - margin, float(high) + margin
    counts, edges = np.histogram(x, _BINS, (low, high))
    return low, high, 0.0, 1.25 * float(counts.max()) / len(x) / float(edges[1] - edges[0])


def histogram(values: ArrayLike, limits: Limits | None = None, reference: ArrayLike | None = None) -> PIL.Image.Image:
    """Returns a density histogram of one-dimensional samples, with the histogram of the data if given.

    Args:
        values: `(N,)`.
        limits: the window; by default `histogram_limits` of `reference`, or else of `values`.
        reference: `(M,)`, the data, drawn filled.

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
    return to_image(figure)


def _draw_densities(axes: Axes, values: ArrayLike, reference: ArrayLike | None, limits: Limits) -> None:
    """Draws the histogram of the data filled, if there are data, and that of the samples as a line."""
    for name, filled, color, numbers in (("data", True, _FAINT, reference), ("samples", False, _BLUE, values)):
        if numbers is not None:
            x = _finite(name, numbers, "(N,)")
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


def _finite(name: str, values: ArrayLike, shape: str) -> np.ndarray:
    """Returns the finite rows of `values`, whose shape must be "(N,)", "(N, 2)" or "(N, d), d >= 2"."""
    x = np.asarray(values, np.float64)
    fits = {"(N,)": x.ndim == 1, "(N, 2)": x.shape[1:] == (2,), "(N, d), d >= 2": x.ndim == 2 and x.shape[1] >= 2}
    require(fits[shape], f"{name}.shape", x.shape, shape)
    return x[np.isfinite(x).all(axis=tuple(range(1, x.ndim)))]


def to_image(figure: Figure) -> PIL.Image.Image:
    """Returns a matplotlib figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
