"""What the compilers make of a config's programs on TPUs and NVIDIA GPUs that are not there.

    pip install --target DIR --no-deps $(python benchmarks/packages.py)   # the compilers; they need no device
    export PYTHONPATH=DIR
    python -m benchmarks.aot --config=configs/cifar10_hold.py --topologies v5e:4x4 v5e:2x2@1 --dtypes bfloat16 float32
    python -m benchmarks.aot --config=configs/cifar10_hold.py --topologies h100:1x1x8 --programs step sample

Nothing runs on a device. A topology is KIND:SHAPE, the kinds v4, v5e, v5p, v6e (chips along each axis of the torus) and
h100 (partitions x hosts x cards); @N takes its first N devices; `local` is this machine. --config.a.b=value changes a
key, as in main.py.

Programs: the state at step 0 (start), the training step, the second half of it alone (update), the sampler, the
likelihood. Each is compiled by a process of its own. --stop_early ends it when the optimized HLO and the memory report
are written: the code generation that follows takes longest and changes neither, but without it there are no cycles.
--keep keeps the HLO; a program whose HLO is there is read, not compiled again.

Columns: GiB a device, of arguments (the state) and in all; FLOPs of products on a device; the roofline's milliseconds,
the larger of FLOPs over the published rate of their type and of bytes over the memory's, and the utilization of the
bfloat16 rate that it allows; millions of cycles by the TPU compiler's own estimate, in all and by part (collectives
have no estimate); kernels in all and of the update; collectives with the bytes of their results on a device.
These are no measurements: no clock, no contention, no input, no launch of kernels. The bytes are an upper bound.
Loops with an unknown number of passes count once: the likelihood's figures are of one step of its solver.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import hlo


class Chip(NamedTuple):
    """Published rates of what JAX calls a device (docs/scaling.md has sources): FLOP/s by type, bytes/s."""

    bfloat16: float
    tf32: float
    float32: float
    memory: float


def _tpu(bfloat16: float, memory: float) -> Chip:
    # One pass of float32 factors rounds them to bfloat16; six passes multiply float32 numbers.
    return Chip(bfloat16, bfloat16, bfloat16 / 6, memory)


CHIPS = {
    "v4": _tpu(275e12, 1228e9),
    "v5e": _tpu(197e12, 819e9),
    "v5p": _tpu(459e12, 2765e9),
    "v6e": _tpu(918e12, 1640e9),
    "h100": Chip(989e12, 495e12, 67e12, 3350e9),
}
PROGRAMS = ("start", "step", "update", "sample", "likelihood")


# --- One program, in a process of its own -------------------------------------------------------


def program(config: Any, what: str, shape: tuple[int, ...], batch_size: int, devices: Any) -> tuple[Any, tuple]:
    """A jitted function of the config and the abstract arguments to compile it for."""
    import dataclasses

    import jax
    import numpy as np

    from hold_jax import likelihood
    from hold_jax.app import build
    from hold_jax.condition import Condition
    from hold_jax.loops.draw import make_draw
    from hold_jax.training.step import Program

    def spread(dims: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *dims), dtype, sharding=devices.batch())

    model = build.model(config, shape, 10 if config.model.class_conditional else 0)
    t = build.training(config)
    training = Program.make(
        model,
        build.loss(config),
        build.optimizer(config),
        devices,
        seed=0,
        ema_decay=t.decay,
        accumulation_steps=t.accumulation_steps,
        gradient_dtype=t.gradient_dtype,
    )
    if what == "start":
        return training.start, ()
    if what == "step":
        return training.step, (training.abstract(), {"x": spread(shape, np.uint8), "label": spread((), np.int32)})
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=devices.replicated),
        training.abstract_tree().params,
    )
    if what == "update":
        value = jax.ShapeDtypeStruct((), np.float32, sharding=devices.replicated)
        return training.update, (training.abstract(), params, value)
    if what == "sample":
        settings = dataclasses.replace(build.sampling(config), batch_size=batch_size, frames=0)
        return make_draw(model, settings, devices), (params, jax.ShapeDtypeStruct((batch_size,), np.int32), Condition())

    def bits(params: Any, x: jax.Array, index: jax.Array) -> Any:
        data = model.to_model(x)
        found = likelihood.bits_per_dim(
            model.sde, model.eps_fn(params), data, key=jax.random.key(0), index=index, bin_width=2 / 255
        )
        return found.bpd, found.nfe

    compiled = devices.jit(bits, out_shardings=devices.replicated)
    return compiled, (params, spread(shape, np.uint8), spread((), np.int32))


def compile_one(task: dict[str, Any]) -> None:
    """Compiles the program of `task` and writes what was found to its folder, step by step."""
    from benchmarks import topologies

    local = task["topology"] == "local"
    if not local:
        topologies.prepare()
        if not topologies.available(task["topology"]):
            raise SystemExit(f"no compiler for {task['topology']}; to get it: {topologies.HOW}")

    from hold_jax.app import flags
    from hold_jax.app.config import Config

    given = flags.read(task["config"], task["changes"])
    config = Config().changed(given.values | {"model.dtype": task["dtype"]})
    devices = topologies.devices(task["topology"])
    batch_size = task["batch_per_device"] * devices.mesh.size
    function, args = program(config, task["program"], tuple(task["shape"]), batch_size, devices)
    times = [time.perf_counter()]
    traced = function.trace(*args)
    times.append(time.perf_counter())
    lowered = traced.lower(lowering_platforms=None if local else (topologies.platform(task["topology"]),))
    times.append(time.perf_counter())
    row = {"devices": devices.mesh.size, "batch_size": batch_size, "trace": times[1] - times[0]}
    row |= {"lower": times[2] - times[1], "stablehlo": lowered.as_text().count(" = stablehlo.")}
    folder = Path(task["folder"])
    (folder / "row.json").write_text(json.dumps(row))
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    row |= {"compile": time.perf_counter() - times[2], "argument_bytes": memory.argument_size_in_bytes}
    row["all_bytes"] = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    (folder / "row.json").write_text(json.dumps(row))
    (folder / "program.hlo").write_text(compiled.as_text())


def compile_in_child(task: dict[str, Any], stop_early: bool) -> dict[str, Any]:
    """The row of a program; one that does not compile has the compiler's last line as "error"."""
    folder = Path(task["folder"])
    early = _read_early(folder) if stop_early else None
    if not (folder / "program.hlo").exists() and early is None:
        environment = dict(os.environ)
        if task["topology"] != "local":
            environment["JAX_PLATFORMS"] = "cpu"
        if stop_early:
            environment["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        with open(folder / "log.txt", "w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.aot", "--task", json.dumps(task)],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            while child.poll() is None and early is None:
                time.sleep(1.0)
                early = _read_early(folder) if stop_early else None
            if early is not None:
                child.kill()
                child.wait()
    file = folder / "row.json"
    row = json.loads(file.read_text()) if file.exists() else {}
    if (folder / "program.hlo").exists():
        return row | hlo.cost((folder / "program.hlo").read_text())
    if early is not None:
        return row | early
    lines = (folder / "log.txt").read_text().strip().splitlines() or ["no message"]
    return row | {"error": lines[-1][:500]}


def _size(path: Path) -> int:
    return path.stat().st_size


def _read_early(folder: Path) -> dict[str, Any] | None:
    """What the dump of the program says, None before its memory report is complete."""
    row = folder / "row.json"
    if not row.exists():
        return None
    # What was compiled before the row was written are small programs that tracing runs.
    begun = row.stat().st_mtime_ns
    reports = folder.glob("*after_optimizations-memory-usage-report.txt")
    report = max((path for path in reports if path.stat().st_mtime_ns > begun), default=None, key=_size)
    if report is None:
        return None
    total = re.search(r"Total bytes(?: used)?: (\d+)", report.read_text())
    text = Path(str(report).replace("-memory-usage-report", ""))
    if total is None or not text.exists() or not text.read_text().rstrip().endswith("}"):
        return None
    return {"all_bytes": int(total[1]), **hlo.cost(text.read_text())}


# --- The table ----------------------------------------------------------------------------------


def with_roofline(row: dict[str, Any]) -> dict[str, Any]:
    """Adds the roofline's seconds and the utilization of the bfloat16 rate that it allows."""
    chip = CHIPS.get(row["topology"].split(":")[0])
    if chip is None or not row.get("flops"):
        return row

    def rate(kind: str) -> float:
        if kind.startswith("bf16*bf16"):
            return chip.bfloat16
        return chip.float32 if kind.endswith("highest") else chip.tf32

    compute = sum(count / rate(kind) for kind, count in row["flops"].items())
    seconds = max(compute, row["bytes"] / chip.memory)
    bound = sum(row["flops"].values()) / chip.bfloat16 / seconds
    return row | {"compute_seconds": compute, "roofline_seconds": seconds, "utilization_bound": bound}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    head = f"{row['program']:<10} {row['topology']:<11} {row['dtype']:<8} {row['batch_per_device']:>5}"
    if "error" in row:
        return f"{head} does not compile: {row['error']}"
    cycles, kernels = row["cycles"], row["kernels"]
    total = sum(cycles.values())
    parts = " ".join(f"{name} {100 * value / total:.1f} %" for name, value in sorted(cycles.items())) if total else "-"
    moved = sorted(row["collectives"].items())
    collectives = ", ".join(f"{name} {value['count']} of {value['bytes'] / 1e6:.1f} MB" for name, value in moved)
    gib = [f"{row[name] / 2**30:6.2f}" if name in row else "     -" for name in ("argument_bytes", "all_bytes")]
    roof = f"{1e3 * row['roofline_seconds']:7.2f}" if "roofline_seconds" in row else "      -"
    bound = f"{100 * row['utilization_bound']:3.0f} %" if "utilization_bound" in row else "    -"
    return (
        f"{head} {' '.join(gib)} {sum(row['flops'].values()) / 1e12:7.3f} {roof} {bound} {total / 1e6:9.2f} ({parts}) "
        f"{sum(kernels.values()):>6} ({kernels.get('update', 0)}) {row.get('compile', 0):6.0f} s  {collectives}"
    )


def main() -> None:
    """Prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="configs/X.py")
    parser.add_argument("--topologies", nargs="+", default=["v5e:2x2@1", "v5e:4x4"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--programs", nargs="+", default=["step"], choices=PROGRAMS)
    parser.add_argument("--batch_per_device", type=int, nargs="+", default=[16])
    parser.add_argument("--shape", default="32x32x3", help="of one example")
    parser.add_argument("--stop_early", action="store_true", help="stop at the optimized HLO: no cycles")
    parser.add_argument("--keep", type=Path, help="folder for the HLO of every program")
    parser.add_argument("--output", type=Path, help="JSON file; rows of the same program are replaced")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args, changes = parser.parse_known_args()
    if args.task:
        return compile_one(json.loads(args.task))
    if not args.config:
        parser.error("--config is required")
    print(
        f"{'program':<10} {'topology':<11} {'type':<8} {'batch':>5} {'state':>6} {'all':>6} {'TFLOP':>7} "
        f"{'roof ms':>7} {'util':>5} {'Mcycles':>9} (by part) {'kernels':>7} (update) compile, collectives"
    )
    for topology in args.topologies:
        for dtype in args.dtypes:
            for what in args.programs:
                for batch in args.batch_per_device:
                    task = {"config": args.config, "changes": changes, "topology": topology, "dtype": dtype}
                    task |= {"program": what, "batch_per_device": batch}
                    with tempfile.TemporaryDirectory() as temporary:
                        name = "-".join([Path(args.config).stem, what, topology, dtype, str(batch), *changes])
                        folder = args.keep / name.replace("/", "_") if args.keep else Path(temporary)
                        folder.mkdir(parents=True, exist_ok=True)
                        shape = list(map(int, args.shape.split("x")))
                        row = compile_in_child(
                            task | {"shape": shape, "folder": str(folder.resolve())}, args.stop_early
                        )
                    row = with_roofline(task | row) | {"date": datetime.date.today().isoformat()}
                    print(line(row), flush=True)
                    if args.output:
                        rows = json.loads(args.output.read_text()) if args.output.exists() else []
                        rows = [other for other in rows if not task.items() <= other.items()]
                        args.output.write_text(json.dumps([*rows, row], indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
