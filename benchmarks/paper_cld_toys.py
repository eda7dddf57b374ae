"""CLD's toys (2112.07068, code): SSCS against Euler-Maruyama on the diamond of nine modes and the five Swiss rolls.

python -m benchmarks.paper_cld_toys --output=docs/results

CLD's process with exact scores: the diamond is a Gaussian mixture, the rolls are taken as 1,024 narrow Gaussians on
points of theirs. Quadratic times down to 1e-3 and a denoising step, as CLD's code has them; the sliced Wasserstein
distance of 5,000 samples to data over that of a second draw (1 is indistinguishable). About 3 minutes of processor
time.
"""

import functools
import math

import jax
import numpy as np

from benchmarks import report
from benchmarks.samplers import draw_mixture, mixture_eps, sliced
from hold_jax import samplers, sde
from hold_jax.data import toy

CALLS = (20, 50, 100, 200)
SAMPLERS = {
    "euler_maruyama": (samplers.EulerMaruyama(), "quadratic"),
    "sscs": (samplers.Strang(score_time="start"), "quadratic"),
    "strang": (samplers.Strang(), "quadratic"),
    "gaussian_fitted, log": (samplers.gaussian_fitted(), "log"),
}


def diamond() -> tuple[np.ndarray, np.ndarray, float]:
    """Means (9, 2), weights, deviation of the toy `diamond9`."""
    line = np.linspace(-0.5, 0.5, 3)
    square = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    scale = math.sqrt(1 / 6 + 0.04**2)
    turned = square @ np.array([[1.0, -1.0], [1.0, 1.0]]) / math.sqrt(2)
    return turned / scale, np.full(9, 1 / 9), 0.04 / scale


def rolls() -> tuple[np.ndarray, np.ndarray, float]:
    """1,024 points of the toy `swissroll5`, with a deviation of 0.01."""
    return toy.sample("swissroll5", 1024, seed=5).astype(np.float64), np.full(1024, 1 / 1024), 0.01


def main() -> None:
    """Prints a table; writes JSON."""
    parser = report.parser(__doc__)
    parser.add_argument("--num", type=int, default=5000, help="samples")
    args = parser.parse_args()
    m, rows = sde.cld(), []
    for data, law in {"diamond9": diamond(), "swissroll5": rolls()}.items():
        target = draw_mixture(law, args.num, 1)
        floor = np.mean([sliced(draw_mixture(law, args.num, 2 + i), target) for i in range(4)])
        print(f"\n{data}: sliced Wasserstein over the floor\n{'':<24}" + "".join(f"{c:>8}" for c in CALLS))
        for name, (sampler, grid) in SAMPLERS.items():
            for calls in CALLS:
                options = {"shape": (args.num, 2), "num_steps": calls - 1, "grid": grid}
                options |= {"t_min": 1e-3} if grid == "quadratic" else {}
                draw = jax.jit(functools.partial(samplers.sample, sampler, m, mixture_eps(m, law), **options))
                ratio = float(sliced(np.asarray(draw(key=jax.random.key(0)).x), target) / floor)
                rows.append({"data": data, "sampler": name, "calls": calls, "ratio": ratio})
            print(f"{name:<24}" + "".join(f"{r['ratio']:>8.2f}" for r in rows[-len(CALLS) :]), flush=True)
    of = functools.partial(report.value, rows, "ratio", data="diamond9")
    sentence = (
        f"On CLD's diamond SSCS is at {of(sampler='sscs', calls=50):.2f} of the floor with 50 calls, Euler-Maruyama at "
        f"{of(sampler='euler_maruyama', calls=50):.2f}; this package's default sampler at "
        f"{of(sampler='gaussian_fitted, log', calls=50):.2f}."
    )

    report.finish(args, "paper_cld_toys", rows, sentence)


if __name__ == "__main__":
    main()
