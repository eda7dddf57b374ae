"""Exact small matrices of the linear SDE du = F u dB + G dW, computed on the host in float64 NumPy.

The module computes the propagator Phi(B) = exp(F B), a lower triangular factor of the noise covariance
Q(B) = int_0^B e^{F s} G G' e^{F' s} ds, and a lower triangular factor of Sigma(B) = Q + Phi C0 Phi'. The relative error
of the entries that matter is about 1e-13 (2e-11 for Phi at B = 10, n = 6, where the matrix exponential of the
non-normal F is ill-conditioned).

Sigma itself is never formed. For small B the rows of its factor scale like B^(1/2), B^(3/2), ..., so the textbook
difference Sigma_inf + Phi (C0 - Sigma_inf) Phi' loses all digits to cancellation. Here the factor is built from
positive terms for a small B and doubled: chol(2B) is the triangular factor of [Phi(B) chol(B), chol(B)]. This keeps
the relative accuracy of each entry.

Shapes: F (n, n), G (n, n), `big_b` (...,); the returned matrices are (..., n, n).
"""

import numpy as np
import numpy.typing as npt

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
# Where `integral_of_noise` begins to search.
LEAST_B = float(np.exp(-30.0))
# If the norm of F B is below this, 16 quadrature nodes and 18 Taylor terms are exact to float64 rounding.
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
    """Returns the lower triangular L with L L' = M M' and diagonal >= 0, by a QR decomposition of M'.

    M M' is not formed. If the rows of M differ much in size, each entry of L is still accurate when the columns of M
    are ordered by decreasing size (Cox and Higham 1998, row-wise stability of Householder QR).

    Args:
      m: M, (..., n, k) float64.

    Returns:
      L, (..., n, n) float64.
    """
    n, k = m.shape[-2:]
    if k < n:
        m = np.concatenate([m, np.zeros((*m.shape[:-1], n - k))], axis=-1)
    r = np.linalg.qr(np.swapaxes(m, -1, -2), mode="r")
    sign = np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return np.swapaxes(r * sign[..., :, None], -1, -2)


def covariance_factor(cov: np.ndarray) -> np.ndarray:
    """Returns M (n, r) with M M' = cov, for a positive semi-definite cov of rank r: its lower Cholesky factor.

    A lower triangular M keeps the order of the blocks: after Phi its columns are of decreasing size, as
    `triangular_factor` wants them. Of a singular cov only r columns are left.
    """
    std = np.sqrt(np.diagonal(cov))
    here = std > 0
    part, std = cov[np.ix_(here, here)], std[here]
    values, vectors = np.linalg.eigh(part / np.outer(std, std))
    keep = values > 1e-13
    if keep.all():
        lower = np.linalg.cholesky(part)
    else:
        root = std[:, None] * vectors[:, keep] * np.sqrt(values[keep])
        lower = np.transpose(np.linalg.qr(root.T, mode="r"))
    factor = np.zeros((len(cov), lower.shape[1]))
    factor[here] = lower
    return factor


def transition(f: np.ndarray, g: np.ndarray, big_b: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the propagator and the factor of the noise covariance.

    Args:
      f: F, (n, n) float64.
      g: G, (n, n) float64.
      big_b: B >= 0, (...,).

    Returns:
      Phi(B) and the lower triangular factor of Q(B), both (..., n, n) float64.
    """
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
    """Returns the propagator and the factor of the marginal covariance.

    Args:
      f: F, (n, n) float64.
      g: G, (n, n) float64.
      cov0: covariance C0 at B = 0, (n, n), positive semi-definite.
      big_b: B >= 0, (...,).

    Returns:
      Phi(B) and the lower triangular factor of Q(B) + Phi(B) C0 Phi(B)', both (..., n, n) float64.
    """
    phi, chol = transition(f, g, big_b)
    return phi, triangular_factor(np.concatenate([phi @ covariance_factor(cov0), chol], axis=-1))


def solve_lower(chol: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Returns chol^-1 rhs by forward substitution, which is accurate also where entries differ much in size.

    Args:
      chol: lower triangular, (..., n, n).
      rhs: right-hand side, (..., n, k).

    Returns:
      (..., n, k).
    """
    rows: list[np.ndarray] = []
    for i in range(chol.shape[-1]):
        row = rhs[..., i, :]
        for j in range(i):
            row = row - chol[..., i, j, None] * rows[j]
        rows.append(row / chol[..., i, i, None])
    return np.stack(rows, axis=-2)


def effective_noise(f: np.ndarray, g: np.ndarray, cov0: np.ndarray, big_b: npt.ArrayLike) -> np.ndarray:
    """Returns the effective noise level sigma_eff(B) = |L^-1 A|^-1 with A = Phi e_1, (...,).

    u(t) carries the same information about q0 as q0 + sigma_eff * eps. Arguments as in `marginal`.
    """
    phi, chol = marginal(f, g, cov0, big_b)
    return 1 / np.linalg.norm(solve_lower(chol, phi[..., :, :1])[..., 0], axis=-1)


def integral_of_noise(f: np.ndarray, g: np.ndarray, cov0: np.ndarray, sigma: npt.ArrayLike) -> np.ndarray:
    """Returns the B > 0 at which sigma_eff(B) = sigma, by bracketing in log B, since sigma_eff grows with B.

    Secant steps and bisection steps alternate. The secant converges fast where the noise level grows smoothly;
    bisection is safe where it hardly grows (in a process with complex eigenvalues there are times at which the last
    block adds no information about q0).

    Args:
      f: F, (n, n) float64.
      g: G, (n, n) float64.
      cov0: covariance at B = 0, (n, n).
      sigma: noise levels > 0, (...,).

    Returns:
      B, (...,) float64.
    """
    target = np.log(np.atleast_1d(np.asarray(sigma, np.float64)))

    def log_noise(log_b: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            value = np.log(effective_noise(f, g, cov0, np.exp(log_b)))
        # For huge B the influence of q0 vanishes: A underflows, and the noise level is infinite.
        return np.where(np.isnan(value), np.inf, value)

    ladder = np.linspace(np.log(LEAST_B), 20.0, 201)
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
    # Take the end whose noise level is nearer: the bracket may have closed in from one side only.
    nearer = np.abs(below - target) < np.abs(over - target)
    return np.exp(np.where(nearer, low, high)).reshape(np.shape(sigma))


def signal_side(F: np.ndarray, G: np.ndarray, cov0: np.ndarray, big_b: npt.ArrayLike) -> float:
    """Returns the sign, 1.0 or -1.0, of the last entry of w = L^-1 A at B = `big_b`, the end of the process.

    A reflection that maps the last axis to w or to -w is continuous in time if the sign is the same at all times. The
    sign is taken at the end of the process, where the last entry has no cancellation.
    """
    phi, chol = marginal(F, G, cov0, np.asarray(big_b))
    return float(np.copysign(1.0, solve_lower(chol, phi[:, :1])[-1, 0]))
