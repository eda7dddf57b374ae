"""The train state: everything that a run needs to go on bit by bit, and nothing else."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from hold_jax.model import Model
from hold_jax.runtime.mesh import Devices


@flax.struct.dataclass
class TrainState:
    """Arrays only, so that it shards, donates and checkpoints as one tree.

    Attributes:
      step: () int32, optimizer steps taken; also the position in the data.
      params: float32 parameters.
      opt_state: Optax's state.
      ema: averaged parameters, those to sample and evaluate with.
      key: the run's key; step k draws from fold_in(key, k).
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema: Any
    key: jax.Array


def init_state(model: Model, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state at step 0. Pure: jit it with `out_shardings` to create it in place on every device."""
    key_params, key_run = jax.random.split(jax.random.key(seed))
    params = model.init(key_params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params),
        key=key_run,
    )


def shardings(state: TrainState, devices: Devices) -> TrainState:
    """Where the arrays of a state lie in training: spread over the devices (`Devices.spread`).

    Each device keeps and updates its own part of parameters, moments and average; the step gathers the parameters when
    it begins (ZeRO, arXiv:1910.02054, with one gathering a step).

    Args:
      state: arrays, or their shapes and dtypes.
      devices: the mesh.

    Returns:
      A tree of the state's structure with a sharding for each array.
    """
    return jax.tree.map(lambda leaf: devices.spread(leaf.shape), state)
