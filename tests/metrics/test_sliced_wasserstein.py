import numpy as np
import pytest
import scipy.stats

from hold_jax.errors import UserError
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein


def _points(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("d", [1, 2, 7])
def test_w2_of_a_translation_is_exact(d):
    # |<v, theta>|^2 averages to |v|^2 / d over any orthonormal basis.
    v = np.arange(1.0, d + 1.0)
    x = _points(50, d)
    got = sliced_wasserstein(x, x + v, num_projections=20 * d)
    assert got == pytest.approx(np.linalg.norm(v) / np.sqrt(d), rel=1e-10)


def test_w1_of_a_translation_in_the_plane():
    # The mean of |cos| over the circle is 2 / pi.
    x = _points(50, 2)
    got = sliced_wasserstein(x, x + np.array([3.0, 4.0]), num_projections=20_000, order=1)
    assert got == pytest.approx(5.0 * 2.0 / np.pi, rel=5e-3)


def test_w2_of_a_scaling():
    # <theta, 3x> sorts as <theta, x>, so W2^2 = 4 mean <theta, x>^2, which averages to 4 mean |x|^2 / d.
    x = _points(400, 3)
    got = sliced_wasserstein(x, 3.0 * x, num_projections=9)
    assert got == pytest.approx(np.sqrt(4.0 * (x**2).sum(axis=1).mean() / 3.0), rel=1e-10)


def test_w2_between_gaussians():
    # Projections of N(0, I) and N(v, 4 I) are N(0, 1) and N(<v, theta>, 4): W2^2 = <v, theta>^2 + (2 - 1)^2.
    x, y = _points(100_000, 2, seed=1), 2.0 * _points(100_000, 2, seed=2) + np.array([1.0, 1.0])
    assert sliced_wasserstein(x, y, num_projections=16) == pytest.approx(np.sqrt(2.0 / 2.0 + 1.0), rel=1e-2)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 27), (6, 35), (1, 9)])
def test_w1_on_the_line_equals_scipy(n, m):
    x, y = _points(n, 1, seed=3), 2.0 * _points(m, 1, seed=4) + 0.5
    want = scipy.stats.wasserstein_distance(x[:, 0], y[:, 0])
    assert sliced_wasserstein(x, y, num_projections=3, order=1) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_repeating_every_point_changes_nothing(order):
    x, y = _points(30, 2, seed=5), _points(20, 2, seed=6)
    once = sliced_wasserstein(x, y, order=order)
    assert sliced_wasserstein(np.repeat(x, 3, axis=0), y, order=order) == pytest.approx(once, rel=1e-12)
    assert sliced_wasserstein(np.repeat(x, 3, axis=0), x, order=order) == pytest.approx(0.0, abs=1e-12)


def test_a_set_is_at_zero_from_itself_in_any_order():
    x = _points(200, 4)
    shuffled = np.random.default_rng(7).permutation(x)
    assert sliced_wasserstein(x, shuffled) == pytest.approx(0.0, abs=1e-12)


def test_blocks_of_projections_do_not_change_the_number(monkeypatch):
    x, y = _points(30, 2, seed=8), _points(31, 2, seed=9)
    whole = sliced_wasserstein(x, y, num_projections=10)
    monkeypatch.setattr("hold_jax.metrics.sliced_wasserstein._BLOCK_VALUES", 3 * 61)  # blocks of 3, 3, 3 and 1
    assert sliced_wasserstein(x, y, num_projections=10) == pytest.approx(whole, rel=1e-12)


def test_the_seed_decides_the_number():
    x, y = _points(30, 5, seed=10), _points(30, 5, seed=11)
    first = sliced_wasserstein(x, y, num_projections=8, seed=1)
    assert sliced_wasserstein(x, y, num_projections=8, seed=1) == first
    assert sliced_wasserstein(x, y, num_projections=8, seed=2) != first


def test_errors_name_the_fault():
    x = _points(5, 2)
    with pytest.raises(UserError, match="`x` has 2 columns and `y` has 1"):
        sliced_wasserstein(x, x[:, :1])
    with pytest.raises(UserError, match="`order` is 3"):
        sliced_wasserstein(x, x, order=3)
    with pytest.raises(UserError, match="`num_projections` is 0"):
        sliced_wasserstein(x, x, num_projections=0)
    with pytest.raises(UserError, match=r"y.shape.*\(0, 2\)"):
        sliced_wasserstein(x, x[:0])
    with pytest.raises(UserError, match=r"`y` .* not finite in 1 of its 5 rows"):
        sliced_wasserstein(x, np.where(np.arange(5)[:, None] == 3, np.nan, x))
