"""What the compilers make of a config's programs on TPUs and NVIDIA GPUs that are not there.

    pip install "jax[tpu]==VERSION"        # the version of jax that is installed; brings the TPU compiler, needs no TPU
    python -m benchmarks.aot --config=configs/cifar10_hold.py --topologies v5e:4x4 v5e:2x2@1 --dtypes bfloat16 float32
    python -m benchmarks.aot --config=configs/cifar10_hold.py --topologies h100:1x1x8 --cuda=DIR --gpu_target=h100.txtpb

Nothing runs on a device. A topology is KIND:SHAPE, the kinds v4, v5e, v5p, v6e (chips along each axis of the torus) and
h100 (partitions x hosts x cards); @N takes its first N devices; `local` is this machine. --config.a.b=value changes a
key, as in main.py. For
h100: DIR is a `pip install --target DIR --no-deps` of jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12, the
target a text of XLA's GpuTargetConfigProto.

Programs: the training step, the second half of it alone (update), the sampler, the likelihood. Each is compiled by a
process of its own. --stop_early ends it when the optimized HLO and the memory report are written: code generation takes
longest and changes neither, but the cycles, FLOPs and bytes come with it.

Columns: GiB a device, of arguments (the state) and in all; FLOPs of one device by XLA's count; the roofline's
milliseconds, the larger of FLOPs over the published bfloat16 rate and of bytes over the memory's, and the utilization
that it allows; millions of cycles by the TPU compiler's own estimate, in all and by part (of compute: collectives have
no estimate); kernels in all and of the update; collectives with the bytes of their results on a device.
These are no measurements: no clock, no contention, no input, no launch of kernels. Loops with an unknown number of
passes count once.
"""

import argparse
import collections
import datetime
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Published bfloat16 FLOP/s, bytes/s and GiB of memory, each of what JAX calls a device (docs/scaling.md has sources).
CHIPS = {
    "v4": (275e12, 1228e9, 32),
    "v5e": (197e12, 819e9, 16),
    "v5p": (459e12, 2765e9, 95),
    "v6e": (918e12, 1640e9, 32),
    "h100": (989e12, 3350e9, 80),
}
SIZES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
PROGRAMS = ("step", "update", "sample", "likelihood")


# --- Reading optimized HLO ----------------------------------------------------------------------


def array_bytes(types: str) -> int:
    """Bytes of every array in a piece of HLO text such as `(f32[3,4]{1,0}, bf16[2])`."""
    found = re.findall(rf"\b({'|'.join(SIZES)})\[([\d,]*)\]", types)
    return sum(SIZES[kind] * math.prod(int(n) for n in shape.split(",") if n) for kind, shape in found)


def computations(hlo: str) -> dict[str, list[tuple[str, str, str, str]]]:
    """The instructions (name, type, operation, rest of the line) of each computation; the entry is named ENTRY."""
    found: dict[str, list[tuple[str, str, str, str]]] = {}
    rows: list[tuple[str, str, str, str]] = []
    for line in hlo.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            rows = found.setdefault("ENTRY" if head[1] else head[2], [])
            continue
        instruction = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$", line)
        if instruction:
            rows.append(instruction.groups())  # type: ignore[arg-type]
    return found


def part_of(rest: str) -> str:
    """The part of a training step that an instruction belongs to, by the name of the operation it was made from."""
    name = re.search(r'op_name="([^"]*)"', rest)
    name = name[1] if name else ""
    if "/update/" in name:
        return "update"
    if "NCSNpp" in name or "MLP" in name:
        return "backward" if "transpose(jvp" in name else "forward"
    return "other"


def facts(hlo: str) -> dict[str, Any]:
    """Kernels, estimated cycles and collectives of a program, loops' bodies as often as their known trip count."""
    bodies = computations(hlo)
    kernels, cycles = collections.Counter(), collections.Counter()
    moved: dict[str, dict[str, float]] = {}

    def visit(name: str, times: int) -> None:
        for _, types, operation, rest in bodies.get(name, []):
            kind = operation.removesuffix("-start")
            if kind in COLLECTIVES:
                _count(moved, kind, types, times)
            part = part_of(rest)
            if operation == "while":
                trips = re.search(r'known_trip_count"?:\{"n":"(\d+)"', rest)
                body = re.search(r"body=%?([\w.\-]+)", rest)
                visit(body[1] if body else "", times * int(trips[1] if trips else 1))
            elif operation == "call" or operation == "conditional" or operation.endswith("async-start"):
                for inner in re.findall(r"(?:to_apply|calls|branch_computations)=\{?%?([\w.\-]+)", rest):
                    visit(inner, times)
            elif operation in ("fusion", "convolution", "dot", "custom-call", "copy"):
                kernels[part] += times
            estimate = re.search(r'estimated_cycles"?:"?(\d+)', rest)
            if estimate:
                cycles[part] += times * int(estimate[1])

    visit("ENTRY", 1)
    # The TPU compiler moves collectives into computations that it runs beside others.
    for name, rows in bodies.items():
        if name != "ENTRY" and "async_collective" in name:
            for _, types, operation, _ in rows:
                if operation in COLLECTIVES:
                    _count(moved, operation, types, 1)
    return {"kernels": dict(kernels), "cycles": dict(cycles), "collectives": moved}


def _count(moved: dict[str, dict[str, float]], kind: str, types: str, times: int) -> None:
    dtype = re.search(r"\b(\w+)\[", types)
    row = moved.setdefault(f"{kind} {dtype[1] if dtype else ''}", {"count": 0, "bytes": 0})
    row["count"] += times
    row["bytes"] += times * array_bytes(types)


# --- One program, in a process of its own -------------------------------------------------------


def mesh_of(topology: str, gpu_target: str | None) -> Any:
    """The devices of a topology that is not there, as `runtime.mesh.Devices`."""
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh

    from hold_jax.runtime.mesh import Devices

    if topology == "local":
        return Devices.all()
    name, _, count = topology.partition("@")
    kind, shape = name.split(":")
    if kind == "h100":
        if gpu_target is None:
            raise SystemExit("error: h100 needs --cuda and --gpu_target")
        target = Path(gpu_target).read_text()
        found = topologies.get_topology_desc(platform="cuda", topology_name=shape, topology=shape, target_config=target)
    else:
        whole_chips = {"chip_config_name": "megacore"} if kind in ("v4", "v5p") else {}
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **whole_chips)
    devices = sorted(found.devices, key=lambda device: (device.process_index, device.id))
    return Devices(Mesh(np.array(devices[: int(count or len(devices))]), ("data",)))


def program(config: Any, what: str, shape: tuple[int, ...], batch_size: int, devices: Any) -> tuple[Any, tuple]:
    """A jitted function of the config and the abstract arguments to compile it for."""
    import dataclasses

    import jax
    import numpy as np

    from hold_jax import likelihood
    from hold_jax.app import build
    from hold_jax.loops.draw import make_draw
    from hold_jax.training.step import Program

    def spread(dims: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *dims), dtype, sharding=devices.batch())

    model = build.model(config, shape, 10 if config.model.class_conditional else 0)
    t = config.training
    training = Program.make(
        model,
        build.loss(config),
        build.optimizer(config),
        devices,
        seed=0,
        ema_decay=t.ema_decay,
        accumulation_steps=t.accumulation_steps,
    )
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
        return make_draw(model, settings, devices), (params, jax.ShapeDtypeStruct((batch_size,), np.int32))

    def bits(params: Any, x: jax.Array, index: jax.Array) -> Any:
        data = model.to_model(x)
        found = likelihood.bits_per_dim(
            model.sde, model.eps_fn(params), data, key=jax.random.key(0), index=index, bin_width=2 / 255
        )
        return found.bpd, found.nfe

    compiled = jax.jit(bits, out_shardings=devices.replicated)
    return compiled, (params, spread(shape, np.uint8), spread((), np.int32))


def compile_one(task: dict[str, Any]) -> None:
    """Compiles the program of `task` and writes what was found to its folder, step by step."""
    import jax
    from absl import flags
    from ml_collections import config_flags

    from hold_jax.app.config import read

    flag = config_flags.DEFINE_config_file("config", None)
    sys.argv = [sys.argv[0], f"--config={task['config']}", *task["changes"]]  # config_flags reads it
    flags.FLAGS(sys.argv)
    config = read(flag.value).changed({"model.dtype": task["dtype"]})
    devices = mesh_of(task["topology"], task["gpu_target"])
    batch_size = task["batch_per_device"] * devices.mesh.size
    function, args = program(config, task["program"], tuple(task["shape"]), batch_size, devices)
    times = [time.perf_counter()]
    traced = function.trace(*args)
    times.append(time.perf_counter())
    kind = task["topology"].split(":")[0]
    platforms = None if kind == "local" else ("cuda",) if kind == "h100" else ("tpu",)
    lowered = traced.lower(lowering_platforms=platforms)
    times.append(time.perf_counter())
    row = {"devices": devices.mesh.size, "batch_size": batch_size, "trace": times[1] - times[0]}
    row |= {"lower": times[2] - times[1], "stablehlo": lowered.as_text().count(" = stablehlo.")}
    folder = Path(task["folder"])
    (folder / "row.json").write_text(json.dumps(row))
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    row |= {"compile": time.perf_counter() - times[2], "flops": cost.get("flops"), "bytes": cost.get("bytes accessed")}
    row["argument_bytes"] = memory.argument_size_in_bytes
    row["all_bytes"] = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    (folder / "program.hlo").write_text(compiled.as_text())
    (folder / "row.json").write_text(json.dumps(row))
    jax.clear_caches()


def compile_in_child(task: dict[str, Any], stop_early: bool, cuda: str | None) -> dict[str, Any]:
    """The row of a program; one that does not compile has the compiler's last line as "error"."""
    folder = Path(task["folder"])
    elsewhere = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    environment = os.environ | ({} if task["topology"] == "local" else elsewhere)
    environment["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
    if cuda:
        compiler = f"{cuda}/nvidia/cuda_nvcc"
        environment["PYTHONPATH"] = os.pathsep.join([cuda, environment.get("PYTHONPATH", "")])
        environment["PATH"] = f"{compiler}/bin{os.pathsep}{environment['PATH']}"
        environment["XLA_FLAGS"] += f" --xla_gpu_cuda_data_dir={compiler}"
    began = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.aot", "--task", json.dumps(task)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        early = False
        while child.poll() is None and not early:
            time.sleep(1.0)
            early = stop_early and bool(_dumped(folder, "memory-usage-report"))
        if early:
            time.sleep(5.0)  # the report is being written
            child.kill()
            child.wait()
    row = json.loads((folder / "row.json").read_text()) if (folder / "row.json").exists() else {}
    text = folder / "program.hlo"
    if not text.exists():
        if not early:
            lines = (folder / "log.txt").read_text().strip().splitlines() or ["no message"]
            return row | {"error": lines[-1][:500]}
        text = _dumped(folder, "after_optimizations")
        row["optimize"] = time.perf_counter() - began
        row |= _reported(folder)
    return row | facts(Path(text).read_text())


def _dumped(folder: Path, what: str) -> Path | None:
    """The largest module's dump of one kind."""
    found = [p for p in folder.glob(f"*{what}.txt") if "buffer" not in p.name]
    return max(found, key=lambda p: p.stat().st_size) if found else None


def _reported(folder: Path) -> dict[str, float]:
    """Bytes of the main memory by the memory report."""
    report = _dumped(folder, "memory-usage-report")
    total = re.search(r"Total bytes(?: used)?: (\d+)", report.read_text()) if report else None
    return {"all_bytes": float(total[1])} if total else {}


# --- The table ----------------------------------------------------------------------------------


def with_roofline(row: dict[str, Any]) -> dict[str, Any]:
    """Adds the roofline's seconds and the utilization that memory traffic allows."""
    chip = CHIPS.get(row["topology"].split(":")[0])
    flops, size = row.get("flops"), row.get("bytes")
    if not chip or not flops or not size:
        return row
    peak, rate, _ = chip
    seconds = max(flops / peak, size / rate)
    return row | {"roofline_seconds": seconds, "utilization_bound": flops / peak / seconds}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    head = f"{row['program']:<10} {row['topology']:<13} {row['dtype']:<8} {row['batch_per_device']:>5}"
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
        f"{head} {' '.join(gib)} {roof} {bound} {total / 1e6:9.2f} ({parts}) "
        f"{sum(kernels.values()):>6} ({kernels.get('update', 0)}) {row.get('compile', row.get('optimize', 0)):6.0f} s  "
        f"{collectives}"
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
    parser.add_argument("--cuda", help="folder with the CUDA plugin")
    parser.add_argument("--gpu_target", help="text of a GpuTargetConfigProto")
    parser.add_argument("--stop_early", action="store_true", help="stop at the optimized HLO: no FLOPs, no bytes")
    parser.add_argument("--keep", type=Path, help="folder for the HLO of every program")
    parser.add_argument("--output", type=Path, help="JSON file; rows are added to those that are there")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args, changes = parser.parse_known_args()
    if args.task:
        return compile_one(json.loads(args.task))
    if not args.config:
        parser.error("--config is required")
    print(
        f"{'program':<10} {'topology':<13} {'type':<8} {'batch':>5} {'state':>6} {'all':>6} {'roof ms':>7} {'util':>5} "
        f"{'Mcycles':>9} (by part) {'kernels':>7} (update) compile, collectives"
    )
    for topology in args.topologies:
        for dtype in args.dtypes:
            for what in args.programs:
                for batch in args.batch_per_device:
                    with tempfile.TemporaryDirectory() as temporary:
                        folder = args.keep / f"{what}-{topology}-{dtype}-{batch}" if args.keep else Path(temporary)
                        folder.mkdir(parents=True, exist_ok=True)
                        task = {"config": args.config, "changes": changes, "topology": topology, "dtype": dtype}
                        task |= {"program": what, "batch_per_device": batch, "gpu_target": args.gpu_target}
                        row = dict(task)
                        task |= {"shape": list(map(int, args.shape.split("x"))), "folder": str(folder.resolve())}
                        row |= compile_in_child(task, args.stop_early, args.cuda if "h100" in topology else None)
                    row.pop("gpu_target")
                    row = with_roofline(row) | {"date": datetime.date.today().isoformat()}
                    print(line(row), flush=True)
                    if args.output:
                        before = json.loads(args.output.read_text()) if args.output.exists() else []
                        args.output.write_text(json.dumps([*before, row], indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
