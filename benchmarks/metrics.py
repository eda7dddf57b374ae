"""Time and peak memory of every figure of hold_jax.metrics, on features of the size of Inception's.

python -m benchmarks.metrics --output=metrics.json

Each row runs in a process of its own, so that its peak is its own; `inputs` is what the process holds before it
starts, `peak` what it holds at most, inputs among it. The row `all` runs those above it in one process, one after
the other, and is what the bar is about: 60 s and 4 GB on two cores that do nothing else. The load average says
whether they did. On busy cores the threads of BLAS wait for each other, and OPENBLAS_NUM_THREADS=1 is the faster:
at a load of 7, `all` took 108 s so, and 221 s without.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hold_jax.metrics.frechet import frechet_distance, frechet_jackknife, moments
from hold_jax.metrics.inception_score import inception_score
from hold_jax.metrics.kernel import kernel_distance
from hold_jax.metrics.neighbors import nearest, neighbor_figures

_CHUNK = 5000


def features(seed: int, num: int, dim: int, shift: float) -> np.ndarray:
    """`(num, dim)` float32, not negative, with a spectrum that decays, as after average pooling of rectified values."""
    mixing = np.random.default_rng(0).standard_normal((256, dim), dtype=np.float32)
    mixing *= np.arange(1, 257, dtype=np.float32)[:, None] ** -0.7
    rng = np.random.default_rng(seed)
    x = np.empty((num, dim), np.float32)
    for start in range(0, num, _CHUNK):
        rows = x[start : start + _CHUNK]
        np.matmul(rng.standard_normal((len(rows), 256), dtype=np.float32), mixing, out=rows)
        rows += 0.3 * rng.standard_normal(rows.shape, dtype=np.float32) + np.float32(shift)
        np.maximum(rows, 0.0, out=rows)
    return x


def logits(num: int, classes: int) -> np.ndarray:
    """`(num, classes)` float32, about as sure as a classifier of ImageNet."""
    return 3.0 * np.random.default_rng(3).standard_normal((num, classes), dtype=np.float32)


def peak_bytes() -> int:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rows(num: int, dim: int, classes: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """What prepares each row: makes its inputs and returns what is timed."""

    def pair() -> tuple[np.ndarray, np.ndarray]:
        return features(1, num, dim, 0.0), features(2, num, dim, 0.05)

    def of_moments() -> Callable[[], object]:
        x, y = pair()
        return lambda: (moments(x), moments(y))

    def of_distance() -> Callable[[], object]:
        a, b = (moments(x) for x in pair())
        return lambda: frechet_distance(a, b)

    def of_kernel() -> Callable[[], object]:
        x, y = pair()
        return lambda: kernel_distance(x, y, subset_size=min(1000, num))

    def of_score() -> Callable[[], object]:
        values = logits(num, classes)
        return lambda: inception_score(values)

    def of_neighbors() -> Callable[[], object]:
        x, y = pair()
        return lambda: neighbor_figures(x, y)

    def of_all() -> Callable[[], object]:
        x, y = pair()
        values = logits(num, classes)

        def run() -> None:
            frechet_distance(moments(x), moments(y))
            kernel_distance(x, y, subset_size=min(1000, num))
            inception_score(values)
            neighbor_figures(x, y)

        return run

    def of_jackknife() -> Callable[[], object]:
        x, y = pair()
        reference = moments(y)
        return lambda: frechet_jackknife(x, reference)

    def of_nearest() -> Callable[[], object]:
        x, y = pair()
        return lambda: nearest(x[:100], y, 5)

    return {
        "moments of both": of_moments,
        "Frechet distance": of_distance,
        "kernel distance": of_kernel,
        "inception score": of_score,
        "neighbor figures": of_neighbors,
        "all": of_all,
        "Frechet jackknife": of_jackknife,
        "nearest of 100": of_nearest,
    }


def main() -> None:
    """Prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=50_000, help="features in each set")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1008)
    parser.add_argument("--repeats", type=int, default=1, help="processes per row; the fastest is reported")
    parser.add_argument("--rows", default=None, help="names, comma separated; all by default")
    parser.add_argument("--run", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args = parser.parse_args()
    table = rows(args.num, args.dim, args.classes)

    if args.run:
        timed = table[args.run]()
        inputs, began, cpu = peak_bytes(), time.perf_counter(), time.process_time()
        timed()
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps(took | {"inputs_gb": inputs / 1e9, "peak_gb": peak_bytes() / 1e9}))
        return

    size = [f"--num={args.num}", f"--dim={args.dim}", f"--classes={args.classes}"]
    results = {"num": args.num, "dim": args.dim, "classes": args.classes, "cores": os.cpu_count(), "rows": {}}
    print(f"{args.num:,} x {args.dim} float32, {args.classes} classes, {os.cpu_count()} cores")
    print(f"{'':<20}{'seconds':>10}{'CPU s':>10}{'inputs GB':>12}{'peak GB':>10}{'load':>8}")
    for name in args.rows.split(",") if args.rows else table:
        found = []
        for _ in range(args.repeats):
            load = os.getloadavg()[0]
            command = [sys.executable, "-m", "benchmarks.metrics", f"--run={name}", *size]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(out) | {"load_average_before": load})
        best = min(found, key=lambda r: r["seconds"])
        results["rows"][name] = best | {"all_seconds": [r["seconds"] for r in found]}
        print(
            f"{name:<20}{best['seconds']:>10.2f}{best['cpu_seconds']:>10.2f}{best['inputs_gb']:>12.2f}"
            f"{best['peak_gb']:>10.2f}{best['load_average_before']:>8.2f}",
            flush=True,
        )
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
