"""A trainable score model: an SDE, a network and what its output means, bound together."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hold_jax.parameterization import Coefficients, EpsFn, eps_function
from hold_jax.sde import LinearSDE

Params = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything between parameters and `eps_fn`.

    Attributes:
      sde: the process.
      network: a Flax module called as network(inputs, noise_cond, labels, train).
      data_shape: of one example, (H, W, C) or (d,).
      parameterization: one of `parameterization.PARAMETERIZATIONS`' values.
      conditioning: one of `parameterization.CONDITIONINGS`' values.
      sigma_data: standard deviation of the data in the model's range.
    """

    sde: LinearSDE
    network: nn.Module
    data_shape: tuple[int, ...]
    parameterization: Callable[[LinearSDE, jax.Array, float], Coefficients]
    conditioning: Callable[[LinearSDE, jax.Array], jax.Array]
    sigma_data: float

    @property
    def takes_labels(self) -> bool:
        """Whether the network is conditioned on class labels."""
        return self.network.num_classes > 0

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters, a tree of plain dictionaries."""
        blocks = self.parameterization(self.sde, jnp.float32(self.sde.T), self.sigma_data).c_in.shape[-2]
        inputs = jnp.zeros((1, *self.data_shape[:-1], blocks * self.data_shape[-1]))
        labels = jnp.zeros((1,), jnp.int32) if self.takes_labels else None
        return self.network.init({"params": key}, inputs, jnp.zeros((1,)), labels)["params"]

    def eps_fn(self, params: Params, *, labels: jax.Array | None = None, dropout: jax.Array | None = None) -> EpsFn:
        """The noise predictor with these parameters; `dropout` is a key in training, None otherwise."""
        rngs = {} if dropout is None else {"dropout": dropout}

        def network(inputs: jax.Array, noise_cond: jax.Array) -> jax.Array:
            known = labels if self.takes_labels else None
            return self.network.apply({"params": params}, inputs, noise_cond, known, dropout is not None, rngs=rngs)

        return eps_function(
            self.sde,
            network,
            parameterization=self.parameterization,
            conditioning=self.conditioning,
            sigma_data=self.sigma_data,
        )
