"""Mixing time: how fast the forward process reaches the prior. HOLD's reason for more orders, TOLD++'s for its damping.

python -m benchmarks.paper_mixing --output=docs/results

KL(law of u_B given a data point q0 = 1 | prior) in nats a dimension, exactly: both are Gaussian. For critical HOLD of
order 1 to 6, TOLD and CLD; with the spectral gap -max Re(eigenvalues of F), the B at which the KL falls below 1e-2 and
1e-4, the same B over that at which sigma_eff = 1 (B is a unit of time that each paper chooses; this ratio is free of
it), and the steps that Euler-Maruyama needs for a KL of 1e-2 in sampling data of std 0.5 from that prior. And over the
friction xi, at the couplings of critical damping, for n = 2, 3 and 4. Seconds.
"""

import numpy as np

from benchmarks import gaussian, report
from hold_jax import sde
from hold_jax.numerics import exact
from hold_jax.samplers import EulerMaruyama, grids
from hold_jax.sde import LinearSDE

PROCESSES = {
    **{f"critical, n = {n}": sde.hold(order=n) for n in range(1, 7)},
    "TOLD": sde.hold(damping="told"),
    "CLD": sde.cld(),
}
FRICTIONS = np.linspace(0.3, 2.5, 45)
TIMES = np.linspace(0.05, 16, 1600)


def gap(m: LinearSDE) -> float:
    """The slowest rate at which a mean decays."""
    return float(-np.linalg.eigvals(m.F).real.max())


def divergence(m: LinearSDE, big_b: np.ndarray) -> np.ndarray:
    """KL of u_B | q0 = 1 from the prior, (N,)."""
    phi, chol = exact.marginal(m.F, m.G, m.cov0, big_b)
    whiten = np.linalg.inv(np.linalg.cholesky(m.prior_cov))
    spread, mean = whiten @ chol, (whiten @ phi[..., :1])[..., 0]
    log_det = 2 * np.log(np.abs(np.linalg.det(spread)))
    return 0.5 * ((spread**2).sum(axis=(1, 2)) - m.order - log_det + (mean**2).sum(axis=1))


def mixed_at(m: LinearSDE, level: float) -> float:
    """The first B from which the KL stays below a level."""
    above = np.flatnonzero(divergence(m, TIMES) > level)
    return float(TIMES[min(above[-1] + 1, len(TIMES) - 1)]) if len(above) else float(TIMES[0])


def sampler_steps(m: LinearSDE) -> int:
    """Steps of Euler-Maruyama on the grid `log` for a KL of 1e-2 on data of std 0.5."""
    for num in range(4, 400, 4):
        if gaussian.kl(m, EulerMaruyama(), grids.log(m, m.t_min, num), 0.5) < 1e-2:
            return num
    return 400


def main() -> None:
    """Prints a table; writes JSON."""
    args = report.parser(__doc__).parse_args()
    rows: report.Rows = []
    print(f"{'process':<18}{'gap':>7}{'B(1e-2)':>9}{'B(1e-4)':>9}{'over B(sigma=1)':>17}{'EM steps':>10}")
    for name, m in PROCESSES.items():
        unit = float(exact.integral_of_noise(m.F, m.G, m.cov0, np.array(1.0)))
        first, second = mixed_at(m, 1e-2), mixed_at(m, 1e-4)
        row = {"process": name, "gap": gap(m), "mixed_1e-2": first, "mixed_1e-4": second, "unit": unit}
        rows.append(row | {"relative": second / unit, "em_steps": sampler_steps(m)})
        print(f"{name:<18}{gap(m):>7.3f}{first:>9.2f}{second:>9.2f}{second / unit:>17.2f}{rows[-1]['em_steps']:>10}")
    for n in (2, 3, 4):
        couplings, friction = sde.critical_damping(n)
        for ratio in FRICTIONS:
            m = sde.hold(order=n, gammas=tuple(couplings), xi=ratio * friction, T=10.0)
            rows.append({"order": n, "friction": float(ratio), "gap": gap(m), "mixed_1e-4": mixed_at(m, 1e-4)})
        best = min((row for row in rows if row.get("order") == n), key=lambda row: row["mixed_1e-4"])
        print(f"n = {n}: mixed first at {best['friction']:.2f} of the critical friction, B = {best['mixed_1e-4']:.2f}")
    told, plus, one = (
        report.value(rows, "mixed_1e-4", process=name) for name in ("TOLD", "critical, n = 3", "critical, n = 1")
    )
    ratios = [report.value(rows, "relative", process=f"critical, n = {n}") for n in (1, 2, 3, 4)]
    sentence = (
        f"To a KL of 1e-4 TOLD++ takes B = {plus:.2f}, TOLD {told:.2f}, order 1 {one:.2f}: at most the ratio of the "
        f"spectral gaps (1.7), not orders of magnitude. In units of the B at which sigma_eff = 1, orders 1 to 4 take "
        f"{', '.join(f'{r:.1f}' for r in ratios)}: higher orders go faster from clean data to noise."
    )

    report.finish(args, "paper_mixing", rows, sentence)


if __name__ == "__main__":
    main()
