"""Poisson midpoint (2405.17068) on a trained network: 50 and 80 calls against 1,000 of ancestral sampling, on digits.

python main.py --config=configs/digits_hold.py --mode=train --workdir=runs/digits
python -m benchmarks.paper_poisson_digits --workdir=runs/digits --output=docs/results

Squared Frechet distance of raw pixels to the training pictures, all samplers from the same prior draws. The floor is
what as many training pictures drawn with replacement give. The error is the jackknife's over ten parts.
About 15 minutes of processor time.
"""

import functools
from pathlib import Path

import jax
import numpy as np

import hold_jax
from benchmarks import report
from benchmarks.samplers import steps_for
from benchmarks.samplers_trained import draw, training_data
from hold_jax import samplers
from hold_jax.metrics.frechet import frechet_distance, moments

# Label: sampler, mean calls a step, numbers of calls.
SUITE = {
    "poisson_midpoint": (samplers.PoissonMidpoint(K=16), 2 - 1 / 16, (50, 80)),
    "poisson_midpoint, score": (samplers.PoissonMidpoint(K=16, base="score"), 2 - 1 / 16, (50,)),
    "ddim": (samplers.ddim(), 1, (50,)),
    "heun": (samplers.Heun(), 2, (50,)),
    "dpmpp_2m": (samplers.dpmpp_2m(), 1, (50,)),
    "gaussian_fitted": (samplers.gaussian_fitted(), 1, (50,)),
    "ancestral": (samplers.Ancestral(), 1, (50, 80, 1000)),
}


def main() -> None:
    """Prints a table; writes JSON."""
    parser = report.parser(__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--num", type=int, default=200, help="samples of each")
    args = parser.parse_args()
    trained = hold_jax.load(args.workdir)
    model, data = trained.model, training_data(trained.config)
    target, rng = moments(data), np.random.default_rng(0)
    floors = [frechet_distance(moments(data[rng.integers(len(data), size=args.num)]), target) for _ in range(20)]
    rows = [{"sampler": "floor", "calls": 0, "distance": float(np.mean(floors)), "error": float(np.std(floors))}]
    print(f"{'sampler':<26}{'calls':>6}{'made':>6}{'distance':>10}{'error':>8}")
    for label, (sampler, per_step, counts) in SUITE.items():
        for calls in counts:
            options = {"num_steps": steps_for(calls, per_step), "grid": "log"}
            run = jax.jit(functools.partial(draw, sampler, model, num=args.num, options=options))
            out = run(trained.params, jax.random.key(0))
            x = np.asarray(out.x, np.float64).reshape(args.num, -1).clip(-1, 1)
            parts = [np.delete(x, np.arange(i, args.num, 10), axis=0) for i in range(10)]
            left = np.array([frechet_distance(moments(part), target) for part in parts])
            row = {"sampler": label, "calls": calls, "nfe": int(out.nfe)}
            row |= {"distance": float(frechet_distance(moments(x), target))}
            rows.append(row | {"error": float(np.sqrt(9 / 10 * np.sum((left - left.mean()) ** 2)))})
            print(f"{label:<26}{calls:>6}{row['nfe']:>6}{row['distance']:>10.3f}{rows[-1]['error']:>8.3f}", flush=True)
    of = functools.partial(report.value, rows, "distance")
    sentence = (
        f"On digits, {args.num} samples (floor {rows[0]['distance']:.3f}): Poisson midpoint at 50 and 80 calls "
        f"{of(sampler='poisson_midpoint', calls=50):.3f} and {of(sampler='poisson_midpoint', calls=80):.3f}, ancestral "
        f"at 1,000 {of(sampler='ancestral', calls=1000):.3f}, at 50 {of(sampler='ancestral', calls=50):.3f}; "
        f"DDIM at 50 {of(sampler='ddim', calls=50):.3f}, the default {of(sampler='gaussian_fitted', calls=50):.3f}."
    )

    report.finish(args, "paper_poisson_digits", rows, sentence)


if __name__ == "__main__":
    main()
