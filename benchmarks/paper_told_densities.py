"""TOLD++'s figure 1 (2409.07697): the density of the position from a mixture to the prior under TOLD and TOLD++.

python -m benchmarks.paper_told_densities --output=docs/results

As there: 0.2 N(0, 0.5) + 0.4 N(5, 1) + 0.4 N(-5, 1), L = 1, T = 1, 50 steps; not stated, and here 0.1: alpha. The paper
simulates 1,024 points; here q_t is a mixture of three Gaussians in closed form, and its KL from N(0, 1) and its total
variation distance are integrals. Order 1 and CLD's order 2 (critical) beside them, and later times. Seconds.
"""

import numpy as np

from benchmarks import report
from hold_jax import sde
from hold_jax.numerics import exact

WEIGHTS, MEANS, VARIANCES = np.array([0.2, 0.4, 0.4]), np.array([0.0, 5.0, -5.0]), np.array([0.5, 1.0, 1.0])
MODELS = {
    "TOLD": sde.hold(damping="told", L_inv=1.0, alpha=0.1, T=1.0),
    "TOLD++": sde.hold(L_inv=1.0, alpha=0.1, T=1.0),
    "order 2": sde.hold(order=2, L_inv=1.0, alpha=0.1, T=1.0),
    "order 1": sde.hold(order=1, L_inv=1.0, T=1.0),
}
GRID = np.linspace(-12, 12, 4801)
TIMES = (0.5, 1.0, 2.0, 3.0, 4.0)


def density(m: sde.LinearSDE, t: float) -> np.ndarray:
    """Of the position at time t on `GRID`."""
    phi, chol = exact.marginal(m.F, m.G, m.cov0, m.schedule.integral(0.0, np.asarray(t)))
    variance = phi[0, 0] ** 2 * VARIANCES + chol[0, 0] ** 2
    gap = GRID[:, None] - phi[0, 0] * MEANS
    return np.exp(-(gap**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance) @ WEIGHTS


def main() -> None:
    """Prints a table; writes JSON."""
    args = report.parser(__doc__).parse_args()
    prior = np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi)
    rows: report.Rows = []
    for name, m in MODELS.items():
        for t in TIMES:
            p = density(m, t)
            kl = float(np.trapezoid(p * np.log(np.maximum(p, 1e-300) / prior), GRID))
            rows.append(
                {"model": name, "t": t, "kl": kl, "variation": float(np.trapezoid(np.abs(p - prior), GRID) / 2)}
            )
    print(f"{'KL (total variation)':<22}" + "".join(f"{f't = {t:g}':>18}" for t in TIMES))
    for name in MODELS:
        cells = [[report.value(rows, key, model=name, t=t) for key in ("kl", "variation")] for t in TIMES]
        print(f"{name:<22}" + "".join(f"{kl:>10.4f} ({tv:.3f})" for kl, tv in cells))
    told, plus = ([report.value(rows, "kl", model=name, t=t) for t in TIMES] for name in ("TOLD", "TOLD++"))
    at = [f"{plus[i]:.3g} against {told[i]:.3g} at t = {TIMES[i]:g}" for i in (1, 2, 3)]
    sentence = f"KL of the position from the prior, TOLD++ against TOLD: {'; '.join(at)}."

    report.finish(args, "paper_told_densities", rows, sentence)


if __name__ == "__main__":
    main()
