"""Distances and scores of samples against data, from the features of one network."""

from collections.abc import Mapping

import numpy as np

from hold_jax.data import Dataset
from hold_jax.evaluation.feature_network import Features, distance_of
from hold_jax.evaluation.reference import Reference
from hold_jax.metrics.frechet import frechet_distance, frechet_jackknife, moments
from hold_jax.metrics.inception_score import inception_score
from hold_jax.metrics.kernel import kernel_distance, kernel_distance_exact
from hold_jax.metrics.neighbors import neighbor_figures
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein

_KERNEL_SUBSET = 1000
_SPLITS = 10
_PRECISION_K, _DENSITY_K = 3, 5


def compute(name: str, sampled: Features, reference: Reference) -> dict[str, float]:
    """Returns distances and scores of samples by their features; names begin with the network's.

    The squared Frechet distance is called `distance_of(name)`, "fid" for Inception; `_error` is its standard error and
    `_bias` its excess over the value at infinitely many samples, by the jackknife; it is not subtracted. `*_kid` is the
    kernel distance, `*_score` the inception score of the network's own classes; `*_low` and `*_high` are ends of 95 %
    intervals.
    """
    x, distance = sampled.values, distance_of(name)
    found = {distance: frechet_distance(moments(x), reference.moments)}
    if len(x) >= 2 * _SPLITS:
        _, error, bias = frechet_jackknife(x, reference.moments, num_parts=_SPLITS)
        found |= {f"{distance}_error": error, f"{distance}_bias": bias}
    if sampled.logits is not None and len(x) >= _SPLITS:
        score = inception_score(sampled.logits)
        found |= {f"{name}_score": score.mean, f"{name}_score_std": score.std}
    if reference.features is None:
        return found
    fewest = min(len(x), len(reference.features))
    if fewest >= 2 * _KERNEL_SUBSET:
        kernel = kernel_distance(x, reference.features)
        value, error = kernel.mean, kernel.error
    else:
        value, error = kernel_distance_exact(x, reference.features)
    found[f"{name}_kid"] = value
    if error is not None:
        found[f"{name}_kid_error"] = error
    if fewest > max(_PRECISION_K, _DENSITY_K):
        near = neighbor_figures(reference.features, x, k_precision=_PRECISION_K, k_density=_DENSITY_K)
        for figure in ("precision", "recall", "density", "coverage"):
            value, low, high = getattr(near, figure)
            found |= {f"{name}_{figure}": value, f"{name}_{figure}_low": low, f"{name}_{figure}_high": high}
        found[f"{name}_neighbor_points"] = min(near.num_real, near.num_generated)
    return found


def floor(name: str, held_out: Features, reference: Reference) -> dict[str, float]:
    """Returns the Frechet distance of held-out data.

    Samples of a perfect model would have it if they were as many as the held-out examples; fewer have a larger one.
    """
    return {f"{distance_of(name)}_floor": frechet_distance(moments(held_out.values), reference.moments)}


def too_few(num: int, width: int) -> str | None:
    """Returns a warning if `num` examples of `width` features have a singular covariance, otherwise None."""
    if num > width:
        return None
    return (
        f"warning: {num} examples for {width} features: their covariance is singular, and the Frechet distance far "
        "above what more examples give; compare it at equal numbers only"
    )


def in_the_plane(samples: np.ndarray, train: Dataset, held_out: np.ndarray) -> dict[str, float]:
    """Returns sliced Wasserstein distances of order 2 to the training data, of samples (N, 2) and of held-out data."""
    data = train.gather(np.arange(len(train)))["x"]
    return {
        "sliced_wasserstein": sliced_wasserstein(samples, data),
        "sliced_wasserstein_floor": sliced_wasserstein(held_out, data),
    }


def table(results: Mapping[str, float]) -> str:
    """One line a figure, with its error or its interval."""
    endings = ("_error", "_low", "_high")
    rows = {name: f"{value:.6g}" for name, value in results.items() if not name.endswith(endings)}
    for name in rows:
        if f"{name}_error" in results:
            rows[name] += f" +- {results[f'{name}_error']:.2g}"
        if f"{name}_low" in results:
            rows[name] += f"  [{results[f'{name}_low']:.3g}, {results[f'{name}_high']:.3g}]"
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())
