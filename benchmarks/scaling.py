"""What data-parallel training of the full CIFAR-10 model costs on many chips, on paper: compute, all-reduce, input.

    python -m benchmarks.scaling --output=docs/results/scaling.json

Nothing here is measured on an accelerator. A step is: the all-gather of the float32 parameters, compute (FLOPs of one
example times the examples of a chip, over the chip's peak rate times a stated utilization), and the all-reduce of the
float32 gradients, not overlapped: the worst case, since compilers overlap most of both with compute. The parameter
count is the model's own; FLOPs come from `benchmarks.train_step --memory`.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from configs import cifar10_hold
from hold_jax.app import build
from hold_jax.app.config import read

# Per example, forward + backward + update: `benchmarks.train_step --memory --config=configs/cifar10_hold.py`.
FLOPS_PER_EXAMPLE = 1.046e11
EXAMPLE_BYTES = 32 * 32 * 3 + 4
# Copies of the parameters in a checkpoint: parameters, average, two moments of Adam.
COPIES = 4


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip and its links; rates are per chip and, of links, one way.

    Attributes:
      peak: FLOP/s in bfloat16.
      inside: bytes/s to the chips it is tied to closely (all links of a TPU in a slice; NVLink in a node).
      domain: chips tied closely.
      outside: bytes/s beyond the domain.
      hop: seconds of latency of one hop. From memory, unverified: of the order of a microsecond, a few over InfiniBand.
      torus: number of dimensions of the close network; 0: a switch.
      wraps: fewest chips whose links close to rings; below, half of the links are idle. The published rates of TPUs are
        those of a whole pod.
      source: where the rates come from.
    """

    peak: float
    inside: float
    domain: int
    outside: float
    hop: float
    torus: int
    wraps: int
    source: str


CHIPS = {
    "TPU v4": Chip(
        275e12,
        1.1e15 / 4096,
        4096,
        0.0,
        1e-6,
        3,
        64,
        "peak and all-reduce bandwidth per pod (1.1 PB/s of 4,096 chips): https://cloud.google.com/tpu/docs/v4",
    ),
    "TPU v5e": Chip(
        197e12,
        51.2e12 / 256,
        256,
        6.4e12 / 8 / 256,
        1e-6,
        2,
        256,
        "peak, all-reduce bandwidth per pod (51.2 TB/s of 256 chips), data-center network per pod (6.4 Tbps): "
        "https://cloud.google.com/tpu/docs/v5e",
    ),
    "H100": Chip(
        989e12,
        450e9,
        8,
        50e9,
        5e-6,
        0,
        1,
        "NVLink 900 GB/s both ways together, one NDR port (400 Gb/s) for each of 8 GPUs: "
        "https://ubytelink.com/blog/what-is-nvidia-h100-interconnect-a-technical-deep-dive.html; "
        "peak 989 TFLOP/s, dense bfloat16: from memory, unverified",
    ),
}


def all_reduce_seconds(chip: Chip, chips: int, size: float) -> float:
    """Ring all-reduce of `size` bytes on each of `chips` chips.

    A ring of N sends 2 (N - 1)/N size over each chip's links: reduce-scatter, then all-gather. Over several domains:
    reduce-scatter inside, a ring of each chip's part across domains, all-gather inside. Latency: the hops of the rings,
    those of a torus along one dimension after the other.
    """
    inside = min(chips, chip.domain)
    domains = chips // inside
    rate = chip.inside if inside >= chip.wraps else chip.inside / 2
    seconds = 2 * (inside - 1) / inside * size / rate
    if chip.torus:
        seconds += 2 * chip.torus * (inside ** (1 / chip.torus) - 1) * chip.hop
    else:
        seconds += 2 * (inside - 1) * chip.hop
    if domains > 1:
        seconds += 2 * (domains - 1) / domains * size / inside / chip.outside + 2 * (domains - 1) * chip.hop
    return seconds


def row(
    name: str, chips: int, per_chip: float, size: float, utilization: float, flops: float = FLOPS_PER_EXAMPLE
) -> dict[str, float | str]:
    """One step on `chips` chips with `per_chip` examples each."""
    chip = CHIPS[name]
    compute = per_chip * flops / (chip.peak * utilization)
    reduce = all_reduce_seconds(chip, chips, size)
    # The second half of a ring all-reduce is an all-gather.
    gather = reduce / 2
    step = gather + compute + reduce
    return {
        "chip": name,
        "chips": chips,
        "per_chip": per_chip,
        "global_batch": per_chip * chips,
        "compute_seconds": compute,
        "all_reduce_seconds": reduce,
        "all_gather_seconds": gather,
        "efficiency": compute / step,
        "images_per_second": per_chip * chips / step,
        "input_bytes_per_second": per_chip * chips / step * EXAMPLE_BYTES,
        "hours_of_102_million_images": 800_000 * 128 / (per_chip * chips / step) / 3600,
    }


def parameters() -> int:
    """How many numbers the full model has."""
    model = build.model(read(cifar10_hold.get_config()), (32, 32, 3), 0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def main() -> None:
    """Prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utilization", type=float, default=0.4, help="share of the peak rate that compute reaches")
    parser.add_argument("--per_chip", type=int, nargs="+", default=[4, 16, 64], help="examples of a chip")
    parser.add_argument("--chips", type=int, nargs="+", default=[8, 256, 1024])
    parser.add_argument("--checkpoint_rate", type=float, default=1e9, help="bytes/s to storage")
    parser.add_argument("--flops", type=float, default=FLOPS_PER_EXAMPLE, help="of one example")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args = parser.parse_args()

    count = parameters()
    size = count * jnp.dtype(jnp.float32).itemsize
    checkpoint = COPIES * size
    print(f"{count:,} parameters; {size / 1e6:.1f} MB of gradients all-reduced, and of parameters gathered, a step")
    written = checkpoint / args.checkpoint_rate
    print(f"checkpoint: {checkpoint / 1e9:.2f} GB, {written:.1f} s at {args.checkpoint_rate:.0e} bytes/s")
    print(
        f"{'chip':<8} {'chips':>6} {'a chip':>7} {'batch':>7} {'compute ms':>11} {'transfers ms':>14} "
        f"{'efficiency':>11} {'images/s':>10} {'MB/s in':>8} {'hours':>7}"
    )
    rows = [
        row(name, chips, per_chip, size, args.utilization, args.flops)
        for per_chip in args.per_chip
        for name in CHIPS
        for chips in args.chips
    ]
    for r in rows:
        print(
            f"{r['chip']:<8} {r['chips']:>6} {r['per_chip']:>7} {r['global_batch']:>7} "
            f"{1e3 * r['compute_seconds']:>11.2f} {1e3 * (r['all_reduce_seconds'] + r['all_gather_seconds']):>14.2f} "
            f"{100 * r['efficiency']:>9.1f} % {r['images_per_second']:>10,.0f} "
            f"{r['input_bytes_per_second'] / 1e6:>8.0f} {r['hours_of_102_million_images']:>7.2f}"
        )
    if args.output:
        record = {
            "parameters": count,
            "gradient_bytes": size,
            "checkpoint_bytes": checkpoint,
            "flops_per_example": args.flops,
            "utilization": args.utilization,
            "chips": {name: dataclasses.asdict(chip) for name, chip in CHIPS.items()},
            "rows": rows,
        }
        args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
