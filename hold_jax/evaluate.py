"""Evaluate a checkpoint: the loss on held-out data, and how far samples are from data."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.data import Dataset, eval_batches, to_model_range
from hold_jax.errors import require
from hold_jax.metrics.frechet import frechet_distance, moments
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein
from hold_jax.model import Model
from hold_jax.sample import SampleSettings, draw_many
from hold_jax.training.mesh import Devices
from hold_jax.training.step import ScoreLoss

RESULTS_FILE = "results.jsonl"
# Above this size a Frechet distance of raw values needs more samples than anyone draws.
_RAW_DIMENSIONS_MAX = 256


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """What is evaluated.

    Attributes:
      batch_size: examples at once, over all devices.
      repeats: how many times each test example is perturbed for the loss.
      num_samples: samples for the distances to the data; None: as many as there are test examples; 0: none.
      seed: of times, noise and samples.
    """

    batch_size: int
    repeats: int
    num_samples: int | None
    seed: int

    def __post_init__(self):
        require(self.repeats >= 1, "eval.repeats", self.repeats, "1 or more")
        enough = self.num_samples is None or self.num_samples == 0 or self.num_samples >= 2
        require(enough, "eval.num_samples", self.num_samples, "None, 0, or 2 or more")


def test_loss(
    model: Model, loss: ScoreLoss, params: Any, dataset: Dataset, settings: EvalSettings, devices: Devices
) -> dict[str, float]:
    """Mean and standard error of the loss per data dimension, each example weighing the same."""
    devices.require_divides("eval.batch_size", settings.batch_size)

    @jax.jit
    def of_batch(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        eps_fn = model.eps_fn(params, labels=batch["label"])
        keys = jax.random.split(key, settings.repeats)
        x = to_model_range(batch["x"])
        values = jax.lax.map(lambda k: loss(model.sde, eps_fn, x, k), keys)
        return jnp.where(batch["mask"], jnp.mean(values, axis=0) / np.prod(model.data_shape), 0.0)

    key = jax.random.key(settings.seed)
    values: list[np.ndarray] = []
    local = eval_batches(
        dataset,
        batch_size=settings.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    gather = jax.jit(lambda a: a, out_shardings=devices.replicated)
    for i, batch in enumerate(local):
        values.append(np.asarray(gather(of_batch(params, devices.put(batch), jax.random.fold_in(key, i)))))
    each = np.concatenate(values)[: len(dataset)].astype(np.float64)
    return {"test_loss": each.mean(), "test_loss_error": each.std(ddof=1) / np.sqrt(len(each))}


def distances(samples: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Distances (N, d) of samples to the training data, beside those of the test data: the floor at that size.

    `frechet_raw` is the squared Frechet distance between raw values (no network; not a FID);
    `sliced_wasserstein` (two dimensions only) is of order 2.
    """
    rows = {"": samples, "_floor": test}
    found = {f"frechet_raw{name}": frechet_distance(moments(x), moments(train)) for name, x in rows.items()}
    if samples.shape[1] == 2:
        found |= {f"sliced_wasserstein{name}": sliced_wasserstein(x, train) for name, x in rows.items()}
    return found


def evaluate(
    model: Model,
    loss: ScoreLoss,
    params: Any,
    test: Dataset,
    settings: EvalSettings,
    sampling: SampleSettings,
    workdir: Path,
    *,
    step: int,
    load_train: Callable[[], Dataset],
) -> dict[str, float]:
    """Computes every figure, appends one line to `workdir`/results.jsonl and returns it.

    Args:
      model: what was trained.
      loss: per-example loss with its options bound.
      params: averaged parameters.
      test: held-out data.
      settings: what to compute.
      sampling: how to draw the samples that are compared with the data.
      workdir: of the run.
      step: of the checkpoint.
      load_train: gives the training data; called only where samples are compared with it.
    """
    devices = Devices.all()
    results: dict[str, float] = {"step": step}
    results |= test_loss(model, loss, params, test, settings, devices)
    small = np.prod(model.data_shape) <= _RAW_DIMENSIONS_MAX and test.in_memory
    num = len(test) if settings.num_samples is None else settings.num_samples
    train = load_train() if small and num else None
    if train is not None and train.in_memory:
        began = time.monotonic()
        x, _ = draw_many(model, params, sampling, devices, num=num)

        def flat(values: np.ndarray) -> np.ndarray:
            return np.asarray(values, np.float64).reshape(len(values), -1)

        results |= distances(flat(x), flat(to_model_range(train.source)), flat(to_model_range(test.source[:num])))
        results |= {"num_samples": num, "sampling_seconds": time.monotonic() - began}
    if jax.process_index() == 0:
        with (workdir / RESULTS_FILE).open("a") as file:
            file.write(json.dumps(results) + "\n")
    return results
