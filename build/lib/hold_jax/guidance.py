"""Controllable generation: each function makes of an `eps_fn` one that is conditioned, for any order and sampler.

A condition changes the denoiser, D' = D + delta, and so the last block's noise, eps_n' = eps_n - w_n delta
(`kernels.denoiser`); the noise and the score of every other block follow from D'. Samplers need no hook.

Example: pictures (B, H, W, C) in the model's range of which the left half is known. `sde`, `eps_fn` are any model's.

    import jax.numpy as jnp
    from hold_jax import guidance, samplers

    mask = jnp.zeros(pictures.shape[1:]).at[:, : pictures.shape[2] // 2].set(1)  # 1: known
    conditional = guidance.inpaint(sde, eps_fn, pictures, mask)
    sampler = samplers.SAMPLERS["ancestral"]()
    out = samplers.sample(sampler, sde, conditional, key=key, shape=pictures.shape, num_steps=50)
    filled = out.x

Functions compose: `colorize` of a `classifier_free` eps_fn colors a picture of a given class. A `Model` guides by
its own labels in one network call: `model.eps_fn(params, labels=labels, guidance=2.0)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hold_jax import kernels
from hold_jax.errors import require
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE

LogProb = Callable[[jax.Array, jax.Array], jax.Array]
"""log_prob(y (B, *S, C), sigma () or (B,)) -> (B,): log p(condition | y = q0 + sigma noise), float32."""


def inpaint(sde: LinearSDE, eps_fn: EpsFn, known: jax.Array, mask: jax.Array) -> EpsFn:
    """Fills in the part of the data that is not known: D' = known where mask, D elsewhere.

    This is score_sde's imputation (2011.13456, appendix I.2) in the denoiser. With D' = known the score of those
    entries is that of u_t | q0 = known, N(A known, Sigma), in all n blocks: the reverse process carries them along
    the exact bridge and ends in `known`. The other entries are denoised given the noisy known ones,
    E[q0 | u_t], not given `known` itself: their law is an approximation of the conditional one, as in the paper.
    For two Gaussian coordinates of correlation 0.8 and many ancestral steps, the second one's mean goes two thirds
    of the way from its marginal to its conditional value, at every order.

    Args:
      sde: the SDE.
      eps_fn: unconditional, or conditioned otherwise.
      known: (B, *S, C) floating, in the model's range; not looked at where the mask is 0.
      mask: 1 where known, 0 where to fill in; bool or numbers, broadcastable to `known`.

    Raises:
      UserError: integer data, or shapes that do not fit; the state's when the result is traced.
    """
    known, mask = _floating("known", known), jnp.asarray(mask)
    require(_fits(mask.shape, known.shape), "mask", mask.shape, f"broadcastable to known's shape, {known.shape}")
    mask = jnp.broadcast_to(mask != 0, known.shape)

    def conditional(u: jax.Array, t: jax.Array) -> jax.Array:
        _require_shape("known", known, _data_shape(u))
        eps = eps_fn(u, t)
        return _moved(sde, t, eps, jnp.where(mask, known - kernels.denoiser(sde, u, t, eps), 0.0))

    return conditional


def colorize(sde: LinearSDE, eps_fn: EpsFn, gray: jax.Array) -> EpsFn:
    """Colors gray pictures: D' = D - P D + P gray, P v = mean of the channels of v.

    score_sde's colorization (2011.13456, appendix I.3): imputation of the first coordinate in an orthonormal basis
    of the channels whose first axis is (1, 1, 1) / sqrt 3. P projects on that axis, so the basis need not be formed.

    Args:
      sde: the SDE.
      eps_fn: for pictures of 3 channels.
      gray: (B, *S, 1) floating, the mean of the channels in the model's range.

    Raises:
      UserError: integer data; when the result is traced, a state without 3 channels, or of another shape than `gray`.
    """
    gray = _floating("gray", gray)

    def conditional(u: jax.Array, t: jax.Array) -> jax.Array:
        require(u.shape[-1] == 3, "channels", u.shape[-1], "3 to colorize")
        _require_shape("gray", gray, (*_data_shape(u)[:-1], 1))
        eps = eps_fn(u, t)
        denoised = kernels.denoiser(sde, u, t, eps)
        missing = gray - jnp.mean(denoised, axis=-1, keepdims=True)
        return _moved(sde, t, eps, jnp.broadcast_to(missing, denoised.shape))

    return conditional


def classifier(sde: LinearSDE, eps_fn: EpsFn, log_prob: LogProb, scale: float | jax.Array = 1.0) -> EpsFn:
    """Guides by a noise-conditional classifier: D' = D + scale sigma^2 grad_y log_prob(y, sigma).

    With y the sufficient statistic and sigma = sigma_eff (`kernels.sufficient_statistic`), p(c | u_t) = p(c | y), and
    Tweedie's formula D = y + sigma^2 grad log p(y) turns Bayes' rule (2011.13456, eq. 14; the scale is 2105.05233's)
    into the above. So an ordinary first-order classifier of q0 + sigma noise guides HOLD of any order, and at
    scale 1 D' is the class's denoiser exactly.

    Args:
      sde: the SDE.
      eps_fn: unconditional.
      log_prob: differentiable in y; labels and parameters bound.
      scale: strength; 0: unconditional, 1: Bayes, above 1: sharper.

    Raises:
      UserError: when the result is traced, if log_prob does not give one number per example.
    """

    def conditional(u: jax.Array, t: jax.Array) -> jax.Array:
        y, sigma = kernels.sufficient_statistic(sde, u, t)

        def total(y: jax.Array) -> jax.Array:
            values = log_prob(y, sigma)
            _require_shape("log_prob(y, sigma)", values, y.shape[:1])
            return jnp.sum(values)

        pull = kernels.per_example(scale * jnp.square(sigma), y) * jax.grad(total)(y)
        return _moved(sde, t, eps_fn(u, t), pull)

    return conditional


def classifier_free(conditional: EpsFn, unconditional: EpsFn, scale: float | jax.Array) -> EpsFn:
    """eps_n' = unconditional + scale (conditional - unconditional): Ho & Salimans, 2207.12598, eq. 6.

    scale = 1 + w with the paper's w: 0 is unconditional, 1 conditional, above 1 guidance. The denoisers combine
    alike, D' = D_u + scale (D_c - D_u), because D is affine in eps_n: the formula does not depend on the order.

    Args:
      conditional: given the label.
      unconditional: without it; two calls an evaluation (`Model.eps_fn` makes one of twice the batch).
      scale: strength.

    Raises:
      UserError: when the result is traced, if the two differ in shape.
    """

    def guided(u: jax.Array, t: jax.Array) -> jax.Array:
        without = unconditional(u, t)
        given = conditional(u, t)
        _require_shape("conditional(u, t)", given, without.shape)
        return without + scale * (given - without)

    return guided


def _moved(sde: LinearSDE, t: jax.Array, eps: jax.Array, delta: jax.Array) -> jax.Array:
    """eps_n (B, *S, 1, C) of the denoiser D + delta; bitwise `eps` where delta (B, *S, C) is 0."""
    w_n = kernels.whitened_mean(kernels.marginal(sde, t))[..., -1]
    return eps - kernels.per_example(w_n, eps) * delta[..., None, :]


def _floating(name: str, x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    require(floating, name, x.dtype.name, "floating, in the model's range (`data.to_model_range`)")
    return x.astype(jnp.float32)


def _data_shape(u: jax.Array) -> tuple[int, ...]:
    return (*u.shape[:-2], u.shape[-1])


def _fits(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    """Whether `shape` broadcasts to `onto`."""
    pairs = zip(shape[::-1], onto[::-1], strict=False)
    return len(shape) <= len(onto) and all(a in (1, b) for a, b in pairs)


def _require_shape(name: str, x: jax.Array, shape: tuple[int, ...]) -> None:
    require(x.shape == shape, name, x.shape, f"an array of shape {shape}")
