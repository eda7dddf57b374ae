"""Transition kernels of a `LinearSDE` in float32, and the denoiser, noise and score that a network's output implies.

With B = int beta, Phi = exp(F B) and L the lower Cholesky factor of the covariance,

    u(t) | u(s)  ~ N(Phi u(s), L L'),                  `transition`
    u(t) | q(0)  ~ N(A q(0), L L'),  A = Phi e_1,      `marginal` (auxiliary blocks integrated out)

A network predicts eps_n, the noise of the last block in u_t = A q0 + L eps. It determines the denoiser
D = E[q0 | u_t], and D determines the noise and the score of every block:

    D = ([L^-1 u]_n - eps_n) / w_n,    eps = L^-1 (u - A D),    score = -L^-T eps,    w = L^-1 A.

The effective noise sigma_eff = 1 / |w| is the noise level of the sufficient statistic y = A' Sigma^-1 u / |w|^2, which
is N(q0, sigma_eff^2) given q0 and carries all information that u_t has about q0: a first-order denoiser of y is the
denoiser of every order.

Shapes: states u (B, *S, n, C), or (*S, n, C) with scalar t; data x without the block axis; times () or (B,); matrices
(..., n, n). All arrays are float32. No epsilon is added anywhere, and B = 0 is allowed. The SDE is static; everything
composes with jit, vmap and grad.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hold_jax.errors import UserError, require, require_number
from hold_jax.numerics import exact, gauges
from hold_jax.numerics.tables import Table, tabulate
from hold_jax.sde import LinearSDE

__all__ = [
    "Kernel",
    "amplification",
    "append_dims",
    "denoiser",
    "effective_noise",
    "flow_factor",
    "full_noise",
    "full_score",
    "inverse_lower",
    "last_noise",
    "last_score",
    "marginal",
    "mix",
    "perturb",
    "require_clock",
    "require_noise",
    "require_t_min",
    "rest_basis",
    "shifted_noise",
    "state_of",
    "sufficient_row",
    "sufficient_statistic",
    "time_of_noise",
    "total_chol",
    "transition",
    "whitened_mean",
]

# The tables end at this B or later, so that kernels can be computed beyond T too.
_LEAST_TOP = 16.0
_LEAST_NOISE = 1e-5
_LEAST_FLOAT = float(np.finfo(np.float32).tiny)
# Where the factor of the probability flow starts: the process has not moved yet.
_LEAST_B = 1e-11


class Kernel(NamedTuple):
    """A Gaussian transition kernel.

    Attributes:
      phi: (..., n, n) Phi; the mean is phi u(s), or phi[..., :, :1] q0.
      chol: (..., n, n) L, lower triangular; the covariance is chol chol'.
    """

    phi: jax.Array
    chol: jax.Array


class _Tables(NamedTuple):
    phi: Table
    noise: Table
    marginal: Table
    integral: Table
    least_log_noise: float


@functools.lru_cache(maxsize=64)
def _tables(sde: LinearSDE) -> _Tables:
    """The SDE's kernels as functions of B, tabulated once.

    Raises:
      UserError: for an SDE whose kernels need too many polynomial pieces.
    """
    top = _top(sde)
    rate = -float(np.linalg.eigvals(sde.F).real.max())

    # B against log sigma_eff, from below any useful noise to the end of the range.
    ends = exact.effective_noise(sde.F, sde.G, sde.cov0, np.array([1e-12 * min(1.0, top), top / 1.02]))
    low, high = np.log(np.maximum(ends, _LEAST_NOISE))

    def integral(shift: np.ndarray) -> np.ndarray:
        return exact.integral_of_noise(sde.F, sde.G, sde.cov0, np.exp(low + shift))[:, None, None]

    return _Tables(
        phi=_tabulate(lambda b: exact.transition(sde.F, sde.G, b)[0], top=top, rate=rate),
        noise=_tabulate(lambda b: exact.transition(sde.F, sde.G, b)[1], top=top),
        marginal=_tabulate(lambda b: exact.marginal(sde.F, sde.G, sde.cov0, b)[1], top=top),
        integral=_tabulate(integral, top=high - low),
        least_log_noise=float(low),
    )


def _tabulate(function: Callable[[np.ndarray], np.ndarray], **options: float) -> Table:
    try:
        return tabulate(function, **options)
    except ArithmeticError as error:
        raise UserError(
            f"the kernels of this SDE are too rough to tabulate ({error}); with `gammas` and `xi` of your own, "
            "choose them nearer to sde.critical_damping(order)"
        ) from None


@functools.lru_cache(maxsize=64)
def _total_table(sde: LinearSDE, sigma_data: float) -> Table:
    """The lower factor of Cov u(t) for data N(0, sigma_data^2)."""
    cov0 = sde.cov0 + sigma_data**2 * np.diag(np.eye(sde.order)[0])
    return _tabulate(lambda b: exact.marginal(sde.F, sde.G, cov0, b)[1], top=_top(sde))


def _top(sde: LinearSDE) -> float:
    return max(_LEAST_TOP, 1.05 * float(sde.schedule.integral(0.0, sde.T)))


def _integral(sde: LinearSDE, s: ArrayLike, t: ArrayLike) -> jax.Array:
    return sde.schedule.integral(jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def transition(sde: LinearSDE, s: ArrayLike, t: ArrayLike) -> Kernel:
    """The kernel of u(t) | u(s) for 0 <= s <= t, () or (B,); NaN for s > t."""
    b = _integral(sde, s, t)
    return Kernel(_tables(sde).phi(b), _tables(sde).noise(b))


@functools.partial(jax.jit, static_argnums=0)
def marginal(sde: LinearSDE, t: ArrayLike) -> Kernel:
    """The kernel of u(t) | q(0), auxiliary blocks integrated out (HOLD 2404.12814; CLD's HSM, 2112.07068).

    Args:
      sde: the SDE.
      t: () or (B,), in [0, T]; NaN far above.

    Returns:
      Kernel, with mean phi[..., :, :1] q0.
    """
    b = _integral(sde, 0.0, t)
    return Kernel(_tables(sde).phi(b), _tables(sde).marginal(b))


@functools.partial(jax.jit, static_argnums=(0, 2))
def total_chol(sde: LinearSDE, t: ArrayLike, sigma_data: float) -> jax.Array:
    """The lower factor (..., n, n) of Sigma + sigma_data^2 A A', the covariance of u(t) for data N(0, sigma_data^2)."""
    return _total_table(sde, float(sigma_data))(_integral(sde, 0.0, t))


@functools.lru_cache(maxsize=16)
def _flow_table(sde: LinearSDE, variance: float) -> Table:
    """The factor of `flow_factor` against log(B / _LEAST_B)."""
    cov0 = sde.cov0 + variance * np.eye(sde.order)

    def factor(shift: np.ndarray) -> np.ndarray:
        b = _LEAST_B * np.exp(shift)
        _, chol = exact.marginal(sde.F, sde.G, cov0, b)
        return chol @ gauges.flow_turn(sde.F, sde.G, cov0, b, _LEAST_B)

    return _tabulate(factor, top=float(np.log(_top(sde) / _LEAST_B)))


@functools.partial(jax.jit, static_argnums=(0, 2))
def flow_factor(sde: LinearSDE, t: ArrayLike, variance: float) -> jax.Array:
    """The factor R of the covariance that the probability flow carries along (gDDIM, 2206.05564, eq. 17).

    dR/dB = F R + 1/2 G G' R^-T from R(0) = (C0 + variance I)^(1/2), where the covariance C0 at the start is diagonal.

    Args:
      sde: the SDE.
      t: () or (B,), >= 0.
      variance: positive; C0 is zero in the data, so that R starts from it.

    Returns:
      (..., n, n) float32.
    """
    b = jnp.maximum(_integral(sde, 0.0, t), _LEAST_B)
    return _flow_table(sde, variance)(jnp.log(b / _LEAST_B))


def inverse_lower(chol: jax.Array) -> jax.Array:
    """L^-1 of a lower-triangular L (..., n, n), by forward substitution unrolled over the tiny n."""
    n = chol.shape[-1]
    rows: list[jax.Array] = []
    for i in range(n):
        row = jnp.broadcast_to(jnp.eye(n, dtype=chol.dtype)[i], (*chol.shape[:-2], n))
        for j in range(i):
            row = row - chol[..., i, j, None] * rows[j]
        rows.append(row / chol[..., i, i, None])
    return jnp.stack(rows, axis=-2)


def whitened_mean(kernel: Kernel) -> jax.Array:
    """w = L^-1 A (..., n): given q0, L^-1 u ~ N(w q0, I)."""
    return jnp.sum(inverse_lower(kernel.chol) * kernel.phi[..., None, :, 0], axis=-1)


def _norm(w: jax.Array) -> jax.Array:
    """|w| over the last axis, without overflow: w reaches 1e30 for small t."""
    largest = jnp.max(jnp.abs(w), axis=-1, keepdims=True)
    return largest[..., 0] * jnp.sqrt(jnp.sum(jnp.square(w / largest), axis=-1))


@functools.partial(jax.jit, static_argnums=0)
def effective_noise(sde: LinearSDE, t: ArrayLike) -> jax.Array:
    """sigma_eff(t) = 1 / |w| for t > 0: u(t) carries the same information about q0 as q0 + sigma_eff * eps.

    It grows with t.
    """
    return 1 / _norm(whitened_mean(marginal(sde, t)))


@functools.partial(jax.jit, static_argnums=0)
def time_of_noise(sde: LinearSDE, sigma: ArrayLike) -> jax.Array:
    """The t with effective_noise(sde, t) = sigma; NaN below 1e-5 (or t near 0) and above the noise at B = 16 or T.

    Args:
      sde: the SDE.
      sigma: () or (B,), in data units.
    """
    tables = _tables(sde)
    shift = jnp.log(jnp.asarray(sigma, jnp.float32)) - tables.least_log_noise
    return sde.schedule.time(tables.integral(shift)[..., 0, 0])


def require_t_min(sde: LinearSDE, t_min: Any, argument: str = "t_min", least_b: float = 0.0) -> float:
    """The value, a time in (0, T) whose kernels are numbers in float32.

    Args:
      sde: the SDE.
      t_min: the value.
      argument: what errors call it.
      least_b: what the integral of beta up to it must be above.

    Raises:
      UserError: for another one.
    """
    t_min = require_number(argument, t_min, lambda t: 0 < t < sde.T, f"between 0 and T = {sde.T}")
    least_b = max(least_b, _LEAST_FLOAT, float(sde.schedule.integral(0.0, _LEAST_FLOAT)))
    _require_noise(sde, t_min, max(_LEAST_FLOAT, _noise(sde, least_b)), argument)
    return t_min


def require_clock(sde: LinearSDE, t_min: float) -> None:
    """Checks that `time_of_noise` reaches down to a time.

    Raises:
      UserError: if the effective noise at t_min is below those that it inverts.
    """
    _require_noise(sde, t_min, math.exp(_tables(sde).least_log_noise), "t_min")


def _require_noise(sde: LinearSDE, t_min: float, least: float, argument: str) -> None:
    noise = _noise(sde, float(sde.schedule.integral(0.0, t_min)))
    allowed = f"a time of an effective noise above {least:.2g}, not {noise:.2g}; `sde.t_min` is {sde.t_min:.3g}"
    require(noise > least, argument, t_min, allowed)


@functools.lru_cache(maxsize=64)
def _noise(sde: LinearSDE, passed: float) -> float:
    """The effective noise at B = `passed`; 0 where it is so small that float64's covariances underflow."""
    with np.errstate(all="ignore"):  # NumPy warns of the underflow, and of the 0 / 0 after it
        noise = float(exact.effective_noise(sde.F, sde.G, sde.cov0, np.asarray(passed)))
    return 0.0 if math.isnan(noise) else noise


@functools.lru_cache(maxsize=64)
def amplification(sde: LinearSDE) -> float:
    """The largest |w| / |w_n| between t_min and T; infinite if w_n changes sign.

    It is the factor by which D = ([L^-1 u]_n - eps_n) / w_n amplifies an error of eps_n, in units of sigma_eff.
    """
    b = sde.schedule.integral(0.0, np.geomspace(sde.t_min, sde.T, 512))
    phi, chol = exact.marginal(sde.F, sde.G, sde.cov0, b)
    w = exact.solve_lower(chol, phi[..., :, :1])[..., 0]
    share = w[:, -1] / np.linalg.norm(w, axis=-1)
    if share.min() * share.max() <= 0:
        return float("inf")
    return float(1 / np.abs(share).min())


def mix(matrix: jax.Array | np.ndarray, u: jax.Array | np.ndarray) -> jax.Array:
    """matrix u on the block axis.

    Args:
      matrix: (k, n) or (B, k, n).
      u: (B, *S, n, C).

    Returns:
      (B, *S, k, C).

    Raises:
      UserError: for a state of another number of blocks than n.
    """
    n = matrix.shape[-1]
    require(u.shape[-2] == n, "u.shape[-2]", u.shape[-2], f"{n}, the number of blocks")
    # An elementwise sum fuses with its neighbors, and no matrix unit rounds it (TF32, bf16). But XLA for CPU also fuses
    # the computation of a batch of matrices into it and so repeats that at every pixel: there a float32 product is
    # faster (2 to 4 % of a small network's step, against 15 to 20 %).
    if matrix.ndim == 2:
        return _mix_sum(matrix, u)
    return jax.lax.platform_dependent(matrix, u, cpu=_mix_product, default=_mix_sum)


def _mix_sum(matrix: Any, u: Any) -> jax.Array:
    k, n = matrix.shape[-2:]
    batch = matrix.shape[:-2]
    matrix = matrix.reshape(*batch, *(1,) * (u.ndim - 2 - len(batch)), k, n)
    total: Any = sum(matrix[..., :, j, None] * u[..., j, None, :] for j in range(n))
    return total


def _mix_product(matrix: Any, u: Any) -> jax.Array:
    return jnp.einsum("bkn,b...nc->b...kc", matrix, u, precision=jax.lax.Precision.HIGHEST)


def append_dims(value: jax.Array, like: jax.Array) -> jax.Array:
    """Appends axes of length 1 to a value () or (B,), so that it broadcasts against `like` (B, ...)."""
    return value.reshape(*value.shape, *(1,) * (like.ndim - value.ndim))


def perturb(kernel: Kernel, x: jax.Array, eps: jax.Array) -> jax.Array:
    """u_t = A q0 + L eps for data x (B, *S, C) and noise eps (B, *S, n, C)."""
    shape = (*x.shape[:-1], kernel.chol.shape[-1], x.shape[-1])
    require(eps.shape == shape, "eps", eps.shape, f"of shape {shape}, noise for every block of `x`")
    return mix(kernel.phi[..., :, :1], x[..., None, :]) + mix(kernel.chol, eps)


def require_noise(u: jax.Array, eps_last: jax.Array) -> jax.Array:
    """The output of `eps_fn(u, t)`, whose shape is checked: many a wrong one would broadcast, to wrong numbers.

    Of a float32 state it becomes float32: with `jax_enable_x64` a constant in `eps_fn` may have made it float64.

    Raises:
      UserError: if it is not one real array, or not of shape (B, *S, 1, C), for a state u (B, *S, n, C).
    """
    shape = (*u.shape[:-2], 1, u.shape[-1])
    dtype = getattr(eps_last, "dtype", type(eps_last))
    real = hasattr(eps_last, "dtype") and (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))
    require(real, "eps_fn(u, t)", dtype, "one array of real numbers")
    found = jnp.shape(eps_last)
    require(found == shape, "eps_fn(u, t)", found, f"of shape {shape}, the noise of the last block")
    return jnp.asarray(eps_last, jnp.promote_types(u.dtype, jnp.float32))


def _require_denoised(argument: str, x: jax.Array, u: jax.Array) -> None:
    shape = (*u.shape[:-2], u.shape[-1])
    require(jnp.shape(x) == shape, argument, jnp.shape(x), f"of shape {shape}, as the data")


def denoiser(sde: LinearSDE, u: jax.Array, t: ArrayLike, eps_last: jax.Array) -> jax.Array:
    """D = E[q0 | u_t] (B, *S, C) from the noise of the last block (B, *S, 1, C)."""
    eps_last = require_noise(u, eps_last)
    kernel = marginal(sde, t)
    whitened = mix(inverse_lower(kernel.chol)[..., -1:, :], u)
    return ((whitened - eps_last) / append_dims(whitened_mean(kernel)[..., -1], u))[..., 0, :]


def last_noise(sde: LinearSDE, u: jax.Array, t: ArrayLike, denoised: jax.Array) -> jax.Array:
    """eps_n (B, *S, 1, C) from the denoiser (B, *S, C): the inverse of `denoiser`."""
    _require_denoised("denoised", denoised, u)
    kernel = marginal(sde, t)
    whitened = mix(inverse_lower(kernel.chol)[..., -1:, :], u)
    return whitened - append_dims(whitened_mean(kernel)[..., -1], u) * denoised[..., None, :]


def shifted_noise(sde: LinearSDE, t: ArrayLike, eps_last: jax.Array, shift: jax.Array) -> jax.Array:
    """eps_n (B, *S, 1, C) of the denoiser D + shift, from that of D; bitwise `eps_last` where shift (B, *S, C) is 0."""
    _require_denoised("shift", shift, eps_last)
    w_n = whitened_mean(marginal(sde, t))[..., -1]
    return eps_last - append_dims(w_n, eps_last) * shift[..., None, :]


def full_noise(sde: LinearSDE, u: jax.Array, t: ArrayLike, eps_last: jax.Array) -> jax.Array:
    """The noise of every block, eps = L^-1 (u - A D) (B, *S, n, C), from that of the last block."""
    kernel = marginal(sde, t)
    mean = mix(kernel.phi[..., :, :1], denoiser(sde, u, t, eps_last)[..., None, :])
    return mix(inverse_lower(kernel.chol), u - mean)


def full_score(sde: LinearSDE, u: jax.Array, t: ArrayLike, eps_last: jax.Array) -> jax.Array:
    """The score of every block, grad log p(u_t) = -L^-T eps (B, *S, n, C), from the noise of the last block."""
    inverse = inverse_lower(marginal(sde, t).chol)
    return -mix(jnp.swapaxes(inverse, -1, -2), full_noise(sde, u, t, eps_last))


def last_score(sde: LinearSDE, t: ArrayLike, eps_last: jax.Array) -> jax.Array:
    """The score of the last block, -eps_n / L_nn (B, *S, 1, C)."""
    return -eps_last / append_dims(marginal(sde, t).chol[..., -1, -1], eps_last)


def sufficient_row(sde: LinearSDE, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The row A' Sigma^-1 / SNR (..., 1, n) that makes y of u, with SNR = A' Sigma^-1 A, and sigma_eff (...,)."""
    kernel = marginal(sde, t)
    w = whitened_mean(kernel)
    sigma = 1 / _norm(w)
    # In this order: at orders 5 and 6 sigma^2 underflows for small t.
    direction = w * sigma[..., None] * sigma[..., None]
    return jnp.sum(direction[..., :, None] * inverse_lower(kernel.chol), axis=-2)[..., None, :], sigma


def sufficient_statistic(sde: LinearSDE, u: jax.Array, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """y = A' Sigma^-1 u / SNR (B, *S, C), which is N(q0, sigma_eff^2) given q0, and sigma_eff (...,)."""
    row, sigma = sufficient_row(sde, t)
    return mix(row, u)[..., 0, :], sigma


@functools.partial(jax.jit, static_argnums=0)
def rest_basis(sde: LinearSDE, t: ArrayLike) -> jax.Array:
    """K (..., n, n - 1), orthonormal with K' w = 0: the directions of whitened space without information about q0.

    Given q0, z = L^-1 u ~ N(w q0, I) has the coordinate y along w and, independent of it, rest = K' z ~ N(0, I). K
    consists of columns of the reflection of the last axis to w, and is continuous in t (`exact.signal_side`).
    """
    w = whitened_mean(marginal(sde, t))
    w = w / _norm(w)[..., None]
    side = exact.signal_side(sde.F, sde.G, sde.cov0, sde.schedule.integral(0.0, sde.T))
    # The first n - 1 columns of I - v v' / (1 + side w_n), v = w + side e_n.
    v = w.at[..., -1].add(side)
    outer = v[..., :, None] * w[..., None, :-1] / (1 + side * w[..., -1])[..., None, None]
    return jnp.broadcast_to(jnp.eye(sde.order, sde.order - 1, dtype=w.dtype), outer.shape) - outer


def state_of(sde: LinearSDE, y: jax.Array, rest: jax.Array, t: ArrayLike) -> jax.Array:
    """u_t = A y + L K rest (B, *S, n, C) from the sufficient statistic y (B, *S, C) and rest (B, *S, n - 1, C)."""
    kernel = marginal(sde, t)
    u = mix(kernel.phi[..., :, :1], y[..., None, :])
    return u if sde.order == 1 else u + mix(kernel.chol, mix(rest_basis(sde, t), rest))


def __dir__() -> list[str]:
    return __all__
