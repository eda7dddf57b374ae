"""Error of the float32 kernels against 60-digit arithmetic, for every process.

python -m benchmarks.kernels --output=docs/results/kernels.json

Each entry relative to the norm of its row, the largest over 25 values of B from 1e-5 to 10. Seconds;
`tests/test_kernels.py` asserts 3e-6.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from hold_jax import kernels, sde
from tests.reference import oracle

PROCESSES = {
    **{f"n={n}": sde.hold(n) for n in range(1, 7)},
    "TOLD": sde.hold(damping="told"),
    "CLD": sde.cld(),
    "PSLD": sde.psld(),
    "VP": sde.vp(),
    "VE": sde.ve(),
}


def errors(process: sde.LinearSDE) -> dict[str, float]:
    """The largest error of the propagator and of both Cholesky factors."""
    times = np.asarray(process.schedule.time(np.geomspace(1e-5, 10.0, 25)), np.float32)
    transition, marginal = kernels.transition(process, np.zeros_like(times), times), kernels.marginal(process, times)
    worst = {"propagator": 0.0, "Cholesky factor, given u(0)": 0.0, "Cholesky factor, given the data": 0.0}
    for i, t in enumerate(times):
        b = float(oracle.integral(process, t))
        phi, noise = oracle.transition(process, b)
        _, total = oracle.marginal(process, b)
        exact = ((transition.phi, phi), (transition.chol, noise), (marginal.chol, total))
        for name, (got, want) in zip(worst, exact, strict=True):
            worst[name] = max(worst[name], float(oracle.row_error(np.asarray(got[i], np.float64), want)))
    return worst


def main() -> None:
    """Prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args = parser.parse_args()
    found = {name: errors(process) for name, process in PROCESSES.items()}
    for name, row in found.items():
        print(f"{name:<6}" + "".join(f"{value:>10.1e}" for value in row.values()))
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
