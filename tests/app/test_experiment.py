"""Which settings a command has: the run's, the file's, the flags'."""

import json

import numpy as np
import pytest

from hold_jax.app import build, constructors, experiment, flags
from hold_jax.app import config as base
from hold_jax.app.flags import Given
from hold_jax.data.dataset import array_dataset
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
    config = constructors.resolve(base.Config().changed(of_file().values))
    workdir.write(tmp_path, workdir.Record(build.as_json(config), (8, 8, 1), 10, run="a1"))
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    return tmp_path


def test_a_work_directory_suffices(run):
    for to_train in (False, True):
        found = find(of_flags(), run, to_train)
        assert found.config == constructors.resolve(base.Config().changed(FILE))
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


def test_the_dropout_of_conditions_is_that_of_the_training(tmp_path):
    """Else guidance would use an embedding that was never trained."""
    begun(tmp_path, of_file(model__class_conditional=True), pictures())
    reason = r"model.label_dropout = None there, 0.1 here: it is that of the training, without which there is no"
    with pytest.raises(UserError, match=reason):
        find(of_flags("model.label_dropout=0.1", "sampling.guidance=2"), tmp_path)
    assert find(of_flags("model.label_dropout=0"), tmp_path).config.model.label_dropout == 0
    assert find(of_flags("model.label_dropout=0.1"), tmp_path, to_train=True).config.model.label_dropout == 0.1


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        (
            "model.channels=24",
            r"the network's shape and the meaning of its output are in the checkpoint\): leave these",
        ),
        ("seed=1", "it made the initial parameters and the order of the data"),
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
    assert capsys.readouterr().err == (
        "changed from step 5 on: model.dtype 'float32' -> 'bfloat16', optimizer.learning_rate 0.0002 -> 0.001, "
        "training.batch_size 128 -> 64\n"
    )


def pictures(seed=0, name="digits"):
    """30 pictures of deviation sqrt(5461.25) / 127.5 (the uniform law on 0..255)."""
    x = np.random.default_rng(seed).permutation(np.arange(1920) * 256 // 1920).astype(np.uint8)
    return array_dataset(name, "train", x.reshape(30, 8, 8, 1), np.arange(30, dtype=np.int32) % 10, 10)


def begun(folder, given, data, *, step=5):
    """The record that training writes; with a checkpoint."""
    record = find(given, folder, to_train=True).record(data)
    workdir.write(folder, record)
    (folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
    return record


def scale_of(record):
    return record.config["model"]["sigma_data"]


def test_sigma_data_is_measured_and_recorded(tmp_path):
    record = begun(tmp_path, of_file(), pictures())
    # The variance of 0..255 is (256^2 - 1) / 12.
    assert scale_of(record) == pytest.approx(np.sqrt((256**2 - 1) / 12) / 127.5, rel=2e-3)
    for given in (of_flags(), of_file()):  # a file that leaves it open takes the run's
        assert find(given, tmp_path, to_train=True).config.model.sigma_data == scale_of(record)
    with pytest.raises(UserError, match=r"model.sigma_data = 0.57.* there, 0.5 here: the network's shape"):
        find(of_flags("model.sigma_data=0.5"), tmp_path, to_train=True)


def test_a_number_that_is_given_stays(tmp_path):
    assert scale_of(begun(tmp_path, of_file(model__sigma_data=0.7), pictures())) == 0.7
    (tmp_path / "checkpoints" / "5").rmdir()
    assert scale_of(find(of_flags(), tmp_path, to_train=True).record(pictures())) == 0.7


def test_standardized_vectors_have_deviation_one(tmp_path, capsys):
    points = array_dataset("v", "train", np.float32([[0, 10], [4, 30]]), None, 0)
    assert scale_of(find(of_file(), tmp_path, to_train=True).record(points)) == 1.0 and not capsys.readouterr().err
    given = of_file(model__sigma_data=47.0)
    assert scale_of(begun(tmp_path, given, points)) == 1.0
    assert "model.sigma_data is 1, not 47: vectors are standardized" in capsys.readouterr().err
    assert find(given, tmp_path, to_train=True).config.model.sigma_data == 1.0  # the same command goes on
    raw = find(of_file(model__standardize=False), tmp_path / "raw", to_train=True).record(points)
    assert scale_of(raw) == pytest.approx(np.std([0, 10, 4, 30]), rel=1e-3)


def test_without_a_checkpoint_what_was_measured_is_measured_again(tmp_path):
    begun(tmp_path, of_file(), pictures())
    (tmp_path / "checkpoints" / "5").rmdir()
    half = array_dataset("h", "train", pictures().source // 2, None, 0)
    assert scale_of(find(of_flags(), tmp_path, to_train=True).record(half)) == pytest.approx(0.29, abs=0.005)


def test_the_same_data_may_be_elsewhere(tmp_path):
    begun(tmp_path, of_file(), pictures())
    moved = find(of_flags("data.name=npz:copy.npz"), tmp_path, to_train=True).record(pictures(name="npz:copy.npz"))
    assert moved.config["data"]["name"] == "npz:copy.npz"
    assert moved.history == {"5": {"data.name": ["digits", "npz:copy.npz"]}}
    with pytest.raises(UserError, match=r"on other data \(data.name 'digits' -> 'npz:b.npz'\).*training.init_from="):
        find(of_flags("data.name=npz:b.npz"), tmp_path, to_train=True).record(pictures(seed=1))


def test_data_that_changed_in_place_are_said(tmp_path, capsys):
    first = begun(tmp_path, of_file(), pictures())
    again = find(of_flags(), tmp_path, to_train=True).record(pictures(seed=1))
    assert "warning: the data of digits are no longer those that the run began with" in capsys.readouterr().err
    assert again.history == {"5": {"data": [first.data, again.data]}} and first.data != again.data


def test_data_that_come_back_are_those_that_the_run_began_with(tmp_path, capsys):
    first = begun(tmp_path, of_file(), pictures())
    other = begun(tmp_path, of_flags(), pictures(seed=1))
    capsys.readouterr()
    # Before the next checkpoint: the other data were never trained on.
    assert find(of_flags(), tmp_path, to_train=True).record(pictures()) == first
    (tmp_path / "checkpoints" / "7").mkdir()
    again = find(of_flags(), tmp_path, to_train=True).record(pictures())
    changes = {"5": {"data": [first.data, other.data]}, "7": {"data": [other.data, first.data]}}
    assert (again.history, again.data, capsys.readouterr().err) == (changes, first.data, "")


def test_a_run_of_classes_goes_on_with_as_many(tmp_path):
    begun(tmp_path, of_file(model__class_conditional=True), pictures())
    nine = array_dataset("digits", "train", pictures().source, np.arange(30) % 9, 9)
    with pytest.raises(UserError, match=r"`data.name` is 'digits'; it must be data of 10 classes, .*, not 9: choose"):
        find(of_flags(), tmp_path, to_train=True).record(nine)


def test_data_of_another_shape_do_not_go_on(tmp_path):
    begun(tmp_path, of_file(), pictures())
    wide = array_dataset("digits", "train", np.zeros((4, 8, 10, 1), np.uint8), None, 0)
    with pytest.raises(UserError, match=r"it must be data of shape \(8, 8, 1\), .*\(8, 10, 1\)"):
        find(of_flags(), tmp_path, to_train=True).record(wide)


def test_a_run_without_a_digest_goes_on_with_the_name_of_its_data(run):
    assert find(of_flags(), run, to_train=True).record(pictures()).history == {}
    with pytest.raises(UserError, match=r"config\.json has no digest of its data"):
        find(of_flags("data.name=npz:b.npz"), run, to_train=True).record(pictures())


def test_an_import_without_the_name_of_its_data_takes_one(tmp_path):
    imported = constructors.resolve(base.Config().changed(of_file(data__name="", data__image_size=8).values))
    workdir.write(tmp_path, workdir.Record(build.as_json(imported), (8, 8, 1), 0, run="a1"))
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    given = ("data.name=npz:a.npz", "data.data_dir=/data")
    with pytest.raises(UserError, match=r"on other data \(data.condition None -> 'superres:2'\)"):
        find(of_flags(*given, "data.condition=superres:2"), tmp_path, to_train=True).record(pictures())
    wide = array_dataset("a", "train", np.zeros((4, 8, 10, 1), np.uint8), None, 0)
    with pytest.raises(UserError, match=r"it must be data of shape \(8, 8, 1\)"):
        find(of_flags(*given), tmp_path, to_train=True).record(wide)
    first = begun(tmp_path, of_flags(*given), pictures())
    assert (first.data, first.config["data"]["name"]) == (pictures().digest_of_some, "npz:a.npz")
    assert first.history == {"5": {"data.name": ["", "npz:a.npz"], "data.data_dir": [None, "/data"]}}
    with pytest.raises(UserError, match=r"on other data \(data.name 'npz:a.npz' -> 'npz:b.npz'\): the data there are"):
        find(of_flags("data.name=npz:b.npz"), tmp_path, to_train=True).record(pictures(seed=1))


def test_a_run_with_augmentation_keeps_it(run, tmp_path):
    error = r"data.augment = 0.0 there, 0.1 here: the network takes the labels of the augmentation, or it does not"
    with pytest.raises(UserError, match=error):
        find(of_flags("data.augment=0.1"), run, to_train=True)
    begun(tmp_path / "augmented", of_file(data__augment=0.1), pictures())
    with pytest.raises(UserError, match=r"data.augment = 0.1 there, 0.0 here"):
        find(of_flags("data.augment=0"), tmp_path / "augmented")
    found = find(of_flags("data.augment=0.2"), tmp_path / "augmented", to_train=True)
    assert found.changes == {"data.augment": (0.1, 0.2)}


def test_power_averages_begin_with_a_run(run, tmp_path, capsys):
    error = r"training.ema_snapshot_every = 0 there, 5 here: its power-function averages begin with the run"
    with pytest.raises(UserError, match=error):
        find(of_flags("training.ema_snapshot_every=5"), run, to_train=True)
    begun(tmp_path / "with", of_file(training__ema_snapshot_every=5), pictures())
    for other in (0, 10):
        found = find(of_flags(f"training.ema_snapshot_every={other}"), tmp_path / "with", to_train=True)
        assert found.config.training.ema_snapshot_every == other
        assert found.changes == {"training.ema_snapshot_every": (5, other)}
        assert f"on: training.ema_snapshot_every 5 -> {other}\n" in capsys.readouterr().err
    record = begun(tmp_path / "with", of_flags("training.ema_snapshot_every=0"), pictures())
    assert record.history == {"5": {"training.ema_snapshot_every": [5, 0]}}


def test_the_record_keeps_the_history_of_changes(tmp_path):
    begun(tmp_path, of_file(), pictures())
    begun(tmp_path, of_flags("optimizer.learning_rate=1e-3", "sampling.num_steps=5", "training.report=0"), pictures())
    # Stopped before its next checkpoint, and changed once more.
    begun(tmp_path, of_flags("optimizer.learning_rate=5e-4"), pictures(), step=7)
    record = begun(tmp_path, of_flags("training.ema_decay=0.5"), pictures())
    assert record.history == {
        "5": {"optimizer.learning_rate": [0.0002, 0.0005]},
        "7": {"training.ema_decay": [0.9999, 0.5]},
    }
    assert begun(tmp_path, of_flags(), pictures()) == record == workdir.read(tmp_path)


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
    with pytest.raises(UserError, match=r"no run in .* \(no config.json\): pass --workdir=DIR of a run, or --mode"):
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
        assert experiment.of_record(record, "config.json") == constructors.resolve(base.Config())
        return
    with pytest.raises(UserError, match=f"config.json cannot be used: {reason}"):
        experiment.of_record(record, "config.json")
