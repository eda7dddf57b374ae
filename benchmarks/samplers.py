"""Every sampler's quality against network calls, where the truth is known exactly.

python -m benchmarks.samplers gaussian --output=docs/results/samplers_gaussian.json
python -m benchmarks.samplers mixture --output=docs/results/samplers_mixture.json

- gaussian: data N(0, std^2). Every sampler is affine, so the law of its x is propagated exactly through its own step,
  without Monte Carlo; its KL for every sampler and grid, orders 1 to 4, std 0.5, 0.1, 0.02. The calls include the
  final denoising. About 15 minutes on 2 CPU cores.
- mixture: eight unequal modes on a circle, and 25 on a square, with their exact denoisers: sliced Wasserstein
  distance of 100,000 samples to data, over that of a second draw of data (1 is indistinguishable). About 15 minutes.
"""

import argparse
import functools
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels, samplers, sde
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein
from hold_jax.numerics import exact
from hold_jax.samplers import grids

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference.propagate import gaussian_row, propagate, propagate_poisson

ORDERS = (1, 2, 3, 4)
STDS = (0.5, 0.1, 0.02)
CALLS = (10, 20, 35, 50, 100, 200)

# Label: sampler, mean calls a step.
SUITE: dict[str, tuple[Any, float]] = {
    "euler_maruyama": (samplers.EulerMaruyama(), 1),
    "lie_trotter": (samplers.LieTrotter(), 1),
    "lie_trotter_split": (samplers.lie_trotter_split(), 1),
    "splitting": (samplers.Splitting(), 1),
    "reduced_splitting (ROBA)": (samplers.ReducedSplitting(), 1),
    "strang": (samplers.Strang(), 1),
    "sscs (strang, start)": (samplers.Strang(score_time="start"), 1),
    "poisson_midpoint (K=16)": (samplers.PoissonMidpoint(K=16), 2 - 1 / 16),
    "predictor_corrector": (samplers.PredictorCorrector(), 2),
    "ancestral": (samplers.Ancestral(), 1),
    "ddim": (samplers.ddim(), 1),
    "ddim (probability_flow)": (samplers.ddim(gauge="probability_flow"), 1),
    "ddim (churn=1)": (samplers.ddim(churn=1.0), 1),
    "heun": (samplers.Heun(), 2),
    "dpmpp_2m": (samplers.dpmpp_2m(), 1),
    "dpmpp_2m (churn=1)": (samplers.dpmpp_2m(churn=1.0), 1),
    "dpmpp_3m": (samplers.dpmpp_3m(), 1),
    "unipc": (samplers.unipc(), 1),
    "gaussian_fitted": (samplers.gaussian_fitted(), 1),
    "gaussian_fitted (churn=0)": (samplers.gaussian_fitted(churn=0.0), 1),
    "gaussian_fitted (cholesky, churn=0)": (samplers.gaussian_fitted(churn=0.0, gauge="cholesky"), 1),
}
GRIDS = ("uniform", "quadratic", "karras", "log")
MIXTURE = (
    "euler_maruyama",
    "lie_trotter",
    "sscs (strang, start)",
    "ancestral",
    "ddim",
    "heun",
    "dpmpp_2m",
    "dpmpp_3m",
    "unipc",
    "gaussian_fitted",
    "gaussian_fitted (churn=0)",
)


def steps_for(calls: int, per_step: float) -> int:
    """Steps that fit into `calls` with the final denoising."""
    return max(1, int((calls - 1) // per_step))


# --- Gaussian data: exact -------------------------------------------------------------------------------


def kl_of_x(m: sde.LinearSDE, sampler: Any, times: np.ndarray, std: float) -> float:
    """KL in nats per data dimension of the law of the denoised sample x from what exact integration to t_min gives.

    That law, N(0, std^4 / (std^2 + sigma_min^2)), is the data's but for the last 0.002 of noise: its own KL from the
    data is 2e-5 at std 0.02, the same for all samplers, and says nothing of them.
    """
    law_of = propagate_poisson if isinstance(sampler, samplers.PoissonMidpoint) else propagate
    law = law_of(sampler, m, times, mean=0.0, std=std, factors=gaussian_row)
    # D = (l u - eps_n) / w_n, eps_n = row u.
    row, a = gaussian_row(m, times[-1], std)
    _, chol = exact.marginal(m.F, m.G, m.cov0, m.schedule.integral(0.0, times[-1]))
    inverse = exact.solve_lower(chol, np.eye(m.order))
    gain = (inverse[-1] - row) / (inverse[-1] @ a)
    sigma = exact.effective_noise(m.F, m.G, m.cov0, m.schedule.integral(0.0, times[-1]))
    ratio = gain @ law.cov @ gain * (std**2 + sigma**2) / std**4
    return float(0.5 * (ratio - 1 - np.log(ratio)))


def gaussian(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each sampler, grid, order, width and number of calls."""
    rows = []
    for label, order in itertools.product(args.samplers, args.orders):
        print(f"{label}, order {order}", file=sys.stderr, flush=True)
        sampler, per_step = SUITE[label]
        m = sde.hold(order=order)
        for std, grid, calls in itertools.product(STDS, GRIDS, CALLS):
            times = grids.times_of(m, grid, m.t_min, steps_for(calls, per_step))
            with np.errstate(over="ignore"):
                kl = kl_of_x(m, sampler, times, std)
            rows.append({"sampler": label, "grid": grid, "order": order, "std": std, "calls": calls, "kl": kl})
    return rows


def worst(rows: list[dict[str, Any]], label: str, order: int, grid: str) -> list[float]:
    """The largest KL over the widths, for each number of calls."""
    found = [
        [r["kl"] for r in rows if (r["sampler"], r["order"], r["grid"], r["calls"]) == (label, order, grid, calls)]
        for calls in CALLS
    ]
    return [max(values) for values in found]


def best_grid(rows: list[dict[str, Any]], label: str, orders: list[int]) -> str:
    """The grid with the least worst KL at 20 calls, over all orders."""
    at = CALLS.index(20)
    return min(GRIDS, key=lambda grid: max(worst(rows, label, order, grid)[at] for order in orders))


def table_gaussian(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Worst KL over the widths, each sampler on its best grid."""
    for order in args.orders:
        print(f"\norder {order}: largest KL over std {STDS} at its best grid\n{'sampler':<37}{'grid':<11}", end="")
        print("".join(f"{calls:>10}" for calls in CALLS))
        for label in args.samplers:
            grid = best_grid(rows, label, args.orders)
            print(f"{label:<37}{grid:<11}" + "".join(f"{v:>10.1e}" for v in worst(rows, label, order, grid)))


# --- Mixtures: exact denoiser, many samples ----------------------------------------------------------------


def eight_modes() -> tuple[np.ndarray, np.ndarray, float]:
    """Means (8, 2), unequal weights (8,), common deviation."""
    angle = 2 * np.pi * np.arange(8) / 8
    weights = np.arange(1.0, 9.0)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * 0.9, weights / weights.sum(), 0.05


def grid_modes() -> tuple[np.ndarray, np.ndarray, float]:
    """Means (25, 2) on a square, equal weights, common deviation."""
    line = np.linspace(-1, 1, 5)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2), np.full(25, 1 / 25), 0.03


sliced = functools.partial(sliced_wasserstein, num_projections=64)
MIXTURE_GRIDS = ("karras", "log")
MIXTURES = {"8 unequal modes": eight_modes, "25-mode grid": grid_modes}


def draw_mixture(mixture: tuple[np.ndarray, np.ndarray, float], num: int, seed: int) -> np.ndarray:
    """(num, 2) draws."""
    means, weights, std = mixture
    rng = np.random.default_rng(seed)
    return means[rng.choice(len(weights), num, p=weights)] + std * rng.standard_normal((num, 2))


def mixture_eps(m: sde.LinearSDE, mixture: tuple[np.ndarray, np.ndarray, float]) -> Any:
    """The exact eps_fn: the posterior mean of a Gaussian mixture given y = q0 + sigma_eff eps."""
    means, weights, std = mixture
    means, log_weights = jnp.asarray(means, jnp.float32), jnp.log(jnp.asarray(weights, jnp.float32))

    def eps_fn(u: jax.Array, t: jax.Array) -> jax.Array:
        y, sigma = kernels.sufficient_statistic(m, u, t)
        variance = std**2 + sigma**2
        gap = y[:, None] - means
        posterior = jax.nn.softmax(log_weights - jnp.sum(gap**2, axis=-1) / (2 * variance), axis=-1)
        return kernels.last_noise(m, u, t, posterior @ means + std**2 / variance * (y - posterior @ means))

    return eps_fn


def mixture(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each sampler, grid, order, data set and number of calls."""
    rows = []
    for data, order in itertools.product(MIXTURES, args.orders):
        law = MIXTURES[data]()
        target = draw_mixture(law, args.num, 1)
        floor = np.mean([sliced(draw_mixture(law, args.num, 2 + i), target) for i in range(3)])
        m = sde.hold(order=order)
        for label, grid in itertools.product(args.samplers, MIXTURE_GRIDS):
            sampler, per_step = SUITE[label]
            for calls in (10, 20, 50):
                draw = jax.jit(
                    functools.partial(
                        samplers.sample,
                        sampler,
                        m,
                        mixture_eps(m, law),
                        shape=(args.num, 2),
                        num_steps=steps_for(calls, per_step),
                        grid=grid,
                    )
                )
                out = draw(key=jax.random.key(0))
                ratio = sliced(np.asarray(out.x), target) / floor
                row = {"data": data, "sampler": label, "grid": grid, "order": order, "calls": calls}
                rows.append(row | {"nfe": int(out.nfe), "sliced_wasserstein_over_floor": float(ratio)})
    return rows


def _ratio(rows: list[dict[str, Any]], **where: Any) -> float:
    (row,) = [r for r in rows if all(r[k] == v for k, v in where.items())]
    return row["sliced_wasserstein_over_floor"]


def table_mixture(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """The better of the two grids at each number of calls."""
    for data in MIXTURES:
        print(f"\n{data}: sliced Wasserstein distance over the floor, better of {' and '.join(MIXTURE_GRIDS)}")
        print(f"{'sampler':<37}" + "".join(f"{f'n={n}, {c}':>10}" for n in args.orders for c in (10, 20, 50)))
        for label in args.samplers:
            cells = [
                min(_ratio(rows, data=data, sampler=label, grid=g, order=n, calls=c) for g in MIXTURE_GRIDS)
                for n in args.orders
                for c in (10, 20, 50)
            ]
            print(f"{label:<37}" + "".join(f"{v:>10.2f}" for v in cells))


PARTS = {
    "gaussian": (gaussian, table_gaussian),
    "mixture": (mixture, table_mixture),
}


def main() -> None:
    """Prints a table; writes JSON; `python -m docs.plots` draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--orders", type=int, nargs="+", default=list(ORDERS))
    parser.add_argument("--samplers", nargs="+", default=None, choices=SUITE, metavar="NAME")
    parser.add_argument("--num", type=int, default=100_000, help="mixture: samples")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args = parser.parse_args()
    run, table = PARTS[args.part]
    args.samplers = args.samplers or (list(MIXTURE) if args.part == "mixture" else list(SUITE))
    began = time.monotonic()
    rows = run(args)
    table(rows, args)
    print(f"\n{time.monotonic() - began:.0f} s on {jax.devices()[0].device_kind}")
    if args.output:
        args.output.write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
