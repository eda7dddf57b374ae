"""Figures from nearest neighbors: precision and recall, density and coverage, and the neighbors themselves."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hold_jax.errors import require
from hold_jax.metrics.resampling import Interval, bootstrap_mean, checked_rows, require_same_columns
from hold_jax.numerics.random import subset

_BLOCK_PAIRS = 1 << 21  # distances held at once, 16 MB in float64
_BLOCK_VALUES = 1 << 22  # differences held at once, 32 MB in float64
# A squared distance counts as equal to a radius that it exceeds by less than this share of its points' squared norms:
# above the rounding of float64's matrix products, so that a point is in the ball of its copy and ties are in too.
_TIE = 1e-12


@dataclasses.dataclass(frozen=True)
class NeighborFigures:
    """Each figure with its 95 % interval, and of how many points.

    Attributes:
        precision: share of the generated points within the real ones' balls.
        recall: share of the real points within the generated ones' balls.
        density: how many real balls hold a generated point, over k, on average; may exceed 1.
        coverage: share of the real balls that hold a generated point.
        num_real: real points used, at most `max_points`.
        num_generated: generated points used, likewise. All four figures depend on these numbers: compare
            only figures of equal ones.
        k_precision: neighbors that set the balls of precision and recall.
        k_density: neighbors that set the balls of density and coverage.
    """

    precision: Interval
    recall: Interval
    density: Interval
    coverage: Interval
    num_real: int
    num_generated: int
    k_precision: int
    k_density: int


def neighbor_figures(
    real: ArrayLike,
    generated: ArrayLike,
    *,
    k_precision: int = 3,
    k_density: int = 5,
    max_points: int = 10_000,
    seed: int = 0,
    num_resamples: int = 1000,
) -> NeighborFigures:
    """Returns improved precision and recall, density and coverage, of one pass over the distances.

    With B_k(x) the closed ball around x that reaches its k-th nearest other point of its own set, x over the N
    real and y over the M generated points:

        precision = mean_y [y in B_k(x) for some x],    recall = mean_x [x in B_k(y) for some y],
        density = 1/(k M) sum_xy [y in B_k(x)],         coverage = mean_x [some y in B_k(x)],

    Kynkäänniemi et al. (2019), arXiv:1904.06991, equations (1) and (2), and Naeem et al. (2020),
    arXiv:2002.09797, section 3. The balls are closed as in the former and its code; the code of the
    latter takes them open. That matters where distances are equal: a copy of the real set has precision,
    recall and coverage 1 here even if points occur twice, and density (k + 1) / k (there 1).

    The intervals resample the points that the mean is over and keep the balls: they do not include
    what another draw of the other set would change.

    Args:
        real: `(N, d)`, any real dtype.
        generated: `(M, d)`, any real dtype.
        k_precision: k of precision and recall; 3 is the paper's.
        k_density: k of density and coverage; 5 is the paper's.
        max_points: of a larger set, a random subset of so many; sets of equal size lose the same
            rows, so that a copy is still one. Time grows as its square: 10,000 of 2048 features take seconds.
        seed: of the subsets and the resamples.
        num_resamples: of the bootstrap.

    Raises:
        UserError: on a shape or count out of range, too few points for k, or a value that is not finite.
    """
    for name, k in (("k_precision", k_precision), ("k_density", k_density)):
        require(k >= 1, name, k, "at least 1")
    k = max(k_precision, k_density)
    require(max_points > k, "max_points", max_points, f"at least {k + 1}, for k = {k}")
    real = checked_rows("real", real, minimum=k + 1)
    generated = checked_rows("generated", generated, minimum=k + 1)
    require_same_columns(real, generated, ("real", "generated"))
    real, generated = (
        _centered(points[np.sort(subset(len(points), max_points, seed))], real) for points in (real, generated)
    )

    largest = float(max(np.einsum("ij,ij->i", points, points).max() for points in (real, generated)))
    require(math.isfinite(largest), "largest squared feature vector", largest, "finite in float64")
    real_small, real_large = _squared_radii(real, (k_precision, k_density))
    (generated_small,) = _squared_radii(generated, (k_precision,))

    precise, density = np.zeros(len(generated), bool), np.zeros(len(generated), np.int64)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows in _slices(len(real), len(generated)):
        squared = _squared_distances(real[rows], generated, tie=_TIE)
        precise |= (squared <= real_small[rows, None]).any(axis=0)
        recalled[rows] = (squared <= generated_small).any(axis=1)
        inside = squared <= real_large[rows, None]
        covered[rows] = inside.any(axis=1)
        density += inside.sum(axis=0)

    def figure(values: np.ndarray) -> Interval:
        return bootstrap_mean(values, num_resamples=num_resamples, seed=seed)

    return NeighborFigures(
        precision=figure(precise),
        recall=figure(recalled),
        density=figure(density / k_density),
        coverage=figure(covered),
        num_real=len(real),
        num_generated=len(generated),
        k_precision=k_precision,
        k_density=k_density,
    )


class Neighbors(NamedTuple):
    """indices (Q, k) int64 into the references, nearest first; distances (Q, k) float64, Euclidean."""

    indices: np.ndarray
    distances: np.ndarray


def nearest(queries: ArrayLike, references: ArrayLike | Iterable[ArrayLike], k: int = 1) -> Neighbors:
    """Returns the `k` nearest references of each query; of equally near ones, those that come first.

    Sets beside each sample the training pictures nearest to it, to show that it copies none. Memory is bounded
    whatever the number of references: they are taken in blocks, and only k of each query are kept.

    Args:
        queries: `(Q, d)`, any real dtype: features, or flattened pictures.
        references: an array `(R, d)`, or an iterable of such blocks, held one at a time; their rows are
            numbered from 0 through all blocks. The result does not depend on the blocks.
        k: at least 1 and at most R.

    Raises:
        UserError: on a shape or k out of range, or a value that is not finite.
    """
    require(k >= 1, "k", k, "at least 1")
    queries = checked_rows("queries", queries)
    best = [(np.empty(0), np.empty(0, np.int64)) for _ in queries]
    seen = 0
    blocks: Iterable[ArrayLike] = [references] if hasattr(references, "ndim") else references  # pyright: ignore
    for block in blocks:
        block = checked_rows("references", block)
        require_same_columns(queries, block, ("queries", "references"))
        step = max(1, _BLOCK_VALUES // block.shape[1])
        for start in range(0, len(block), step):
            part = block[start : start + step].astype(np.float64)
            number = seen + start + np.arange(len(part))
            for i, query in enumerate(queries.astype(np.float64)):
                squared = np.concatenate([best[i][0], np.square(part - query).sum(axis=1)])
                indices = np.concatenate([best[i][1], number])
                order = np.lexsort((indices, squared))[:k]
                best[i] = squared[order], indices[order]
        seen += len(block)
    require(k <= seen, "k", k, f"at most {seen}, the number of references")
    squared, indices = (np.stack(found) for found in zip(*best, strict=True))
    return Neighbors(indices, np.sqrt(squared))


def _centered(points: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Returns `points` from the mean of `real`, float64: seen from it, |x|^2 + |y|^2 - 2 x.y loses fewer digits."""
    return points.astype(np.float64) - real.mean(axis=0, dtype=np.float64)


def _squared_distances(x: np.ndarray, y: np.ndarray, tie: float = 0.0) -> np.ndarray:
    """Returns |x_i - y_j|^2 - tie (|x_i|^2 + |y_j|^2), (N, M), by a matrix product."""
    norms_x, norms_y = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
    return (1 - tie) * (norms_x[:, None] + norms_y) - 2.0 * (x @ y.T)


def _squared_radii(points: np.ndarray, ks: tuple[int, ...]) -> list[np.ndarray]:
    """Returns for each k the squared distance (N,) of every point to its k-th nearest other point."""
    radii = [np.empty(len(points)) for _ in ks]
    for rows in _slices(len(points), len(points)):
        squared = _squared_distances(points[rows], points)
        squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf
        nearest_first = np.partition(squared, sorted(k - 1 for k in ks), axis=1)
        for radius, k in zip(radii, ks, strict=True):
            radius[rows] = nearest_first[:, k - 1]
    return radii


def _slices(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK_PAIRS // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
