"""From a config to built objects: the only reader of a ConfigDict, and the only place where names are looked up.

A key left at None keeps the default of the constructor it goes to. A key that the chosen constructor
does not take is an error: nothing a user sets is silently ignored.
"""

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from hold_jax import kernels, losses, parameterization, samplers, sde
from hold_jax.app.config import get_config
from hold_jax.data import Dataset, Statistics, load
from hold_jax.errors import UserError, require, require_choice
from hold_jax.evaluation.classifier import classifier
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.evaluation.inception import inception
from hold_jax.evaluation.pixels import pixels
from hold_jax.loops.evaluate import EvalSettings
from hold_jax.loops.generate import SampleSettings
from hold_jax.loops.likelihood import LikelihoodSettings
from hold_jax.loops.train import TrainSettings
from hold_jax.model import Model
from hold_jax.nn import MLP, NCSNpp, check_image_shape
from hold_jax.numerics import ode
from hold_jax.runtime import storage
from hold_jax.runtime.storage import Path
from hold_jax.runtime.workdir import Record
from hold_jax.training.optimizer import adam, learning_rate_schedule
from hold_jax.training.step import ScoreLoss

SDES = {"hold": sde.hold, "vp": sde.vp, "ve": sde.ve, "cld": sde.cld, "psld": sde.psld}
NETWORKS = {"ncsnpp": NCSNpp, "mlp": MLP}
# Options of a conditioning.
_CONDITIONING = ("beta_schedule", "beta_start", "beta_end", "num_times", "noise_min")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def given(section: ml_collections.ConfigDict, *taken: str) -> dict[str, Any]:
    """The keys of `section` that are set, but for those `taken` care of elsewhere."""
    return {key: value for key, value in section.items() if value is not None and key not in taken}


def construct(
    where: str, name: str, constructor: Callable[..., Any], options: Mapping[str, Any], /, **more: Any
) -> Any:
    """`constructor(**options, **more)`; errors name the option as the user wrote it, `where.option`.

    Raises:
      UserError: for an option that has no effect with the chosen `name`, or a value that the constructor refuses.
    """
    known = set(inspect.signature(constructor).parameters)
    for key in options:
        if key not in known:
            raise UserError(f"`{where}.{key}` has no effect with {where}.name = {name!r}: leave it unset")
    try:
        return constructor(**options, **more)
    except UserError as error:
        raise UserError(str(error).replace("`", f"`{where}.", 1)) from None


def record(config: ml_collections.ConfigDict, dataset: Dataset, statistics: Statistics) -> Record:
    """What the work directory keeps of this run; the config as JSON gives it back (tuples are lists)."""
    measured = json.loads(json.dumps(dataclasses.asdict(statistics)))
    return Record(as_json(config), dataset.shape, dataset.num_classes, measured)


def statistics(record: Record) -> Statistics:
    """The statistics of the training data that a run's record keeps."""
    return Statistics(**{name: tuple(values) for name, values in record.statistics.items()})


def config_of(record: Record) -> ml_collections.ConfigDict:
    """The config that a run's record keeps; keys that are newer than the run have their defaults."""

    def merged(default: Any, kept: Any) -> Any:
        if isinstance(default, dict):
            return {key: merged(value, kept.get(key, value)) for key, value in default.items()}
        return tuple(kept) if isinstance(kept, list) else kept

    return ml_collections.ConfigDict(merged(get_config().to_dict(), record.config))


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The resolved config as plain JSON values."""
    return json.loads(json.dumps(config.to_dict()))


def dataset(config: ml_collections.ConfigDict, split: str) -> Dataset:
    """One split of the data; fails within seconds if it cannot be had."""
    options = given(config.data, "name", "memory_limit_gib", "flip")
    limit = config.data.memory_limit_gib
    if limit is not None:
        require(limit > 0, "data.memory_limit_gib", limit, "positive")
        options["memory_limit_bytes"] = math.ceil(limit * 2**30)
    return construct("data", config.data.name, load, options, name=config.data.name, split=split)


def process(config: ml_collections.ConfigDict) -> sde.LinearSDE:
    """The SDE."""
    name = config.sde.name
    require_choice("sde.name", name, SDES)
    return construct("sde", name, SDES[name], given(config.sde, "name"))


def model(
    config: ml_collections.ConfigDict,
    data_shape: tuple[int, ...],
    num_classes: int,
    statistics: Statistics = Statistics(),  # noqa: B008
) -> Model:
    """The SDE and the network for data of this shape.

    Args:
      config: the experiment.
      data_shape: (H, W, C) of a picture or (d,) of a vector.
      num_classes: of the training data.
      statistics: of the training data; without their mean, or where `model.standardize` is False, vectors are taken as
        they are.
    """
    c = config.model
    if c.standardize is False:
        statistics = dataclasses.replace(statistics, mean=(), std=())
    require_choice("model.name", c.name, NETWORKS)
    require_choice("model.dtype", c.dtype, DTYPES)
    require_choice("model.parameterization", c.parameterization, parameterization.PARAMETERIZATIONS)
    require_choice("model.conditioning", c.conditioning, parameterization.CONDITIONINGS)
    require(c.sigma_data > 0, "model.sigma_data", c.sigma_data, "positive")
    require(
        not c.class_conditional or num_classes > 0, "model.class_conditional", True, "False for data without labels"
    )
    own = (
        *("name", "dtype", "parameterization", "conditioning", "sigma_data", "standardize"),
        *("class_conditional", "label_dropout", *_CONDITIONING),
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
    images = {"ncsnpp": True, "mlp": False}[c.name]
    require(images == (len(data_shape) == 3), "model.name", c.name, f"a network for data of shape {data_shape}")
    if images:
        check_image_shape(*data_shape[:2], len(network.channel_multipliers))
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
        conditioning=_conditioning(c),
        sigma_data=c.sigma_data,
        label_dropout=c.label_dropout or 0.0,
        statistics=statistics,
    )


def _conditioning(c: ml_collections.ConfigDict) -> Callable[[sde.LinearSDE, jax.Array], jax.Array]:
    """What the network is conditioned on, with its options."""
    options = {key: c[key] for key in _CONDITIONING if c[key] is not None}
    if not options:
        return parameterization.CONDITIONINGS[c.conditioning]
    takes = {"discrete_time": parameterization.discrete_time, "ve_noise": parameterization.ve_noise_from}
    found = takes.get(c.conditioning)
    known = found is not None and set(options) <= set(inspect.signature(found).parameters)
    require(known, "model.conditioning", c.conditioning, f"one that has {', '.join(options)}, or leave these unset")
    return construct("model", c.name, found, options)


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


def any_process(config: ml_collections.ConfigDict) -> bool:
    """Whether the model is a denoiser that samples by another process than it was trained with, of any order."""
    return parameterization.is_denoiser(config.model.parameterization, config.model.conditioning)


def loss(config: ml_collections.ConfigDict) -> ScoreLoss:
    """The per-example loss with its options bound."""
    c = config.loss
    require_choice("loss.name", c.name, losses.LOSSES)
    require_choice("loss.weighting", c.weighting, losses.WEIGHTINGS)
    require_choice("loss.time_law", c.time_law, losses.TIME_LAWS)
    law = losses.TIME_LAWS[c.time_law]
    normal = given(c, "name", "weighting", "time_law", "stratified", "t_min")
    if normal:
        require(c.time_law == "log_normal", "loss.time_law", c.time_law, f"'log_normal' to use {sorted(normal)}")
        require(c.time_std is None or c.time_std > 0, "loss.time_std", c.time_std, "positive")
        law = losses.log_normal(**{key.removeprefix("time_"): value for key, value in normal.items()})
    if c.t_min is not None:
        end = process(config).T
        require(0 < c.t_min < end, "loss.t_min", c.t_min, f"between 0 and T = {end}")
    return functools.partial(
        losses.LOSSES[c.name],
        weighting=losses.WEIGHTINGS[c.weighting],
        sigma_data=config.model.sigma_data,
        time_law=law,
        stratified=c.stratified,
        t_min=c.t_min,
    )


def optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam with its learning-rate schedule."""
    c = config.optimizer
    rate = construct(
        "optimizer",
        "adam",
        learning_rate_schedule,
        {"learning_rate": c.learning_rate, "warmup_steps": c.warmup_steps, "schedule": c.schedule},
        num_steps=config.training.num_steps,
    )
    options = {key: c[key] for key in ("b1", "b2", "eps", "weight_decay", "clip_norm")}
    return construct("optimizer", "adam", adam, options, learning_rate=rate)


def training(config: ml_collections.ConfigDict) -> TrainSettings:
    """How long and how often."""
    options = given(config.training, "report")
    return TrainSettings(seed=config.seed, flip=config.data.flip, **options)


def sampling(config: ml_collections.ConfigDict) -> SampleSettings:
    """How samples are drawn."""
    c = config.sampling
    require_choice("sampling.name", c.name, samplers.SAMPLERS)
    require_choice("sampling.grid", c.grid, samplers.GRIDS)
    settings = {field.name for field in dataclasses.fields(SampleSettings)}
    own = given(c, "name", "grid", "rho", "times", "checkpoint", *settings)
    sampler = construct("sampling", c.name, samplers.SAMPLERS[c.name], own)
    grid = samplers.GRIDS[c.grid]
    if c.rho is not None:
        require(c.grid == "karras", "sampling.grid", c.grid, "'karras' to use sampling.rho")
        grid = functools.partial(grid, rho=c.rho)
    if c.times is not None:
        require(c.rho is None, "sampling.rho", c.rho, "None with times of your own")
        grid = tuple(c.times)
    bound = {key: c[key] for key in settings - {"sampler", "grid", "seed"}}
    return SampleSettings(sampler=sampler, grid=grid, seed=config.seed, **bound)


def evaluation(config: ml_collections.ConfigDict) -> EvalSettings:
    """What is evaluated."""
    c = config.eval
    options = {key: c[key] for key in ("batch_size", "repeats", "num_samples", "neighbors")}
    stats = None if c.stats is None else storage.path(c.stats, "eval.stats")
    bits = likelihood(config) if c.likelihood else None
    return EvalSettings(seed=config.seed, stats=stats, likelihood=bits, **options)


def likelihood(config: ml_collections.ConfigDict) -> LikelihoodSettings:
    """How bits per dimension are computed."""
    c = config.likelihood
    solver = {field.name for field in dataclasses.fields(ode.Solver)}
    own = {key: c[key] for key in solver & set(c)}
    settings = {key: value for key, value in c.items() if key not in solver}
    return LikelihoodSettings(seed=config.seed, solver=construct("likelihood", c.solver, ode.Solver, own), **settings)


def feature_networks(
    config: ml_collections.ConfigDict, load_train: Callable[[], Dataset], folder: Path
) -> list[FeatureNetwork]:
    """What samples are compared in; trains the classifier, if it is asked for and not in `folder` yet."""
    known = {
        "classifier": lambda: classifier(load_train(), folder),
        "inception": lambda: inception(_inception_weights(config), "eval.inception"),
        "pixels": pixels,
    }
    chosen = names(config.eval.features)
    for name in chosen:
        require_choice("eval.features", name, known)
    return [known[name]() for name in chosen]


def _inception_weights(config: ml_collections.ConfigDict) -> str:
    path = config.eval.inception
    require(
        path is not None,
        "eval.inception",
        path,
        "the path of pt_inception-2015-12-05-6726825d.pth (github.com/mseitzer/pytorch-fid/releases) or of the .npz "
        "that python -m hold_jax.convert makes of it; without it take --config.eval.features=classifier",
    )
    storage.require_local(path, "eval.inception")
    return path


def checkpoint_steps(config: ml_collections.ConfigDict) -> list[int] | None:
    """What to evaluate: None for the newest checkpoint, an empty list for all, or steps."""
    text = config.eval.checkpoints
    if text in ("newest", "all"):
        return None if text == "newest" else []
    steps = names(text)
    require(
        bool(steps) and all(step.isdecimal() for step in steps),
        "eval.checkpoints",
        text,
        "newest, all, or steps like 10000,20000",
    )
    return [int(step) for step in steps]


def names(text: str) -> list[str]:
    """What a comma-separated list names."""
    return [name for name in (part.strip() for part in text.split(",")) if name]


def workdir(path: str) -> Path:
    """The work directory as an absolute path (Orbax needs one), or gs://BUCKET/PATH."""
    require(bool(path), "workdir", path, "a folder: pass --workdir=DIR")
    return storage.path(path)
