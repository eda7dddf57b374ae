"""Which settings a command has: the run's, the file's, the flags'."""

import json

import pytest

from hold_jax.app import build, experiment, flags
from hold_jax.app import config as base
from hold_jax.app.flags import Given
from hold_jax.errors import UserError
from hold_jax.runtime import workdir

FILE = {"data.name": "digits", "sde.order": 2, "model.channels": 16, "sampling.name": "unipc", "sampling.churn": 0.5}


def of_file(**changes):
    values = base.Config().flat() | FILE | {key.replace("__", "."): value for key, value in changes.items()}
    return Given("file", values)


def of_flags(*arguments):
    return flags.read(None, [f"--config.{argument}" for argument in arguments])


def find(given, folder, to_train=False):
    return experiment.find(given, None if folder is None else str(folder), to_train=to_train)


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint, as far as its settings are concerned."""
    config = build.resolve(base.Config().changed(of_file().values))
    workdir.write(tmp_path, workdir.Record(build.as_json(config), (8, 8, 1), 10, run="a1"))
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    return tmp_path


def test_a_work_directory_suffices(run):
    for to_train in (False, True):
        found = find(of_flags(), run, to_train)
        assert found.config == build.resolve(base.Config().changed(FILE))
        assert (found.path, found.run.run, found.model_run) == (run, "a1", found.run)


def test_what_is_recorded_is_resolved(run):
    kept = json.loads((run / "config.json").read_text())["config"]
    assert (kept["sde"]["L_inv"], kept["sampling"]["order"], kept["model"]["num_res_blocks"]) == (0.5, 3, 8)
    # What another constructor takes stays unset.
    assert kept["sampling"]["K"] is None and kept["model"]["width"] is None


def test_flags_are_changes_of_the_run(run):
    found = find(of_flags("sampling.num_steps=9", "eval.likelihood"), run).config
    assert (found.sampling.num_steps, found.eval.likelihood, found.sampling.churn) == (9, True, 0.5)


def test_another_constructor_leaves_the_options_of_the_first(run):
    found = find(of_flags("sampling.name=heun"), run).config
    assert (found.sampling.churn, found.sampling.order, found.sampling.s_noise) == (None, None, 1.0)
    build.sampling(found)
    found = find(of_flags("sampling.name=gaussian_fitted", "sampling.churn=0.25"), run).config
    assert (found.sampling.churn, found.sampling.corrector) == (0.25, True)


def test_a_denoiser_samples_by_any_process_and_goes_on_with_its_own(run):
    assert find(of_flags("sde.order=1"), run).config.sde.order == 1
    with pytest.raises(UserError, match=r"holds another experiment \(sde.order = 2 there, 1 here: the network was tr"):
        find(of_flags("sde.order=1"), run, to_train=True)


def test_a_config_file_is_all_there_is(run):
    assert find(of_file(sampling__num_steps=9), run).config.sampling.num_steps == 9
    with pytest.raises(
        UserError, match=r"model.channels = 16 there, 24 here: .*: leave --config out to take the run's"
    ):
        find(of_file(model__channels=24), run)


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        (
            "model.channels=24",
            r"the network's shape and the meaning of its output are in the checkpoint\): leave these",
        ),
        ("seed=1", "it made the initial parameters and the order of the data"),
        ("data.name=swissroll", "the run goes on with the data that it began with"),
    ],
)
def test_what_a_checkpoint_fixes_is_named_with_its_reason(run, flag, reason):
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError, match=reason):
        find(of_flags(flag), run, to_train=True)
    assert (run / "config.json").read_bytes() == before


def test_what_a_checkpoint_leaves_open_changes_and_is_said(run, capsys):
    given = of_flags("optimizer.learning_rate=1e-3", "training.batch_size=64", "model.dtype=bfloat16", "eval.repeats=3")
    found = find(given, run, to_train=True).config
    assert (found.optimizer.learning_rate, found.training.batch_size, found.model.dtype) == (1e-3, 64, "bfloat16")
    said = capsys.readouterr().err
    assert "changed: optimizer.learning_rate is 0.001; it was 0.0002\n" in said
    assert "changed: training.batch_size is 64; it was 128\n" in said and "eval.repeats" not in said


def test_without_a_checkpoint_nothing_is_fixed(run):
    (run / "checkpoints" / "5").rmdir()
    found = find(of_flags("model.sigma_data=0.7", "sde.order=4"), run, to_train=True)
    assert (found.config.model.sigma_data, found.config.sde.order, found.run) == (0.7, 4, None)


def test_checkpoints_without_their_record_are_an_error(run):
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds checkpoints and no config.json.*: restore it, or choose another"):
        find(of_file(), run, to_train=True)


def test_neither_a_file_nor_a_run(tmp_path):
    with pytest.raises(UserError, match="`workdir` is missing: pass --workdir=DIR of a run, or --config=FILE"):
        find(of_flags(), None)
    with pytest.raises(UserError, match=r"no run in .* \(no config.json\): pass --config=FILE"):
        find(of_flags(), tmp_path)


def test_the_work_directory_is_named_after_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find(of_file(), None).path == tmp_path / "runs" / "file"


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    kept = build.as_json(base.Config().changed(FILE))
    kept["eval"]["neighbours"] = 7
    del kept["eval"]["neighbors"], kept["sampling"]["guidance"], kept["model"]["standardize"]
    kept["sde"] |= {"beta_min": None, "beta_max": None}
    text = json.dumps({"config": kept, "data_shape": [8, 8, 1], "num_classes": 10})
    (tmp_path / "config.json").write_text(text)
    found = find(of_flags(), tmp_path).config
    assert (found.eval.neighbors, found.sde.order, found.sde.L_inv) == (7, 2, 0.5)
    kept["sde"] |= {"name": "vp", "order": None, "beta_min": 0.2, "beta_max": 10.2}
    (tmp_path / "config.json").write_text(json.dumps({"config": kept, "data_shape": [8, 8, 1], "num_classes": 10}))
    assert find(of_flags(), tmp_path).config.sde.beta == pytest.approx((0.2, 10.0))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, None),
        ({"sde": 3}, "there is no key `sde`"),
        ({"sde": {"order": {"a": 1}}}, "`sde.order` is {'a': 1}; it must be a whole number"),
        ({"sde": {"odrer": 3}}, "there is no key `sde.odrer` .did you mean 'sde.order'"),
        ({"training": {"num_steps": True}}, "`training.num_steps` is True"),
    ],
)
def test_an_edited_record_is_one_line(tmp_path, config, reason):
    record = workdir.Record(config, (8, 8, 1), 10)
    if reason is None:
        assert experiment.of_record(record, "config.json") == build.resolve(base.Config())
        return
    with pytest.raises(UserError, match=f"config.json cannot be used: {reason}"):
        experiment.of_record(record, "config.json")
