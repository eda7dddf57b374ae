"""Which samplers are tried, and how a command takes the one that was kept."""

import json

import pytest

from hold_jax.app import build, constructors, tuned
from hold_jax.app import config as base
from hold_jax.errors import UserError
from hold_jax.loops.tune import Choice, Outcome

CONFIG = constructors.resolve(base.Config().changed({"data.name": "digits", "sampling.frames": 17}))


def kept(path, calls, options, config=CONFIG):
    candidate = next(c for c in tuned.candidates(config, calls) if options.items() <= c.options.items())
    outcome = Outcome(candidate, 512, 0.1, 0.01, -0.02, 0.005)
    tuned.write(path, config, 1000, "classifier", {calls: Choice(outcome, outcome, [outcome])})
    return candidate


def with_calls(calls, config=CONFIG):
    return config.changed({"sampling.calls": calls})


@pytest.mark.slow
def test_candidates_make_the_calls_that_are_asked_for():
    found = tuned.candidates(CONFIG, 20)
    assert found[0].label == "the run's own" and found[0].settings.num_steps == 19
    assert {c.settings.num_steps for c in found if c.options.get("name") == "heun"} == {
        9
    }  # two calls a step, and the last
    assert {c.settings.num_steps for c in found if c.options.get("name") != "heun"} == {19}
    assert len({c.label for c in found}) == len(found) == 33


@pytest.mark.slow
def test_the_tuned_sampler_is_taken_for_its_calls(tmp_path, capsys):
    candidate = kept(tmp_path, 20, {"name": "unipc", "order": 2, "grid": "karras"})
    found = tuned.apply(with_calls(20), tmp_path)
    assert build.sampling(found).sampler == candidate.settings.sampler
    s = found.sampling
    assert (s.name, s.order, s.grid, s.rho, s.num_steps, s.churn, s.frames) == ("unipc", 2, "karras", 7.0, 19, 0.0, 19)
    assert capsys.readouterr().err.startswith("20 calls, as tuned: unipc order=2 grid=karras rho=7 in 19 steps")


def test_a_choice_holds_for_the_guidance_and_the_limits_it_was_made_with(tmp_path):
    guided = {"guidance": 2.0, "guidance_interval": (0.2, 5.0), "guide": "runs/weak", "clip": 1.0, "threshold": 0.9}
    tuned_for = CONFIG.changed({f"sampling.{key}": value for key, value in guided.items()})
    kept(tmp_path, 20, {"name": "heun"}, tuned_for)
    assert tuned.apply(with_calls(20, tuned_for), tmp_path).sampling.name == "heun"
    for key, value in {**guided, "guidance_interval": (0.2, 6.0), "guide": "runs/other"}.items():
        changed = value if key in ("guidance_interval", "guide") else value / 2
        other = with_calls(20, tuned_for.changed({f"sampling.{key}": changed}))
        assert tuned.apply(other, tmp_path).sampling.name == "gaussian_fitted", key


def test_a_choice_of_an_earlier_version_holds_without_limits(tmp_path):
    kept(tmp_path, 20, {"name": "heun"})
    text = json.loads((tmp_path / tuned.FILE).read_text())
    for key in ("guidance_interval", "guide", "clip", "threshold"):
        del text["tuned"][0][key]
    (tmp_path / tuned.FILE).write_text(json.dumps(text))
    assert tuned.apply(with_calls(20), tmp_path).sampling.name == "heun"
    assert tuned.apply(with_calls(20).changed({"sampling.clip": 1.0}), tmp_path).sampling.name == "gaussian_fitted"


@pytest.mark.slow
def test_other_calls_processes_and_samplers_are_the_commands_own(tmp_path, capsys):
    kept(tmp_path, 20, {"name": "unipc"})
    for config, flags in (
        (with_calls(30), ()),
        (with_calls(20).changed({"sde.order": 1}), ()),
        (with_calls(20).changed({"sampling.guidance": 2.0}), ()),
        (with_calls(20), ("sampling.churn",)),
    ):
        found = tuned.apply(config, tmp_path, flags).sampling
        assert (found.name, found.num_steps) == ("gaussian_fitted", config.sampling.calls - 1)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "30 calls: gaussian_fitted in 29 steps; tuned there: 20",
        *["20 calls: gaussian_fitted in 19 steps; --mode=tune finds the best"] * 2,
    ]
    assert tuned.apply(CONFIG, tmp_path) == CONFIG


@pytest.mark.slow
def test_choices_of_other_calls_and_processes_stay(tmp_path):
    kept(tmp_path, 10, {"name": "heun"})
    kept(tmp_path, 20, {"name": "heun"})
    kept(tmp_path, 20, {"name": "dpmpp_2m"})
    kept(tmp_path, 20, {"name": "heun"}, constructors.resolve(CONFIG.changed({"sde.order": 1})))
    entries = tuned.read(tmp_path)
    assert [(e["calls"], e["sde"]["order"], e["sampling"]["name"]) for e in entries] == [
        (10, 3, "heun"), (20, 3, "dpmpp_2m"), (20, 1, "heun")
    ]  # fmt: skip
    (tmp_path / tuned.FILE).write_text("{")
    assert tuned.read(tmp_path) == []


@pytest.mark.parametrize("flag", ["sampling.num_steps", "sampling.times"])
def test_steps_that_a_command_gives_win_over_the_calls_of_the_run(tmp_path, flag):
    found = tuned.apply(with_calls(20), tmp_path, (flag,)).sampling
    assert (found.calls, found.num_steps) == (None, CONFIG.sampling.num_steps)
    with pytest.raises(UserError, match=rf"`sampling.calls` is 20; it must be left out beside {flag}"):
        tuned.apply(with_calls(20), tmp_path, (flag, "sampling.calls"))


def test_an_edited_choice_is_checked(tmp_path):
    kept(tmp_path, 20, {"name": "heun"})
    text = json.loads((tmp_path / tuned.FILE).read_text())
    text["tuned"][0]["sampling"] = {"name": "huen", "num_steps": 3}
    (tmp_path / tuned.FILE).write_text(json.dumps(text))
    with pytest.raises(UserError, match=r"`sampling.name` is 'huen' \(did you mean 'heun'\?\)"):
        tuned.apply(with_calls(20), tmp_path)


def test_too_few_calls_and_adaptive_samplers_are_errors():
    heun = constructors.resolve(CONFIG.changed({"sampling.name": "heun", "sampling.churn": None, "sampling.order": None,
                                         "sampling.corrector": None, "sampling.gauge": None}))  # fmt: skip
    with pytest.raises(UserError, match=r"`sampling\.calls` is 1; it must be 3 or more"):
        tuned.with_calls(heun, 1)

    with pytest.raises(UserError, match=r"`tune\.calls` is 1; it must be 3 or more"):
        tuned.candidates(heun, 1)


def test_the_sampler_that_a_command_of_tuning_names_is_kept_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "_SAMPLERS", ())
    chosen = {"sampling.name": "unipc", "sampling.order": 2, "sampling.churn": None, "sampling.corrector": None}
    given = constructors.resolve(CONFIG.changed({**chosen, "sampling.gauge": None, "sampling.grid": "karras"}))
    (candidate,) = tuned.candidates(given, 20)
    assert candidate.label == "the run's own"
    outcome = Outcome(candidate, 512, 0.1, 0.01, 0.0, 0.0)
    tuned.write(tmp_path, given, 1000, "pixels", {20: Choice(outcome, outcome, [outcome])})
    found = build.sampling(tuned.apply(with_calls(20), tmp_path))
    assert (found.sampler, found.name, found.num_steps) == (candidate.settings.sampler, "unipc", 19)
    edited = json.loads((tmp_path / tuned.FILE).read_text())
    edited["tuned"][0]["calls"] = [20]
    (tmp_path / tuned.FILE).write_text(json.dumps(edited))
    assert tuned.apply(with_calls(20), tmp_path).sampling.name == "gaussian_fitted"


@pytest.mark.slow
def test_a_choice_over_samples_that_are_not_finite_is_kept(tmp_path):
    candidate = kept(tmp_path, 20, {"name": "unipc"})
    nan = float("nan")
    outcome = Outcome(candidate, 512, 0.1, 0.01, nan, nan)
    tuned.write(tmp_path, CONFIG, 1000, "pixels", {10: Choice(outcome, outcome._replace(distance=nan), [outcome])})
    entries = tuned.read(tmp_path)
    assert [entry["calls"] for entry in entries] == [20, 10]
    assert (entries[1]["distance"], entries[1]["default"], entries[1]["difference"]) == (0.1, None, None)
