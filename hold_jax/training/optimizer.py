"""The optimizer: gradient clipping, Adam, learning rate schedule; and the moving average of the parameters."""

import jax
import jax.numpy as jnp
import optax

from hold_jax.errors import require, require_choice

SCHEDULES = ("constant", "cosine")


def learning_rate_schedule(*, learning_rate: float, warmup_steps: int, schedule: str, num_steps: int) -> optax.Schedule:
    """Returns a linear warm-up, followed by a constant rate or a cosine decay to zero.

    Args:
      learning_rate: rate after the warm-up, > 0.
      warmup_steps: length of the warm-up; 0: none.
      schedule: "constant" or "cosine".
      num_steps: the step at which the cosine reaches zero.

    Raises:
      UserError: for an argument out of range.
    """
    require(learning_rate > 0, "learning_rate", learning_rate, "positive")
    require(warmup_steps >= 0, "warmup_steps", warmup_steps, "0 or more")
    require_choice("schedule", schedule, SCHEDULES)
    after = optax.constant_schedule(learning_rate)
    if schedule == "cosine":
        require(num_steps > warmup_steps, "warmup_steps", warmup_steps, f"below num_steps = {num_steps}")
        after = optax.cosine_decay_schedule(learning_rate, num_steps - warmup_steps)
    if not warmup_steps:
        return after
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
    return optax.chain(clip, optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay))


def update_ema(ema: optax.Params, params: optax.Params, step: jax.Array, decay: float) -> optax.Params:
    """Returns the exponential moving average of the parameters after one more update.

    The decay is min(decay, (1 + step) / (10 + step)), so that the random initial parameters lose their weight early in
    the run (score_sde, CLD).

    Args:
      ema: the average so far, a tree like `params`.
      params: the parameters after the update.
      step: () number of updates before this one.
      decay: largest decay, in [0, 1).
    """
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda average, new: average + (1 - rate) * (new - average), ema, params)
