"""The inception score of a set of class probabilities."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlogy

from hold_jax.errors import require
from hold_jax.metrics.resampling import Interval, checked_rows

_BLOCK_ROWS = 4096  # rows of logits in float64 at once, 32 MB at 1008 classes


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """From 1 (every sample looks alike to the classifier) to the number of classes.

    Attributes:
        mean: the mean of the scores of the splits; what is published.
        std: their standard deviation (divisor their number); published behind the plus-minus sign. It is the
            spread of one split, not the error of `mean`.
        whole: the score of all samples as one split, and its interval. It lies above `mean`: the
            score of few samples is too low, their p(y) being drawn towards each of them.
    """

    mean: float
    std: float
    whole: Interval


def inception_score(
    logits: ArrayLike, *, num_splits: int = 10, seed: int | None = 0, num_resamples: int = 200
) -> InceptionScore:
    """Returns the inception score of `logits`.

    Salimans et al. (2016), arXiv:1606.03498, section 4:

        exp(E_x KL(p(y|x) || p(y))) = exp(E_x sum_y p(y|x) log p(y|x) - sum_y p(y) log p(y)),

    where p(y|x) is the softmax of a row and p(y) its mean over the split. Split i of s holds rows
    i N // s to (i + 1) N // s - 1, after shuffling. In float64, whatever the dtype.

    The interval of `whole` is 1.96 standard deviations of the bootstrap either way in log score; not its
    percentiles, since the entropy of p(y) is too low for few samples and a resample has fewer distinct
    ones: that can shift the resamples' scores by several of their standard deviations.

    Args:
        logits: `(N, k)`, any real dtype, before the softmax.
        num_splits: s, at least 1 and at most N; 10 is the custom, with N = 50,000.
        seed: shuffles the rows, as torch-fidelity does (there with another generator), so that samples made
            class by class do not share a split; None: leaves their order, as Salimans et al. do. Also of the
            resamples.
        num_resamples: of the bootstrap, at least 2.

    Raises:
        UserError: on a shape or count out of range, or a value that is not finite.
    """
    x = checked_rows("logits", logits)
    n, k = x.shape
    require(1 <= num_splits <= n, "num_splits", num_splits, f"from 1 to {n}, the number of rows of `logits`")
    require(num_resamples >= 2, "num_resamples", num_resamples, "at least 2")
    rng = np.random.default_rng(seed or 0)
    order = np.arange(n) if seed is None else rng.permutation(n)
    # How often each resample holds each sample; the resamples are then sums over the same blocks as the score.
    weights = np.empty((num_resamples, n), np.float32)
    for row in weights:
        row[:] = np.bincount(rng.integers(0, n, n), minlength=n)

    splits = np.empty(num_splits)
    total_q, total_h = np.zeros(k), 0.0
    resampled_q, resampled_h = np.zeros((num_resamples, k)), np.zeros(num_resamples)
    for i in range(num_splits):
        start, stop = i * n // num_splits, (i + 1) * n // num_splits
        q, h = np.zeros(k), 0.0
        for rows, p, negentropy in _probabilities(x, order, start, stop):
            q += p.sum(axis=0)
            h += negentropy.sum()
            w = weights[:, rows].astype(np.float64)
            resampled_q += w @ p
            resampled_h += w @ negentropy
        splits[i] = np.exp(_log_score(q / (stop - start), h / (stop - start)))
        total_q += q
        total_h += h
    log_whole = float(_log_score(total_q / n, total_h / n))
    margin = 1.96 * _log_score(resampled_q / n, resampled_h / n).std(ddof=1)
    whole = Interval(*(float(np.exp(log_whole + shift)) for shift in (0.0, -margin, margin)))
    return InceptionScore(float(splits.mean()), float(splits.std()), whole)


def _log_score(q: np.ndarray, h: np.ndarray | float) -> np.ndarray:
    """E KL for p(y) = `q`, `(..., k)`, and mean negative entropy `h`, `(...)`."""
    # Zero at least by Jensen; rounding may say -1e-16, and a score below 1 is none.
    return np.maximum(h - xlogy(q, q).sum(axis=-1), 0.0)


def _probabilities(
    x: np.ndarray, order: np.ndarray, start: int, stop: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yields slices of `order`, p(y|x) of those rows and sum_y p log p of each."""
    for begin in range(start, stop, _BLOCK_ROWS):
        rows = slice(begin, min(begin + _BLOCK_ROWS, stop))
        log_p = x[order[rows]].astype(np.float64)
        log_p -= log_p.max(axis=1, keepdims=True)
        p = np.exp(log_p)
        norm = p.sum(axis=1, keepdims=True)
        p /= norm
        log_p -= np.log(norm)
        yield rows, p, np.einsum("ij,ij->i", p, log_p)
