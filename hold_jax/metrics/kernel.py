"""The kernel distance: the squared maximum mean discrepancy of two sets under a cubic polynomial kernel.

With Inception features this is the KID of Bińkowski et al. (2018), arXiv:1801.01401.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from hold_jax.errors import require
from hold_jax.metrics.resampling import Estimate, checked_rows, require_same_columns

_BLOCK_ROWS = 2048  # rows of a block of the exact estimate's kernel matrices, 32 MB


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """The mean over random subsets, and its spread.

    Attributes:
        mean: the estimate; unbiased, so it may be below zero where the laws are alike.
        error: the standard error of `mean`; None where fewer than two disjoint subsets exist.
        subset_std: the standard deviation of the subsets' values (divisor their number). This, and not the
            error of the mean, is what torch-fidelity prints behind its plus-minus sign; it
            is that of one subset, about sqrt(number of disjoint subsets) larger.
    """

    mean: float
    error: float | None
    subset_std: float


def kernel_distance(
    x: ArrayLike, y: ArrayLike, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Returns the mean over random subsets of the unbiased estimate of MMD^2 between the laws of `x` and `y`.

    Bińkowski et al. (2018), section 4, with the estimate of Gretton et al. (2012), lemma 6, of subsets of m rows each:

        MMD_u^2 = sum_{i != j} [k(x_i, x_j) + k(y_i, y_j)] / (m (m - 1)) - 2 sum_ij k(x_i, y_j) / m^2,
        k(x, y) = (x . y / d + 1)^3.

    In float64. The kernel is not invariant under translations, so the features stay where they are. Subsets
    are dealt from a shuffled set until it is used up, then it is shuffled anew: those of one deal are disjoint
    (torch-fidelity draws each from the whole set; the mean of the estimate is the same). That is what gives
    `error` a meaning: with J = min(N, M) // m disjoint subsets it is the sample standard deviation over
    sqrt(min(J, num_subsets)). Subsets beyond the first deal pair the same rows anew; they lower the error
    a little further, which is not counted.

    Args:
        x: `(N, d)`, any real dtype.
        y: `(M, d)`, any real dtype.
        num_subsets: at least 1.
        subset_size: m, from 2 to min(N, M). For fewer rows than the customary 1000, use `kernel_distance_exact`.
        seed: of the subsets; the same seed gives the same number.

    Raises:
        UserError: on a shape or count out of range, or a value that is not finite.
    """
    x, y = checked_rows("x", x, minimum=2), checked_rows("y", y, minimum=2)
    require_same_columns(x, y, ("x", "y"))
    require(num_subsets >= 1, "num_subsets", num_subsets, "at least 1")
    fewest = min(len(x), len(y))
    allowed = f"from 2 to {fewest}, the rows of the smaller set; for few rows there is `kernel_distance_exact`"
    require(2 <= subset_size <= fewest, "subset_size", subset_size, allowed)
    rng_x, rng_y = np.random.default_rng(seed).spawn(2)
    subsets_x, subsets_y = _deal(len(x), subset_size, rng_x), _deal(len(y), subset_size, rng_y)
    values = np.empty(num_subsets)
    for i in range(num_subsets):
        a, b = x[next(subsets_x)].astype(np.float64), y[next(subsets_y)].astype(np.float64)
        within = _off_diagonal_sum(_kernel(a, a)) + _off_diagonal_sum(_kernel(b, b))
        values[i] = within / (subset_size * (subset_size - 1)) - 2.0 * _kernel(a, b).mean()
    independent = min(fewest // subset_size, num_subsets)
    error = float(values.std(ddof=1) / math.sqrt(independent)) if independent >= 2 else None
    return KernelDistance(float(values.mean()), error, float(values.std()))


def kernel_distance_exact(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Returns the unbiased estimate of MMD^2 from all pairs of rows, as for one subset of everything.

    No randomness; `x` and `y` may differ in size. Time grows as (N + M)^2 d: made for a few thousand rows.
    The error is the delete-one jackknife of both samples (Efron & Tibshirani 1993, chapter 11): exact to first
    order, and on the large side where the laws are equal and the first order vanishes (Efron & Stein 1981).

    Args:
        x: `(N, d)` with N >= 2, any real dtype.
        y: `(M, d)` with M >= 2, any real dtype.

    Raises:
        UserError: on a shape that does not fit, or a value that is not finite.
    """
    x, y = checked_rows("x", x, minimum=2), checked_rows("y", y, minimum=2)
    require_same_columns(x, y, ("x", "y"))
    n, m = len(x), len(y)
    of_xx, of_yy = _row_sums(x), _row_sums(y)  # without the diagonal
    of_xy, of_yx = np.zeros(n), np.zeros(m)
    for rows, columns, block in _kernel_blocks(x, y):
        of_xy[rows] += block.sum(axis=1)
        of_yx[columns] += block.sum(axis=0)
    cross = of_xy.sum() / (n * m)
    value = of_xx.sum() / (n * (n - 1)) + of_yy.sum() / (m * (m - 1)) - 2.0 * cross
    error = None
    if min(n, m) >= 3:
        # Without row i, the sum over pairs loses that row and column.
        without_x = (of_xx.sum() - 2.0 * of_xx) / ((n - 1) * (n - 2)) - 2.0 * (of_xy.sum() - of_xy) / ((n - 1) * m)
        without_y = (of_yy.sum() - 2.0 * of_yy) / ((m - 1) * (m - 2)) - 2.0 * (of_yx.sum() - of_yx) / ((m - 1) * n)
        error = math.sqrt((n - 1) * without_x.var() + (m - 1) * without_y.var())
    return Estimate(float(value), error)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns `(N, M)`, k(x, y) = (x . y / d + 1)^3; `x @ x.T` of one array is computed by halves."""
    k = x @ y.T
    # 64 rows stay in the cache from one operation to the next. `** 3` calls pow, 20 times slower.
    for start in range(0, len(k), 64):
        part = k[start : start + 64]
        part /= x.shape[1]
        part += 1.0
        part *= part * part
    return k


def _off_diagonal_sum(k: np.ndarray) -> float:
    return k.sum() - np.trace(k)


def _kernel_blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    for i in range(0, len(x), _BLOCK_ROWS):
        a = x[i : i + _BLOCK_ROWS].astype(np.float64)
        for j in range(0, len(y), _BLOCK_ROWS):
            b = y[j : j + _BLOCK_ROWS].astype(np.float64)
            yield slice(i, i + len(a)), slice(j, j + len(b)), _kernel(a, b)


def _row_sums(x: np.ndarray) -> np.ndarray:
    sums = np.zeros(len(x))
    for rows, columns, block in _kernel_blocks(x, x):
        if rows == columns:
            np.fill_diagonal(block, 0.0)
        sums[rows] += block.sum(axis=1)
    return sums


def _deal(count: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields disjoint subsets of `size` of `range(count)` while there are enough left, then shuffles anew."""
    while True:
        shuffled = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield shuffled[start : start + size]
