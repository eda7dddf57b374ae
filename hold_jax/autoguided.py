"""A model guided by a weaker model of the same data, as one model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from hold_jax import guidance as methods
from hold_jax.condition import Condition
from hold_jax.errors import UserError, require
from hold_jax.model import Model
from hold_jax.parameterization import EpsFn


@dataclasses.dataclass(frozen=True)
class Autoguided(Model):
    """`guidance.autoguidance` of one model by another, with the interface of `Model`.

    Its parameters are a pair, those of the model and those of the guide.

    Attributes:
      guide: the weaker model: of the same SDE and data, with the same conditions.
      named: what records of samples call the guide, as pairs of a name and a value, such as ("step", 1000).
    """

    guide: Model | None = None
    named: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, model: Model, guide: Model, named: tuple[tuple[str, Any], ...] = ()) -> "Autoguided":
        """Returns `model` guided by `guide`, which records call `named`.

        Raises:
          UserError: if they are of different data, conditions or SDEs.
        """

        def units(model: Model) -> Any:
            """What the model's range means: other than pictures are in standard deviations of the training data."""
            return model.statistics.mean, model.statistics.std, model.sigma_data if model.statistics.mean else None

        fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(Model)}
        for name, ours, theirs in (
            ("data", model.data_shape, guide.data_shape),
            ("data of kind", model.kind, guide.kind),
            ("conditions", model.conditions.takes, guide.conditions.takes),
            ("conditions of shape", model.conditions.shapes, guide.conditions.shapes),
            ("classes", model.network.num_classes, guide.network.num_classes),
            ("units (mean, deviation, sigma_data)", units(model), units(guide)),
        ):
            require(ours == theirs, "guide", f"a model with {name} {theirs}", f"one with {name} {ours}")
        ours, theirs = (m.statistics.class_names if m.network.num_classes else () for m in (model, guide))
        same = not ours or not theirs or ours == theirs
        require(same, "guide", f"a model of the classes {theirs}", f"one of the classes {ours}")
        require(guide.sde == model.sde, "guide", "a model of another process", "one of the process of the samples")
        return cls(**fields, guide=guide, named=named)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Fresh float32 parameters of both networks."""
        assert self.guide is not None
        return super().init(key), self.guide.init(key)

    def require_guidance(self, guidance: float | jax.Array | None, given: Condition | None = None) -> None:
        """Any scale is allowed: no dropout of a condition is needed."""

    def eps_fn(
        self,
        params: tuple[Any, Any],
        *,
        condition: Condition | Mapping[str, Any] | None = None,
        dropout: jax.Array | None = None,
        guidance: float | jax.Array | None = None,
    ) -> EpsFn:
        """The noise predictor; `guidance` is the scale of `guidance.autoguidance`. See `Model.eps_fn`."""
        assert self.guide is not None
        own = super().eps_fn(params[0], condition=condition, dropout=dropout)
        if guidance is None:
            return own
        try:
            theirs = self.guide.eps_fn(params[1], condition=condition)
        except UserError as error:
            raise UserError(f"`guide` cannot be used with these conditions: {error}") from None
        return methods.autoguidance(own, theirs, guidance)
