import itertools

import numpy as np
import pytest
import sklearn.datasets
from scipy.spatial.distance import cdist

from hold_jax.errors import UserError
from hold_jax.metrics.neighbors import nearest, neighbor_figures

PAIRS, VALUES = "hold_jax.metrics.neighbors._BLOCK_PAIRS", "hold_jax.metrics.neighbors._BLOCK_VALUES"


def _points(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def _squared(a, b):
    return float(sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)))


def _by_loops(real, fake, k_precision=3, k_density=5):
    """The definitions, pair by pair, in Python's numbers."""

    def radius(points, i, k):
        return sorted(_squared(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    small = [radius(real, i, k_precision) for i in range(len(real))]
    large = [radius(real, i, k_density) for i in range(len(real))]
    of_fake = [radius(fake, j, k_precision) for j in range(len(fake))]
    d = [[_squared(x, y) for y in fake] for x in real]
    pairs = list(itertools.product(range(len(real)), range(len(fake))))
    return (
        len({j for i, j in pairs if d[i][j] <= small[i]}) / len(fake),
        len({i for i, j in pairs if d[i][j] <= of_fake[j]}) / len(real),
        sum(d[i][j] <= large[i] for i, j in pairs) / (k_density * len(fake)),
        len({i for i, j in pairs if d[i][j] <= large[i]}) / len(real),
    )


def _values(figures):
    return tuple(f.value for f in (figures.precision, figures.recall, figures.density, figures.coverage))


def _lattice(n, seed, d=2, high=5):
    # Most points occur several times and most distances are tied.
    return np.random.default_rng(seed).integers(0, high, (n, d))


@pytest.mark.parametrize("pairs", [1, 100, 1 << 21])
@pytest.mark.parametrize(
    ("real", "fake"),
    [
        (_points(60, 3, 0), _points(45, 3, 1, shift=0.5)),
        (_points(60, 3, 0).astype(np.float32), _points(45, 3, 1, shift=0.5)),
        (_lattice(60, 2), _lattice(50, 3) + 1),
        (_lattice(60, 2).astype(np.uint8), _lattice(50, 3).astype(np.float32) + 1),
        (_lattice(60, 4, d=9, high=2) * 0.1, _lattice(50, 5, d=9, high=2) * 0.1),
        (1e-3 * _points(60, 3, 0), np.concatenate([1e-3 * _points(44, 3, 1), [[1e5, 0, 0]]])),
        (_points(6, 4, 6), _points(7, 4, 7)),
    ],
    ids=["gauss", "mixed", "lattice", "uint8", "cube", "one far out", "few"],
)
def test_figures_equal_the_definitions(real, fake, pairs, monkeypatch):
    monkeypatch.setattr(PAIRS, pairs)
    monkeypatch.setattr(VALUES, 17)
    assert _values(neighbor_figures(real, fake, num_resamples=1)) == pytest.approx(_by_loops(real, fake), rel=1e-14)
    got = neighbor_figures(real, fake, k_precision=5, k_density=2, num_resamples=1)
    assert _values(got) == pytest.approx(_by_loops(real, fake, 5, 2), rel=1e-14)
    assert (got.k_precision, got.k_density, got.num_real, got.num_generated) == (5, 2, len(real), len(fake))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("offset", "scale"), [(1e4, 1.0), (3.0, 1e-18), (0.0, 1e18)])
def test_far_from_the_origin_nothing_is_lost(offset, scale, dtype):
    # |x|^2 + |y|^2 - 2 x.y in float32 would have no digit left, be zero, or overflow.
    real, fake = ((scale * (_points(50, 5, s) + offset)).astype(dtype) for s in (8, 9))
    assert _values(neighbor_figures(real, fake, num_resamples=1)) == pytest.approx(_by_loops(real, fake), rel=1e-14)


def test_a_copy_is_within_reach_in_any_order():
    x = np.random.default_rng(10).standard_normal((400, 64), dtype=np.float32)
    got = neighbor_figures(x, np.random.default_rng(11).permutation(x))
    assert _values(got) == (1.0, 1.0, pytest.approx(6 / 5, rel=1e-12), 1.0)
    assert got.precision == got.recall == got.coverage == (1.0, 1.0, 1.0)


def test_a_copy_is_within_reach_where_points_repeat():
    x = np.repeat(np.random.default_rng(12).standard_normal((40, 16), dtype=np.float32), 7, axis=0)
    assert _values(neighbor_figures(x, x)) == pytest.approx((1.0, 1.0, 7 / 5, 1.0), rel=1e-12)
    # Balls of six other copies have no extent: the smallest shift leaves them.
    moved = x + np.float32(1e-5)
    assert _values(neighbor_figures(x, moved)) == (0.0, 0.0, 0.0, 0.0)


def test_a_copy_is_within_reach_of_a_subset():
    x = _points(300, 3, 13)
    got = neighbor_figures(x, x, max_points=50)
    assert (got.num_real, got.num_generated) == (50, 50)
    assert _values(got) == (1.0, 1.0, pytest.approx(6 / 5), 1.0)


def test_a_collapsed_generator():
    # All on one real point: precise, and without extent of its own.
    real = _points(500, 8, 14)
    got = neighbor_figures(real, np.tile(real[3], (200, 1)))
    assert got.precision.value == 1.0
    assert got.recall.value == 1 / 500
    balls = sum(_squared(real[3], x) <= np.sort(cdist([x], real)[0])[5] ** 2 * (1 + 1e-12) for x in real)
    assert got.density.value == pytest.approx(balls / 5)
    assert got.coverage.value == pytest.approx(balls / 500)


def test_disjoint_and_nested_sets():
    real = _points(200, 4, 15)
    assert _values(neighbor_figures(real, real + 100.0)) == (0.0, 0.0, 0.0, 0.0)
    # Real points within a small part of where generated ones are: recalled, but hardly any is precise.
    wide = 30.0 * _points(200, 4, 16)
    got = neighbor_figures(real, wide)
    assert got.precision.value < 0.05
    assert got.recall.value > 0.9


def test_figures_do_not_depend_on_order_rotation_or_translation():
    real, fake = _points(150, 6, 17), 1.1 * _points(120, 6, 18)
    want = _values(neighbor_figures(real, fake, num_resamples=1))
    rng = np.random.default_rng(19)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    for a, b in [(rng.permutation(real), rng.permutation(fake)), (real @ turn - 7.0, fake @ turn - 7.0)]:
        assert _values(neighbor_figures(a, b, num_resamples=1)) == pytest.approx(want, rel=1e-14)


def test_digits_of_one_law_are_alike_and_noise_takes_them_apart():
    digits = np.random.default_rng(20).permutation(sklearn.datasets.load_digits().data)
    a, b = digits[::2], digits[1::2]
    found = [_values(neighbor_figures(a, b + s * _points(*b.shape, 21), num_resamples=1)) for s in (0, 2, 4)]
    assert min(found[0]) > 0.85
    for lesser, greater in itertools.pairwise(found[::-1]):
        assert (np.array(lesser) < np.array(greater))[[0, 2, 3]].all()
    assert found[-1][0] < 0.1


def test_intervals_are_binomial_and_the_seed_decides():
    real, fake = _points(2000, 3, 22), _points(2000, 3, 23, shift=0.8)
    got = neighbor_figures(real, fake)
    for figure in (got.precision, got.recall, got.coverage):
        half = 1.96 * np.sqrt(figure.value * (1 - figure.value) / 2000)
        assert (figure.high - figure.low) / 2 == pytest.approx(half, rel=0.15)
        assert figure.low < figure.value < figure.high
    assert got.density.low < got.density.value < got.density.high
    assert neighbor_figures(real, fake) == got
    first = neighbor_figures(real, fake, max_points=500, seed=1)
    assert neighbor_figures(real, fake, max_points=500, seed=1) == first
    assert _values(neighbor_figures(real, fake, max_points=500, seed=2)) != _values(first)


def _nearest_by_loops(queries, references, k):
    rows = []
    for q in queries:
        found = sorted((_squared(q, r), i) for i, r in enumerate(references))[:k]
        rows.append(found)
    squared, indices = np.moveaxis(np.array(rows), 2, 0)
    return indices.astype(int), np.sqrt(squared)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(
    ("queries", "references"),
    [
        (_points(20, 5, 24), _points(70, 5, 25)),
        (_points(20, 5, 24).astype(np.float32) + 1e3, (_points(70, 5, 25) + 1e3).astype(np.float32)),
        (_lattice(30, 26).astype(np.uint8), _lattice(60, 27).astype(np.uint8)),
        (_lattice(30, 26).astype(np.uint8), 1e30 * _points(60, 2, 27)),
        (_lattice(30, 26) * 1e25, 1e25 * _points(60, 2, 27)),
        (1e-22 * _points(20, 5, 24), 1e-22 * _points(70, 5, 25)),
        (_points(20, 5, 24) + 1e9, _points(70, 5, 25) + 1e9),
    ],
    ids=["gauss", "far", "ties", "farther", "overflow", "underflow", "float64"],
)
def test_nearest_equals_the_definition(queries, references, k):
    indices, distances = nearest(queries, references, k)
    want_indices, want = _nearest_by_loops(queries, references, k)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices, want_indices)
    np.testing.assert_allclose(distances, want, rtol=1e-14)


@pytest.mark.parametrize("sizes", [[97], [1] * 97, [50, 47], [3, 90, 4]])
@pytest.mark.parametrize(("pairs", "values"), [(1 << 21, 1 << 24), (1, 1), (50, 40)])
def test_nearest_has_the_same_bits_however_the_references_come(sizes, pairs, values, monkeypatch):
    queries, references = _points(11, 7, 28).astype(np.float32), _points(97, 7, 29).astype(np.float32)
    references[50] = references[3]
    want = nearest(queries, references, 3)
    monkeypatch.setattr(PAIRS, pairs)
    monkeypatch.setattr(VALUES, values)
    got = nearest(queries, iter(np.split(references, np.cumsum(sizes)[:-1])), 3)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.distances, want.distances)


def test_a_copied_picture_is_found_at_distance_zero():
    rng = np.random.default_rng(30)
    pictures = rng.integers(0, 256, (40, 3 * 64 * 64), np.uint8)
    queries = pictures[[7, 31]].copy()
    queries[1, 5] ^= 1  # one value off by one
    indices, distances = nearest(queries, pictures, 2)
    np.testing.assert_array_equal(indices[:, 0], [7, 31])
    np.testing.assert_array_equal(distances[:, 0], [0.0, 1.0])
    np.testing.assert_allclose(distances, np.sort(cdist(queries.astype(float), pictures.astype(float)))[:, :2])


def test_nearest_holds_one_block_at_a_time():
    blocks = (np.full((1, 2), float(i)) for i in range(3_000))
    indices, distances = nearest([[1321.2, 1321.2]], blocks, 2)
    np.testing.assert_array_equal(indices, [[1321, 1322]])
    np.testing.assert_allclose(distances, np.sqrt(2.0) * np.array([[0.2, 0.8]]), rtol=1e-9)


def test_errors_name_the_fault():
    x = _points(8, 3, 31)
    with pytest.raises(UserError, match="`real` has 3 columns and `generated` has 2"):
        neighbor_figures(x, x[:, :2])
    with pytest.raises(UserError, match=r"`len\(generated\)` is 5; it must be at least 6"):
        neighbor_figures(x, x[:5])
    with pytest.raises(UserError, match="`k_precision` is 0"):
        neighbor_figures(x, x, k_precision=0)
    with pytest.raises(UserError, match="`max_points` is 5; it must be at least 6, for k = 5"):
        neighbor_figures(x, x, max_points=5)
    with pytest.raises(UserError, match=r"`real` .* not finite in 1 of its 8 rows"):
        neighbor_figures(np.where(np.arange(8)[:, None] == 2, np.inf, x), x)
    with pytest.raises(UserError, match="`num_resamples` is 0"):
        neighbor_figures(x, x, num_resamples=0)
    with pytest.raises(UserError, match=r"`largest squared feature vector` is inf; it must be finite in float64"):
        neighbor_figures(x, np.where(np.arange(8)[:, None] == 2, 1e200, x))
    with pytest.raises(UserError, match="`queries` has 3 columns and `references` has 2"):
        nearest(x, x[:, :2])
    with pytest.raises(UserError, match="`k` is 9; it must be at most 8"):
        nearest(x, x, 9)
    with pytest.raises(UserError, match="`k` is 1; it must be at most 0"):
        nearest(x, [])
    with pytest.raises(UserError, match="`k` is 0"):
        nearest(x, x, 0)
    with pytest.raises(UserError, match=r"`references.shape` is \(3,\)"):
        nearest(x, iter(x))
    with pytest.raises(UserError, match=r"`references` .* not finite in 1 of its 8 rows"):
        nearest(x, np.where(np.arange(8)[:, None] == 2, np.nan, x))
