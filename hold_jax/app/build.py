"""From settings to built objects: the only place where names are looked up.

A key that is None keeps the default of the constructor that it goes to (`resolve` writes these defaults out). A key
that the chosen constructor does not take is an error: nothing that a user sets is silently ignored.
"""

import dataclasses
import functools
import importlib
import inspect
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hold_jax import kernels, losses, parameterization, samplers, sde
from hold_jax.app.config import KEYS, Config, names
from hold_jax.data import Dataset, Statistics, load, measure
from hold_jax.data.dataset import default_kind
from hold_jax.errors import UserError, require
from hold_jax.evaluation.classifier import classifier
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.evaluation.inception import inception
from hold_jax.evaluation.inception_weights import published
from hold_jax.evaluation.pixels import pixels
from hold_jax.loops import tasks
from hold_jax.loops.conditions import NONE, Conditions, of_data, of_file
from hold_jax.loops.draw import SampleSettings
from hold_jax.loops.evaluate import EvalSettings
from hold_jax.loops.likelihood import LikelihoodSettings
from hold_jax.loops.train import TrainSettings
from hold_jax.model import Model
from hold_jax.nn import MLP, NCSNpp, check_sides
from hold_jax.numerics import ode
from hold_jax.runtime import schema, storage
from hold_jax.runtime.log import Logs, MetricLog, OpenLog, WandbLog
from hold_jax.runtime.storage import Path
from hold_jax.runtime.workdir import Record
from hold_jax.training.optimizer import adam, learning_rate_schedule
from hold_jax.training.step import ScoreLoss

Conditioning = Callable[[sde.LinearSDE, jax.Array], jax.Array]
_LEARNING_RATE = ("learning_rate", "warmup_steps", "warmup_images", "schedule")  # options of its schedule
_CONDITIONING = ("beta_schedule", "beta_start", "beta_end", "num_times", "noise_min")  # its options
NOMINAL_SIGMA_DATA = 0.5  # of pictures in [-1, 1] (EDM, arXiv:2206.00364)
_LOG_NORMAL = inspect.signature(losses.log_normal).parameters


def _log_normal(
    *, time_mean: float = _LOG_NORMAL["mean"].default, time_std: float = _LOG_NORMAL["std"].default
) -> losses.TimeLaw:
    """`losses.log_normal` with its options as the keys are called."""
    return losses.log_normal(time_mean, time_std)


def _ve_noise(*, noise_min: float | None = None) -> Conditioning:
    """`parameterization.ve_noise`, of a network that has seen no noise below `noise_min`."""
    return parameterization.ve_noise if noise_min is None else parameterization.ve_noise_from(noise_min)


SDES = {"hold": sde.hold, "vp": sde.vp, "ve": sde.ve, "cld": sde.cld, "psld": sde.psld}
NETWORKS = {"ncsnpp": NCSNpp, "mlp": MLP}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
TIME_LAWS = {
    "uniform": lambda: losses.uniform,
    "log_uniform": lambda: losses.log_uniform,
    "log_normal": _log_normal,
}
CONDITIONINGS = {
    **{name: lambda law=law: law for name, law in parameterization.CONDITIONINGS.items()},
    "discrete_time": parameterization.discrete_time,
    "ve_noise": _ve_noise,
}
TASKS: dict[str, Callable[..., tasks.Task | None]] = {
    "draw": lambda: None,
    "inpaint": tasks.inpaint,
    "superres": tasks.superres,
    "deblur": tasks.deblur,
    "colorize": tasks.colorize,
    "compress": tasks.compress,
    "edit": tasks.edit,
    "reconstruct": tasks.reconstruct,
    "interpolate": tasks.interpolate,
}
SELECTORS: dict[str, Mapping[str, Callable[..., Any]]] = {
    "sde.name": SDES,
    "model.name": NETWORKS,
    "model.conditioning": CONDITIONINGS,
    "loss.time_law": TIME_LAWS,
    "sampling.name": samplers.SAMPLERS,
    "sampling.grid": samplers.GRIDS,
    "task.name": TASKS,
}
"""The keys that choose a constructor: what it is called, and the constructors. Their options are in their section."""


def resolve(config: Config) -> Config:
    """The same settings with the constructors' defaults in place of None, so that a run's record does not rest on them.

    A default that is None itself, or not finite, stays None.
    """
    flat, found = config.flat(), {}
    for selector, constructors in SELECTORS.items():
        found |= _options(selector, constructors[flat[selector]])
    if config.sampling.times is not None:
        found.pop("sampling.rho", None)  # of a grid that is not used
    unset = {key: value for key, value in found.items() if flat[key] is None and value not in (None, math.inf)}
    return config.changed(unset)


def differences(config: Config) -> list[str]:
    """The keys of resolved settings whose value is not the default."""
    values, defaults = config.flat(), resolve(Config().changed({"data.name": config.data.name})).flat()
    return [key for key in KEYS if values[key] != defaults[key]]


def without_options_of(config: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that lose their value when `changes` choose another constructor: those of the one chosen before."""
    flat, lost = config.flat(), {}
    for selector, constructors in SELECTORS.items():
        if changes.get(selector, flat[selector]) != flat[selector]:
            lost |= dict.fromkeys(_options(selector, constructors[flat[selector]]), None)
    return lost


def _options(selector: str, constructor: Callable[..., Any]) -> dict[str, Any]:
    """The keys that a constructor takes, with its defaults."""
    section = selector.partition(".")[0]
    parameters = inspect.signature(constructor).parameters.values()
    keys = {f"{section}.{p.name}": p.default for p in parameters if p.default is not p.empty}
    return {key: default for key, default in keys.items() if key in KEYS and KEYS[key].optional}


def given(section: Any, *exclude: str) -> dict[str, Any]:
    """The keys of `section` that are not None, except `exclude`."""
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {key: value for key, value in values.items() if value is not None and key not in exclude}


def construct(
    where: str, name: str, constructor: Callable[..., Any], options: Mapping[str, Any], /, **more: Any
) -> Any:
    """Returns `constructor(**options, **more)`; errors name the option as the user wrote it, `where.option`.

    Raises:
      UserError: for an option that has no effect with the chosen `name`, or a combination that does not work.
    """
    known = set(inspect.signature(constructor).parameters)
    for key in options:
        if key not in known:
            raise UserError(f"`{where}.{key}` has no effect with {where}.name = {name!r}: leave it unset")
    try:
        return constructor(**options, **more)
    except UserError as error:
        raise UserError(str(error).replace("`", f"`{where}.", 1)) from None


def statistics(record: Record) -> Statistics:
    """The statistics of the training data that a run's record keeps."""
    kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.statistics.items()}
    return Statistics(**kept)


def as_json(config: Config) -> dict[str, Any]:
    """The settings as plain JSON values; tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def dataset(config: Config, split: str) -> Dataset:
    """One split of the data; what cannot be loaded fails within seconds."""
    options = given(config.data, "name", "memory_limit_gib", "flip")
    limit = config.data.memory_limit_gib
    if limit is not None:
        options["memory_limit_bytes"] = math.ceil(limit * 2**30)
    return construct("data", config.data.name, load, options, name=config.data.name, split=split)


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
    network = construct(
        "model",
        c.name,
        NETWORKS[c.name],
        given(c, *own),
        out_channels=data_shape[-1],
        num_classes=num_classes if c.class_conditional else 0,
        dtype=DTYPES[c.dtype],
    )
    pictures = len(data_shape) == 3 or not statistics.picture_shape
    require(pictures, "data.condition", config.data.condition, "of vectors: only data of pictures take a picture")
    suits = "mlp" if len(data_shape) == 1 else "ncsnpp"
    require(c.name == suits, "model.name", c.name, f"{suits!r} for data of shape {data_shape}")
    is_picture = (statistics.kind or default_kind(data_shape)) == "picture"
    require(c.standardize is None or not is_picture, "model.standardize", c.standardize, "None for pictures")
    if len(data_shape) > 1:
        check_sides(data_shape[:-1], len(network.channel_multipliers))
    equation = process(config)
    _require_conditioned(c.parameterization, equation)
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


def _require_conditioned(name: str, equation: sde.LinearSDE) -> None:
    """Raises `UserError` where the division by w_n would amplify the network's errors, or float32's."""
    factor = kernels.amplification(equation)
    if name in parameterization.LAST_NOISE:
        allowed = (
            f"signal, gaussian or sufficient: errors of the last block's noise grow {factor:.3g} times in the data"
        )
        require(factor <= 10, "model.parameterization", name, allowed)
    allowed = "nearer to critical damping: at some time the last block's noise does not depend on the data"
    require(factor <= 1e4, "sde", equation.F.tolist(), allowed)


def any_process(config: Config) -> bool:
    """Whether the model is a denoiser, which samples by other processes than it was trained with, of any order."""
    return parameterization.is_denoiser(config.model.parameterization, config.model.conditioning)


def loss(config: Config) -> ScoreLoss:
    """The per-example loss with its options bound; `sigma_data` is the model's."""
    c = config.loss
    law = TIME_LAWS[c.time_law](**given(c, "name", "weighting", "time_law", "stratified", "t_min"))
    if c.t_min is not None:
        end = process(config).T
        require(c.t_min < end, "loss.t_min", c.t_min, f"between 0 and T = {end}")
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
        return lambda path, start: MetricLog(path, start_step=start)
    importlib.import_module("wandb")
    return lambda path, start: Logs([MetricLog(path, start_step=start), WandbLog(path, run, as_json(config))])


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
    """The networks whose features are compared; trains the classifier if it is chosen and not in `folder` yet."""
    known: dict[str, Callable[[], FeatureNetwork]] = {
        "classifier": lambda: classifier(load_train(), folder),
        "inception": lambda: inception(_inception_weights(config), "eval.inception"),
        "pixels": lambda: pixels(measure(load_train())),
    }
    return [known[name]() for name in names(config.eval.features)]


def _inception_weights(config: Config) -> str | pathlib.Path:
    """The path of the FID network's weights, which are fetched unless the user has them."""
    path = config.eval.inception
    if path is None:
        return published("--config.eval.inception", ", or take --config.eval.features=classifier")
    storage.require_local(path, "eval.inception")
    return path


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
