import numpy as np
import pytest
import scipy.linalg

from hold_jax.errors import UserError
from hold_jax.metrics.frechet import Moments, frechet_distance, merge, moments


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
    centred = x - x.mean(axis=0)
    want = 4.0 * np.trace(np.cov(x, rowvar=False))  # scaled by 3: tr (3s - s)^2
    assert frechet_distance(moments(centred), moments(3.0 * centred)) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_distance_equals_the_matrix_square_root_form_and_is_symmetric(seed):
    rng = np.random.default_rng(seed)
    A, B = _random_cov(rng, 20), _random_cov(rng, 20)
    m_a, m_b = rng.standard_normal((2, 20))
    want = ((m_a - m_b) ** 2).sum() + np.trace(A + B - 2.0 * scipy.linalg.sqrtm(A @ B).real)
    a, b = Moments(99, m_a, A), Moments(99, m_b, B)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize("rank", [3, 30])
def test_distance_of_a_set_to_itself_is_zero(rank):
    cov = _random_cov(np.random.default_rng(3), 30, rank)
    a = Moments(50, np.zeros(30), cov)
    assert 0.0 <= frechet_distance(a, a) <= 1e-6 * np.trace(cov)


def test_fewer_items_than_features():
    # Ranges of A and B are orthogonal, so the cross term vanishes and tr A + tr B is left.
    A, B = np.zeros((8, 8)), np.zeros((8, 8))
    A[:3, :3], B[5:, 5:] = _random_cov(np.random.default_rng(4), 3), _random_cov(np.random.default_rng(5), 3)
    got = frechet_distance(Moments(4, np.zeros(8), A), Moments(4, np.zeros(8), B))
    assert got == pytest.approx(np.trace(A) + np.trace(B), rel=1e-6)


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
    with pytest.raises(UserError, match=r"cov.shape.*\(3, 3\), to match"):
        Moments(4, np.zeros(3), np.eye(2))
    for bad in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[2, 1] = bad
        with pytest.raises(UserError, match=r"`features` .* not finite in 1 of its 4 rows"):
            moments(spoilt)
        with pytest.raises(UserError, match=r"`cov` .* not finite"):
            Moments(4, np.zeros(2), np.array([[1.0, bad], [bad, 1.0]]))
