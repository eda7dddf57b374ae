"""Seconds, images/s and utilization of a training step; beside PyTorch; and what the step holds in memory.

    python -m benchmarks.train_step --batch_sizes 16 64
    python -m benchmarks.train_step --torch --batch_sizes 16
    python -m benchmarks.train_step --memory --config=configs/cifar10_hold.py --batch_sizes 128

Default config: cifar10_hold on an accelerator, cifar10_small_hold on CPU; --config.a.b=value changes a key, as in
main.py. Everything at one batch size is compiled first, then timed in turn, so that what else the machine does hits all
alike: judge by the ratios. `cpu s` is the processor time of all threads, which other jobs disturb less.

Before it is timed, the step runs four times twice, from one state with one batch, and says whether both end with the
same bits. On a GPU they need not, as long as XLA may choose kernels whose sums have no fixed order
(`XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=true` takes these out).

FLOPs are those of the program's products as written (a multiplication and an addition are two); utilization is over
the rate of a large matrix product in the same type, timed here, so that no table of cards is needed.

--torch adds the same network in PyTorch (ncsnpp_torch.py), eager and, on an accelerator, compiled; `--torch eager` and
`--torch compiled` choose. Before anything is timed, its parameters are counted and its prediction is compared with
ours.
--memory runs nothing: what the forward pass keeps for the backward pass, with and without recomputation of residual
blocks (model.remat), and, but with --traced, the compiler's bytes. XLA for CPU takes out the barriers that keep a
recomputation apart, merges it with the forward pass where it can and saves nothing: there only the first figure tells.
"""

import argparse
import dataclasses
import datetime
import functools
import importlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from benchmarks.alone import alone
from hold_jax import kernels
from hold_jax.app import build
from hold_jax.app.config import read
from hold_jax.nn.layers import precision_of
from hold_jax.runtime.flops import of_products
from hold_jax.runtime.mesh import Devices
from hold_jax.training.fingerprint import fingerprints
from hold_jax.training.step import Program, mean_loss

PARITY = 1e-4
_REPEATS = {None: "", True: "; twice four steps: the same bits", False: "; twice four steps: other bits"}
TABLE_SIZE = 4096


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time: `call` starts it, `wait` waits for all that was started."""

    who: str
    part: str
    dtype: str
    call: Callable[[], Any]
    wait: Callable[[], Any]
    flops: float | None = None


def interleaved(cases: Sequence[Case], repeats: int, least_seconds: float) -> list[dict[str, float]]:
    """Median, least and processor seconds of one call of each case, run in turn `repeats` times after a warm-up.

    A measurement is of as many calls as take `least_seconds`, so that on an accelerator the host runs ahead as it does
    in training.
    """
    with alone():
        return _interleaved(cases, repeats, least_seconds)


def _interleaved(cases: Sequence[Case], repeats: int, least_seconds: float) -> list[dict[str, float]]:
    counts = []
    for case in cases:
        for _ in range(2):
            began = time.perf_counter()
            case.call()
            case.wait()
            seconds = time.perf_counter() - began
        counts.append(max(1, math.ceil(least_seconds / seconds)))
    found: list[list[tuple[float, float]]] = [[] for _ in cases]
    for _ in range(repeats):
        for case, count, times in zip(cases, counts, found, strict=True):
            began, began_cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                case.call()
            case.wait()
            times.append(((time.perf_counter() - began) / count, (time.process_time() - began_cpu) / count))
    return [
        {
            "seconds": statistics.median(wall for wall, _ in times),
            "least_seconds": min(wall for wall, _ in times),
            "cpu_seconds": statistics.median(cpu for _, cpu in times),
        }
        for times in found
    ]


def matrix_rate(dtype: str, size: int) -> float:
    """FLOP/s of products of `size` x `size` matrices, float32 ones at full precision, as in the networks here."""
    # Random, since constant matrices run faster than data on some cards; scaled, so that the products stay finite.
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype) / math.sqrt(size)
    held = {}

    @Devices.all().jit
    def products(a: jax.Array) -> jax.Array:
        precision = precision_of(dtype)
        return jax.lax.fori_loop(0, 16, lambda _, x: jnp.matmul(x, a, precision=precision).astype(dtype), a)

    def call() -> None:
        held["out"] = products(a)

    case = Case("", "", dtype, call, lambda: jax.block_until_ready(held))
    return 16 * 2 * size**3 / interleaved([case], 5, 0.0)[0]["least_seconds"]


class Ours:
    """The training step of a config in one compute type at one batch size, compiled."""

    def __init__(self, config: ml_collections.ConfigDict, shape: tuple[int, ...], batch_size: int, dtype: str):
        settings = read(config).changed({"model.dtype": dtype})
        self.dtype, self.batch_size = dtype, batch_size
        self.model, self.loss = build.model(settings, shape, 0), build.loss(settings)
        optimizer = build.optimizer(settings)
        devices = Devices.all()
        training = build.training(settings)
        options = {"ema_decay": training.decay, "gradient_dtype": training.gradient_dtype}
        self.program = Program.make(self.model, self.loss, optimizer, devices, seed=0, **options)
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (batch_size, *shape), dtype=np.uint8)
        self.batch = devices.put({"x": self.images, "label": np.zeros((batch_size,), np.int32)})

    def forward(self, state: Any, batch: Any) -> jax.Array:
        """The loss in training, no gradient."""
        key = jax.random.fold_in(state.key, state.step)
        params = self.program.packing.unpack(state.params)
        return mean_loss(self.model, self.loss, params, batch, key, train=True)

    def abstract(self) -> tuple[Any, Any]:
        """Shapes of the state and the batch on their devices."""
        return self.program.abstract(), self.batch

    def fingerprints(self, step: Any) -> dict[str, int]:
        """Of every array of the state after four steps from the start."""
        state = self.program.start()
        for _ in range(4):
            state, _ = step(state, self.batch)
        return jax.tree.map(int, self.program.devices.jit(fingerprints)(state))

    def cases(self, parts: Sequence[str]) -> tuple[list[Case], dict[str, dict[str, float]]]:
        """The compiled parts; the seconds of tracing, lowering and compiling them, and whether the step repeats."""
        cases, compilation = [], {}
        held = {"state": self.program.start()}
        for part in parts:
            function = {"forward": self.program.devices.jit(self.forward), "step": self.program.step}[part]
            compiled, flops, compilation[part] = compile_timed(function, *self.abstract())
            if part == "step":
                compilation[part]["same_bits"] = self.fingerprints(compiled) == self.fingerprints(compiled)

            def call(part: str = part, compiled: Any = compiled) -> None:
                if part == "step":
                    held["state"], held["out"] = compiled(held["state"], self.batch)
                else:
                    held["out"] = compiled(held["state"], self.batch)

            cases.append(Case("hold_jax", part, self.dtype, call, lambda: jax.block_until_ready(held), flops))
        return cases, compilation


def compile_timed(function: Any, *args: Any) -> tuple[Any, float, dict[str, float]]:
    """The compiled function, the FLOPs of the program as written, and the seconds of each stage."""
    times = [time.perf_counter()]
    traced = function.trace(*args)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    stages = dict(zip(("trace", "lower", "compile"), np.diff(times).tolist(), strict=True))
    return compiled, float(of_products(traced.jaxpr)), stages


def load_peer() -> ModuleType:
    """benchmarks.ncsnpp_torch; the only place that needs PyTorch."""
    try:
        import torch  # noqa: F401
    except ImportError:
        sys.exit("error: --torch needs PyTorch: pip install torch (for CPU alone, from its CPU index)")
    return importlib.import_module("benchmarks.ncsnpp_torch")


def loss_table(ours: Ours) -> dict[str, np.ndarray]:
    """What the loss needs to know of the SDE, at `TABLE_SIZE` equally likely times."""
    if ours.loss.func.__name__ != "bcsm_loss" or ours.loss.keywords["weighting"].__name__ != "eps_weight":
        sys.exit("error: the PyTorch step has the loss bcsm with the weighting eps")
    sde, model = ours.model.sde, ours.model
    t_min = ours.loss.keywords["t_min"] or sde.t_min
    quantiles = (jnp.arange(TABLE_SIZE) + 0.5) / TABLE_SIZE
    times = ours.loss.keywords["time_law"](sde, quantiles, t_min).t
    marginal, c = kernels.marginal(sde, times), model.parameterization(sde, times, model.sigma_data)
    table = {
        "times": times,
        "mean": marginal.phi[..., :, 0],
        "chol": marginal.chol,
        "c_in": jnp.broadcast_to(c.c_in, (TABLE_SIZE, *c.c_in.shape[-2:])),
        "c_skip": jnp.broadcast_to(c.c_skip, (TABLE_SIZE, *c.c_skip.shape[-2:])),
        "c_out": c.c_out,
        "noise_cond": model.conditioning(sde, times),
    }
    return {name: np.asarray(value, np.float32) for name, value in table.items()}


def check_peer(
    peer: ModuleType, ours: Ours, table: dict[str, np.ndarray], make: Callable[..., Any]
) -> dict[str, float]:
    """Counts the parameters of both and compares their predictions of the noise on the same weights.

    Both in float32 without the shortcuts of tensor cores; init_scale 1, so that the untrained network says something.

    Raises:
      SystemExit: if they differ.
    """
    import torch

    model = dataclasses.replace(ours.model, network=ours.model.network.clone(init_scale=1.0, dtype=jnp.float32))
    params = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(1)
    k = np.array([TABLE_SIZE // 5, 4 * TABLE_SIZE // 5])
    x = ours.images[:1].repeat(2, axis=0)
    noise = rng.standard_normal((2, *x.shape[1:-1], model.sde.order, x.shape[-1])).astype(np.float32)

    @Devices.all().jit
    def predict(params: Any, t: jax.Array) -> jax.Array:
        u = kernels.perturb(kernels.marginal(model.sde, t), x / np.float32(127.5) - 1, jnp.asarray(noise))
        return model.eps_fn(params)(u, t)[..., 0, :]

    with jax.default_matmul_precision("highest"):
        want = np.asarray(predict(params, jnp.asarray(table["times"][k])))
    trainer = make(bfloat16=False, compiled=False)
    count = peer.copy_parameters(trainer.network, jax.tree.map(np.asarray, params))
    ours_count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if count != ours_count:
        sys.exit(f"error: the PyTorch network has {count} parameters, ours {ours_count}")
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    trainer.network.eval()
    with torch.no_grad():
        at = (torch.from_numpy(a).to(trainer.device) for a in (x, k, noise.transpose(0, 3, 4, 1, 2).copy()))
        got, _ = trainer.predict(*at)
    trainer.network.train()
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
    error = float(np.abs(got.permute(0, 2, 3, 1).cpu().numpy() - want).max() / np.abs(want).max())
    if not error < PARITY:
        sys.exit(f"error: the PyTorch network's prediction differs from ours by {error:.1e} of its largest value")
    return {"parameters": count, "prediction_error": error}


def torch_cases(
    peer: ModuleType, config: ml_collections.ConfigDict, ours: Ours, args: argparse.Namespace
) -> tuple[list[Case], dict[str, float]]:
    """The peer's parts in every type, eager and compiled, and how it was checked."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: JAX sees a GPU and PyTorch does not; PyTorch cannot be compared on this machine")
    # Float32 products are whole in our network too.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    table = loss_table(ours)
    blocks = table["c_in"].shape[-2]
    size = ours.images.shape[1]

    def make(**how: bool) -> Any:
        network = peer.TorchNCSNpp(ours.model.network, blocks * ours.images.shape[-1], size).to(device)
        optimizer = {name: config.optimizer[name] for name in ("learning_rate", "b1", "b2", "eps", "clip_norm")}
        return peer.TorchTrainer(network, table, ema_decay=config.training.ema_decay, **optimizer, **how)

    checked = check_peer(peer, ours, table, make)
    x = torch.from_numpy(ours.images).to(device)
    cases = []
    modes = args.torch or (["eager", "compiled"] if device == "cuda" else ["eager"])
    for dtype in args.dtypes:
        for compiled in (mode == "compiled" for mode in modes):
            trainer = make(bfloat16=dtype == "bfloat16", compiled=compiled)
            who = "torch.compile" if compiled else "torch"
            try:
                for part in args.parts:
                    call = functools.partial({"forward": trainer.forward, "step": trainer.step}[part], x)
                    call()
                    cases.append(Case(who, part, dtype, call, trainer.wait))
            except Exception as error:
                if not compiled:
                    raise
                print(f"{who}, {dtype}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
    return cases, checked


def measure(config: ml_collections.ConfigDict, shape: tuple[int, ...], args: argparse.Namespace) -> dict[str, Any]:
    """Times everything, prints a table as it goes."""
    on_cpu = jax.default_backend() == "cpu"
    peer = load_peer() if args.torch is not None else None
    rates = {dtype: matrix_rate(dtype, 1024 if on_cpu else 8192) for dtype in args.dtypes}
    for dtype, rate in rates.items():
        print(f"matrix product, {dtype}: {rate / 1e12:.3g} TFLOP/s")
    results: dict[str, Any] = {"matrix_rate": rates, "rows": [], "compilation": [], "torch": None}
    for batch_size in args.batch_sizes:
        cases: list[Case] = []
        theirs: list[Case] = []
        if peer:
            theirs, results["torch"] = torch_cases(peer, config, Ours(config, shape, batch_size, args.dtypes[0]), args)
            count, error = results["torch"]["parameters"], results["torch"]["prediction_error"]
            print(f"PyTorch: {count:,} parameters, as ours; predictions differ by {error:.0e}", flush=True)
        for dtype in args.dtypes:
            ours = Ours(config, shape, batch_size, dtype)
            new, compilation = ours.cases(args.parts)
            cases += new
            for part, stages in compilation.items():
                results["compilation"].append({"batch_size": batch_size, "part": part, "dtype": dtype, **stages})
                print(
                    f"batch {batch_size}, {dtype}, {part}: traced in {stages['trace']:.1f} s, lowered in "
                    f"{stages['lower']:.1f} s, compiled in {stages['compile']:.1f} s"
                    f"{_REPEATS[stages.get('same_bits')]}",
                    flush=True,
                )
        if peer:
            # One of ours, one of theirs: noise hits both.
            cases = sorted([*cases, *theirs], key=lambda case: (case.part, case.dtype))
        times = interleaved(cases, args.repeats, 0.0 if on_cpu else 0.5)
        by_key = {(c.who, c.part, c.dtype): t for c, t in zip(cases, times, strict=True)}
        print(
            f"{'batch':>5} {'part':<8} {'type':<9} {'':<14} {'ms':>9} {'least ms':>9} {'cpu s':>7} {'images/s':>9} "
            f"{'TFLOP':>7} {'TFLOP/s':>8} {'of matrix':>9} {'time / torch, cpu / torch':>26}"
        )
        for case, time_ in zip(cases, times, strict=True):
            row: dict[str, Any] = {"batch_size": batch_size, "part": case.part, "dtype": case.dtype, "who": case.who}
            row |= time_ | {"images_per_second": batch_size / time_["seconds"]}
            reference = by_key.get(("torch", case.part, case.dtype))
            ratio = ""
            if reference and case.who != "torch":
                row["over_torch"] = time_["seconds"] / reference["seconds"]
                row["cpu_over_torch"] = time_["cpu_seconds"] / reference["cpu_seconds"]
                ratio = f"{row['over_torch']:.2f}, {row['cpu_over_torch']:.2f}"
            # Another program of the same network does the same work.
            flops = case.flops or next(
                (c.flops for c in cases if c.flops and (c.part, c.dtype) == (case.part, case.dtype)), 0.0
            )
            row |= {"flops": flops, "utilization": flops / time_["seconds"] / rates[case.dtype] / jax.device_count()}
            results["rows"].append(row)
            print(
                f"{batch_size:>5} {case.part:<8} {case.dtype:<9} {case.who:<14} {1e3 * row['seconds']:>9.2f} "
                f"{1e3 * row['least_seconds']:>9.2f} {row['cpu_seconds']:>7.3f} {row['images_per_second']:>9.1f} "
                f"{flops / 1e12:>7.3f} {flops / row['seconds'] / 1e12:>8.3g} {100 * row['utilization']:>7.1f} % "
                f"{ratio:>26}",
                flush=True,
            )
        write(args, results)
    return results


def kept_bytes(ours: Ours) -> int:
    """Bytes of what the traced forward pass keeps for the backward pass, parameters and batch left out.

    Before any fusion, so that a compiler keeps less; but the same on every device.
    """
    state, batch = ours.abstract()

    def backward(params: Any, batch: Any, key: jax.Array) -> Any:
        loss = functools.partial(mean_loss, ours.model, ours.loss, batch=batch, key=key, train=True)
        return jax.vjp(lambda p: loss(params=p), params)[1]

    params = ours.program.abstract_tree().params
    kept = jax.tree.leaves(jax.eval_shape(backward, params, batch, state.key))
    # Only what has the batch's extent: of parameters, and tables, the step holds one copy anyway.
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in kept if a.shape[:1] == (ours.batch_size,))


def memory(config: ml_collections.ConfigDict, shape: tuple[int, ...], args: argparse.Namespace) -> dict[str, Any]:
    """Bytes of the step with and without recomputation."""
    results: dict[str, Any] = {"rows": []}
    for batch_size in args.batch_sizes:
        for dtype in args.dtypes:
            for remat in (False, True):
                changed = config.copy_and_resolve_references()
                changed.model.remat = remat
                ours = Ours(changed, shape, batch_size, dtype)
                row = {"batch_size": batch_size, "dtype": dtype, "remat": remat, "kept": kept_bytes(ours)}
                row["state"] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(ours.abstract()[0]))
                text = (
                    f"batch {batch_size}, {dtype}, remat {remat!s:<5}: state {row['state'] / 2**30:.2f} GiB, "
                    f"kept for the backward pass {row['kept'] / 2**30:.2f} GiB"
                )
                if not args.traced:
                    compiled, flops, stages = compile_timed(ours.program.step, *ours.abstract())
                    found = compiled.memory_analysis()
                    names = ("argument", "output", "alias", "temp")
                    sizes = {name: getattr(found, f"{name}_size_in_bytes") for name in names}
                    # The state is donated: its bytes count once.
                    peak = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
                    row |= {"flops": flops, **stages, **sizes, "peak": peak}
                    text += f"; compiled {peak / 2**30:.2f} GiB in all, {flops / 1e12:.3f} TFLOP"
                results["rows"].append(row)
                print(text, flush=True)
                write(args, results)
    return results


def write(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Writes what there is so far."""
    if args.output:
        machine = {
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "cpu_count": os.cpu_count(),
            "load": os.getloadavg(),
            "jax": jax.__version__,
            "date": datetime.date.today().isoformat(),
            "command": " ".join(sys.argv[1:]),
        }
        args.output.write_text(json.dumps({"machine": machine, "config": args.config, **results}, indent=2) + "\n")


def main() -> None:
    """Prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=None)
    parser.add_argument("--shape", type=lambda s: tuple(map(int, s.split("x"))), default=(32, 32, 3))
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=None, help="over all devices")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--parts", nargs="+", default=["forward", "step"], choices=["forward", "step"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--torch", nargs="*", default=None, choices=["eager", "compiled"], help="time PyTorch too")
    parser.add_argument("--memory", action="store_true", help="memory instead of time")
    parser.add_argument("--traced", action="store_true", help="--memory without compiling")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args, changes = parser.parse_known_args()
    # Read when the first device is asked for; without it PyTorch would find three quarters of a GPU's memory taken.
    if args.torch is not None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    on_cpu = jax.default_backend() == "cpu"
    args.config = args.config or f"configs/cifar10_{'small_' if on_cpu else ''}hold.py"
    args.batch_sizes = args.batch_sizes or ([16, 64] if on_cpu else [128, 256])
    config = config_flags.DEFINE_config_file("config", None)
    flags.FLAGS([sys.argv[0], f"--config={args.config}", *changes])
    (memory if args.memory else measure)(config.value, args.shape, args)


if __name__ == "__main__":
    main()
