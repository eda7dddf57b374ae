"""Weights of past denoiser values in int D d omega over a step: how D is interpolated between its nodes.

Args of each function:
  nodes: (N, p) values of log sigma_eff at which D is known, the newest (the step's start or end) first.
  ends: (N, 2) log sigma_eff at the step's start and end.
  points: (N, K) nodes of the quadrature over the step.
  measure: (N, K, n) its weights, d omega.

Returns: weights (N, n, p). Their sum over p is int d omega, so that a constant D is integrated exactly.
"""

from collections.abc import Callable

import numpy as np

Interpolation = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]

# Range of the log widths of Gaussian data beyond the nodes, where the denoiser is constant to 3e-4.
_MARGIN = 8.0
_WIDTHS = 96


def polynomial(nodes: np.ndarray, ends: np.ndarray, points: np.ndarray, measure: np.ndarray) -> np.ndarray:
    """The exact integral of the polynomial through the nodes (Adams-Bashforth, exponential)."""
    del ends
    return np.einsum("ijg,ign->inj", _lagrange(nodes, points), measure)


def midpoint(nodes: np.ndarray, ends: np.ndarray, points: np.ndarray, measure: np.ndarray) -> np.ndarray:
    """The polynomial's value at the middle of the step: DPM-Solver++(2M) (2211.01095, algorithm 2)."""
    del points
    middle = ends.mean(axis=1, keepdims=True)
    return np.einsum("ij,in->inj", _lagrange(nodes, middle)[..., 0], measure.sum(axis=1))


def gaussian_fit(nodes: np.ndarray, ends: np.ndarray, points: np.ndarray, measure: np.ndarray) -> np.ndarray:
    """The least-squares fit over Gaussian data of every width.

    For data N(mean, s^2) the denoiser along the flow is mean + const f(log(sigma_eff / s)), f(l) = (1 + e^{2 l})^-1/2:
    constant at high noise, constant at low noise, with one bend in between. A polynomial that extrapolates across the
    bend is wrong. These weights minimize

        int ds/s (int f d omega - sum_j weight_j f(nodes_j))^2

    and converge to those of the polynomial for small steps.
    """
    del ends
    low, high = nodes.min(axis=1) - _MARGIN, nodes.max(axis=1) + _MARGIN
    widths = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, _WIDTHS)
    at_nodes = _denoiser(nodes, widths)
    total = measure.sum(axis=1)
    target = np.einsum("igs,ign->isn", _denoiser(points, widths), measure)
    # The sum of the weights is fixed: weight_0 = total - the others, which multiply differences from f(node_0).
    basis = np.swapaxes(at_nodes[:, 1:] - at_nodes[:, :1], 1, 2)
    rest = target - at_nodes[:, 0, :, None] * total[:, None, :]
    others = np.swapaxes(np.linalg.pinv(basis) @ rest, 1, 2)
    return np.concatenate([total[..., None] - others.sum(axis=-1, keepdims=True), others], axis=-1)


INTERPOLATIONS: dict[str, Interpolation] = {
    "gaussian_fit": gaussian_fit,
    "midpoint": midpoint,
    "polynomial": polynomial,
}


def _denoiser(log_noise: np.ndarray, log_width: np.ndarray) -> np.ndarray:
    """f (N, p, S) of log_noise (N, p) and log_width (N, S)."""
    return 1 / np.sqrt(1 + np.exp(2 * (log_noise[:, :, None] - log_width[:, None, :])))


def _lagrange(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The Lagrange polynomials of nodes (N, p) at points (N, K): (N, p, K)."""
    out = []
    for j in range(nodes.shape[1]):
        value = np.ones_like(at)
        for i in range(nodes.shape[1]):
            if i != j:
                value = value * (at - nodes[:, i, None]) / (nodes[:, j] - nodes[:, i])[:, None]
        out.append(value)
    return np.stack(out, axis=1)
