"""Figures from nearest neighbors: precision and recall, density and coverage, and the neighbors themselves.

Distances are compared as if each were the float64 norm of a difference, at the cost of matrix products: these
give |x|^2 + |y|^2 - 2 x.y with a bound on its error, and the few pairs for which that leaves a comparison
open are computed again by differences. So equal points are at distance zero, ties are ties, and no
result depends on how the pairs were put into blocks or on how BLAS rounds.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hold_jax.errors import require
from hold_jax.metrics.resampling import Interval, bootstrap_mean, checked_rows, require_same_columns

_BLOCK_PAIRS = 1 << 21  # distances held at once, 16 MB in float64
_BLOCK_VALUES = 1 << 24  # coordinates converted, or differences taken, at once: 128 MB in float64
_PRODUCT_COLUMNS = 2048  # summed at once: the bound on the rounding of float32 would be 1 % at 200,000


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

    The intervals resample the points that the mean is over, the balls staying as they are: they do not tell
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
    real, generated = _subset(real, max_points, seed), _subset(generated, max_points, seed)

    x, y = _Distinct.of(real), _Distinct.of(generated)
    center = _center(x.rows)
    # float64: in float32 a generator that collapsed to a few small clusters leaves millions of pairs unclear.
    placed_x, placed_y = _place(x.rows, center, np.float64), _place(y.rows, center, np.float64)
    largest = float(max(placed_x.norms.max(), placed_y.norms.max()))
    require(math.isfinite(largest), "largest squared feature vector", largest, "finite in float64")
    # Squared radii of the distinct points' balls.
    x_small, x_large = _radii(x, (k_precision, k_density))
    (y_small,) = _radii(y, (k_precision,))

    precise, density = np.zeros(len(y.rows), bool), np.zeros(len(y.rows), np.int64)
    recalled, covered = np.zeros(len(x.rows), bool), np.zeros(len(x.rows), bool)
    for rows in _slices(len(x.rows), len(y.rows)):
        bounds = _bounds(placed_x.part(rows), placed_y)
        within = functools.partial(_within, bounds, x.rows[rows], y.rows)
        precise |= within(x_small[rows, None]).any(axis=0)
        recalled[rows] = within(y_small[None, :]).any(axis=1)
        inside = within(x_large[rows, None])
        covered[rows] = inside.any(axis=1)
        density += x.counts[rows] @ inside

    def figure(values: np.ndarray, points: _Distinct) -> Interval:
        return bootstrap_mean(values[points.inverse], num_resamples=num_resamples, seed=seed)

    return NeighborFigures(
        precision=figure(precise, y),
        recall=figure(recalled, x),
        density=figure(density / k_density, y),
        coverage=figure(covered, x),
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
        queries: `(Q, d)`, any real dtype: features, or flattened pictures, where uint8 is exact and the fastest.
        references: an array `(R, d)`, or an iterable of such blocks, held one at a time; their rows are
            numbered from 0 through all blocks. The result does not depend on the blocks.
        k: at least 1 and at most R.

    Raises:
        UserError: on a shape or k out of range, or a value that is not finite.
    """
    require(k >= 1, "k", k, "at least 1")
    queries = checked_rows("queries", queries)
    center = _center(queries)
    # In float32, half the time and room: of many references, few come near enough to be computed again.
    placed = _place(queries, center, np.float32)
    squared = np.full((len(queries), k), np.inf)
    indices = np.full((len(queries), k), np.iinfo(np.int64).max)
    seen = 0
    for block in [references] if hasattr(references, "ndim") else references:
        block = checked_rows("references", block)
        require_same_columns(queries, block, ("queries", "references"))
        step = max(1, min(_BLOCK_VALUES // block.shape[1], _BLOCK_PAIRS // 512))
        for start in range(0, len(block), step):
            part = block[start : start + step]
            placed_part = _place(part, center, np.float32)
            for rows in _slices(len(queries), len(part)):
                bounds = _bounds(placed.part(rows), placed_part)
                limit = squared[rows, -1:]
                if len(part) >= k:
                    limit = np.minimum(limit, np.partition(bounds.upper, k - 1, axis=1)[:, k - 1 : k])
                # Not `upper <= ...`: where float32 overflows, the bound may be NaN, which excludes nothing.
                i, j = np.nonzero(~(bounds.upper > limit.astype(np.float32) + bounds.width))
                exact = _squared_distances(queries[rows], i, part, j)
                squared[rows], indices[rows] = _merge(squared[rows], indices[rows], i, exact, seen + start + j)
        seen += len(block)
    require(k <= seen, "k", k, f"at most {seen}, the number of references")
    return Neighbors(indices, np.sqrt(squared))


def _merge(
    squared: np.ndarray, indices: np.ndarray, rows: np.ndarray, more: np.ndarray, more_indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k least of `squared` `(Q, k)` and `more`, whose i-th belongs to row `rows[i]`, with their indices."""
    q, k = squared.shape
    rows = np.concatenate([np.repeat(np.arange(q), k), rows])
    values = np.concatenate([squared.ravel(), more])
    which = np.concatenate([indices.ravel(), more_indices])
    order = np.lexsort((which, values, rows))
    first = np.searchsorted(rows[order], np.arange(q))
    chosen = order[first[:, None] + np.arange(k)]
    return values[chosen], which[chosen]


@dataclasses.dataclass(frozen=True, eq=False)
class _Distinct:
    """The distinct points of a set: rows (u, d), how often each occurs (u,), and which one each point is (N,).

    Any number of points may coincide (a generator that collapsed); all their ties are then settled at once.
    """

    rows: np.ndarray
    counts: np.ndarray
    inverse: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray) -> "_Distinct":
        # Bytes instead of np.unique(axis=0), which compares column by column. Equal numbers of different bytes
        # (0 and -0) count as two points at distance zero, which is right too.
        points = np.ascontiguousarray(points)
        as_bytes = points.view(np.dtype((np.void, points.dtype.itemsize * points.shape[1]))).ravel()
        ids: dict[bytes, int] = {}
        inverse = np.array([ids.setdefault(row.tobytes(), len(ids)) for row in as_bytes])
        _, first, counts = np.unique(inverse, return_index=True, return_counts=True)
        return cls(points[first], counts, inverse)


class _Placed(NamedTuple):
    """Points from an origin amid them, in float32 or float64, and their squared norms."""

    points: np.ndarray
    norms: np.ndarray

    def part(self, rows: slice) -> "_Placed":
        return _Placed(self.points[rows], self.norms[rows])


class _Bounds(NamedTuple):
    """Each squared distance, (rows, columns), is at most `upper` and at least `upper - width`; width is (rows, 1)."""

    upper: np.ndarray
    width: np.ndarray


def _center(points: np.ndarray) -> np.ndarray:
    """Returns a point amid `points`: seen from it, norms lose what cancels in |x|^2 + |y|^2 - 2 x.y."""
    return points.mean(axis=0, dtype=np.float64).astype(np.result_type(points.dtype, np.float32))


def _place(points: np.ndarray, center: np.ndarray, dtype: type) -> _Placed:
    placed = np.empty(points.shape, dtype)
    norms = np.empty(len(points), dtype)
    # Subtracted in the widest of the dtypes, so that the difference is rounded once.
    wide = np.result_type(points.dtype, center.dtype, dtype)
    step = max(1, _BLOCK_VALUES // points.shape[1])
    with np.errstate(over="ignore"):
        for start in range(0, len(points), step):
            rows = slice(start, start + step)
            placed[rows] = np.subtract(points[rows], center, dtype=wide)
            norms[rows] = np.square(placed[rows]).sum(axis=1)
    return _Placed(placed, norms)


def _squared_distances(x: np.ndarray, i: np.ndarray, y: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Returns |x_i - y_j|^2 of each pair, float64, by differences: the same bits for (j, i) as for (i, j)."""
    found = np.empty(len(i))
    step = max(1, _BLOCK_VALUES // 8 // x.shape[1])
    for start in range(0, len(i), step):
        pairs = slice(start, start + step)
        difference = x[i[pairs]].astype(np.float64)
        difference -= y[j[pairs]]
        found[pairs] = np.square(difference, out=difference).sum(axis=1)
    return found


def _bounds(x: _Placed, y: _Placed) -> _Bounds:
    """Bounds on all squared distances of `x` to `y`.

    With u = 2^-24 or 2^-53 a product of c terms, summed in whatever order, is off by c u |x| |y| at most, and
    twice that by c u (|x|^2 + |y|^2); so is the sum of products of c columns each, but for u for each of them.
    The norms (pairwise sums), the rounding of the points and of the sums here, and that of a radius compared
    with the result, add less than 64 u (|x|^2 + |y|^2).
    """
    real = np.finfo(x.points.dtype)
    d, columns = x.points.shape[1], _PRODUCT_COLUMNS
    slack = x.points.dtype.type((min(d, columns) + d // columns + 64) * real.eps / 2)
    tiny = real.tiny / real.eps  # where products underflow
    with np.errstate(over="ignore", invalid="ignore"):
        doubled = -2.0 * x.points
        upper = doubled[:, :columns] @ y.points[:, :columns].T
        for start in range(columns, d, columns):
            part = slice(start, start + columns)
            upper += doubled[:, part] @ y.points[:, part].T
        upper += (x.norms * (1 + slack) + tiny)[:, None]
        upper += y.norms * (1 + slack)
        width = 2 * (slack * (x.norms + y.norms.max()) + tiny)
    return _Bounds(upper, width[:, None])


def _within(bounds: _Bounds, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Whether each squared distance of `x` to `y` is at most `radius`, which is `(rows, 1)` or `(1, columns)`."""
    inside = bounds.upper <= radius
    unclear = inside != (bounds.upper <= radius + bounds.width)
    if unclear.any():
        i, j = np.nonzero(unclear)
        inside[i, j] = _squared_distances(x, i, y, j) <= np.broadcast_to(radius, inside.shape)[i, j]
    return inside


def _radii(points: _Distinct, ks: tuple[int, ...]) -> list[np.ndarray]:
    """For each k the squared distance of every distinct point to its k-th nearest other point, `(u,)` float64."""
    n, most = len(points.rows), max(ks)
    radii = [np.zeros(n) for _ in ks]
    # A set that is narrow but far from the other one needs an origin of its own.
    placed = _place(points.rows, _center(points.rows), np.float64)
    for rows in _slices(n, n):
        bounds = _bounds(placed.part(rows), placed)
        own = np.arange(rows.start, rows.stop)
        bounds.upper[own - rows.start, own] = np.inf
        # The k-th nearest is no farther than the k-th least upper bound, even if each of the others occurs once.
        limit = np.finfo(np.float64).max
        if n > most:
            limit = np.partition(bounds.upper, most - 1, axis=1)[:, most - 1 : most] + bounds.width
        i, j = np.nonzero(bounds.upper <= limit)
        exact = _squared_distances(points.rows[rows], i, points.rows, j)
        order = np.lexsort((exact, i))
        exact = exact[order]
        # Points met going outwards, through all rows; a row starts with the others that coincide with its own.
        met = np.cumsum(points.counts[j[order]])
        before = np.concatenate([[0], met])[np.searchsorted(i[order], np.arange(len(own)))]
        for radius, k in zip(radii, ks, strict=True):
            missing = k - (points.counts[own] - 1)
            found = np.searchsorted(met, before + missing)
            some = missing > 0
            radius[own[some]] = exact[found[some]]
    return radii


def _subset(points: np.ndarray, max_points: int, seed: int) -> np.ndarray:
    if len(points) <= max_points:
        return points
    # The order decides nothing, and ascending rows are read faster where `points` is a file.
    return points[np.sort(np.random.default_rng(seed).choice(len(points), max_points, replace=False))]


def _slices(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK_PAIRS // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
