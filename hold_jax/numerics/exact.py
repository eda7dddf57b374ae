"""Exact small-matrix maths of the linear SDE du = F u dB + G dW, on the host, in float64 NumPy.

Everything a coefficient needs is computed here once, to about 1e-13 relative in every entry that
matters (Phi at B = 10, n = 6: 2e-11, the conditioning of a non-normal exponential): the propagator
Phi(B) = exp(F B), a lower factor of the noise covariance Q(B) = int_0^B e^{F s} G G' e^{F' s} ds, and
a lower factor of Sigma(B) = Q + Phi C0 Phi'.

Sigma is never formed. For small B its rows scale like B^(1/2), B^(3/2), ..., so the textbook
difference Sigma_inf + Phi (C0 - Sigma_inf) Phi' cancels to nothing. A factor built from
positive terms and grown by square-root doubling (chol(2B) is the triangular factor of
[Phi(B) chol(B), chol(B)]) keeps the scale of each entry.

Shapes: F (n, n), G (n, n), `big_b` (...,); matrices come back as (..., n, n).
"""

import numpy as np
import numpy.typing as npt

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
# Below this norm of F B sixteen nodes and eighteen Taylor terms are exact to float64 rounding.
_SMALL = 0.5


def _taylor(a: np.ndarray) -> np.ndarray:
    """exp(a) for |a| <= 0.5 by its Taylor series, which keeps the relative accuracy of graded entries."""
    out = np.broadcast_to(np.eye(a.shape[-1]), a.shape).copy()
    term = out
    for k in range(1, 19):
        term = term @ a / k
        out = out + term
    return out


def triangular_factor(m: np.ndarray) -> np.ndarray:
    """The lower L (..., n, n), diagonal >= 0, with L L' = M M', by QR of M' (never forming M M').

    For graded M the result is accurate entry by entry if the columns of M come in order of
    decreasing size (Cox and Higham 1998, row-wise stability of Householder QR).
    """
    n, k = m.shape[-2:]
    if k < n:
        m = np.concatenate([m, np.zeros((*m.shape[:-1], n - k))], axis=-1)
    r = np.linalg.qr(np.swapaxes(m, -1, -2), mode="r")
    sign = np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return np.swapaxes(r * sign[..., :, None], -1, -2)


def covariance_factor(cov: np.ndarray) -> np.ndarray:
    """Columns M (n, r), largest first, with M M' = cov for a positive semi-definite cov; r = rank."""
    if np.array_equal(cov, np.diag(np.diagonal(cov))):
        # A diagonal law keeps its block order, which is the order of decreasing size after Phi.
        return np.sqrt(cov)[:, np.diagonal(cov) > 0]
    values, vectors = np.linalg.eigh(cov)
    keep = values > values[-1] * 1e-14
    return (vectors * np.sqrt(np.where(keep, values, 0)))[:, keep][:, ::-1]


def transition(f: np.ndarray, g: np.ndarray, big_b: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Phi(B) and the lower factor of Q(B), for B >= 0 of any shape."""
    b = np.asarray(big_b, np.float64)
    n = f.shape[0]
    norm = np.abs(f).sum(axis=1).max() * b.max(initial=0.0)
    doublings = max(0, int(np.ceil(np.log2(norm / _SMALL)))) if norm > 0 else 0
    b = b / 2.0**doublings

    columns = g[:, np.abs(g).any(axis=0)]
    path = _taylor(f * (b[..., None] * _NODES)[..., None, None]) @ columns
    path = path * np.sqrt(b[..., None] * _WEIGHTS)[..., None, None]
    chol = triangular_factor(np.moveaxis(path, -3, -2).reshape(*b.shape, n, -1))
    phi = _taylor(f * b[..., None, None])
    for _ in range(doublings):
        chol = triangular_factor(np.concatenate([phi @ chol, chol], axis=-1))
        phi = phi @ phi
    return phi, chol


def marginal(f: np.ndarray, g: np.ndarray, cov0: np.ndarray, big_b: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Phi(B) and the lower factor of Q(B) + Phi(B) cov0 Phi(B)'."""
    phi, chol = transition(f, g, big_b)
    return phi, triangular_factor(np.concatenate([phi @ covariance_factor(cov0), chol], axis=-1))


def solve_lower(chol: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """chol^-1 rhs by forward substitution, (..., n, n) and (..., n, k): graded entries stay accurate."""
    rows: list[np.ndarray] = []
    for i in range(chol.shape[-1]):
        row = rhs[..., i, :]
        for j in range(i):
            row = row - chol[..., i, j, None] * rows[j]
        rows.append(row / chol[..., i, i, None])
    return np.stack(rows, axis=-2)


def effective_noise(f: np.ndarray, g: np.ndarray, cov0: np.ndarray, big_b: npt.ArrayLike) -> np.ndarray:
    """sigma_eff(B) = |L^-1 A|^-1 with A = Phi e_1: the noise at which u tells as much of q0 as q0 + sigma_eff eps."""
    phi, chol = marginal(f, g, cov0, big_b)
    return 1 / np.linalg.norm(solve_lower(chol, phi[..., :, :1])[..., 0], axis=-1)


def integral_of_noise(f: np.ndarray, g: np.ndarray, cov0: np.ndarray, sigma: npt.ArrayLike) -> np.ndarray:
    """The B > 0 at which sigma_eff(B) = sigma: sigma_eff grows with B, so a bracket in log B shrinks to a point.

    Each round tries the secant point, then the middle: fast where the noise grows smoothly, safe where it stalls
    (processes with complex eigenvalues have times at which the last block tells nothing new of q0).
    """
    target = np.log(np.atleast_1d(np.asarray(sigma, np.float64)))

    def log_noise(log_b: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            value = np.log(effective_noise(f, g, cov0, np.exp(log_b)))
        # A damped system forgets q0 entirely for huge B: A underflows, and the noise is infinite.
        return np.where(np.isnan(value), np.inf, value)

    ladder = np.linspace(-30.0, 20.0, 201)
    rungs = log_noise(ladder)
    above = np.clip(np.searchsorted(rungs, target), 1, len(ladder) - 1)
    low, high = ladder[above - 1], ladder[above]
    below, over = rungs[above - 1], rungs[above]
    for step in range(24):
        with np.errstate(invalid="ignore"):
            secant = low + (high - low) * (target - below) / (over - below)
        inside = (secant > low) & (secant < high) & (step % 2 == 0)
        middle = np.where(inside, secant, (low + high) / 2)
        at = log_noise(middle)
        less = at < target
        low, below = np.where(less, middle, low), np.where(less, at, below)
        high, over = np.where(less, high, middle), np.where(less, over, at)
    # The end whose noise is nearer: the bracket may be narrow on one side only.
    nearer = np.abs(below - target) < np.abs(over - target)
    return np.exp(np.where(nearer, low, high)).reshape(np.shape(sigma))


def signal_side(F: np.ndarray, G: np.ndarray, cov0: np.ndarray, big_b: npt.ArrayLike) -> float:
    """The sign, 1 or -1, of the last entry of w = L^-1 A at B = `big_b`, the end of the process.

    A reflection of the last axis to w is continuous in time if it goes to the same side at all times; which side
    is decided where nothing cancels.
    """
    phi, chol = marginal(F, G, cov0, np.asarray(big_b))
    return float(np.copysign(1.0, solve_lower(chol, phi[:, :1])[-1, 0]))
