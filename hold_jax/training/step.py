"""The training step: a pure function of (state, batch), written in the global view.

Under `jax.jit` with a batch sharded over a mesh the compiler inserts the reductions; random numbers are drawn for the
global batch, so they do not depend on the number of devices. `make_train_step` is the function, `Program` the function
compiled for a mesh.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from hold_jax.condition import conditions_of
from hold_jax.data.augment import augment
from hold_jax.model import Model
from hold_jax.numerics import draws
from hold_jax.parameterization import EpsFn
from hold_jax.runtime.mesh import LARGE, Devices
from hold_jax.sde import LinearSDE
from hold_jax.training import power_average
from hold_jax.training.optimizer import Decay, update_ema
from hold_jax.training.packing import Packing
from hold_jax.training.state import TrainState, init_state, shardings

Batch = dict[str, jax.Array]


class ScoreLoss(Protocol):
    """A per-example loss with its options bound, except the standard deviation of the data, which the model has."""

    def __call__(self, sde: LinearSDE, eps_fn: EpsFn, x: jax.Array, key: jax.Array, *, sigma_data: float) -> jax.Array:
        """Returns the losses (B,) of x (B, *S, C); see `losses.score_matching_loss`."""
        ...


GRADIENT_DTYPES = ("float32", "bfloat16")
_FEATURES = 32

StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def _same(tree: Any) -> Any:
    return tree


def _is_convolution(path: jax.tree_util.KeyPath, leaf: jax.Array) -> bool:
    """Returns whether a leaf is a large hidden convolution kernel: the first and last convolutions stay float32."""
    outer = {"conv_in", "head"} & {getattr(key, "key", None) for key in path}
    return not outer and leaf.ndim == 4 and leaf.size >= LARGE and min(leaf.shape[-2:]) >= _FEATURES


def mean_loss(model: Model, loss: ScoreLoss, params: Any, batch: Batch, key: jax.Array, *, train: bool) -> jax.Array:
    """Returns the mean loss of the batch per data dimension, () float32."""
    x, condition = model.to_model(batch["x"]), conditions_of(batch)
    if train and model.augment:
        key, key_augment = jax.random.split(key)
        x, labels = augment(x, key_augment, model.augment)
        condition = dataclasses.replace(condition, augmentation=labels)
    key_loss, key_dropout = jax.random.split(key)
    eps_fn = model.eps_fn(params, condition=condition, dropout=key_dropout if train else None)
    return jnp.mean(loss(model.sde, eps_fn, x, key_loss, sigma_data=model.sigma_data)) / math.prod(model.data_shape)


@jax.named_scope("update")
def apply_gradient(
    state: TrainState,
    gradient: Any,
    value: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Decay,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update, and the norms {"grad_norm", "param_norm"}; see `make_train_step`.

    Args:
      state: the state before the update.
      gradient: gradient of the loss, a tree like `state.params`.
      value: the loss, ().
      optimizer: an Optax transformation.
      ema_decay: decay of the averaged parameters; see `update_ema`.
    """
    grad_norm = optax.global_norm(gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, params, state.step, ema_decay)
    power = tuple(
        power_average.update(average, params, state.step, sigma)
        for sigma, average in zip(power_average.SIGMAS, state.power, strict=False)
    )
    # The test does not need the updated arrays, so that each array is read and written once.
    good = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    new = {"params": params, "opt_state": opt_state, "ema": ema, "power": power}
    old = {name: getattr(state, name) for name in new}
    chosen = jax.tree.map(functools.partial(jnp.where, good), new, old)
    norms = {"grad_norm": grad_norm, "param_norm": optax.global_norm(chosen["params"])}
    return dataclasses.replace(state, step=state.step + 1, **chosen), norms


def make_train_step(
    model: Model,
    loss: ScoreLoss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Decay,
    accumulation_steps: int = 1,
    steps_per_call: int = 1,
    gradient_dtype: str = "float32",
    unpack: Callable[[Any], Any] = _same,
    collect: Callable[[Any], Any] = _same,
) -> StepFn:
    """Returns the function that makes `steps_per_call` optimizer steps.

    Args:
      model: the model to train.
      loss: per-example loss with its options bound.
      optimizer: an Optax transformation.
      ema_decay: decay of the averaged parameters; see `update_ema`.
      accumulation_steps: parts the batch is split into; their gradients are averaged before the update.
      steps_per_call: optimizer steps in one call; 1 takes batches (B, ...), k takes (k, B, ...).
      gradient_dtype: "float32", or "bfloat16" for a network that computes in bfloat16: the gradients of large
        convolutions are then rounded to it before they are summed over devices, which halves the bytes that are sent.
      unpack: maps the parameters of the state to those of the network.
      collect: maps the gradient to the form of the state's parameters. `Program` sets both.

    Returns:
      step(state, batch) -> (state, metrics), metrics {"loss", "grad_norm", "param_norm"} of shape
      (steps_per_call,): the first two at the parameters before the update, the norm of the parameters after it. A step
      whose loss or gradient norm is not finite is counted and uses up its batch, but does not change parameters,
      optimizer state or average.
    """

    def value_and_grad(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        if gradient_dtype == "bfloat16":
            # The network rounds these kernels anyway; a kernel's gradient has its type (`nn.products`).
            params = jax.tree_util.tree_map_with_path(
                lambda path, leaf: leaf.astype(jnp.bfloat16) if _is_convolution(path, leaf) else leaf, params
            )
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
        value, gradient = gradient_of(unpack(state.params), batch, key)
        state, norms = apply_gradient(state, collect(gradient), value, optimizer, ema_decay=ema_decay)
        return state, {"loss": value} | norms

    if steps_per_call > 1:
        return lambda state, batches: jax.lax.scan(one_step, state, batches)

    def single(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = one_step(state, batch)
        return state, jax.tree.map(lambda a: a[None], metrics)

    return single


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled training step on a mesh, with the sharding and the packing of the train state.

    The running state is packed (`Packing`) and spread over the devices (`state.shardings`).
    Checkpoints and samplers take the network's own tree: `to_tree` and `from_tree` convert.

    Attributes:
      devices: the mesh.
      new_state: returns the state at step 0 as a tree; only traced, never called directly.
      packing: packing of the running state.
      start: jitted; returns the running state at step 0, created on the devices.
      step: jitted step(state, batch) -> (state, metrics); the state's buffers are donated.
      update: the second half of the step alone, for inspection: (state, gradient as a tree, loss) -> (state, norms).
      to_tree: jitted; returns the tree of a running state, a copy.
      from_tree: jitted; returns the running state of a tree, a copy.
      average: jitted; returns the averaged parameters of a running state as a tree, replicated on every device.
      power: the same of its power-function averages, a tuple of trees.
    """

    devices: Devices
    new_state: Callable[[], TrainState]
    packing: Packing
    start: Any
    step: Any
    update: Any
    to_tree: Callable[[TrainState], TrainState]
    from_tree: Callable[[TrainState], TrainState]
    average: Callable[[TrainState], Any]
    power: Callable[[TrainState], tuple[Any, ...]]

    @classmethod
    def make(
        cls,
        model: Model,
        loss: ScoreLoss,
        optimizer: optax.GradientTransformation,
        devices: Devices,
        *,
        seed: int,
        power_averages: bool = False,
        **options: Any,
    ) -> "Program":
        """Compiles the step for `devices`; `options` are those of `make_train_step`."""
        new_state = functools.partial(init_state, model, optimizer, seed, power_averages)
        tree = jax.eval_shape(new_state)
        packing = Packing.of(tree.params)
        constrain = jax.lax.with_sharding_constraint
        parts = shardings(tree, devices).params
        running = shardings(jax.eval_shape(packing.pack_state, tree), devices)

        @jax.named_scope("gather")
        def unpack(params: Any) -> Any:
            return packing.unpack(constrain(params, devices.replicated), copied=devices.platform == "cpu")

        @jax.named_scope("collect")
        def collect(gradient: Any) -> Any:
            # First sum over the devices, then split. With the split alone, the partitioner would split the products of
            # the backward pass by channel, and gather the activations that they read.
            gradient = constrain(constrain(gradient, devices.replicated), parts)
            gradient = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient)
            return constrain(packing.pack(gradient), running.params)

        step = make_train_step(model, loss, optimizer, unpack=unpack, collect=collect, **options)

        def update(state: TrainState, gradient: Any, value: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            return apply_gradient(state, collect(gradient), value, optimizer, ema_decay=options["ema_decay"])

        jit = functools.partial(devices.jit, donate_argnums=0, out_shardings=(running, devices.replicated))
        return cls(
            devices,
            new_state,
            packing,
            start=jax.jit(draws.together(lambda: packing.pack_state(new_state())), out_shardings=running),
            step=jit(step),
            update=jit(update),
            to_tree=jax.jit(packing.unpack_state, out_shardings=shardings(tree, devices)),
            from_tree=jax.jit(packing.pack_state, out_shardings=running),
            average=jax.jit(lambda state: packing.unpack(state.ema), out_shardings=devices.replicated),
            power=jax.jit(lambda state: tuple(map(packing.unpack, state.power)), out_shardings=devices.replicated),
        )

    def abstract(self) -> TrainState:
        """Returns shapes, dtypes and shardings of the running state."""
        return self._placed(lambda: self.packing.pack_state(self.new_state()))

    def abstract_tree(self) -> TrainState:
        """Returns shapes, dtypes and shardings of the state as a tree, for `Checkpoints.restore`."""
        return self._placed(self.new_state)

    def _placed(self, state_fn: Callable[[], TrainState]) -> TrainState:
        state = jax.eval_shape(state_fn)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            state,
            shardings(state, self.devices),
        )
