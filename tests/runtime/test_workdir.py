import json
import os
import subprocess
import sys

import pytest
from training import small

from configs import cifar10_small_hold, digits_hold, swissroll_hold
from hold_jax.app import build
from hold_jax.errors import UserError
from hold_jax.runtime import workdir


def record(name="digits", shape=(8, 8, 1), **changes):
    config = {"digits": digits_hold, "roll": swissroll_hold, "cifar": cifar10_small_hold}[name].get_config()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return workdir.Record(build.as_json(config), shape, 10)


def test_a_record_survives_the_file(tmp_path):
    workdir.open_for_training(tmp_path / "a" / "b", record())
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [workdir.RECORD_FILE]
    assert workdir.read(tmp_path / "a" / "b") == record()


def test_the_same_experiment_goes_on_with_what_is_free(tmp_path):
    workdir.open_for_training(tmp_path, record())
    workdir.open_for_training(tmp_path, record())  # tuples there were lists in the file
    free = dict(
        training__num_steps=7, training__report=False, sampling__num_steps=9, eval__repeats=3, model__remat=True
    )
    workdir.open_for_training(tmp_path, record(**free))
    assert workdir.read(tmp_path) == record(**free)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (record(sde__order=4), "sde.order = None there, 4 here"),
        (record(seed=1), "seed = 0 there, 1 here"),
        (record(data__flip=True), "data.flip = False there, True here"),
        (record(loss__name="dsm"), "loss.name = 'bcsm' there, 'dsm' here"),
        (record(training__batch_size=64), "training.batch_size = 128 there, 64 here"),
        (record(optimizer__learning_rate=1.0), "optimizer.learning_rate = 0.002 there, 1.0 here"),
        (record(model__channel_multipliers=(1, 1)), r"model.channel_multipliers = \[1, 2\] there, \[1, 1\] here"),
        (record(shape=(16, 16, 1)), r"data shape \(8, 8, 1\) there, \(16, 16, 1\) here"),
        (record("roll", (2,)), "data.name = 'digits' there, 'swissroll' here.*model.name.*data shape"),
    ],
)
def test_another_experiment_is_refused_and_nothing_changes(tmp_path, other, named):
    workdir.open_for_training(tmp_path, record())
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5" / "w").write_bytes(b"precious")
    before = small.contents(tmp_path)
    with pytest.raises(
        UserError, match=f"{tmp_path} holds another experiment .*{named}.*choose another --workdir"
    ) as e:
        workdir.open_for_training(tmp_path, other)
    assert "\n" not in str(e.value)
    assert small.contents(tmp_path) == before


def test_a_model_is_known_by_its_process_and_network_alone(tmp_path):
    workdir.open_for_training(tmp_path, record())
    found = workdir.require_model(tmp_path, record(seed=3, data__size=5, loss__name="dsm", eval__repeats=2).config)
    assert found == record()
    for changes in ({"sde__alpha": 0.1}, {"model__channels": 16}):
        with pytest.raises(UserError, match="holds another experiment"):
            workdir.require_model(tmp_path, record(**changes).config)


def test_a_denoiser_s_process_is_free_and_nothing_else(tmp_path):
    workdir.open_for_training(tmp_path, record())
    other = record(sde__order=1)
    assert workdir.require_model(tmp_path, other.config, any_process=True) == record()
    with pytest.raises(UserError, match=r"another experiment \(sde.order = None there, 1 here\)"):
        workdir.require_model(tmp_path, other.config)
    with pytest.raises(UserError, match=r"another experiment \(model.channels = \d+ there, 24 here\)"):
        workdir.require_model(tmp_path, record(sde__order=1, model__channels=24).config, any_process=True)


def test_a_run_from_before_there_was_label_dropout_goes_on(tmp_path):
    old = record()
    del old.config["model"]["label_dropout"], old.config["sampling"]["guidance"]
    workdir.open_for_training(tmp_path, old)
    workdir.open_for_training(tmp_path, record())
    with pytest.raises(UserError, match=r"model.label_dropout = None there, 0.1 here"):
        workdir.require_model(tmp_path, record(model__label_dropout=0.1).config)


def test_a_folder_without_a_run_has_no_model(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"no trained model in .* \(no config.json\): run --mode=train with this"):
            workdir.require_model(path, record().config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": {}, "data_shape": 3, "num_classes": 0}'])
def test_a_damaged_record_is_refused_and_kept(tmp_path, text):
    (tmp_path / workdir.RECORD_FILE).write_text(text)
    for do in (workdir.read, lambda path: workdir.open_for_training(path, record())):
        with pytest.raises(UserError, match=r"config.json cannot be read .*; restore it, or choose another --workdir"):
            do(tmp_path)
    assert (tmp_path / workdir.RECORD_FILE).read_text() == text


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path.__class__("/proc/nothing/here")):
        with pytest.raises(UserError, match=f"`workdir` {path} cannot be written: .*; make room there, or choose"):
            workdir.open_for_training(path, record())
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_is_one_run_s_at_a_time_and_free_when_its_process_ends(tmp_path):
    folder = tmp_path / "new"
    hold = f"import sys, pathlib, hold_jax.runtime.workdir as w\nwith w.locked(pathlib.Path({str(folder)!r})):\n"
    hold += "    print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=rf"{folder} is in use by process {other.pid} on .*: wait for that run"),
            workdir.locked(folder),
        ):
            pass
        other.kill()
        other.wait()
        with workdir.locked(folder):
            assert (folder / workdir.LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_of_its_own_on_another_machine_is_named(tmp_path):
    with pytest.raises(UserError, match="is not the one that the first process writes: give a folder that all"):
        workdir.require_shared(tmp_path)
    workdir.open_for_training(tmp_path, record())
    workdir.require_shared(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        workdir.open_for_training(tmp_path, record())
    tmp_path.chmod(0o700)


def test_the_record_is_plain_readable_json(tmp_path):
    workdir.open_for_training(tmp_path, record())
    text = (tmp_path / workdir.RECORD_FILE).read_text()
    assert text.count("\n") > 50 and json.loads(text)["config"]["sde"]["name"] == "hold"
