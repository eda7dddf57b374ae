"""Bayesian logistic regression: Langevin of orders 1 to 4 beside blackjax and diffrax, effective samples a gradient.

    python -m benchmarks.langevin_posterior run      # docs/results/langevin_posterior.json
    python -m benchmarks.langevin_posterior table

The target: scikit-learn's breast cancer data (569 rows, 30 standardized columns and an intercept), prior N(0, I).
Reference: a long NUTS run. Every sampler starts at draws of the reference, with the same mass matrix (diagonal, then
dense), four chains and the same number of gradients. Needs blackjax and arviz: pip install blackjax arviz.
"""

import argparse
import functools
import importlib.metadata
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import langevin

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
CHAINS = 4
BUDGET = 20_000  # gradients of each chain
REFERENCE = 6000  # draws of each chain


@functools.cache
def target() -> tuple[Callable[[jax.Array], jax.Array], int]:
    """The log posterior of the 31 weights, and their number."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = np.concatenate([(x - x.mean(0)) / x.std(0), np.ones((len(x), 1))], axis=1)
    signed = jnp.asarray(x * (2 * y[:, None] - 1), jnp.float32)

    def log_density(q: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.log_sigmoid(signed @ q)) - jnp.sum(jnp.square(q)) / 2

    return log_density, x.shape[1]


def diagnose(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bulk effective sample sizes and R-hat (d,) of draws (chains, num, d), by arviz."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        data = arviz.convert_to_dataset({"q": draws})
        return np.asarray(arviz.ess(data)["q"]), np.asarray(arviz.rhat(data)["q"])


def summarize(name: str, mass: str, h: float, draws: np.ndarray, gradients: int, seconds: float, truth: dict) -> dict:
    """Effective samples, R-hat, and distance to the reference."""
    ess, rhat = diagnose(draws)
    mean, std = draws.mean((0, 1)), draws.std((0, 1))
    # In Monte Carlo errors of both runs; for the deviation those of near-Gaussian marginals.
    noise = np.sqrt(1 / ess + 1 / truth["ess"])
    row = dict(
        mass=mass,
        sampler=name,
        h=float(h),
        gradients=gradients,
        ess_per_1000=float(1000 * ess.min() / gradients),
        rhat=float(rhat.max()),
        std_bias=float(np.mean(std / truth["std"] - 1)),
        z_mean=float(np.sqrt(np.mean(((mean - truth["mean"]) / truth["std"] / noise) ** 2))),
        z_std=float(np.sqrt(np.mean(((std / truth["std"] - 1) / noise / np.sqrt(0.5)) ** 2))),
        seconds=round(seconds, 2),
    )
    print(json.dumps(row), flush=True)
    return row


def run_blackjax(algorithm: Any, states: Any, num: int, count: Callable[[Any], Any] = lambda info: 0) -> tuple:
    """Positions (chains, num, d), and the sum of `count` over all steps."""

    def step(states: Any, key: jax.Array) -> tuple:
        states, info = jax.vmap(algorithm.step)(jax.random.split(key, CHAINS), states)
        return states, (states.position, count(info))

    scan = jax.jit(lambda states, key: jax.lax.scan(step, states, jax.random.split(key, num)))
    positions, counts = scan(states, jax.random.key(4))[1]
    return np.asarray(positions).swapaxes(0, 1), int(np.sum(np.asarray(counts)))


def run_diffrax(
    solver: Any, calls: int, log_density: Callable, h: float, starts: jax.Array, thin: int = 4
) -> np.ndarray:
    """Positions (chains, num, d) of underdamped Langevin with friction 2."""
    import diffrax

    steps = BUDGET // calls

    def one(z: jax.Array, key: jax.Array) -> jax.Array:
        velocity_key, path_key = jax.random.split(key)
        path = diffrax.UnsafeBrownianPath(z.shape, path_key, levy_area=diffrax.SpaceTimeTimeLevyArea)
        drift = diffrax.UnderdampedLangevinDriftTerm(2.0, 1.0, lambda z, args: -jax.grad(log_density)(z))
        found = diffrax.diffeqsolve(
            diffrax.MultiTerm(drift, diffrax.UnderdampedLangevinDiffusionTerm(2.0, 1.0, path)),
            solver,
            0.0,
            steps * h,
            h,
            (z, jax.random.normal(velocity_key, z.shape)),
            saveat=diffrax.SaveAt(steps=thin),
            max_steps=steps + thin,
            adjoint=diffrax.ForwardMode(),
        )
        assert found.ys is not None
        return found.ys[0][: steps // thin - 1]

    return np.asarray(jax.jit(jax.vmap(one))(starts, jax.random.split(jax.random.key(5), CHAINS)))


def run_mass(mass: str, truth: dict | None) -> tuple[list[dict], dict, dict]:
    """All samplers with one mass matrix; the reference, made first if there is none; remarks."""
    import blackjax
    import diffrax

    log_density, d = target()
    dense = mass == "dense"
    warm = blackjax.window_adaptation(blackjax.nuts, log_density, is_mass_matrix_diagonal=not dense)
    (state, found), _ = jax.jit(lambda key, q: warm.run(key, q, 1000))(jax.random.key(0), jnp.zeros(d))
    variance, nuts_step = np.asarray(found["inverse_mass_matrix"], np.float64), float(found["step_size"])
    nuts = blackjax.nuts(log_density, nuts_step, jnp.asarray(variance, jnp.float32))
    states = jax.vmap(nuts.init)(jnp.tile(state.position, (CHAINS, 1)))
    begin = time.perf_counter()
    num = REFERENCE if truth is None else REFERENCE // 4
    draws, made = run_blackjax(nuts, states, num, lambda info: info.num_integration_steps)
    seconds = time.perf_counter() - begin
    skip = num // 10
    kept, made = draws[:, skip:], int(made * (num - skip) / num)
    if truth is None:
        flat = kept.reshape(-1, d)
        truth = dict(mean=flat.mean(0), std=flat.std(0), cov=np.cov(flat, rowvar=False), start=kept[:, -1])
        truth["ess"] = diagnose(kept)[0]
    rows = [summarize("blackjax nuts", mass, nuts_step, kept, made, seconds, truth)]

    factor = np.linalg.cholesky(variance) if dense else np.diag(np.sqrt(variance))
    inverse = np.linalg.inv(factor)
    curvatures = 1 / np.linalg.eigvalsh(inverse @ truth["cov"] @ inverse.T)[::-1]
    top = float(curvatures[-1])
    remarks = {"curvatures": [float(curvatures[0]), top], "ess": float(truth["ess"].min())}
    print(mass, remarks, flush=True)

    # What has no mass matrix of its own samples z, q = factor z.
    device_factor, starts = jnp.asarray(factor, jnp.float32), jnp.asarray(truth["start"])
    whitened_starts = jnp.asarray(truth["start"] @ inverse.T, jnp.float32)

    def whitened(z: jax.Array) -> jax.Array:
        return log_density(device_factor @ z)

    def timed(name: str, h: float, sampler: Callable[[], tuple[np.ndarray, int]]) -> None:
        begin = time.perf_counter()
        draws, made = sampler()
        rows.append(summarize(name, mass, h, draws, made, time.perf_counter() - begin, truth))

    def black(name: str, algorithm: Any, h: float, gradients: int) -> None:
        def sampler() -> tuple[np.ndarray, int]:
            states = jax.vmap(algorithm.init)(whitened_starts, jax.random.split(jax.random.key(3), CHAINS))
            num = BUDGET // gradients
            return run_blackjax(algorithm, states, num)[0] @ factor.T, num * gradients * CHAINS

        timed(f"blackjax {name}", h, sampler)

    def ours(order: int, method: str, h: float, calls: float = 1, **options: Any) -> None:
        algorithm = langevin.langevin(
            log_density, order=order, method=method, step_size=h, inverse_mass_matrix=variance, **options
        )

        def sampler() -> tuple[np.ndarray, int]:
            num = int(BUDGET / calls / 2)
            run = langevin.sample(
                algorithm, jax.random.key(6), starts, stacked=True, num_chains=CHAINS, num_samples=num, thin=2
            )
            return run.position, run.num_gradients

        timed(", ".join([method, f"n = {order}", *(f"{k} = {v}" for k, v in options.items())]), h, sampler)

    adapted = {
        n: langevin.adapt(
            log_density, jax.random.key(2), starts, stacked=True, order=n, num_steps=1000, dense=dense
        ).step_size
        for n in (1, 2, 3)
    }
    black("mala", blackjax.mala(whitened, adapted[1]), adapted[1], 1)
    black("hmc, 8 steps", blackjax.hmc(whitened, nuts_step, jnp.ones(d), 8), nuts_step, 8)
    # Its alpha is the share of the momentum that is renewed: 1 - exp(-2 xi h) for the friction xi = 2.
    ghmc = blackjax.ghmc(whitened, adapted[2], jnp.ones(d), float(1 - np.exp(-4 * adapted[2])), 0.0)
    black("ghmc (underdamped, adjusted)", ghmc, adapted[2], 1)
    # The step is that of a particle of speed sqrt(d): half the stability limit of the stiffest direction.
    h = float(np.sqrt(d / top))
    black(
        "mclmc (microcanonical, unadjusted)", blackjax.mclmc(whitened, L=float(np.sqrt(d)), step_size=h / 2), h / 2, 2
    )
    for name, solver, calls in (("align", diffrax.ALIGN(), 1), ("quicsort", diffrax.QUICSORT(), 2)):
        h = 1 / np.sqrt(top)

        def sampler(solver: Any = solver, calls: int = calls, h: float = h) -> tuple[np.ndarray, int]:
            draws = run_diffrax(solver, calls, whitened, h, whitened_starts)
            return draws @ factor.T, BUDGET // calls * calls * CHAINS

        timed(f"diffrax {name} (underdamped)", h, sampler)

    for n in (1, 2, 3):
        ours(n, "metropolis", adapted[n])
    ours(1, "exponential_euler", 0.1 / top)
    for n, share in ((2, 0.5), (2, 1.0), (3, 0.5), (3, 1.0), (4, 1.0)):
        ours(n, "strang", share / np.sqrt(top))
    h = 1 / np.sqrt(top)
    ours(2, "baoab", h)
    ours(2, "randomized_midpoint", h, 2)
    ours(2, "poisson_midpoint", h, 2 - 1 / 8, K=8)
    ours(3, "picard_lagrange", h, 2)
    ours(4, "picard_lagrange", h, 5)
    return rows, truth, remarks


def run() -> None:
    """Everything in one process."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "blackjax", "arviz", "diffrax")}
    diagonal, truth, remarks = run_mass("diagonal", None)
    dense, _, more = run_mass("dense", truth)
    out = {"versions": versions, "diagonal": remarks, "dense": more, "rows": diagonal + dense}
    (RESULTS / "langevin_posterior.json").write_text(json.dumps(out, indent=1) + "\n")


def table() -> None:
    """The rows as Markdown."""
    out = json.loads((RESULTS / "langevin_posterior.json").read_text())
    print({key: value for key, value in out.items() if key != "rows"})
    print("| mass | sampler | h | ESS per 1,000 gradients | R-hat | bias of std | z of means | z of stds |")
    print("|---" * 8 + "|")
    for r in out["rows"]:
        figures = f"{r['h']:.2g} | {r['ess_per_1000']:.3g} | {r['rhat']:.3f} | {r['std_bias']:+.1%}"
        print(f"| {r['mass']} | {r['sampler']} | {figures} | {r['z_mean']:.2f} | {r['z_std']:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    {"run": run, "table": table}[parser.parse_args().what]()
