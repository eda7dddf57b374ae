"""The modes of `main.py`: each builds what it needs from the config, then calls one loop."""

import functools
import sys
from typing import Any

import jax
import ml_collections
import numpy as np

from hold_jax import build, workdir
from hold_jax.data import Dataset, to_model_range
from hold_jax.errors import require
from hold_jax.evaluate import evaluate
from hold_jax.model import Model
from hold_jax.sample import make_draw, sample
from hold_jax.train import check, train
from hold_jax.training.checkpoint import Checkpoints, abstract_state
from hold_jax.training.mesh import Devices
from hold_jax.training.state import init_state


def run_train(config: ml_collections.ConfigDict, folder: str) -> None:
    """Trains, then samples and evaluates the result (config.training.report)."""
    path = build.workdir(folder)
    loss, optimiser = build.loss(config), build.optimiser(config)
    settings, sampling, evaluation = build.training(config), build.sampling(config), build.evaluation(config)
    build.process(config)
    data = build.dataset(config, "train")
    model = build.model(config, data.shape, data.num_classes)
    check(model, loss, optimiser, data, settings, sampling)
    if config.training.report:
        # The report comes after hours of work: what it needs is checked now.
        held_out = _dataset(config, "test", data.shape)
        Devices.all().require_divides("eval.batch_size", evaluation.batch_size)
    workdir.open_for_training(path, build.record(config, data))

    state = train(model, loss, optimiser, data, settings, sampling, path)
    if config.training.report:
        step = int(state.step)
        _announce(sample(model, state.ema, sampling, path, step=step, reference=_vectors(data)))
        results = evaluate(
            model, loss, state.ema, held_out, evaluation, sampling, path, step=step, load_train=lambda: data
        )
        _print_results(results)


def run_sample(config: ml_collections.ConfigDict, folder: str) -> None:
    """Draws samples from a checkpoint."""
    path = build.workdir(folder)
    found = workdir.require_model(path, build.as_json(config))
    sampling = build.sampling(config)
    model = build.model(config, found.data_shape, found.num_classes)
    make_draw(model, sampling, Devices.all())
    step, params = _restore(config, model, path)
    _announce(sample(model, params, sampling, path, step=step))


def run_eval(config: ml_collections.ConfigDict, folder: str) -> None:
    """Reports the test loss and, for small data, distances of samples to the data."""
    path = build.workdir(folder)
    found = workdir.require_model(path, build.as_json(config))
    loss, sampling, evaluation = build.loss(config), build.sampling(config), build.evaluation(config)
    model = build.model(config, found.data_shape, found.num_classes)
    held_out = _dataset(config, "test", found.data_shape)
    make_draw(model, sampling, Devices.all())
    Devices.all().require_divides("eval.batch_size", evaluation.batch_size)
    step, params = _restore(config, model, path)
    load_train = functools.partial(_dataset, config, "train", found.data_shape)
    _print_results(
        evaluate(model, loss, params, held_out, evaluation, sampling, path, step=step, load_train=load_train)
    )


MODES = {"train": run_train, "sample": run_sample, "eval": run_eval}


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


def _restore(config: ml_collections.ConfigDict, model: Model, path: Any) -> tuple[int, Any]:
    """The step and the averaged parameters of the checkpoint the config asks for (None: the newest)."""
    optimiser = build.optimiser(config)
    abstract = abstract_state(lambda: init_state(model, optimiser, config.seed), Devices.all().replicated)
    with Checkpoints.open_to_read(path) as checkpoints:
        state = checkpoints.restore(abstract, config.sampling.checkpoint)
    return int(state.step), state.ema


def _vectors(data: Dataset) -> np.ndarray | None:
    """Data to draw beside samples: vectors only, a grid of pictures speaks for itself."""
    return None if data.is_image else np.asarray(to_model_range(data.source[:20_000]))


def _announce(folder: Any) -> None:
    if jax.process_index() == 0:
        print(f"samples: {folder}", file=sys.stderr)


def _print_results(results: dict[str, float]) -> None:
    if jax.process_index() == 0:
        width = max(map(len, results))
        print("\n".join(f"{name:<{width}}  {value:.6g}" for name, value in results.items()), flush=True)
