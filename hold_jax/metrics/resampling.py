"""What the figures share: the check of their input, and how sure they are by resampling."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hold_jax.errors import UserError, require

_CHECK_ROWS = 4096  # rows checked at once: the marks of a whole set would take a quarter of its memory


class Estimate(NamedTuple):
    """A figure and its standard error; None where the samples are too few to estimate it."""

    value: float
    error: float | None


class Interval(NamedTuple):
    """A figure and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def checked_rows(name: str, values: ArrayLike, *, minimum: int = 1, mask: np.ndarray | None = None) -> np.ndarray:
    """Returns `values` as an array `(N, d)` of real numbers, not copied if it is one.

    Args:
        name: of the argument, for the message.
        values: `(N, d)`, any real dtype, bfloat16 among them.
        minimum: of N.
        mask: `(N,)` bool, the rows that count; the others may hold anything. None: all.

    Raises:
        UserError: on another shape or dtype, too few rows, or a row that counts and is not finite.
    """
    x = np.asarray(values)
    if x.dtype.kind not in "biuf":
        # ml_dtypes has kinds of its own; what float64 cannot hold (text, objects, complex) is not a feature.
        require(np.can_cast(x.dtype, np.float64), f"{name}.dtype", x.dtype.name, "of real numbers")
        x = x.astype(np.float32)
    require(x.ndim == 2 and x.size > 0, f"{name}.shape", x.shape, "(N, d) with N, d >= 1")
    if mask is not None:
        fits = mask.dtype == bool and mask.shape == x.shape[:1]
        require(fits, "mask", f"{mask.dtype.name} {mask.shape}", f"bool ({len(x)},), to match `{name}`")
    count = len(x) if mask is None else int(mask.sum())
    require(count >= minimum, f"len({name})", count, f"at least {minimum}")
    if x.dtype.kind == "f":
        bad = 0
        for start in range(0, len(x), _CHECK_ROWS):
            rows = slice(start, start + _CHECK_ROWS)
            finite = np.isfinite(x[rows]).all(axis=1)
            bad += np.count_nonzero(~finite if mask is None else ~finite & mask[rows])
        if bad:
            raise UserError(f"`{name}` has values that are not finite in {bad} of its {count} rows")
    return x


def require_same_columns(x: np.ndarray, y: np.ndarray, names: tuple[str, str]) -> None:
    """Raises `UserError` unless `x` and `y`, called `names`, have as many columns."""
    if x.shape[1] != y.shape[1]:
        raise UserError(f"`{names[0]}` has {x.shape[1]} columns and `{names[1]}` has {y.shape[1]}; they must be equal")


def bootstrap_mean(values: np.ndarray, *, num_resamples: int = 1000, seed: int = 0) -> Interval:
    """Returns the mean of `values`, `(N,)`, and its percentile bootstrap interval at 95 %.

    Efron & Tibshirani (1993), "An introduction to the bootstrap", chapter 13. A mean is not biased by
    resampling, so the percentiles need no correction, and they stay within the range of `values`.

    Raises:
        UserError: if there are no resamples.
    """
    require(num_resamples >= 1, "num_resamples", num_resamples, "at least 1")
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(num_resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))
