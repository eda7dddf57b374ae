"""Every figure by its name, against the metric that it is."""

import functools

import numpy as np
import pytest
from training import small

from hold_jax.data.dataset import array_dataset
from hold_jax.evaluation import figures
from hold_jax.evaluation.feature_network import Features
from hold_jax.evaluation.reference import Reference
from hold_jax.metrics.frechet import Moments, frechet_distance, frechet_jackknife, moments
from hold_jax.metrics.inception_score import inception_score
from hold_jax.metrics.kernel import kernel_distance, kernel_distance_exact
from hold_jax.metrics.neighbors import neighbor_figures
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein

RNG = np.random.default_rng(0)
REAL = RNG.standard_normal((50, 4), dtype=np.float32)
SAMPLED = 1.3 * RNG.standard_normal((60, 4), dtype=np.float32) + np.float32(0.5)
LOGITS = 3 * RNG.standard_normal((60, 5), dtype=np.float32)


def compare(x=SAMPLED, logits=LOGITS, real=REAL, of=None):
    sampled = Features(x, None if logits is None else logits[: len(x)])
    return figures.compute("inception", sampled, Reference(moments(real) if of is None else of, real, None))


def test_every_figure_is_its_metric():
    found = compare()
    jackknife = frechet_jackknife(SAMPLED, moments(REAL), num_parts=10)
    kernel = kernel_distance_exact(SAMPLED, REAL)
    score = inception_score(LOGITS)
    near = neighbor_figures(REAL, SAMPLED, k_precision=3, k_density=5)
    want = {
        "fid": frechet_distance(moments(SAMPLED), moments(REAL)),
        "fid_error": jackknife.error,
        "fid_bias": jackknife.bias,
        "inception_score": score.mean,
        "inception_score_std": score.std,
        "inception_kid": kernel.value,
        "inception_kid_error": kernel.error,
        "inception_neighbor_points": 50,
    }
    for name in ("precision", "recall", "density", "coverage"):
        value, low, high = getattr(near, name)
        assert low <= value <= high and low < high
        want |= {f"inception_{name}": value, f"inception_{name}_low": low, f"inception_{name}_high": high}
    assert found == want
    points = [found[f"inception_{name}"] for name in ("precision", "recall", "density", "coverage")]
    assert len({round(value, 3) for value in points}) == 4  # none passes for another


def test_real_data_and_samples_are_not_taken_for_each_other():
    # All samples on one of two clusters: precise, but half of the data are not recalled.
    clusters = np.concatenate([REAL[:25], REAL[25:] + np.float32(100)])
    found = compare(x=REAL[:25] + np.float32(1e-3), logits=None, real=clusters)
    assert (
        found["inception_precision"] == 1.0 and found["inception_recall"] == 0.5 and found["inception_coverage"] == 0.5
    )
    turned = compare(x=clusters, logits=None, real=REAL[:25])
    assert (
        turned["inception_precision"] == 0.5
        and turned["inception_recall"] == 1.0
        and turned["inception_coverage"] == 1.0
    )


def test_a_translation_is_its_square_and_a_copy_is_at_distance_zero():
    moved = compare(x=REAL + np.float32([3, 0, 0, 0]), logits=None)
    assert moved["fid"] == pytest.approx(9.0, rel=1e-6)
    copy = compare(x=REAL, logits=None)
    assert copy["fid"] == pytest.approx(0.0, abs=1e-9)
    assert copy["inception_precision"] == copy["inception_recall"] == copy["inception_coverage"] == 1.0


def test_a_reference_of_moments_alone_gives_the_frechet_distance_and_the_score():
    # N(0, I) known exactly, as pytorch-fid's files give it, with a count that says nothing.
    known = Moments(5, np.zeros(4), np.eye(4))
    found = compare(real=None, of=known)
    assert found.keys() == {"fid", "fid_error", "fid_bias", "inception_score", "inception_score_std"}
    mean, cov = SAMPLED.astype(np.float64).mean(axis=0), np.cov(SAMPLED.astype(np.float64), rowvar=False)
    lam = np.linalg.eigvalsh(cov)
    assert found["fid"] == pytest.approx(mean @ mean + np.sum((np.sqrt(lam) - 1) ** 2), rel=1e-10)
    assert compare(real=None, of=known, logits=None).keys() == {"fid", "fid_error", "fid_bias"}


FEWEST = {"fid_error": 20, "inception_score": 10, "inception_precision": 6}


@pytest.mark.parametrize("num", [20, 19, 10, 9, 6, 5, 3])
def test_few_samples_give_what_they_can(num):
    found = compare(SAMPLED[:num])
    assert {name: name in found for name in FEWEST} == {name: num >= fewest for name, fewest in FEWEST.items()}
    assert found["fid"] == pytest.approx(frechet_distance(moments(SAMPLED[:num]), moments(REAL)), rel=1e-12)
    assert found["inception_kid"] == kernel_distance_exact(SAMPLED[:num], REAL).value
    assert all(np.isfinite(value) for value in found.values())


def test_two_samples_and_six_of_the_data():
    found = compare(SAMPLED[:2], logits=None)
    assert found.keys() == {"fid", "inception_kid"}  # no error of a kernel distance below three
    few = compare(logits=None, real=REAL[:6])
    assert few["inception_neighbor_points"] == 6
    assert "inception_precision" not in compare(logits=None, real=REAL[:5])


def test_from_two_thousand_on_the_kernel_distance_is_of_random_subsets(monkeypatch):
    subsets = functools.partial(kernel_distance, num_subsets=2)
    monkeypatch.setattr(figures, "kernel_distance", subsets)
    monkeypatch.setattr(figures, "_DENSITY_K", 10_000)  # no neighbors: they take seconds
    real, x = RNG.standard_normal((2100, 2), dtype=np.float32), RNG.standard_normal((2000, 2), dtype=np.float32)
    want = subsets(x, real)
    found = compare(x, None, real)
    assert (found["inception_kid"], found["inception_kid_error"]) == (want.mean, want.error)
    for a, b in ((x[:1999], real), (x, real[:1999])):
        exact, found = kernel_distance_exact(a, b), compare(a, None, b)
        assert (found["inception_kid"], found["inception_kid_error"]) == (exact.value, exact.error)


def test_the_floor_is_the_distance_of_held_out_data():
    reference = Reference(moments(REAL), REAL, None)
    found = figures.floor("inception", Features(SAMPLED, LOGITS), reference)
    assert found == {"fid_floor": frechet_distance(moments(SAMPLED), moments(REAL))}
    assert found["fid_floor"] == compare()["fid"]  # samples as good as held-out data are at the floor
    assert figures.floor("pixels", Features(REAL, None), reference) == {"frechet_raw_floor": pytest.approx(0, abs=1e-9)}


def test_in_the_plane_distances_are_to_the_training_data():
    train, held_out = small.points(80), small.points(30, "test").source
    samples = RNG.standard_normal((40, 2), dtype=np.float32)
    assert figures.in_the_plane(samples, train, held_out) == {
        "sliced_wasserstein": sliced_wasserstein(samples, train.source),
        "sliced_wasserstein_floor": sliced_wasserstein(held_out, train.source),
    }
    # A translation by v is |v| / sqrt(d).
    moved = array_dataset("moved", "train", train.source + np.float32([3, 0]), None, 0)
    found = figures.in_the_plane(train.source, moved, moved.source)
    assert found["sliced_wasserstein"] == pytest.approx(3 / np.sqrt(2), rel=1e-6)
    assert found["sliced_wasserstein_floor"] == 0.0
