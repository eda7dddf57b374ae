"""`benchmarks.accelerator`: failures, the end of the time, and every stage at toy size."""

import gzip
import json
import lzma
import os
import subprocess
import sys
import time
from unittest import mock

import jax
import ml_dtypes
import numpy as np
import pytest

import hold_jax
from benchmarks import accelerator, alone
from configs import cifar10_fast
from hold_jax.app import build
from hold_jax.app.config import read
from hold_jax.weights import safetensors

PASS, FAIL, SLEEP = ["-c", "print('here')"], ["-c", "raise SystemExit(3)"], ["-c", "import time; time.sleep(60)"]


def test_a_failed_command_costs_only_itself_and_a_done_one_is_not_run_again(tmp_path):
    stage = accelerator.Stage("some", 60, [PASS, FAIL, [*PASS, "twice"]])
    for _ in range(2):
        session = accelerator.Session(tmp_path, minutes=9)
        session.run(stage, session.end)
        found = json.loads((tmp_path / "summary.json").read_text())["some"]
        assert found["status"] == "failed with 3" and len(found["done"]) == 2
    assert (tmp_path / "some.log").read_text() == "here\nhere\n"
    session.run(stage._replace(commands=[PASS], again=True), session.end)
    assert (tmp_path / "some.log").read_text() == "here\nhere\nhere\n"


def test_a_stage_ends_at_its_share_of_the_time_and_at_the_deadline(tmp_path):
    session = accelerator.Session(tmp_path, minutes=0.9)
    began = time.monotonic()
    session.run(accelerator.Stage("share", 10, [SLEEP]), session.end)  # a tenth of nine minutes: one second
    session.run(accelerator.Stage("late", 540, [SLEEP]), began)
    assert time.monotonic() - began < 30
    assert session.found["share"]["status"] == "stopped" and session.found["late"]["status"] == "no time left"


def test_a_process_that_measures_is_alone(tmp_path, monkeypatch):
    clock = "import time\nwhile True: print('tick', flush=True); time.sleep(0.01)"
    with open(tmp_path / "log", "w") as log:
        other = subprocess.Popen([sys.executable, "-c", clock], stdout=log, process_group=0)
    groups = tmp_path / "groups"
    groups.mkdir()
    for pid in (other.pid, os.getpgrp()):
        (groups / str(pid)).touch()
    monkeypatch.setenv(alone.FOLDER, str(groups))

    def ticks(seconds):
        before = (tmp_path / "log").stat().st_size
        time.sleep(seconds)
        return (tmp_path / "log").stat().st_size - before

    try:
        while not ticks(0.1):
            pass
        with alone.alone(seconds=0.2):
            assert ticks(0.5) == 0
        assert ticks(1.0) > 0
    finally:
        other.kill()
        other.wait()


def test_several_at_once_share_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["accelerator", f"--output={tmp_path / 'out'}", "--at_once=2", "--minutes=0.2"])
    nap = ["-c", f"import os, time; assert os.environ['{alone.FOLDER}']; time.sleep(3)"]
    made = [accelerator.Stage(name, 540, [nap]) for name in ("modes", "speed", "train", "weights")]
    monkeypatch.setattr(accelerator, "stages", lambda args, work: made)
    began = time.monotonic()
    with mock.patch.dict(os.environ):
        accelerator.main()
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {name: stage["status"] for name, stage in found.items()} == dict.fromkeys(found, "done")
    assert set(found) == {"modes", "speed", "train", "weights"} and time.monotonic() - began < 11  # of 12 s in turn
    assert not list((tmp_path / "out-work" / "groups").glob("[0-9]*"))


@pytest.mark.slow
def test_the_weights_of_the_fast_model_are_below_16_mb(tmp_path):
    # Normal numbers, whose exponents compress least among the usual laws of weights: uniform ones give 13.8 MB.
    model = build.model(read(cifar10_fast.get_config()), (32, 32, 3), 0)
    rng = np.random.default_rng(0)
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    arrays = {str(i): rng.normal(size=leaf.shape).astype(ml_dtypes.bfloat16) for i, leaf in enumerate(leaves)}
    assert 10e6 < sum(array.size for array in arrays.values()) < 15e6
    safetensors.write(tmp_path / "weights", arrays)
    assert len(lzma.compress((tmp_path / "weights").read_bytes())) < 16e6


def test_top_operations_are_sums_over_the_devices_events(tmp_path):
    def event(pid, name, us):
        return {"ph": "X", "pid": pid, "name": name, "dur": us}

    named = [
        {"name": "process_name", "pid": pid, "args": {"name": of}}
        for pid, of in ((1, "/host:CPU"), (2, "/device:TPU:0"))
    ]
    events = [
        event(2, "$queue.py:122 put", 7000),
        *named,
        event(2, "conv", 2000),
        event(2, "conv", 1000),
        event(2, "copy", 500),
        event(1, "python", 9000),
    ]
    (tmp_path / "t.trace.json.gz").write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert accelerator.top_operations(tmp_path) == [
        {"name": "conv", "ms": 3.0, "calls": 2},
        {"name": "copy", "ms": 0.5, "calls": 1},
    ]


def run(output, *options):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--toy", "--minutes=60", f"--output={output}", *options]
    subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""})
    found = json.loads((output / "summary.json").read_text())
    logs = {name: (output / f"{name}.log").read_text()[-2000:] for name in found}
    assert {name: stage["status"] for name, stage in found.items()} == dict.fromkeys(found, "done"), logs
    return found


@pytest.mark.slow
def test_a_model_is_timed_trained_carried_away_and_compared_at_toy_size(tmp_path):
    output = tmp_path / "accelerator"
    run(output, "--stages", "sampling", "train", "weights", "fid")
    assert json.loads((output / "sampling.json").read_text())["likelihood_images_per_second"] > 0
    file = tmp_path / "weights.safetensors"
    file.write_bytes(lzma.decompress((output / "weights.safetensors.xz").read_bytes()))
    assert json.loads((output / "weights.json").read_text())["step"] == 20
    x = hold_jax.load(file).sample(1, jax.random.key(0))
    assert np.isfinite(x).all()
    rows = {(r["sampler"], r["order"]): r for r in json.loads((output / "fid.json").read_text())["rows"]}
    assert len(rows) == 11 and {row["num"] for row in rows.values()} == {99}
    data = rows["data", None]["fid"]
    assert all(10 * data < row["fid"] for key, row in rows.items() if key[1])  # after 20 steps


@pytest.mark.slow
@pytest.mark.skipif("HOLD_JAX_ALL_STAGES" not in os.environ, reason="over 5 minutes; set HOLD_JAX_ALL_STAGES=1")
def test_every_stage_runs_at_toy_size_and_a_second_call_goes_on(tmp_path):
    output = tmp_path / "accelerator"
    first = run(output)
    assert list(first) == [
        "modes",
        "compile",
        "speed",
        "sampling",
        "inception",
        "profile",
        "tests",
        "train",
        "weights",
        "fid",
    ]
    assert json.loads((output / "profile.json").read_text())
    assert "already trained" in (run(output), (output / "train.log").read_text())[1]
