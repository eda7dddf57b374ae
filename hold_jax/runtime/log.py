"""Logs of a run: `metrics.jsonl`, `results.jsonl` and TensorBoard files."""

import contextlib
import errno
import importlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import PIL.Image

from hold_jax.errors import UserError, require
from hold_jax.runtime import distributed, schema, storage
from hold_jax.runtime.storage import Path

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
_MADE_BY = "made_by"
_SEND_SECONDS = 30.0  # least time between two uploads of a log to a bucket
_EVENTS_BYTES = 8 << 20  # a larger events file is closed and a new one begun: each upload sends the whole file

# JSON has no such numbers; these strings are those of protobuf's JSON mapping, which JavaScript's Number() reads.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Log(Protocol):
    """The interface of a log. Training calls it on process 0 only."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records scalars by name at `step`."""

    def image(self, name: str, image: PIL.Image.Image | np.ndarray, step: int) -> None:
        """Records an image at `step`."""

    def flush(self) -> None:
        """Writes all pending lines; call it before a checkpoint, so that a resumed run finds them."""

    def close(self) -> None:
        """Writes all pending lines and closes the log."""


class MetricLog:
    """Writes scalars to `workdir/metrics.jsonl` and TensorBoard, and images to TensorBoard only.

    Each line of `metrics.jsonl` is one strict JSON object, `{"step": 100, "train/loss": 0.25}`, and is written
    immediately. NaN and the infinities are written as the strings "NaN", "Infinity" and "-Infinity".

    A run that was killed may have logged steps after its last checkpoint, which the resumed run takes again.
    Therefore the lines after `start_step`, the step of the restored state, are deleted, TensorBoard hides its
    events of these steps, and an incomplete last line is deleted. With `start_step` 0 all lines are deleted.

    Objects in a bucket cannot grow. There both files are uploaded as a whole: at the first line, then at a line at
    least 30 s after the last upload, at `flush` and at `close`. A killed run loses the lines since the last upload;
    they belong to steps after the last `flush`. An upload that fails at a line is repeated later; one that fails in
    `flush` raises an error.

    Construct it on process 0 only.

    Args:
        workdir: folder of the run; created if absent.
        start_step: the step of the restored state; the first step to be logged is `start_step + 1`.
        clock: returns seconds.

    Raises:
        ValueError: if a line of the existing file, other than the last, is damaged.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], start_step: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        require(start_step >= 0, "start_step", start_step, "0 or more")
        workdir = storage.path(workdir)
        self._in_bucket = not storage.is_local(workdir)
        if not self._in_bucket:
            workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / METRICS_FILE
        _drop_lines_after(path, start_step)
        self._lines = storage.Lines(path)
        # `purge_step` hides the events of this step and of later ones.
        self._events = _Events(workdir / TENSORBOARD_FOLDER, purge_step=start_step + 1 if start_step else 0)
        self._clock, self._sent = clock, -math.inf

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line with `step` and `values`, which are converted by `float`.

        Raises:
            UserError: if a value is named "step".
        """
        if "step" in values:
            raise UserError('`values` has the name "step", which is reserved for the step; choose another name')
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": int(step)} | {name: _to_json(number) for name, number in numbers.items()}
        self._lines.append(json.dumps(line, allow_nan=False))
        for name, number in numbers.items():
            self._events.ready().add_scalar(name, number, step)
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
        self._events.ready().add_image(name, pixels, step, dataformats="HWC"[: pixels.ndim])

    def flush(self) -> None:
        """Uploads a log to its bucket. Does nothing on a local disk, where only TensorBoard may lag, by 30 s."""
        if self._in_bucket:
            self._sent = self._clock()
            self._lines.flush()
            self._events.send()

    def close(self) -> None:
        """Writes all pending lines and closes both files; a second call does nothing."""
        try:
            self._lines.close()
        finally:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


OpenLog = Callable[[Path, int], Log]
"""open(workdir, start_step): the log of a run that starts from step `start_step`, as `MetricLog` describes it."""


class Logs:
    """Several logs as one: each call goes to all of them, in order."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = tuple(logs)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records scalars by name at `step`."""
        for log in self._logs:
            log.scalars(step, values)

    def image(self, name: str, image: PIL.Image.Image | np.ndarray, step: int) -> None:
        """Records an image at `step`."""
        for log in self._logs:
            log.image(name, image, step)

    def flush(self) -> None:
        """Writes all pending lines."""
        for log in self._logs:
            log.flush()

    def close(self) -> None:
        """Writes all pending lines and closes the logs, all of them also if one fails; the first error is raised."""
        failed: BaseException | None = None
        for log in self._logs:
            try:
                log.close()
            except BaseException as error:
                failed = failed or error
        if failed is not None:
            raise failed


class WandbLog:
    """Sends scalars and images to Weights & Biases (`pip install 'hold_jax[wandb]'`).

    The project is that of the environment variable WANDB_PROJECT, or "hold_jax". A run that goes on continues its page
    there; W&B keeps what was logged first at a step.

    Args:
        workdir: folder of the run; W&B writes its files there, in wandb/. For a bucket it writes to a temporary folder,
            and `close` copies the files; a killed run leaves them there.
        run: identity of the run, the same when it goes on.
        config: the settings, by name.

    Raises:
        ModuleNotFoundError: if wandb is not installed.
    """

    def __init__(self, workdir: Path, run: str | None, config: Mapping[str, Any]) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        self._staged = storage.Staged(workdir)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "hold_jax"),
            dir=str(self._staged.local),
            name=workdir.name,
            id=run,
            resume="allow",
            config=dict(config),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records scalars by name at `step`."""
        self._run.log(dict(values), step=step)

    def image(self, name: str, image: PIL.Image.Image | np.ndarray, step: int) -> None:
        """Records an image at `step`."""
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def flush(self) -> None:
        """Does nothing: W&B sends in the background."""

    def close(self) -> None:
        """Sends all pending values and ends the run's page; copies W&B's files to the bucket."""
        try:
            self._run.finish()
        finally:
            self._staged.close()


def log_results(
    workdir: str | os.PathLike[str],
    results: Mapping[str, float],
    images: Mapping[str, PIL.Image.Image],
    made_by: Mapping[str, Any] | None = None,
    curve: str = "eval",
) -> None:
    """Appends `results` to `workdir/results.jsonl`, and writes `results` and `images` to TensorBoard.

    Call it on process 0 only. In a bucket, two programs must not call it at the same time.

    Args:
        workdir: folder of the run.
        results: figures by name; "step" is the step of the evaluated checkpoint.
        images: images by name.
        made_by: what the figures were made by, JSON values; only `results.jsonl` has it.
        curve: name of the curves in TensorBoard, a folder of its files.
    """
    workdir, step = storage.path(workdir), int(results["step"])
    line = {name: value if name == "step" else _to_json(float(value)) for name, value in results.items()}
    line |= {} if made_by is None else {_MADE_BY: made_by}
    _end_last_line(workdir / RESULTS_FILE)
    with contextlib.closing(storage.Lines(workdir / RESULTS_FILE)) as lines:
        lines.append(json.dumps(line, allow_nan=False))
    with contextlib.closing(_Events(workdir / TENSORBOARD_FOLDER / curve)) as events:
        for name, value in results.items():
            if name != "step":
                events.writer.add_scalar(f"eval/{name}", float(value), step)
        for name, image in images.items():
            pixels = _pixels(image)
            events.writer.add_image(f"eval/{name}", pixels, step, dataformats="HWC"[: pixels.ndim])


class _Events:
    """A TensorBoard writer; for a bucket it writes to a temporary folder, and the files are copied.

    tensorboardX itself writes to gs:// only with google-cloud-storage, and then to one object of unbounded size.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._staged = storage.Staged(folder)
        self._open(purge_step)

    def ready(self) -> Any:
        """Returns the writer.

        Raises:
          OSError: if the thread that writes has ended, as on a full disk: what is added would fill its queue, and then
            wait for ever.
        """
        if not self._alive():
            raise OSError(errno.ENOSPC, "TensorBoard's writer ended, as on a full disk", str(self._staged.local))
        return self.writer

    def _alive(self) -> bool:
        files: Any = self.writer._get_file_writer()
        return files.event_writer._worker.is_alive()

    def send(self) -> None:
        """Copies the files to the bucket; the last few events may not have reached the disk yet."""
        self.writer.flush()
        self._staged.send()
        if self._staged.size() > _EVENTS_BYTES:
            self.writer.close()
            self._staged.send(delete=True)
            self._open()

    def close(self) -> None:
        """Writes all pending events; a second call does nothing.

        On a full disk they are lost, with a line that says so: an error here would hide the one that stopped the run.
        """
        if self.writer.file_writer is None or self._alive():
            try:
                self.writer.close()
            except OSError as error:
                distributed.say(f"warning: TensorBoard's last events could not be written ({error.strerror or error})")
                files: Any = self.writer._get_file_writer()
                files.event_writer._worker.stop()
                files.event_writer._closed = True  # else it is closed again when Python exits
        self._staged.close()

    def _open(self, purge_step: int | None = None) -> None:
        from tensorboardX import SummaryWriter  # in the extra [train]; sampling and converting do not need it

        self.writer = SummaryWriter(
            str(self._staged.local),
            purge_step=purge_step,
            flush_secs=30,
            max_queue=1000,  # more than one line of the log, so that no line waits for a thread that has just ended
            # The default name contains the time in whole seconds: two writers within one second would use one file.
            filename_suffix=f".{time.time_ns()}",
        )


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines that `MetricLog` or `log_results` wrote, with NaN and the infinities as floats again.

    A damaged last line is left out: a run may have been killed while it wrote this line, or may be writing it now.

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
                named = f"line {number} of {os.fspath(path)!r}"
                raise UserError(f"{named} is not a line of metrics: {error}; remove the line") from error
    return entries


def _entry(line: bytes) -> dict[str, Any]:
    """Returns the step and the numbers of one line; raises `ValueError` if it is not a line of metrics."""
    found = schema.json_object(line)
    step, made_by = found.pop("step", None), found.pop(_MADE_BY, None)
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"its step is {schema.shown(step)}")
    numbers = {name: _from_json(value) for name, value in found.items()}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"its {name} is {schema.shown(value)}, not a number")
    return {"step": step} | numbers | ({} if made_by is None else {_MADE_BY: made_by})


def _pixels(image: PIL.Image.Image) -> np.ndarray:
    """Returns uint8 (H, W) of a gray image, (H, W, 3) of any other."""
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _end_last_line(path: Path) -> None:
    """Ends the last line of `path` with a newline if it is complete, and deletes it if it is incomplete."""
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
    """Deletes the lines of `path` after `start_step`, which the resumed run writes again."""
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
