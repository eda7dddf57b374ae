"""From settings to built objects."""

import dataclasses
import functools
import importlib
import inspect
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import optax

from hold_jax import kernels, losses, parameterization, samplers, sde
from hold_jax.app.config import Config, names
from hold_jax.app.constructors import (
    CONDITIONINGS,
    DTYPES,
    NETWORKS,
    SDES,
    TASKS,
    TIME_LAWS,
    Conditioning,
    construct,
    given,
)
from hold_jax.data import Dataset, Statistics, load, measure, measured
from hold_jax.data.augment import NUM_LABELS
from hold_jax.data.dataset import default_kind
from hold_jax.errors import require
from hold_jax.evaluation.classifier import classifier
from hold_jax.evaluation.dinov2 import dinov2
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.evaluation.inception import inception
from hold_jax.evaluation.inception_weights import published
from hold_jax.evaluation.own_function import own_function
from hold_jax.evaluation.pixels import pixels
from hold_jax.loops import tasks
from hold_jax.loops.conditions import NONE, Conditions, of_data, of_file
from hold_jax.loops.draw import SampleSettings
from hold_jax.loops.evaluate import EvalSettings
from hold_jax.loops.likelihood import LikelihoodSettings
from hold_jax.loops.train import TrainSettings
from hold_jax.model import Model
from hold_jax.nn import check_sides
from hold_jax.numerics import ode
from hold_jax.runtime import schema, storage
from hold_jax.runtime.log import Logs, MetricLog, OpenLog, WandbLog
from hold_jax.runtime.storage import Path
from hold_jax.runtime.workdir import Record
from hold_jax.training.optimizer import adam, learning_rate_schedule
from hold_jax.training.step import ScoreLoss

_LEARNING_RATE = ("learning_rate", "warmup_steps", "warmup_images", "schedule")  # options of its schedule
# Options of the conditioning.
_CONDITIONING = ("beta_schedule", "beta_start", "beta_end", "num_times", "noise_min", "noise_max", "time_scale")
NOMINAL_SIGMA_DATA = 0.5  # of pictures in [-1, 1] (EDM, arXiv:2206.00364)


def statistics(record: Record) -> Statistics:
    """The statistics of the training data that a run's record keeps."""
    kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.statistics.items()}
    return Statistics(**kept)


def as_json(config: Config) -> dict[str, Any]:
    """The settings as plain JSON values; tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def dataset(config: Config, split: str) -> Dataset:
    """One split of the data; what cannot be loaded fails within seconds."""
    options = given(config.data, "name", "memory_limit_gib", "flip", "augment")
    limit = config.data.memory_limit_gib
    if limit is not None:
        options["memory_limit_bytes"] = math.ceil(limit * 2**30)
    data = construct("data", config.data.name, load, options, name=config.data.name, split=split)
    if config.data.flip and data.is_image:
        measured.require_mirrored(config.data.condition, data.shape)
    return data


def process(config: Config) -> sde.LinearSDE:
    """The SDE."""
    return construct("sde", config.sde.name, SDES[config.sde.name], given(config.sde, "name"))


def model(
    config: Config,
    data_shape: tuple[int, ...],
    num_classes: int,
    statistics: Statistics = Statistics(),  # noqa: B008
) -> Model:
    """The SDE and the network for data of this shape.

    Args:
      config: the settings.
      data_shape: (H, W, C) of a picture or an array, (d,) of a vector, (length, C) of a signal.
      num_classes: of the training data.
      statistics: of the training data; without their mean, or where `model.standardize` is False, data that are not
        pictures are taken as they are.
    """
    c = config.model
    if c.standardize is False:
        statistics = dataclasses.replace(statistics, mean=(), std=())
    labels = not c.class_conditional or num_classes > 0
    require(labels, "model.class_conditional", True, "False for data without labels")
    own = (
        *("name", "dtype", "parameterization", "conditioning", "sigma_data", "standardize"),
        *("class_conditional", "label_dropout", "picture_dropout", "vector_dropout", *_CONDITIONING),
    )
    kind, augment = statistics.kind or default_kind(data_shape), config.data.augment
    is_picture = kind == "picture"
    require(is_picture or not augment, "data.augment", augment, f"0 for data of kind {kind!r}: pictures are augmented")
    alone = not statistics.picture_shape or not augment
    require(alone, "data.augment", augment, "0 with condition pictures, which would not be changed alike")
    equation = process(config)
    _require_conditioned(config, equation)
    blocks = equation.order if c.parameterization in parameterization.ALL_NOISE else 1
    network = construct(
        "model",
        c.name,
        NETWORKS[c.name],
        given(c, *own),
        out_channels=blocks * data_shape[-1],
        num_classes=num_classes if c.class_conditional else 0,
        dtype=DTYPES[c.dtype],
        **({"augment_labels": NUM_LABELS} if augment else {}),
    )
    pictures = len(data_shape) == 3 or not statistics.picture_shape
    require(pictures, "data.condition", config.data.condition, "of vectors: only data of pictures take a picture")
    suits = "mlp" if len(data_shape) == 1 else "ncsnpp"
    require(c.name == suits, "model.name", c.name, f"{suits!r} for data of shape {data_shape}")
    require(c.standardize is None or not is_picture, "model.standardize", c.standardize, "None for pictures")
    if len(data_shape) > 1:
        check_sides(data_shape[:-1], len(network.channel_multipliers))
    return construct(
        "model",
        c.name,
        Model,
        {},
        sde=equation,
        network=network,
        data_shape=data_shape,
        parameterization=parameterization.PARAMETERIZATIONS[c.parameterization],
        conditioning=_conditioning(config),
        # Noise levels are absolute: standardized vectors have the scale that they are made for, whatever their own.
        sigma_data=1.0 if statistics.mean else sigma_data(config),
        label_dropout=c.label_dropout or 0.0,
        picture_dropout=c.picture_dropout or 0.0,
        vector_dropout=c.vector_dropout or 0.0,
        augment=augment,
        statistics=statistics,
    )


def sigma_data(config: Config) -> float:
    """The standard deviation of the data that the model was made for.

    Training records it. Where it is None nothing was measured: the network is another project's, or of a version whose
    default was this number.
    """
    return NOMINAL_SIGMA_DATA if config.model.sigma_data is None else config.model.sigma_data


def _conditioning(config: Config) -> Conditioning:
    """The time passed to the network."""
    chosen = config.model.conditioning
    options = {key: value for key, value in given(config.model).items() if key in _CONDITIONING}
    known = set(options) <= set(inspect.signature(CONDITIONINGS[chosen]).parameters)
    require(known, "model.conditioning", chosen, f"one that has {', '.join(options)}, or leave these unset")
    return construct("model", config.model.name, CONDITIONINGS[chosen], options)


def _require_conditioned(config: Config, equation: sde.LinearSDE) -> None:
    """Raises `UserError` where the division by w_n would amplify the network's errors, or float32's."""
    factor, name = kernels.amplification(equation), config.model.parameterization
    if name in parameterization.LAST_NOISE:
        allowed = (
            f"signal, gaussian or sufficient: errors of the last block's noise grow {factor:.3g} times in the data"
        )
        require(factor <= 10, "model.parameterization", name, allowed)
    allowed = (
        "nearer to critical damping (sde.damping=critical): at some time the last block's noise does not depend on the "
        "data, which no network can undo"
    )
    require(factor <= 1e4, "sde", given(config.sde), allowed)


def any_process(config: Config) -> bool:
    """Whether the model is a denoiser, which samples by other processes than it was trained with, of any order."""
    return parameterization.is_denoiser(config.model.parameterization, config.model.conditioning)


@functools.lru_cache(maxsize=4)
def loss(config: Config) -> ScoreLoss:
    """The per-example loss with its options bound; `sigma_data` is the model's.

    Equal settings give the same function, so that a program that was compiled for it is found again.
    """
    c = config.loss
    law = TIME_LAWS[c.time_law](**given(c, "name", "weighting", "time_law", "stratified", "t_min"))
    if c.t_min is not None:
        kernels.require_t_min(process(config), c.t_min, "loss.t_min")
    return functools.partial(
        losses.LOSSES[c.name],
        weighting=losses.WEIGHTINGS[c.weighting],
        time_law=law,
        stratified=c.stratified,
        t_min=c.t_min,
    )


def learning_rate(config: Config) -> optax.Schedule:
    """The rate by step."""
    c, length = config.optimizer, config.training
    options = {key: value for key, value in given(c).items() if key in _LEARNING_RATE}
    more = {"num_steps": length.num_steps, "batch_size": length.batch_size}
    return construct("optimizer", "adam", learning_rate_schedule, options, **more)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with its learning-rate schedule."""
    options = given(config.optimizer, *_LEARNING_RATE)
    return construct("optimizer", "adam", adam, options, learning_rate=learning_rate(config))


def log(config: Config, run: str | None) -> OpenLog:
    """Opens the log of a run of identity `run`; what has to be installed is looked for at once."""
    if config.logging == "files":
        return MetricLog
    importlib.import_module("wandb")
    return lambda path, start: Logs([MetricLog(path, start), WandbLog(path, run, as_json(config))])


def training(config: Config) -> TrainSettings:
    """How long and how often."""
    own = given(config.training, "report", "init_from", "held_out")
    return TrainSettings(seed=config.seed, flip=config.data.flip, **own)


def sampling(config: Config) -> SampleSettings:
    """How samples are drawn."""
    c = config.sampling
    settings = {field.name for field in dataclasses.fields(SampleSettings)}
    own = given(c, "calls", "grid", "rho", "times", "checkpoint", "condition", "guide", *settings)
    sampler = construct("sampling", c.name, samplers.SAMPLERS[c.name], own)
    scaled = c.guide is None or c.guidance is not None
    require(scaled, "sampling.guide", c.guide, "None without a scale: set sampling.guidance, e.g. to 2.0")
    grid: Any = samplers.GRIDS[c.grid]
    if c.rho is not None:
        grid = functools.partial(grid, rho=c.rho)
    if c.times is not None:
        grid = c.times
    bound = {key: getattr(c, key) for key in settings - {"sampler", "grid", "seed", "frames"}}
    return SampleSettings(sampler=sampler, grid=grid, seed=config.seed, frames=_frames(c.frames, c.num_steps), **bound)


def _frames(most: int, num_steps: int) -> int:
    """The largest divisor of `num_steps` up to `most`; 0 for 0."""
    return max((part for part in range(1, min(most, num_steps) + 1) if num_steps % part == 0), default=0)


def conditions(config: Config, model: Model, load_test: Callable[[], Dataset]) -> Conditions:
    """The conditions of samples: those in the file `sampling.condition`, or else those of the test examples.

    Classes alone are not read from the test examples: `sampling.label` and `sampling.classes` choose them.
    """
    path = config.sampling.condition
    if path is not None:
        return of_file(model, storage.path(path, "sampling.condition"))
    return NONE if set(model.conditions.takes) <= {"label"} else of_data(model, load_test())


def task(config: Config) -> tasks.Task | None:
    """What is made of given examples; None: nothing, samples are drawn."""
    c = config.task
    require(c.name != "draw" or c.input is None, "task.input", c.input, "None to draw: choose --config.task.name")
    return construct("task", c.name, TASKS[c.name], given(c, "name", "input"))


def evaluation(config: Config) -> EvalSettings:
    """What is evaluated."""
    c = config.eval
    stats = None if c.stats is None else storage.path(c.stats, "eval.stats")
    return EvalSettings(
        batch_size=c.batch_size,
        repeats=c.repeats,
        split=c.split,
        num_samples=c.num_samples,
        neighbors=c.neighbors,
        seed=config.seed,
        stats=stats,
        likelihood=likelihood(config) if c.likelihood else None,
    )


def likelihood(config: Config) -> LikelihoodSettings:
    """How bits per dimension are computed."""
    c = config.likelihood
    solver = {field.name for field in dataclasses.fields(ode.Solver)}
    own = {key: value for key, value in given(c).items() if key in solver}
    settings = {key: value for key, value in dataclasses.asdict(c).items() if key not in solver}
    return LikelihoodSettings(seed=config.seed, solver=construct("likelihood", c.solver, ode.Solver, own), **settings)


def feature_networks(config: Config, load_train: Callable[[], Dataset], folder: Path) -> list[FeatureNetwork]:
    """The networks whose features are compared; trains the classifier if it is chosen and not in `folder` yet.

    Raises:
      UserError: for two functions of the user's own of one name, which their figures would share.
    """
    known: dict[str, Callable[[], FeatureNetwork]] = {
        "classifier": lambda: classifier(load_train(), folder),
        "dinov2": lambda: _dinov2(config.eval.dinov2),
        "inception": lambda: inception(_inception_weights(config), "eval.inception"),
        "pixels": lambda: pixels(measure(load_train())),
    }

    def mine(name: str) -> FeatureNetwork:
        data = load_train()
        return own_function(name, data.shape, data.dtype, "eval.features")

    found = [known[name]() if name in known else mine(name) for name in names(config.eval.features)]
    called = [network.name for network in found]
    require(len({*called}) == len(called), "eval.features", config.eval.features, "of different names after the colon")
    return found


def _inception_weights(config: Config) -> str | pathlib.Path:
    """The path of the FID network's weights, which are fetched unless the user has them."""
    path = config.eval.inception
    if path is None:
        return published("--config.eval.inception", ", or take --config.eval.features=classifier")
    storage.require_local(path, "eval.inception")
    return path


def _dinov2(path: str | None) -> FeatureNetwork:
    if path is not None:
        storage.require_local(path, "eval.dinov2")
    return dinov2(path, "eval.dinov2")


def checkpoint_steps(config: Config) -> Sequence[int | str] | None:
    """The checkpoints to evaluate: None for the newest, an empty list for all, steps, or ["best"]."""
    words = config.eval.checkpoints
    if words in ("newest", "all"):
        return None if words == "newest" else []
    if words == "best":
        return ["best"]
    return [int(step) for step in names(words)]


def workdir(path: str) -> Path:
    """The work directory as an absolute path (Orbax needs one), or gs://BUCKET/PATH."""
    fits = schema.is_path(path) and bool(path.strip())
    require(fits, "workdir", path, "a folder: pass --workdir=DIR")
    return storage.path(path)
