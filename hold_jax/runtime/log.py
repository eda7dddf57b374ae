"""What a run records as it trains: `metrics.jsonl` and TensorBoard files."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import numpy as np
import PIL.Image

from hold_jax.errors import UserError, require
from hold_jax.runtime import schema, storage
from hold_jax.runtime.storage import Path

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
_SEND_SECONDS = 30.0  # at least, between two times that a log in a bucket is brought up to date
_EVENTS_BYTES = 8 << 20  # beyond which a bucket gets another file of events: each is written whole, again and again

# JSON has no such numbers; these are the words protobuf's JSON mapping uses, and JavaScript's Number() reads.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Log(Protocol):
    """What the trainer needs of a log: `MetricLog` on process 0, `NullLog` on the others."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records named numbers at `step`."""

    def image(self, name: str, image: PIL.Image.Image | np.ndarray, step: int) -> None:
        """Records a picture at `step`."""

    def flush(self) -> None:
        """Writes out what is pending; call it before a checkpoint, whose run goes on from these lines."""

    def close(self) -> None:
        """Writes out what is pending, and ends."""


class MetricLog:
    """Writes scalars to `workdir/metrics.jsonl` and TensorBoard, images to TensorBoard alone.

    A line of `metrics.jsonl` is one strict JSON object, `{"step": 100, "train/loss": 0.25}`; it is flushed
    at once. NaN and the infinities are written as the strings "NaN", "Infinity" and "-Infinity".

    A run that died after its last checkpoint logged steps that the resumed run will take again. So, with
    `start_step` the step of the restored state, lines of later steps are dropped and TensorBoard is told to
    hide its own; a half-written last line goes too. At `start_step` 0 nothing is kept: the run starts anew.

    In a bucket, whose objects cannot grow, both are written again whole: at the first line, then at a line at least
    30 s after the last time, at `flush` and at `close`. A kill costs the lines since, all of them of steps after
    the last `flush`. Where the bucket cannot be reached at a line, the next time makes up for it; `flush` raises.

    Construct it on process 0 only.

    Args:
        workdir: folder of the run; created if absent.
        start_step: the step from which training goes on; the next one is `start_step + 1`.
        clock: returns seconds.

    Raises:
        ValueError: if a line of the existing file, other than the last, is damaged.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, start_step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        require(start_step >= 0, "start_step", start_step, "0 or more")
        workdir = storage.path(workdir)
        self._in_bucket = not storage.is_local(workdir)
        if not self._in_bucket:
            workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / METRICS_FILE
        _drop_lines_after(path, start_step)
        self._lines = storage.Lines(path)
        # The purge hides the events of this step and later ones.
        self._events = _Events(workdir / TENSORBOARD_FOLDER, purge_step=start_step + 1 if start_step else 0)
        self._clock, self._sent = clock, -math.inf

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line with `step` and `values`; a value is anything `float` takes.

        Raises:
            UserError: if a value is named "step".
        """
        if "step" in values:
            raise UserError('`values` has the name "step", which is the step\'s own; choose another name')
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": int(step)} | {name: _to_json(number) for name, number in numbers.items()}
        self._lines.append(json.dumps(line, allow_nan=False))
        for name, number in numbers.items():
            self._events.writer.add_scalar(name, number, step)
        if self._in_bucket and self._clock() - self._sent >= _SEND_SECONDS:
            with contextlib.suppress(storage.BucketError):
                self.flush()

    def image(self, name: str, image: PIL.Image.Image | np.ndarray, step: int) -> None:
        """Adds a PIL picture, or a uint8 array `(H, W)`, `(H, W, 1)` or `(H, W, 3)`, to TensorBoard.

        Raises:
            UserError: on an array of another shape or dtype.
        """
        if isinstance(image, PIL.Image.Image):
            image = _pixels(image)
        pixels = np.asarray(image)
        fits = pixels.dtype == np.uint8 and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3)))
        if not fits:
            raise UserError(
                f"`image` is {pixels.dtype} of shape {pixels.shape}; it must be uint8 (H, W), (H, W, 1) or (H, W, 3)"
            )
        self._events.writer.add_image(name, pixels, step, dataformats="HWC"[: pixels.ndim])

    def flush(self) -> None:
        """Brings a log in a bucket up to date; on a local disk it always is, but for TensorBoard's last 30 s."""
        if self._in_bucket:
            self._sent = self._clock()
            self._lines.flush()
            self._events.send()

    def close(self) -> None:
        """Writes out what is pending and closes both files; a second call does nothing."""
        self._lines.close()
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class NullLog:
    """A log that writes nothing, for every process but the first."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def image(self, name: str, image: PIL.Image.Image | np.ndarray, step: int) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def log_results(
    workdir: str | os.PathLike[str], results: Mapping[str, float], images: Mapping[str, PIL.Image.Image]
) -> None:
    """Appends `results`, "step" among them, to `workdir/results.jsonl`, and both to TensorBoard beside the training's.

    Call it on process 0 only; in a bucket, not while another process does the same there.
    """
    workdir, step = storage.path(workdir), int(results["step"])
    line = {name: value if name == "step" else _to_json(float(value)) for name, value in results.items()}
    _end_last_line(workdir / RESULTS_FILE)
    with contextlib.closing(storage.Lines(workdir / RESULTS_FILE)) as lines:
        lines.append(json.dumps(line, allow_nan=False))
    with contextlib.closing(_Events(workdir / TENSORBOARD_FOLDER / "eval")) as events:
        for name, value in results.items():
            if name != "step":
                events.writer.add_scalar(f"eval/{name}", float(value), step)
        for name, image in images.items():
            pixels = _pixels(image)
            events.writer.add_image(f"eval/{name}", pixels, step, dataformats="HWC"[: pixels.ndim])


class _Events:
    """TensorBoard's files of one writer; those for a bucket are written to a temporary folder and copied.

    tensorboardX writes to gs:// itself only with google-cloud-storage, and then one object that grows without bound.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._staged = storage.Staged(folder)
        self._open(purge_step)

    def send(self) -> None:
        """Copies what has come to be on the disk: a few of the last events may still be on their way there."""
        self.writer.flush()
        self._staged.send()
        if self._staged.size() > _EVENTS_BYTES:
            self.writer.close()
            self._staged.send(forget=True)
            self._open()

    def close(self) -> None:
        """Writes out what is pending; a second call does nothing."""
        self.writer.close()
        self._staged.close()

    def _open(self, purge_step: int | None = None) -> None:
        from tensorboardX import SummaryWriter  # the extra [train]; sampling and converting do without it

        self.writer = SummaryWriter(
            str(self._staged.local),
            purge_step=purge_step,
            flush_secs=30,
            # The name has the time in whole seconds: a second writer in the same second would overwrite the first.
            filename_suffix=f".{time.time_ns()}",
        )


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines that `MetricLog` wrote, in order, with NaN and the infinities as floats again.

    A damaged last line is left out: a run may have died while it wrote it, or be writing it now.

    Raises:
        ValueError: if any other line is damaged.
        FileNotFoundError: if there is no such file.
    """
    lines = storage.read(storage.path(path)).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(_entry(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"line {number} of {os.fspath(path)!r} is not a line of metrics: {error}") from error
    return entries


def _entry(line: bytes) -> dict[str, Any]:
    """The step and the numbers of one line; `ValueError` for anything else."""
    found = schema.json_object(line)
    step = found.pop("step", None)
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"its step is {schema.shown(step)}")
    numbers = {name: _from_json(value) for name, value in found.items()}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"its {name} is {schema.shown(value)}, not a number")
    return {"step": step} | numbers


def _pixels(image: PIL.Image.Image) -> np.ndarray:
    """uint8 (H, W) of a gray picture, (H, W, 3) of any other."""
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _end_last_line(path: Path) -> None:
    """Ends the last line of `path`, if that is there: half a line, of a process that died, goes; a whole one stays."""
    data = storage.read(path) if storage.is_file(path) else b""
    if not data or data.endswith(b"\n"):
        return
    last = data.rpartition(b"\n")[2]
    try:
        json.loads(last)
        storage.write(path, data + b"\n")
    except (ValueError, RecursionError):
        storage.write(path, data[: len(data) - len(last)])


def _drop_lines_after(path: Path, start_step: int) -> None:
    """Rewrites `path`, if it is there, without the lines that a run going on from `start_step` writes again."""
    if not storage.exists(path):
        return
    kept = [entry for entry in read_jsonl(path) if entry["step"] <= start_step] if start_step else []
    lines = [json.dumps({k: _to_json(v) for k, v in entry.items()}, allow_nan=False) + "\n" for entry in kept]
    storage.write(path, "".join(lines).encode("ascii"))


def _to_json(number: float) -> float | str:
    if isinstance(number, str) or math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")


def _from_json(value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
