"""The figures that a person reads first, in words: value, error, and what it means."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from hold_jax.evaluation.feature_network import DISTANCES, distance_of

MOST = 9  # figures in a report
_LOWER, _HIGHER = "lower is better", "higher is better"
_FRECHET = {"inception": "FID", "dinov2": "FD-DINOv2"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure in words.

    Attributes:
      key: its name among the results.
      name: what it is called.
      value: with its error or its 95 % interval.
      meaning: which way is better, and what to compare it with.
    """

    key: str
    name: str
    value: str
    meaning: str


def rows(results: Mapping[str, float], most: int = MOST) -> list[Row]:
    """Returns at most `most` figures of `Evaluator.evaluate`, the most important first."""
    return list(_all(results))[:most]


def intervals(results: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    """Returns (value, low, high) of all figures that a report could have, by the names that it gives them.

    From low to high is the error that the report prints; they are the value where there is none.
    """
    return {row.name: (results[row.key], *_ends(results, row.key)) for row in _all(results)}


def lines(found: list[Row]) -> list[str]:
    """Returns rows as lines in columns."""
    names, values = (max((len(getattr(row, name)) for row in found), default=0) for name in ("name", "value"))
    return [f"{row.name:<{names}}  {row.value:<{values}}  {row.meaning}" for row in found]


def _all(results: Mapping[str, float]) -> Iterator[Row]:
    def row(key: str, name: str, meaning: str) -> Iterator[Row]:
        if key in results:
            # Lines of earlier versions have a floor without the number of its examples.
            floor, examples = results.get(f"{key}_floor"), results.get("floor_examples")
            known = floor is not None and examples is not None
            beside = f"; {examples:,.0f} test examples give {floor:.3g}" if known else ""
            yield Row(key, name, _value(results, key), meaning + beside)

    for split in ("test", "train"):
        yield from row(f"{split}_loss", f"loss, {split}", _LOWER)
    for split, prefix in (("test", ""), ("train", "train_")):
        bound = results.get(f"{prefix}bits_per_dim_is_bound")
        yield from row(
            f"{prefix}bits_per_dim", f"bits per dimension, {split}", f"{'an upper bound; ' if bound else ''}{_LOWER}"
        )
    networks = _networks(results)
    for name, key in networks.items():
        yield from row(key, _FRECHET.get(name, f"Frechet distance, {name}"), _LOWER)
    yield from row("sliced_wasserstein", "sliced Wasserstein distance", _LOWER)
    for network in networks:
        yield from row(f"{network}_precision", f"precision, {network}", f"share of samples near data; {_HIGHER}")
        yield from row(f"{network}_recall", f"recall, {network}", f"share of data near samples; {_HIGHER}")
        yield from row(f"{network}_score", f"score, {network}", f"{_HIGHER}; after +- the deviation of its 10 splits")
        yield from row(f"{network}_kid", f"KID, {network}", f"{_LOWER}; 0 for samples like the data")


def _networks(results: Mapping[str, float]) -> dict[str, str]:
    """Returns the feature networks of some figures, each with the name of its distance; the user's own come last."""
    own = (key.removesuffix("_kid") for key in results if key.endswith("_kid"))
    found = DISTANCES | {name: distance_of(name) for name in own}
    return {name: key for name, key in found.items() if key in results}


def _ends(results: Mapping[str, float], key: str) -> tuple[float, float]:
    value, error = results[key], _error(results, key) or 0.0
    return results.get(f"{key}_low", value - error), results.get(f"{key}_high", value + error)


def _error(results: Mapping[str, float], key: str) -> float | None:
    error = results.get(f"{key}_error", results.get(f"{key}_std"))
    return None if error is None or not math.isfinite(error) else error


def _value(results: Mapping[str, float], key: str) -> str:
    value, error = results[key], _error(results, key)
    if f"{key}_low" in results:
        return f"{value:.3f} [{results[f'{key}_low']:.3f}, {results[f'{key}_high']:.3f}]"
    if error is None or not math.isfinite(value) or error <= 0:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))  # two digits of the error
    return f"{value:,.{digits}f} +- {error:,.{digits}f}"
