"""Samplers on trained models: Frechet distance to the data against network calls, one work directory an order.

for n in 1 2 3 4; do
  python main.py --config=configs/digits_hold.py --mode=train --workdir=runs/digits$n --config.sde.order=$n \
    --config.model.parameterization=gaussian
done
python -m benchmarks.samplers_trained --workdirs runs/digits1 runs/digits2 ... \
  --output=docs/results/samplers_digits.json

Squared Frechet distance between raw pixels of samples and the training pictures; the floor is what as many training
pictures drawn with replacement give. Every sampler starts from the same prior draws. About 30 minutes for four digits
models on 2 CPU cores.
"""

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import hold_jax
from benchmarks.samplers import MIXTURE, SUITE, steps_for
from hold_jax import samplers
from hold_jax.app import build
from hold_jax.app.config import Config
from hold_jax.data import to_model_range
from hold_jax.metrics.frechet import frechet_distance, moments
from hold_jax.model import Model

CALLS = (10, 20, 50)
DEFAULT = [name for name in MIXTURE if name != "dpmpp_3m"]


def training_data(config: Config) -> np.ndarray:
    """The training data of a run (N, d), in the model's range."""
    data = np.asarray(to_model_range(build.dataset(config, "train").source), np.float64)
    return data.reshape(len(data), -1)


def main() -> None:
    """Prints a table; writes JSON; `python -m docs.plots` draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdirs", type=Path, nargs="+", required=True)
    parser.add_argument("--samplers", nargs="+", default=DEFAULT, choices=SUITE, metavar="NAME")
    parser.add_argument("--grids", nargs="+", default=["karras", "log"], choices=samplers.GRIDS)
    parser.add_argument("--calls", type=int, nargs="+", default=list(CALLS))
    parser.add_argument("--num", type=int, default=1500, help="samples, drawn at once")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args = parser.parse_args()

    began, rows = time.monotonic(), []
    for path in args.workdirs:
        trained = hold_jax.load(path)
        model, data = trained.model, training_data(trained.config)
        target = moments(data)
        rng = np.random.default_rng(0)
        floors = [frechet_distance(moments(data[rng.integers(len(data), size=args.num)]), target) for _ in range(8)]
        rows.append({"order": model.sde.order, "sampler": "floor", "frechet": float(np.mean(floors))})
        for label in args.samplers:
            sampler, per_step = SUITE[label]
            for grid in args.grids:
                for calls in args.calls:
                    options = {"num_steps": steps_for(calls, per_step), "grid": grid}
                    run = jax.jit(functools.partial(draw, sampler, model, num=args.num, options=options))
                    out = run(trained.params, jax.random.key(0))
                    x = np.asarray(out.x, np.float64).reshape(args.num, -1).clip(-1, 1)
                    rows.append(
                        {
                            "order": model.sde.order,
                            "sampler": label,
                            "grid": grid,
                            "calls": calls,
                            "nfe": int(out.nfe),
                            "frechet": float(frechet_distance(moments(x), target)),
                        }
                    )
                    print(json.dumps(rows[-1]), flush=True)
    _table(rows, args)
    print(f"\n{time.monotonic() - began:.0f} s on {jax.devices()[0].device_kind}")
    if args.output:
        args.output.write_text(json.dumps(rows, indent=0) + "\n")


def draw(sampler: Any, model: Model, params: Any, key: jax.Array, *, num: int, options: dict[str, Any]) -> Any:
    """`samplers.sample` of a trained model."""
    shape = (num, *model.data_shape)
    return samplers.sample(sampler, model.sde, model.eps_fn(params), key=key, shape=shape, **options)


def _values(rows: list[dict[str, Any]], **where: Any) -> list[float]:
    return [r["frechet"] for r in rows if all(r.get(k) == v for k, v in where.items())]


def _orders(rows: list[dict[str, Any]]) -> list[int]:
    return sorted({r["order"] for r in rows})


def _table(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    cells = [(n, c) for n in _orders(rows) for c in args.calls]
    print(f"\n{'sampler':<28}{'grid':<10}" + "".join(f"{f'n={n}, {c}':>10}" for n, c in cells))
    for label in args.samplers:
        for grid in args.grids:
            of = functools.partial(_values, rows, sampler=label, grid=grid)
            print(f"{label:<28}{grid:<10}" + "".join(f"{of(order=n, calls=c)[0]:>10.3f}" for n, c in cells))
    print(f"{'floor':<38}" + "".join(f"{_values(rows, order=n, sampler='floor')[0]:>10.3f}" for n, _ in cells))


if __name__ == "__main__":
    main()
