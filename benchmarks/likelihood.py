"""Bits per dimension by order: how loose the bounds are in closed form, and trained models against an exact density.

python -m benchmarks.likelihood gap --output=docs/results/likelihood_gap.json
for n in 1 2 3 4; do
  python main.py --config=configs/swissroll_hold.py --mode=train --workdir=runs/roll$n --config.sde.order=$n
done
python -m benchmarks.likelihood swissroll --workdirs runs/roll1 runs/roll2 ... \\
  --output=docs/results/likelihood_swissroll.json

`gap`: seconds; for data N(0, std^2) and the exact denoiser, with a prior that is the law at T: what the papers' bound
(u = (x, auxiliaries from their start law)) exceeds -log2 p(x) by at each t_min; ours exceeds it by nothing.
`swissroll`: the test points' density is known, an integral over the angle; a minute an order on 2 CPU cores.
"""

import argparse
import functools
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hold_jax import sde
from hold_jax.app import build
from hold_jax.app.config import read
from hold_jax.data import toy
from hold_jax.loops import likelihood as nll
from hold_jax.numerics import exact
from hold_jax.runtime import workdir
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.resumable import PartialRows
from hold_jax.training.checkpoint import Checkpoints, abstract_state
from hold_jax.training.state import init_state

SIGMAS = (0.02, 0.01, 0.005, 0.002, 1e-3, 1e-4, 1e-5)
ORDERS = (1, 2, 3, 4)


def papers_gap(m: sde.LinearSDE, big_b: float, std: float) -> tuple[float, float]:
    """Bits per dimension that the bound from (x, start law) at `big_b` lies above p(x): through the bound, and because
    what is bounded is the density of the first block there, which has noise of its own."""
    phi, chol = exact.marginal(m.F, m.G, m.cov0, np.asarray(big_b))
    cov = chol @ chol.T + std**2 * phi[:, :1] @ phi[:, :1].T
    blur = 0.5 * (std**2 / cov[0, 0] + math.log(cov[0, 0] / std**2) - 1) / math.log(2)
    if m.order == 1:
        return 0.0, blur
    k = cov[1:, :1] / cov[0, 0]
    schur = cov[1:, 1:] - k @ cov[:1, 1:]
    start = m.cov0[1:, 1:]
    trace = np.trace(np.linalg.solve(schur, start + std**2 * k @ k.T))
    logdets = np.linalg.slogdet(schur)[1] - np.linalg.slogdet(start)[1]
    return 0.5 * (trace - (m.order - 1) + logdets) / math.log(2), blur


def gaps(std: float) -> list[dict[str, Any]]:
    """A row for each order and effective noise at t_min."""
    rows = []
    for order in ORDERS:
        for alpha in (0.08, 1e-4):
            m = sde.hold(order=order, alpha=alpha)
            for sigma in SIGMAS:
                big_b = float(exact.integral_of_noise(m.F, m.G, m.cov0, sigma))
                gap, blur = papers_gap(m, big_b, std)
                rows.append(
                    {"order": order, "alpha": alpha, "sigma": sigma, "t_min": big_b, "gap_bits": gap, "blur_bits": blur}
                )
    return rows


def roll_bits(x: np.ndarray, sigma: float, angles: int = 20_000) -> np.ndarray:
    """-log2 p(x) / 2 of the Swiss rolls with noise sigma added, by the midpoint rule over the angle."""
    low, high = toy._ROLL_ANGLES
    t = low + (np.arange(angles) + 0.5) * (high - low) / angles
    scale = toy._ROLL_RADIUS / high
    mean, var = toy._roll_moments()
    roll = scale * (t[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1) - mean)
    unit = np.sqrt(1.0 + scale**2 * var + toy._ROLL_NOISE**2)
    curve = (toy._ROLL_CENTERS[:, None] + roll[None]).reshape(-1, 2) / unit
    variance = (toy._ROLL_NOISE / unit) ** 2 + sigma**2
    bits = np.empty(len(x))
    for i, point in enumerate(x.astype(np.float64)):
        quad = np.sum((point - curve) ** 2 / variance, axis=1)
        least = quad.min()
        log_p = -0.5 * least + np.log(np.mean(np.exp(-0.5 * (quad - least))))
        bits[i] = -(log_p - 0.5 * np.sum(np.log(2 * np.pi * variance))) / 2 / math.log(2)
    return bits


def swissroll(paths: list[Path], config_file: str, num: int, auxiliary: str) -> list[dict[str, Any]]:
    """A row for each work directory: the model's bits per dimension, and the exact ones of the same points."""
    spec = importlib.util.spec_from_file_location("config", config_file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = []
    for path in paths:
        config = module.get_config()
        found = workdir.read(path)
        config.sde.order = found.config["sde"]["order"]
        config.likelihood.num_examples = num
        config.likelihood.auxiliary = auxiliary
        config = read(config)
        model = build.model(config, found.data_shape, found.num_classes, build.statistics(found))
        fresh = functools.partial(init_state, model, build.optimizer(config), config.seed)
        abstract = abstract_state(fresh, Devices.all().replicated)
        with Checkpoints.open_to_read(path.absolute()) as checkpoints:
            params = checkpoints.restore(abstract, None).ema
        test = build.dataset(config, "test").subset(num)
        saved = PartialRows(path / "eval" / f"benchmark_{auxiliary}", num)
        result = nll.evaluate_likelihood(model, params, test, build.likelihood(config), Devices.all(), saved)
        exactly = roll_bits(test.source[:num], sde.SIGMA_MIN)
        each = saved.array()[:, 0] - exactly
        row = {
            "order": model.sde.order,
            "auxiliary": auxiliary,
            "bits": result["bits_per_dim"],
            "error": result["bits_per_dim_error"],
            "exact_bits": float(exactly.mean()),
            "excess": float(each.mean()),
            "excess_error": float(each.std(ddof=1) / math.sqrt(num)),
            "median_excess": float(np.median(each)),
            "nfe": result["likelihood_nfe"],
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Prints a table; writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gap", "swissroll"))
    parser.add_argument("--std", type=float, default=0.5, help="gap: of the data")
    parser.add_argument("--config", default="configs/swissroll_hold.py")
    parser.add_argument("--workdirs", type=Path, nargs="+", default=[])
    parser.add_argument("--num", type=int, default=2000, help="swissroll: test points")
    parser.add_argument("--auxiliary", default="posterior")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args = parser.parse_args()
    if args.what == "gap":
        rows = gaps(args.std)
        print("bits/dim of the papers' bound above -log2 p(x), by order and alpha; columns: effective noise at t_min")
        print(f"{'':14s}" + "".join(f"{sigma:>10.0e}" for sigma in SIGMAS))
        for order in ORDERS:
            for alpha in (0.08, 1e-4):
                of = [r["gap_bits"] + r["blur_bits"] for r in rows if (r["order"], r["alpha"]) == (order, alpha)]
                print(f"n={order} alpha={alpha:<6g}" + "".join(f"{value:>10.3g}" for value in of))
    else:
        rows = swissroll(args.workdirs, args.config, args.num, args.auxiliary)
        print(f"{jax.devices()[0].device_kind}")
    if args.output:
        args.output.write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
