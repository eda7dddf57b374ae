"""Evaluate a checkpoint: the loss and the likelihood of held-out data, and distances of samples to data."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.condition import conditions_of
from hold_jax.data import Dataset, eval_batches
from hold_jax.data.dataset import array_dataset
from hold_jax.errors import require, require_choice
from hold_jax.evaluation import figures, reference
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.evaluation.features import features_of
from hold_jax.loops import conditions, likelihood, origin
from hold_jax.loops.draw import Drawn, SampleSettings, make_draw
from hold_jax.loops.generate import draw_rows, picture
from hold_jax.loops.likelihood import LikelihoodSettings
from hold_jax.metrics.neighbors import nearest
from hold_jax.model import Model
from hold_jax.runtime import distributed, pictures, storage
from hold_jax.runtime.log import log_results
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.progress import Progress
from hold_jax.runtime.resumable import PartialRows
from hold_jax.runtime.storage import Path
from hold_jax.samplers.grids import times_of
from hold_jax.training.step import ScoreLoss

FOLDER = "eval"
SPLITS = ("test", "train", "both")
_NEIGHBORS = 7


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """What is evaluated.

    Attributes:
      batch_size: perturbed test examples at once for the loss, over all devices; the loss does not depend on it.
      repeats: how many times each test example is perturbed for the loss.
      num_samples: samples that are compared with the data; None: as many as there are test examples; 0: none.
      stats: reference statistics in a file; None: those of the training data.
      neighbors: samples to show beside the training pictures nearest to them; 0: none.
      likelihood: how bits per dimension are computed; None: not.
      seed: of times and noise.
      split: whose loss and likelihood are computed, one of `SPLITS`; of the training split, as many random examples as
        the test split has.
    """

    batch_size: int
    repeats: int
    num_samples: int | None
    stats: Path | None
    neighbors: int
    likelihood: LikelihoodSettings | None
    seed: int
    split: str = "test"

    def __post_init__(self):
        require(self.repeats >= 1, "eval.repeats", self.repeats, "1 or more")
        enough = self.num_samples is None or self.num_samples == 0 or self.num_samples >= 2
        require(enough, "eval.num_samples", self.num_samples, "None, 0, or 2 or more")
        require(self.neighbors >= 0, "eval.neighbors", self.neighbors, "0 or more")
        require_choice("eval.split", self.split, SPLITS)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Computes the figures of one model's checkpoints.

    Attributes:
      model: what was trained.
      loss: per-example loss with its options bound.
      test: held-out data.
      load_train: gives the training data; called only where they are needed.
      networks: in whose features samples are compared with data.
      settings: what to compute.
      sampling: how to draw the samples that are compared with the data.
      workdir: of the run.
    """

    model: Model
    loss: ScoreLoss
    test: Dataset
    load_train: Callable[[], Dataset]
    networks: Sequence[FeatureNetwork]
    settings: EvalSettings
    sampling: SampleSettings
    workdir: Path

    def check(self) -> None:
        """Traces every program that `evaluate` runs, without compiling: what cannot work fails now, in seconds.

        Raises:
          UserError: naming the setting.
        """
        devices, settings = Devices.all(), self.settings
        same = self.test.kind == self.model.kind
        require(same, "data.kind", self.test.kind, f"{self.model.kind!r}, what the model was trained on")
        require(len(self.test) >= 2, "data.name", self.test.name, "a data set with 2 test examples or more")
        devices.require_divides("eval.batch_size", settings.batch_size)
        params = jax.eval_shape(self.model.init, jax.random.key(0))
        loss = _loss_of_batch(self.model, self.loss, settings.repeats, settings.seed, devices)
        jax.eval_shape(loss, params, _abstract(self.test, 1))
        if settings.num_samples != 0:
            shown = len(self.test.shape) == 3 and settings.neighbors
            if (self.networks and settings.stats is None) or shown or self.test.shape == (2,):
                self.load_train()  # `compare` needs them, when the samples are drawn already
            index = np.arange(self.sampling.batch_size, dtype=np.int32)
            given = conditions.of_data(self.model, self.test).of(index)
            jax.eval_shape(make_draw(self.model, self.sampling, devices), params, index, given)
            for network in self.networks:
                usable = network.name not in ("inception", "dinov2") or self.test.is_image
                allowed = f"pixels or a function of your own: {self.test.kind}s are no pictures of 8 bits"
                require(usable, "eval.features", network.name, allowed)
                jax.eval_shape(network.apply, network.params, _abstract(self.test, 1)["x"])
        if settings.likelihood is not None:
            likelihood.check(
                self.model.in_float32, settings.likelihood, _abstract(self.test, settings.likelihood.batch_size)
            )
        if settings.stats is not None and settings.num_samples != 0:
            names = [network.name for network in self.networks]
            require(len(names) == 1, "eval.features", names, "one network, to use eval.stats")
            found = reference.load(settings.stats)
            reference.require_fits(found, settings.stats, self.networks[0], self.test)

    def folder(self, step: int) -> Path:
        """Returns `workdir`/eval/step_N, or step_N_ema0.1 for an average made of snapshots."""
        return self.workdir / FOLDER / f"step_{step}{origin.average_of(self.sampling.ema_length)}"

    def evaluate(self, params: Any, *, step: int) -> dict[str, float]:
        """Computes every figure of a checkpoint's averaged parameters, appends a line to results.jsonl and returns it.

        Samples, and the likelihoods of examples, are kept in `folder(step)` as they are computed: if the process
        is killed, the same call continues from them. Figures do not depend on batch sizes, nor on the number of
        devices, beyond the rounding of the network's arithmetic and, for likelihoods, the tolerance of the solver,
        whose steps a batch shares: `likelihood_nfe` is that of the batches.
        """
        self.check()
        devices, settings, workdir = Devices.all(), self.settings, self.workdir
        folder = self.folder(step)
        weights = origin.weights_of(self.model, params)
        made = origin.of_parameters(self.sampling, step=step, weights=weights)
        results: dict[str, float] = {"step": step}
        images: dict[str, Any] = {}
        splits = self._splits()
        for split, data in splits.items():
            results |= _of(split, test_loss(self.model, self.loss, params, data, settings, devices))
        num = len(self.test) if settings.num_samples is None else settings.num_samples
        if num:
            began = time.monotonic()
            given = conditions.of_data(self.model, self.test)
            x, made = sample_rows(
                self.model, params, self.sampling, devices, folder, weights, num=num, step=step, given=given
            )
            results |= {"num_samples": num, "sampling_seconds": time.monotonic() - began}
            found, images = compare(
                x, settings, self.networks, workdir, devices, test=self.test, load_train=self.load_train
            )
            results |= found
        if settings.likelihood is not None:
            for split, data in splits.items():
                found = _likelihood(self.model.in_float32, params, data, settings.likelihood, devices, folder, weights)
                results |= _of(split, found)
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)  # also where there is no picture; in a bucket it does nothing
            for name, image in images.items():
                pictures.write_png(image, folder / f"{name}.png")
            curve = FOLDER + origin.average_of(self.sampling.ema_length)
            made = {"versions": origin.versions(), "data": self.test.name, **made}
            log_results(workdir, results, images, made, curve=curve)
        return results

    def _splits(self) -> dict[str, Dataset]:
        """The examples whose loss and likelihood are computed, by split."""
        found = {}
        if self.settings.split in ("test", "both"):
            found["test"] = self.test
        if self.settings.split in ("train", "both"):
            found["train"] = self.load_train().subset(len(self.test))
        return found


def _of(split: str, results: dict[str, float]) -> dict[str, float]:
    """Returns figures of the test split under their names for `split`: test_loss is train_loss there."""
    if split == "test":
        return results
    return {f"{split}_{name.removeprefix('test_')}": value for name, value in results.items()}


def test_loss(
    model: Model, loss: ScoreLoss, params: Any, dataset: Dataset, settings: EvalSettings, devices: Devices
) -> dict[str, float]:
    """Mean and standard error of the loss per data dimension, each example weighing the same.

    Times and noise of an example depend on `settings.seed` and the example's number alone. Its `settings.repeats`
    times lie one in each of so many equal quantiles of the loss's time law (if the loss is stratified), so that each
    example's loss is an unbiased estimate, independent of the others', whatever the batch.
    """
    each = loss_of_examples(
        model, loss, params, dataset, settings.repeats, settings.seed, devices, batch_size=settings.batch_size
    ).mean(axis=1)
    return {"test_loss": each.mean(), "test_loss_error": each.std(ddof=1) / np.sqrt(len(each))}


def loss_of_examples(
    model: Model,
    loss: ScoreLoss,
    params: Any,
    dataset: Dataset,
    repeats: int,
    seed: int,
    devices: Devices,
    *,
    batch_size: int,
) -> np.ndarray:
    """Returns the losses per data dimension of every example, (N, repeats) float64, as `test_loss` describes them.

    Column k has the times in the k-th of `repeats` equal quantiles of the loss's time law, if the loss is stratified:
    the noise rises from column to column.

    Args:
      model: the model.
      loss: per-example loss with its options bound.
      params: averaged parameters.
      dataset: N examples.
      repeats: how many times each example is perturbed.
      seed: of times and noise.
      devices: the batch is spread over them.
      batch_size: perturbed examples at once; the losses do not depend on it.
    """
    compiled = _loss_of_batch(model, loss, repeats, seed, devices)
    size = devices.mesh.size * max(1, batch_size // (repeats * devices.mesh.size))
    values: list[np.ndarray] = []
    local = eval_batches(dataset, batch_size=size, process_index=jax.process_index(), process_count=jax.process_count())
    for batch in local:
        values.append(np.asarray(compiled(params, devices.put(batch))))
    return np.concatenate(values)[: len(dataset)].astype(np.float64)


@functools.lru_cache(maxsize=4)
def _loss_of_batch(
    model: Model, loss: ScoreLoss, repeats: int, seed: int, devices: Devices
) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """Returns the jitted function (params, batch of b examples) -> (b, repeats) losses per data dimension."""
    key = jax.random.key(seed)

    def of_example(params: Any, example: dict[str, jax.Array]) -> jax.Array:
        # One batch of repeats for each example: the loss stratifies the times within a batch.
        repeated = jax.tree.map(lambda a: jnp.broadcast_to(a, (repeats, *a.shape)), example)
        eps_fn = model.eps_fn(params, condition=conditions_of(repeated))
        x = model.to_model(repeated["x"])
        key_example = jax.random.fold_in(key, example["index"])
        values = loss(model.sde, eps_fn, x, key_example, sigma_data=model.sigma_data)
        return values / np.prod(model.data_shape)

    @functools.partial(devices.jit, out_shardings=devices.replicated)
    def of_batch(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return jax.vmap(of_example, in_axes=(None, 0))(params, batch)

    return of_batch


def _abstract(data: Dataset, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `eval_batches`."""
    layout = data.layout | {"index": ((), np.dtype(np.int32)), "mask": ((), np.dtype(np.bool_))}
    return {name: jax.ShapeDtypeStruct((size, *shape), kind) for name, (shape, kind) in layout.items()}


def sample_rows(
    model: Model,
    params: Any,
    settings: SampleSettings,
    devices: Devices,
    folder: Path,
    weights: str,
    *,
    num: int,
    step: int,
    given: conditions.Conditions = conditions.NONE,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draws `num` samples, except those that are in `folder` already.

    Returns:
      The samples as data, uint8 pictures or float32, and the record of what they were made by.
    """
    times = times_of(
        model.sde, settings.grid, model.sde.t_min if settings.t_min is None else settings.t_min, settings.num_steps
    )
    options = (settings.sampler, settings.denoise, settings.label, settings.guidance, settings.seed)
    changes = (settings.guidance_interval, settings.clip, settings.threshold)
    options += () if changes == (None, None, None) else changes
    classes = (settings.classes, model.statistics.class_counts) if model.takes_labels else None
    made = origin.of_samples(model, settings, devices, step=step, weights=weights, conditions=given.digest)
    options += (made["guide"],) if "guide" in made else ()
    name = origin.digest(weights, *map(repr, (*options, classes)), times, *_model_parts(model), given.digest)
    place = folder / f"samples_{name}"

    def begin(first: Drawn) -> None:
        origin.write(place, made, int(first.calls))

    # Several processes each keep the samples, because the first one may still be writing the last of them.
    on_disk = jax.process_count() == 1 and storage.is_local(place)
    rows = PartialRows(place, num, in_memory=not on_disk)
    draw_rows(model, params, settings, devices, rows, np.arange(num), begin, given)
    return rows.array(), origin.read(place) or made


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
    """Returns figures of samples x (N, *shape) against the data, and pictures of them.

    The floors are those figures of N random test examples in the samples' place, or of all if there are fewer:
    `floor_examples` says how many. A floor of fewer examples than samples is above that of a perfect model.
    """
    samples = array_dataset("samples", "test", x, None, 0)
    held_out = test.subset(len(x)) if len(x) < len(test) else test
    # Vectors and signals are drawn beside the samples; pictures are not, and may be many.
    beside = held_out.gather(np.arange(len(held_out)))["x"] if x.ndim < 4 else None
    results: dict[str, float] = {"floor_examples": len(held_out)}
    for network in networks:
        if settings.stats is None:
            target = reference.prepare(network, load_train(), workdir, devices)
        else:
            target = reference.load(settings.stats)
        found = features_of(network, samples, devices)
        warning = figures.too_few(*found.values.shape)
        if warning is not None:
            distributed.say(f"{network.name}: {warning}")
        results |= figures.compute(network.name, found, target)
        results |= figures.floor(network.name, features_of(network, held_out, devices), target)
    if beside is not None and x.shape[1:] == (2,):
        results |= figures.in_the_plane(x, load_train(), beside)
    images = {"samples": picture(x, reference=beside)}
    if settings.neighbors and x.ndim == 4:
        images["neighbors"] = neighbors(x[: settings.neighbors], load_train())
    return results, images


def neighbors(x: np.ndarray, train: Dataset) -> Any:
    """Each sample (N, H, W, C) in a row of its own, beside the training examples nearest to it in pixels."""
    blocks = (batch["x"][batch["mask"]] for batch in eval_batches(train, batch_size=1000))
    flat = (block.reshape(len(block), -1) for block in blocks)
    index = nearest(x.reshape(len(x), -1), flat, min(_NEIGHBORS, len(train))).indices
    rows = [np.concatenate([x[i : i + 1], train.gather(index[i])["x"]]) for i in range(len(x))]
    return pictures.image_grid(pictures.shades(np.concatenate(rows)), columns=index.shape[1] + 1)


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
    name = origin.digest(weights, repr(options), test.digest, *_model_parts(model))
    rows = PartialRows(folder / f"likelihood_{name}", num)
    began = time.monotonic()
    with Progress(num, rows.count, 1, distributed.is_main(), unit="likelihood", examples="examples") as progress:
        if rows.missing:
            progress.write(f"bits per dimension of {rows.missing:,} {test.split} examples...")
        found = likelihood.evaluate_likelihood(
            model, params, test.subset(None), settings, devices, rows, tick=progress.update
        )
    return found | {"likelihood_seconds": time.monotonic() - began}


def _model_parts(model: Model) -> tuple[Any, ...]:
    """Returns what samples and likelihoods depend on besides the parameters: the SDE, the data's units, the type."""
    sde = model.sde
    units = (model.statistics.mean, model.statistics.std, model.sigma_data)
    return (sde.F, sde.G, sde.cov0, sde.prior_cov, repr(sde.schedule), repr(sde.T), repr(units), model.dtype.name)
