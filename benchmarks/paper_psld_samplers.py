"""PSLD's samplers (2402.07211, tables 1 to 3; 2310.07894) on data N(0, std^2) with the exact network: no Monte Carlo.

python -m benchmarks.paper_psld_samplers --output=docs/results

The protocol of the paper: PSLD with Gamma = 0.01, nu = 4.01; `quadratic` times down to 1e-3 and a denoising step
counted among the calls; lambda_s of table 2. The squared Wasserstein distance of a dimension, (std' - std)^2, is summed
over the widths 0.5, 0.1 and 0.02 as a Frechet distance would be, and compared with Euler-Maruyama's at 50 calls; so is
the published FID. Also with the lambda_s and the lambda that are best here, and this package's default sampler. About
3 minutes of processor time.
"""

import functools
from collections.abc import Callable

import numpy as np

from benchmarks import gaussian, report
from hold_jax import samplers, sde
from hold_jax.samplers import ReducedSplitting, grids

STDS, CALLS = (0.5, 0.1, 0.02), (50, 100, 200)
PSLD = sde.psld(Gamma=0.01, nu=4.01)
LAMBDAS = np.geomspace(0.005, 4, 30)
# lambda-DDIM-I and II, over lambda.
CONJUGATE, CONJUGATE_LAMBDAS = {"I": "identity", "II": "ones"}, np.linspace(0, 1, 26)
TUNED = {
    "ROBA": {50: 1.16, 100: 0.37, 200: 0.13},
    "RBAO": {50: 0.7, 100: 0.3, 200: 0.1},
    "ROBAB": {50: 0.2, 100: 0.14, 200: 0.1},
}
FID = {
    "euler_maruyama": {50: 30.81, 100: 7.83, 200: 3.27},
    "sscs": {50: 18.83, 100: 4.83},
    "ROBA": {50: 2.76, 100: 2.36, 200: 2.38},
    "RBAO": {50: 3.33, 100: 2.65, 200: 2.43},
    "ROBAB": {50: 6.86, 100: 3.54, 200: 2.67},
}


def distance(sampler: object, calls: int, grid: str = "quadratic") -> float:
    """The sum of (std' - std)^2 over the widths; inf where the sampler diverges."""
    per_step = 2 if isinstance(sampler, ReducedSplitting) and sampler.scheme == "ROBAB" else 1
    t_min = 1e-3 if grid == "quadratic" else PSLD.t_min
    times = grids.times_of(PSLD, grid, t_min, max(1, (calls - 1) // per_step))
    return sum((gaussian.deviation(PSLD, sampler, times, std) - std) ** 2 for std in STDS)


def best_of(tried: np.ndarray, sampler: Callable[[float], object], calls: int) -> float:
    """The value with the least distance."""
    return min(map(float, tried), key=lambda lam: distance(sampler(lam), calls))


def measured(calls: int) -> report.Rows:
    """All samplers at one number of calls."""
    rows: report.Rows = []

    def add(name: str, sampler: object, grid: str = "quadratic", **more: float) -> None:
        row = {"sampler": name, "calls": calls, "distance": distance(sampler, calls, grid)}
        rows.append(row | {"fid": FID.get(name, {}).get(calls), **more})

    add("euler_maruyama", samplers.EulerMaruyama())
    add("sscs", samplers.Strang(score_time="start"))
    for scheme, table in TUNED.items():
        add(scheme, ReducedSplitting(scheme=scheme, noise_scale=table[calls]), lam=table[calls])
        add(f"{scheme}, lambda_s unset", ReducedSplitting(scheme=scheme))
        best = best_of(LAMBDAS, lambda lam, s=scheme: ReducedSplitting(scheme=s, noise_scale=lam), calls)
        add(f"{scheme}, best lambda_s", ReducedSplitting(scheme=scheme, noise_scale=best), lam=best)
    add("lambda-DDIM, lambda = 0", samplers.Conjugate())
    for name, form in CONJUGATE.items():
        best = best_of(CONJUGATE_LAMBDAS, lambda lam, f=form: samplers.Conjugate(lam=lam, form=f), calls)
        add(f"lambda-DDIM-{name}, best lambda", samplers.Conjugate(lam=best, form=form), lam=best)
    add("gaussian_fitted, log", samplers.gaussian_fitted(), grid="log")
    return rows


def main() -> None:
    """Prints a table; writes JSON."""
    args = report.parser(__doc__, parts=True).parse_args()
    rows: report.Rows = []
    for calls in CALLS:
        settings = {"calls": calls, "lambda_s": LAMBDAS.tolist(), "lambda": CONJUGATE_LAMBDAS.tolist()}
        rows += report.kept(args, f"psld_{calls}", settings, functools.partial(measured, calls))
    unit = {"distance": report.value(rows, "distance", sampler="euler_maruyama", calls=50), "fid": 30.81}
    print(
        f"{'over Euler-Maruyama at 50':<28}"
        + "".join(f"{f'{c} calls':>12}{'FID':>8}" for c in CALLS)
        + f"{'lambda_s, lambda':>28}"
    )
    for name in dict.fromkeys(row["sampler"] for row in rows):
        found = [row for row in rows if row["sampler"] == name]
        cells = [f"{r['distance'] / unit['distance']:>12.1e}" for r in found]
        fids = [f"{r['fid'] / unit['fid']:>8.2f}" if r["fid"] else f"{'':>8}" for r in found]
        lams = ", ".join(f"{r['lam']:.2f}" for r in found if "lam" in r)
        print(f"{name:<28}" + "".join(c + f for c, f in zip(cells, fids, strict=True)) + f"{lams:>28}")
    ratio = {n: report.value(rows, "distance", sampler=n, calls=50) / unit["distance"] for n in ("sscs", "ROBA")}
    unset = report.value(rows, "distance", sampler="ROBA, lambda_s unset", calls=50) / unit["distance"]
    tuned = report.value(rows, "distance", sampler="lambda-DDIM-II, best lambda", calls=50) / unit["distance"]
    zero = report.value(rows, "distance", sampler="lambda-DDIM, lambda = 0", calls=50) / unit["distance"]
    sentence = (
        f"At 50 calls, over Euler-Maruyama's distance: SSCS {ratio['sscs']:.2g} (FID {18.83 / 30.81:.2f}), ROBA with "
        f"the published lambda_s {ratio['ROBA']:.2g} (FID {2.76 / 30.81:.2f}), ROBA without it {unset:.2g}; "
        f"lambda-DDIM at lambda = 0 {zero:.2g}, II at its best lambda {tuned:.2g}."
    )

    report.finish(args, "paper_psld_samplers", rows, sentence)


if __name__ == "__main__":
    main()
