"""The Fréchet distance between two Gaussians, and the moments of features that it needs.

With Inception features this is the FID of Heusel et al. (2017), arXiv:1706.08500.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from hold_jax.errors import UserError, require


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and covariance of a set of feature vectors, float64.

    Args:
        count: number of vectors, at least 1.
        mean: `(d,)`.
        cov: `(d, d)`, the unbiased estimate (divisor `count - 1`); zero where `count` is 1, so that
            a last batch of one item can still be merged.

    Raises:
        UserError: on a shape that does not fit, or a value that is not finite.
    """

    count: int
    mean: np.ndarray
    cov: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", np.asarray(self.mean, np.float64))
        object.__setattr__(self, "cov", np.asarray(self.cov, np.float64))
        require(self.count >= 1, "count", self.count, "at least 1")
        require(self.mean.ndim == 1 and self.mean.size > 0, "mean.shape", self.mean.shape, "(d,) with d >= 1")
        d = self.mean.size
        require(self.cov.shape == (d, d), "cov.shape", self.cov.shape, f"({d}, {d}), to match `mean`")
        for name in ("mean", "cov"):
            if not np.isfinite(getattr(self, name)).all():
                raise UserError(f"`{name}` has values that are not finite")


def moments(features: ArrayLike) -> Moments:
    """Returns the moments of `features`, `(N, d)` with N >= 1 and any real dtype.

    For more features than fit in memory, take the moments of each batch and `merge` them.

    Raises:
        UserError: if `features` is not `(N, d)` or holds a value that is not finite.
    """
    x = np.asarray(features, np.float64)
    require(x.ndim == 2 and x.size > 0, "features.shape", x.shape, "(N, d) with N, d >= 1")
    bad = np.count_nonzero(~np.isfinite(x).all(axis=1))
    if bad:
        raise UserError(f"`features` has values that are not finite in {bad} of its {len(x)} rows")
    mean = x.mean(axis=0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred / max(len(x) - 1, 1))


def merge(a: Moments, b: Moments) -> Moments:
    """Returns the moments of the union of two disjoint sets.

    Chan, Golub & LeVeque (1979): the scatter matrices `S = (count - 1) cov` add up to

        S = S_a + S_b + (n_a n_b / n) (m_b - m_a)(m_b - m_a)^T,

    which subtracts no large numbers, unlike `E[x x^T] - m m^T`.

    Raises:
        UserError: if the dimensions differ.
    """
    _require_same_dimension(a, b)
    count = a.count + b.count
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.count / count)
    scatter = (a.count - 1) * a.cov + (b.count - 1) * b.cov + np.outer(delta, delta) * (a.count * b.count / count)
    return Moments(count, mean, scatter / (count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Returns the squared 2-Wasserstein distance of the Gaussians with moments `a` and `b`.

    Dowson & Landau (1982); the number called FID when the features are Inception's:

        |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)),   tr (A B)^(1/2) = sum_i lambda_i(s B s)^(1/2),  s = A^(1/2).

    `A B` is similar to the symmetric `s B s`, so two symmetric eigenproblems replace the square root of
    a general matrix, which turns complex or fails where A and B are singular (fewer items than features).

    Raises:
        UserError: if the dimensions differ, or either set has fewer than 2 items.
    """
    _require_same_dimension(a, b)
    require(min(a.count, b.count) >= 2, "count", (a.count, b.count), "at least 2 in each set, to have a covariance")
    lam, vec = np.linalg.eigh(a.cov)
    s = (vec * np.sqrt(np.maximum(lam, 0.0))) @ vec.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(s @ b.cov @ s), 0.0)).sum()
    delta = a.mean - b.mean
    return max(float(delta @ delta + np.trace(a.cov) + np.trace(b.cov) - 2.0 * cross), 0.0)


def _require_same_dimension(a: Moments, b: Moments) -> None:
    if a.mean.size != b.mean.size:
        raise UserError(f"`a` has {a.mean.size} features and `b` has {b.mean.size}; they must be equal")
