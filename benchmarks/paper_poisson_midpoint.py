"""The Poisson midpoint method (2405.17068): "50 to 80 calls equal 1,000 of DDPM, and beat ODE samplers at equal calls".

python -m benchmarks.paper_poisson_midpoint --output=docs/results

- gaussian: data N(0, std^2) with the exact network, the law propagated without Monte Carlo: KL of each base and spacing
  at 25, 50 and 80 calls on the grid `log`, orders 1 to 4, the worst of std 0.5, 0.1 and 0.02, for several K; and
  ancestral sampling with 1,000 calls.
- mixture: eight unequal modes on a circle and 25 on a square with their exact denoisers: sliced Wasserstein distance of
  20,000 samples to data over that of a second draw of data (1 is indistinguishable), order 1, as DDPM's.

About 4 minutes of processor time; what is done is kept in --workdir. On a trained network:
benchmarks/paper_poisson_digits.py.
"""

import functools
import itertools

import jax
import numpy as np

from benchmarks import gaussian, report
from benchmarks.samplers import MIXTURES, draw_mixture, mixture_eps, sliced, steps_for
from hold_jax import samplers, sde
from hold_jax.samplers import PoissonMidpoint, grids
from hold_jax.samplers.poisson_midpoint import SPACINGS

STDS, ORDERS = (0.5, 0.1, 0.02), (1, 2, 3, 4)
CALLS, SUB_STEPS = (25, 50, 80), (4, 16, 40)
BASES = ("denoiser", "score")
# Samples of one batch share the clock of `poisson_midpoint`: many batches, or one clock's law is measured.
BATCHES = 100
# Label: sampler, mean calls a step, numbers of calls.
ON_MIXTURES = {
    "ancestral": (samplers.Ancestral(), 1, (50, 80, 1000)),
    "poisson_midpoint": (PoissonMidpoint(K=16), 2 - 1 / 16, (50, 80)),
    "poisson_midpoint, score": (PoissonMidpoint(K=16, base="score"), 2 - 1 / 16, (50, 80)),
    "ddim": (samplers.ddim(), 1, (50, 80)),
    "heun": (samplers.Heun(), 2, (50, 80)),
    "dpmpp_2m": (samplers.dpmpp_2m(), 1, (50, 80)),
    "unipc": (samplers.unipc(), 1, (50, 80)),
}


def exact(n: int) -> report.Rows:
    """Worst KL over the widths at one order."""

    def worst(sampler: object, num: int) -> float:
        m = sde.hold(order=n)
        return max(gaussian.kl(m, sampler, grids.log(m, m.t_min, num), std) for std in STDS)

    rows = []
    for calls in (*CALLS, 1000):
        kl = worst(samplers.Ancestral(), calls - 1)
        rows.append({"data": "gaussian", "order": n, "sampler": "ancestral", "calls": calls, "kl": kl})
    for base, spacing, k, calls in itertools.product(BASES, SPACINGS, SUB_STEPS, CALLS):
        sampler = PoissonMidpoint(K=k, base=base, spacing=spacing)
        row = {"data": "gaussian", "order": n, "sampler": "poisson_midpoint", "base": base, "spacing": spacing}
        rows.append(row | {"K": k, "calls": calls, "kl": worst(sampler, steps_for(calls, 2 - 1 / k))})
    noise = worst(PoissonMidpoint(K=40, base="noise"), 25)
    row = {"data": "gaussian", "order": n, "sampler": "poisson_midpoint", "base": "noise", "spacing": "uniform"}
    return [*rows, row | {"K": 40, "calls": 50, "kl": noise}]


def mixtures(data: str, label: str, num: int) -> report.Rows:
    """Sliced Wasserstein distance over the floor of one sampler, at order 1, DDPM's."""
    (sampler, per_step, counts), law, m = ON_MIXTURES[label], MIXTURES[data](), sde.hold(order=1)
    target = draw_mixture(law, num, 1)
    floor = np.mean([sliced(draw_mixture(law, num, 2 + i), target) for i in range(4)])
    rows = []
    for calls in counts:
        options = {"shape": (num // BATCHES, 2), "num_steps": steps_for(calls, per_step), "grid": "log"}
        draw = functools.partial(samplers.sample, sampler, m, mixture_eps(m, law), **options)
        keys = jax.random.split(jax.random.key(0), BATCHES)
        out = jax.jit(lambda keys, draw=draw: jax.lax.map(lambda key: draw(key=key)[::2], keys))(keys)
        row = {"data": data, "order": 1, "sampler": label, "calls": calls, "nfe": float(np.mean(out[1]))}
        rows.append(row | {"ratio": float(sliced(np.asarray(out[0]).reshape(num, 2), target) / floor)})
    return rows


def main() -> None:
    """Prints tables; writes JSON."""
    parser = report.parser(__doc__, parts=True)
    parser.add_argument("--orders", type=int, nargs="+", default=ORDERS)
    parser.add_argument("--num", type=int, default=20_000, help="mixtures: samples")
    args = parser.parse_args()
    rows: report.Rows = []
    for n in args.orders:
        settings = {"stds": STDS, "calls": CALLS, "K": SUB_STEPS, "bases": BASES, "spacings": sorted(SPACINGS)}
        rows += report.kept(args, f"poisson_gaussian_{n}", settings, lambda n=n: exact(n))
    kl = functools.partial(report.value, rows, "kl", data="gaussian")
    print(f"{'Gaussian, worst KL':<34}" + "".join(f"{f'n={n}, {c}':>11}" for n in args.orders for c in CALLS))
    print(
        f"{'ancestral':<34}"
        + "".join(f"{kl(order=n, sampler='ancestral', calls=c):>11.1e}" for n in args.orders for c in CALLS)
    )
    for base, spacing, k in itertools.product(BASES, SPACINGS, SUB_STEPS):
        of = functools.partial(kl, base=base, spacing=spacing, K=k)
        cells = "".join(f"{of(order=n, calls=c):>11.1e}" for n in args.orders for c in CALLS)
        print(f"{f'{base}, {spacing}, K = {k}':<34}{cells}")
    for n in args.orders:
        thousand, noise = kl(order=n, sampler="ancestral", calls=1000), kl(order=n, base="noise")
        print(f"n={n}: ancestral at 1,000 {thousand:.1e}; noise, K = 40, at 50 {noise:.1e}")
    found: report.Rows = []
    for i, (data, label) in enumerate(itertools.product(MIXTURES, ON_MIXTURES)):
        settings = {"data": data, "order": 1, "sampler": repr(ON_MIXTURES[label]), "num": args.num, "batches": BATCHES}
        make = functools.partial(mixtures, data, label, args.num)
        found += report.kept(args, f"poisson_mixture_{i}", settings, make)
    rows += found
    for data in MIXTURES:
        print(f"\n{data}: sliced Wasserstein over the floor")
        for row in found:
            if row["data"] == data:
                print(f"{row['sampler']:<26}{row['calls']:>6}{row['ratio']:>8.2f}")
    n = args.orders[0]
    best = functools.partial(kl, order=n, sampler="poisson_midpoint", base="denoiser", spacing="uniform", calls=50)
    sentence = (
        f"With the denoiser held, 50 calls (K = 40) have a KL of at most {best(K=40):.1e} for all widths at order {n}, "
        f"1,000 of ancestral sampling {kl(order=n, sampler='ancestral', calls=1000):.1e}; held as score "
        f"{kl(order=n, base='score', spacing='uniform', K=40, calls=50):.1e}."
    )

    report.finish(args, "paper_poisson_midpoint", rows, sentence)


if __name__ == "__main__":
    main()
