"""A trainable score model: an SDE, a network and a parameterization as one object."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.data.dataset import Statistics, default_kind
from hold_jax.data.transfer import from_model_range, to_model_range
from hold_jax.errors import require, require_given
from hold_jax.parameterization import Coefficients, EpsFn, eps_function
from hold_jax.sde import LinearSDE

__all__ = ["Model"]

Params = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """What turns a network's parameters into an `eps_fn`.

    Attributes:
      sde: the process.
      network: a Flax module called as network(inputs, noise_cond, labels, train).
      data_shape: of one example: (H, W, C) of a picture or an array, (d,) of a vector, (length, C) of a signal.
      parameterization: one of `parameterization.PARAMETERIZATIONS`' values.
      conditioning: one of `parameterization.CONDITIONINGS`' values.
      sigma_data: standard deviation of the data in the model's range.
      label_dropout: probability of training an example with the null class in place of its own, which makes one
        network conditional and unconditional (2207.12598, algorithm 1); 0: never, and then without guidance.
      statistics: of the training data. With a mean and a standard deviation here, vectors are standardized by
        coordinate, signals and arrays by channel: the model's range is sigma_data (x - mean) / std. Without, data that
        are not pictures are taken as they are.

    Raises:
      UserError: for a label_dropout outside [0, 1), or of a network without classes.
    """

    sde: LinearSDE
    network: nn.Module
    data_shape: tuple[int, ...]
    parameterization: Callable[[LinearSDE, jax.Array, float], Coefficients]
    conditioning: Callable[[LinearSDE, jax.Array], jax.Array]
    sigma_data: float
    label_dropout: float = 0.0
    statistics: Statistics = Statistics()  # noqa: RUF009

    def __post_init__(self):
        require(0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "in [0, 1)")
        usable = self.takes_labels or self.label_dropout == 0
        require(usable, "label_dropout", self.label_dropout, "0 or None unless class_conditional is True")

    @property
    def kind(self) -> str:
        """What an example is, one of `data.dataset.KINDS`."""
        return self.statistics.kind or default_kind(self.data_shape)

    @property
    def takes_labels(self) -> bool:
        """Whether the network is conditioned on class labels."""
        return self.network.num_classes > 0

    def to_model(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Returns data (B, *data_shape), uint8 pictures or float32, in the model's range, float32."""
        x = to_model_range(x)
        if not self.statistics.mean:
            return x
        mean, scale = self._affine(x.ndim)
        return (x - mean) / scale

    def to_data(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Returns x (..., *data_shape) in the model's range as data: uint8 pictures, rounded, or float32."""
        if self.kind == "picture":
            return from_model_range(x)
        if not self.statistics.mean:
            return jnp.asarray(x)
        mean, scale = self._affine(x.ndim)
        return jnp.asarray(x) * scale + mean

    @property
    def log2_scale(self) -> float:
        """Mean over the dimensions of log2(dx_data / dx_model): what bits per dimension gain in data units."""
        return float(np.mean(np.log2(np.array(self.statistics.std) / self.sigma_data))) if self.statistics.std else 0.0

    def _affine(self, ndim: int) -> tuple[jax.Array, jax.Array]:
        """Returns mean and scale of each coordinate or channel, of shape (1, ..., 1, C) with `ndim` axes."""
        mean, scale = np.array(self.statistics.mean), np.array(self.statistics.std) / self.sigma_data
        shape = (1,) * (ndim - 1) + (-1,)
        return jnp.asarray(mean.reshape(shape), jnp.float32), jnp.asarray(scale.reshape(shape), jnp.float32)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the network's input for one example: the parameterization's blocks on the last axis."""
        blocks = self.parameterization(self.sde, jnp.float32(self.sde.T), self.sigma_data).c_in.shape[-2]
        return (*self.data_shape[:-1], blocks * self.data_shape[-1])

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters, a tree of plain dictionaries."""
        inputs = jnp.zeros((1, *self.input_shape))
        labels = jnp.zeros((1,), jnp.int32) if self.takes_labels else None
        return self.network.init({"params": key}, inputs, jnp.zeros((1,)), labels)["params"]

    def eps_fn(
        self,
        params: Params,
        *,
        labels: jax.Array | None = None,
        dropout: jax.Array | None = None,
        guidance: float | None = None,
    ) -> EpsFn:
        """The noise predictor with these parameters.

        Args:
          params: of the network.
          labels: (B,) int32 for a network with classes; `num_classes` stands for no class.
          dropout: in training, the key for the dropout of the network and of the labels; None otherwise.
          guidance: scale of classifier-free guidance (`guidance.classifier_free`), at one network call of twice the
            batch; None: no guidance.

        Returns:
          An `eps_fn`. It raises UserError for labels of another shape than (B,).

        Raises:
          UserError: for guidance of a model without label dropout.
        """
        require(
            guidance is None or self.label_dropout > 0,
            "guidance",
            guidance,
            "None for a model without label dropout: train with model.class_conditional = True and "
            "model.label_dropout = 0.1",
        )
        train = dropout is not None
        if train and self.label_dropout > 0:
            dropout, key_labels = jax.random.split(dropout)
            labels = self._drop(labels, key_labels)
        rngs: Any = {"dropout": dropout} if train else {}

        def apply(inputs: jax.Array, noise_cond: jax.Array, labels: jax.Array | None) -> jax.Array:
            out: Any = self.network.apply({"params": params}, inputs, noise_cond, labels, train, rngs=rngs)
            return out

        def network(inputs: jax.Array, noise_cond: jax.Array) -> jax.Array:
            if guidance is None:
                return apply(inputs, noise_cond, labels if self.takes_labels else None)
            given, without = self._with_and_without(apply, inputs, noise_cond, labels)
            return without + guidance * (given - without)

        return eps_function(
            self.sde,
            network,
            parameterization=self.parameterization,
            conditioning=self.conditioning,
            sigma_data=self.sigma_data,
        )

    def _drop(self, labels: jax.Array | None, key: jax.Array) -> jax.Array:
        """The labels, each the null class with probability `label_dropout`."""
        labels = require_given("labels", labels, "an integer array, because the network has classes")
        dropped = jax.random.bernoulli(key, self.label_dropout, labels.shape)
        return jnp.where(dropped, self.network.num_classes, labels)

    def _with_and_without(
        self, apply: Callable[..., jax.Array], inputs: jax.Array, noise_cond: jax.Array, labels: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The network's outputs for the labels and for the null class, (B, *S, C) each, in one call."""
        allowed = f"an integer array of shape {noise_cond.shape}"
        labels = require_given("labels", labels, allowed)
        require(labels.shape == noise_cond.shape, "labels", labels.shape, allowed)
        pairs = jnp.stack([labels, jnp.full_like(labels, self.network.num_classes)], axis=1)
        # The two inputs of an example are neighbors, so that a sharded batch is not moved between devices.
        out = apply(jnp.repeat(inputs, 2, axis=0), jnp.repeat(noise_cond, 2), pairs.reshape(-1))
        out = out.reshape(-1, 2, *out.shape[1:])
        return out[:, 0], out[:, 1]


def __dir__() -> list[str]:
    return __all__
