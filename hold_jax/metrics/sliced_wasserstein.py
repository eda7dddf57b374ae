"""The sliced Wasserstein distance between two point sets."""

import numpy as np
from numpy.typing import ArrayLike

from hold_jax.errors import require
from hold_jax.metrics.resampling import checked_rows, require_same_columns

_BLOCK_VALUES = 1 << 22  # projected values held at once, 32 MB


def sliced_wasserstein(
    x: ArrayLike, y: ArrayLike, *, num_projections: int = 256, seed: int = 0, order: int = 2
) -> float:
    """Returns the sliced Wasserstein distance `SW_p` between the empirical measures of `x` and `y`.

    Bonneel et al. (2015), "Sliced and Radon Wasserstein barycenters of measures":

        SW_p^p = E_theta int_0^1 |F_x^-1(u; theta) - F_y^-1(u; theta)|^p du,

    with theta uniform on the sphere and F^-1 the quantile function of the points projected on theta.
    Sorting gives it; the integral is exact for any two sizes, since both functions are steps. The
    directions come in orthonormal groups of up to d (each is still uniform), which lowers the variance
    of the estimate: a translation by v is found to be exactly `|v| / sqrt(d)` for p = 2 where d divides
    `num_projections`.

    Args:
        x: `(N, d)`, N >= 1.
        y: `(M, d)`, M >= 1.
        num_projections: directions averaged over; the error falls as its inverse square root, or faster.
        seed: chooses the directions; the same seed gives the same number.
        order: p, 1 or 2.

    Raises:
        UserError: on a shape, an order or a count out of range, or a value that is not finite.
    """
    require(order in (1, 2), "order", order, "1 or 2")
    require(num_projections >= 1, "num_projections", num_projections, "at least 1")
    x, y = (np.asarray(checked_rows(name, points), np.float64) for name, points in (("x", x), ("y", y)))
    require_same_columns(x, y, ("x", "y"))
    n, m = len(x), len(y)

    # Both quantile functions are constant between neighboring edges; in units of 1 / (n m) these are integers.
    edges = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    width = np.diff(edges, prepend=0) / (n * m)
    from_x, from_y = (edges - 1) // m, (edges - 1) // n

    theta = _directions(num_projections, x.shape[1], seed)
    rows = max(1, _BLOCK_VALUES // (n + m))
    total = 0.0
    for start in range(0, num_projections, rows):
        block = theta[start : start + rows]
        qx, qy = np.sort(block @ x.T, axis=1), np.sort(block @ y.T, axis=1)
        gap = qx - qy if n == m else qx[:, from_x] - qy[:, from_y]
        total += float((np.abs(gap) if order == 1 else gap * gap).sum(axis=0) @ width)
    return (total / num_projections) ** (1.0 / order)


def _directions(count: int, d: int, seed: int) -> np.ndarray:
    """Returns `(count, d)` unit vectors, each uniform up to its sign, in orthonormal groups of up to d."""
    rng = np.random.default_rng(seed)
    groups = []
    for start in range(0, count, d):
        q, _ = np.linalg.qr(rng.standard_normal((d, min(d, count - start))))
        groups.append(q.T)
    return np.concatenate(groups)
