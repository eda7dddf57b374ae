"""Langevin Monte Carlo of order 3 on two targets whose moments are known by quadrature.

    python examples/langevin.py                 # a table; about a minute
    python examples/langevin.py --figure=FILE   # and a picture of the mixture

A mixture of three Gaussians in the plane, and a Bayesian logistic regression with two weights.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import langevin

MEANS = np.array([[-1.5, 0.0], [1.5, 0.5], [0.0, 1.8]], np.float32)
WEIGHTS = np.array([0.5, 0.3, 0.2], np.float32)
STD = 0.6


class Result(NamedTuple):
    """Mean (2,) and standard deviation (2,): `found` (2, 2) by sampling, `exact` (2, 2); draws (chains, num, 2)."""

    found: np.ndarray
    exact: np.ndarray
    draws: np.ndarray


def mixture(q: jax.Array) -> jax.Array:
    """The log density of the mixture, up to a constant."""
    squares = jnp.sum(jnp.square(q[None] - MEANS), axis=-1) / STD**2
    return jax.nn.logsumexp(jnp.log(WEIGHTS) - squares / 2)


def logistic() -> Callable[[jax.Array], jax.Array]:
    """The log posterior of intercept and slope: is a tumor benign, given its mean radius (scikit-learn's data)?"""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    radius = jnp.asarray((x[:, 0] - x[:, 0].mean()) / x[:, 0].std(), jnp.float32)
    sign = jnp.asarray(2 * y - 1, jnp.float32)

    def log_density(q: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.log_sigmoid(sign * (q[0] + q[1] * radius))) - jnp.sum(jnp.square(q)) / 200

    return log_density


def moments(draws: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of draws (..., 2)."""
    flat = draws.reshape(-1, 2).astype(np.float64)
    return np.stack([flat.mean(0), flat.std(0)])


def quadrature(log_density: Callable[[jax.Array], jax.Array], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The moments on a grid of 301 x 301 points."""
    axes = [np.linspace(a, b, 301) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    values = np.asarray(jax.jit(jax.vmap(log_density))(jnp.asarray(points, jnp.float32)), np.float64)
    weights = np.exp(values - values.max())
    weights /= weights.sum()
    mean = weights @ points
    return np.stack([mean, np.sqrt(weights @ (points - mean) ** 2)])


def sample_mixture(num_samples: int = 1000) -> Result:
    """With a step size and the scale of the target chosen by hand."""
    algorithm = langevin.langevin(mixture, order=3, step_size=0.25, method="baoab", inverse_mass_matrix=2.0)
    chains = langevin.sample(
        algorithm, jax.random.key(0), jnp.zeros(2), num_samples=num_samples, num_chains=32, thin=20, burn_in=400
    )
    exact = quadrature(mixture, np.array([-5.0, -4.0]), np.array([5.0, 6.0]))
    return Result(moments(chains.position), exact, chains.position)


def sample_logistic(num_samples: int = 1000) -> Result:
    """With a warm-up, which finds the step size and the mass matrix, and exact by a Metropolis test."""
    log_density = logistic()
    warm = langevin.adapt(log_density, jax.random.key(1), jnp.zeros(2), order=3, num_steps=1000, dense=True)
    algorithm = langevin.langevin(
        log_density,
        order=3,
        method="metropolis",
        step_size=warm.step_size,
        inverse_mass_matrix=warm.inverse_mass_matrix,
    )
    chains = langevin.sample(
        algorithm, jax.random.key(2), warm.position, stacked=True, num_samples=num_samples, num_chains=4, thin=10
    )
    exact = quadrature(log_density, np.array([-0.5, -6.5]), np.array([2.0, -2.0]))
    return Result(moments(chains.position), exact, chains.position)


def plot(draws: np.ndarray, path: str) -> None:
    """Draws over lines of equal density, and the path of one chain."""
    from matplotlib.figure import Figure

    x, y = np.meshgrid(np.linspace(-4, 4, 161), np.linspace(-2.5, 4, 131))
    points = jnp.asarray(np.stack([x, y], axis=-1), jnp.float32)
    density = np.exp(jax.vmap(jax.vmap(mixture))(points))
    figure = Figure(figsize=(6, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(*draws.reshape(-1, 2)[::4].T, ".", ms=1.2, alpha=0.35, color="C0", label="kept samples")
    axes.contour(x, y, density, levels=6, colors="black", linewidths=0.7)
    axes.plot(*draws[0, :40].T, "-", lw=0.8, color="C1", label="40 samples of one chain")
    axes.set(xlim=(-4, 4), ylim=(-2.5, 4), aspect="equal")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Prints both results beside the exact moments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", help="where to write the picture of the mixture")
    figure = parser.parse_args().figure
    results = {"mixture": sample_mixture(), "logistic regression": sample_logistic()}
    for name, result in results.items():
        for label, found, exact in zip(("mean", "std"), result.found, result.exact, strict=True):
            print(f"{name:<20} {label:<5} {np.round(found, 4)}   exact {np.round(exact, 4)}")
    if figure:
        plot(results["mixture"].draws, figure)


if __name__ == "__main__":
    main()
