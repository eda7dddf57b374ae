"""A progress bar on a terminal, plain lines elsewhere."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

from tqdm import tqdm


class Progress:
    """Shows step, loss, examples per second and the time left.

    On a terminal this is a tqdm bar. Elsewhere (a log file, a notebook, the output of a scheduler) a plain line is
    printed at most every `line_every_s` seconds, a first one with the first loss, and a last one at `close`.

    The first update only starts the clock, so that compilation does not count in the rate. Later pauses (evaluation,
    checkpoints) do count, since they affect the time left.

    Args:
        total_steps: the step at which training ends.
        start_step: the step at which it starts or resumes.
        examples_per_step: the global batch size.
        unit: name of what is counted, in the singular.
        title: begins every line. With a title, elsewhere than on a terminal, work of less than `line_every_s` shows
            nothing; a bar on a terminal is removed at the end.
        examples: name of what the rate counts, in the plural, such as "images" or "points"; `unit` by default.
        enabled: whether anything is shown; pass `False` on all processes except the first.
        clock: returns seconds.
        stream: where the output is written; standard error by default.
        line_every_s: least time between two plain lines, in seconds.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        examples_per_step: int,
        enabled: bool = True,
        *,
        unit: str = "step",
        title: str | None = None,
        examples: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
        line_every_s: float = 30.0,
    ) -> None:
        self._total_steps = total_steps
        self._step = start_step
        self._examples_per_step = examples_per_step
        self._unit, self._examples = unit, f"{unit}s" if examples is None else examples
        self._title = title
        self._clock = clock
        self._stream = sys.stderr if stream is None else stream
        self._line_every_s = line_every_s
        self._loss: float | None = None
        self._first: tuple[int, float] | None = None  # step and time of the first update
        self._now = self._began = clock()
        self._last_line = self._began
        self._open = enabled
        self._bar = None
        if enabled and self._stream.isatty():
            width = shutil.get_terminal_size(fallback=(0, 0)).columns  # 0: some terminals report no size
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                file=self._stream,
                ncols=None if width else 100,  # at a size of 0 tqdm would show nothing
                nrows=None if width else 24,
                dynamic_ncols=width > 0,
                leave=title is None,
                miniters=1,
                bar_format="{percentage:3.0f}% {bar} {desc}",
            )

    @property
    def examples_per_second(self) -> float | None:
        """Mean rate since the first update; `None` before the second."""
        if self._first is None or self._now <= self._first[1] or self._step <= self._first[0]:
            return None
        return (self._step - self._first[0]) * self._examples_per_step / (self._now - self._first[1])

    @property
    def seconds_left(self) -> float | None:
        """Time left at the mean rate, in seconds; `None` if there is no rate yet."""
        rate = self.examples_per_second
        return None if rate is None else (self._total_steps - self._step) * self._examples_per_step / rate

    def update(self, step: int, loss: float | None = None) -> None:
        """Reports that `step` steps are done. Without `loss` the last loss stays shown, which saves a transfer."""
        self._step, self._now = step, self._clock()
        if loss is not None:
            if self._loss is None:
                self._last_line = -math.inf
            self._loss = float(loss)
        if self._first is None:
            self._first = (step, self._now)
        if not self._open:
            return
        if self._bar is not None:
            self._bar.set_description_str(self._text(), refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._now - self._last_line >= self._line_every_s:
            self._last_line = self._now
            self._print(self._text())

    def write(self, message: str) -> None:
        """Prints a line above the bar."""
        if not self._open:
            return
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            self._print(message)

    def close(self) -> None:
        """Prints the last line and closes the bar; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        elif self._title is None or self._clock() - self._began >= self._line_every_s:
            ending = "finished" if self._step >= self._total_steps else "stopped"
            elapsed = tqdm.format_interval(self._clock() - self._began)
            self._print(f"{ending} after {elapsed}: {self._text()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _text(self) -> str:
        title = "" if self._title is None else f"{self._title}: "
        parts = [f"{title}{self._unit} {self._step:,}/{self._total_steps:,}"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4g}")
        rate, left = self.examples_per_second, self.seconds_left
        if rate is not None and left is not None:
            parts.append(f"{rate:,.0f} {self._examples}/s" if rate >= 10 else f"{rate:.2g} {self._examples}/s")
            if left > 0:
                parts.append(f"{tqdm.format_interval(left)} left")
        return ", ".join(parts)

    def _print(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
