"""One denoiser, every order: a model trained at order 1 sampled by HOLD of orders 1 to 4, without retraining.

python -m benchmarks.parameterizations --workdir=runs/parameterizations --orders 1 --parameterizations sufficient
python -m benchmarks.cross_order --workdir=runs/parameterizations/sufficient_n1_log_normal_seed0 \
  --output=docs/results/cross_order.json

What u_t says of the data is y = q0 + sigma_eff eps, whatever the order (docs/method.md, section 3): with the
parameterization `sufficient` a network sees y and sigma_eff alone, so that the same parameters are a model of every
order (`dataclasses.replace(model, sde=...)`). At order 1 `gaussian`, the default, is the same function (EDM's): any
model of order 1 trained with either does, also main.py's, e.g. the digits as pictures with a convolutional network.

- digits: squared Frechet distance of raw pixels to the training pictures, with jackknife errors; and, at the largest
  number of calls, the distance between the samples of each order and of order 1, beside that of two draws of order 1.
- mixture: the exact denoiser of eight unequal Gaussians in the plane, sliced Wasserstein distance over that of a second
  draw of data, means of eight draws and their standard errors.

Without --workdir only the mixture. About 10 minutes on 2 CPU cores.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from benchmarks.parameterizations import trained_in
from benchmarks.samplers import SUITE, draw_mixture, eight_modes, mixture_eps, steps_for
from hold_jax import parameterization, samplers, sde
from hold_jax.data import to_model_range
from hold_jax.errors import require
from hold_jax.metrics.frechet import frechet_distance, frechet_jackknife, moments
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein
from hold_jax.model import Model


def digits(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each sampler, order and number of calls, and one for each order's distance to order 1."""
    first, params, train, _ = trained_in(args.workdir)
    data = np.asarray(to_model_range(train.gather(np.arange(len(train)))["x"]), np.float64).reshape(len(train), -1)
    require(first.sde.order == 1, "workdir", str(args.workdir), "a model trained with --config.sde.order=1")
    same = first.parameterization in (parameterization.gaussian, parameterization.sufficient)
    require(same, "workdir", str(args.workdir), "a model trained as gaussian or sufficient")

    def draw(order: int, label: str, calls: int, seed: int) -> np.ndarray:
        sampler, per_step = SUITE[label]
        model = dataclasses.replace(first, sde=sde.hold(order=order), parameterization=parameterization.sufficient)
        options = {"num_steps": steps_for(calls, per_step), "grid": "log"}
        out = jax.jit(functools.partial(_of_model, sampler, model, num=args.num, options=options))
        return np.asarray(out(params, jax.random.key(seed)), np.float64).reshape(args.num, -1).clip(-1, 1)

    target, rows, most = moments(data), [], {}
    for label, order, calls in itertools.product(args.samplers, args.orders, args.calls):
        x = draw(order, label, calls, 0)
        if (label, calls) == (args.samplers[0], max(args.calls)):
            most[order] = x
        value, error, bias = frechet_jackknife(x, target)
        row = {"problem": "digits", "sampler": label, "order": order, "calls": calls, "distance": value}
        rows.append(row | {"error": error, "bias": bias})
        print(json.dumps(rows[-1]), flush=True)
    reference = moments(draw(1, args.samplers[0], max(args.calls), 1))
    for order, x in most.items():
        value, error, _ = frechet_jackknife(x, reference)
        rows.append({"problem": "digits", "order": order, "to_order_1": value, "error": error})
        print(json.dumps(rows[-1]), flush=True)
    rng = np.random.default_rng(0)
    floors = [frechet_distance(moments(data[rng.integers(len(data), size=args.num)]), target) for _ in range(8)]
    rows.append({"problem": "digits", "floor": float(np.mean(floors))})
    return rows


def _of_model(sampler: Any, model: Model, params: Any, key: jax.Array, *, num: int, options: dict[str, Any]) -> Any:
    shape = (num, *model.data_shape)
    return samplers.sample(sampler, model.sde, model.eps_fn(params), key=key, shape=shape, **options).x


def mixture(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The same with an exact denoiser."""
    law, num, rows = eight_modes(), args.mixture_num, []
    target = draw_mixture(law, num, 1)
    distance = functools.partial(sliced_wasserstein, num_projections=64)
    floor = np.mean([distance(draw_mixture(law, num, 2 + i), target) for i in range(10)])
    for label, order, calls in itertools.product(args.samplers, args.orders, args.calls):
        sampler, per_step = SUITE[label]
        m = sde.hold(order=order)
        options = {"shape": (num, 2), "num_steps": steps_for(calls, per_step), "grid": "log"}
        draw = jax.jit(functools.partial(samplers.sample, sampler, m, mixture_eps(m, law), **options))
        ratios = [distance(np.asarray(draw(key=jax.random.key(i)).x), target) / floor for i in range(args.draws)]
        row = {"problem": "mixture", "sampler": label, "order": order, "calls": calls}
        error = np.std(ratios, ddof=1) / math.sqrt(args.draws)
        rows.append(row | {"distance": float(np.mean(ratios)), "error": float(error)})
    return rows


def main() -> None:
    """Prints a table; writes JSON; `python -m docs.plots` draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=None, help="of a model of order 1")
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument(
        "--samplers", nargs="+", default=["gaussian_fitted", "lie_trotter"], choices=SUITE, metavar="NAME"
    )
    parser.add_argument("--calls", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--num", type=int, default=3000, help="samples of the model")
    parser.add_argument("--mixture_num", type=int, default=20_000, help="samples of the mixture")
    parser.add_argument("--draws", type=int, default=8, help="how often they are drawn")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args = parser.parse_args()

    logging.set_verbosity(logging.ERROR)  # Orbax tells of reading
    began = time.monotonic()
    rows = ([] if args.workdir is None else digits(args)) + mixture(args)
    table(rows, args)
    print(f"\n{time.monotonic() - began:.0f} s on {jax.devices()[0].device_kind}")
    if args.output:
        args.output.write_text(json.dumps(rows, indent=0) + "\n")


def _find(rows: list[dict[str, Any]], **where: Any) -> list[dict[str, Any]]:
    return [r for r in rows if all(r.get(k) == v for k, v in where.items())]


TITLES = {
    "digits": "trained at order 1: squared Frechet distance of pixels",
    "mixture": "8 Gaussians, exact denoiser: sliced Wasserstein distance / floor",
}


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """One block a problem; orders across."""
    for problem in dict.fromkeys(r["problem"] for r in rows):
        print(f"\n{TITLES[problem]}\n{'sampler':<28}{'calls':<7}" + "".join(f"{f'n = {n}':>18}" for n in args.orders))
        for label, calls in itertools.product(args.samplers, args.calls):
            found = [_find(rows, problem=problem, sampler=label, order=n, calls=calls)[0] for n in args.orders]
            texts = "".join(f"{r['distance']:.3g} +- {r['error']:.1g}".rjust(18) for r in found)
            print(f"{label:<28}{calls:<7}{texts}")
    apart = [r for r in rows if "to_order_1" in r]
    if apart:
        texts = "".join(f"{r['to_order_1']:.3g} +- {r['error']:.1g}".rjust(18) for r in apart)
        print(f"{f'to another draw of order 1, {max(args.calls)} calls':<35}{texts}")
        print(f"as many training pictures, drawn with replacement: {_floor(rows):.3f}")


def _floor(rows: list[dict[str, Any]]) -> float:
    return next(r["floor"] for r in rows if "floor" in r)


if __name__ == "__main__":
    main()
