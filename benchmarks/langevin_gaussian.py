"""Langevin methods on Gaussian targets: bias, contraction and cost, exactly (no Monte Carlo).

    python -m benchmarks.langevin_gaussian bias       # bias against step size, fitted orders; the claim of 2405.17068
    python -m benchmarks.langevin_gaussian cost       # gradients for one e-fold of contraction at a bias; rates
    python -m benchmarks.langevin_gaussian tables     # printed from the JSON file; the figures: python -m docs.plots

Bias is the largest relative error of the position's stationary variance over the target's directions. Cost is the
number of gradients in which the mean of the slowest direction shrinks by e. Files: docs/results/langevin_*.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hold_jax.langevin import METHODS, Dynamics

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference import langevin_law

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
ORDERS = (1, 2, 3, 4)
CONDITIONS = (1, 10, 100, 1000)
TOLERANCES = (0.1, 0.01, 0.001)
CURVATURES = np.logspace(0, 3, 10)
# What is multiplied: the friction and every coupling but the first, which only sets the unit of time.
FRICTIONS = (1, 2, 4, 8, 16, 32)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "euler_maruyama": ("euler_maruyama", {}),
    "exponential_euler": ("exponential_euler", {}),
    "strang": ("strang", {}),
    "baoab": ("baoab", {}),
    "obabo": ("obabo", {}),
    "randomized_midpoint": ("randomized_midpoint", {}),
    "poisson_midpoint, K = 4": ("poisson_midpoint", {"K": 4}),
    "poisson_midpoint, K = 16": ("poisson_midpoint", {"K": 16}),
    "picard_lagrange": ("picard_lagrange", {}),
}


def dynamics_of(order: int, friction: float = 1) -> Dynamics:
    """Critical damping for unit curvature with friction and the couplings after the first multiplied."""
    base = Dynamics(order)
    gammas = np.array(base.gammas)
    gammas[1:] *= friction
    return Dynamics(order, gammas.tolist(), friction * base.xi if order > 1 else base.xi)


def measure(name: str, options: dict[str, Any], dynamics: Dynamics, h: float, curvatures: np.ndarray) -> tuple:
    """Relative errors of the variances and contraction a step, (curvatures,), and gradients a step."""
    maps = langevin_law.maps(METHODS[name](**options), dynamics, h, curvatures)
    errors = langevin_law.stationary(maps)[:, 0, 0] * curvatures - 1
    return errors, langevin_law.contraction(maps), maps.num_gradients


def bias() -> dict[str, Any]:
    """At curvature 1: bias against h, and Poisson midpoint with K growing as 1 / h."""
    unit = np.ones(1)
    hs = [2.0**-j for j in range(1, 8)]
    rows = []
    for (label, (name, options)), order in itertools.product(CASES.items(), ORDERS):
        found = [measure(name, options, Dynamics(order), h, unit) for h in hs]
        errors = [abs(float(e[0])) for e, _, _ in found]
        # From the steps at which float64 still resolves the bias.
        fit = [(h, e) for h, e in zip(hs, errors, strict=True) if 1e-11 < e < 0.1][-3:]
        slope = float(np.polyfit(*np.log(np.array(fit)).T, 1)[0]) if len(fit) == 3 else None
        rows.append(dict(case=label, order=order, h=hs, bias=errors, gradients=found[0][2], fitted_order=slope))
        print(f"{label:<26} n = {order}  order {'exact' if slope is None else round(slope, 2)}", flush=True)
    claim = []
    for order in (1, 2, 3):
        for h in hs[:6]:
            K = max(2, round(2 / h))
            e, _, calls = measure("poisson_midpoint", {"K": K}, Dynamics(order), h, unit)
            # Langevin Monte Carlo with as many gradients for the same time.
            lmc, _, _ = measure("exponential_euler", {}, Dynamics(order), h / calls, unit)
            claim.append(dict(order=order, h=h, K=K, gradients=calls, poisson=abs(float(e[0])), lmc=abs(float(lmc[0]))))
            print(claim[-1], flush=True)
    return {"methods": rows, "claim": claim}


def cost() -> dict[str, Any]:
    """The fewest gradients for one e-fold at a bias, over step sizes and frictions; rates in continuous time."""
    rows = []
    for (label, (name, options)), order in itertools.product(CASES.items(), ORDERS):
        steps = [2 * 1.5**-j for j in range(24 if order == 1 else 18)]
        best: dict[tuple[int, float, bool], dict[str, float]] = {}
        for friction, h in itertools.product(FRICTIONS if order > 1 else (1,), steps):
            errors, rates, calls = measure(name, options, dynamics_of(order, friction), h, CURVATURES)
            for condition, tolerance, tuned in itertools.product(CONDITIONS, TOLERANCES, (False, True)):
                inside = CURVATURES <= condition * 1.001
                worst = np.abs(errors[inside]).max()
                slowest = rates[inside].min()
                if not (worst <= tolerance and slowest > 1e-9) or (friction != 1 and not tuned):
                    continue
                gradients = float(calls / slowest)
                key = (condition, tolerance, tuned)
                if gradients < best.get(key, {"gradients": np.inf})["gradients"]:
                    best[key] = dict(gradients=gradients, h=h, friction=friction, bias=float(worst))
        for (condition, tolerance, tuned), found in best.items():
            rows.append(dict(case=label, order=order, condition=condition, tolerance=tolerance, tuned=tuned, **found))
        print(f"{label:<26} n = {order} done", flush=True)
    return {"cost": rows, "rates": continuous_rates()}


def continuous_rates() -> list[dict[str, Any]]:
    """The spectral gap of the dynamics itself, over curvatures from 1 to the condition number."""
    rows = []
    frictions = np.logspace(-1, 2.5, 141)
    for order, condition in itertools.product(ORDERS, CONDITIONS):
        curvatures = np.logspace(0, np.log10(condition), 61)

        def gap(friction: float, order: int = order, curvatures: np.ndarray = curvatures) -> float:
            dynamics = dynamics_of(order, friction)
            pull = np.outer(dynamics.kick, np.eye(order)[0])
            drifts = dynamics.linear[None] - curvatures[:, None, None] * pull
            return float(-np.linalg.eigvals(drifts).real.max())

        gaps = [gap(f) for f in (frictions if order > 1 else [1.0])]
        best = int(np.argmax(gaps))
        friction = float(frictions[best]) if order > 1 else 1.0
        rows.append(dict(order=order, condition=condition, critical=gap(1), tuned=gaps[best], friction=friction))
    return rows


def tables(results: dict[str, Any]) -> None:
    """Cost of every method and order; the winner of each column."""
    for condition in CONDITIONS:
        print(
            f"\ncondition number {condition}: gradients for one e-fold at a bias of at most "
            + ", ".join(map(str, TOLERANCES))
        )
        for label, order in itertools.product(CASES, ORDERS):
            found = {
                row["tolerance"]: row
                for row in results["cost"]
                if row["case"] == label and row["order"] == order and row["condition"] == condition and row["tuned"]
            }
            texts = [
                f"{found[t]['gradients']:.3g} (h {found[t]['h']:.2g}, x{found[t]['friction']})" if t in found else "-"
                for t in TOLERANCES
            ]
            print(f"{label:<26} n = {order}  " + "".join(f"{text:<24}" for text in texts))
        for tolerance in TOLERANCES:
            rows = [r for r in results["cost"] if r["condition"] == condition and r["tolerance"] == tolerance]
            rows = [r for r in rows if r["tuned"] and r["case"] != "baoab"]
            for row in sorted(rows, key=lambda r: r["gradients"])[:3]:
                print(f"  bias {tolerance}: {row['case']}, n = {row['order']}: {row['gradients']:.3g}")
    print("\nspectral gap in continuous time: critical damping at the widest direction / friction tuned (factor)")
    for row in results["rates"]:
        gaps = f"{row['critical']:.3g} / {row['tuned']:.3g} (x{row['friction']:.2g})"
        print(f"n = {row['order']}, condition {row['condition']}: {gaps}")


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bias", "cost", "tables"))
    what = parser.parse_args().what
    RESULTS.mkdir(exist_ok=True)
    if what == "tables":
        return tables(json.loads((RESULTS / "langevin_cost.json").read_text()))
    results = {"bias": bias, "cost": cost}[what]()
    (RESULTS / f"langevin_{what}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
