import dataclasses
import functools
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import data, losses
from hold_jax.data.dataset import array_dataset
from hold_jax.errors import UserError
from hold_jax.loops import evaluate
from hold_jax.loops.best import BestCheckpoint
from hold_jax.loops.introduction import introduce_training
from hold_jax.loops.train import Trainer
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein
from hold_jax.nn import NCSNpp
from hold_jax.numerics import exact
from hold_jax.runtime import workdir as work_directory
from hold_jax.runtime.log import METRICS_FILE, Logs, MetricLog, read_jsonl
from hold_jax.runtime.mesh import Devices
from hold_jax.training import checkpoint, power_average
from hold_jax.training.checkpoint import BEST_FOLDER, FOLDER, Checkpoints, abstract_state
from hold_jax.training.state import init_state

MODEL, OPTIMIZER, DATA = small.mlp(), small.optimizer(), small.points()
SAMPLING = small.sample_settings()


def run(workdir, *, model=MODEL, optimizer=OPTIMIZER, dataset=DATA, loss=small.LOSS, **changes):
    return Trainer(model, loss, optimizer, dataset, small.train_settings(**changes), SAMPLING).run(workdir)


def lines(workdir):
    """metrics.jsonl but for the clock."""
    timed = ("train/images_per_second", "train/data_wait", "train/tflops_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_jsonl(workdir / "metrics.jsonl")]


def restored(workdir, step=None, model=MODEL):
    abstract = abstract_state(functools.partial(init_state, model, OPTIMIZER, 0), Devices.all().replicated)
    with Checkpoints.open_to_read(workdir) as checkpoints:
        return checkpoints.restore(abstract, step)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """20 steps at once, with pictures and every checkpoint."""
    traces = []

    def counted(*args, **options):
        traces.append(None)
        return small.LOSS(*args, **options)

    workdir = tmp_path_factory.mktemp("straight")
    state = run(workdir, loss=counted, sample_every=10, keep_every=5)
    return workdir, small.to_host(state), len(traces)


def test_a_run_leaves_its_files(straight):
    workdir, state, traces = straight
    assert traces == 1
    assert int(state.step) == 20
    assert sorted(p.name for p in workdir.iterdir()) == [
        FOLDER, "grids", "loss.png", "metrics.jsonl", "parameters.txt", "tensorboard"
    ]  # fmt: skip
    assert sorted(p.name for p in (workdir / "grids").iterdir()) == ["step_00000010.png", "step_00000020.png"]
    for picture in (workdir / "loss.png", *(workdir / "grids").iterdir()):
        PIL.Image.open(picture).verify()
    assert sorted(int(p.name) for p in (workdir / FOLDER).iterdir()) == [5, 10, 15, 20]
    found = read_jsonl(workdir / "metrics.jsonl")
    assert [line["step"] for line in found] == [1, 5, 10, 15, 20]
    for line in found:
        assert {"train/loss", "train/grad_norm", "train/images_per_second"} < line.keys()
        assert all(np.isfinite(value) and value > 0 for value in line.values())


@pytest.mark.eight_devices
def test_the_first_lines_say_what_is_trained_and_the_table_goes_to_a_file(tmp_path, capsys):
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    introduce_training(MODEL, DATA, params, tmp_path, step=5, flip=False)
    said = capsys.readouterr().out.splitlines()
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert [line.partition(":")[0] for line in said] == ["process", "data", "devices", "work directory", "network"]
    assert said[0].startswith("process: order 2, t from ") and said[0].endswith("effective noise from 0.002 to 80")
    assert said[1:3] == ["data: gaussians8, 200 train examples of 2", "devices: 8 x cpu"]
    assert said[3] == f"work directory: {tmp_path}, checkpoint of step 5"
    assert said[4].startswith(f"network: {size:,} parameters, {4e-6 * size:.3g} MB, listed in parameters.txt; model.")
    assert f"Total: {size:,}" in (tmp_path / "parameters.txt").read_text()


@pytest.mark.parametrize(("resolutions", "warned"), [((16, 2), True), ((16, 4), False), ((), False)])
def test_a_network_of_which_no_level_has_attention_says_so(tmp_path, capsys, resolutions, warned):
    model = dataclasses.replace(
        MODEL, data_shape=(8, 8, 1), network=NCSNpp(1, channel_multipliers=(1, 1), attention_resolutions=resolutions)
    )
    data = array_dataset("squares", "train", np.zeros((4, 8, 8, 1), np.uint8), None, 0)
    introduce_training(model, data, {"w": jnp.zeros(1)}, tmp_path, step=0, flip=False)
    said = "the sides of the levels are 8, 4, and model.attention_resolutions is (16, 2); name some of them, or ()"
    assert (said in capsys.readouterr().err) == warned


def test_the_log_has_means_since_the_line_before(straight, tmp_path):
    run(tmp_path, num_steps=10, log_every=1, checkpoint_every=10)
    every, few = ({line["step"]: line["train/loss"] for line in lines(w)} for w in (tmp_path, straight[0]))
    assert few[1] == every[1]
    assert few[5] == pytest.approx(np.mean([every[k] for k in range(2, 6)]), rel=1e-6)
    assert few[10] == pytest.approx(np.mean([every[k] for k in range(6, 11)]), rel=1e-6)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """A rate that falls, then rises so that the loss gets worse: the best checkpoint is not the last."""
    workdir = tmp_path_factory.mktemp("held_out")
    ema = jax.tree.map(np.asarray, trainer(num_steps=10).run(workdir).ema)
    first = lines(workdir)
    trainer().run(workdir)
    return workdir, first, ema


TEST = small.points(40, "test")


def trainer(**changes):
    rate = lambda step: jnp.where(step < 12, 1e-2, 10.0)  # noqa: E731
    return Trainer(
        MODEL, small.LOSS, small.optimizer(rate, clip_norm=0.0), DATA, small.train_settings(**changes), SAMPLING,
        learning_rate=rate, held_out=TEST,
    )  # fmt: skip


@pytest.mark.slow
def test_each_checkpoint_has_the_loss_of_held_out_examples(held_out):
    workdir, _, ema = held_out
    found = {line["step"]: line for line in lines(workdir)}
    assert [step for step, line in found.items() if "test/loss" in line] == [5, 10, 15, 20]
    settings = evaluate.EvalSettings(
        batch_size=16, repeats=10, num_samples=0, stats=None, neighbors=0, likelihood=None, seed=0
    )
    want = evaluate.test_loss(MODEL, small.LOSS, ema, TEST, settings, Devices.all())
    assert found[10]["test/loss"] == pytest.approx(want["test_loss"], rel=1e-5)
    assert found[10]["test/loss_error"] == pytest.approx(want["test_loss_error"], rel=1e-5)
    bins = [found[10][f"test/loss_noise{i}"] for i in range(10)]
    assert np.mean(bins) == pytest.approx(found[10]["test/loss"], rel=1e-5)
    # Uniform in t: the k-th tenth of [t_min, T] alone, with the same examples.
    law = lambda sde, quantile, t_min: losses.uniform(sde, 0.3 + quantile / 10, t_min)  # noqa: E731
    part = functools.partial(losses.bcsm_loss, time_law=law)
    settings = dataclasses.replace(settings, repeats=100)
    want = evaluate.test_loss(MODEL, part, ema, TEST, settings, Devices.all())
    assert bins[3] == pytest.approx(want["test_loss"], abs=6 * want["test_loss_error"])


def test_the_best_checkpoint_is_kept_and_a_run_that_goes_on_knows_its_loss(held_out):
    workdir, first, _ = held_out
    found = {line["step"]: line["test/loss"] for line in lines(workdir) if "test/loss" in line}
    least = min(found, key=found.__getitem__)
    assert least == 10 and found[20] > 2 * found[10]  # the test would show nothing if it were the last
    with Checkpoints.open_to_read(workdir, BEST_FOLDER) as checkpoints:
        assert checkpoints.steps() == [10]
    assert lines(workdir)[: len(first)] == first
    assert sorted(p.name for p in (workdir / FOLDER).iterdir()) == ["15", "20", "best"]


def test_the_log_has_the_learning_rate_and_the_speed(held_out):
    found = read_jsonl(held_out[0] / "metrics.jsonl")
    rates = {line["step"]: line["train/learning_rate"] for line in found}
    assert rates == {1: pytest.approx(1e-2), 5: pytest.approx(1e-2), 10: pytest.approx(1e-2), 15: 10.0, 20: 10.0}
    for line in found:
        if "train/images_per_second" in line:
            flops = line["train/tflops_per_second"] * 1e12 * 16 / line["train/images_per_second"]
            # Two hidden layers of 16 units: a product has 2 n m operations forwards and 4 n m backwards. Twice as much
            # again are the embedding of the noise and the small matrices of the process.
            products = 6 * 16 * (4 * 16 + 16 * 16 + 16 * 2)
            assert products < flops < 3 * products


def test_training_writes_to_any_log_and_to_a_relative_path(tmp_path, monkeypatch):
    class Kept:
        def __init__(self, workdir, start):
            self.began, self.scalar, self.images, self.flushed, self.closed = (workdir, start), {}, [], 0, 0

        def scalars(self, step, values):
            self.scalar[step] = values

        def image(self, name, image, step):
            self.images.append((name, step))

        def flush(self):
            self.flushed += 1

        def close(self):
            self.closed += 1

    opened = []

    def log(workdir, start):
        opened.append(Kept(workdir, start))
        return Logs([opened[-1], MetricLog(workdir, start_step=start)])

    settings = small.train_settings(num_steps=10, sample_every=10)
    monkeypatch.chdir(tmp_path)
    Trainer(MODEL, small.LOSS, OPTIMIZER, DATA, settings, SAMPLING).run("run", log)
    (kept,) = opened
    assert kept.began == (tmp_path / "run", 0) and (kept.flushed, kept.closed) == (2, 1)
    logged = read_jsonl(tmp_path / "run" / METRICS_FILE)
    assert kept.images == [("samples", 10)] and list(kept.scalar) == [1, 5, 10]
    assert [{"step": step, **values} for step, values in kept.scalar.items()] == logged


@pytest.mark.slow
def test_a_run_in_two_parts_is_the_run_in_one_bitwise(straight, tmp_path):
    workdir, whole, _ = straight
    half = small.to_host(run(tmp_path, num_steps=10))
    # What was written midway, while steps went on into donated buffers, is the state of that step.
    small.assert_bitwise(restored(workdir, 10), half)
    small.assert_bitwise(run(tmp_path), whole)
    assert lines(tmp_path) == lines(workdir)


class Failing(data.Dataset):
    """Breaks off after some batches, as a run that is killed."""

    def gather(self, indices):
        count = self.__dict__.setdefault("count", [0])
        count[0] += 1
        if count[0] > 14:  # one for the introduction, 13 for steps
            raise RuntimeError("killed")
        return super().gather(indices)


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint_bitwise(straight, tmp_path):
    workdir, whole, _ = straight
    broken = Failing(*(getattr(DATA, field.name) for field in dataclasses.fields(DATA)))
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, dataset=broken, log_every=1)
    assert lines(tmp_path)[-1]["step"] > 10 and int(restored(tmp_path).step) == 10
    small.assert_bitwise(run(tmp_path), whole)
    assert [line for line in lines(tmp_path) if line["step"] > 10] == [x for x in lines(workdir) if x["step"] > 10]


@pytest.mark.slow
def test_power_averages_go_on_bitwise_and_change_nothing_else(straight, tmp_path):
    folders = [tmp_path / name / power_average.FOLDER for name in ("whole", "parts")]
    whole = small.to_host(run(tmp_path / "whole", ema_snapshot_every=10))
    run(tmp_path / "parts", ema_snapshot_every=10, num_steps=10)
    small.assert_bitwise(run(tmp_path / "parts", ema_snapshot_every=10), whole)
    assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == [
        ["step_00000010.npz", "step_00000020.npz"]
    ] * 2
    for name in ("step_00000010.npz", "step_00000020.npz"):
        first, second = (np.load(folder / name) for folder in folders)
        assert all(np.array_equal(first[key], second[key]) for key in first.files)
    # Beside them the run is as without; its checkpoints are read without them.
    without = straight[1]
    assert small.largest_error(whole.replace(power=()), without) < 1e-5
    small.assert_bitwise(restored(tmp_path / "whole"), whole.replace(power=()))
    # A run that began without them cannot go on with them.
    shutil.copytree(straight[0], tmp_path / "without")
    with pytest.raises(UserError, match=r"it has no averages for training\.ema_snapshot_every"):
        run(tmp_path / "without", ema_snapshot_every=10, num_steps=40)


def test_a_run_that_goes_back_keeps_the_best_of_its_new_way(tmp_path):
    """Its newest checkpoint was deleted, and `best` is of a later step."""
    work_directory.write(tmp_path, work_directory.Record({}, (2,), 0, run="a"))
    state = small.fresh_state(MODEL, OPTIMIZER)

    def offer(start, *pairs, history=None):
        with Checkpoints.open(tmp_path) as others, BestCheckpoint(tmp_path, start, history) as best:
            for step, loss in pairs:
                best.offer(loss, dataclasses.replace(state, step=jnp.int32(step)), others)
        with Checkpoints.open_to_read(tmp_path, BEST_FOLDER) as checkpoints:
            return checkpoints.steps()

    assert offer(0, (5, 0.6), (9, 0.5)) == [9]
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "test/loss": 0.6}\n')
    assert offer(5) == [9]
    assert offer(5, (6, 0.7), (7, 0.8)) == [6]  # the state of the loss 0.6 is not there any more
    # So after another stop the least loss is 0.7, not that of a state that is gone.
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "test/loss": 0.6}\n{"step": 6, "test/loss": 0.7}\n')
    assert offer(7, (8, 0.75)) == [6]
    assert offer(7, (8, 0.65)) == [8]
    assert offer(5, (8, 0.1)) == [8]
    # Nor does a loss compare with that of another weighting, or of other examples.
    (tmp_path / "metrics.jsonl").write_text('{"step": 8, "test/loss": 0.1}\n')
    for history, kept in (
        ({"8": {"optimizer.learning_rate": [1, 2]}}, [8]),
        ({"3": {"loss.weighting": ["eps", "sm"]}}, [8]),
        ({"8": {"loss.weighting": ["eps", "sm"]}}, [9]),
    ):
        assert offer(8, (9, 0.7), history=history) == kept


@pytest.mark.slow
def test_a_snapshot_that_cannot_be_written_is_written_by_the_same_command(tmp_path, monkeypatch):
    def full(*_):
        raise UserError("no room")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="no room"):
        patch.setattr(power_average, "write", full)
        run(tmp_path, ema_snapshot_every=10)
    run(tmp_path, ema_snapshot_every=10)
    names = sorted(path.name for path in (tmp_path / power_average.FOLDER).iterdir())
    assert names == ["step_00000010.npz", "step_00000020.npz"]


def test_every_average_begins_with_the_parameters_that_are_given():
    given = {"hidden0/bias": np.arange(16, dtype=np.float32)}
    settings = small.train_settings(ema_snapshot_every=5)
    trainer = Trainer(MODEL, small.LOSS, OPTIMIZER, DATA, settings, SAMPLING, initial=given)
    program = trainer._program(Devices.all())
    state = program.to_tree(trainer._start(program))
    assert len(state.power) == len(power_average.SIGMAS)
    for tree in (state.params, state.ema, *state.power):
        np.testing.assert_array_equal(tree["hidden0"]["bias"], given["hidden0/bias"])


@pytest.mark.slow
def test_bfloat16_goes_on_bitwise(tmp_path):
    model = small.mlp(dtype=jnp.bfloat16)
    options = dict(model=model, num_steps=6, checkpoint_every=3, log_every=3)
    whole = small.to_host(run(tmp_path / "whole", **options))
    run(tmp_path / "parts", **options | {"num_steps": 3})
    small.assert_bitwise(run(tmp_path / "parts", **options), whole)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


@pytest.mark.slow
def test_goes_on_with_another_number_of_devices(straight, tmp_path, monkeypatch):
    run(tmp_path, num_steps=10)
    monkeypatch.setattr(Devices, "all", classmethod(lambda cls: small.devices(1)))
    state = run(tmp_path)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {1}
    assert small.largest_error(state, straight[1]) < 1e-4


@pytest.mark.parametrize("num_steps", [20, 10])
def test_a_finished_run_returns_at_once(straight, num_steps, capsys):
    def never(*args):
        raise AssertionError("the loss was traced")

    workdir, whole, _ = straight
    before = small.contents(workdir)
    small.assert_bitwise(run(workdir, loss=never, num_steps=num_steps), whole)
    assert small.contents(workdir) == before
    assert f"already trained: {workdir} is at step 20 of {num_steps}" in capsys.readouterr().err


def test_steps_a_call_must_fit_the_step_to_go_on_from(straight):
    before = small.contents(straight[0])
    with pytest.raises(UserError, match=r"`training.steps_per_call` is 8; it must be a divisor of 20, the step"):
        run(straight[0], num_steps=40, steps_per_call=8, log_every=8, checkpoint_every=8)
    assert small.contents(straight[0]) == before


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(straight, tmp_path, steps_per_call):
    _, whole, _ = straight
    step = 8  # an example that no step before sees
    new = set(small.host_batches_indices(DATA, 16, step)[-1])
    poisoned = np.array(DATA.source)
    poisoned[min(new.difference(*small.host_batches_indices(DATA, 16, step - 1)))] = np.nan
    with pytest.raises(UserError) as caught:
        run(tmp_path, dataset=dataclasses.replace(DATA, source=poisoned), steps_per_call=steps_per_call)
    assert re.match(
        r"training stopped: loss is nan at step 8; the last good checkpoint, step 5, is kept\. Lower", str(caught.value)
    )
    assert "\n" not in str(caught.value)
    kept = restored(tmp_path)
    assert int(kept.step) == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(small.to_host(kept)))
    assert all(np.isfinite(line["train/loss"]) for line in lines(tmp_path))
    if steps_per_call == 1:
        # With the data mended the run goes on as if nothing had been.
        small.assert_bitwise(run(tmp_path), whole)


def test_parameters_that_are_not_finite_are_never_written(tmp_path):
    # The loss and the gradient of the first step are fine; what comes of it is not.
    with pytest.raises(UserError, match=r"param_norm is (inf|nan) at step 1; no checkpoint was written yet"):
        run(tmp_path, optimizer=small.optimizer(float("inf")), checkpoint_every=1)
    assert not list((tmp_path / FOLDER).iterdir())


@pytest.mark.slow
def test_skipped_steps_are_told_of_logged_and_the_run_goes_on(tmp_path, capsys):
    step = 8  # an example that no step before sees
    poisoned = np.array(DATA.source)
    new = set(small.host_batches_indices(DATA, 16, step)[-1])
    bad = min(new.difference(*small.host_batches_indices(DATA, 16, step - 1)))
    poisoned[bad] = np.nan
    hit = [k for k, rows in enumerate(small.host_batches_indices(DATA, 16, 20), start=1) if bad in rows]
    dataset = dataclasses.replace(DATA, source=poisoned)
    state = run(tmp_path / "whole", dataset=dataset, skip_limit=3)
    said = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert said == [f"loss is nan at step {k}: skipped (1 in a row; more than 3 stop the run)" for k in hit]
    assert sum(line.get("train/skipped", 0) for line in lines(tmp_path / "whole")) == len(hit)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(small.to_host(state)))
    assert int(state.opt_state[1][0].count) == 20 - len(hit) and int(state.step) == 20
    run(tmp_path / "parts", dataset=dataset, skip_limit=3, num_steps=10)
    small.assert_bitwise(run(tmp_path / "parts", dataset=dataset, skip_limit=3), state)


@pytest.mark.slow
def test_told_to_stop_it_writes_a_checkpoint_and_the_same_call_goes_on_bitwise(straight, tmp_path, capsys):
    workdir, whole, _ = straight

    def gather(rows, gather=DATA.gather):
        if len(told) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        told.append(None)
        return gather(rows)

    told = []
    dataset = dataclasses.replace(DATA)
    object.__setattr__(dataset, "gather", gather)
    state = run(tmp_path, dataset=dataset)
    stopped = int(state.step)
    assert 5 <= stopped < 20 and "SIGTERM: stopping after this step" in capsys.readouterr().err
    small.assert_bitwise(restored(tmp_path, stopped), state)
    small.assert_bitwise(run(tmp_path), whole)
    assert [line for line in lines(tmp_path) if line["step"] > 10] == [
        line for line in lines(workdir) if line["step"] > 10
    ]


@pytest.fixture
def at_once(monkeypatch):
    """Nothing here is still deleting."""
    monkeypatch.setattr(checkpoint, "_SETTLE_SECONDS", 0.0)


def disturbed(workdir, disturb):
    """A run of 20 steps; `disturb` is called while the eighth batch is read."""
    calls = []

    def gather(rows):
        calls.append(None)
        if len(calls) == 8:
            disturb()
        return DATA.gather(rows)

    dataset = dataclasses.replace(DATA)
    object.__setattr__(dataset, "gather", gather)
    work_directory.write(workdir, RECORD)
    with pytest.raises(UserError) as caught:
        run(workdir, dataset=dataset, log_every=1)
    return str(caught.value)


RECORD = work_directory.Record({}, (2,), 0, run="this")


@pytest.mark.slow
def test_a_work_directory_deleted_under_a_run_costs_no_step(straight, tmp_path, at_once):
    workdir = tmp_path / "run"
    message = disturbed(workdir, lambda: shutil.rmtree(workdir))
    assert message.startswith(
        f"{workdir}/metrics.jsonl was deleted, moved or replaced while a run appended lines to it"
    )
    (step,) = map(int, re.findall(r"step (\d+) is saved in .*/run again, and the same command goes on", message))
    assert work_directory.find(workdir) == RECORD
    assert int(restored(workdir).step) == step and 1 <= step <= 8
    small.assert_bitwise(run(workdir), straight[1])


@pytest.mark.slow
def test_a_work_directory_moved_under_a_run_goes_on_in_both_places(straight, tmp_path, at_once):
    old, new = tmp_path / "old", tmp_path / "new"
    message = disturbed(old, lambda: os.rename(old, new))
    assert "If you moved the folder, --workdir=DIR goes on from the newest checkpoint in it" in message
    for workdir in (old, new):
        small.assert_bitwise(run(workdir), straight[1])


def test_a_run_that_was_replaced_by_another_writes_nothing(tmp_path, at_once):
    def disturb():
        shutil.rmtree(tmp_path)
        work_directory.write(tmp_path, dataclasses.replace(RECORD, run="other"))

    assert re.search(r"holds another run now, so step \d+ is not saved", disturbed(tmp_path, disturb))
    assert work_directory.read(tmp_path).run == "other" and not (tmp_path / FOLDER).exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(straight, tmp_path, capsys):
    _, whole, _ = straight
    run(tmp_path, num_steps=10)
    manifest = tmp_path / FOLDER / "10" / "state" / "manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:50])
    small.assert_bitwise(run(tmp_path), whole)
    assert "checkpoint 10 is damaged" in capsys.readouterr().err


def test_a_profile_is_left_in_the_work_directory(tmp_path, capsys):
    run(tmp_path, num_steps=10, profile=3)
    assert f"profile: {tmp_path / 'profile'}" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "profile").rglob("*.xplane.pb")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip_limit": -1}, "`training.skip_limit` is -1; it must be 0 or more"),
        ({"num_steps": 0}, "`training.num_steps` is 0; it must be 1 or more"),
        ({"accumulation_steps": 0}, "`training.accumulation_steps` is 0; it must be 1 or more"),
        ({"log_every": 0}, "`training.log_every` is 0; it must be 1 or more"),
        ({"keep_last": 0}, "`training.keep_last` is 0; it must be 1 or more"),
        ({"keep_every": -1}, "`training.keep_every` is -1; it must be 0 or more"),
        ({"sample_every": -5}, "`training.sample_every` is -5; it must be a multiple of steps_per_call = 1"),
        ({"steps_per_call": 3}, "`training.num_steps` is 20; it must be a multiple of steps_per_call = 3"),
        ({"ema_decay": 1.0}, r"`training.ema_decay` is 1.0; it must be in \[0, 1\)"),
        ({"seed": -1}, r"`seed` is -1; it must be in \[0, 2\^32\)"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        small.train_settings(**changes)


@pytest.mark.parametrize(
    ("loss", "changes", "message"),
    [
        (small.LOSS, {"batch_size": 12}, "`training.batch_size` is 12; .* the nearest are 8 and 16"),
        (small.LOSS, {"accumulation_steps": 3}, "`training.batch_size` is 16; .* 24 .8 devices x 3 accumulation"),
        (small.LOSS, {"flip": True}, "`data.flip` is True; it must be False for data of kind 'vector'"),
        (functools.partial(small.LOSS, t_min=99.0), {}, "`t_min` is 99.0; it must be between 0 and T"),
    ],
)
@pytest.mark.eight_devices
def test_check_finds_what_cannot_work_without_compiling(loss, changes, message):
    trainer = Trainer(MODEL, loss, OPTIMIZER, DATA, small.train_settings(**changes), SAMPLING)
    with small.compilations() as found, pytest.raises(UserError, match=message):
        trainer.check()
    assert len(found) < 10 and sum(found) < 2.0  # host-side constants at most


MEAN, STD = np.array([1.5, -0.5]), 0.3


def floor(model, loss_law, points=1001):
    """The least loss on N(MEAN, STD^2), a dimension: E_t Var(eps_n | u_t), in float64."""
    quantile = (np.arange(points) + 0.5) / points
    t = np.asarray(loss_law(model.sde, jnp.float32(quantile), model.sde.t_min).t, np.float64)
    big_b = np.array([model.sde.schedule.integral(0.0, s) for s in t], np.float64)
    phi, chol = exact.marginal(model.sde.F, model.sde.G, model.sde.cov0, big_b)
    w = exact.solve_lower(chol, phi[..., :, :1])[..., 0]
    sigma2 = 1 / np.sum(w**2, axis=-1)
    return float(np.mean(w[:, -1] ** 2 * sigma2 * STD**2 / (sigma2 + STD**2)))


@pytest.mark.slow
def test_it_learns_a_gaussian(tmp_path, monkeypatch):
    """The loss comes down to its theoretical floor, and samples come to the data, at order 3."""
    monkeypatch.setattr(Devices, "all", classmethod(lambda cls: small.devices(1)))  # eight share two cores
    rng = np.random.default_rng(0)
    x = (MEAN + STD * rng.standard_normal((6000, 2))).astype(np.float32)
    dataset = array_dataset("gaussian", "train", x[:4000], None, 0)
    model = small.mlp(order=3, full=True, width=32, init_scale=0.0)
    law = small.FULL_LOSS.keywords["time_law"]
    state = run(
        tmp_path,
        model=model,
        optimizer=small.optimizer(5e-3),
        dataset=dataset,
        loss=small.FULL_LOSS,
        num_steps=400,
        batch_size=256,
        steps_per_call=100,
        log_every=100,
        checkpoint_every=400,
        ema_decay=0.98,
    )
    start = small.fresh_state(model, OPTIMIZER)

    @jax.jit
    def loss_of(params, x):
        return jnp.mean(small.FULL_LOSS(model.sde, model.eps_fn(params), x, jax.random.key(3))) / 2

    held_out = x[4000:]
    before, after = (float(loss_of(params, held_out)) for params in (start.ema, state.ema))
    least = floor(model, law)
    print(f"loss {before:.4f} -> {after:.4f}, floor {least:.4f}")
    assert before > 1.5 * least
    assert 0.97 * least < after < 1.06 * least

    settings = small.sample_settings(num_steps=50, batch_size=1000)
    samples = {
        name: small.draw_many(model, params, settings, small.devices(1), num=1000)[0]
        for name, params in (("before", start.ema), ("after", state.ema))
    }
    distance = {name: sliced_wasserstein(value, x[4000:]) for name, value in samples.items()}
    print(distance)
    assert distance["after"] < distance["before"] / 8
    np.testing.assert_allclose(samples["after"].mean(axis=0), MEAN, atol=0.06)
    np.testing.assert_allclose(samples["after"].std(axis=0), STD, atol=0.05)
