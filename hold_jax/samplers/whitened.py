"""The process in whitened coordinates, where every data-prediction sampler is a quadrature. Host side, float64.

With any factor R R' = Sigma let z = R^-1 u and w = R^-1 A. Given q0, z ~ N(w q0, I), |w| = 1 / sigma_eff, and

    dz = D dw - c (z - w D) dl + sqrt(2 c dl) xi,    l = -log sigma_eff growing, D = E[q0 | u],

keeps the marginal laws for every churn c >= 0 (the flow at c = 0). Over a step from s to t its solution is

    z_t = e^{-c h} z_s + int D d omega + sqrt(1 - e^{-2 c h}) xi,    omega = e^{-c (l_t - l)} w,   h = l_t - l_s.

The choice of the factor is the *gauge*: every R(t) = L(t) O(t) with O orthogonal gives a flow with the same marginals,
but with other paths between them.

- `cholesky` (the Cholesky gauge): R = L, the lower triangular factor.
- `signal`: O turns w to the last axis at all times. Only that coordinate of z moves, and it follows EDM's probability
  flow of q0 + sigma_eff eps at every order; at n = 1 this is the Cholesky gauge.
- `probability_flow`: dR = (F R + 1/2 G G' R^-T) dB, the flow of the process itself (gDDIM, 2206.05564, eq. 17).
"""

from typing import NamedTuple

import numpy as np

from hold_jax.errors import require_choice
from hold_jax.numerics import exact, gauges
from hold_jax.sde import LinearSDE

GAUGES = ("cholesky", "probability_flow", "signal")

# Quadrature nodes in log B over one step: exact to rounding for steps of a factor 30 in effective noise.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


class Whitening(NamedTuple):
    """Whitened coordinates at N values of B.

    Attributes:
      factor: (N, n, n) R.
      inverse: (N, n, n) R^-1.
      mean: (N, n) w.
      log_noise: (N,) log sigma_eff.
    """

    factor: np.ndarray
    inverse: np.ndarray
    mean: np.ndarray
    log_noise: np.ndarray


def check_gauge(gauge: str) -> None:
    """Raises `UserError` for an unknown gauge."""
    require_choice("gauge", gauge, GAUGES)


def whitening(sde: LinearSDE, big_b: np.ndarray, gauge: str) -> Whitening:
    """The whitened coordinates at values of B (N,), in one of `GAUGES`."""
    phi, chol = exact.marginal(sde.F, sde.G, sde.cov0, big_b)
    inverse = exact.solve_lower(chol, np.broadcast_to(np.eye(sde.order), chol.shape))
    w = exact.solve_lower(chol, phi[..., :, :1])[..., 0]
    log_noise = -np.log(np.linalg.norm(w, axis=-1))
    turn = _turn(sde, big_b, w, gauge)
    back = np.swapaxes(turn, -1, -2)
    return Whitening(chol @ turn, back @ inverse, (back @ w[..., None])[..., 0], log_noise)


def _turn(sde: LinearSDE, big_b: np.ndarray, w: np.ndarray, gauge: str) -> np.ndarray:
    """O (N, n, n) of R = L O."""
    eye = np.eye(sde.order)
    if sde.order == 1 or gauge == "cholesky":
        return np.broadcast_to(eye, (*big_b.shape, sde.order, sde.order))
    if gauge == "signal":
        # The Householder reflection of w to the last axis, on the side that is chosen at T, where nothing cancels: a
        # reflection that changed sides with the sign of w's last entry would not be continuous in time.
        side = exact.signal_side(sde.F, sde.G, sde.cov0, _reference(sde))
        v = w / np.linalg.norm(w, axis=-1, keepdims=True) + side * eye[-1]
        return eye - 2 * v[..., :, None] * v[..., None, :] / np.sum(v * v, axis=-1)[..., None, None]
    return gauges.flow_turn(sde.F, sde.G, sde.cov0, big_b, _reference(sde))


def _reference(sde: LinearSDE) -> np.ndarray:
    """B at T, where O is fixed, so that calls for different times agree."""
    return np.asarray(sde.schedule.integral(0.0, sde.T))


class Quadrature(NamedTuple):
    """int f d omega over each of N steps = sum_g f(log_noise_g) measure_g.

    Attributes:
      log_noise: (N, K) the nodes.
      measure: (N, K, n) the weights.
    """

    log_noise: np.ndarray
    measure: np.ndarray


def quadrature(sde: LinearSDE, ends: Whitening, big_b: np.ndarray, gauge: str, churn: float) -> Quadrature:
    """The measure d omega over each of N steps, by Gauss-Legendre in log B, in which w is smooth down to B = 0.

    Args:
      sde: the SDE.
      ends: the whitened coordinates at `big_b`.
      big_b: (N + 1,) the steps' ends.
      gauge: one of `GAUGES`.
      churn: c, >= 0.
    """
    log_b = np.log(big_b)
    half = np.diff(log_b)[:, None] / 2
    b = np.exp((log_b[:-1] + log_b[1:])[:, None] / 2 + half * _NODES)
    at = whitening(sde, b.ravel(), gauge)
    slope, rate = (a.reshape(*b.shape, *a.shape[1:]) for a in _slope(sde, at, gauge))
    log_noise = at.log_noise.reshape(b.shape)
    w = at.mean.reshape(*b.shape, sde.order)
    decay = np.exp(-churn * (log_noise - ends.log_noise[1:, None]))
    d_omega = decay[..., None] * (slope - churn * w * rate[..., None])
    measure = (half * _WEIGHTS * b)[..., None] * d_omega
    # A large churn moves the measure to the step's end, nearer than the last node: what the nodes miss is there.
    kept = np.exp(churn * np.diff(ends.log_noise))[:, None]
    measure[:, -1] += ends.mean[1:] - kept * ends.mean[:-1] - measure.sum(axis=1)
    return Quadrature(log_noise, measure)


def _slope(sde: LinearSDE, at: Whitening, gauge: str) -> tuple[np.ndarray, np.ndarray]:
    """dw/dB = (R^-1 F R - R^-1 dR/dB) w (N, n) and d log sigma_eff / dB = 1/2 |g' w|^2 / |w|^2 (N,), g = R^-1 G."""
    g = at.inverse @ sde.G
    along = (np.swapaxes(g, -1, -2) @ at.mean[..., None])[..., 0]
    rate = np.sum(along**2, axis=-1) / 2 * np.exp(2 * at.log_noise)
    pushed = (g @ along[..., None])[..., 0]
    if sde.order == 1 or gauge == "signal":
        return -at.mean * rate[..., None], rate
    if gauge == "probability_flow":
        return -pushed / 2, rate
    turning = gauges.turning(sde.F, sde.G, at.factor, at.inverse)
    return (turning @ at.mean[..., None])[..., 0] - pushed / 2, rate
