"""Pages of plots; what is drawn is read from the figure's own lines."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from hold_jax.errors import UserError
from hold_jax.runtime import curves
from hold_jax.runtime.curves import smooth


def test_names_that_end_alike_share_a_panel():
    lines = [
        {"step": 1, "train/rate": 0.1, "train/loss": 2.0, "plain": 5.0, "made_by": {"x": 1}},
        {"step": 2, "train/loss": 1.0, "test/loss": 1.5, "train/by_noise/0": 3.0, "train/by_noise/1": 4.0},
    ]
    found = curves.grouped(lines)
    assert {panel: list(curve) for panel, curve in found.items()} == {
        "loss": ["train", "test"], "rate": ["train"], "plain": ["plain"], "by_noise": ["train 0", "train 1"],
    }  # fmt: skip
    assert next(iter(found)) == "loss"
    steps, values = found["loss"]["train"]
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(values, np.repeat([[2.0], [1.0]], 3, axis=1))
    np.testing.assert_array_equal(found["loss"]["test"][1], [[1.5, 1.5, 1.5]])


def test_numbered_names_share_a_panel_and_errors_belong_to_their_values():
    lines = [{"step": 5, "test/loss": 1.0, "test/loss_error": 0.25, "test/loss_noise0": 2.0, "test/loss_noise1": 3.0}]
    found = curves.grouped([*lines, {"step": 6, "test/loss": 2.0, "FD-DINOv2": 4.0, "a/of_error": 1.0}])
    assert {panel: list(curve) for panel, curve in found.items()} == {
        "loss": ["test"], "loss_noise": ["test 0", "test 1"], "FD-DINOv2": ["FD-DINOv2"], "of_error": ["a"],
    }  # fmt: skip
    np.testing.assert_array_equal(found["loss"]["test"][1], [[1.0, 0.75, 1.25], [2.0, 2.0, 2.0]])


def series(values):
    values = np.asarray(values, np.float64)
    return np.arange(len(values)), np.stack([values] * 3, axis=1)


def axes_of(values):
    axes = Figure().add_subplot()
    curves._panel(axes, "loss", {"train": series(values)})
    return axes


def test_few_values_are_drawn_as_they_are_and_many_with_their_mean():
    (line,) = axes_of([3.0, 2.0, 1.0]).get_lines()
    assert line.get_ydata().tolist() == [3.0, 2.0, 1.0] and line.get_marker() == "o"
    noisy = 1 + np.random.default_rng(0).normal(size=200) / 10
    raw, mean = axes_of(noisy).get_lines()
    np.testing.assert_array_equal(raw.get_ydata(), noisy)
    assert mean.get_ydata().std() < 0.5 * noisy.std()


def test_a_jump_of_a_schedule_stays_a_jump():
    rate = np.where(np.arange(200) < 100, np.minimum(np.arange(200) / 10, 1.0), 0.1)
    (line,) = axes_of(rate).get_lines()
    np.testing.assert_array_equal(line.get_ydata(), rate)


def test_errors_are_bars():
    lines = [{"step": s, "test/kid": (v, v - e, v + e)} for s, v, e in [(10, 0.36, 0.17), (20, 0.34, 0.34)]]
    found = curves.grouped(lines)["kid"]
    axes = Figure().add_subplot()
    curves._panel(axes, "kid", found)
    (bars,) = axes.collections
    want = [[(10, 0.19), (10, 0.53)], [(20, 0.0), (20, 0.68)]]
    np.testing.assert_allclose(bars.get_segments(), want, rtol=1e-12)
    (line,) = axes.get_lines()
    assert line.get_ydata().tolist() == [0.36, 0.34] and axes.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("values", "scale"), [([1, 20], "log"), ([1, 5], "linear"), ([-1, 20], "linear"), ([np.nan], "linear")]
)
def test_the_axis_is_logarithmic_where_that_helps(values, scale):
    assert axes_of(values).get_yscale() == scale


def test_a_page_has_room_for_all_panels():
    one = {"a": {"train": series(np.arange(3.0))}}
    sizes = {num: curves.draw({f"panel {i}": one["a"] for i in range(num)}).size for num in (1, 2, 4)}
    assert sizes[2][0] > sizes[1][0]
    assert sizes[4] == (1.5 * sizes[2][0], 2 * sizes[2][1])
    with pytest.raises(UserError, match="no logged values"):
        curves.draw({})


def test_smooth_is_a_running_mean_that_keeps_lines_and_recovers_after_spikes():
    line = np.arange(20.0)
    np.testing.assert_allclose(smooth(line, 3)[:17], line[:17])  # symmetric, so a straight line stays
    assert smooth(line, 3)[-1] == pytest.approx((16 + 17 + 18 + 19) / 4)
    spoilt = line.copy()
    spoilt[5], spoilt[12] = np.nan, 1e30
    got = smooth(spoilt, 1)
    assert np.isnan(got[5]) and got[4] == pytest.approx(3.5) and got[6] == pytest.approx(6.5)
    assert got[15] == pytest.approx(15.0)


def test_one_panel_shows_a_falling_loss():
    steps = np.arange(0, 5000, 10)
    losses = np.exp(-steps / 800) * np.exp(0.1 * np.random.default_rng(7).standard_normal(steps.size))
    losses[100:110] = np.nan
    picture = curves.draw({"loss": {"train": (steps, np.stack([losses] * 3, axis=1))}})
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    blue = np.argwhere(pixels[..., 2] - pixels[..., 0] > 60)
    # On a log axis an exponential is a straight line.
    slope, offset = np.polyfit(blue[:, 1], blue[:, 0], 1)
    assert slope > 0.2
    assert np.abs(blue[:, 0] - slope * blue[:, 1] - offset).max() < 15
