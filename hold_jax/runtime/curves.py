"""Curves of logged values over the training steps: a page of panels, running means.

matplotlib is imported inside the functions, because the import takes a second.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import ArrayLike

from hold_jax.errors import UserError
from hold_jax.runtime.plots import to_image

Curves = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]
"""Panel -> curve -> (steps (T,), values with the ends of their errors (T, 3))."""

_FIRST = "loss"
_ERROR = "_error"
_COLUMNS = 3
_FEW = 30  # values; more, if they are noisy, are drawn faintly under their running mean
_MARKED = 15  # values; fewer are marked by dots
_COLORS = ("#1f5fa8", "#c1442e", "#3a8f5c", "#8a5aa8", "#c48a1a", "#4aa3a8", "#8f6a4a", "#7a7a7a", "#b84a8a", "#5a6ac1")
_INK = "#333333"


def grouped(lines: Iterable[Mapping[str, Any]]) -> Curves:
    """Returns the curves of a log's lines.

    `train/loss` and `test/loss` are curves of one panel, "loss", which comes first; a name without a slash has a panel
    of its own. Names that end in different numbers share a panel. `test/loss_error` is the error of `test/loss`.

    Args:
      lines: each with "step" and by name numbers, or (value, low, high).
    """
    values: dict[str, list[tuple[float, ...]]] = {}
    for line in lines:
        for name, value in line.items():
            of_another = name.endswith(_ERROR) and name.removesuffix(_ERROR) in line
            if name == "step" or of_another or not isinstance(value, int | float | tuple):
                continue
            error = line.get(name + _ERROR, 0.0)
            ends = value if isinstance(value, tuple) else (value, value - error, value + error)
            values.setdefault(name, []).append((line["step"], *ends))
    stems = collections.Counter(map(_stem, values))
    found: Curves = {}
    for name, rows in values.items():
        stem = _stem(name) if stems[_stem(name)] > 1 else name
        where, _, rest = stem.partition("/")
        panel, _, more = rest.partition("/")
        steps, numbers = np.array(rows, np.float64)[:, 0], np.array(rows, np.float64)[:, 1:]
        curve = " ".join(filter(None, (where, more + name.removeprefix(stem))))
        found.setdefault(panel or where, {})[curve] = steps, numbers
    return dict(sorted(found.items(), key=lambda item: item[0] != _FIRST))


def _stem(name: str) -> str:
    """The name without the whole number after its last letter."""
    return re.sub(r"(?<=[a-z])[0-9]+$", "", name)


def draw(curves: Curves) -> PIL.Image.Image:
    """Returns a page with one panel for each group of curves.

    A curve of many values is drawn faintly, with its running mean. The vertical axis is logarithmic where all values
    are positive and span more than a decade.

    Raises:
      UserError: if there is no curve.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise UserError("there are no logged values to draw")
    columns = min(_COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    size = (4.6 * columns, 3.2 * rows) if len(curves) > 1 else (7.2, 4.2)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    for place, (panel, found) in enumerate(curves.items(), start=1):
        _panel(figure.add_subplot(rows, columns, place), panel, found)
    return to_image(figure)


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


def _panel(axes: Any, panel: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for i, (name, (steps, values)) in enumerate(curves.items()):
        color = _COLORS[i % len(_COLORS)]
        values, low, high = values.T
        if np.any(high > low):
            axes.vlines(steps, low, high, color=color, alpha=0.5, linewidth=1.2)
        noisy = len(values) > _FEW and _goes_up_and_down(values)
        if noisy:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        line = smooth(values) if noisy else values
        marker = "o" if len(values) <= _MARKED else None
        axes.plot(steps, line, color=color, linewidth=1.8, marker=marker, markersize=3.5, label=name)
    if _spans_a_decade([values[:, 0] for _, values in curves.values()]):
        axes.set_yscale("log")
    axes.set_title(panel.replace("_", " "), fontsize=11, loc="left", color=_INK)
    axes.set_xlabel("step", fontsize=9, color="#555555")
    _style(axes)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)


def _goes_up_and_down(values: np.ndarray) -> bool:
    """Whether all changes together are many times the range. A schedule's are not: its jumps stay jumps."""
    y = values[np.isfinite(values)]
    return y.size > 1 and float(np.abs(np.diff(y)).sum()) > 4 * float(np.ptp(y))


def _style(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors="#555555", which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#aaaaaa")


def _spans_a_decade(values: Sequence[np.ndarray]) -> bool:
    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    return finite.size > 0 and finite.min() > 0 and finite.max() > 10 * finite.min()
