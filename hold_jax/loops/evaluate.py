"""Evaluate a checkpoint: the loss and the likelihood of held-out data, and how near samples are to data."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.data import Dataset, eval_batches
from hold_jax.data.dataset import array_dataset
from hold_jax.errors import require
from hold_jax.evaluation import figures, reference
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.evaluation.features import features_of
from hold_jax.loops.generate import GRID_MAX, SampleSettings, draw_blocks, picture
from hold_jax.loops.likelihood import LikelihoodSettings, bits_per_dim
from hold_jax.metrics.neighbors import nearest
from hold_jax.model import Model
from hold_jax.runtime import distributed, pictures
from hold_jax.runtime.log import log_results
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.progress import Progress
from hold_jax.runtime.resumable import PartialRows
from hold_jax.runtime.storage import Path
from hold_jax.samplers.grids import times_of
from hold_jax.training.step import ScoreLoss

FOLDER = "eval"
_NEIGHBORS = 7


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """What is evaluated.

    Attributes:
      batch_size: test examples at once for the loss, over all devices.
      repeats: how many times each test example is perturbed for the loss.
      num_samples: samples that are compared with the data; None: as many as there are test examples; 0: none.
      stats: reference statistics in a file; None: those of the training data.
      neighbors: samples to show beside the training pictures nearest to them; 0: none.
      likelihood: how bits per dimension are computed; None: not.
      seed: of times and noise.
    """

    batch_size: int
    repeats: int
    num_samples: int | None
    stats: Path | None
    neighbors: int
    likelihood: LikelihoodSettings | None
    seed: int

    def __post_init__(self):
        require(self.repeats >= 1, "eval.repeats", self.repeats, "1 or more")
        enough = self.num_samples is None or self.num_samples == 0 or self.num_samples >= 2
        require(enough, "eval.num_samples", self.num_samples, "None, 0, or 2 or more")
        require(self.neighbors >= 0, "eval.neighbors", self.neighbors, "0 or more")


def check(settings: EvalSettings, networks: Sequence[FeatureNetwork], test: Dataset, devices: Devices) -> None:
    """Finds what cannot work, before hours of sampling.

    Raises:
      UserError: naming the setting.
    """
    devices.require_divides("eval.batch_size", settings.batch_size)
    if settings.likelihood is not None:
        devices.require_divides("likelihood.batch_size", settings.likelihood.batch_size)
    if settings.stats is not None and settings.num_samples != 0:
        require(len(networks) == 1, "eval.features", [n.name for n in networks], "one network, to use eval.stats")
        reference.require_fits(reference.load(settings.stats), settings.stats, networks[0], test)


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
    networks: Sequence[FeatureNetwork],
    load_train: Callable[[], Dataset],
) -> dict[str, float]:
    """Computes every figure, appends one line to `workdir`/results.jsonl and returns it.

    Samples, and the likelihoods of examples, are kept in `workdir`/eval/step_N as they are computed: killed, the same
    call goes on where it was. Figures do not depend on how samples were batched, nor on the number of devices, as
    far as the network's own arithmetic does not.

    Args:
      model: what was trained.
      loss: per-example loss with its options bound.
      params: averaged parameters.
      test: held-out data.
      settings: what to compute.
      sampling: how to draw the samples that are compared with the data.
      workdir: of the run.
      step: of the checkpoint.
      networks: in whose features samples are compared with data.
      load_train: gives the training data; called only where they are needed.
    """
    devices = Devices.all()
    check(settings, networks, test, devices)
    folder = workdir / FOLDER / f"step_{step}"
    weights = _digest(*jax.tree.leaves(jax.tree.map(np.asarray, params)))
    results: dict[str, float] = {"step": step}
    images: dict[str, Any] = {}
    results |= test_loss(model, loss, params, test, settings, devices)
    num = len(test) if settings.num_samples is None else settings.num_samples
    if num:
        began = time.monotonic()
        x = sample_rows(model, params, sampling, devices, folder, weights, num=num)
        results |= {"num_samples": num, "sampling_seconds": time.monotonic() - began}
        found, images = compare(x, settings, networks, workdir, devices, test=test, load_train=load_train)
        results |= found
    if settings.likelihood is not None:
        results |= _likelihood(model, params, test, settings.likelihood, devices, folder, weights)
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)  # also where there is no picture; in a bucket it does nothing
        for name, image in images.items():
            pictures.write_png(image, folder / f"{name}.png")
        log_results(workdir, results, images)
    return results


def test_loss(
    model: Model, loss: ScoreLoss, params: Any, dataset: Dataset, settings: EvalSettings, devices: Devices
) -> dict[str, float]:
    """Mean and standard error of the loss per data dimension, each example weighing the same."""
    devices.require_divides("eval.batch_size", settings.batch_size)

    @jax.jit
    def of_batch(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        eps_fn = model.eps_fn(params, labels=batch["label"])
        keys = jax.random.split(key, settings.repeats)
        x = model.to_model(batch["x"])
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


def sample_rows(
    model: Model, params: Any, settings: SampleSettings, devices: Devices, folder: Path, weights: str, *, num: int
) -> np.ndarray:
    """`num` samples as data, uint8 pictures or float32 vectors; those already in `folder` are not drawn again."""
    times = times_of(
        model.sde, settings.grid, model.sde.t_min if settings.t_min is None else settings.t_min, settings.num_steps
    )
    options = (settings.sampler, settings.denoise, settings.label, settings.guidance, settings.seed)
    name = _digest(weights, *map(repr, options), times, *_matrices(model))
    rows = PartialRows(folder / f"samples_{name}", num)
    with Progress(num, rows.count, 1, distributed.is_main(), unit="sample") as progress:
        progress.update(rows.count)
        for x, _ in draw_blocks(model, params, settings, devices, start=rows.count, stop=num):
            rows.append(x)
            progress.update(rows.count)
    return rows.array()


def compare(
    x: np.ndarray,
    settings: EvalSettings,
    networks: Sequence[FeatureNetwork],
    workdir: Path,
    devices: Devices,
    *,
    test: Dataset,
    load_train: Callable[[], Dataset],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of samples x (N, *shape) against the data, and pictures of them."""
    samples = array_dataset("samples", "test", x, None, 0)
    held_out = array_dataset(test.name, "test", test.gather(np.arange(min(len(x), len(test))))["x"], None, 0)
    results: dict[str, float] = {}
    for network in networks:
        if settings.stats is None:
            target = reference.prepare(network, load_train(), workdir, devices)
        else:
            target = reference.load(settings.stats)
        found = features_of(network, samples, devices)
        if len(x) <= found.values.shape[1]:
            distributed.say(
                f"warning: {len(x)} samples for {found.values.shape[1]} {network.name} features: their covariance is "
                f"singular, and {network.distance} far above what more samples give; compare it at equal numbers only"
            )
        results |= figures.compute(network, found, target)
        results |= figures.floor(network, features_of(network, held_out, devices), target)
    if x.shape[1:] == (2,):
        results |= figures.in_the_plane(x, load_train(), held_out.source)
    if x.ndim == 2:
        return results, {"samples": picture(x, reference=held_out.source)}
    images = {"samples": pictures.image_grid(x[:GRID_MAX])}
    if settings.neighbors:
        images["neighbors"] = neighbors(x[: settings.neighbors], load_train())
    return results, images


def neighbors(x: np.ndarray, train: Dataset) -> Any:
    """Each sample (N, H, W, C) in a row of its own, beside the training pictures nearest to it in pixels."""
    blocks = (batch["x"][batch["mask"]] for batch in eval_batches(train, batch_size=1000))
    flat = (block.reshape(len(block), -1) for block in blocks)
    index = nearest(x.reshape(len(x), -1), flat, min(_NEIGHBORS, len(train))).indices
    rows = [np.concatenate([x[i : i + 1], train.gather(index[i])["x"]]) for i in range(len(x))]
    return pictures.image_grid(np.concatenate(rows), columns=index.shape[1] + 1)


def _likelihood(
    model: Model,
    params: Any,
    test: Dataset,
    settings: LikelihoodSettings,
    devices: Devices,
    folder: Path,
    weights: str,
) -> dict[str, float]:
    num = len(test) if settings.num_examples is None else min(settings.num_examples, len(test))
    options = dataclasses.replace(settings, num_examples=None, batch_size=1)
    name = _digest(weights, repr(options), test.name, test.split, *_matrices(model))
    rows = PartialRows(folder / f"likelihood_{name}", num)
    began = time.monotonic()
    with Progress(num, rows.count, 1, distributed.is_main(), unit="likelihood") as progress:
        found = bits_per_dim(model, params, test, settings, devices, rows, tick=progress.update)
    return found | {"likelihood_seconds": time.monotonic() - began}


def _matrices(model: Model) -> tuple[Any, ...]:
    sde = model.sde
    return (sde.F, sde.G, sde.cov0, sde.prior_cov, repr(sde.schedule), repr(sde.T))


def _digest(*parts: Any) -> str:
    """A short name of texts and arrays."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
    return found.hexdigest()[:12]
