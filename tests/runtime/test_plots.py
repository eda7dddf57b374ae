import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes

from hold_jax.errors import UserError
from hold_jax.runtime import plots
from hold_jax.runtime.plots import plot_limits, scatter


def _pixels(picture):
    return np.asarray(picture).astype(int)


def test_plot_limits_are_square_hold_the_points_and_ignore_strays():
    points = np.random.default_rng(3).uniform((-1.0, 4.0), (3.0, 5.0), (5000, 2))
    x0, x1, y0, y1 = plot_limits(np.concatenate([points, [[1e6, 1e6], [np.nan, 0.0]]]))
    assert x1 - x0 == pytest.approx(y1 - y0)
    assert x1 - x0 == pytest.approx(1.16 * 4.0, rel=0.01)
    assert (x0 + x1) / 2 == pytest.approx(1.0, abs=0.02) and (y0 + y1) / 2 == pytest.approx(4.5, abs=0.02)


def _blue_center(picture):
    """The mean place of blue ink, and the size of the picture."""
    pixels = _pixels(picture)
    rows, columns = np.nonzero(pixels[..., 2] - pixels[..., 0] > 60)
    return columns.mean(), rows.mean(), picture.size


@pytest.mark.parametrize("count", [500, 30_000])  # dots, density
def test_scatter_draws_points_at_their_place(count):
    rng = np.random.default_rng(4)
    limits = (-2.0, 2.0, -2.0, 2.0)
    left_up = scatter(rng.normal((-1.0, 1.0), 0.1, (count, 2)), limits=limits)
    right_down = scatter(rng.normal((1.0, -1.0), 0.1, (count, 2)), limits=limits)
    (x0, y0, size), (x1, y1, other) = _blue_center(left_up), _blue_center(right_down)
    assert size == other
    # Equal axes: 2 units each way, on a panel of 4 units and 365 pixels.
    assert x1 - x0 == pytest.approx(365 / 2, abs=3) and y1 - y0 == pytest.approx(365 / 2, abs=3)


def test_scatter_puts_the_data_left_of_the_samples_on_the_same_window():
    points = np.random.default_rng(5).normal((1.0, 1.0), 0.05, (300, 2))
    picture = scatter(points, limits=(-2.0, 2.0, -2.0, 2.0), reference=points)
    pixels = _pixels(picture)
    half = pixels.shape[1] // 2
    pixels[:90] = 255  # the names of the panels
    dark, blue = pixels.sum(axis=2) < 300, pixels[..., 2] - pixels[..., 0] > 60
    assert blue[:, half:].sum() > 200 and not blue[:, :half].any()
    left, right = np.argwhere(dark[:, :half]).mean(axis=0), np.argwhere(blue[:, half:]).mean(axis=0)
    np.testing.assert_allclose(left, right, atol=3.0)


def test_pairs_have_the_samples_below_the_diagonal_and_the_data_above_it():
    rng, counts = np.random.default_rng(7), (100, 3)
    samples_at, data_at = np.array([0.2, 0.4, 0.8]), np.array([0.7, 0.5, 0.3])
    corners = np.repeat([0.0, 1.0], 2)[:, None] * np.ones(3)  # two at each end fix the window: 8 % beyond [0, 1]
    data = np.concatenate([rng.normal(data_at, 0.01, counts), corners])
    pixels = _pixels(plots.pairs(rng.normal(samples_at, 0.01, counts), reference=data))
    # Panels of 189 pixels every 210, from 42 on and from 40 above the lower edge; without the frames and the names.
    for row, column in np.ndindex(3, 3):
        top, left = len(pixels) - 40 - 210 * (2 - row) - 189, 42 + 210 * column
        panel = pixels[top : top + 186, left + 3 : left + 186].copy()
        panel[:26] = 255
        dark, blue = panel.max(axis=2) < 120, panel[..., 2] - panel[..., 0] > 60
        seen, empty, place = (blue, dark, samples_at) if row >= column else (dark, blue, data_at)
        assert seen.any() and not empty.any(), (row, column)
        y, x = np.median(np.argwhere(seen), axis=0)
        assert (x + 3) / 189 == pytest.approx((place[column] + 0.08) / 1.16, abs=0.03), (row, column)
        if row != column:
            assert 1 - y / 189 == pytest.approx((place[row] + 0.08) / 1.16, abs=0.03), (row, column)


def test_signals_are_drawn_beside_those_of_the_data_and_every_channel_is(monkeypatch):
    curves = []

    def watched(axes, values, **style):
        curves.append((axes, np.array(values), style["color"]))
        return plot(axes, values, **style)

    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", watched)
    samples, data = np.random.default_rng(8).normal(size=(2, 20, 16, 2))
    picture = plots.signals(samples, reference=data + 5)
    # The first twelve of each, two a row, each with its channels.
    want = [*(data[:12] + 5).swapaxes(1, 2).reshape(24, 16), *samples[:12].swapaxes(1, 2).reshape(24, 16)]
    np.testing.assert_array_equal([values for _, values, _ in curves], want)
    places = [axes.get_position().x0 for axes, *_ in curves]
    assert max(places[:24]) < 0.5 < min(places[24:])
    assert len({color for *_, color in curves[:24]}) == len({color for *_, color in curves[24:]}) == 1
    assert all(axes.get_ylim() == plots.signal_limits(data + 5) for axes, *_ in curves)
    pixels, middle = _pixels(picture), 518  # the data's panels end at 510, those of the samples begin at 525
    dark, blue = pixels.max(axis=2) < 120, pixels[..., 2] - pixels[..., 0] > 60
    assert dark[:, :middle].any() and not dark[:, middle:].any()
    assert blue[:, middle:].any() and not blue[:, :middle].any()


def test_the_heights_of_signals_leave_out_the_outermost_values():
    x = np.append(np.linspace(0, 1, 9999), np.nan).reshape(100, 100, 1)
    assert plots.signal_limits(x) == pytest.approx((0.002 - 0.15 * 0.996, 0.998 + 0.15 * 0.996), rel=1e-6)


def test_scatter_says_when_points_are_out_of_view():
    inside = np.random.default_rng(6).uniform(-1, 1, (200, 2))
    limits = (-2.0, 2.0, -2.0, 2.0)
    plain = _pixels(scatter(inside, limits=limits))
    marked = _pixels(scatter(np.concatenate([inside, np.full((50, 2), np.nan)]), limits=limits))
    lower_right = np.s_[-60:-32, 280:400]  # in the panel, below all points
    assert (plain[lower_right] == 255).all()
    assert (marked[lower_right] < 150).any()


def test_scatter_errors_name_the_fault():
    with pytest.raises(UserError, match=r"points.shape.*\(5, 3\)"):
        scatter(np.zeros((5, 3)))
    with pytest.raises(UserError, match="limits"):
        scatter(np.zeros((5, 2)), limits=(1.0, 1.0, 0.0, 1.0))
    with pytest.raises(UserError, match="no finite point"):
        scatter(np.full((5, 2), np.nan))


def test_import_does_not_load_matplotlib_and_drawing_does_not_load_pyplot():
    program = (
        "import sys, hold_jax.runtime.plots as p; assert 'matplotlib' not in sys.modules;"
        "p.histogram([1.0, 2.0, 3.0]);"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def columns_of_color(image, color, tolerance=60):
    return np.abs(_pixels(image) - color).sum(axis=-1) < tolerance


def test_a_histogram_shows_where_numbers_are():
    """Twice as many about 3 as about -3: two peaks, one twice as high, nothing between."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-3, 0.3, 1000), rng.normal(3, 0.3, 2000), [np.nan, np.inf, 1e9]])
    limits = plots.histogram_limits(x[:3000])
    image = plots.histogram(x, limits=limits)
    line = columns_of_color(image, (0x1F, 0x5F, 0xA8))
    height, width = line.shape
    # The axes are from .1 to .97 of the width and from .1 to .9 of the height.
    place = lambda v: int(width * (0.1 + 0.87 * (v - limits[0]) / (limits[1] - limits[0])))  # noqa: E731
    tops = {}
    for v in (-3, 0, 3):
        rows = np.flatnonzero(line[:, place(v) - 20 : place(v) + 20].any(axis=1))
        tops[v] = 0.9 * height - rows.min() if len(rows) else 0
    assert tops[0] < 5
    assert tops[3] / tops[-3] == pytest.approx(2, rel=0.2)
    # The window's height is 1.25 of the highest bin's.
    assert tops[3] / (0.8 * height) == pytest.approx(0.8, abs=0.03)


def test_a_histogram_of_anything_else_is_named():
    for wrong in (np.zeros((3, 2)), np.zeros((0,)), np.full(3, np.nan)):
        with pytest.raises(UserError, match=r"`values"):
            plots.histogram(wrong)
    with pytest.raises(UserError, match="`limits`"):
        plots.histogram(np.ones(3), limits=(1.0, 1.0, 0.0, 1.0))
