"""The modes of `main.py`: each builds what it needs from the config, then calls one loop."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from hold_jax.app import build
from hold_jax.data import Dataset, Statistics, measure
from hold_jax.errors import require
from hold_jax.evaluation import figures, reference
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.loops.evaluate import EvalSettings, Evaluator
from hold_jax.loops.generate import make_draw, sample
from hold_jax.loops.train import check, train
from hold_jax.model import Model
from hold_jax.runtime import distributed, storage, workdir
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.storage import Path
from hold_jax.training.checkpoint import Checkpoints, abstract_state
from hold_jax.training.state import init_state


def run_train(config: ml_collections.ConfigDict, folder: str) -> None:
    """Trains, then samples and evaluates the result (config.training.report)."""
    _require_same(config, folder)
    with contextlib.ExitStack() as held:
        with distributed.together():
            path = build.workdir(folder)
            loss, optimizer = build.loss(config), build.optimizer(config)
            settings, sampling, evaluation = build.training(config), build.sampling(config), build.evaluation(config)
            build.process(config)
            data = build.dataset(config, "train")
            # A run that goes on keeps what it measured when it began.
            began = storage.exists(path / workdir.RECORD_FILE)
            statistics = build.statistics(workdir.read(path)) if began else measure(data)
            model = _model(config, data.shape, data.num_classes, statistics)
            check(model, loss, optimizer, data, settings, sampling)
            if config.training.report:
                # The report comes after hours of work: what it needs is checked, and made, now.
                held_out = _dataset(config, "test", data.shape)
                Devices.all().require_divides("eval.batch_size", evaluation.batch_size)
            if distributed.is_main():
                held.enter_context(workdir.locked(path))
                workdir.open_for_training(path, build.record(config, data, statistics))
        with distributed.together():
            workdir.require_shared(path)
        if config.training.report:
            networks = _networks(config, evaluation, lambda: data, path)
            evaluator = Evaluator(model, loss, held_out, lambda: data, networks, evaluation, sampling, path)
            evaluator.check()

        state = train(model, loss, optimizer, data, settings, sampling, path)
        step = int(state.step)
        if step < settings.num_steps:
            distributed.say(f"stopped at step {step:,} of {settings.num_steps:,}: the same command goes on from there")
        elif config.training.report:
            _announce(sample(model, state.ema, sampling, path, step=step, reference=_vectors(data)))
            _print_results(evaluator.evaluate(state.ema, step=step))


def run_sample(config: ml_collections.ConfigDict, folder: str) -> None:
    """Draws samples from a checkpoint."""
    _require_same(config, folder)
    path = build.workdir(folder)
    found = workdir.require_model(path, build.as_json(config), any_process=build.any_process(config))
    sampling = build.sampling(config)
    model = _model(config, found.data_shape, found.num_classes, build.statistics(found))
    make_draw(model, sampling, Devices.all())
    asked = config.sampling.checkpoint
    for step, params in _averages(config, model, path, None if asked is None else [asked]):
        _announce(sample(model, params, sampling, path, step=step))


def run_eval(config: ml_collections.ConfigDict, folder: str) -> None:
    """Reports the test loss, distances of samples to the data and, if asked for, bits per dimension."""
    _require_same(config, folder)
    path = build.workdir(folder)
    found = workdir.require_model(path, build.as_json(config), any_process=build.any_process(config))
    loss, evaluation = build.loss(config), build.evaluation(config)
    sampling = dataclasses.replace(build.sampling(config), frames=0)
    model = _model(config, found.data_shape, found.num_classes, build.statistics(found))
    held_out = _dataset(config, "test", found.data_shape)
    load_train = functools.cache(lambda: _dataset(config, "train", found.data_shape))
    make_draw(model, sampling, Devices.all())
    averages = _averages(config, model, path, build.checkpoint_steps(config))
    first = next(averages)
    networks = _networks(config, evaluation, load_train, path)
    evaluator = Evaluator(model, loss, held_out, load_train, networks, evaluation, sampling, path)
    evaluator.check()
    for step, params in itertools.chain([first], averages):
        _print_results(evaluator.evaluate(params, step=step))


def run_stats(config: ml_collections.ConfigDict, folder: str) -> None:
    """Computes and keeps the reference statistics of the training data, for each of config.eval.features."""
    _require_same(config, folder)
    path = build.workdir(folder)
    data = build.dataset(config, "train")
    for network in build.feature_networks(config, lambda: data, path):
        reference.prepare(network, data, path, Devices.all())
        if distributed.is_main():
            print(reference.stats_path(path, network, data), flush=True)


def cache_compilations(where: str, folder: str) -> None:
    """Keeps compiled programs in a folder, so that a run that goes on does not wait for them again.

    It also makes a GPU's program the same one after a restart, whatever its autotuner would find now.

    Args:
      where: a folder; "off"; or "auto": `folder`/compilation_cache on accelerators, off on CPUs, whose programs may
        not run on another machine that shares the folder. A folder set by JAX_COMPILATION_CACHE_DIR wins over auto.
      folder: the work directory.
    """
    chosen = jax.config.jax_compilation_cache_dir is not None
    if where == "off":
        jax.config.update("jax_compilation_cache_dir", None)
        return
    if where == "auto" and (chosen or jax.default_backend() == "cpu"):
        return
    auto = where == "auto"
    path = build.workdir(folder) / "compilation_cache" if auto else storage.path(where, "compilation_cache")
    if not storage.is_local(path):
        # JAX gives XLA a folder in this one for its autotuner, whose C++ knows no gs:// and fails to compile with it.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(path))


MODES = {"train": run_train, "sample": run_sample, "eval": run_eval, "stats": run_stats}


def _require_same(config: ml_collections.ConfigDict, folder: str) -> None:
    """Stops all processes before they wait for each other with different programs."""
    distributed.require_same({"workdir": folder, **workdir.flatten(build.as_json(config))})


def _model(
    config: ml_collections.ConfigDict, data_shape: tuple[int, ...], num_classes: int, statistics: Statistics
) -> Model:
    """The model, in float32 where the devices have no bfloat16; parameters are float32 either way."""
    if config.model.dtype == "bfloat16" and not Devices.all().have_bfloat16():
        kind = jax.devices()[0].device_kind
        distributed.say(f"model.dtype is bfloat16, which {kind} has not: computing in float32")
        config = config.copy_and_resolve_references()
        config.model.dtype = "float32"
    return build.model(config, data_shape, num_classes, statistics)


def _dataset(config: ml_collections.ConfigDict, split: str, shape: tuple[int, ...]) -> Dataset:
    """A split that must have the shape the model was made for."""
    data = build.dataset(config, split)
    require(
        data.shape == shape,
        "data.name",
        config.data.name,
        f"data of shape {shape}; its {split} split's is {data.shape}",
    )
    return data


def _networks(
    config: ml_collections.ConfigDict, settings: EvalSettings, load_train: Callable[[], Dataset], path: Path
) -> list[FeatureNetwork]:
    """What samples are compared in, if any are drawn."""
    return [] if settings.num_samples == 0 else build.feature_networks(config, load_train, path)


def _averages(
    config: ml_collections.ConfigDict, model: Model, path: Path, steps: list[int] | None
) -> Iterator[tuple[int, Any]]:
    """The averaged parameters of checkpoints in turn: of `steps`, of all (an empty list), or of the newest (None)."""
    optimizer = build.optimizer(config)
    abstract = abstract_state(lambda: init_state(model, optimizer, config.seed), Devices.all().replicated)
    with Checkpoints.open_to_read(path) as checkpoints:
        chosen = [checkpoints.latest()] if steps is None else steps or checkpoints.steps() or [None]
        for step in chosen:
            state = checkpoints.restore(abstract, step)
            yield int(state.step), state.ema


def _vectors(data: Dataset) -> np.ndarray | None:
    """Data to draw beside samples: vectors only, a grid of pictures speaks for itself."""
    if data.is_image:
        return None
    some = data.subset(20_000)
    return some.gather(np.arange(len(some)))["x"]


def _announce(folder: Any) -> None:
    distributed.say(f"samples: {folder}")


def _print_results(results: dict[str, float]) -> None:
    if distributed.is_main():
        print(figures.table(results), flush=True)
