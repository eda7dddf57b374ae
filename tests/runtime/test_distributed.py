"""Real processes over loopback: two of two devices each are one of four."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from training import small

from configs import swissroll_hold
from hold_jax.app import build
from hold_jax.app import config as base
from hold_jax.errors import UserError
from hold_jax.runtime import distributed
from hold_jax.runtime.log import read_jsonl
from hold_jax.runtime.mesh import Devices
from hold_jax.training.checkpoint import FOLDER, Checkpoints, abstract_state
from hold_jax.training.state import init_state

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 300, 50
CONFIG = {
    "sde.order": 2,
    "data.name": "gaussians8",
    "data.size": 200,
    "model.parameterization": "eps",
    "model.conditioning": "time",
    "model.embedding": "positional",
    "model.width": 128,  # an array that is spread over the devices
    "model.hidden_layers": 2,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 2,
    "training.batch_size": 16,
    "training.steps_per_call": 5,
    "training.num_steps": STEPS,
    "training.log_every": EVERY,
    "training.sample_every": 0,
    "training.checkpoint_every": EVERY,
    "sampling.num_steps": 4,
    "sampling.num_samples": 16,
    "sampling.batch_size": 16,
    "sampling.frames": 0,
    "eval.batch_size": 16,
    "eval.num_samples": 20,
}


@contextlib.contextmanager
def processes(count, workdir, cache, *own):
    """main.py in training as `count` processes of four devices in all; `own`: further flags of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    }
    flags = ["--config=configs/swissroll_hold.py", "--mode=train", f"--workdir={workdir}"]
    flags += [f"--config.{name}={value}" for name, value in CONFIG.items()]
    started = []
    for process in range(count):
        join = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={process}"]
        command = [sys.executable, "main.py", *flags, *(join if count > 1 else ()), *(own[process] if own else ())]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def finish(started):
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), said
    return said


def outcome(workdir):
    """Everything a run leaves but its clock, as numbers by name."""
    config = swissroll_hold.get_config()
    config.update_from_flattened_dict(CONFIG)
    config = base.read(config)
    model, optimizer = build.model(config, (2,), 8), build.optimizer(config)
    abstract = abstract_state(lambda: init_state(model, optimizer, 0), Devices.all().replicated)
    with Checkpoints.open_to_read(workdir) as checkpoints:
        state = small.to_host(checkpoints.restore(abstract, STEPS))
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    for line in read_jsonl(workdir / "metrics.jsonl") + read_jsonl(workdir / "results.jsonl"):
        found |= {f"{name} at {line['step']}": value for name, value in line.items() if name != "made_by"}
    timed = ("images_per_second", "data_wait", "tflops_per_second", "sampling_seconds")
    found["samples"] = np.load(next((workdir / "samples").glob(f"step_{STEPS}_*/samples.npz")))["x"]
    return {name: np.asarray(v, np.float64) for name, v in found.items() if not any(word in name for word in timed)}


@pytest.mark.slow
def test_two_processes_are_one_also_after_the_death_of_one(tmp_path):
    """Trained, checkpointed, sampled and evaluated; rounding grows over 300 steps of Adam to 1e-4 of a value."""
    one, two, cache = tmp_path / "one", tmp_path / "two", tmp_path / "cache"
    with processes(1, one, cache) as started:
        finish(started)
    with processes(2, two, cache) as started:
        while not (two / FOLDER / str(EVERY)).exists():
            assert [p.poll() for p in started] == [None, None], [p.communicate()[0] for p in started]
            time.sleep(0.005)
        started[0].send_signal(signal.SIGKILL)
        began = time.monotonic()
        said = started[1].communicate(timeout=100)[0]
        assert time.monotonic() - began < 45 and started[1].returncode != 0
        assert "lost its peers" in said or "another task died" in said, said
    reached = max(int(p.name) for p in (two / FOLDER).iterdir() if p.name.isdecimal())
    assert EVERY <= reached < STEPS
    with processes(2, two, cache) as started:
        said = finish(started)
    assert f"checkpoint of step {reached}" in said[0] and "devices: 4 x cpu in 2 processes" in said[0]
    assert f"step {STEPS}/{STEPS}" not in said[1] and "loss, test" not in said[1]  # one speaks for all
    got, want = outcome(two), outcome(one)
    assert got.keys() == want.keys() and len(want) > 60
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-4 * np.abs(values).max(), err_msg=name)


@pytest.mark.slow
def test_processes_with_different_flags_all_stop_and_name_them(tmp_path):
    other = ["--config.seed=1", "--config.model.width=32"]
    with processes(2, tmp_path / "run", tmp_path / "cache", [], other) as started:
        said = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [2, 2]
    for text in said:
        assert "error: the processes were started with different settings (model.width = 128 on process 0," in text
        assert "seed = 0 on process 0, 1 on process 1): start all with the same flags" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("h:1", 2, None), "`process_id` is None; it must be given too: --coordinator, --num_pro"),
        ((None, 2, 0), "`coordinator` is None; it must be given too: --coordinator, --num_pro"),
        (("h", 2, 0), "`coordinator` is 'h'; it must be HOST:PORT, e.g. 10.0.0.1:8476"),
        (("h:1", 0, 0), "`num_processes` is 0; it must be 1 or more"),
        (("h:1", 2, 2), "`process_id` is 2; it must be in 0..1"),
    ],
)
def test_flags_of_joining_are_checked(arguments, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        distributed.initialize(*arguments)


def test_nobody_at_the_coordinator_is_one_line_in_time(monkeypatch):
    monkeypatch.setattr(distributed, "_JOIN_SECONDS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"`coordinator` is {address}; it did not answer for 1 s .*: start pro"):
            distributed.initialize(address, 2, 1)
        assert time.monotonic() - began < 10


def test_alone_a_process_is_a_run_of_its_own(monkeypatch):
    joined = []
    monkeypatch.setattr(distributed, "_initialize", lambda **explicit: joined.append(explicit))
    distributed.initialize()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    distributed.initialize()
    assert not joined
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    distributed.initialize()
    assert joined == [{}]


def test_alone_there_is_nobody_to_agree_with():
    distributed.require_same({"a": 1})
    with pytest.raises(UserError, match=r"^mine$"), distributed.together():
        raise UserError("mine")
    assert distributed.from_first(lambda: "made", None) == "made" and distributed.is_main()
