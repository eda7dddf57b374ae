"""What training survives: SIGKILL at random moments, damaged checkpoints, a full disk.

python -m benchmarks.faults [--kills 50] [--out docs/results/faults.json]

After each fault the same command is run again, and what it ends with is compared, bit by bit, with the parameters,
optimizer, average and log of a run that nothing disturbed. The model is tiny, so that checkpoints (one every 250 steps)
are as frequent as their writing allows and many kills fall into a write. Minutes on two cores.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from hold_jax.runtime.log import METRICS_FILE, read_jsonl
from hold_jax.training.checkpoint import DAMAGED_FOLDER, FOLDER

ROOT = Path(__file__).parent.parent
CONFIG = {
    "sde.order": 2,
    "data.name": "gaussians8",
    "data.size": 512,
    "model.parameterization": "eps",
    "model.conditioning": "time",
    "model.embedding": "positional",
    "model.width": 64,
    "model.hidden_layers": 2,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 10,
    "training.batch_size": 32,
    "training.steps_per_call": 25,
    "training.log_every": 250,
    "training.checkpoint_every": 250,
    "training.sample_every": 0,
    "training.report": False,
    "sampling.num_steps": 4,
    "sampling.frames": 0,
}
CLOCK = ("train/images_per_second", "train/tflops_per_second", "train/data_wait")


def command(workdir: Path, num_steps: int) -> list[str]:
    """The command of a run, the same at every attempt."""
    flags = [f"--config.{key}={value}" for key, value in (CONFIG | {"training.num_steps": num_steps}).items()]
    main = [sys.executable, str(ROOT / "main.py"), f"--config={ROOT / 'configs' / 'swissroll_hold.py'}"]
    return [*main, "--mode=train", f"--workdir={workdir}", *flags]


def start(workdir: Path, num_steps: int, cache: Path, file_limit: int | None = None) -> subprocess.Popen:
    """The command as a process; `file_limit`: the largest file it may write, in bytes."""
    process = subprocess.Popen(
        command(workdir, num_steps),
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if file_limit is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_limit, file_limit))
    return process


def finish(process: subprocess.Popen) -> str:
    """Waits for a run that must end well; what it said."""
    said = process.communicate(timeout=600)[1]
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {said[-2000:]}")
    return said


def outcome(workdir: Path, step: int) -> dict[str, bytes]:
    """Every array of the last checkpoint, and the log but for its clock."""
    with contextlib.closing(ocp.StandardCheckpointer()) as reader:
        tree = reader.restore(workdir / FOLDER / str(step) / "state")
    found: dict[str, bytes] = {}

    def add(name: str, node: object) -> None:
        if isinstance(node, dict | list | tuple):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            for key, value in items:
                add(f"{name}/{key}", value)
        elif node is not None:
            key = str(getattr(node, "dtype", "")).startswith("key")
            found[name] = np.asarray(node if not key else jax_key_data(node)).tobytes()

    add("", tree)
    log = [{k: v for k, v in line.items() if k not in CLOCK} for line in read_jsonl(workdir / METRICS_FILE)]
    return found | {"log": json.dumps(log).encode()}


def jax_key_data(key: object) -> object:
    """The words of a random key."""
    import jax

    return jax.random.key_data(key)


def kill_often(wanted: int, num_steps: int, folder: Path, reference: dict[str, bytes], rng: random.Random) -> dict:
    """Kills runs until `wanted` kills are done; each that comes to its end is compared, and another begun."""
    cache, kills, in_write, lost, ended, run = folder / "cache", 0, 0, 0, 0, 0
    workdir = folder / f"killed_{run}"
    while kills < wanted:
        process = start(workdir, num_steps, cache)
        # Half of the kills anywhere in the process's life, half once it trains.
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, 8))
        else:
            while process.poll() is None and not process.stderr.readline().startswith("step"):
                pass
            time.sleep(rng.uniform(0, 2))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode not in (0, -signal.SIGKILL):
            lost += 1
        checkpoints = workdir / FOLDER
        in_write += checkpoints.is_dir() and any("tmp" in path.name for path in checkpoints.iterdir())
        if process.returncode == 0:
            ended, run = ended + 1, run + 1
            lost += outcome(workdir, num_steps) != reference
            workdir = folder / f"killed_{run}"
        print(
            f"\rkills {kills}/{wanted}, {in_write} left a half-written checkpoint", end="", file=sys.stderr, flush=True
        )
    finish(start(workdir, num_steps, cache))
    lost += outcome(workdir, num_steps) != reference
    print(file=sys.stderr)
    return {"kills": kills, "during_a_write": in_write, "runs_compared": ended + 1, "lost": lost}


def _flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(len(data) * place), len(data) - 1)] ^= 1
    path.write_bytes(data)


def _cut(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


def _largest(checkpoint: Path) -> Path:
    return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _smallest_data(checkpoint: Path) -> Path:
    return min((p for p in checkpoint.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


def _manifest(checkpoint: Path) -> Path:
    return next(checkpoint.glob("state/manifest.ocdbt"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the data flipped, near its start": lambda c: _flip(_largest(c), 0.1),
    "a bit of the data flipped, in its middle": lambda c: _flip(_largest(c), 0.5),
    "a bit of the data flipped, near its end": lambda c: _flip(_largest(c), 0.9),
    "the last bit of the data flipped": lambda c: _flip(_largest(c), 1.0),
    "a bit of the smallest data file flipped": lambda c: _flip(_smallest_data(c), 0.5),
    "the data cut to nine tenths": lambda c: _cut(_largest(c), 0.9),
    "the data cut to half": lambda c: _cut(_largest(c), 0.5),
    "the data empty": lambda c: _cut(_largest(c), 0.0),
    "the data gone": lambda c: _largest(c).unlink(),
    "the data zeros": lambda c: _largest(c).write_bytes(bytes(_largest(c).stat().st_size)),
    "the smallest data file gone": lambda c: _smallest_data(c).unlink(),
    "a bit of the manifest flipped": lambda c: _flip(_manifest(c), 0.5),
    "the manifest cut": lambda c: _cut(_manifest(c), 0.5),
    "the manifest gone": lambda c: _manifest(c).unlink(),
    "the tree's metadata cut": lambda c: _cut(c / "state" / "_METADATA", 0.5),
    "a bit of the tree's metadata flipped": lambda c: _flip(c / "state" / "_METADATA", 0.3),
    "the tree's metadata gone": lambda c: (c / "state" / "_METADATA").unlink(),
    "the checkpoint's metadata cut": lambda c: _cut(c / "_CHECKPOINT_METADATA", 0.5),
    "the checkpoint's metadata gone": lambda c: (c / "_CHECKPOINT_METADATA").unlink(),
    "the fingerprints cut": lambda c: _cut(c / "fingerprints" / "metadata", 0.5),
    "a bit of the fingerprints flipped": lambda c: _flip(c / "fingerprints" / "metadata", 0.5),
    "the fingerprints gone": lambda c: shutil.rmtree(c / "fingerprints"),
    "the state gone": lambda c: shutil.rmtree(c / "state"),
    "everything gone but the folder": lambda c: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in c.iterdir()],
}


def damage_often(folder: Path) -> tuple[list[dict], int]:
    """Damages the newest checkpoint in every way there is, and goes on each time."""
    cache, steps, longer = folder / "cache", 500, 750
    whole, half = folder / "straight", folder / "half"
    finish(start(whole, longer, cache))
    finish(start(half, steps, cache))
    reference = outcome(whole, longer)
    rows, lost = [], 0
    for name, damage in DAMAGES.items():
        workdir = folder / "damaged"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(half, workdir)
        damage(workdir / FOLDER / str(steps))
        process = start(workdir, longer, cache)
        said = process.communicate(timeout=600)[1]
        same = process.returncode == 0 and outcome(workdir, longer) == reference
        aside = (workdir / DAMAGED_FOLDER).is_dir()
        lost += not same
        rows.append({"damage": name, "went_on_from": steps // 2 if aside else steps, "same_bits": same})
        print(f"{name:45}  from step {rows[-1]['went_on_from']}  {'same bits' if same else 'LOST: ' + said[-300:]}")
    return rows, lost


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path | None]:
    """A file system of `size` bytes; None where this user may not mount one."""
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name]
        if subprocess.run(mount, capture_output=True).returncode:
            yield None
            return
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=False)


def fill_disk(folder: Path) -> tuple[list[dict], int]:
    """Runs out of room: by a limit on files, and on a small file system; then there is room again."""
    cache, steps = folder / "cache", 750
    reference = outcome(folder / "straight", steps)
    rows, lost = [], 0

    def add(how: str, process: subprocess.Popen, again: Path, make_room: Callable[[], None] = lambda: None) -> None:
        nonlocal lost
        said = process.communicate(timeout=600)[1]
        make_room()
        line = [text for text in said.splitlines() if text.startswith("error: ")]
        clear = process.returncode == 2 and len(line) == 1
        finish(start(again, steps, cache))
        same = outcome(again, steps) == reference
        lost += not (clear and same)
        words = (line[0] if line else said[-300:]).replace(str(again), "WORKDIR")
        rows.append({"disk": how, "said": words, "clear": clear, "same_bits": same})
        print(f"{how}: {rows[-1]['said']}\n  then {'the same bits' if same else 'LOST'}")

    for limit in (20_000, 60_000, 1_000):
        workdir = folder / f"limit_{limit}"
        add(f"no file above {limit:,} bytes", start(workdir, steps, cache, file_limit=limit), workdir)
    with small_disk(1 << 22) as disk:
        if disk is None:
            print("small file system: not allowed here, left out")
            return rows, lost
        ballast = disk / "ballast"
        for room in (300_000, 100_000, 40_000, 20_000, 5_000):
            workdir = disk / "run"
            shutil.rmtree(workdir, ignore_errors=True)
            ballast.write_bytes(bytes((1 << 22) - room))
            add(f"a disk with {room:,} bytes left", start(workdir, steps, cache), workdir, ballast.unlink)
    return rows, lost


def main() -> None:
    """Runs all three, prints, writes JSON; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=10_000, help="of each run that is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "faults.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        damages, lost_by_damage = damage_often(folder)
        disks, lost_by_disk = fill_disk(folder)
        finish(start(folder / "reference", options.steps, folder / "cache"))
        reference = outcome(folder / "reference", options.steps)
        kills = kill_often(options.kills, options.steps, folder, reference, random.Random(options.seed))
    lost = lost_by_damage + lost_by_disk + kills["lost"]
    options.out.write_text(json.dumps({"kills": kills, "damages": damages, "disks": disks}, indent=1) + "\n")
    print(
        f"survived: {kills['kills']} kills ({kills['during_a_write']} left a half-written checkpoint), "
        f"{len(damages)} damages, {len(disks)} full disks; lost: {lost}"
    )
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
