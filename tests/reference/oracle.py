"""Kernels, Gaussian and Gaussian-mixture posteriors of a linear SDE, in 80 digits or in float64.

Every function takes `digits`: True computes in 80-digit arithmetic from the exact rational values of
the SDE's float64 matrices (one B at a time, memoised), False in float64 (any shape of B, for Monte Carlo).
Covariances are *formed*, by a Taylor series and the doubling Q(2B) = Q + Phi Q Phi': with 80 digits nothing
that cancels matters, so that this is independent of the square-root algorithm under test.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

MP = mpmath.mp.clone()
MP.dps = 80

_exact = np.frompyfunc(MP.mpf, 1, 1)
_sqrt = {np.dtype(object): np.frompyfunc(MP.sqrt, 1, 1), np.dtype(np.float64): np.sqrt}


def _lift(a, digits):
    return _exact(np.asarray(a, np.float64)) if digits else np.asarray(a, np.float64)


def _t(a):
    return np.swapaxes(a, -1, -2)


def cholesky(a):
    """The lower factor of a (..., n, n), entry by entry from its definition."""
    n, out = a.shape[-1], np.zeros_like(a)
    for i in range(n):
        for j in range(i + 1):
            rest = a[..., i, j] - (out[..., i, :j] * out[..., j, :j]).sum(axis=-1)
            out[..., i, j] = _sqrt[a.dtype](rest) if i == j else rest / out[..., j, j]
    return out


def inverse_lower(chol):
    """chol^-1 by forward substitution."""
    n, out = chol.shape[-1], np.zeros_like(chol)
    for i in range(n):
        out[..., i, i] = 1 / chol[..., i, i]
        for j in range(i):
            out[..., i, j] = -(chol[..., i, j:i] * out[..., j:i, j]).sum(axis=-1) / chol[..., i, i]
    return out


@functools.lru_cache(maxsize=256)
def _series(m, digits):
    """Taylor coefficients of exp(F b) and of Q: F^k and M_k, M_0 = G G', M_{k+1} = F M_k + M_k F'."""
    f, g = _lift(m.F, digits), _lift(m.G, digits)
    powers, drives = [_lift(np.eye(m.order), digits)], [g @ g.T]
    for _ in range(45 if digits else 20):
        powers.append(f @ powers[-1])
        drives.append(f @ drives[-1] + drives[-1] @ f.T)
    return powers, drives


def _moments(m, b, digits):
    norm = np.abs(m.F).sum(axis=1).max() * float(np.max(b))
    doublings = max(0, int(np.ceil(np.log2(4 * norm)))) if norm > 0 else 0
    b = b[..., None, None] / 2**doublings if np.ndim(b) else b / 2**doublings
    powers, drives = _series(m, digits)
    phi, q, scale = powers[0] + 0 * b, 0 * b * powers[0], b
    for k in range(1, len(powers)):
        phi, q = phi + powers[k] * scale, q + drives[k - 1] * scale
        scale = scale * b / (k + 1)
    for _ in range(doublings):
        q = q + phi @ q @ _t(phi)
        phi = phi @ phi
    return phi, q


@functools.lru_cache(maxsize=4096)
def _moments_digits(m, b):
    return _moments(m, MP.mpf(b), True)


def moments(m, b, digits=True):
    """Phi = exp(F b) and Q = int_0^b exp(F s) G G' exp(F' s) ds at B = b."""
    return _moments_digits(m, float(b)) if digits else _moments(m, np.asarray(b, np.float64), False)


def transition(m, b, digits=True):
    """Phi and the Cholesky factor of Q."""
    phi, q = moments(m, b, digits)
    return phi, cholesky(q)


def marginal(m, b, digits=True, data_std=0.0):
    """Phi and the Cholesky factor of Sigma = Q + Phi C0 Phi', with data_std^2 added to block 1 of C0."""
    phi, q = moments(m, b, digits)
    start = _lift(m.cov0, digits).copy()
    start[0, 0] = start[0, 0] + _lift(data_std, digits) ** 2
    return phi, cholesky(q + phi @ start @ _t(phi))


def whitened_mean(m, b, digits=True):
    """w = L^-1 Phi e_1."""
    phi, chol = marginal(m, b, digits)
    return (inverse_lower(chol) @ phi[..., :, :1])[..., 0]


def effective_noise(m, b, digits=True):
    """|w|^-1."""
    w = whitened_mean(m, b, digits)
    square = (w * w).sum(axis=-1)
    return float(1 / MP.sqrt(square)) if digits else 1 / np.sqrt(square)


def integral_of_noise(m, sigma):
    """The B with effective noise `sigma` (any shape), by bisection of log B in float64."""
    low, high = np.full(np.shape(sigma), -25.0), np.full(np.shape(sigma), 9.0)
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(all="ignore"):
            below = effective_noise(m, np.exp(middle), digits=False) < sigma
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.exp((low + high) / 2)


def integral(m, t):
    """B(0, t) in float64 at the value of t, whatever precision t was rounded to."""
    return m.schedule.integral(0.0, np.asarray(t, np.float64))


def row_error(got, want, axis=-1):
    """The largest |got - want| relative to the norm of want's row."""
    want = np.asarray(want, np.float64)
    difference = np.abs(np.asarray(got, np.float64) - want)
    return float((difference / np.linalg.norm(want, axis=axis, keepdims=True)).max())


# --- Gaussian data -------------------------------------------------------------------------------


def gaussian_row(m, t, std, digits=False):
    """For data N(mean, std^2): eps_n = row (u - A mean). Returns row (..., n) and A (..., n) in float64.

    E[eps_n | u] = -L_nn score_n = L_nn e_n' Sigma_tot^-1 (u - A mean).
    """
    b = float(integral(m, t)) if digits else integral(m, t)
    phi, chol = marginal(m, b, digits)
    _, total = marginal(m, b, digits, std)
    inverse = inverse_lower(total)
    row = chol[..., -1:, -1] * inverse[..., -1:, -1] * inverse[..., -1, :]
    return row.astype(np.float64), phi[..., :, 0].astype(np.float64)


def gaussian_eps(m, mean, std, digits=False):
    """The exact `eps_fn(u, t)` for data N(mean, std^2), in u's dtype; traceable (a host callback on t)."""
    return affine_eps(m, mean, lambda t: gaussian_row(m, t, std, digits))


def affine_eps(m, mean, row_of):
    """eps_n = row (u - A mean), with row_of(t) -> row (n,), A (n,): traceable, a host callback on each t.

    `mean` broadcasts against the channel axis: basis columns ride on channels of mean zero.
    """
    n = m.order

    def rows(t):
        t = np.asarray(t)
        both = [np.stack(row_of(float(x))) for x in t.ravel()]
        return np.stack(both).reshape(*t.shape, 2, n).astype(t.dtype)

    def eps_fn(u, t):
        t = jnp.asarray(t, u.dtype)
        shape = jax.ShapeDtypeStruct((*t.shape, 2, n), u.dtype)
        row, a = jnp.moveaxis(jax.pure_callback(rows, shape, t, vmap_method="expand_dims"), -2, 0)
        row, a = (v.reshape(*t.shape, *(1,) * (u.ndim - 2 - t.ndim), n, 1) for v in (row, a))
        center = a * jnp.broadcast_to(jnp.asarray(mean, u.dtype), u.shape[-1:]).reshape(*(1,) * (u.ndim - 1), -1)
        return jnp.sum(row * (u - center), axis=-2, keepdims=True)

    return eps_fn


def gaussian_residual(m, t, std):
    """Var(eps_n | u_t) for data of deviation std (T,): the floor of the eps-weighted loss per dimension, float64."""
    row, a = gaussian_row(m, t, std)
    _, chol = marginal(m, integral(m, t), False)
    left = np.eye(m.order)[-1] - (row[..., None, :] @ chol)[..., 0, :]
    return (left**2).sum(axis=-1) + (std * (row * a).sum(axis=-1)) ** 2


def kl(mean, cov, true_mean, true_cov):
    """KL(N(mean, cov) || N(true_mean, true_cov)) in nats."""
    whiten = np.linalg.inv(np.linalg.cholesky(true_cov))
    ratio = whiten @ cov @ whiten.T
    values = np.linalg.eigvalsh(ratio) - 1
    shift = whiten @ (np.asarray(mean) - true_mean)
    return 0.5 * float((values - np.log1p(values)).sum() + shift @ shift)


# --- Gaussian mixtures ---------------------------------------------------------------------------


def discrete_sigmas(schedule, count=1000, start=1e-4, end=0.02):
    """sqrt(1 / abar - 1) of each index of a discrete process, by the product that defines it."""
    if schedule == "squaredcos_cap_v2":
        product = [np.cos((i / count + 0.008) / 1.008 * np.pi / 2) ** 2 for i in range(count + 1)]
        betas = [min(1 - b / a, 0.999) for a, b in itertools.pairwise(product)]
    elif schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, count) ** 2
    else:
        betas = np.linspace(start, end, count)
    return np.sqrt(1 / np.cumprod(1 - np.asarray(betas)) - 1)


class Mixture:
    """sum_k weight_k N(mean_k, std_k^2 I) on R^d, and its exact posteriors in float64."""

    def __init__(self, weights, means, stds):
        self.weights, self.means, self.stds = (np.asarray(a, np.float64) for a in (weights, means, stds))

    def _parts(self, m, u, t):
        """For u (B, n, d) and one t: log-weights (B, K), Sigma_k^-1 (u - A mean_k) (B, K, n, d), A (n,)."""
        logs, pulls = [], []
        b = float(integral(m, t))
        for weight, mean, std in zip(self.weights, self.means, self.stds, strict=True):
            phi, chol = (v.astype(np.float64) for v in marginal(m, b, True, std))
            inverse = inverse_lower(chol)
            white = inverse @ (u - phi[:, :1] * mean)
            log_det = np.log(np.diagonal(chol)).sum() * u.shape[-1]
            logs.append(np.log(weight) - 0.5 * (white**2).sum(axis=(-1, -2)) - log_det)
            pulls.append(inverse.T @ white)
        return np.stack(logs, axis=1), np.stack(pulls, axis=1), phi[:, 0]

    def log_density(self, m, u, t):
        """log p(u_t) up to a constant, (B,)."""
        return np.logaddexp.reduce(self._parts(m, u, t)[0], axis=1)

    def score(self, m, u, t):
        """grad log p(u_t) (B, n, d)."""
        logs, pulls, _ = self._parts(m, u, t)
        posterior = np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None])
        return -(posterior[..., None, None] * pulls).sum(axis=1)

    def denoiser(self, m, u, t):
        """E[q0 | u_t] (B, d), component by component."""
        logs, pulls, a = self._parts(m, u, t)
        posterior = np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None])
        centers = self.means + self.stds[:, None] ** 2 * np.einsum("i,bkid->bkd", a, pulls)
        return (posterior[..., None] * centers).sum(axis=1)

    def first_order_denoiser(self, y, sigma):
        """E[q0 | q0 + sigma eps = y] (B, d): no SDE at all."""
        variance = self.stds**2 + sigma**2
        gap = y[:, None] - self.means
        logs = np.log(self.weights) - 0.5 * (gap**2).sum(axis=-1) / variance - y.shape[-1] / 2 * np.log(variance)
        posterior = np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None])
        centers = self.means + (self.stds**2 / variance)[:, None] * gap
        return (posterior[..., None] * centers).sum(axis=1)

    def sample(self, rng, num):
        """(num, d) draws."""
        which = rng.choice(len(self.weights), num, p=self.weights)
        return self.means[which] + self.stds[which, None] * rng.standard_normal((num, self.means.shape[1]))
