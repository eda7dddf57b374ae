import numpy as np
import pytest

from hold_jax.errors import UserError
from hold_jax.metrics.resampling import bootstrap_mean, checked_rows


def test_interval_of_a_share_is_the_binomial_one():
    # 10,000 marks, 2,500 set: the normal interval is 0.25 +- 1.96 sqrt(p (1 - p) / n).
    marks = np.arange(10_000) % 4 == 0
    got = bootstrap_mean(marks, num_resamples=4000)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 10_000)
    assert got.value == 0.25
    assert got.value - got.low == pytest.approx(half, rel=0.1)
    assert got.high - got.value == pytest.approx(half, rel=0.1)


def test_interval_holds_the_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(250):
        _, low, high = bootstrap_mean(rng.exponential(size=200), num_resamples=200, seed=seed)
        hits += low <= 1.0 <= high
    # Percentiles of 200 skewed values miss a little more than 5 %; 4 binomial deviations around 0.94.
    assert 0.88 <= hits / 250 <= 0.99


def test_interval_of_a_constant_is_a_point_and_the_seed_decides():
    assert bootstrap_mean(np.ones(50)) == (1.0, 1.0, 1.0)
    values = np.random.default_rng(1).standard_normal(50)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float32, np.float64, bool])
def test_real_arrays_pass_uncopied(dtype):
    x = np.ones((3, 2), dtype)
    assert checked_rows("x", x) is x


def test_bfloat16_becomes_float32():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    got = checked_rows("x", np.full((3, 2), 0.5, ml_dtypes.bfloat16))
    assert got.dtype == np.float32
    assert (got == 0.5).all()


def test_errors_name_the_fault():
    x = np.ones((5, 2))
    with pytest.raises(UserError, match=r"`x.dtype` is 'complex128'; it must be of real numbers"):
        checked_rows("x", x * 1j)
    with pytest.raises(UserError, match=r"`x.dtype` is 'str"):
        checked_rows("x", [["a"]])
    with pytest.raises(UserError, match=r"`x.shape` is \(5,\)"):
        checked_rows("x", x[:, 0])
    with pytest.raises(UserError, match=r"`len\(x\)` is 5; it must be at least 6"):
        checked_rows("x", x, minimum=6)
    with pytest.raises(UserError, match=r"`mask` is 'int64 \(5,\)'; it must be bool \(5,\)"):
        checked_rows("x", x, mask=np.ones(5, np.int64))
    with pytest.raises(UserError, match=r"`mask` is 'bool \(4,\)'"):
        checked_rows("x", x, mask=np.ones(4, bool))
    with pytest.raises(UserError, match="`num_resamples` is 0"):
        bootstrap_mean(np.ones(3), num_resamples=0)


def test_values_that_are_not_finite_are_counted_through_the_blocks(monkeypatch):
    monkeypatch.setattr("hold_jax.metrics.resampling._CHECK_ROWS", 4)
    x = np.ones((10, 3), np.float32)
    x[1, 2], x[7, 0], x[7, 1], x[9, 0] = np.nan, np.inf, np.nan, -np.inf
    with pytest.raises(UserError, match="`x` has values that are not finite in 3 of its 10 rows"):
        checked_rows("x", x)
    mask = np.arange(10) != 7
    with pytest.raises(UserError, match="not finite in 2 of its 9 rows"):
        checked_rows("x", x, mask=mask)
    mask[[1, 9]] = False
    assert checked_rows("x", x, mask=mask) is x
