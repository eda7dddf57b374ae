import functools
import json
import os
import re
import shutil

import jax
import numpy as np
import PIL.Image
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

import hold_jax.loops.train
from configs import cifar10_hold, cifar10_small_hold, digits_hold, swissroll_hold
from hold_jax.app import build, constructors, experiment, flags, modes, packed, prepare, tuned
from hold_jax.app import config as base
from hold_jax.app.compilation_cache import cache_compilations
from hold_jax.app.flags import Given
from hold_jax.app.results import print_figures
from hold_jax.data import Statistics
from hold_jax.errors import UserError
from hold_jax.evaluation import classifier, inception_weights, reference
from hold_jax.loops.train import Trainer
from hold_jax.loops.tune import Reference
from hold_jax.runtime import workdir
from hold_jax.runtime.log import read_jsonl
from hold_jax.runtime.mesh import Devices
from hold_jax.training import power_average
from hold_jax.training.checkpoint import FOLDER

# The first lines stand for what compiles in a third of the time: fewer kernels.
TINY = dict(
    sde__order=2,
    model__parameterization="eps",
    model__conditioning="time",
    model__embedding="positional",
    model__fourier_scale=None,
    loss__time_law="uniform",
    loss__time_mean=None,
    loss__time_std=None,
    data__name="gaussians8",
    data__size=64,
    model__width=16,
    model__hidden_layers=1,
    optimizer__schedule="constant",
    optimizer__warmup_steps=2,
    training__batch_size=16,
    training__num_steps=10,
    training__steps_per_call=1,
    training__log_every=5,
    training__sample_every=5,
    training__checkpoint_every=5,
    sampling__num_steps=4,
    sampling__num_samples=16,
    sampling__batch_size=16,
    sampling__frames=2,
    eval__batch_size=16,
    eval__num_samples=16,
)


def config_of(module=swissroll_hold, **changes):
    config = module.get_config()
    changes = (TINY if module is swissroll_hold else {}) | changes
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return Given("test", base.flat_values(config))


run_train = functools.partial(modes.run, "train")
run_sample = functools.partial(modes.run, "sample")
run_eval = functools.partial(modes.run, "eval")
run_stats = functools.partial(modes.run, "stats")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "new"
    run_train(config_of(), str(folder))
    return folder


def results(folder):
    return [
        {k: v for k, v in json.loads(line).items() if "seconds" not in k}
        for line in (folder / "results.jsonl").read_text().splitlines()
    ]


def test_training_ends_with_a_report(trained):
    files = [".lock", "README.md", "config.json", "loss.png", "metrics.jsonl", "parameters.txt", "results.jsonl"]
    folders = [FOLDER, "eval", "grids", "samples", "stats", "tensorboard"]
    assert sorted(p.name for p in trained.iterdir()) == sorted(files + folders)
    folder = trained / "samples" / "step_10_strang4"
    assert sorted(p.name for p in folder.iterdir()) == ["film.gif", "grid.png", "samples.npz", "sampling.json"]
    assert results(trained)[0]["step"] == 10
    # The grid drawn in training, at its last step, is of the samples in the report: one draw, one compilation.
    assert np.load(folder / "samples.npz")["x"].shape == (16, 2)


def test_sampling_and_evaluating_later_give_the_report_again(trained, capsys):
    report = np.load(trained / "samples" / "step_10_strang4" / "samples.npz")["x"]
    run_sample(config_of(), str(trained))
    np.testing.assert_array_equal(np.load(trained / "samples" / "step_10_strang4" / "samples.npz")["x"], report)
    run_eval(config_of(), str(trained))
    assert results(trained)[-1] == results(trained)[0]
    printed = capsys.readouterr()
    assert f"samples: {trained}/samples/step_10_strang4/grid.png\n" in printed.err
    assert "process: order 2, " in printed.out and f"work directory: {trained}, checkpoint of step 10\n" in printed.out
    assert "sliced Wasserstein distance " in printed.out and f"model card: {trained}/README.md\n" in printed.out


def test_the_printed_report_is_twelve_lines_and_says_where_the_rest_is(capsys, tmp_path):
    networks = [("inception", "fid"), ("classifier", "frechet_classifier_distance"), ("pixels", "frechet_raw")]
    found = {"step": 1000, "num_samples": 297, "test_loss": 0.08439, "test_loss_error": 0.00076, "floor_examples": 297}
    for network, distance in networks:
        found |= {distance: 0.7415, f"{distance}_error": 0.184, f"{distance}_floor": 0.8947, f"{network}_kid": -0.01}
        found |= {f"{network}_{name}": 0.5 for name in ("precision", "recall", "score")}
    print_figures(found, tmp_path, tmp_path / "eval/step_1000")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 12 and lines[0] == "step 1,000, 297 samples:"
    assert lines[1].split("  ")[0] == "loss, test" and lines[1].endswith("  0.08439 +- 0.00076  lower is better")
    assert lines[2].startswith("FID  ") and lines[2].endswith("lower is better; 297 test examples give 0.895")
    assert lines[-1] == f"all figures: {tmp_path}/results.jsonl; pictures: {tmp_path}/eval/step_1000"


def test_a_run_that_began_meanwhile_keeps_its_record(tmp_path, monkeypatch):
    folder, other = tmp_path / "new", workdir.Record({}, (2,), 0, run="theirs")
    locked = workdir.locked

    def late(path):
        held = locked(path)
        workdir.write(path, other)  # by a run that stopped before this one got the lock
        (path / "checkpoints" / "5").mkdir(parents=True)
        return held

    path = experiment.find(config_of(), str(folder), to_train=True).path
    path.mkdir()
    monkeypatch.setattr(workdir, "locked", late)
    with pytest.raises(UserError, match="another began there meanwhile; repeat the command"):
        run_train(config_of(), str(folder))
    assert workdir.find(path).run == "theirs"


def test_a_run_that_stopped_before_its_first_checkpoint_begins_again(tmp_path, monkeypatch):
    folder, path = str(tmp_path / "new"), tmp_path / "new"

    def stop(*_, **__):
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", stop)
        with pytest.raises(UserError, match="stopped"):
            run_train(config_of(), folder)
    first = workdir.find(path)
    assert first is not None
    (path / "commands.txt").write_text("the command of the run that is replaced\n")
    run_train(config_of(training__report=False), folder)
    assert workdir.find(path).run != first.run and experiment.newest_step(path) == 10
    assert not (path / "commands.txt").exists()


def test_what_would_be_an_error_after_the_record_is_one_before(tmp_path):
    with pytest.raises(UserError, match=r"`training.held_out` is 1; it must be 0, or 2 or more"):
        run_train(config_of(training__held_out=1), str(tmp_path / "new"))
    assert not (tmp_path / "new" / "config.json").exists()


@pytest.mark.slow
def test_an_older_checkpoint_is_drawn_by_its_step(trained):
    run_sample(config_of(sampling__checkpoint=5, sampling__frames=0), str(trained))
    assert (trained / "samples" / "step_5_strang4" / "samples.npz").exists()


def test_the_best_checkpoint_is_drawn_by_its_name(trained, tmp_path):
    losses = {line["step"]: line["test/loss"] for line in read_jsonl(trained / "metrics.jsonl") if "test/loss" in line}
    assert losses.keys() == {5, 10}
    best = min(losses, key=losses.__getitem__)
    found = dict(packed.averages(config_read(config_of()), model_of(trained), trained, ["best"]))
    assert found.keys() == {best}
    with pytest.raises(UserError, match=r"no best checkpoint in .*: training keeps one if the data have a test split"):
        next(packed.averages(config_read(config_of()), model_of(trained), tmp_path, ["best"]))


def test_of_all_checkpoints_those_before_the_first_snapshot_are_left_out(copied):
    own = packed.of_run(copied).params
    power_average.write(copied, [own, own], 8, workdir.read(copied).run)
    config = config_read(config_of(sampling__ema_length=0.1))
    assert [step for step, _ in packed.averages(config, model_of(copied), copied, [])] == [8]
    with pytest.raises(UserError, match=r"no snapshot of the run's averages up to step 5 in "):
        list(packed.averages(config, model_of(copied), copied, [5]))
    (copied / power_average.FOLDER / "step_00000008.npz").unlink()
    with pytest.raises(UserError, match=r"no snapshot of the run's averages up to step 5 in "):
        list(packed.averages(config, model_of(copied), copied, []))


def test_checkpoints_between_two_snapshots_are_evaluated_once(copied, capsys):
    own = packed.of_run(copied).params
    for step in (2, 4):
        power_average.write(copied, [own, own], step, workdir.read(copied).run)
    config = config_read(config_of(sampling__ema_length=0.1))
    found = list(packed.averages(config, model_of(copied), copied, []))
    assert [step for step, _ in found] == [4]
    assert "checkpoint of step 10: no newer snapshot than that of 4\n" in capsys.readouterr().err


def test_a_checkpoint_long_after_the_newest_snapshot_is_an_error_where_it_is_named(copied, capsys):
    own = packed.of_run(copied).params
    for step in (2, 4):
        power_average.write(copied, [own, own], step, workdir.read(copied).run)
    config, model = config_read(config_of(sampling__ema_length=0.1)), model_of(copied)
    line = "newest snapshot of its averages is of step 4; they were made every 2 steps"
    with small.compilations() as found:
        for steps in ([10], [5, 10]):  # before the first is drawn
            error = rf"`sampling.ema_length` is 0.1; it must be None for .* step 10: .*{line} \(steps 2, 4\); name"
            with pytest.raises(UserError, match=error):
                next(packed.averages(config, model, copied, steps))
    assert not found and capsys.readouterr().err == ""
    assert [step for step, _ in packed.averages(config, model, copied, [5])] == [4]
    assert line not in capsys.readouterr().err
    (copied / FOLDER / "5").rename(copied / "older")
    for steps in (None, []):
        assert [step for step, _ in packed.averages(config, model, copied, steps)] == [4]
        assert f"checkpoint of step 10: the {line}\n" in capsys.readouterr().err


def config_read(given):
    return constructors.resolve(base.Config().changed(given.values))


def model_of(folder):
    record = workdir.read(folder)
    config = experiment.of_record(record, folder)
    return build.model(config, record.data_shape, record.num_classes, build.statistics(record))


@pytest.fixture
def copied(trained, tmp_path):
    """The run once more, for tests that add to it; its results forgotten."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (folder / "results.jsonl").unlink()
    return folder


@pytest.mark.slow
def test_each_checkpoint_that_is_named_is_evaluated_in_turn(copied, trained):
    run_eval(config_of(eval__checkpoints="all"), str(copied))
    run_eval(config_of(eval__checkpoints="10,5"), str(copied))
    run_eval(config_of(eval__checkpoints="5"), str(copied))
    found = results(copied)
    assert [line["step"] for line in found] == [5, 10, 10, 5, 5]
    assert found[1] == found[2] == results(trained)[0]
    assert found[0] == found[3] == found[4]
    assert all(found[0][name] != found[1][name] for name in ("test_loss", "frechet_raw", "sliced_wasserstein"))
    assert sorted(p.name for p in (copied / "eval").iterdir()) == ["step_10", "step_5"]


@pytest.mark.slow
def test_an_evaluation_says_that_the_checkpoint_of_samples_is_not_its_own(copied, capsys):
    run_eval(config_of(sampling__checkpoint=5), str(copied))
    assert "sampling.checkpoint is for samples; evaluated: eval.checkpoints = newest" in capsys.readouterr().err
    assert [line["step"] for line in results(copied)] == [10]


def test_samplers_are_tuned_in_the_first_features_and_the_others_are_not_made(trained, monkeypatch):
    def built(*_):
        raise AssertionError("a network of other features was made")

    def averages(*_):
        raise UserError("the features are there")

    monkeypatch.setattr(build, "classifier", built)
    monkeypatch.setattr(packed, "averages", averages)
    monkeypatch.setattr(tuned, "_SAMPLERS", ())
    with pytest.raises(UserError, match="the features are there"):
        modes.run("tune", config_of(eval__features="pixels,classifier", tune__calls=(20,)), str(trained))
    with pytest.raises(UserError, match=r"`eval.features` is ''; it must be the network in whose features samples are"):
        modes.run("tune", config_of(eval__features="", tune__calls=(20,)), str(trained))


def test_processes_of_other_modes_are_told_apart_and_statistics_are_of_a_network(trained, monkeypatch):
    compared = []
    monkeypatch.setattr(modes.distributed, "require_same", compared.append)
    with pytest.raises(UserError, match=r"`eval.features` is ''; it must be the networks of the statistics"):
        run_stats(config_of(eval__features=""), str(trained))
    assert compared[0]["mode"] == "stats"


def test_settings_that_cannot_be_drawn_with_are_named_before_any_sampler_is_tried(trained, monkeypatch):
    monkeypatch.setattr(tuned, "candidates", lambda *_: pytest.fail("samplers were built"))
    with pytest.raises(UserError, match=r"`sampling.guidance` is 2.0; it must be None for a model without dropout"):
        modes.run("tune", config_of(sampling__guidance=2.0), str(trained))


@pytest.mark.slow
def test_the_sampler_that_tuning_keeps_is_the_one_that_samples_are_drawn_with(copied, monkeypatch, capsys):
    monkeypatch.setattr(tuned, "_SAMPLERS", ({"name": "heun"},))
    modes.run("tune", config_of(tune__calls=(4,), tune__samples=64), str(copied))
    (entry,) = tuned.read(copied)
    about = {name: entry[name] for name in ("calls", "samples", "features", "step")}
    assert about == {"calls": 4, "samples": 64, "features": "pixels", "step": 10}
    printed = capsys.readouterr().out
    assert f"kept: {copied / 'tuned.json'}, drawn: {copied / 'tune.png'}\n" in printed
    PIL.Image.open(copied / "tune.png").verify()

    run_sample(config_of(sampling__calls=4, sampling__indices="64:128", sampling__frames=0), str(copied))
    said = capsys.readouterr().err
    assert re.search(rf"4 calls, as tuned: .* in {entry['sampling']['num_steps']} steps", said)
    (file,) = (path for path in copied.glob("samples/*/samples.npz") if len(np.load(path)["x"]) == 64)
    made = json.loads((file.parent / "sampling.json").read_text())
    assert made["calls"] <= 4 and made["sampler"]["name"] == entry["sampling"].get("name", "strang")
    # The samples that the choice was confirmed with: the same numbers, so the same distance to the data.
    data, scale = build.dataset(config_read(config_of()), "train"), build.statistics(workdir.read(copied))
    x, y = ((values - scale.mean) / scale.std for values in (np.load(file)["x"], data.source))
    assert entry["distance"] == pytest.approx(Reference(y).energy(x)[0], rel=1e-3)


def test_figures_of_another_average_are_curves_of_their_own(tmp_path, monkeypatch):
    def line(step, fid, length=None):
        return {
            "step": step,
            "fid": fid,
            "test_loss": fid / 8,
            "made_by": {} if length is None else {"ema_length": length},
        }

    other = line(20, 1.0)
    other["made_by"] = {"data": "npz:a/b.npz"}
    first = [line(20, 9.0), line(20, 3.0, 0.1), line(20, 4.0, 0.05), other]
    found = []
    monkeypatch.setattr(modes.curves, "draw", lambda drawn: found.append(drawn) or PIL.Image.new("RGB", (1, 1)))
    for lines in (first, [*first, line(10, 8.0), line(20, 7.0), line(10, 2.0, 0.1)]):
        (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        modes.plot(experiment.Experiment(base.Config(), tmp_path, None))
    (drawn,) = found  # figures of one step are no curve
    shown = {
        panel: {name: np.stack([steps, values[:, 0]], axis=1).tolist() for name, (steps, values) in named.items()}
        for panel, named in drawn.items()
    }
    assert shown["FID"] == {
        "FID": [[10, 8], [20, 7]],
        "FID average 0.1": [[10, 2], [20, 3]],
        "FID average 0.05": [[20, 4]],
        "FID against npz:a|b.npz": [[20, 1]],
    }
    assert shown["loss"]["test average 0.1"] == [[10, 0.25], [20, 0.375]] and len(shown) == 2


@pytest.mark.slow
def test_what_was_logged_is_drawn(copied, trained, capsys):
    run = functools.partial(modes.run, "plot", Given(None, {}), str(copied))
    line = (trained / "results.jsonl").read_text().splitlines()[0]
    run()  # without results
    (copied / "results.jsonl").write_text(f"{line}\n")
    run()  # figures of one step are no curve
    drawn = f"metrics.jsonl: {copied}/training.png\n"
    assert capsys.readouterr().out == f"{drawn}{drawn}results.jsonl has one step: figures are curves over two or more\n"
    (copied / "results.jsonl").write_text(line.replace('"step": 10', '"step": 5') + f"\n{line}\n")
    run()
    for name in ("training.png", "figures.png"):
        PIL.Image.open(copied / name).verify()
    (copied / "results.jsonl").unlink(), (copied / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"`workdir` is .*; it must be a folder with metrics.jsonl"):
        run()


@pytest.mark.slow
def test_statistics_made_before_give_the_same_figures(copied, tmp_path, capsys):
    run_stats(config_of(), str(tmp_path / "new"))
    path = tmp_path / "new" / "stats" / "pixels_gaussians8_train.npz"
    assert capsys.readouterr().out == f"{path}\n"
    assert sorted(small.contents(tmp_path / "new")) == ["stats/pixels_gaussians8_train.npz"]
    made = reference.load(path)
    assert made.about.count == 64 and made.about.split == "train"
    before = path.read_bytes()
    run_stats(config_of(), str(tmp_path / "new"))
    assert path.read_bytes() == before  # nothing is computed again

    run_eval(config_of(), str(copied))
    run_eval(config_of(eval__stats=str(path)), str(copied))
    without, given = results(copied)
    assert given == without
    other = config_of(eval__stats=str(path), data__name="checkerboard")
    with pytest.raises(UserError, match="was made with data = 'gaussians8'; this evaluation has 'checkerboard'"):
        run_eval(other, str(copied))


@pytest.mark.slow
def test_a_classifier_is_trained_once_for_a_run(copied, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 5)
    config = config_of(eval__features="classifier,pixels")
    run_eval(config, str(copied))
    monkeypatch.setattr(classifier, "_train", None)
    run_eval(config, str(copied))
    first, second = results(copied)
    assert first == second and {"frechet_classifier_distance", "frechet_raw", "classifier_score"} < first.keys()
    assert (copied / "classifier.npz").exists()
    assert sorted(p.name for p in (copied / "stats").iterdir()) == [
        "classifier_gaussians8_train.npz",
        "pixels_gaussians8_train.npz",
    ]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The FID network is neither in the cache nor at a server that answers."""
    monkeypatch.setattr(inception_weights, "FILE_URL", "http://127.0.0.1:9/pt_inception.pth")
    monkeypatch.setenv("HOLD_JAX_CACHE", str(tmp_path / "cache"))


def assert_asks_for_weights(mode, config, folder):
    with small.compilations() as found, pytest.raises(UserError) as caught:
        mode(config, str(folder))
    wanted = r"the FID's Inception network cannot be fetched from http://127.0.0.1:9/.*: 127.0.0.1:9 cannot be reached"
    assert re.match(wanted, str(caught.value)), caught.value
    assert "set --config.eval.inception to its path, or take --config.eval.features=classifier" in str(caught.value)
    assert "\n" not in str(caught.value) and sum(found) < 2.0


@pytest.mark.parametrize("module", [cifar10_hold, cifar10_small_hold])
def test_inception_without_weights_is_one_line_before_anything_is_computed(module, offline, tmp_path):
    picture(tmp_path / "data" / "train" / "a.png")
    config = config_of(module, data__name=f"folder:{tmp_path}/data")
    assert_asks_for_weights(run_stats, config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_inception_without_weights_is_one_line_before_the_training_that_it_is_to_report(offline, tmp_path):
    assert_asks_for_weights(run_train, config_of(eval__features="inception"), tmp_path / "new")
    assert not (tmp_path / "new" / FOLDER).exists()


@pytest.mark.slow
def test_classes_are_learned_with_and_without_labels_and_drawn_with_guidance(tmp_path):
    classes = dict(model__class_conditional=True, model__label_dropout=0.5, training__report=False)
    run_train(config_of(**classes), str(tmp_path))
    drawn = []
    for scale in (None, 4.0):
        run_sample(config_of(**classes, sampling__label=3, sampling__guidance=scale), str(tmp_path))
        name = "step_10_strang4_label3" + ("" if scale is None else "_guidance4")
        drawn.append(np.load(tmp_path / "samples" / name / "samples.npz")["x"])
    assert np.abs(drawn[1] - drawn[0]).max() > 1e-4


def test_the_same_command_again_finds_it_trained(trained, capsys):
    before = small.contents(trained / FOLDER)
    run_train(config_of(training__report=False), str(trained))
    assert f"already trained: {trained} is at step 10 of 10" in capsys.readouterr().err
    assert small.contents(trained / FOLDER) == before


def of_a_run(*changes):
    """The command without a config file."""
    return flags.read(None, [f"--config.{change}" for change in ("training.report=False", *changes)])


def test_a_finished_run_keeps_its_record(trained, capsys):
    before = small.contents(trained)
    for change in ("optimizer.learning_rate=1e-9", "training.num_steps=5"):
        run_train(of_a_run(change), str(trained))
        said = capsys.readouterr().err
        assert "no step to take: config.json keeps its settings\n" in said and "changed from" not in said
        assert small.contents(trained) == before


def test_a_run_that_cannot_go_on_keeps_its_record(copied):
    before = (copied / "config.json").read_bytes()
    for step in ("5", "10"):
        shutil.rmtree(copied / FOLDER / step / "state")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact"):
        modes.run("train", of_a_run("training.num_steps=20"), str(copied), command="refused")
    assert (copied / "config.json").read_bytes() == before and not (copied / "commands.txt").exists()


def test_a_training_that_is_stopped_for_good_keeps_its_command(tmp_path, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError  # `| head -5`

    monkeypatch.setattr(hold_jax.loops.train, "introduce_training", closed)
    with pytest.raises(BrokenPipeError):
        modes.run("train", config_of(training__report=False), str(tmp_path), command="python main.py --mode=train")
    (kept,) = (tmp_path / "commands.txt").read_text().splitlines()
    assert kept.endswith(": python main.py --mode=train")


def test_a_command_is_kept_once(copied):
    modes.run("train", of_a_run(), str(copied), command="first")  # it is trained already
    modes.run("sample", of_a_run(), str(copied), command="second")
    kept = (copied / "commands.txt").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in kept] == ["first", "second"]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def stuff(tmp_path_factory):
    """Data that cannot be used, and a file where a folder should be."""
    top = tmp_path_factory.mktemp("stuff")
    (top / "empty" / "train").mkdir(parents=True)
    picture(top / "no_test" / "train" / "a.png")
    (top / "broken" / "train").mkdir(parents=True)
    (top / "broken" / "train" / "a.png").write_bytes(b"no picture")
    np.savez(top / "names.npz", foo=np.zeros((4, 2), np.float32))
    np.savez(top / "dtype.npz", x=np.zeros((4, 2), np.int64))
    np.savez(top / "shape.npz", x=np.zeros((4, 8, 8, 2), np.uint8))
    (top / "file").write_text("x")
    return top


def of(name):
    """Settings for another data set than the toy's."""
    return dict(data__name=name, data__size=None)


REFUSED = {
    # Unknown names; the rest is in test_build.
    "name": (dict(sde__name="hodl"), "`sde.name` is 'hodl' (did you mean 'hold'?)"),
    "data name": (dict(data__name="gaussian8"), "`data.name` is 'gaussian8' (did you mean 'gaussians8'?)"),
    "order": (dict(sde__order=12), "`sde.order` is 12"),
    # Batches and devices.
    "batch": (dict(training__batch_size=20), "`training.batch_size` is 20; it must be a multiple of 8 (8 devices)"),
    "parts": (dict(training__accumulation_steps=3), "`training.batch_size` is 16; it must be a multiple of 24"),
    "sampling batch": (dict(sampling__batch_size=20), "`sampling.batch_size` is 20; it must be a multiple of 8"),
    "eval batch": (dict(eval__batch_size=20), "`eval.batch_size` is 20; it must be a multiple of 8"),
    "likelihood": (dict(eval__likelihood=True, likelihood__probes=-1), "`likelihood.probes` is -1; it must be a"),
    "steps a call": (dict(training__steps_per_call=4), "`training.num_steps` is 10; it must be a multiple of"),
    # Sampling, though it comes only after training.
    "sampling t_min": (dict(sampling__t_min=99.0), "`sampling.t_min` is 99.0; it must be between 0 and T"),
    "pngs": (dict(sampling__save_pngs=True), "`sampling.save_pngs` is True; it must be False for data that"),
    "label": (dict(sampling__label=1), "`sampling.label` is 1; it must be None for a model without classes"),
    "guidance": (dict(sampling__guidance=2.0), "`sampling.guidance` is 2.0; it must be None for a model without"),
    "label dropout": (dict(model__label_dropout=0.1), "`model.label_dropout` is 0.1; it must be 0 or None unless"),
    "loss t_min": (dict(loss__t_min=99.0), "`loss.t_min` is 99.0; it must be between 0 and T"),
    "flip": (dict(data__flip=True), "`data.flip` is True; it must be False for data of kind 'vector'"),
    "float16": (dict(model__dtype="float16"), "`model.dtype` is 'float16'; it must be bfloat16 or float32 to train"),
    "augment": (dict(data__augment=0.1), "`data.augment` is 0.1; it must be 0 for data of kind 'vector': pictures are"),
    "average": (dict(sampling__ema_length=0.1), "`sampling.ema_length` is 0.1; it must be None to train"),
    "network": (of("digits"), "`model.name` is 'mlp'; it must be 'ncsnpp' for data of shape"),
    # Data. The folder is put in for STUFF.
    "no folder": (of("folder:STUFF/none"), "`data.name` is 'folder:STUFF/none'; there is no folder"),
    "empty": (of("folder:STUFF/empty"), "`data.name` is 'folder:STUFF/empty'; STUFF/empty/train holds no picture"),
    "unreadable": (of("folder:STUFF/broken"), "`data.name` is 'folder:STUFF/broken'; none of its 1 pictures"),
    "no archive": (of("npz:STUFF/none.npz"), "`data.name` is 'npz:STUFF/none.npz'; there is no file"),
    "no array": (of("npz:STUFF/names.npz"), "`data.name` is 'npz:STUFF/names.npz'; it needs an array named x"),
    "dtype": (of("npz:STUFF/dtype.npz"), "`data.name` is 'npz:STUFF/dtype.npz'; array x must be uint8"),
    "shape": (of("npz:STUFF/shape.npz"), "`data.name` is 'npz:STUFF/shape.npz'; array x must be [N, H, W] or"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.eight_devices
def test_what_cannot_be_trained_is_refused_at_once(changes, message, stuff, tmp_path):
    changes = {k: v.replace("STUFF", str(stuff)) if isinstance(v, str) else v for k, v in changes.items()}
    with small.compilations() as found, pytest.raises(UserError) as caught:
        run_train(config_of(**changes), str(tmp_path / "new"))
    assert str(caught.value).startswith(message.replace("STUFF", str(stuff)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert sum(found) < 2.0  # host-side constants at most


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data__image_size=9), "`height` is 9; it must be a multiple of 2"),
        (dict(sampling__batch_size=100), "`sampling.batch_size` is 100; .* the nearest are 96 and 104"),
        (dict(sampling__batch_size=8, data__name="folder:STUFF/no_test"), "folder train and none of test"),
    ],
)
@pytest.mark.eight_devices
def test_pictures_that_cannot_be_trained_are_refused(changes, message, stuff, tmp_path):
    changes = {k: v.replace("STUFF", str(stuff)) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(UserError, match=message):
        run_train(config_of(digits_hold, **changes), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_workdir_that_cannot_be_is_named(stuff):
    with pytest.raises(UserError, match=r"`workdir` .*/file/below cannot be written: Not a directory"):
        run_train(config_of(), str(stuff / "file" / "below"))


NOT_THIS_RUN = {
    "another experiment": (
        run_train,
        dict(sde__order=3, seed=4),
        "holds another experiment .*seed = 0 there, 4 here: .*; sde.order = 2 there, 3 here: the network was trained.*",
    ),
    "other data": (run_train, dict(data__name="checkerboard"), "on other data .data.name 'gaussians8' ->"),
    "another model to sample": (run_sample, dict(model__width=8), "model.width = 16 there, 8 here"),
    "another process to evaluate": (run_eval, dict(sde__alpha=0.2), "sde.alpha = 0.08 there, 0.2 here"),
    "no such checkpoint": (run_sample, dict(sampling__checkpoint=7), r"no checkpoint of step 7 in .* steps 5, 10"),
    "no such checkpoint to evaluate": (run_eval, dict(eval__checkpoints="7"), "checkpoint of step 7 in .* steps 5, 10"),
    "no checkpoints": (
        run_eval,
        dict(eval__checkpoints="last"),
        "`eval.checkpoints` is 'last'; it must be newest, best, all, or steps like 10000,20000",
    ),
    "features": (run_eval, dict(eval__features="pixels,inceptoin"), r"`eval.features` is 'inceptoin' .did you"),
    "Inception's weights": (run_eval, dict(eval__features="inception"), "Inception network cannot be fetched from"),
    "statistics": (run_eval, dict(eval__stats="/none.npz"), "`eval.stats` is '/none.npz': no such file; make it"),
    "two networks with statistics": (
        run_eval,
        dict(eval__stats="/none.npz", eval__features="pixels,numpy:asarray"),
        r"`eval.features` is .* it must be one network, to use eval.stats",
    ),
    "likelihood batch": (
        run_eval,
        dict(eval__likelihood=True, likelihood__batch_size=20),
        "`likelihood.batch_size` is 20; it must be a multiple of 8",
    ),
    "guidance": (
        run_sample,
        dict(sampling__guidance=2.0),
        "`sampling.guidance` is 2.0; it must be None for a model without dropout of a condition: "
        "train with model.label_dropout, model.picture_dropout or model.vector_dropout = 0.1",
    ),
    "sampling batch": (run_sample, dict(sampling__batch_size=20), "`sampling.batch_size` is 20"),
    "sampling batch to evaluate": (run_eval, dict(sampling__batch_size=20), "`sampling.batch_size` is 20"),
    "eval batch": (run_eval, dict(eval__batch_size=20), "`eval.batch_size` is 20"),
    "data of another shape": (
        run_eval,
        of("digits"),
        r"`data.name` is 'digits'; it must be data of shape \(2,\); its test split's is \(8, 8, 1\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("mode", "changes", "message"), NOT_THIS_RUN.values(), ids=NOT_THIS_RUN)
@pytest.mark.eight_devices
def test_what_does_not_fit_a_run_leaves_it_as_it_was(mode, changes, message, trained, offline):
    before = small.contents(trained)
    with small.compilations() as found, pytest.raises(UserError, match=message) as caught:
        mode(config_of(**changes), str(trained))
    assert "\n" not in str(caught.value)
    assert small.contents(trained) == before
    assert sum(found) < 2.0


@pytest.mark.parametrize("checkpoints", ["newest", "all", "5"])
@pytest.mark.parametrize("mode", [run_sample, run_eval])
def test_nothing_to_sample_from_or_evaluate(mode, checkpoints, trained, tmp_path):
    config = config_of(eval__checkpoints=checkpoints)
    with pytest.raises(UserError, match=r"no trained model in .*: run --mode=train with this --workdir first"):
        mode(config, str(tmp_path / "none"))
    # A run that was stopped before its first checkpoint.
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"no checkpoint in .*: run --mode=train with this --workdir first"):
        mode(config, str(tmp_path))
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_test_split_of_another_size_is_found_before_training(stuff, tmp_path):
    picture(tmp_path / "data" / "train" / "a.png")
    (tmp_path / "data" / "test").mkdir()
    PIL.Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(tmp_path / "data" / "test" / "a.png")
    config = config_of(digits_hold, data__name=f"folder:{tmp_path}/data", sampling__batch_size=8)
    with pytest.raises(UserError, match=r"data of shape \(8, 8, 3\); its test split's is \(12, 12, 3\)"):
        run_train(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_bfloat16_where_the_devices_lack_it_is_float32_with_a_line(capsys, monkeypatch):
    config = base.Config().changed(config_of(model__dtype="bfloat16").values)
    monkeypatch.setattr(Devices, "have_bfloat16", lambda self: False)
    assert prepare.model(config, (2,), 8, Statistics()).network.dtype == np.float32
    assert capsys.readouterr().err == "model.dtype is bfloat16, which cpu does not have: computing in float32\n"
    assert config.model.dtype == "bfloat16"  # what the work directory keeps is what was asked for
    monkeypatch.setattr(Devices, "have_bfloat16", lambda self: True)
    assert prepare.model(config, (2,), 8, Statistics()).network.dtype == jax.numpy.bfloat16
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("where", "backend", "set_before", "after"),
    [
        ("auto", "cpu", None, None),
        ("auto", "gpu", None, "run/compilation_cache"),
        ("auto", "gpu", "mine", "mine"),
        ("off", "gpu", "mine", None),
        ("other", "cpu", "mine", "other"),
    ],
)
def test_where_compiled_programs_are_kept(tmp_path, monkeypatch, where, backend, set_before, after):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", set_before)
        cache_compilations(where, tmp_path / "run")
        found = jax.config.jax_compilation_cache_dir
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert found == (after if after in (None, "mine") else str(tmp_path / after))


@pytest.mark.slow
@pytest.mark.slow
def test_a_run_starts_from_another_ones_averages(trained, tmp_path, capsys):
    """With a rate of about zero the parameters and the averages stay those of the first run."""
    given = flags.read(None, [
        f"--config.training.init_from={trained}", "--config.data.name=checkerboard", "--config.training.report=False",
        "--config.optimizer.learning_rate=1e-20", "--config.training.sample_every=0",
    ])  # fmt: skip
    run_train(given, str(tmp_path / "run"))
    assert f"starting from {trained}, step 10: 8 of 8 arrays\n" in capsys.readouterr().err
    found, before = (packed.of_run(folder) for folder in (tmp_path / "run", trained))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found.params, before.params)
    assert found.config.data.name == "checkerboard" and found.record.run != before.record.run


@pytest.mark.slow
def test_a_run_keeps_what_it_measured_of_its_data(tmp_path):
    """Points at 1,000 with deviations 50 and 0.1, the second class three times as frequent as the first."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) * (50, 0.1) + (1000, -3)
    np.savez(tmp_path / "points.npz", x=x.astype(np.float32), y=np.repeat([1, 2], [100, 300]))
    config = config_of(
        data__name=f"npz:{tmp_path / 'points.npz'}", data__size=None, training__num_steps=2, training__log_every=2,
        training__sample_every=0, training__checkpoint_every=2, training__report=False, model__class_conditional=True,
        model__sigma_data=0.5, optimizer__warmup_steps=1,
    )  # fmt: skip
    folder = tmp_path / "run"
    run_train(config, str(folder))
    kept = json.loads((folder / "config.json").read_text())["statistics"]
    train = build.dataset(base.Config().changed(config.values), "train")
    assert kept["class_counts"] == np.bincount(train.labels, minlength=3).tolist()
    np.testing.assert_allclose(kept["mean"], train.source.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(kept["std"], train.source.astype(np.float64).std(axis=0), rtol=1e-12)
    (tmp_path / "points.npz").unlink()
    # Sampling needs the record alone. The untrained network's samples are about zero in the model's range.
    run_sample(config, str(folder))
    drawn = np.load(folder / "samples" / "step_2_strang4" / "samples.npz")["x"]
    assert np.abs((drawn.mean(axis=0) - (1000, -3)) / (50, 0.1)).max() < 10
    other = Given("test", config.values | {"model.standardize": False})
    with pytest.raises(UserError, match=r"model\.standardize = None there, False here"):
        run_sample(other, str(folder))
