"""The factor R of a covariance that the probability flow of a linear SDE carries along. Host side, float64.

R R' = Sigma and dR = (F R + 1/2 G G' R^-T) dB (gDDIM, 2206.05564, eq. 17). With the Cholesky factor L it is R = L O, O
orthogonal; the rotation O is integrated, so that R R' = Sigma holds to rounding.
"""

import numpy as np
import numpy.typing as npt

from hold_jax.numerics import exact

# The rotation is integrated over at least this many steps in log B.
_STEPS = 1024


def flow_turn(f: np.ndarray, g: np.ndarray, cov0: np.ndarray, big_b: np.ndarray, fixed: npt.ArrayLike) -> np.ndarray:
    """Returns O, with dO = Omega O dB (`turning`) and O = 1 at B = `fixed`, by fourth-order Magnus steps in log B.

    From d(L O) = (F + 1/2 G G' Sigma^-1) L O and dL = L lower_half(L^-1 (F Sigma + Sigma F' + G G') L^-T).

    Args:
      f: F, (n, n) float64.
      g: G, (n, n) float64.
      cov0: covariance at B = 0, (n, n).
      big_b: B > 0, (N,).
      fixed: a B > 0.

    Returns:
      (N, n, n) float64.
    """
    eye = np.eye(len(f))
    wanted, start = np.log(big_b), np.log(fixed)
    low, high = min(wanted.min(), start), max(wanted.max(), start)
    path = np.unique(np.concatenate([wanted.ravel(), [start], np.linspace(low, high, _STEPS + 1)]))
    h = np.diff(path)[:, None]
    nodes = (path[:-1] + path[1:])[:, None] / 2 + h / 2 * np.array([-1, 1]) / np.sqrt(3)
    b = np.exp(nodes)
    _, chol = exact.marginal(f, g, cov0, b)
    omega = turning(f, g, chol, exact.solve_lower(chol, np.broadcast_to(eye, chol.shape)))
    omega = omega * b[..., None, None]
    first, second = omega[:, 0], omega[:, 1]
    h = h[..., None]
    steps = h / 2 * (first + second) + np.sqrt(3) / 12 * h**2 * (second @ first - first @ second)
    values, vectors = np.linalg.eigh(1j * steps)
    turns = np.real(vectors * np.exp(-1j * values)[..., None, :] @ np.conj(np.swapaxes(vectors, -1, -2)))
    along = [eye]
    for turn in turns:
        along.append(turn @ along[-1])
    there = along[int(np.searchsorted(path, start))]
    return np.stack(along)[np.searchsorted(path, wanted)] @ there.T


def turning(f: np.ndarray, g: np.ndarray, chol: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Omega (..., n, n), skew: the rate in B at which the process's flow rotates against the Cholesky factor.

    Omega = upper(X) - upper(X)', X = L^-1 F L + 1/2 y y', y = L^-1 G.
    """
    y = inverse @ g
    upper = np.triu(inverse @ f @ chol + y @ np.swapaxes(y, -1, -2) / 2, k=1)
    return upper - np.swapaxes(upper, -1, -2)
