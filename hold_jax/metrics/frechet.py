"""The Fréchet distance between two Gaussians, and the moments of features that it needs.

With Inception features this is the FID of Heusel et al. (2017), arXiv:1706.08500.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hold_jax.errors import UserError, require, require_whole
from hold_jax.metrics.resampling import checked_rows

_BLOCK_ROWS = 4096  # 64 MB at 2048 features in float64; a larger one is no faster


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and covariance of a set of feature vectors, float64.

    Args:
        count: number of vectors, at least 1.
        mean: `(d,)`.
        cov: `(d, d)`, the unbiased estimate (divisor `count - 1`); zero where `count` is 1, so that
            a last batch of one item can still be merged.

    Raises:
        UserError: on a shape that does not fit, a value that is not finite, or a matrix that is no covariance.
    """

    count: int
    mean: np.ndarray
    cov: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", np.asarray(self.mean, np.float64))
        object.__setattr__(self, "cov", np.asarray(self.cov, np.float64))
        require_whole("count", self.count, 1)
        require(self.mean.ndim == 1 and self.mean.size > 0, "mean.shape", self.mean.shape, "(d,) with d >= 1")
        d = self.mean.size
        require(self.cov.shape == (d, d), "cov.shape", self.cov.shape, f"({d}, {d}), to match `mean`")
        for name in ("mean", "cov"):
            if not np.isfinite(getattr(self, name)).all():
                raise UserError(f"`{name}` has values that are not finite")
        # Files of others may hold float32, or an estimate that is symmetric up to rounding alone.
        scale = np.abs(np.diag(self.cov)).max()
        skew = np.abs(self.cov - self.cov.T).max()
        right = skew <= 1e-3 * scale and np.diag(self.cov).min() >= -1e-3 * scale
        require(bool(right), "cov", f"a {d} x {d} matrix", "a covariance: symmetric, its diagonal not negative")


def moments(features: ArrayLike, mask: ArrayLike | None = None) -> Moments:
    """Returns the moments of `features`.

    Takes blocks of 4096 rows in turn, each centered on its own mean in float64 and merged as `merge` does:
    beside `features` it needs room for one block and three `(d, d)` matrices.

    Args:
        features: `(N, d)` with N >= 1, any real dtype.
        mask: `(N,)` bool, the rows that count, as where a last batch is padded; None: all. The result
            has the bits of `moments(features[mask])`.

    Raises:
        UserError: on another shape, no row that counts, or one that holds a value that is not finite.
    """
    mask = None if mask is None else np.asarray(mask)
    x = checked_rows("features", features, mask=mask)
    slices = (slice(start, start + _BLOCK_ROWS) for start in range(0, len(x), _BLOCK_ROWS))
    return _moments(x[rows] if mask is None else x[rows][mask[rows]] for rows in slices)


def moments_of_batches(batches: Iterable[ArrayLike]) -> Moments:
    """Returns the moments of all rows of `batches`, each `(B, d)` with any B >= 1, held one at a time.

    The rows are put together again in blocks of 4096, so the result has the bits of `moments` of the
    whole, however the rows were batched; `merge` of the moments of each batch agrees only to rounding.

    Raises:
        UserError: if there is no batch, or one has another shape, other columns or a value that is not finite.
    """
    return _moments(checked_rows("batches", batch) for batch in batches)


def _moments(batches: Iterable[np.ndarray]) -> Moments:
    count, mean, scatter = 0, None, None
    for block in _blocks(batches):
        block_mean = block.mean(axis=0)
        block -= block_mean
        block_scatter = block.T @ block
        if mean is None:
            count, mean, scatter = len(block), block_mean, block_scatter
            continue
        # As in `merge`, on scatters and in place: a covariance of 2048 features is 32 MB.
        total = count + len(block)
        delta = block_mean - mean
        scatter += block_scatter
        scatter += np.outer(delta, delta * (count * len(block) / total))
        mean = mean + delta * (len(block) / total)
        count = total
    if mean is None or scatter is None:
        raise UserError("`batches` is empty; it must hold at least one row")
    scatter /= max(count - 1, 1)
    return Moments(count, mean, scatter)


def _blocks(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the rows of `batches` in float64, `_BLOCK_ROWS` at a time and the rest; each is overwritten by the next.

    Rows that cross from one batch to the next go through the same buffer as all others, so what is yielded
    does not depend on the batches: neither do shapes and memory layout, which decide how BLAS rounds.
    """
    buffer, filled = None, 0
    for batch in batches:
        if buffer is None:
            buffer = np.empty((_BLOCK_ROWS, batch.shape[1]))
        require(batch.shape[1] == buffer.shape[1], "batches.shape[1]", batch.shape[1], f"{buffer.shape[1]} in all")
        while len(batch):
            taken = batch[: _BLOCK_ROWS - filled]
            buffer[filled : filled + len(taken)] = taken
            batch, filled = batch[len(taken) :], filled + len(taken)
            if filled == _BLOCK_ROWS:
                yield buffer
                filled = 0
    if buffer is not None and filled:
        yield buffer[:filled]


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

        |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)),   tr (A B)^(1/2) = sum of the singular values of F^T G,

    with A = F F^T and B = G G^T from their eigenvectors. No square root of the general matrix A B is
    taken: it turns complex or fails where A and B are singular (fewer items than features). Here the
    null space of either is left out of F and G, where rounding would add its square root, 1e-8, for
    each dimension of it.

    Raises:
        UserError: if the dimensions differ, or either set has fewer than 2 items.
    """
    _require_same_dimension(a, b)
    require(min(a.count, b.count) >= 2, "count", (a.count, b.count), "at least 2 in each set, to have a covariance")
    return _distance(a, b, _factor(b.cov))


class FrechetJackknife(NamedTuple):
    """A Fréchet distance, its standard error, and its bias by sampling: how much more of it more samples would take."""

    distance: float
    error: float
    bias: float


def frechet_jackknife(features: ArrayLike, reference: Moments, *, num_parts: int = 10) -> FrechetJackknife:
    """Returns the Fréchet distance of `features` to `reference`, with how far to trust it.

    The rows are dealt out to m parts (row i to part i mod m, so their order hardly matters), each part is left
    out in turn, and D_i is the distance of the rest: the jackknife of Efron & Tibshirani (1993), chapter 11,

        error^2 = (m - 1) / m * sum_i (D_i - mean D)^2,     bias = (m - 1) (mean D - D).

    No bootstrap: the distance of N samples exceeds that of infinitely many by about c / N (Chong & Forsyth
    2020, arXiv:1911.07023), and a resample, drawn from N points that stand for the law, adds c / N again;
    its percentiles lie above the very figure they are about, by far more than its error where d is near N.
    D_i instead differs in bias by only 1 / (m - 1) of c / N, the same for all i.

    The error is what another draw of `features` would change; `reference` is taken as it is. The bias says
    how much of the distance is due to the number of samples: compare figures only at equal N. It is not
    subtracted, as published figures are not.

    Args:
        features: `(N, d)`, any real dtype.
        reference: moments to compare with.
        num_parts: m, from 2 to N / 2.

    Raises:
        UserError: on a shape that does not fit, `num_parts` out of range, or values that are not finite.
    """
    x = checked_rows("features", features)
    num_parts, allowed = require_whole("num_parts", num_parts, 0), f"from 2 to {len(x) // 2}, half of the rows"
    require(2 <= num_parts <= len(x) // 2, "num_parts", num_parts, allowed)
    parts = [moments(x[i::num_parts]) for i in range(num_parts)]
    _require_same_dimension(parts[0], reference)
    require(reference.count >= 2, "reference.count", reference.count, "at least 2, to have a covariance")
    factor = _factor(reference.cov)

    whole = _distance(functools.reduce(merge, parts), reference, factor)
    rest = (functools.reduce(merge, parts[:i] + parts[i + 1 :]) for i in range(num_parts))
    left_out = np.array([_distance(of, reference, factor, near=True) for of in rest])
    error = np.sqrt((num_parts - 1) * left_out.var())
    return FrechetJackknife(whole, float(error), float((num_parts - 1) * (left_out.mean() - whole)))


def _factor(cov: np.ndarray) -> np.ndarray:
    """Returns F `(d, rank)` with F F^T = `cov`."""
    lam, vec = np.linalg.eigh(cov)
    right = bool(lam[0] >= -1e-3 * max(lam[-1], 0.0))
    require(right, "cov", f"a matrix with the eigenvalue {lam[0]:.3g}", "positive semi-definite, as a covariance is")
    # The tolerance of np.linalg.matrix_rank: below it an eigenvalue is rounding.
    keep = lam > lam[-1] * len(lam) * np.finfo(np.float64).eps
    return vec[:, keep] * np.sqrt(lam[keep])


def _distance(a: Moments, b: Moments, factor_b: np.ndarray, *, near: bool = False) -> float:
    cross = (_near_cross if near else _cross)(a.cov, factor_b)
    delta = a.mean - b.mean
    return max(float(delta @ delta + np.trace(a.cov) + np.trace(b.cov) - 2.0 * cross), 0.0)


def _cross(cov: np.ndarray, factor: np.ndarray) -> float:
    product = _factor(cov).T @ factor
    if product.shape[0] < product.shape[1]:
        product = product.T
    if not product.size:
        return 0.0
    # Singular values as the lengths of the images of the right singular vectors: those come from the Gram
    # matrix, whose eigenvalues would lose all digits below 1e-8 of the largest; the lengths do not.
    # Ten times faster than np.linalg.svd at 2048.
    _, right = np.linalg.eigh(product.T @ product)
    return float(np.linalg.norm(product @ right, axis=0).sum())


def _near_cross(cov: np.ndarray, factor: np.ndarray) -> float:
    """`_cross` by eigenvalues alone, in a fifth of the time; to 1e-7 of the traces, enough for an error."""
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(factor.T @ cov @ factor), 0.0)).sum())


def _require_same_dimension(a: Moments, b: Moments) -> None:
    for name, value in (("a", a), ("b", b)):
        require(isinstance(value, Moments), name, type(value).__name__, "`Moments`: moments(features)")
    if a.mean.size != b.mean.size:
        raise UserError(f"`a` has {a.mean.size} features and `b` has {b.mean.size}; they must be equal")
