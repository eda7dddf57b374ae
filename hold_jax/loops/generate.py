"""Generation of samples from averaged parameters: images, arrays, and a film of the reverse process."""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from hold_jax import samplers
from hold_jax.errors import UserError, require, require_choice
from hold_jax.model import Model
from hold_jax.numerics.random import class_of
from hold_jax.runtime import distributed, pictures, storage
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.storage import Path

GRID_MAX = 100
FILM_MAX = 36
CLASSES = ("data", "uniform")
_WRITERS = 16  # threads that write single images: in a bucket, each waits for the response of the server


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How samples are drawn.

    Attributes:
      sampler: a sampler of `hold_jax.samplers`, e.g. `samplers.Strang()`.
      num_steps: number of steps of the time grid.
      grid: a name in `samplers.GRIDS` or a function.
      t_min: time at which sampling stops; None is the default of the SDE.
      denoise: whether to finish with the denoiser, at the cost of one more network evaluation.
      num_samples: total number of samples.
      batch_size: number of samples drawn at once, over all devices.
      frames: number of states kept for the film, a divisor of `num_steps`; 0 makes no film.
      save_pngs: whether to also write one PNG file per sample (images only).
      label: class of every sample (class-conditional models); None draws all classes.
      classes: proportions of the classes if `label` is None, one of `CLASSES`. "data": those of the training data if
        the model has its class counts; "uniform": the same number of each class that occurs in the training data.
      guidance: scale of classifier-free guidance (models trained with label dropout). 0 is unconditional; 1 is
        conditional sampling at twice its cost; None is conditional sampling without guidance.
      seed: seed of the initial state and of the sampler's noise.
    """

    sampler: samplers.Sampler
    num_steps: int
    grid: Any
    t_min: float | None
    denoise: bool
    num_samples: int
    batch_size: int
    frames: int
    save_pngs: bool
    label: int | None
    classes: str
    guidance: float | None
    seed: int

    def __post_init__(self):
        require(self.num_samples >= 1, "sampling.num_samples", self.num_samples, "1 or more")
        require(self.batch_size >= 1, "sampling.batch_size", self.batch_size, "1 or more")
        require_choice("sampling.classes", self.classes, CLASSES)
        finite = self.guidance is None or math.isfinite(self.guidance)
        require(finite, "sampling.guidance", self.guidance, "a finite number, or None")


DrawFn = Callable[[Any, jax.Array | np.ndarray], tuple[jax.Array, jax.Array | None]]
"""draw(params, index (B,)) -> samples (B, *data_shape), and frames (frames + 1, B, *data_shape) or None."""


@functools.lru_cache(maxsize=4)
def make_draw(model: Model, settings: SampleSettings, devices: Devices) -> DrawFn:
    """Returns a jitted function that draws one batch of samples, spread over the devices.

    Sample i is a function of the settings, the parameters and i, not of the batch in which it is drawn
    (`samplers.sample`). Its class is that of `draw_labels`. Results are cached by the arguments, so that sample grids,
    report and evaluation of one run share one compilation.

    Args:
      model: the trained model.
      settings: how to draw.
      devices: devices over which the batch is spread.

    Returns:
      A function that takes the parameters and the numbers (B,) of the samples, with B = `settings.batch_size`. It
      returns the samples (B, *data_shape) in the model's range and the frames (frames + 1, B, *data_shape) or None.

    Raises:
      UserError: before compilation, if the grid, the model or the number of devices does not allow the settings.
    """
    devices.require_divides("sampling.batch_size", settings.batch_size)
    classes = model.network.num_classes
    known = settings.label is None or 0 <= settings.label < classes
    allowed = f"a class, 0 to {classes - 1}, or None" if classes else "None for a model without classes"
    require(known, "sampling.label", settings.label, allowed)
    require(not settings.save_pngs or len(model.data_shape) == 3, "sampling.save_pngs", True, "False for vectors")
    draw = functools.partial(
        samplers.sample,
        settings.sampler,
        model.sde,
        shape=(settings.batch_size, *model.data_shape),
        num_steps=settings.num_steps,
        grid=settings.grid,
        t_min=settings.t_min,
        denoise=settings.denoise,
        frames=settings.frames,
        sharding=devices.batch(),
    )
    # Tracing with a trivial network finds an invalid grid or guidance before hours of training, not after them.
    try:
        model.eps_fn(None, guidance=settings.guidance)
        jax.eval_shape(lambda: draw(lambda u, t: u[..., -1:, :], key=jax.random.key(0)))
    except UserError as error:
        raise UserError(str(error).replace("`", "`sampling.", 1)) from None

    @functools.partial(jax.jit, out_shardings=devices.replicated)
    def compiled(params: Any, index: jax.Array) -> Any:
        labels = draw_labels(model, settings, index)
        eps_fn = model.eps_fn(params, labels=labels, guidance=settings.guidance)
        out = draw(eps_fn, key=jax.random.key(settings.seed), index=index)
        return out.x, out.frames

    return compiled


def draw_labels(model: Model, settings: SampleSettings, index: jax.Array) -> jax.Array:
    """Returns the classes of samples.

    Args:
      model: the trained model.
      settings: `label` and `classes` are used.
      index: (B,) int32 numbers of the samples.

    Returns:
      (B,) int32; 0 for a model without classes.
    """
    classes = model.network.num_classes
    if settings.label is not None or not classes:
        return jnp.full_like(index, settings.label or 0)
    counts = model.statistics.class_counts or (1,) * classes
    if settings.classes == "data" and model.statistics.class_counts:
        return class_of(index, counts)
    return jnp.asarray(np.flatnonzero(counts), jnp.int32)[index % np.count_nonzero(counts)]


def draw_blocks(
    model: Model, params: Any, settings: SampleSettings, devices: Devices, *, start: int, stop: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields samples number `start` to `stop` - 1, in order and in blocks of at most `settings.batch_size`.

    Args:
      model: the trained model.
      params: averaged parameters.
      settings: how to draw; `num_samples` is not used.
      devices: devices over which each batch is spread.
      start: number of the first sample.
      stop: number after the last sample.

    Yields:
      Samples (b, *data_shape) with b <= `settings.batch_size`, and frames (frames + 1, `settings.batch_size`,
      *data_shape) or None, as uint8 images or float32 vectors (`Model.to_data`).

    Raises:
      UserError: if a sample is NaN.
    """
    draw = make_draw(model, settings, devices)
    for first in range(start, stop, settings.batch_size):
        x, film = draw(params, first + np.arange(settings.batch_size, dtype=np.int32))
        x = np.asarray(x)[: stop - first]
        if np.isnan(x).any():
            raise UserError(samplers.UNFINISHED)
        yield np.asarray(model.to_data(x)), None if film is None else np.asarray(model.to_data(film))


def draw_many(
    model: Model, params: Any, settings: SampleSettings, devices: Devices, *, num: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draws the first `num` samples.

    Args:
      model: the trained model.
      params: averaged parameters.
      settings: how to draw; `num_samples` is not used.
      devices: devices over which each batch is spread.
      num: number of samples.

    Returns:
      Samples (num, *data_shape) and the frames of the first batch or None, as `draw_blocks` yields them.

    Raises:
      UserError: if a sample is NaN.
    """
    blocks = list(draw_blocks(model, params, settings, devices, start=0, stop=num))
    return np.concatenate([x for x, _ in blocks]), blocks[0][1]


def picture(x: np.ndarray, *, reference: np.ndarray | None = None, title: str | None = None) -> PIL.Image.Image:
    """Returns a picture of samples: a grid of images, a scatter plot of vectors, or a histogram of scalars.

    Args:
      x: (N, H, W, C) uint8 images, of which the first `GRID_MAX` are shown, or (N, d) float32 vectors, of which the
        first two coordinates are plotted.
      reference: (M, d) float32 data to plot beside vectors.
      title: title of the plot (vectors only).
    """
    if x.ndim == 4:
        return pictures.image_grid(x[:GRID_MAX])
    if x.shape[1] == 1:
        return pictures.histogram(x[:, 0], reference=None if reference is None else reference[:, 0], title=title)
    return pictures.scatter(x[:, :2], reference=None if reference is None else reference[:, :2], title=title)


def film_frames(states: np.ndarray) -> list[PIL.Image.Image]:
    """Returns one picture for each of the states (F, N, *data_shape), uint8 or float32, of the reverse process."""
    if states.ndim == 5:
        states = states[:, :FILM_MAX]
        columns = int(np.ceil(np.sqrt(states.shape[1])))
        scale = max(1, 320 // (states.shape[3] * columns))
        return [pictures.image_grid(state, scale=scale) for state in states]
    if states.shape[-1] == 1:
        limits = pictures.histogram_limits(states[-1, :, 0])
        return [pictures.histogram(state[:, 0], limits=limits) for state in states]
    limits = pictures.plot_limits(states.reshape(-1, states.shape[-1])[:, :2])
    return [pictures.scatter(state[:, :2], limits=limits) for state in states]


def generate(
    model: Model,
    params: Any,
    settings: SampleSettings,
    workdir: Path,
    *,
    step: int,
    reference: np.ndarray | None = None,
) -> Path:
    """Draws `settings.num_samples` samples and writes grid.png, samples.npz and, if chosen, film.gif and png/*.png.

    Files of an earlier draw from the same checkpoint are removed.

    Args:
      model: the trained model.
      params: averaged parameters.
      settings: how to draw and what to write.
      workdir: work directory of the run.
      step: training step of the checkpoint; it names the folder.
      reference: (M, d) float32 data to plot beside vectors.

    Returns:
      The folder `workdir`/samples/step_N.

    Raises:
      UserError: if a setting cannot work or a sample is NaN.
    """
    x, film = draw_many(model, params, settings, Devices.all(), num=settings.num_samples)
    folder = workdir / "samples" / f"step_{step}"
    if distributed.is_main():
        storage.empty(folder)  # files of two draws in one folder cannot be distinguished
        pictures.write_png(picture(x, reference=reference), folder / "grid.png")
        with storage.writing(folder / "samples.npz") as file:
            np.savez_compressed(file, x=x)
        if film is not None:
            pictures.film(film_frames(film), folder / "film.gif")
        if settings.save_pngs:
            _write_each(x, folder / "png")
    return folder


def _write_each(images: np.ndarray, folder: Path) -> None:
    """Writes uint8 images (N, H, W, C) as 000000.png, 000001.png, ..."""

    def write(i: int) -> None:
        image = images[i].squeeze(-1) if images.shape[-1] == 1 else images[i]
        pictures.write_png(PIL.Image.fromarray(image), folder / f"{i:06d}.png", sync=False)

    with concurrent.futures.ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(write, range(len(images))):
            pass
