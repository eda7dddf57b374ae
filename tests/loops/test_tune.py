"""The search for a sampler, against samples of known laws; and its network, against the compiled sampler."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import samplers, sde
from hold_jax.loops import tune
from hold_jax.loops.conditions import NONE
from hold_jax.loops.draw import SampleSettings, make_draw
from hold_jax.loops.tune import Candidate, Reference, choose, steps_for

DATA = np.random.default_rng(0).normal(size=(600, 2))


def test_the_energy_distance_is_that_of_all_pairs():
    x, y = DATA[:5], DATA[300:307] + 1
    cross, within, other = (
        np.mean([np.linalg.norm(p - q) for p in x for q in y]),
        np.mean([np.linalg.norm(x[i] - x[j]) for i in range(5) for j in range(5) if i != j]),
        np.mean([np.linalg.norm(y[i] - y[j]) for i in range(7) for j in range(7) if i != j]),
    )
    value, without = Reference(y).energy(x)
    assert value == pytest.approx(2 * cross - within - other, rel=1e-12)
    assert without == pytest.approx([Reference(y).energy(np.delete(x, i, axis=0))[0] for i in range(5)], rel=1e-10)


def test_the_error_is_the_spread_of_independent_estimates():
    reference, rng = Reference(DATA), np.random.default_rng(1)
    found = [reference.energy(rng.normal(size=(100, 2)) + 0.5) for _ in range(60)]
    spread = np.std([value for value, _ in found])
    assert np.mean([tune._error(without) for _, without in found]) == pytest.approx(spread, rel=0.3)


def candidates(count=9):
    settings = small.sample_settings()
    return [Candidate(str(i), {"num_steps": i}, dataclasses.replace(settings, num_steps=i + 1)) for i in range(count)]


def drawn(shift_of):
    """Blocks of 64 normal points, shifted; the same numbers for every candidate."""

    def draw(settings, block):
        shift = shift_of(settings.num_steps - 1)
        return None if shift is None else np.random.default_rng(block).normal(size=(64, 2)) + shift

    return draw


def test_the_best_is_found_with_its_gain():
    said = []
    found = choose(candidates(), drawn(lambda i: 0.6 - 0.1 * min(i, 6)), Reference(DATA), said.append)
    assert found.best.candidate.label in {"5", "6", "7", "8"} and found.best.num == 512
    assert found.best.difference == pytest.approx(found.best.distance - found.default.distance, rel=1e-9)
    assert found.best.difference < -10 * found.best.difference_error
    assert [line.split()[-2] for line in said] == ["9", "4", "3", "3"]  # a third, and the default
    assert {o.candidate.label: o.num for o in found.tried}["2"] == 64 and {
        o.candidate.label for o in found.tried
    } == set(map(str, range(9)))
    assert "<- kept; on other samples" in tune.table({20: found})
    assert tune.plot({20: found, 50: found}).width > 100


def test_the_default_stays_where_others_are_no_better():
    assert choose(candidates(), drawn(lambda i: 0.3), Reference(DATA)).best.candidate.label == "0"
    found = choose(candidates(3), drawn(lambda i: 0.3 if i == 0 else None), Reference(DATA))
    assert found.best.candidate.label == "0" and math.isnan(found.tried[-1].distance)


def test_a_default_without_finite_samples_does_not_stay():
    found = choose(candidates(3), drawn(lambda i: None if i == 0 else 0.3 * i), Reference(DATA))
    assert found.best.candidate.label == "1" and math.isnan(found.default.distance)


def test_a_winner_by_chance_is_found_out_by_new_samples():
    """Better in the blocks of the rounds, worse in those after them."""

    def draw(settings, block):
        lucky = settings.num_steps == 2
        return np.random.default_rng(block).normal(size=(64, 2)) + (0.3 if not lucky else 0.0 if block < 8 else 0.6)

    found = choose(candidates(2), draw, Reference(DATA))
    assert found.tried[0].candidate.label == "1" and found.tried[0].num == 512 and found.best.candidate.label == "0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "calls", "steps"),
    [
        (samplers.gaussian_fitted(), 20, 19),
        (samplers.gaussian_fitted(), 2, 1),
        (samplers.Heun(), 20, 9),
        (samplers.Heun(), 21, 10),
    ],
)
def test_steps_fill_the_calls(sampler, calls, steps):
    process = sde.hold(order=2)
    assert steps_for(sampler, process, calls, denoise=True) == steps
    assert tune.calls_of(sampler, process, steps, denoise=True) <= calls
    assert tune.calls_of(sampler, process, steps + 1, denoise=True) > calls


@pytest.mark.parametrize("seed", [0, 1])
def test_random_numbers_of_calls_are_those_of_the_run(seed):
    sampler, process = samplers.PoissonMidpoint(), sde.hold(order=2)
    for calls in (10, 50):
        steps = steps_for(sampler, process, calls, denoise=True, seed=seed)
        out = samplers.sample(
            sampler, process, lambda u, t: u[..., -1:, :], key=jax.random.key(seed), shape=(3, 2), num_steps=steps
        )
        # A step makes 2 - 1/16 calls in the mean, with a variance of 1/16 of 15/16 of 16.
        assert int(out.nfe) <= calls and abs(steps - (calls - 1) / (2 - 1 / 16)) < 3 * np.sqrt(steps) / (2 - 1 / 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"clip": 0.05}, {"threshold": 0.5}, {"guidance": 3.0, "guidance_interval": (0.5, 5.0)}],
    ids=["plain", "clip", "threshold", "interval"],
)
def test_the_loop_in_python_draws_the_samples_of_the_compiled_one(changes):
    model = small.mlp(num_classes=3, label_dropout=0.1)
    params = small.fresh_state(model, small.optimizer()).params
    params["embedding"]["labels"]["embedding"] *= 50
    settings = small.sample_settings(sampler=samplers.gaussian_fitted(), batch_size=8, **changes)
    network = tune.Network(model, params, settings, NONE, 8)
    compiled = make_draw(model, settings, small.devices(1))
    for block in (0, 1):
        want = compiled(params, (8 * block + np.arange(8)).astype(np.int32), NONE.of(np.arange(8))).x
        np.testing.assert_allclose(network.draw(settings, block), model.to_data(want), rtol=1e-4, atol=1e-4)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    assert tune.Network(model, broken, settings, NONE, 8).draw(settings, 0) is None


@pytest.mark.parametrize("name", ["gaussian_fitted", "poisson_midpoint"])
def test_more_steps_compile_no_more(name, caplog):
    # On a GPU a program takes 0.2 s to compile: with one for each step, a sampler took 20 s.
    model = small.mlp(order=2)
    settings = SampleSettings(samplers.SAMPLERS[name](), 4, "log", None, True, 8, 8, 0, False, None, "data", None, 0)
    network = tune.Network(model, model.init(jax.random.key(0)), settings, NONE, 8)
    network.draw(settings, 0)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        network.draw(dataclasses.replace(settings, num_steps=24), 0)
    compiled = [r for r in caplog.records if r.getMessage().startswith("Finished XLA compilation")]
    assert len(compiled) <= 10, [r.getMessage()[:60] for r in compiled]
