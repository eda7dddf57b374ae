"""What a mode prints of its results, and the report at the end of training."""

from typing import Any

import numpy as np

from hold_jax.app import build, prepare
from hold_jax.app.config import Config
from hold_jax.data import Dataset
from hold_jax.evaluation import report
from hold_jax.loops.evaluate import Evaluator
from hold_jax.loops.generate import generate
from hold_jax.model import Model
from hold_jax.runtime import distributed
from hold_jax.runtime.log import RESULTS_FILE
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.storage import Path


class Report:
    """Samples and figures at the end of training. It comes after hours of work: its needs are checked before."""

    def __init__(self, config: Config, path: Path, model: Model, data: Dataset):
        self._config, self._path, self._model, self._data = config, path, model, data
        self._sampling, self._settings = build.sampling(config), build.evaluation(config)
        self._held_out = prepare.dataset(config, "test", model)
        Devices.all().require_divides("eval.batch_size", self._settings.batch_size)
        self._evaluator: Evaluator | None = None

    def prepare(self) -> None:
        """Makes the feature networks; call it once the work directory can be written."""
        networks = prepare.feature_networks(self._config, self._settings, lambda: self._data, self._path)
        self._evaluator = Evaluator(
            self._model,
            build.loss(self._config),
            self._held_out,
            lambda: self._data,
            networks,
            self._settings,
            self._sampling,
            self._path,
        )
        self._evaluator.check()

    def make(self, step: int, params: Any) -> None:
        """Draws the samples and computes the figures of averaged parameters; call it after `prepare`."""
        assert self._evaluator is not None
        folder = generate(
            self._model,
            params,
            self._sampling,
            self._path,
            step=step,
            reference=_reference(self._data),
            conditions=build.conditions(self._config, self._model, lambda: self._held_out),
        )
        print_folder(folder)
        print_figures(self._evaluator.evaluate(params, step=step), self._path, self._evaluator.folder(step))


def _reference(data: Dataset) -> np.ndarray | None:
    """Data to plot beside samples of vectors and signals; none for pictures and arrays."""
    if data.kind not in ("vector", "signal"):
        return None
    some = data.subset(20_000 if data.kind == "vector" else 64)
    return some.gather(np.arange(len(some)))["x"]


def print_folder(folder: Path) -> None:
    """Prints where samples were drawn."""
    distributed.say(f"samples: {folder / 'grid.png'}")


def print_figures(results: dict[str, float], path: Path, folder: Path) -> None:
    """Prints the most important figures, and where the others are: in the work directory, and in its `folder`."""
    if distributed.is_main():
        num = f", {results['num_samples']:,.0f} samples" if "num_samples" in results else ""
        print(
            f"step {int(results['step']):,}{num}:",
            *report.lines(report.rows(results)),
            f"all figures: {path / RESULTS_FILE}; pictures: {folder}",
            sep="\n",
            flush=True,
        )
