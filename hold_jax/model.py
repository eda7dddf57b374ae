"""A trainable score model: an SDE, a network and a parameterization as one object."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.condition import Condition, as_condition
from hold_jax.condition_encoder import ConditionEncoder
from hold_jax.data.dataset import Statistics, default_kind
from hold_jax.data.transfer import from_model_range, to_model_range
from hold_jax.errors import require
from hold_jax.parameterization import Coefficients, EpsFn, eps_function
from hold_jax.sde import LinearSDE

__all__ = ["Model"]

Params = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """What turns a network's parameters into an `eps_fn`.

    Attributes:
      sde: the process.
      network: a Flax module called as network(inputs, noise_cond, condition, train): `condition` is a `Condition` in
        the network's range (`hold_jax.condition_encoder`), or None if the network takes no conditions. Its attribute
        `num_classes` is the number of classes, 0 without labels.
      data_shape: of one example: (H, W, C) of a picture or an array, (d,) of a vector, (length, C) of a signal.
      parameterization: one of `parameterization.PARAMETERIZATIONS`' values.
      conditioning: one of `parameterization.CONDITIONINGS`' values.
      sigma_data: standard deviation of the data in the model's range.
      label_dropout: probability of training an example with the null class in place of its own, which makes one
        network conditional and unconditional (2207.12598, algorithm 1); 0: never, and then without guidance.
      picture_dropout: the same for the condition picture.
      vector_dropout: the same for the condition vector.
      augment: probability of each transform of training pictures (`data.augment`); above 0 the network takes their
        labels. 0: none.
      statistics: of the training data. With a mean and a standard deviation here, vectors are standardized by
        coordinate, signals and arrays by channel: the model's range is sigma_data (x - mean) / std. Without, data that
        are not pictures are taken as they are. The network takes condition pictures if `picture_shape`
        is not empty, and condition vectors if `vector_mean` is not.

    Raises:
      UserError: for a network without `num_classes`, a name in place of a function, a dropout outside [0, 1), or of a
        condition that the network does not take.
    """

    sde: LinearSDE
    network: nn.Module
    data_shape: tuple[int, ...]
    parameterization: Callable[[LinearSDE, jax.Array, float], Coefficients]
    conditioning: Callable[[LinearSDE, jax.Array], jax.Array]
    sigma_data: float
    label_dropout: float = 0.0
    picture_dropout: float = 0.0
    vector_dropout: float = 0.0
    augment: float = 0.0
    statistics: Statistics = Statistics()  # noqa: RUF009

    def __post_init__(self):
        has, name = hasattr(self.network, "num_classes"), type(self.network).__name__
        require(has, "network", name, "a Flax module with an attribute `num_classes`, 0 without classes")
        for name in ("parameterization", "conditioning"):
            value = getattr(self, name)
            require(callable(value), name, value, f"a function of `parameterization.{name.upper()}S`, or your own")
        _ = self.conditions  # checks the dropout

    @functools.cached_property
    def conditions(self) -> ConditionEncoder:
        """The conditions that the network takes, and their conversion to its range."""
        of = self.statistics
        return ConditionEncoder(
            num_classes=self.network.num_classes,
            picture_shape=of.picture_shape,
            picture_mean=of.picture_mean,
            picture_std=of.picture_std,
            vector_mean=of.vector_mean,
            vector_std=of.vector_std,
            size=self.data_shape[:-1],
            dropout=(self.label_dropout, self.picture_dropout, self.vector_dropout),
        )

    @property
    def kind(self) -> str:
        """What an example is, one of `data.dataset.KINDS`."""
        return self.statistics.kind or default_kind(self.data_shape)

    @property
    def dtype(self) -> np.dtype:
        """The type that the network computes in."""
        return jnp.dtype(getattr(self.network, "dtype", jnp.float32))

    @property
    def in_float32(self) -> "Model":
        """The same model whose network computes in float32, for what an adaptive solver integrates.

        The roundings of half precision, 2^-9 or 2^-12 of a value, change from call to call: a solver with a tolerance
        near them takes ever smaller steps.
        """
        if self.dtype == jnp.float32:
            return self
        return dataclasses.replace(self, network=self.network.clone(dtype=jnp.float32))

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
        """Mean over the dimensions of log2(dx_data / dx_model): what bits of the density gain in data units."""
        return float(np.mean(np.log2(np.array(self.statistics.std) / self.sigma_data))) if self.statistics.std else 0.0

    @property
    def bin_width(self) -> tuple[float, ...] | None:
        """Spacing of discrete data in the model's range, of all channels or of each; None: continuous data."""
        if self.kind == "picture":
            return (2 / 255,)
        if not self.statistics.integers:
            return None
        return tuple(self.sigma_data / std for std in self.statistics.std) or (1.0,)

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
        takes, inputs = self.conditions.takes, jnp.zeros((1, *self.input_shape))
        condition = self.conditions.without(Condition(), takes, 1) if takes else None
        return self.network.init({"params": key}, inputs, jnp.zeros((1,)), condition)["params"]

    def require_guidance(self, guidance: float | jax.Array | None, given: Condition | None = None) -> None:
        """Raises UserError for classifier-free guidance without dropout of a condition, or of none that is `given`."""
        droppable = self.conditions.droppable
        require(
            guidance is None or bool(droppable),
            "guidance",
            guidance,
            "None for a model without dropout of a condition: train with model.label_dropout, model.picture_dropout or "
            "model.vector_dropout = 0.1",
        )
        some = guidance is None or given is None or any(getattr(given, name) is not None for name in droppable)
        require(some, "guidance", guidance, f"None without a condition to guide to: give a {' or a '.join(droppable)}")

    def eps_fn(
        self,
        params: Params,
        *,
        condition: Condition | Mapping[str, Any] | None = None,
        dropout: jax.Array | None = None,
        guidance: float | jax.Array | None = None,
    ) -> EpsFn:
        """The noise predictor with these parameters.

        Args:
          params: of the network.
          condition: in data units, a `Condition` or a dictionary of its fields: `label` (B,) int32, `picture`
            (B, H, W, C) uint8 or float, `vector` (B, k) float. A condition that the network takes must be given, unless
            it has dropout: then None stands for the null condition. With dropout of labels class
            `num_classes` is the null class. Labels for a network without classes are ignored, because every batch of
            data has labels.
          dropout: in training, the key for the dropout of the network and of the conditions; None otherwise.
          guidance: scale, () or (B,), of classifier-free guidance (`guidance.classifier_free`), at one network call of
            twice the batch; None: no guidance. The unconditional half is without all conditions that have dropout.

        Returns:
          An `eps_fn`. It raises UserError for conditions of another length than its batch.

        Raises:
          UserError: for conditions that do not fit the network, and for guidance of a model without dropout of any.
        """
        conditions, given = self.conditions, as_condition(condition)
        self.require_guidance(guidance, given)
        encoded = conditions.encode(given)
        if dropout is not None and conditions.droppable:
            dropout, key_conditions = jax.random.split(dropout)
            encoded = conditions.drop(encoded, key_conditions)
        train = dropout is not None
        rngs: Any = {"dropout": dropout} if train else {}

        def apply(inputs: jax.Array, noise_cond: jax.Array, given: Condition) -> jax.Array:
            seen = given if jax.tree.leaves(given) else None
            out: Any = self.network.apply({"params": params}, inputs, noise_cond, seen, train, rngs=rngs)
            return out

        def network(inputs: jax.Array, noise_cond: jax.Array) -> jax.Array:
            size = noise_cond.shape[0]
            full = conditions.complete(encoded, size)
            if guidance is None:
                return apply(inputs, noise_cond, full)
            without = conditions.without(full, conditions.droppable, size)
            # The two inputs of an example are neighbors, so that a sharded batch is not moved between devices.
            pairs = jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:]), full, without)
            out = apply(jnp.repeat(inputs, 2, axis=0), jnp.repeat(noise_cond, 2), pairs)
            out = out.reshape(-1, 2, *out.shape[1:])
            scale = kernels.append_dims(jnp.asarray(guidance, out.dtype), out[:, 0])
            return out[:, 1] + scale * (out[:, 0] - out[:, 1])

        return eps_function(
            self.sde,
            network,
            parameterization=self.parameterization,
            conditioning=self.conditioning,
            sigma_data=self.sigma_data,
        )


def __dir__() -> list[str]:
    return __all__
