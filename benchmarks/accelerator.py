"""The first minutes on an accelerator, by itself: what works, how fast it is, and a model trained on it.

    python -m benchmarks.accelerator --minutes=9 --data=npz:cifar10.npz --inception=inception.npz
    python -m benchmarks.accelerator --minutes=9 --stages train weights fid     # later: go on with these
    python -m benchmarks.accelerator --toy --minutes=30                         # everything small, on any machine

Stages, in order of worth; each command is a process of its own, so that one that fails or takes too long costs only
itself:

  modes      configs/digits_hold.py: train, go on, sample, eval, stats
  compile    step, sampler and likelihood of --config, compiled for this machine: memory and FLOPs
  speed      the step in bfloat16 and float32, over a measured matrix product, and beside PyTorch where it is installed
  sampling   pictures a second of sampler and likelihood in bfloat16, and the memory in use at most
  inception  pictures a second of the Inception network
  profile    the operations that take most of the time of a step
  tests      the package's tests of numbers, on this machine: a line for each
  train      --fast, for the time that is left but a fifth; a second call goes on from there
  weights    its averaged parameters in bfloat16, compressed: weights.safetensors.xz, for hold_jax.load after `xz -d`
  fid        it at orders 1 to 4 by five samplers with 10, 20, 35 and 50 network calls (`benchmarks.fid_orders`); pixels
             are compared where --inception is missing

With --at_once=3 three run at a time, since compiling takes most of the time: training first, the others in this order
beside it, and all stand still while one of them measures (`benchmarks.alone`). Each gets a part of the card's memory,
since XLA's search for fast convolutions takes all there is.

--output is a small folder: a log a stage, JSON, weights, and summary.json, rewritten after every command. A command
that succeeded is not run again (train and weights always are). What is large, work directories and compiled programs,
is in OUTPUT-work. Without --data the CIFAR-10 configs read the copy of TensorFlow Datasets.
"""

import argparse
import collections
import concurrent.futures
import functools
import gzip
import importlib.util
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.alone import FOLDER, alone, nobody_measures, signal_others

TRAINED = ("train", "weights", "fid")
NUMBERS = [
    f"tests/{name}"
    for name in (
        "test_kernels.py",
        "test_sde.py",
        "test_losses.py",
        "test_parameterization.py",
        "test_model.py",
        "test_likelihood.py",
        "nn",
        "samplers",
        "metrics",
        "numerics",
        "training",
    )
]
GRACE = 20.0  # seconds for a run to write its checkpoint after SIGTERM
TOY_NETWORK = [
    "--config.data.name=digits",
    "--config.data.image_size=8",
    "--config.data.flip=False",
    "--config.model.channels=8",
    "--config.model.channel_multipliers=(1,)",
    "--config.model.num_res_blocks=1",
    "--config.model.attention_resolutions=()",
    "--config.model.progressive_input=none",
]


class Stage(NamedTuple):
    """Commands to run in turn.

    Attributes:
      name: of the stage, its log and its entry in the summary.
      seconds: that it takes at most, of nine minutes.
      commands: arguments of the interpreter.
      again: whether it runs again if it succeeded before.
    """

    name: str
    seconds: float
    commands: list[list[str]]
    again: bool = False


class Session:
    """Runs stages until the time is over, and writes the summary."""

    def __init__(self, output: Path, minutes: float) -> None:
        self.output, self.share = output, minutes / 9
        self.end = time.monotonic() + 60 * minutes
        self.file, self.lock = output / "summary.json", threading.Lock()
        self.found: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def run(self, stage: Stage, deadline: float) -> None:
        """Runs those commands of a stage that did not succeed before; SIGTERM ends what runs at the deadline."""
        with self.lock:
            entry = self.found.setdefault(stage.name, {"done": []})
        began, entry["status"] = time.monotonic(), "done"
        deadline = min(deadline, began + stage.seconds * self.share)
        with open(self.output / f"{stage.name}.log", "a") as log:
            for command in stage.commands:
                key = " ".join(command)
                if key in entry["done"] and not stage.again:
                    continue
                status = _run(command, deadline - time.monotonic(), log)
                if status == "done":
                    entry["done"] = [*dict.fromkeys([*entry["done"], key])]
                else:
                    entry["status"] = status
                self._write()
        entry["seconds"] = round(entry.get("seconds", 0.0) + time.monotonic() - began, 1)
        self._write()
        print(f"{stage.name:<10} {entry['status']:<14} {entry['seconds']:>6.1f} s", flush=True)

    def _write(self) -> None:
        with self.lock:
            self.file.write_text(json.dumps(self.found, indent=1) + "\n")


def _run(command: list[str], seconds: float, log: Any) -> str:
    if seconds <= 0:
        return "no time left"
    begin = functools.partial(subprocess.Popen, [sys.executable, *command], stdout=log, stderr=subprocess.STDOUT)
    folder = os.environ.get(FOLDER)
    if folder is None:
        return _waited(begin(), seconds)
    with nobody_measures(Path(folder)):
        child = begin(process_group=0)  # a group of its own, to be stopped
        member = Path(folder, str(child.pid))
        member.touch()
    try:
        return _waited(child, seconds)
    finally:
        member.unlink()
        if child.returncode == -signal.SIGKILL:  # perhaps while the others stood still for it
            signal_others(Path(folder), signal.SIGCONT)


def _waited(child: subprocess.Popen, seconds: float) -> str:
    try:
        code = child.wait(seconds)
        return f"failed with {code}" if code else "done"
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return "stopped"


def stages(args: argparse.Namespace, work: Path) -> list[Stage]:
    """All stages in order."""
    out, toy = args.output, args.toy
    data = TOY_NETWORK if toy else [f"--config.data.name={args.data}"] if args.data else []
    timed, fast = [f"--config={args.config}", *data], [f"--config={args.fast}", *data]
    shape, batch = ("8x8x1", "4") if toy else ("32x32x3", "128")
    part = ["-m", "benchmarks.accelerator", f"--output={out}", f"--shape={shape}", f"--batch_size={batch}"]

    digits = [
        "--mode=train",
        "--config=configs/digits_hold.py",
        *([*TOY_NETWORK[3:], "--config.optimizer.warmup_steps=5"] if toy else []),
    ]
    digits += ["--config.training.report=False", f"--workdir={work / 'digits'}"]
    steps = (10, 20) if toy else (500, 1000)
    every = [f"--config.training.{key}={steps[0]}" for key in ("log_every", "sample_every", "checkpoint_every")]
    few = ["--config.sampling.num_samples=16", "--config.sampling.batch_size=16"] if toy else []
    others = [
        ["main.py", f"--mode={mode}", f"--workdir={work / 'digits'}", *few] for mode in ("sample", "eval", "stats")
    ]
    modes = [["main.py", *digits, *every, *few, f"--config.training.num_steps={n}"] for n in steps] + others

    compiled = [
        "-m",
        "benchmarks.aot",
        *timed,
        "--topologies",
        "local",
        f"--shape={shape}",
        "--batch_per_device",
        batch,
    ]
    compiled += ["--dtypes", "bfloat16", *([] if toy else ["float32"]), f"--output={out / 'compile.json'}"]
    compiled += ["--programs", "step", *([] if toy else ["sample", "likelihood"])]

    speed = ["-m", "benchmarks.train_step", *timed, "--shape", shape, "--batch_sizes", batch, "--parts", "step"]
    speed += [f"--output={out / 'speed.json'}", *(["--dtypes", "float32", "--repeats", "2"] if toy else [])]
    speed += ["--torch"] if importlib.util.find_spec("torch") and not toy else []

    images = ["--batch_size=2", "--repeats=1"] if toy else ["--batch_size=256"]
    inception = ["-m", "benchmarks.inception", *images, f"--output={out / 'inception.json'}"]

    short = {
        "steps_per_call": 1,
        "num_steps": 20,
        "log_every": 10,
        "checkpoint_every": 20,
        "profile": 3,
        "report": False,
    }
    profile = ["main.py", "--mode=train", *fast, *few, f"--workdir={work / 'profiled'}"]
    profile += [f"--config.training.{key}={value}" for key, value in short.items()]
    profile += ["--config.training.batch_size=32"] if toy else []

    small = {"num_steps": 20, "steps_per_call": 5, "log_every": 10, "checkpoint_every": 10, "batch_size": 32}
    length = [f"--config.training.{key}={value}" for key, value in small.items()] if toy else []
    train = ["main.py", "--mode=train", *fast, *length, *few, f"--workdir={work / 'fast'}"]

    fid = ["-m", "benchmarks.fid_orders", f"--workdir={work / 'fast'}", f"--output={out / 'fid.json'}"]
    fid += [f"--inception={args.inception}"] if args.inception else []
    fid += [f"--stats={args.stats}"] if args.stats else []
    fid += (
        ["--num=99", "--batch_size=33", "--calls=4", "--orders", "1", "2", "--processes=1"] if toy else ["--num=2500"]
    )
    return [
        Stage("modes", 150, modes),
        Stage("compile", 180, [compiled]),
        Stage("speed", 150, [speed]),
        Stage(
            "sampling", 120, [[*part, "--part=sampling", *timed, *([] if toy else ["--config.model.dtype=bfloat16"])]]
        ),
        Stage("inception", 60, [inception]),
        Stage("profile", 90, [profile, [*part, "--part=profile"]]),
        Stage("tests", 180, [[*part, "--part=tests", *(["--toy"] if toy else [])]]),
        Stage("train", 540, [train], again=True),
        Stage("weights", 60, [[*part, "--part=weights"]], again=True),
        Stage("fid", 540, [fid]),
    ]


# --- Parts that no other command has ------------------------------------------------------------


def sampling(args: argparse.Namespace, changes: list[str]) -> dict[str, float]:
    """Pictures a second of sampler and likelihood with untrained parameters, and the memory in use at most."""
    import jax
    import numpy as np

    from benchmarks.aot import program
    from hold_jax.app import build, flags
    from hold_jax.app.config import Config
    from hold_jax.runtime.mesh import Devices

    config = Config().changed(flags.read(args.config, changes).values)
    shape, devices = tuple(map(int, args.shape.split("x"))), Devices.all()
    params = jax.jit(build.model(config, shape, 0).init, out_shardings=devices.replicated)(jax.random.key(0))
    found: dict[str, float] = {"batch_size": args.batch_size}
    for what in ("sample", "likelihood"):
        function, (_, *rest) = program(config, what, shape, args.batch_size, devices)
        inputs = jax.tree.map(lambda a: jax.device_put(np.zeros(a.shape, a.dtype), a.sharding), rest)
        jax.block_until_ready(function(params, *inputs))
        with alone():
            began = time.perf_counter()
            jax.block_until_ready(function(params, *inputs))
            found[f"{what}_images_per_second"] = args.batch_size / (time.perf_counter() - began)
    memory = jax.devices()[0].memory_stats() or {}
    return found | {"peak_bytes": float(memory.get("peak_bytes_in_use", 0))}


def top_operations(folder: Path, count: int = 20) -> list[dict[str, Any]]:
    """Names, milliseconds and calls of the operations with the largest sums in the last trace of a folder."""
    trace = json.loads(gzip.decompress(sorted(folder.rglob("*.trace.json.gz"))[-1].read_bytes()))["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in trace if event.get("name") == "process_name"}
    on_device = {pid for pid, name in names.items() if "/device:" in name} or set(names)
    total, calls = collections.Counter(), collections.Counter()
    for event in trace:
        # A name with a dollar sign is a Python function of the host.
        if event.get("ph") == "X" and event["pid"] in on_device and not event["name"].startswith("$"):
            total[event["name"]] += event.get("dur", 0)
            calls[event["name"]] += 1
    return [{"name": name[:80], "ms": us / 1e3, "calls": calls[name]} for name, us in total.most_common(count)]


def write_weights(run: Path, path: Path) -> dict[str, float]:
    """Writes the averaged parameters of a run, rounded to bfloat16 and compressed, as a file of `hold_jax.load`."""
    from hold_jax.app import packed
    from hold_jax.convert.__main__ import main as convert

    full = run / "weights.safetensors"
    convert(["--to=hold_jax", f"--input={run}", f"--output={full}"])
    model = packed.read(full)
    packed.write(full, model, "bfloat16")
    path.write_bytes(lzma.compress(full.read_bytes()))
    return {"step": model.step, "bytes": path.stat().st_size, "bytes_before_compression": full.stat().st_size}


def tests(args: argparse.Namespace) -> dict[str, int]:
    """Runs tests of numbers by JAX's default backend; each prints a line, since their time may end before they do."""
    import jax

    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    files = NUMBERS[:1] if args.toy else NUMBERS
    command = [sys.executable, "-m", "pytest", "-n", "4", "-vv", "--tb=short", *files]
    return {"exit_code": subprocess.call(command, env=os.environ | {"HOLD_JAX_TEST_PLATFORM": platform})}


def _work(output: Path) -> Path:
    return output.with_name(f"{output.name}-work")


PARTS: dict[str, Callable[[argparse.Namespace, list[str]], Any]] = {
    "sampling": sampling,
    "tests": lambda args, changes: tests(args),
    "profile": lambda args, changes: top_operations(_work(args.output) / "profiled" / "profile"),
    "weights": lambda args, changes: write_weights(_work(args.output) / "fast", args.output / "weights.safetensors.xz"),
}


def main() -> None:
    """Runs the stages, or one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["modes", "compile", "speed", "sampling", "inception", "profile", "tests", *TRAINED]
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--output", type=Path, default=Path("accelerator"), help="folder")
    parser.add_argument("--config", default="configs/cifar10_hold.py", help="the model that is timed")
    parser.add_argument("--fast", default="configs/cifar10_fast.py", help="the model that is trained")
    parser.add_argument("--data", help="data.name of both, as npz:PATH or folder:PATH")
    parser.add_argument("--inception", help="weights of the Inception network for fid, .pth or .npz")
    parser.add_argument("--stats", help="statistics of the training data for fid, such as pytorch-fid's")
    parser.add_argument("--stages", nargs="+", choices=names, default=names)
    parser.add_argument("--at_once", type=int, default=1, help="processes at a time")
    parser.add_argument("--toy", action="store_true", help="everything small, to test this script")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--shape", default="32x32x3", help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=int, default=128, help=argparse.SUPPRESS)
    args, changes = parser.parse_known_args()
    if args.part:
        found = PARTS[args.part](args, changes)
        (args.output / f"{args.part}.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    if changes:
        parser.error(f"unknown argument {changes[0]}")
    args.output = args.output.resolve()
    work = _work(args.output)
    for folder in (args.output, work):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch takes memory on the same card
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(work / "compiled"))
    session = Session(args.output, args.minutes)
    print(f"{args.minutes:g} minutes, results in {args.output}", flush=True)
    chosen = [stage for stage in stages(args, work) if stage.name in args.stages]
    lanes = [[stage] for stage in chosen if stage.name not in TRAINED]
    # Of the network that is trained, one after the other; beside other stages from the beginning.
    lanes.insert(len(lanes) if args.at_once == 1 else 0, [stage for stage in chosen if stage.name in TRAINED])

    def run(lane: list[Stage]) -> None:
        for stage in lane:
            reserved = 12 * args.minutes if stage.name == "train" else 0.0  # a fifth of the whole, for weights and fid
            session.run(stage, session.end - reserved)
            if stage.name == "train":
                session.found.pop("fid", None)  # of fewer steps

    if args.at_once > 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / args.at_once:.2f}")
        groups = work / "groups"
        shutil.rmtree(groups, ignore_errors=True)
        groups.mkdir()
        os.environ[FOLDER] = str(groups)
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(run, lanes))


if __name__ == "__main__":
    main()
