"""Linear inverse problems where the posterior is known: every method of `hold_jax.inverse` against network passes.

python -m benchmarks.inverse --output=docs/results

A pass is one evaluation of the network or one backward pass through it (a product with the transposed Jacobian, which
costs about as much): a step of `proximal` is 1 pass, of `dps` and `pigdm` 2, of `moment_matching` 1 + its solver's
steps. The final denoising counts as a step.

- gaussian: smooth random pictures, 8x8, of power 1 / (1 + |k|^2)^2; four operators, noise 0.05. D' is affine in the
  state for all methods but `dps`, so the law of the samples is propagated through the sampler (unipc, 10 to 80 steps)
  without Monte Carlo: KL from the exact posterior, nats a dimension. `dps`: moments of 4,096 samples, of which a sample
  of the exact posterior has about 0.004.
- mixture: five Gaussians in 6 dimensions, three random projections, noise 0.1: sliced Wasserstein distance of 10,000
  samples (gaussian_fitted) to the exact posterior, over that of a second exact draw; mean and standard error over six
  measurements.

All at orders 1 to 4: 4 minutes of processor time an order with --num 3000.
"""

import argparse
import functools
import itertools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from hold_jax import inverse, kernels, operators, samplers, sde
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein
from hold_jax.operators import Operator
from hold_jax.parameterization import EpsFn
from hold_jax.samplers.grids import times_of
from hold_jax.samplers.loop import Draws

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference import measured

# Label: method, passes of a step.
METHODS: dict[str, tuple[Any, int]] = {
    "proximal": (inverse.proximal, 1),
    "dps": (inverse.dps, 2),
    "pigdm": (inverse.pigdm, 2),
    "moment_matching, 1": (functools.partial(inverse.moment_matching, steps=1), 2),
    "moment_matching, 3": (functools.partial(inverse.moment_matching, steps=3), 4),
    "moment_matching, 8": (functools.partial(inverse.moment_matching, steps=8), 9),
}
ORDERS = (1, 2, 3, 4)
STEPS = (10, 20, 40, 80)

SHAPE = (8, 8, 1)
OPERATORS = {
    "inpaint": operators.inpainting(SHAPE, np.random.default_rng(1).uniform(size=SHAPE) < 0.5),
    "superres": operators.superresolution(SHAPE, 2),
    "deblur": operators.deblurring(SHAPE, 1.0),
    "compress": operators.compressed_sensing(SHAPE, 0.25),
}
DPS_SAMPLES = 4096


class Run:
    """A sampler whose compiled step serves every number of steps."""

    def __init__(self, m: sde.LinearSDE, sampler: Any, eps_fn: EpsFn):
        self._m, self._sampler = m, sampler
        self._step = jax.jit(lambda c, state, key: sampler.step(c, state, eps_fn, Draws(key, None)))
        self._end = jax.jit(lambda u, t: kernels.denoiser(m, u, t, eps_fn(u, t)))

    def __call__(self, u: jax.Array, num_steps: int, key: jax.Array) -> np.ndarray:
        """The samples (B, d) from the states u."""
        times = times_of(self._m, "log", self._m.t_min, num_steps)
        coefficients = jax.tree.map(lambda c: np.asarray(c, np.float32), self._sampler.coefficients(self._m, times))
        state = self._sampler.start(coefficients, u)
        for i in range(num_steps):
            state = self._step(jax.tree.map(lambda c, i=i: c[i], coefficients), state, jax.random.fold_in(key, i))
        x = self._end(state.u, jnp.float32(times[-1]))
        return np.asarray(x, np.float64).reshape(len(x), -1)


def smooth() -> measured.Gaussians:
    """Pictures of deviation 0.5 with the stated spectrum, periodic."""
    k = np.minimum(np.arange(8), 8 - np.arange(8))
    power = 1 / (1 + k[:, None] ** 2 + k[None] ** 2) ** 2
    basis = np.fft.fft2(np.eye(64).reshape(64, 8, 8)).reshape(64, 64) / 8
    cov = (basis.conj().T @ np.diag(power.ravel()) @ basis).real
    return measured.gaussian(np.zeros(64), 0.25 * cov / cov[0, 0])


def kl(mean: np.ndarray, cov: np.ndarray, law: measured.Gaussians) -> float:
    """KL(N(mean, cov) || law) in nats a dimension; infinite where the samples are not finite."""
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        return float("inf")
    want, true = law.moments()
    whiten = np.linalg.inv(np.linalg.cholesky(true))
    values = np.maximum(np.linalg.eigvalsh(whiten @ cov @ whiten.T), 1e-12)
    shift = whiten @ (mean - want)
    return 0.5 * float((values - 1 - np.log(values)).sum() + shift @ shift) / len(mean)


def starts(m: sde.LinearSDE, size: int) -> jax.Array:
    """The prior's mean and the columns of a factor of its covariance, as states (1 + n d, 8, 8, n, 1)."""
    factor = np.kron(np.linalg.cholesky(m.prior_cov), np.eye(size))
    rows = np.concatenate([np.zeros((1, m.order * size)), factor.T]).reshape(-1, m.order, *SHAPE)
    return jnp.asarray(np.moveaxis(rows, 1, -2), jnp.float32)


def measurement(operator: Operator, law: measured.Gaussians, noise: float) -> tuple[np.ndarray, measured.Gaussians]:
    """y (1, *measured_shape) of one draw, and the posterior."""
    matrix = measured.matrix_of(operator)
    rng = np.random.default_rng(7)
    y = matrix @ law.sample(rng, 1)[0] + noise * rng.standard_normal(len(matrix))
    seen = np.ones(len(matrix), bool) if operator.known is None else operator.known.ravel()
    return np.where(seen, y, 0).reshape(1, *operator.measured_shape), law.given(matrix[seen], y[seen], noise)


def gaussian(args: argparse.Namespace) -> report.Rows:
    """A row for each operator, order, method and number of steps."""
    law, noise, rows = smooth(), 0.05, []
    for (name, operator), order in itertools.product(OPERATORS.items(), args.orders):
        y, posterior = measurement(operator, law, noise)
        m = sde.hold(order=order)
        basis = starts(m, 64)
        for label, (method, passes) in METHODS.items():
            if label == "dps":
                shape = (DPS_SAMPLES, 8, 8, order, 1)
                u = jax.random.normal(jax.random.key(0), shape) * np.float32(np.sqrt(m.prior_cov[0, 0]))
            else:
                u = basis
            same = jnp.asarray(np.repeat(y, len(u), axis=0), jnp.float32)
            run = Run(m, samplers.unipc(), method(m, law.eps_fn(m, SHAPE), operator, same, noise))
            for steps in STEPS:
                x = run(u, steps, jax.random.key(1))
                if label == "dps":
                    found = kl(x.mean(axis=0), np.cov(x.T), posterior)
                else:
                    found = kl(x[0], (x[1:] - x[0]).T @ (x[1:] - x[0]), posterior)
                row = {"problem": "gaussian", "operator": name, "order": order, "method": label, "steps": steps}
                rows.append(row | {"passes": (steps + 1) * passes, "kl": found})
        print(name, order, *(f"{r['method']}: {r['kl']:.1e};" for r in rows[-24:] if r["steps"] == 20), flush=True)
    return rows


def five() -> measured.Gaussians:
    """Five Gaussians in 6 dimensions, each with its own covariance."""
    rng = np.random.default_rng(3)
    covs = []
    for _ in range(5):
        turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
        covs.append(turn @ np.diag(np.geomspace(0.05, 0.3, 6) ** 2) @ turn.T)
    weights = np.array([0.1, 0.15, 0.2, 0.25, 0.3])
    return measured.Gaussians(weights, rng.normal(size=(5, 6)) * 0.5, np.stack(covs))


def mixture(args: argparse.Namespace) -> report.Rows:
    """A row for each order, method and number of steps."""
    law, noise, num, rows = five(), 0.1, args.num, []
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(3, 6)) / np.sqrt(6)
    operator = operators.linear((6,), matrix)
    ys = law.sample(rng, 6) @ matrix.T + noise * rng.standard_normal((6, 3))
    draws = [[law.given(matrix, y, noise).sample(np.random.default_rng(i), num) for i in range(2)] for y in ys]
    distance = functools.partial(sliced_wasserstein, num_projections=64)
    floors = [distance(*pair) for pair in draws]
    same = jnp.asarray(np.repeat(ys, num, axis=0), jnp.float32)
    for order, (label, (method, passes)) in itertools.product(args.orders, METHODS.items()):
        m = sde.hold(order=order)
        run = Run(m, samplers.gaussian_fitted(), method(m, law.eps_fn(m, (6,)), operator, same, noise))
        u = jax.random.normal(jax.random.key(0), (len(same), order, 6)) * np.float32(np.sqrt(m.prior_cov[0, 0]))
        for steps in STEPS[:3]:
            x = run(u, steps, jax.random.key(1)).reshape(6, num, 6)
            far = [distance(a, b[0]) if np.isfinite(a).all() else np.inf for a, b in zip(x, draws, strict=True)]
            ratios = np.array(far) / floors
            row = {"problem": "mixture", "order": order, "method": label, "steps": steps}
            row |= {"passes": (steps + 1) * passes, "distance": float(np.mean(ratios))}
            rows.append(row | {"error": float(np.std(ratios, ddof=1) / np.sqrt(len(ratios)))})
        print("mixture", order, label, *(f"{r['distance']:.2f}" for r in rows[-3:]), flush=True)
    return rows


def worst(rows: report.Rows, **where: Any) -> float:
    """The largest KL over the operators."""
    return max(r["kl"] for r in rows if all(r.get(k) == v for k, v in ({"problem": "gaussian"} | where).items()))


def table(rows: report.Rows, orders: list[int]) -> None:
    """Both problems, at each order and number of steps."""
    print("\ngaussian: worst KL of four operators, nats a dimension")
    print(f"{'order, method':<25}" + "".join(f"{steps:>10}" for steps in STEPS))
    for n, label in itertools.product(orders, METHODS):
        cells = (worst(rows, method=label, order=n, steps=steps) for steps in STEPS)
        print(f"{n}, {label:<22}" + "".join(f"{value:>10.1e}" for value in cells))
    print("\nmixture: sliced Wasserstein distance over the floor")
    print(f"{'order, method':<25}" + "".join(f"{steps:>16}" for steps in STEPS[:3]))
    for n, label in itertools.product(orders, METHODS):
        found = [r for r in rows if (r["problem"], r["order"], r["method"]) == ("mixture", n, label)]
        texts = (f"{r['distance']:.2f} +- {r['error']:.2f}" for r in found)
        print(f"{n}, {label:<22}" + "".join(f"{text:>16}" for text in texts))


def main() -> None:
    """Prints tables; writes JSON."""
    parser = report.parser(__doc__)
    parser.add_argument("--orders", type=int, nargs="+", default=list(ORDERS))
    parser.add_argument("--num", type=int, default=10_000, help="mixture: samples for each measurement")
    args = parser.parse_args()
    rows = gaussian(args) + mixture(args)
    table(rows, args.orders)
    at = {label: max(worst(rows, method=label, order=n, steps=20) for n in args.orders) for label in METHODS}
    sentence = f"20 steps, worst KL: {', '.join(f'{label} {value:.1e}' for label, value in at.items())}."
    report.finish(args, "inverse", rows, sentence)


if __name__ == "__main__":
    main()
