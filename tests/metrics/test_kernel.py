import numpy as np
import pytest
import sklearn.datasets

from hold_jax.errors import UserError
from hold_jax.metrics.kernel import kernel_distance, kernel_distance_exact

BLOCK_ROWS = "hold_jax.metrics.kernel._BLOCK_ROWS"


def _points(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def _double_loop(x, y):
    # Lemma 6 of Gretton et al. (2012), term by term.
    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1.0) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2.0 * sum(k(a, b) for a in x for b in y) / (n * m)


def _of_gaussians(d, mean, sd):
    """MMD^2 of N(0, I) and N(v, sd^2 I) with |v| = mean, from the moments of inner products up to the third."""
    m, s = mean**2, sd**2
    xx = 1 + 3 / d
    xy = 1 + 3 * (s * d + m) / d**2
    yy = 1 + 3 * m / d + 3 * (s**2 * d + 2 * s * m + m**2) / d**2
    yy += (m**3 + 6 * s * m**2 + s**2 * m * (3 * d + 6)) / d**3
    return xx + yy - 2 * xy


@pytest.mark.parametrize(("n", "m"), [(12, 12), (9, 14), (2, 3)])
@pytest.mark.parametrize("block", [1, 5, 2048])
def test_exact_estimate_equals_the_double_loop(n, m, block, monkeypatch):
    monkeypatch.setattr(BLOCK_ROWS, block)
    x, y = _points(n, 3, 0), _points(m, 3, 1, shift=0.7)
    assert kernel_distance_exact(x, y).value == pytest.approx(_double_loop(x, y), rel=1e-10)


def test_a_subset_of_everything_is_the_exact_estimate():
    x, y = _points(40, 5, 2).astype(np.float32), _points(40, 5, 3, shift=0.5).astype(np.float32)
    got = kernel_distance(x, y, num_subsets=3, subset_size=40)
    assert got.mean == pytest.approx(kernel_distance_exact(x, y).value, rel=1e-12)
    assert got.subset_std == pytest.approx(0.0, abs=1e-12)
    assert got.error is None


def test_values_of_disjoint_subsets_are_those_of_torch_fidelity():
    # Its mmd2 on each subset; the subsets told by features that number the rows.
    x, y = _points(60, 4, 4), _points(90, 4, 5, shift=0.3)
    rng_x, rng_y = np.random.default_rng(7).spawn(2)
    rows_x, rows_y = rng_x.permutation(60).reshape(3, 20), rng_y.permutation(90)[:60].reshape(3, 20)
    values = []
    for i, j in zip(rows_x, rows_y, strict=True):
        k_xx, k_yy, k_xy = ((a @ b.T / 4 + 1.0) ** 3 for a, b in [(x[i], x[i]), (y[j], y[j]), (x[i], y[j])])
        kt_xx = (k_xx.sum(axis=1) - np.diagonal(k_xx)).sum()
        kt_yy = (k_yy.sum(axis=1) - np.diagonal(k_yy)).sum()
        values.append((kt_xx + kt_yy) / (20 * 19) - 2 * k_xy.sum() / 20**2)
    got = kernel_distance(x, y, num_subsets=3, subset_size=20, seed=7)
    assert got.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert got.subset_std == pytest.approx(np.std(values), rel=1e-12)
    assert got.error == pytest.approx(np.std(values, ddof=1) / np.sqrt(3), rel=1e-12)


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.0, 1.5), (1.5, 1.0), (1.0, 0.5)])
def test_estimate_is_unbiased_for_gaussians(mean, sd):
    d, v = 6, np.zeros(6)
    v[1] = mean
    x, y = _points(40_000, d, 6), sd * _points(40_000, d, 7) + v
    got = kernel_distance(x, y, num_subsets=400, subset_size=100)
    assert abs(got.mean - _of_gaussians(d, mean, sd)) < 4 * got.error
    assert got.error < 0.03


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_errors_are_the_spread_of_repeated_draws(shift):
    rng = np.random.default_rng(8)
    dealt, exact = [], []
    for _ in range(150):
        x, y = rng.standard_normal((300, 3)), rng.standard_normal((300, 3)) + shift
        dealt.append(kernel_distance(x, y, num_subsets=20, subset_size=30))
        exact.append(kernel_distance_exact(x, y))
    spread = np.std([g.mean for g in dealt], ddof=1)
    claimed = np.sqrt(np.mean([g.error**2 for g in dealt]))
    assert 0.85 * spread < claimed < 1.5 * spread  # the second deal lowers the spread, and is not counted
    spread = np.std([g.value for g in exact], ddof=1)
    claimed = np.sqrt(np.mean([g.error**2 for g in exact]))
    assert 0.85 * spread < claimed < (1.6 if shift == 0 else 1.15) * spread


def test_subsets_beyond_one_deal_do_not_shrink_the_error():
    # 100 points hold 5 disjoint subsets of 20: 400 subsets know no more than they.
    x, y = _points(100, 3, 9), _points(100, 3, 10, shift=0.2)
    got = kernel_distance(x, y, num_subsets=400, subset_size=20)
    assert got.error == pytest.approx(got.subset_std * np.sqrt(400 / 399) / np.sqrt(5), rel=1e-12)


def test_order_matters_to_neither_and_the_seed_decides():
    x, y = _points(50, 4, 11), _points(60, 4, 12)
    shuffled = np.random.default_rng(13).permutation(x)
    assert kernel_distance_exact(shuffled, y).value == pytest.approx(kernel_distance_exact(x, y).value, rel=1e-10)
    assert kernel_distance_exact(y, x).error == pytest.approx(kernel_distance_exact(x, y).error, rel=1e-10)
    first = kernel_distance(x, y, num_subsets=4, subset_size=10, seed=1)
    assert kernel_distance(x, y, num_subsets=4, subset_size=10, seed=1) == first
    assert kernel_distance(x, y, num_subsets=4, subset_size=10, seed=2).mean != first.mean


def test_float32_features_lose_nothing():
    # float32 throughout would be off by about 1e-7 of k = 1e5, more than the distance.
    x, y = (_points(200, 8, s).astype(np.float32) + np.float32(6.0) for s in (14, 15))
    got = kernel_distance(x, y, num_subsets=5, subset_size=40)
    assert got == kernel_distance(x.astype(np.float64), y.astype(np.float64), num_subsets=5, subset_size=40)


def test_halves_of_the_digits_are_alike_and_noise_is_not():
    digits = np.random.default_rng(16).permutation(sklearn.datasets.load_digits().data / 16.0)
    a, b = digits[::2], digits[1::2]
    same = kernel_distance(a, b, num_subsets=8, subset_size=100)
    assert abs(same.mean) < 4 * same.error
    noisy = b + 1.0 * _points(*b.shape, 17)
    assert kernel_distance(a, noisy, num_subsets=8, subset_size=100).mean > same.mean + 10 * same.error


def test_errors_name_the_fault():
    x = _points(5, 3, 18)
    for distance in (kernel_distance, kernel_distance_exact):
        with pytest.raises(UserError, match="`x` has 3 columns and `y` has 2"):
            distance(x, x[:, :2])
        with pytest.raises(UserError, match=r"`len\(y\)` is 1; it must be at least 2"):
            distance(x, x[:1])
        with pytest.raises(UserError, match=r"`x` .* not finite in 1 of its 5 rows"):
            distance(np.where(np.arange(5)[:, None] == 3, np.nan, x), x)
    with pytest.raises(UserError, match=r"`subset_size` is 1000; it must be from 2 to 5, .*`kernel_distance_exact`"):
        kernel_distance(x, np.tile(x, (2, 1)))
    with pytest.raises(UserError, match="`subset_size` is 1;"):
        kernel_distance(x, x, subset_size=1)
    with pytest.raises(UserError, match="`num_subsets` is 0"):
        kernel_distance(x, x, subset_size=3, num_subsets=0)
    assert kernel_distance_exact(x[:2], x).error is None
