import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import sklearn.datasets

from hold_jax.errors import UserError
from hold_jax.metrics.frechet import (
    Moments,
    frechet_distance,
    frechet_jackknife,
    merge,
    moments,
    moments_of_batches,
)

BLOCK_ROWS = "hold_jax.metrics.frechet._BLOCK_ROWS"


def _random_cov(rng, d, rank=None):
    a = rng.standard_normal((d, rank or d))
    return a @ a.T


def test_moments_are_the_sample_mean_and_unbiased_covariance():
    x = np.random.default_rng(0).normal(3.0, 2.0, (500, 6)).astype(np.float32)
    got = moments(x)
    assert got.count == 500
    assert got.mean.dtype == got.cov.dtype == np.float64
    np.testing.assert_allclose(got.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.cov, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [(400, 600), (1, 999), (999, 1), (1, 1, 998), (250, 250, 499, 1)])
def test_merged_batches_equal_the_whole(sizes):
    # The offset is far larger than the spread: E[xx] - m m would keep no digit of the covariance.
    x = np.random.default_rng(1).standard_normal((1000, 4)) + 1e8
    batches = np.split(x, np.cumsum(sizes)[:-1])
    got = moments(batches[0])
    for batch in batches[1:]:
        got = merge(got, moments(batch))
    want = moments(x)
    assert got.count == want.count
    np.testing.assert_allclose(got.mean, want.mean, rtol=1e-14)
    np.testing.assert_allclose(got.cov, want.cov, atol=2e-7)


@pytest.mark.parametrize("block", [1, 7, 300, 1000, 4096])
def test_blocks_equal_the_two_pass_formula(block, monkeypatch):
    monkeypatch.setattr(BLOCK_ROWS, block)
    x = np.random.default_rng(1).normal(1e4, 1.0, (1000, 4)).astype(np.float32)
    got = moments(x)
    assert got.count == 1000
    np.testing.assert_allclose(got.mean, x.astype(np.float64).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(got.cov, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-12)


def _same_bits(a, b):
    assert a.count == b.count
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.cov, b.cov)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 5000])
def test_moments_have_the_same_bits_however_the_rows_are_batched(size, monkeypatch):
    monkeypatch.setattr(BLOCK_ROWS, 64)
    x = np.random.default_rng(7).standard_normal((1001, 17), dtype=np.float32)
    batches = (x[start : start + size] for start in range(0, len(x), size))
    _same_bits(moments_of_batches(batches), moments(x))
    _same_bits(moments(np.asfortranarray(x)), moments(x))


def test_moments_copy_one_block_at_a_time():
    x = np.random.default_rng(10).standard_normal((60_000, 16), dtype=np.float32)
    tracemalloc.start()
    moments(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 2  # a copy in float64 is twice `x`


def test_masked_rows_do_not_count_whatever_they_hold(monkeypatch):
    monkeypatch.setattr(BLOCK_ROWS, 64)
    x = np.random.default_rng(8).standard_normal((500, 5))
    mask = np.random.default_rng(9).random(500) < 0.7
    spoilt = np.where(mask[:, None], x, np.nan)
    _same_bits(moments(spoilt, mask), moments(x[mask]))
    padded = np.concatenate([x, np.full((12, 5), np.inf)])
    _same_bits(moments(padded, np.arange(512) < 500), moments(x))


def test_distance_of_gaussians_with_diagonal_covariances():
    # Commuting covariances: |m_a - m_b|^2 + sum_i (sd_a,i - sd_b,i)^2.
    sd_a, sd_b = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.0])
    shift = np.array([1.0, -2.0, 0.25])
    a, b = Moments(10, shift, np.diag(sd_a**2)), Moments(10, np.zeros(3), np.diag(sd_b**2))
    want = shift @ shift + ((sd_a - sd_b) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-12)


def test_distance_of_shifted_and_scaled_points():
    x = np.random.default_rng(2).standard_normal((300, 5))
    shift = np.arange(5.0)
    assert frechet_distance(moments(x), moments(x + shift)) == pytest.approx(shift @ shift, rel=1e-10)
    centered = x - x.mean(axis=0)
    want = 4.0 * np.trace(np.cov(x, rowvar=False))  # scaled by 3: tr (3s - s)^2
    assert frechet_distance(moments(centered), moments(3.0 * centered)) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_distance_equals_the_matrix_square_root_form_and_is_symmetric(seed):
    rng = np.random.default_rng(seed)
    A, B = _random_cov(rng, 20), _random_cov(rng, 20)
    m_a, m_b = rng.standard_normal((2, 20))
    want = ((m_a - m_b) ** 2).sum() + np.trace(A + B - 2.0 * scipy.linalg.sqrtm(A @ B).real)
    a, b = Moments(99, m_a, A), Moments(99, m_b, B)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize("decades", [2, 5])
def test_distance_equals_pytorch_fid_on_spectra_that_decay(decades):
    # As pytorch-fid computes it: the square root of the product, with 1e-6 I added only if it is not finite.
    rng = np.random.default_rng(20)
    scale = np.logspace(0, -decades / 2, 64)
    x, y = rng.standard_normal((500, 64)) * scale, (rng.standard_normal((400, 64)) @ _rotation(rng, 64)) * scale + 0.01
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    covmean = scipy.linalg.sqrtm(s1 @ s2)
    assert np.isfinite(covmean).all()
    diff = x.mean(axis=0) - y.mean(axis=0)
    want = diff @ diff + np.trace(s1) + np.trace(s2) - 2.0 * np.trace(covmean.real)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(want, rel=1e-8)


def _rotation(rng, d):
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 300), (300, 20), (33, 65), (2, 2)])
def test_fewer_items_than_features_equal_the_nuclear_norm(n, m):
    # tr (A B)^(1/2) is the nuclear norm of X Y^T / sqrt((n - 1) (m - 1)) for centered X, Y: no covariance, no root.
    rng = np.random.default_rng(21)
    x, y = rng.standard_normal((n, 64)), 1.5 * rng.standard_normal((m, 64)) + 0.1
    cx, cy = x - x.mean(axis=0), y - y.mean(axis=0)
    nuclear = np.linalg.svd(cx @ cy.T, compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
    diff = x.mean(axis=0) - y.mean(axis=0)
    want = diff @ diff + (cx**2).sum() / (n - 1) + (cy**2).sum() / (m - 1) - 2.0 * nuclear
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(want, rel=1e-10)
    assert frechet_distance(moments(y), moments(x)) == pytest.approx(want, rel=1e-10)


def test_ranges_that_overlap_in_part():
    # F^T G has 40 x 40 values and rank 20: its Gram matrix alone would leave 20 roots of rounding, 1e-8 each.
    rng = np.random.default_rng(27)
    turn = _rotation(rng, 60)
    x, y = rng.standard_normal((300, 40)) @ turn[:40], rng.standard_normal((300, 40)) @ turn[20:]
    cx, cy = x - x.mean(axis=0), y - y.mean(axis=0)
    nuclear = np.linalg.svd(cx @ cy.T, compute_uv=False).sum() / 299
    diff = x.mean(axis=0) - y.mean(axis=0)
    want = diff @ diff + ((cx**2).sum() + (cy**2).sum()) / 299 - 2.0 * nuclear
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(want, rel=1e-11)


@pytest.mark.parametrize("rank", [3, 30])
def test_distance_of_a_set_to_itself_is_zero(rank):
    cov = _random_cov(np.random.default_rng(3), 30, rank)
    a = Moments(50, np.zeros(30), cov)
    assert 0.0 <= frechet_distance(a, a) <= 1e-12 * np.trace(cov)


def test_fewer_items_than_features():
    # Ranges of A and B are orthogonal, so the cross term vanishes and tr A + tr B is left.
    A, B = np.zeros((8, 8)), np.zeros((8, 8))
    A[:3, :3], B[5:, 5:] = _random_cov(np.random.default_rng(4), 3), _random_cov(np.random.default_rng(5), 3)
    got = frechet_distance(Moments(4, np.zeros(8), A), Moments(4, np.zeros(8), B))
    assert got == pytest.approx(np.trace(A) + np.trace(B), rel=1e-12)


def test_sets_of_one_point_repeated():
    x = np.tile([1.0, 2.0], (5, 1))
    assert frechet_distance(moments(x), moments(x + 3.0)) == pytest.approx(18.0, rel=1e-14)


def test_distance_is_invariant_under_order_rotation_and_translation():
    rng = np.random.default_rng(22)
    x, y = rng.standard_normal((200, 6)), 2.0 * rng.standard_normal((150, 6)) + 1.0
    want = frechet_distance(moments(x), moments(y))
    turn = _rotation(rng, 6)
    assert frechet_distance(moments(rng.permutation(x)), moments(y)) == pytest.approx(want, rel=1e-12)
    assert frechet_distance(moments(x @ turn + 5.0), moments(y @ turn + 5.0)) == pytest.approx(want, rel=1e-10)


def test_distance_grows_with_noise_on_digits():
    digits = sklearn.datasets.load_digits().data
    rng = np.random.default_rng(23)
    digits = rng.permutation(digits)
    a, b = digits[::2], digits[1::2]
    reference, spread = moments(a), np.trace(moments(a).cov)
    found = [frechet_distance(moments(b + s * rng.standard_normal(b.shape)), reference) for s in (0, 1, 2, 4, 8)]
    assert found[0] < 0.02 * spread
    assert all(lesser < greater for lesser, greater in itertools.pairwise(found))
    assert found[-1] > spread


def _frechet_of_gaussians(rng, n, d, shift):
    x = rng.standard_normal((n, d))
    x[:, 0] += shift
    return x, Moments(2, np.zeros(d), np.eye(d))


def test_jackknife_error_is_the_spread_of_repeated_draws_and_its_bias_theirs():
    # Truth: |shift|^2 = 1 for d = 8, against N(0, I) known exactly; 200 draws of 400 points tell spread and bias.
    rng = np.random.default_rng(24)
    got = [frechet_jackknife(*_frechet_of_gaussians(rng, 400, 8, 1.0)) for _ in range(200)]
    distance, error, bias = np.array(got).T
    spread = distance.std(ddof=1)
    # Each error has 9 degrees of freedom, so the mean square over 200 is within a tenth.
    assert np.sqrt(np.mean(error**2)) == pytest.approx(spread, rel=0.2)
    assert bias.mean() == pytest.approx(distance.mean() - 1.0, abs=4 * spread / np.sqrt(200))
    assert bias.mean() > 0.02
    covered = np.abs(distance - bias - 1.0) <= 2.26 * error  # Student's t with 9 degrees of freedom
    assert 0.88 <= covered.mean() <= 0.99


def test_a_bootstrap_would_miss_the_distance_that_it_is_about():
    # Why there is none: all resamples lie above, where the jackknife's error is a few per cent.
    rng = np.random.default_rng(25)
    x, reference = _frechet_of_gaussians(rng, 100, 40, 1.0)
    distance, error, _ = frechet_jackknife(x, reference)
    resampled = [frechet_distance(moments(x[rng.integers(0, 100, 100)]), reference) for _ in range(100)]
    assert min(resampled) > distance + 3 * error


@pytest.mark.parametrize("d", [3, 60])  # 60: fewer rows than features
def test_jackknife_is_made_of_the_distances_without_a_part(d):
    rng = np.random.default_rng(0)
    x, reference = rng.standard_normal((40, d)), moments(rng.standard_normal((200, d)) @ rng.standard_normal((d, d)))
    rest = [moments(np.delete(x, np.s_[i::5], axis=0)) for i in range(5)]
    left_out = np.array([frechet_distance(of, reference) for of in rest])
    whole = frechet_distance(moments(x), reference)
    want = (whole, np.sqrt(4 / 5 * ((left_out - left_out.mean()) ** 2).sum()), 4 * (left_out.mean() - whole))
    np.testing.assert_allclose(frechet_jackknife(x, reference, num_parts=5), want, rtol=1e-6)


def test_jackknife_distance_is_that_of_the_whole_and_sorted_rows_do_not_matter():
    rng = np.random.default_rng(26)
    x, reference = _frechet_of_gaussians(rng, 301, 4, 2.0)
    whole = frechet_jackknife(x, reference)
    assert whole.distance == pytest.approx(frechet_distance(moments(x), reference), rel=1e-12)
    by_first = frechet_jackknife(x[np.argsort(x[:, 0])], reference)
    assert by_first.distance == pytest.approx(whole.distance, rel=1e-12)
    assert by_first.error < 3 * whole.error  # parts of neighboring rows: 20 times


def test_errors_name_the_fault():
    x = np.random.default_rng(6).standard_normal((4, 3))
    with pytest.raises(UserError, match=r"`a` has 3 features and `b` has 2"):
        frechet_distance(moments(x), moments(x[:, :2]))
    with pytest.raises(UserError, match=r"`a` has 3 features and `b` has 2"):
        merge(moments(x), moments(x[:, :2]))
    with pytest.raises(UserError, match=r"`count` is \(4, 1\).*at least 2"):
        frechet_distance(moments(x), moments(x[:1]))
    with pytest.raises(UserError, match=r"features.shape.*\(0, 3\)"):
        moments(x[:0])
    with pytest.raises(UserError, match=r"features.shape.*\(3,\)"):
        moments(x[0])
    with pytest.raises(UserError, match=r"`len\(features\)` is 0"):
        moments(x, np.zeros(4, bool))
    with pytest.raises(UserError, match=r"`mask` is 'bool \(3,\)'"):
        moments(x, np.ones(3, bool))
    with pytest.raises(UserError, match="`batches` is empty"):
        moments_of_batches([])
    with pytest.raises(UserError, match=r"`batches.shape\[1\]` is 2; it must be 3"):
        moments_of_batches([x, x[:, :2]])
    with pytest.raises(UserError, match="`num_parts` is 3; it must be from 2 to 2"):
        frechet_jackknife(x, moments(x), num_parts=3)
    with pytest.raises(UserError, match=r"`a` has 3 features and `b` has 2"):
        frechet_jackknife(x, moments(x[:, :2]), num_parts=2)
    with pytest.raises(UserError, match=r"`reference.count` is 1"):
        frechet_jackknife(x, moments(x[:1]), num_parts=2)
    with pytest.raises(UserError, match=r"`num_parts` is 2.5; it must be a whole number"):
        frechet_jackknife(x, moments(x), num_parts=2.5)
    for count in (2.5, "3", np.zeros(3)):
        with pytest.raises(UserError, match=r"`count` is .*; it must be a whole number >= 1"):
            Moments(count, np.zeros(3), np.eye(3))
    with pytest.raises(UserError, match=r"cov.shape.*\(3, 3\), to match"):
        Moments(4, np.zeros(3), np.eye(2))
    for bad in (-np.eye(3), np.triu(np.ones((3, 3)))):
        with pytest.raises(UserError, match=r"`cov` is 'a 3 x 3 matrix'; it must be a covariance: symmetric"):
            Moments(4, np.zeros(3), bad)
    indefinite = Moments(4, np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]))
    for pair in ((indefinite, moments(x[:, :2])), (moments(x[:, :2]), indefinite)):
        with pytest.raises(
            UserError, match=r"`cov` is 'a matrix with the eigenvalue -1'; it must be positive semi-def"
        ):
            frechet_distance(*pair)
    for bad in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[2, 1] = bad
        with pytest.raises(UserError, match=r"`features` .* not finite in 1 of its 4 rows"):
            moments(spoilt)
        with pytest.raises(UserError, match=r"`cov` .* not finite"):
            Moments(4, np.zeros(2), np.array([[1.0, bad], [bad, 1.0]]))
