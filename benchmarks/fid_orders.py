"""FID of one trained network at several orders, by several samplers, against network calls.

    python -m benchmarks.fid_orders --workdir=DIR --inception=FILE --stats=FILE --output=fid_orders.json

The network must be a denoiser of the effective noise (model.parameterization=sufficient), which samples by processes of
any order. It is compiled once an order; the samplers' loops run in Python around it. The distances are computed by
other processes meanwhile. Calls include the final denoising; those of the Poisson midpoint are a mean.

Each row is of --num samples, with the jackknife's standard error of another draw of samples, and the bias: how much
more of it more samples would take (`metrics.frechet`). `data` among the samplers is as many random training pictures;
without it, and with --stats, the training data need not be there. Compare figures at equal --num only.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import functools
import itertools
import json
import multiprocessing
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import hold_jax
from benchmarks.samplers import SUITE, steps_for
from hold_jax import sde
from hold_jax.app import build
from hold_jax.data.dataset import array_dataset
from hold_jax.evaluation import reference
from hold_jax.evaluation.features import features_of
from hold_jax.evaluation.inception import inception
from hold_jax.evaluation.pixels import pixels
from hold_jax.loops.conditions import NONE
from hold_jax.loops.tune import Network
from hold_jax.metrics.frechet import frechet_jackknife, moments
from hold_jax.runtime.mesh import Devices

SAMPLERS = [
    "data",
    "gaussian_fitted:log",
    "heun:karras",
    "dpmpp_2m:log",
    "poisson_midpoint (K=16):log",
    "lie_trotter:log",
]
PARTS = 4  # of the jackknife


def main() -> None:
    """Prints a table; writes JSON after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--inception", help="weights of the Inception network; without them pixels are compared")
    parser.add_argument("--stats", type=Path, help="statistics of the training data; without them they are computed")
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--calls", type=int, nargs="+", default=[20, 50, 10, 35], help="in the order of their worth")
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, metavar="NAME:GRID")
    parser.add_argument("--num", type=int, default=10_000, help="samples of each row")
    parser.add_argument("--batch_size", type=int, default=2500, help="samples drawn at once")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 2), help="for the distances")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no row begins later")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()

    end = time.monotonic() + 60 * args.minutes
    trained = hold_jax.load(args.workdir)
    with_data, args.samplers = "data" in args.samplers, [label for label in args.samplers if label != "data"]
    network = inception(args.inception) if args.inception else pixels(trained.model.statistics)

    def features(x: np.ndarray) -> np.ndarray:
        data = array_dataset("samples", "train", x, None, 0)
        return np.asarray(features_of(network, data, Devices.all(), per_device=250).values)

    @functools.cache
    def pictures() -> Any:
        return build.dataset(trained.config, "train").source

    target = reference.load(args.stats, "stats").moments if args.stats else moments(features(pictures()[:]))
    settings = build.sampling(trained.config.changed({"sampling.frames": 0}))

    @functools.cache
    def predictor(order: int) -> Network:
        model = dataclasses.replace(trained.model, sde=sde.hold(order=order))
        return Network(model, trained.params, settings, NONE, args.batch_size)

    def draw(order: int, label: str, calls: int) -> np.ndarray | None:
        name, grid = label.split(":")
        sampler, per_step = SUITE[name]
        changed = dataclasses.replace(settings, sampler=sampler, grid=grid, num_steps=steps_for(calls, per_step))
        blocks = [predictor(order).draw(changed, block) for block in range(-(-args.num // args.batch_size))]
        return None if any(x is None for x in blocks) else np.concatenate(blocks)[: args.num]

    rows: list[dict[str, Any]] = []
    about = {
        "command": shlex.join(["python", "-m", "benchmarks.fid_orders", *sys.argv[1:]]),
        "step": trained.step,
        "features": network.name,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }

    pending: list[tuple[dict[str, Any], concurrent.futures.Future]] = []

    def collect(*, wait: bool) -> None:
        while pending and (wait or pending[0][1].done()):
            row, future = pending.pop(0)
            distance = future.result()
            rows.append(row | {"fid": distance.distance, "error": distance.error, "bias": distance.bias})
            print(json.dumps(rows[-1]), flush=True)
            if args.output:
                args.output.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")

    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the processes
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.processes, context) as pool:

        def compare(row: dict[str, Any], x: np.ndarray, drawn: float) -> None:
            began = time.monotonic()
            values = features(x)
            row |= {"num": len(x), "seconds": drawn, "feature_seconds": round(time.monotonic() - began, 2)}
            pending.append((row, pool.submit(frechet_jackknife, values, target, num_parts=PARTS)))
            collect(wait=False)

        if with_data:
            chosen = np.random.default_rng(0).permutation(len(pictures()))[: args.num]
            compare({"order": None, "sampler": "data", "calls": 0}, pictures()[np.sort(chosen)], 0.0)
        for calls, label, order in itertools.product(args.calls, args.samplers, args.orders):
            if time.monotonic() > end:
                break
            began = time.monotonic()
            x = draw(order, label, calls)
            if x is None:
                print(f"order {order}, {label}, {calls} calls: samples that are not finite", flush=True)
                continue
            compare({"order": order, "sampler": label, "calls": calls}, x, round(time.monotonic() - began, 2))
        collect(wait=True)
    print(table(rows, args))


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """One line a sampler and order, one column a number of calls."""
    cells = {(r["sampler"], r["order"], r["calls"]): f"{r['fid']:8.2f} +- {r['error']:<5.2f}" for r in rows}
    numbers = sorted(args.calls)
    lines = [f"{'sampler':<30}{'order':>5}" + "".join(f"{n:>11} calls" for n in numbers)]
    for label, order in itertools.product(args.samplers, args.orders):
        lines.append(f"{label:<30}{order:>5}" + "".join(f"{cells.get((label, order, n), '-'):>17}" for n in numbers))
    if of_data := cells.get(("data", None, 0)):
        lines.append(f"{'data':<35}{of_data:>17}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
