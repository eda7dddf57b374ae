"""Measures how fast training batches come: in memory, to the device, and decoded from disk.

    python -m benchmarks.data_pipeline --output=data_pipeline.json

Prints a table and writes it as JSON. The pictures are noise of CIFAR-10's shape; `--data=folder:PATH`, or any other
name that `hold_jax.data.load` takes, measures that set instead, loading time included.
"""

import argparse
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
from hold_jax.data.dataset import Dataset, array_dataset

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


def main() -> None:
    """Runs the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="where to write JSON")
    parser.add_argument("--data", help="a data set to measure instead of noise")
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each row")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 512])
    args = parser.parse_args()

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
        machine = {"cpu_count": os.cpu_count(), "machine": platform.machine(), "backend": jax.default_backend()}
        record = {"machine": machine, "load_seconds": load_seconds, "rows": rows}
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
