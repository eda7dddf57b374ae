"""Conditional generation: each function turns an `eps_fn` into a conditional one, for any order and sampler.

A condition changes the denoiser to D' = D + delta, and so the noise of the last block to eps_n' = eps_n - w_n delta
(`kernels.denoiser`); the noise and the score of every other block follow from D'.

Example: pictures (B, H, W, C) in the model's range whose left half is known; `sde` and `eps_fn` are those of a model.

    import jax.numpy as jnp
    from hold_jax import guidance, samplers

    mask = jnp.zeros(pictures.shape[1:]).at[:, : pictures.shape[2] // 2].set(1)  # 1: known
    conditional = guidance.inpaint(sde, eps_fn, pictures, mask)
    out = samplers.sample("ancestral", sde, conditional, key=key, shape=pictures.shape, num_steps=50)
    filled = out.x

Functions compose: `colorize` of a `classifier_free` eps_fn colors a picture of a given class. For a `Model`,
`model.eps_fn(params, condition={"label": labels}, guidance=2.0)` is classifier-free guidance in one network call.
"""

from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from hold_jax import inverse, kernels, operators
from hold_jax.errors import require, require_data, require_number
from hold_jax.numerics import varying
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE

__all__ = [
    "LogProb",
    "autoguidance",
    "classifier",
    "classifier_free",
    "clip",
    "colorize",
    "inpaint",
    "interval",
    "threshold",
]

LogProb = Callable[[jax.Array, jax.Array], jax.Array]
"""log_prob(y (B, *S, C), sigma () or (B,)) -> (B,): log p(condition | y = q0 + sigma noise), float32."""


def inpaint(sde: LinearSDE, eps_fn: EpsFn, known: jax.Array, mask: jax.Array) -> EpsFn:
    """Fills in the unknown part of the data: D' = known where the mask is 1, D elsewhere.

    This is score_sde's imputation (2011.13456, appendix I.2), applied to the denoiser. With D' = known the score of
    those entries is that of u_t | q0 = known, N(A known, Sigma), in all n blocks: the reverse process follows the exact
    bridge to `known`. The other entries are denoised given the noisy known ones, E[q0 | u_t], not given `known` itself;
    so their law only approximates the conditional one, as in the paper. For two Gaussian coordinates of correlation 0.8
    and many ancestral steps, the mean of the second moves two thirds of the way from its marginal to its conditional
    value, at every order. It is `inverse.proximal` without noise; the other methods of `inverse` are nearer.

    Args:
      sde: the SDE.
      eps_fn: unconditional, or conditional in another way.
      known: (B, *S, C) data, floating, in the model's range; any value where the mask is 0.
      mask: 1, 255 or True where known, 0 where unknown; broadcastable to `known`.

    Returns:
      The conditional `eps_fn`. It raises UserError for a state whose shape differs from that of `known`.

    Raises:
      UserError: for integer data, a mask that does not broadcast to `known`, or a mask of zeros.
    """
    known = _data("known", known)
    return inverse.proximal(sde, eps_fn, operators.inpainting(known.shape[1:], mask), known)


def colorize(sde: LinearSDE, eps_fn: EpsFn, gray: jax.Array) -> EpsFn:
    """Colors gray pictures: D' = D - P D + P gray, P v = mean of the channels of v.

    score_sde's colorization (2011.13456, appendix I.3): imputation of the first coordinate in an orthonormal basis
    of the channels whose first axis is (1, 1, 1) / sqrt 3. P projects on that axis, so the basis need not be formed.

    Args:
      sde: the SDE.
      eps_fn: for pictures of 3 channels.
      gray: (B, *S, 1) the mean of the channels, floating, in the model's range.

    Returns:
      The conditional `eps_fn`. It raises UserError for a state of another shape than (B, *S, 3), with n blocks.

    Raises:
      UserError: for integer data.
    """
    gray = _data("gray", gray)
    require(gray.ndim >= 2 and gray.shape[-1] == 1, "gray.shape", gray.shape, "(B, *S, 1)")
    return inverse.proximal(sde, eps_fn, operators.colorization((*gray.shape[1:-1], 3)), gray)


def classifier(sde: LinearSDE, eps_fn: EpsFn, log_prob: LogProb, scale: float | jax.Array = 1.0) -> EpsFn:
    """Guides by a noise-conditional classifier: D' = D + scale sigma^2 grad_y log_prob(y, sigma).

    With y the sufficient statistic and sigma = sigma_eff (`kernels.sufficient_statistic`), p(c | u_t) = p(c | y), and
    Tweedie's formula D = y + sigma^2 grad log p(y) turns Bayes' rule (2011.13456, eq. 14; the scale is that of
    2105.05233) into the equation above. So a first-order classifier of q0 + sigma * noise guides HOLD of any order, and
    at scale 1 D' is exactly the denoiser of the class.

    Args:
      sde: the SDE.
      eps_fn: unconditional.
      log_prob: differentiable in y, with labels and parameters bound.
      scale: () or (B,): 0: unconditional, 1: Bayes' rule, above 1: sharper.

    Returns:
      The conditional `eps_fn`. It raises UserError if log_prob does not return one number per example.
    """
    _require_scale(scale)

    def conditional(u: jax.Array, t: jax.Array) -> jax.Array:
        _require_batch(scale, u)
        y, sigma = kernels.sufficient_statistic(sde, u, t)

        def total(y: jax.Array) -> jax.Array:
            values = log_prob(y, sigma)
            _require_shape("log_prob(y, sigma)", values, y.shape[:1])
            return jnp.sum(values)

        gradient = jax.grad(total)(varying.argument(total, y))
        pull = kernels.append_dims(scale * jnp.square(sigma), y) * gradient
        return kernels.shifted_noise(sde, t, eps_fn(u, t), pull)

    return conditional


def classifier_free(conditional: EpsFn, unconditional: EpsFn, scale: float | jax.Array) -> EpsFn:
    """eps_n' = unconditional + scale (conditional - unconditional): Ho & Salimans, 2207.12598, eq. 6.

    scale = 1 + w with the paper's w. The denoisers combine in the same way, D' = D_u + scale (D_c - D_u), because D is
    affine in eps_n; the formula does not depend on the order.

    Args:
      conditional: given the label.
      unconditional: without the label. Each evaluation calls both; `Model.eps_fn` makes one call of twice the batch.
      scale: () or (B,): 0: unconditional, 1: conditional, above 1: guidance.

    Returns:
      The guided `eps_fn`. It raises UserError if the two outputs differ in shape.
    """
    _require_scale(scale)

    def guided(u: jax.Array, t: jax.Array) -> jax.Array:
        _require_batch(scale, u)
        without = unconditional(u, t)
        given = conditional(u, t)
        _require_shape("conditional(u, t)", given, without.shape)
        factor = kernels.append_dims(jnp.asarray(scale, given.dtype), given)
        return without + factor * (given - without)

    return guided


def autoguidance(eps_fn: EpsFn, guide: EpsFn, scale: float | jax.Array) -> EpsFn:
    """eps_n' = guide + scale (eps_n - guide): away from the errors of a weaker model (2406.02507, eq. 3).

    The formula is that of `classifier_free`, with a smaller or less trained model of the same data in the place of the
    unconditional one; both may be conditional.

    Args:
      eps_fn: of the model that samples are drawn from.
      guide: of the weaker model, for the same SDE.
      scale: () or (B,): 1: no guidance, above 1: guidance.

    Returns:
      The guided `eps_fn`. It raises UserError if the two outputs differ in shape.
    """
    return classifier_free(eps_fn, guide, scale)


def interval(sde: LinearSDE, guided: EpsFn, plain: EpsFn, low: float, high: float) -> EpsFn:
    """Guides at effective noises in (low, high] only (Kynkaanniemi et al., 2404.07724).

    Guidance at high noise makes samples less diverse, and at low noise it changes little.

    Args:
      sde: the SDE.
      guided: with guidance, e.g. of `classifier_free`; used where low < sigma_eff <= high.
      plain: without, used elsewhere. Where t is a scalar, as in samplers, only one of the two is evaluated.
      low: effective noise in the model's range, 0 or more.
      high: effective noise above `low`; infinity is allowed.

    Returns:
      The `eps_fn`.

    Raises:
      UserError: for limits that are not 0 <= low < high.
    """
    low = require_number("low", low, lambda sigma: sigma >= 0, "0 or positive")
    high = require_number("high", high, lambda sigma: sigma > low, f"above low = {low}")

    def chosen(u: jax.Array, t: jax.Array) -> jax.Array:
        sigma = kernels.effective_noise(sde, t)
        inside = (low < sigma) & (sigma <= high)
        if inside.ndim == 0:
            return jax.lax.cond(inside, guided, plain, u, t)
        eps = guided(u, t)
        return jnp.where(kernels.append_dims(inside, eps), eps, plain(u, t))

    return chosen


def clip(sde: LinearSDE, eps_fn: EpsFn, bound: float = 1.0) -> EpsFn:
    """Keeps the denoiser in the range of the data: D' = min(max(D, -bound), bound) (DDPM, 2006.11239, code).

    Args:
      sde: the SDE.
      eps_fn: of any kind.
      bound: largest absolute value, in the model's range; 1 for pictures.

    Returns:
      The `eps_fn` of D'; bitwise that of D where D is within the bound.

    Raises:
      UserError: for a bound that is not positive.
    """
    bound = require_number("bound", bound, lambda b: b > 0, "positive")

    def clipped(u: jax.Array, t: jax.Array) -> jax.Array:
        eps = eps_fn(u, t)
        denoised = kernels.denoiser(sde, u, t, eps)
        return kernels.shifted_noise(sde, t, eps, jnp.clip(denoised, -bound, bound) - denoised)

    return clipped


def threshold(sde: LinearSDE, eps_fn: EpsFn, quantile: float = 0.995, bound: float = 1.0) -> EpsFn:
    """Dynamic thresholding: D' = bound min(max(D, -s), s) / s (Imagen, 2205.11487, section 2.3).

    s is the `quantile` of |D| over the values of an example, at least `bound`: strong guidance then neither saturates
    pictures nor moves them out of the data's range.

    Args:
      sde: the SDE.
      eps_fn: of any kind.
      quantile: in (0, 1].
      bound: largest absolute value of the data in the model's range; 1 for pictures.

    Returns:
      The `eps_fn` of D'; bitwise that of D for an example with D within the bound.

    Raises:
      UserError: for a quantile or bound out of range.
    """
    quantile = require_number("quantile", quantile, lambda q: 0 < q <= 1, "above 0 and at most 1")
    bound = require_number("bound", bound, lambda b: b > 0, "positive")

    def thresholded(u: jax.Array, t: jax.Array) -> jax.Array:
        eps = eps_fn(u, t)
        denoised = kernels.denoiser(sde, u, t, eps)
        sizes = jnp.quantile(jnp.abs(denoised).reshape(denoised.shape[0], -1), quantile, axis=1)
        s = kernels.append_dims(jnp.maximum(sizes, bound), denoised)
        return kernels.shifted_noise(sde, t, eps, jnp.clip(denoised, -s, s) * (bound / s) - denoised)

    return thresholded


def _data(name: str, x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    require_data(name, x)
    return x.astype(jnp.float32)


def _require_scale(scale: float | jax.Array) -> None:
    if not isinstance(scale, jax.core.Tracer):
        values = np.asarray(scale)
        real = values.dtype != bool and np.can_cast(values.dtype, np.float64) and bool(np.isfinite(values).all())
        require(real, "scale", scale, "finite, one number or one for each example")


def _require_batch(scale: float | jax.Array, x: jax.Array) -> None:
    shape = jnp.shape(scale)
    require(shape in ((), (1,), x.shape[:1]), "scale", shape, f"() or {x.shape[:1]}, one for each example")


def _require_shape(name: str, x: jax.Array, shape: tuple[int, ...]) -> None:
    require(x.shape == shape, name, x.shape, f"an array of shape {shape}")


def __dir__() -> list[str]:
    return __all__
