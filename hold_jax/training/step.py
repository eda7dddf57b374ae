"""The training step: a pure function of (state, batch), written in the global view.

Under `jax.jit` with a batch sharded over a mesh the compiler inserts the reductions; random draws are
made for the global batch, so the numbers do not depend on the number of devices.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hold_jax.model import Model
from hold_jax.parameterization import EpsFn
from hold_jax.sde import LinearSDE
from hold_jax.training.optimizer import update_ema
from hold_jax.training.state import TrainState

Batch = dict[str, jax.Array]
ScoreLoss = Callable[[LinearSDE, EpsFn, jax.Array, jax.Array], jax.Array]
"""loss(sde, eps_fn, x (B, *S, C), key) -> (B,), its options bound."""

StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def mean_loss(model: Model, loss: ScoreLoss, params: Any, batch: Batch, key: jax.Array, *, train: bool) -> jax.Array:
    """The batch's mean loss per data dimension, ()."""
    key_loss, key_dropout = jax.random.split(key)
    x = model.to_model(batch["x"])
    eps_fn = model.eps_fn(params, labels=batch["label"], dropout=key_dropout if train else None)
    return jnp.mean(loss(model.sde, eps_fn, x, key_loss)) / math.prod(model.data_shape)


def make_train_step(
    model: Model,
    loss: ScoreLoss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    accumulation_steps: int = 1,
    steps_per_call: int = 1,
) -> StepFn:
    """One compiled call of `steps_per_call` optimizer steps.

    Args:
      model: what is trained.
      loss: per-example loss with its options bound.
      optimizer: an Optax transformation.
      ema_decay: of the averaged parameters.
      accumulation_steps: parts the batch is split into; their gradients are averaged before the update.
      steps_per_call: optimizer steps in one call; 1 takes batches (B, ...), k takes (k, B, ...).

    Returns:
      step(state, batch) -> (state, metrics), metrics {"loss", "grad_norm", "param_norm"} of shape
      (steps_per_call,): of the parameters before, before and after the update. A step where one of these is not
      finite counts, and takes its batch, but leaves parameters, optimizer and average as they were.
    """

    def value_and_grad(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(lambda p: mean_loss(model, loss, p, batch, key, train=True))(params)

    def accumulated(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        # Part j takes every k-th example, so that each device works on its own rows in every part.
        parts = jax.tree.map(lambda a: a.reshape(-1, accumulation_steps, *a.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            index, micro = part
            new = value_and_grad(params, micro, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, new), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, (jnp.arange(accumulation_steps), parts))
        return jax.tree.map(lambda a: a / accumulation_steps, total)

    def one_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        gradient_of = value_and_grad if accumulation_steps == 1 else accumulated
        value, gradient = gradient_of(state.params, batch, key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, state.step, ema_decay)
        metrics = {"loss": value, "grad_norm": optax.global_norm(gradient), "param_norm": optax.global_norm(params)}
        good = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
        new, old = (params, opt_state, ema), (state.params, state.opt_state, state.ema)
        params, opt_state, ema = jax.tree.map(functools.partial(jnp.where, good), new, old)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics

    if steps_per_call > 1:
        return lambda state, batches: jax.lax.scan(one_step, state, batches)

    def single(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = one_step(state, batch)
        return state, jax.tree.map(lambda a: a[None], metrics)

    return single
