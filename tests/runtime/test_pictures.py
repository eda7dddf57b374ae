import numpy as np
import PIL.Image
import pytest

from hold_jax.errors import UserError
from hold_jax.runtime.pictures import film, image_grid
from hold_jax.runtime.plots import scatter


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
