"""Draw samples from a checkpoint: pictures, arrays, and a film of the reverse process."""

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
_WRITERS = 16  # of single pictures, at once: each waits for a bucket's answer


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How samples are drawn.

    Attributes:
      sampler: e.g. `samplers.Strang()`.
      num_steps: steps of the grid.
      grid: a name of `samplers.GRIDS` or a function.
      t_min: where to stop; None: the SDE's default.
      denoise: finish with the denoiser, one more call.
      num_samples: how many.
      batch_size: samples drawn at once, over all devices.
      frames: states kept for the film, a divisor of num_steps; 0: no film.
      save_pngs: also write one PNG a sample.
      label: the class to draw (class-conditional models); None: all.
      classes: how often each class is drawn: "data": as in the training data, where the model knows that; "uniform":
        all that occur there equally often, in turn.
      guidance: scale of classifier-free guidance (models with label dropout): 0 forgets the label, 1 is plain
        conditional sampling at twice its cost; None: plain.
      seed: of the draw.
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
"""draw(params, index (B,)) -> samples (B, *data_shape), frames (frames + 1, B, *data_shape) or None."""


@functools.lru_cache(maxsize=4)
def make_draw(model: Model, settings: SampleSettings, devices: Devices) -> DrawFn:
    """The settings bound, compiled once, the batch spread over the devices.

    Sample i is a function of the settings, the parameters and i: not of the batch it is drawn in (`samplers.sample`).
    Of a class-conditional model it has the chosen class, or that of `draw_labels`.
    Remembered by value, so that grids, report and score of one run share one compilation.

    Raises:
      UserError: for settings that the grid, the model or the device count does not allow, before compilation.
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
    # A bad grid is found here, by a trace with a trivial network, not after hours of training; so is bad guidance.
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
    """The classes (B,) int32 of samples `index` (B,); 0 for a model without classes."""
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
    """Samples `start` to `stop` in order, in blocks (<= batch_size, *data_shape), with frames, all as data.

    Data are uint8 pictures or float32 vectors (`Model.to_data`).

    Raises:
      UserError: for a sample that is NaN.
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
    """`num` samples (num, *data_shape) as data and, of the first batch, its frames."""
    blocks = list(draw_blocks(model, params, settings, devices, start=0, stop=num))
    return np.concatenate([x for x, _ in blocks]), blocks[0][1]


def picture(x: np.ndarray, *, reference: np.ndarray | None = None, title: str | None = None) -> PIL.Image.Image:
    """How samples look: a grid of pictures, or a scatter of the first two coordinates of vectors, or a
    histogram of numbers.

    Args:
      x: (N, H, W, C) uint8 or (N, d) float32.
      reference: data of the same kind to show beside vectors.
      title: above a scatter.
    """
    if x.ndim == 4:
        return pictures.image_grid(x[:GRID_MAX])
    if x.shape[1] == 1:
        return pictures.histogram(x[:, 0], reference=None if reference is None else reference[:, 0], title=title)
    return pictures.scatter(x[:, :2], reference=None if reference is None else reference[:, :2], title=title)


def film_frames(states: np.ndarray) -> list[PIL.Image.Image]:
    """Pictures of the reverse process from its states (F, N, *data_shape), uint8 or float32."""
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


def sample(
    model: Model,
    params: Any,
    settings: SampleSettings,
    workdir: Path,
    *,
    step: int,
    reference: np.ndarray | None = None,
) -> Path:
    """Draws `settings.num_samples` and writes grid.png, samples.npz, film.gif and optionally png/*.png.

    Args:
      model: what was trained.
      params: averaged parameters.
      settings: how to draw.
      workdir: of the run.
      step: of the checkpoint, for the folder's name.
      reference: data to show beside vectors.

    Returns:
      The folder `workdir`/samples/step_N.
    """
    x, film = draw_many(model, params, settings, Devices.all(), num=settings.num_samples)
    folder = workdir / "samples" / f"step_{step}"
    if distributed.is_main():
        storage.empty(folder)  # of an earlier draw: two in one folder could not be told apart
        pictures.write_png(picture(x, reference=reference), folder / "grid.png")
        with storage.writing(folder / "samples.npz") as file:
            np.savez_compressed(file, x=x)
        if film is not None:
            pictures.film(film_frames(film), folder / "film.gif")
        if settings.save_pngs:
            _write_each(x, folder / "png")
    return folder


def _write_each(images: np.ndarray, folder: Path) -> None:
    """uint8 pictures (N, H, W, C) as 000000.png and so on."""

    def write(i: int) -> None:
        image = images[i].squeeze(-1) if images.shape[-1] == 1 else images[i]
        pictures.write_png(PIL.Image.fromarray(image), folder / f"{i:06d}.png", sync=False)

    with concurrent.futures.ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(write, range(len(images))):
            pass
