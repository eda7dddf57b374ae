"""What the modes prepare in the same way: the model, a split of the data, the feature networks."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from hold_jax.app import build, packed
from hold_jax.app.config import Config, names
from hold_jax.autoguided import Autoguided
from hold_jax.data import Dataset, Statistics, measured
from hold_jax.errors import UserError, require
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.loops import origin
from hold_jax.loops.conditions import Conditions
from hold_jax.loops.evaluate import EvalSettings
from hold_jax.model import Model
from hold_jax.runtime import distributed, schema
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.storage import Path


def model(config: Config, data_shape: tuple[int, ...], num_classes: int, statistics: Statistics) -> Model:
    """The model, in float32 where the devices have no bfloat16; parameters are float32 either way."""
    if config.model.dtype == "bfloat16" and not Devices.all().have_bfloat16():
        kind = jax.devices()[0].device_kind
        distributed.say(f"model.dtype is bfloat16, which {kind} does not have: computing in float32")
        config = config.changed({"model.dtype": "float32"})
    return build.model(config, data_shape, num_classes, statistics)


def guided(config: Config, model: Model) -> tuple[Model, Callable[[Any], Any]]:
    """The model that samples are drawn from, with `sampling.guide` if it is set, and its parameters of the run's."""
    where = config.sampling.guide
    if where is None:
        return model, lambda params: params
    found = packed.find(where, "sampling.guide")
    theirs = found.config
    allowed = "a run of the process of the samples, or a denoiser of any"
    usable = build.any_process(theirs) or theirs.sde == config.sde
    require(usable, "sampling.guide", where, allowed)
    ours, other = _condition(config), _condition(theirs)
    require(ours == other, "sampling.guide", where, f"a run with data.condition = {ours!r}; it has {other!r}")
    process = {key: value for key, value in config.flat().items() if key.startswith("sde.")}
    theirs = theirs.changed(process | {"model.dtype": model.dtype.name})
    record = found.record
    guide = build.model(theirs, record.data_shape, record.num_classes, build.statistics(record))
    with _naming_the_guide(config):
        named = ("path", where), ("step", found.step), ("checkpoint", origin.fingerprint(found.params))
        return Autoguided.of(model, guide, named), lambda params: (params, found.params)


def _condition(config: Config) -> str | None:
    """What data are conditioned on, less the path of a second folder, which may have moved."""
    measurements, named = measured.split(config.data.condition)
    moves = named is None or config.data.name.startswith("folder:")
    return ",".join(measurements if moves else [*measurements, named]) or None


@contextlib.contextmanager
def _naming_the_guide(config: Config) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"`sampling.guide` is {config.sampling.guide!r}: {error}") from None


def conditions(config: Config, drawn: Model, load_test: Callable[[], Dataset]) -> Conditions:
    """The conditions of samples, which the guide of `guided` must take too."""
    given = build.conditions(config, drawn, load_test)
    if isinstance(drawn, Autoguided) and drawn.guide is not None:
        with _naming_the_guide(config):
            build.conditions(config, drawn.guide, load_test)
    return given


def dataset(config: Config, split: str, model: Model) -> Dataset:
    """A split that must have the shape, and for a model of classes the classes, that the model was made for."""
    data, name = build.dataset(config, split), config.data.name
    shape, classes, known = model.data_shape, model.network.num_classes, model.statistics.class_names
    require(data.shape == shape, "data.name", name, f"data of shape {shape}; its {split} split's is {data.shape}")
    if config.model.class_conditional:
        has = f"{data.num_classes} classes" if data.num_classes else "no labels"
        allowed = f"data of the {classes} classes that the model takes; its {split} split has {has}"
        require(data.num_classes == classes, "data.name", name, allowed)
        for number, (ours, theirs) in enumerate(zip(known, data.class_names, strict=False)):
            allowed = f"data of the model's classes: class {number} is {ours} there, {theirs} in the {split} split"
            require(ours == theirs, "data.name", name, allowed)
        _warn_of_untrained_classes(data, model)
    return data


def _warn_of_untrained_classes(data: Dataset, model: Model) -> None:
    """Says which classes the examples have that no training example had: their embeddings were not trained."""
    counts = model.statistics.class_counts
    if data.labels is not None and counts:
        found = np.unique(data.labels)
        untrained = found[np.asarray(counts)[found] == 0].tolist()
        if untrained:
            distributed.say(
                f"warning: the {data.split} split of {data.name} has examples of classes that no training example has, "
                f"which the network did not learn: {schema.shown(untrained)}"
            )


def feature_networks(
    config: Config, settings: EvalSettings, load_train: Callable[[], Dataset], path: Path
) -> list[FeatureNetwork]:
    """What samples are compared in, if any are drawn."""
    if settings.num_samples == 0:
        return []
    alone = settings.stats is None or len(names(config.eval.features)) == 1
    require(alone, "eval.features", config.eval.features, "one network, to use eval.stats")
    return build.feature_networks(config, load_train, path)


def held_out(config: Config, model: Model) -> Dataset | None:
    """The test examples whose loss training logs; None where there are none."""
    if config.training.held_out == 0:
        return None
    try:
        found = dataset(config, "test", model)
    except UserError as error:
        if config.training.report:
            raise
        distributed.say(f"no held-out loss and no best checkpoint: {error}")
        return None
    num = config.training.held_out
    require(num >= 2, "training.held_out", num, "0, or 2 or more: the error of the mean needs two")
    return found.subset(num) if len(found) >= 2 else None
