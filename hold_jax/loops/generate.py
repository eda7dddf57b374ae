"""Samples of a checkpoint as files: an array, a grid of pictures, and a film of the reverse process."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image

from hold_jax.errors import UserError
from hold_jax.loops import origin
from hold_jax.loops.conditions import NONE, Conditions
from hold_jax.loops.draw import Drawn, SampleSettings, draw_blocks, with_labels
from hold_jax.model import Model
from hold_jax.runtime import distributed, lock, npz, pictures, plots, storage
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.progress import Progress
from hold_jax.runtime.resumable import PartialRows
from hold_jax.runtime.storage import Path

FOLDER = "samples"
ARRAY_FILE = "samples.npz"
CONDITION_FILE = "condition.npz"
GRID_MAX = 100
FILM_MAX = 36
_ROWS = "rows"  # folder of the samples drawn so far, until all are
_WRITERS = 16  # threads that write single images: in a bucket, each waits for the response of the server
_BLOCK_BYTES = 1 << 26  # of the array, in memory at once when it is read again


def picture(x: np.ndarray, *, reference: np.ndarray | None = None) -> PIL.Image.Image:
    """Returns a picture of samples: a grid of images, curves of signals, a plot of points.

    Args:
      x: (N, H, W, C) uint8 pictures or float32 arrays, of which the first `GRID_MAX` are shown; (N, length, C) float32
        signals, of which a few are plotted; or (N, d) float32 vectors: a histogram for d = 1, a scatter plot for d = 2,
        a pair plot of the first coordinates for more.
      reference: (M, *data_shape) float32 data to plot beside vectors and signals.
    """
    if x.ndim == 4:
        return pictures.image_grid(pictures.shades(x[:GRID_MAX]))
    if x.ndim == 3:
        return plots.signals(x, reference=reference)
    if x.shape[1] == 1:
        return plots.histogram(x[:, 0], reference=None if reference is None else reference[:, 0])
    if x.shape[1] > 2:
        return plots.pairs(x, reference=reference)
    return plots.scatter(x, reference=reference)


def pairs(given: np.ndarray, x: np.ndarray) -> PIL.Image.Image:
    """Returns a grid of condition pictures, each to the left of its sample.

    Args:
      given: (N, h, w, c) uint8 or float condition pictures, shown in the size of the samples, without interpolation.
      x: (N, H, W, C) samples, of which the first `GRID_MAX` are shown. Of other numbers of channels than 1 and 3 the
        first is shown.
    """
    shown = (a[:GRID_MAX] if a.shape[-1] in (1, 3) else a[:GRID_MAX, ..., :1] for a in (x, given))
    samples, left = map(pictures.shades, shown)
    rows, columns = (np.arange(size) * old // size for size, old in zip(x.shape[1:3], given.shape[1:3], strict=True))
    left = left[:, rows][:, :, columns]
    channels = max(left.shape[-1], samples.shape[-1])
    both = [np.broadcast_to(a, (*a.shape[:-1], channels)) for a in (left, samples)]
    grid = np.stack(both, axis=1).reshape(-1, *both[0].shape[1:])
    return pictures.image_grid(grid, columns=2 * int(np.ceil(np.sqrt(len(x[:GRID_MAX]) / 2))))


def film_frames(states: np.ndarray) -> list[PIL.Image.Image]:
    """Returns one picture for each of the states (F, N, *data_shape), uint8 or float32, of the reverse process."""
    if states.ndim == 5:
        states = pictures.shades(states[:, :FILM_MAX])
        columns = int(np.ceil(np.sqrt(states.shape[1])))
        scale = max(1, 320 // (states.shape[3] * columns))
        return [pictures.image_grid(state, scale=scale) for state in states]
    if states.ndim == 4:
        limits = plots.signal_limits(states[-1])
        return [plots.signals(state, limits=limits) for state in states]
    if states.shape[-1] == 1:
        limits = plots.histogram_limits(states[-1, :, 0])
        return [plots.histogram(state[:, 0], limits=limits) for state in states]
    limits = plots.plot_limits(states.reshape(-1, states.shape[-1])[:, :2])
    return [plots.scatter(state[:, :2], limits=limits) for state in states]


def generate(
    model: Model,
    params: Any,
    settings: SampleSettings,
    workdir: Path,
    *,
    step: int,
    reference: np.ndarray | None = None,
    conditions: Conditions = NONE,
) -> Path:
    """Draws samples and writes sampling.json, grid.png, samples.npz and, if chosen, film.gif and png/*.png.

    Samples with conditions or classes have these in condition.npz, row by row, which `conditions.of_file` reads.
    Condition pictures are to the left of their samples in grid.png.

    The folder is named by the step and the settings; samples of other settings are never overwritten. Each batch is
    written as it is drawn: a draw that was killed goes on from the last batch, to the same bits, and only one batch is
    in memory. Samples that were drawn before with the same settings are not drawn again.

    Args:
      model: the trained model.
      params: averaged parameters.
      settings: how to draw and what to write.
      workdir: work directory of the run.
      step: training step of the checkpoint.
      reference: (M, *data_shape) float32 data to plot beside vectors and signals.
      conditions: of the samples.

    Returns:
      The folder, such as `workdir`/samples/step_1000_unipc20.

    Raises:
      UserError: if a setting cannot work or a sample is NaN.
    """
    devices, index = Devices.all(), settings.index
    weights = origin.weights_of(model, params)
    made = origin.of_samples(model, settings, devices, step=step, weights=weights, conditions=conditions.digest)
    made["samples"] = f"0:{settings.num_samples}" if settings.indices is None else settings.indices
    with claimed(workdir / FOLDER, made) as (folder, finished):
        if finished:
            distributed.say(f"these samples were drawn before, with the same settings: {folder}")
        else:
            _draw(model, params, settings, folder, made, reference, conditions)
        if settings.save_pngs and distributed.is_main():
            write_each(folder, index)
    return folder


def _draw(
    model: Model,
    params: Any,
    settings: SampleSettings,
    folder: Path,
    made: dict[str, Any],
    reference: np.ndarray | None,
    conditions: Conditions,
) -> None:
    """Draws the samples that are not there yet, and writes all files of `generate`."""
    index = settings.index

    def begin(first: Drawn) -> None:
        if first.frames is not None:
            pictures.film(film_frames(np.asarray(first.frames)), folder / "film.gif")
        origin.write(folder, made, int(first.calls))

    rows = PartialRows(folder / _ROWS, len(index), in_memory=False)
    draw_rows(model, params, settings, Devices.all(), rows, index, begin, conditions)
    if distributed.is_main():
        shown = _first(rows.blocks(), GRID_MAX if len(model.data_shape) > 1 else len(index))
        given = with_labels(model, settings, jnp.asarray(index), conditions.of(index))
        with storage.writing(folder / ARRAY_FILE) as file:
            npz.write_blocks(file, "x", (len(index), *shown.shape[1:]), shown.dtype, rows.blocks())
        takes = [name for name in model.conditions.takes if getattr(given, name) is not None]
        arrays: dict[str, Any] = {name: np.asarray(getattr(given, name)) for name in takes}
        if arrays:
            with storage.writing(folder / CONDITION_FILE) as file:
                np.savez_compressed(file, **arrays)
        # Last, since curves need matplotlib, which sampling does not.
        beside = given.picture is not None
        grid = pairs(given.picture, shown) if beside else picture(shown, reference=reference)
        pictures.write_png(grid, folder / "grid.png")
        storage.remove(folder / _ROWS)


def draw_rows(
    model: Model,
    params: Any,
    settings: SampleSettings,
    devices: Devices,
    rows: PartialRows,
    index: np.ndarray,
    begin: Callable[[Drawn], None],
    conditions: Conditions = NONE,
) -> None:
    """Draws the samples that `rows` misses, and shows how far it is.

    Args:
      model: the trained model.
      params: averaged parameters.
      settings: how to draw.
      devices: devices over which each batch is spread.
      rows: receives the samples.
      index: (N,) rising numbers of the samples that `rows` is to hold.
      begin: called in the first process with the first batch, before its samples are written.
      conditions: of the samples.
    """
    if not rows.missing:
        return
    main = distributed.is_main()
    with Progress(len(index), rows.count, 1, main, unit="sample") as progress:
        progress.write(f"drawing {rows.missing:,} sample{'s' * (rows.missing != 1)}...")
        for block in draw_blocks(model, params, settings, devices, index[rows.count :], conditions):
            if rows.count == 0 and main:
                begin(block)
            rows.append(np.asarray(block.x))
            progress.update(rows.count)


@contextlib.contextmanager
def claimed(parent: Path, made: dict[str, Any]) -> Iterator[tuple[Path, bool]]:
    """Yields the folder for samples with this record, and whether they are all there; the same on every process.

    Until all are there no other run draws in it: one of other settings takes the second folder of `origin.place`.

    Args:
      parent: folder of such folders.
      made: what the samples depend on (`origin.of_samples`).

    Raises:
      UserError: if another run draws these samples.
    """
    plain, unique = origin.place(parent, made)
    with contextlib.ExitStack() as held:

        def usable(folder: Path) -> bool:
            return folder == unique or _is_free(folder, made)

        def choose() -> np.ndarray:
            owner = None
            for number, folder in enumerate((plain, unique)):
                if usable(folder) and _is_finished(folder, made):
                    return np.array([number, True])
                if usable(folder):
                    with contextlib.ExitStack() as attempt:
                        owner = attempt.enter_context(lock.locked(folder))
                        # Looked at again, since another run may have written there until now.
                        if owner is None and usable(folder):
                            held.enter_context(attempt.pop_all())
                            return np.array([number, _is_finished(folder, made)])
            raise UserError(f"{unique} is in use by {owner}: wait until its samples are drawn")

        number, finished = distributed.from_first(choose, np.zeros(2, np.int64))
        folder = (plain, unique)[int(number)]
        yield folder, bool(finished)
        if distributed.is_main() and storage.is_file(folder / lock.FILE):
            storage.remove(folder / lock.FILE)


def _is_free(folder: Path, made: dict[str, Any]) -> bool:
    """Returns whether there is nothing in a folder, or samples with this record."""
    return {*storage.names(folder)} <= {lock.FILE} or origin.is_of(origin.read(folder), made)


def _is_finished(folder: Path, made: dict[str, Any]) -> bool:
    return origin.is_of(origin.read(folder), made) and storage.is_file(folder / ARRAY_FILE)


def _first(blocks: Iterator[np.ndarray], count: int) -> np.ndarray:
    """Returns the first rows of an array that comes in blocks."""
    found: list[np.ndarray] = []
    while sum(map(len, found)) < count and (block := next(blocks, None)) is not None:
        found.append(block)
    return np.concatenate(found)[:count]


def write_each(folder: Path, index: np.ndarray) -> None:
    """Writes each image of samples.npz as png/NUMBER.png, such as 000017.png, unless it is there.

    Args:
      folder: of samples.npz.
      index: (N,) numbers of its images.

    Raises:
      UserError: if samples.npz cannot be read.
    """
    there = set(storage.names(folder / "png"))

    def write(number: int, image: np.ndarray) -> None:
        name = f"{number:06d}.png"
        if name not in there:
            image = image.squeeze(-1) if image.shape[-1] == 1 else image
            pictures.write_png(PIL.Image.fromarray(image), folder / "png" / name, sync=False)

    try:
        with storage.opened(folder / ARRAY_FILE) as file, concurrent.futures.ThreadPoolExecutor(_WRITERS) as pool:
            done = 0
            for images in npz.read_blocks(file, "x", _BLOCK_BYTES):
                for _ in pool.map(write, index[done : done + len(images)], images):
                    pass
                done += len(images)
    except npz.NpzError as error:
        raise UserError(f"{folder / ARRAY_FILE} cannot be read ({error}); delete its folder, and draw again") from None
