"""The optimizer: gradient clipping, Adam, learning rate schedule; and the moving average of the parameters."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from hold_jax.errors import require, require_choice

SCHEDULES = ("constant", "cosine")


def learning_rate_schedule(
    *,
    learning_rate: float,
    warmup_steps: int,
    schedule: str,
    num_steps: int,
    warmup_images: int | None = None,
    batch_size: int = 1,
) -> optax.Schedule:
    """Returns a linear warm-up, followed by a constant rate or a cosine decay to zero.

    Args:
      learning_rate: rate after the warm-up, > 0.
      warmup_steps: length of the warm-up; 0: none.
      schedule: "constant" or "cosine".
      num_steps: the step at which the cosine reaches zero.
      warmup_images: length of the warm-up in images, in place of `warmup_steps`: step k = 0, 1, ... then has
        min(k batch_size / warmup_images, 1) of the rate (EDM, arXiv:2206.00364, code), the first step zero.
      batch_size: images a step.

    Raises:
      UserError: for an argument out of range.
    """
    require(learning_rate > 0, "learning_rate", learning_rate, "positive")
    require(warmup_steps >= 0, "warmup_steps", warmup_steps, "0 or more")
    require_choice("schedule", schedule, SCHEDULES)
    if warmup_images is not None:
        require(warmup_images >= 1, "warmup_images", warmup_images, "1 or more")
        warmup_steps = math.ceil(warmup_images / batch_size)
    after = optax.constant_schedule(learning_rate)
    if schedule == "cosine":
        name = "warmup_steps" if warmup_images is None else "warmup_images / batch_size"
        require(num_steps > warmup_steps, name, warmup_steps, f"below num_steps = {num_steps}")
        after = optax.cosine_decay_schedule(learning_rate, num_steps - warmup_steps)
    if not warmup_steps:
        return after
    if warmup_images is not None:
        warmup = lambda k: learning_rate * (k * (batch_size / warmup_images))  # noqa: E731
    else:
        # The rate of the first step is not zero: step k uses (k + 1) / warmup_steps of the rate.
        warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


def adam(
    learning_rate: optax.ScalarOrSchedule, *, b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Returns Adam (AdamW if `weight_decay` > 0) on gradients clipped to the global norm `clip_norm` (0: no clipping).

    Raises:
      UserError: for an argument out of range.
    """
    for name, value in (("eps", eps), ("b1", b1), ("b2", b2)):
        require(0 < value < 1, name, value, "in (0, 1)")
    for name, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        require(value >= 0, name, value, "0 or more")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()

    def decayed(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        # What has never had a gradient is no weight: the frequencies of Fourier features, which are not trained.
        return jax.tree.map(lambda u, p: u + jnp.where(u == 0, 0.0, weight_decay * p), updates, params)

    decay = optax.stateless(decayed) if weight_decay else optax.identity()
    step = optax.chain(optax.scale_by_adam(b1, b2, eps), decay, optax.scale_by_learning_rate(learning_rate))
    return optax.chain(clip, step)


Decay = float | Callable[[jax.Array], jax.Array]
"""Decay of the averaged parameters: the largest one, or a function of the number of updates before this one."""


def halflife_decay(halflife_images: int, rampup_ratio: float, batch_size: int) -> Callable[[jax.Array], jax.Array]:
    """Returns EDM's decay by step, which in images does not depend on the batch size (arXiv:2206.00364, code).

    The decay of step k is 2^(-B / h), h = min(halflife_images, rampup_ratio k B) for batches of B images: the
    parameters of a step lose half of their weight in h images.

    Args:
      halflife_images: largest half-life, in images.
      rampup_ratio: largest half-life as a share of the images before the step, so that the random initial parameters
        lose their weight early in the run; 0: no such limit.
      batch_size: B.

    Raises:
      UserError: for an argument out of range.
    """
    require(halflife_images >= 1, "ema_halflife_images", halflife_images, "1 or more")
    require(0 <= rampup_ratio <= 1, "ema_rampup_ratio", rampup_ratio, "in [0, 1]")

    def decay(step: jax.Array) -> jax.Array:
        halflife = jnp.float32(halflife_images)
        if rampup_ratio:
            halflife = jnp.minimum(halflife, rampup_ratio * batch_size * jnp.asarray(step, jnp.float32))
        return jnp.exp2(-batch_size / halflife)

    return decay


def update_ema(ema: optax.Params, params: optax.Params, step: jax.Array, decay: Decay) -> optax.Params:
    """Returns the exponential moving average of the parameters after one more update.

    Args:
      ema: the average so far, a tree like `params`.
      params: the parameters after the update.
      step: () number of updates before this one.
      decay: the decay by step (`halflife_decay`); or the largest decay, in [0, 1): the decay is then
        min(decay, (1 + step) / (10 + step)), so that the random initial parameters lose their weight early in the run
        (score_sde, CLD).
    """
    rate = decay(step) if callable(decay) else jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda average, new: average + (1 - rate) * (new - average), ema, params)
