"""The train state: all that a resumed run needs to give bitwise the same result."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from hold_jax.model import Model
from hold_jax.runtime.mesh import Devices
from hold_jax.training.power_average import SIGMAS


@flax.struct.dataclass
class TrainState:
    """The state of training; arrays only, so that it can be sharded, donated and saved as one tree.

    Attributes:
      step: () int32, optimizer steps taken; also the position in the data.
      params: float32 parameters.
      opt_state: Optax's state.
      ema: moving average of the parameters, used for sampling and evaluation.
      power: power-function averages of the parameters, one for each of `power_average.SIGMAS`; () if there are none.
      key: key of the run; step k uses fold_in(key, k).
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema: Any
    key: jax.Array
    power: Any = ()


def init_state(
    model: Model, optimizer: optax.GradientTransformation, seed: int, power_averages: bool = False
) -> TrainState:
    """Returns the state at step 0, with power-function averages or without.

    The function is pure: under `jax.jit` with `out_shardings` the arrays are created on the devices.
    """
    key_params, key_run = jax.random.split(jax.random.key(seed))
    params = model.init(key_params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params),
        key=key_run,
        power=tuple(jax.tree.map(jnp.copy, params) for _ in SIGMAS) if power_averages else (),
    )


def shardings(state: TrainState, devices: Devices) -> TrainState:
    """Returns the shardings of a state in training: arrays are spread over the devices (`Devices.spread`).

    Each device stores and updates its own part of parameters, moments and average. Each step begins with one all-gather
    of the parameters (ZeRO, arXiv:1910.02054).

    Args:
      state: arrays, or their shapes and dtypes.
      devices: the mesh.

    Returns:
      A tree of the state's structure with a sharding for each array.
    """
    return jax.tree.map(lambda leaf: devices.spread(leaf.shape), state)
