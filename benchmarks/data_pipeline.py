"""Measures how fast training batches come: in memory, to the device, and decoded from disk.

    python -m benchmarks.data_pipeline --output=data_pipeline.json

Prints a table and writes it as JSON. The pictures are noise of CIFAR-10's shape; `--data=folder:PATH`, or any other
name that `hold_jax.data.load` takes, measures that set instead, loading time included.

`--train=configs/digits_hold.py` takes training steps of that config instead (on noise if its data are a download), and
tells for what share of the time the loop waits for a batch.
"""

import argparse
import functools
import importlib.util
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from hold_jax import data
from hold_jax.app import build
from hold_jax.app.config import read
from hold_jax.data.dataset import Dataset, array_dataset
from hold_jax.runtime.mesh import Devices
from hold_jax.training.state import init_state
from hold_jax.training.step import make_train_step

NUM_IN_MEMORY = 50_000
NUM_ON_DISK = 2_000


def _rate(iterator: Iterator[dict], batch_size: int, seconds: float) -> float:
    """Returns the examples per second of `iterator`, after two batches of warming up."""
    for _ in range(2):
        next(iterator)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        jax.block_until_ready(next(iterator)["x"])
        count += batch_size
    getattr(iterator, "close", lambda: None)()
    return count / elapsed


def _noise() -> Dataset:
    rng = np.random.Generator(np.random.Philox(key=0))
    x = rng.integers(0, 256, (NUM_IN_MEMORY, 32, 32, 3), dtype=np.uint8)
    return array_dataset("noise", "train", x, np.arange(NUM_IN_MEMORY) % 10, 10)


def _write_jpegs(folder: Path) -> None:
    (folder / "train").mkdir()
    for i, x in enumerate(_noise().source[:NUM_ON_DISK]):
        Image.fromarray(x).save(folder / "train" / f"{i:05d}.jpg", quality=75)


def _measure(dataset: Dataset, batch_size: int, seconds: float) -> list[dict]:
    def stream() -> Iterator[dict]:
        return data.batches(dataset, batch_size=batch_size, seed=0, flip=dataset.is_image)

    where = "memory" if dataset.in_memory else "disk"
    device = data.prefetch(stream(), jax.device_put)
    rows = [("host", stream()), ("prefetched to device", device)]
    return [
        {
            "data": dataset.name,
            "shape": "x".join(map(str, dataset.shape)),
            "from": where,
            "to": to,
            "batch_size": batch_size,
            "examples_per_second": round(_rate(iterator, batch_size, seconds)),
        }
        for to, iterator in rows
    ]


def _waiting(path: str, batch_size: int | None, steps: int) -> dict:
    """Trains as `hold_jax.loops.train.Trainer` does; returns the share of the time that passes in `next(feed)`.

    The loop does not wait for a step's result, so that it asks for batches as early as it can: an upper bound of the
    time that the devices wait.
    """
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = read(module.get_config())
    dataset = _noise() if config.data.name.startswith("tfds:") else build.dataset(config, "train")
    model, optimizer, devices = build.model(config, dataset.shape, 0), build.optimizer(config), Devices.all()
    step = make_train_step(model, build.loss(config), optimizer, ema_decay=build.training(config).decay)
    step = jax.jit(step, donate_argnums=0, out_shardings=devices.replicated)
    state = devices.init(functools.partial(init_state, model, optimizer, 0))
    batch_size = batch_size or config.training.batch_size
    feed = data.prefetch(data.batches(dataset, batch_size=batch_size, seed=0, flip=config.data.flip), devices.put)
    for _ in range(2):
        state, _ = step(state, next(feed))
    jax.block_until_ready(state)
    began, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(feed)
        waited += time.perf_counter() - asked
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began
    feed.close()
    return {
        "config": path,
        "data": dataset.name,
        "batch_size": batch_size,
        "steps": steps,
        "seconds_per_step": seconds / steps,
        "waiting": waited / seconds,
    }


def main() -> None:
    """Runs the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="where to write JSON")
    parser.add_argument("--data", help="a data set to measure instead of noise")
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each row")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--train", help="a config whose training loop to measure instead")
    parser.add_argument("--batch_size", type=int, help="of --train; None: the config's")
    parser.add_argument("--steps", type=int, default=50, help="of --train")
    args = parser.parse_args()
    machine = {"cpu_count": os.cpu_count(), "machine": platform.machine(), "backend": jax.default_backend()}
    if args.train:
        row = _waiting(args.train, args.batch_size, args.steps)
        print(
            f"{row['config']}, {row['data']}, batch {row['batch_size']}: "
            f"{1e3 * row['seconds_per_step']:.1f} ms a step, {100 * row['waiting']:.3f} % of the time waiting for data"
        )
        if args.output:
            Path(args.output).write_text(json.dumps({"machine": machine, "waiting": row}, indent=2) + "\n")
        return

    load_seconds = {}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if args.data:
            start = time.perf_counter()
            sets = [data.load(args.data, split="train")]
            load_seconds[args.data] = round(time.perf_counter() - start, 2)
        else:
            _write_jpegs(Path(folder))
            sets = [_noise(), data.load(f"folder:{folder}", split="train", memory_limit_bytes=1)]
            sets.append(data.load("swissroll", split="train"))
        for dataset in sets:
            for batch_size in args.batch_sizes:
                rows += _measure(dataset, batch_size, args.seconds)

    print(f"{'data':<24} {'shape':<10} {'from':<7} {'to':<21} {'batch':>6} {'examples/s':>11}")
    for row in rows:
        name = row["data"] if len(row["data"]) <= 24 else "..." + row["data"][-21:]
        print(
            f"{name:<24} {row['shape']:<10} {row['from']:<7} {row['to']:<21} {row['batch_size']:>6} "
            f"{row['examples_per_second']:>11,}"
        )
    for name, seconds in load_seconds.items():
        print(f"{name}: loaded in {seconds} s")
    if args.output:
        record = {"machine": machine, "load_seconds": load_seconds, "rows": rows}
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
