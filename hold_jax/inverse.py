"""Linear inverse problems: each function turns an `eps_fn` into one of the data given y = A q0 + noise xi.

Given the state u_t the data have the mean D = E[q0 | u_t] and the covariance C = sigma_eff^2 dD/dy: Tweedie's second
moment, where y is the sufficient statistic and dD/dy the derivative of D when u_t moves by A_t dy, the signal's part
(`kernels`; this holds at every order). If q0 | u_t were Gaussian, the mean given the measurement y too would be

    D' = D + C A' v,    (A C A' + noise^2 I) v = y - A D,

and a sampler of D' draws from the posterior of the data. The methods differ in what they take for C, and so in cost:

    method            C in A C A'                     C before A' v      network passes forward + backward
    proximal          r^2 I                           r^2 I              1 + 0
    dps               0, noise by the residual        sigma^2 dD/dy      1 + 1
    pigdm             r^2 I                           sigma^2 dD/dy      1 + 1
    moment_matching   sigma^2 dD/dy, by `steps` of    sigma^2 dD/dy      1 + steps
                      conjugate residuals

with r^2 = sigma^2 s^2 / (sigma^2 + s^2), the posterior variance of data N(0, s^2 I). `moment_matching` is exact for
Gaussian data of any covariance, the others for independent entries of equal variance.

Example: pictures (B, H, W, C) in the model's range from their means over blocks of 4 x 4 pixels.

    from hold_jax import inverse, operators, samplers

    operator = operators.superresolution(pictures.shape[1:], factor=4)
    measured = operator.measure(pictures, noise=0.05, key=key)
    conditional = inverse.moment_matching(sde, eps_fn, operator, measured, noise=0.05)
    out = samplers.sample("ancestral", sde, conditional, key=key, shape=pictures.shape, num_steps=50)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hold_jax import kernels
from hold_jax.errors import require, require_data, require_number, require_whole
from hold_jax.kernels import append_dims
from hold_jax.numerics import varying
from hold_jax.operators import Operator
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE

__all__ = ["METHODS", "dps", "moment_matching", "pigdm", "proximal"]


def proximal(
    sde: LinearSDE,
    eps_fn: EpsFn,
    operator: Operator,
    measured: jax.Array,
    noise: float = 0.0,
    *,
    sigma_data: float = 0.5,
) -> EpsFn:
    """D' = argmin |y - A x|^2 / noise^2 + |x - D|^2 / r^2: DiffPIR's step (2305.08995, eq. 13), without a derivative.

    With noise = 0 it is DDNM's D + A^+ (y - A D) (2212.00490, eq. 12); `guidance.inpaint` is that for a mask.

    Args:
      sde: the SDE.
      eps_fn: unconditional, or conditional in another way.
      operator: A, of `operators`.
      measured: (B, *measured_shape) y, floating, in the model's range; values that do not exist may be anything.
      noise: standard deviation of the measurement's noise, in the model's range; 0: exact.
      sigma_data: s, the standard deviation of the data.

    Returns:
      The conditional `eps_fn`. It raises UserError for a state of another shape than the operator's data.

    Raises:
      UserError: for a measurement of another shape or type, a negative noise, or a sigma_data that is not positive.
    """
    y = _measurement(operator, measured, noise, sigma_data)

    def conditional(u: jax.Array, t: jax.Array) -> jax.Array:
        _require_state(operator, y, u)
        eps = eps_fn(u, t)
        gap = operator.of_known(y - operator.forward(kernels.denoiser(sde, u, t, eps)))
        ratio = noise**2 / _variance(kernels.effective_noise(sde, t), sigma_data)
        return kernels.shifted_noise(sde, t, eps, operator.transpose(operator.solve(gap, 1.0, ratio)))

    return conditional


def dps(
    sde: LinearSDE,
    eps_fn: EpsFn,
    operator: Operator,
    measured: jax.Array,
    noise: float = 0.0,
    *,
    scale: float = 1.0,
) -> EpsFn:
    """Diffusion posterior sampling (2209.14687, eq. 16): all of q0 | u_t at D, so C = 0 in the likelihood's variance.

    D' = D + scale sigma^2 (dD/dy)' A' (y - A D) / v. With the paper's v = noise^2 the result is unstable; its
    algorithm 1 divides by the length of the residual instead. In the same way v is the larger of noise^2 and the mean
    square of y - A D here, so that scale = 1 needs no tuning.

    The other arguments, the result and the errors are those of `proximal`; `eps_fn` must be differentiable in u.

    Args:
      scale: of the step.
    """
    y = _measurement(operator, measured, noise)

    def conditional(u: jax.Array, t: jax.Array) -> jax.Array:
        at = _posterior(sde, eps_fn, operator, y, u, t)
        axes = tuple(range(1, at.gap.ndim))
        mean_square = jnp.sum(jnp.square(at.gap), axis=axes) / operator.num_known
        variance = append_dims(jnp.maximum(mean_square, max(noise**2, 1e-12)), at.gap)
        return kernels.shifted_noise(sde, t, at.eps, scale * at.spread(operator.transpose(at.gap / variance)))

    return conditional


def pigdm(
    sde: LinearSDE,
    eps_fn: EpsFn,
    operator: Operator,
    measured: jax.Array,
    noise: float = 0.0,
    *,
    sigma_data: float = 0.5,
) -> EpsFn:
    """Pseudoinverse-guided diffusion (Song et al., ICLR 2023, eq. 7): C = r^2 I in the likelihood's variance.

    D' = D + sigma^2 (dD/dy)' A' (r^2 A A' + noise^2 I)^-1 (y - A D).

    The arguments, the result and the errors are those of `proximal`; `eps_fn` must be differentiable in u.
    """
    y = _measurement(operator, measured, noise, sigma_data)

    def conditional(u: jax.Array, t: jax.Array) -> jax.Array:
        at = _posterior(sde, eps_fn, operator, y, u, t)
        weighted = operator.solve(at.gap, _variance(at.sigma, sigma_data), noise**2)
        return kernels.shifted_noise(sde, t, at.eps, at.spread(operator.transpose(weighted)))

    return conditional


def moment_matching(
    sde: LinearSDE,
    eps_fn: EpsFn,
    operator: Operator,
    measured: jax.Array,
    noise: float = 0.0,
    *,
    sigma_data: float = 0.5,
    steps: int = 3,
) -> EpsFn:
    """Moment matching (2310.06721, eq. 8; 2405.13712, section 4.2): the mean and the covariance are those of q0 | u_t.

    (A C A' + noise^2 I) v = y - A D is solved by the method of conjugate residuals (that is, GMRES) from v = 0,
    preconditioned by the matrix M of `pigdm`; each step is one backward pass through the network. steps = 1 costs as
    much as `pigdm` and differs from it by the length of the step. The residual's norm, in the metric of M^-1, never
    grows, whatever the matrix: C is that of a network, which need not be symmetric or positive. (Conjugate gradients
    need that, and failed for one in fifteen of the digits; docs/inverse.md.)

    The other arguments, the result and the errors are those of `proximal`; `eps_fn` must be differentiable in u.

    Args:
      sigma_data: as in `proximal`, for the preconditioner alone.
      steps: of the solution, 1 or more.
    """
    y = _measurement(operator, measured, noise, sigma_data)
    steps = require_whole("steps", steps, 1)

    def conditional(u: jax.Array, t: jax.Array) -> jax.Array:
        at = _posterior(sde, eps_fn, operator, y, u, t)
        variance = _variance(at.sigma, sigma_data)

        def precondition(gap: jax.Array) -> jax.Array:
            return operator.solve(gap, variance, noise**2)

        def advance(i: jax.Array, s: _Residuals) -> _Residuals:
            towards = precondition(s.gap)
            moved = at.spread(operator.transpose(towards))  # C A' p
            curved = operator.of_known(operator.forward(moved)) + noise**2 * towards  # (A C A' + noise^2 I) p
            weighed = precondition(curved)
            before = _inner(curved, weighed)
            for _ in range(2):  # twice: float32
                shares = jax.vmap(_inner, (0, None))(s.weighed, curved)
                curved = curved - _combined(shares, s.curved)
                weighed = weighed - _combined(shares, s.weighed)
                moved = moved - _combined(shares, s.moved)
            square = _inner(curved, weighed)
            # An example is done where its residual is down to rounding, or its direction is one of those before.
            goes_on = (_inner(s.gap, towards) > 1e-14 * size) & (square > 1e-6 * before)
            scale = jnp.where(goes_on, jax.lax.rsqrt(jnp.where(goes_on, square, 1)), 0)
            moved, curved, weighed = (append_dims(scale, v) * v for v in (moved, curved, weighed))
            length = _inner(s.gap, weighed)
            return _Residuals(
                s.delta + append_dims(length, moved) * moved,
                s.gap - append_dims(length, curved) * curved,
                s.moved.at[i].set(moved),
                s.curved.at[i].set(curved),
                s.weighed.at[i].set(weighed),
            )

        size = _inner(at.gap, precondition(at.gap))
        kept = jnp.zeros((steps, *at.gap.shape), at.gap.dtype)
        nothing = jnp.zeros_like(at.denoised)
        start = _Residuals(nothing, at.gap, jnp.zeros((steps, *nothing.shape), nothing.dtype), kept, kept)
        start = varying.carried(lambda s: advance(jnp.int32(0), s), start)
        found = jax.lax.fori_loop(0, steps, advance, start)
        return kernels.shifted_noise(sde, t, at.eps, found.delta)

    return conditional


METHODS: dict[str, Callable[..., EpsFn]] = {
    "dps": dps,
    "moment_matching": moment_matching,
    "pigdm": pigdm,
    "proximal": proximal,
}


class _Residuals(NamedTuple):
    """State of the method of conjugate residuals, with M the matrix of `pigdm` and S = A C A' + noise^2 I.

    Attributes:
      delta: (B, *S, C) C A' v.
      gap: (B, *measured_shape) y - A D - S v.
      moved: (steps, B, *S, C) C A' p of the directions p so far, zero for those to come.
      curved: (steps, B, *measured_shape) S p, orthonormal in the inner product of M^-1.
      weighed: (steps, B, *measured_shape) M^-1 S p.
    """

    delta: jax.Array
    gap: jax.Array
    moved: jax.Array
    curved: jax.Array
    weighed: jax.Array


class _Posterior(NamedTuple):
    """What is known of q0 given u_t.

    Attributes:
      eps: (B, *S, 1, C) noise of the last block.
      denoised: (B, *S, C) D.
      gap: (B, *measured_shape) y - A D.
      sigma: () or (B,) effective noise.
      spread: C' x = sigma^2 (dD/dy)' x, from and to (B, *S, C); a covariance is symmetric, an exact one equals C.
    """

    eps: jax.Array
    denoised: jax.Array
    gap: jax.Array
    sigma: jax.Array
    spread: Callable[[jax.Array], jax.Array]


def _posterior(
    sde: LinearSDE, eps_fn: EpsFn, operator: Operator, y: jax.Array, u: jax.Array, t: jax.Array
) -> _Posterior:
    """One forward pass of the network; `spread` is one backward pass."""
    _require_state(operator, y, u)
    signal = kernels.marginal(sde, t).phi[..., :, :1]
    sigma = kernels.effective_noise(sde, t)

    def denoise(shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        moved = u + kernels.mix(signal, shift[..., None, :])
        eps = eps_fn(moved, t)
        return kernels.denoiser(sde, moved, t, eps), eps

    unmoved = varying.argument(denoise, jnp.zeros((*u.shape[:-2], u.shape[-1]), u.dtype), y)
    denoised, pull, eps = jax.vjp(denoise, unmoved, has_aux=True)
    square = append_dims(jnp.square(sigma), denoised)
    gap = operator.of_known(y - operator.forward(denoised))
    return _Posterior(eps, denoised, gap, sigma, lambda x: square * pull(x)[0])


def _variance(sigma: jax.Array, sigma_data: float) -> jax.Array:
    """r^2 = sigma^2 s^2 / (sigma^2 + s^2)."""
    return jnp.square(sigma * sigma_data) / (jnp.square(sigma) + sigma_data**2)


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """The inner product of each example, (B,)."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))


def _combined(shares: jax.Array, arrays: jax.Array) -> jax.Array:
    """sum_i shares_i arrays_i of shares (k, B) and arrays (k, B, ...)."""
    return jnp.sum(append_dims(shares, arrays) * arrays, axis=0)


def _measurement(operator: Operator, measured: jax.Array, noise: float, sigma_data: float = 1.0) -> jax.Array:
    """The measurement, float32, with 0 for values that do not exist; checks what the methods have in common."""
    measured = jnp.asarray(measured)
    require_data("measured", measured)
    shape = operator.measured_shape
    require(measured.shape[1:] == shape, "measured", measured.shape, f"of shape (B, {', '.join(map(str, shape))})")
    if operator.known is not None:
        fits = len(operator.known) in (1, len(measured))
        require(fits, "measured", measured.shape, f"a batch of {len(operator.known)}, as the mask")
    require_number("noise", noise, lambda s: 0 <= s < float("inf"), "0 or positive")
    require_number("sigma_data", sigma_data, lambda s: 0 < s < float("inf"), "positive")
    return operator.of_known(measured.astype(jnp.float32))


def _require_state(operator: Operator, y: jax.Array, u: jax.Array) -> None:
    shape = (*u.shape[:-2], u.shape[-1])
    wanted = (len(y), *operator.data_shape)
    require(shape == wanted, "shape", shape, f"{wanted}: the operator's data, one example a measurement")


def __dir__() -> list[str]:
    return __all__
