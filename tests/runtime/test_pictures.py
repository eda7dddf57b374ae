import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from hold_jax.errors import UserError
from hold_jax.runtime import pictures
from hold_jax.runtime.pictures import film, image_grid, loss_curve, plot_limits, scatter, smooth


def _pixels(picture):
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_every_image_where_it_belongs(channels):
    # Cubic interpolation gives constants and, away from the edges, ramps exactly.
    level = np.random.default_rng(0).integers(20, 200, (5, 1, 1, channels))
    images = (level + 3 * np.arange(8)[None, None, :, None] * np.ones((1, 6, 1, 1), int)).astype(np.uint8)
    picture = image_grid(images, columns=2, scale=3)
    assert picture.mode == ("L" if channels == 1 else "RGB")
    pixels = _pixels(picture).reshape(*picture.size[::-1], channels)
    assert pixels.shape[:2] == (3 * (18 + 2) + 2, 2 * (24 + 2) + 2)
    seen = np.zeros(pixels.shape[:2], bool)
    ramp = (3 * ((np.arange(24) + 0.5) / 3 - 0.5))[None, :, None]
    for i in range(5):
        top, left = 2 + (i // 2) * 20, 2 + (i % 2) * 26
        cell = pixels[top : top + 18, left : left + 24]
        assert np.abs(cell - level[i] - ramp)[:, 6:-6].max() <= 0.51  # rounded to whole grays
        assert np.abs(cell - level[i] - ramp).max() <= 2  # an edge has no neighbor
        seen[top : top + 18, left : left + 24] = True
    assert (pixels[~seen] == 255).all()


@pytest.mark.parametrize(
    ("shape", "width"),
    # Columns ceil(sqrt(N H / W)); then the largest scale s with columns (W s + 2) + 2 <= 800, but at least 1.
    [
        ((64, 8, 8, 1), 8 * (8 * 12 + 2) + 2),
        ((23, 32, 32, 3), 5 * (32 * 4 + 2) + 2),
        ((2, 8, 8, 1), 2 * (8 * 49 + 2) + 2),
        ((16, 10, 40, 1), 2 * (40 * 9 + 2) + 2),
        ((1000, 32, 32, 3), 32 * (32 + 2) + 2),
    ],
)
def test_grid_by_default_is_nearly_square_and_fills_the_screen(shape, width):
    assert image_grid(np.zeros(shape, np.uint8)).size[0] == width


def test_grid_errors_name_the_fault():
    with pytest.raises(UserError, match=r"float64 of shape \(2, 8, 8, 1\)"):
        image_grid(np.zeros((2, 8, 8, 1)))
    with pytest.raises(UserError, match=r"uint8 of shape \(2, 8, 8, 2\)"):
        image_grid(np.zeros((2, 8, 8, 2), np.uint8))
    with pytest.raises(UserError, match="`columns` is 0"):
        image_grid(np.zeros((2, 8, 8, 1), np.uint8), columns=0)


def _read_gif(path):
    frames, durations = [], []
    with PIL.Image.open(path) as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            frames.append(_pixels(gif.convert("RGB")))
            durations.append(gif.info["duration"])
        return frames, durations, gif.info["loop"]


def _noise_to_image(count, shape):
    rng = np.random.default_rng(1)
    image = np.full(shape, 200.0)
    image[4:12, 4:12] = 40.0
    mix = [a * image + (1 - a) * rng.uniform(0, 255, shape) for a in np.linspace(0, 1, count)]
    return [PIL.Image.fromarray(m.astype(np.uint8)) for m in mix]


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3)])
def test_film_plays_the_frames_in_time_and_rests_on_the_last(tmp_path, shape):
    frames = _noise_to_image(13, shape)
    film(frames, tmp_path / "film.gif", seconds=1.0, hold_seconds=0.7)
    seen, durations, loop = _read_gif(tmp_path / "film.gif")
    assert loop == 0
    assert len(seen) == 13
    assert sum(durations[:-1]) == 1000 and durations[-1] == 700
    assert np.abs(seen[-1] - _pixels(frames[-1].convert("RGB"))).max() <= 8
    # Early frames are noise, which 256 colors render roughly; each is still nearest to its own frame.
    for i in (0, 3, 6):
        errors = [np.abs(seen[i] - _pixels(frame.convert("RGB"))).mean() for frame in frames]
        assert int(np.argmin(errors)) == i


def test_film_thins_out_frames_but_keeps_both_ends(tmp_path):
    frames = [PIL.Image.new("L", (8, 8), round(255 * i / 999)) for i in range(1000)]
    film(frames, tmp_path / "film.gif", seconds=1.0)
    seen, durations, _ = _read_gif(tmp_path / "film.gif")
    assert sum(durations[:-1]) == 1000
    grays = [frame[0, 0, 0] for frame in seen]
    assert grays[0] == 0 and grays[-1] == 255
    assert len(grays) == 16 and grays == sorted(grays)


def test_film_of_plots_keeps_white_paper_and_is_small(tmp_path):
    points = np.random.default_rng(2).standard_normal((500, 2))
    frames = [scatter(points * s, limits=(-3, 3, -3, 3), reference=points) for s in (0.2, 0.6, 1.0)]
    film(frames, tmp_path / "film.gif")
    seen, _, _ = _read_gif(tmp_path / "film.gif")
    assert all((frame[0, 0] == 255).all() for frame in seen)
    assert (tmp_path / "film.gif").stat().st_size < 200_000


def test_film_of_one_frame_and_errors(tmp_path):
    film([PIL.Image.new("L", (8, 8), 255)], tmp_path / "film.gif")
    with PIL.Image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames == 1 and (_pixels(gif.convert("L")) == 255).all()
    with pytest.raises(UserError, match=r"sizes \[\];"):
        film([], tmp_path / "film.gif")
    with pytest.raises(UserError, match=r"sizes \[\(8, 8\), \(9, 8\)\]"):
        film([PIL.Image.new("L", (8, 8)), PIL.Image.new("L", (9, 8))], tmp_path / "film.gif")


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
    picture = scatter(points, limits=(-2.0, 2.0, -2.0, 2.0), reference=points, title="t = 0.5")
    pixels = _pixels(picture)
    half = pixels.shape[1] // 2
    pixels[:90] = 255  # the title and the names of the panels
    dark, blue = pixels.sum(axis=2) < 300, pixels[..., 2] - pixels[..., 0] > 60
    assert blue[:, half:].sum() > 200 and not blue[:, :half].any()
    left, right = np.argwhere(dark[:, :half]).mean(axis=0), np.argwhere(blue[:, half:]).mean(axis=0)
    np.testing.assert_allclose(left, right, atol=3.0)


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


def test_smooth_is_a_running_mean_that_keeps_lines_and_forgets_spikes():
    line = np.arange(20.0)
    np.testing.assert_allclose(smooth(line, 3)[:17], line[:17])  # symmetric, so a straight line stays
    assert smooth(line, 3)[-1] == pytest.approx((16 + 17 + 18 + 19) / 4)
    spoilt = line.copy()
    spoilt[5], spoilt[12] = np.nan, 1e30
    got = smooth(spoilt, 1)
    assert np.isnan(got[5]) and got[4] == pytest.approx(3.5) and got[6] == pytest.approx(6.5)
    assert got[15] == pytest.approx(15.0)


def test_loss_curve_draws_a_falling_loss(tmp_path):
    steps = np.arange(0, 5000, 10)
    losses = np.exp(-steps / 800) * np.exp(0.1 * np.random.default_rng(7).standard_normal(steps.size))
    losses[100:110] = np.nan
    loss_curve(steps, losses, tmp_path / "loss.png", title="toy", reference=0.01)
    with PIL.Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"
        pixels = _pixels(picture.convert("RGB"))
    blue = np.argwhere(pixels[..., 2] - pixels[..., 0] > 60)
    blue = blue[(blue[:, 0] > 120)]  # below the legend
    # On a log axis an exponential is a straight line.
    slope, offset = np.polyfit(blue[:, 1], blue[:, 0], 1)
    assert slope > 0.2
    assert np.abs(blue[:, 0] - slope * blue[:, 1] - offset).max() < 15


def test_loss_curve_errors_name_the_fault(tmp_path):
    with pytest.raises(UserError, match=r"`steps` is \(3,\) and `losses` \(2,\)"):
        loss_curve([1, 2, 3], [0.1, 0.2], tmp_path / "loss.png")
    with pytest.raises(UserError, match="no finite value"):
        loss_curve([1, 2], [np.nan, np.inf], tmp_path / "loss.png")


def test_import_does_not_load_matplotlib_and_drawing_does_not_load_pyplot(tmp_path):
    program = (
        "import sys, hold_jax.runtime.pictures as p; assert 'matplotlib' not in sys.modules;"
        f"p.loss_curve([1, 2, 3], [3.0, 2.0, 1.0], {str(tmp_path / 'loss.png')!r});"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def columns_of_color(image, color, tolerance=60):
    """Pixel columns of a histogram's line, and of its height the mean row."""
    pixels = np.asarray(image).astype(int)
    return np.abs(pixels - color).sum(axis=-1).__lt__(tolerance)


def test_a_histogram_shows_where_numbers_are():
    """Twice as many about 3 as about -3: two peaks, one twice as high, nothing between."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-3, 0.3, 1000), rng.normal(3, 0.3, 2000), [np.nan, np.inf, 1e9]])
    limits = pictures.histogram_limits(x[:3000])
    image = pictures.histogram(x, limits=limits)
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
            pictures.histogram(wrong)
    with pytest.raises(UserError, match="`limits`"):
        pictures.histogram(np.ones(3), limits=(1.0, 1.0, 0.0, 1.0))
