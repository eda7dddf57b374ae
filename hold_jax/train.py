"""Train a score model: the loop. It takes built objects and knows no config."""

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from clu import parameter_overview

from hold_jax import pictures
from hold_jax.data import Dataset, batches, prefetch, to_model_range
from hold_jax.errors import UserError, require
from hold_jax.model import Model
from hold_jax.sample import SampleSettings, make_draw, picture
from hold_jax.training.checkpoint import Checkpoints, abstract_state
from hold_jax.training.log import METRICS_FILE, MetricLog, NullLog, Progress, read_jsonl
from hold_jax.training.mesh import Devices
from hold_jax.training.state import TrainState, init_state
from hold_jax.training.step import ScoreLoss, StepFn, make_train_step


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How long and how often; counts are in optimiser steps.

    Attributes:
      seed: of parameters, noise, and the data's order.
      batch_size: examples a step, over all devices and processes.
      num_steps: steps in all.
      accumulation_steps: parts the batch is split into.
      steps_per_call: steps in one compiled call.
      ema_decay: of the averaged parameters.
      flip: mirror pictures at random.
      log_every: steps between lines of the log.
      sample_every: steps between sample grids; 0: none.
      checkpoint_every: steps between checkpoints.
      keep_last: checkpoints kept.
      keep_every: also keep those whose step is a multiple of this; 0: no others.
    """

    seed: int
    batch_size: int
    num_steps: int
    accumulation_steps: int
    steps_per_call: int
    ema_decay: float
    flip: bool
    log_every: int
    sample_every: int
    checkpoint_every: int
    keep_last: int
    keep_every: int

    def __post_init__(self):
        require(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2^32)")
        for name in ("num_steps", "accumulation_steps", "steps_per_call", "log_every", "checkpoint_every", "keep_last"):
            value = getattr(self, name)
            require(value >= 1, f"training.{name}", value, "1 or more")
        for name in ("num_steps", "log_every", "sample_every", "checkpoint_every"):
            value = getattr(self, name)
            whole = value >= 0 and value % self.steps_per_call == 0
            require(whole, f"training.{name}", value, f"a multiple of steps_per_call = {self.steps_per_call}")
        require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "in [0, 1)")
        require(self.keep_every >= 0, "training.keep_every", self.keep_every, "0 or more")


def train(
    model: Model,
    loss: ScoreLoss,
    optimizer: optax.GradientTransformation,
    dataset: Dataset,
    settings: TrainSettings,
    sampling: SampleSettings,
    workdir: Path,
) -> TrainState:
    """Trains from the newest checkpoint in `workdir`, or from the start, to `settings.num_steps`.

    Leaves checkpoints/, metrics.jsonl, tensorboard/, grids/ and loss.png in `workdir`. Stopped at any
    moment, the same call goes on from the last checkpoint with the same numbers.

    Raises:
      UserError: before compilation for settings that cannot work; at the step where the loss or the
        gradient stops being finite, with the last good checkpoint kept.
    """
    devices = Devices.all()
    main = jax.process_index() == 0
    draw = make_draw(model, sampling, devices)
    take_step = _step(model, loss, optimizer, settings)
    new_state = functools.partial(init_state, model, optimizer, settings.seed)
    with Checkpoints.open(workdir, keep_last=settings.keep_last, keep_every=settings.keep_every or None) as checkpoints:
        if checkpoints.latest() is None:
            state = devices.init(new_state)
        else:
            state = checkpoints.restore(abstract_state(new_state, devices.replicated))
        start = int(state.step)
        if start >= settings.num_steps:
            print(f"already trained: {workdir} is at step {start:,} of {settings.num_steps:,}", file=sys.stderr)
            return state
        whole = start % settings.steps_per_call == 0
        require(
            whole, "training.steps_per_call", settings.steps_per_call, f"a divisor of {start}, the step to go on from"
        )
        if main:
            _introduce(model, state, dataset, devices, start, workdir)

        step_fn = jax.jit(take_step, donate_argnums=0, out_shardings=devices.replicated)
        log = MetricLog(workdir, start_step=start) if main else NullLog()
        progress = Progress(settings.num_steps, start, settings.batch_size, enabled=main)
        feed = _feed(dataset, settings, devices, start)
        pending: list[dict[str, jax.Array]] = []
        began, first = time.monotonic(), start
        try:
            for step in range(start + settings.steps_per_call, settings.num_steps + 1, settings.steps_per_call):
                state, metrics = step_fn(state, next(feed))
                pending.append(metrics)

                def due(every: int, step: int = step) -> bool:
                    return bool(every) and (step % every == 0 or step == settings.num_steps)

                reported = due(settings.log_every) or due(settings.checkpoint_every)
                if reported or step == start + settings.steps_per_call:
                    values = _finite(pending, step, checkpoints)
                    # A resumed run's first call only starts the clock: the log is that of a run that never stopped.
                    if reported or start == 0:
                        pending = []
                        seconds = time.monotonic() - began
                        rate = (step - first) * settings.batch_size / seconds
                        log.scalars(
                            step,
                            {**{f"train/{name}": v for name, v in values.items()}, "train/images_per_second": rate},
                        )
                    progress.update(step, values["loss"])
                    began, first = time.monotonic(), step
                if due(settings.checkpoint_every):
                    checkpoints.save(state)
                if due(settings.sample_every):
                    x, _ = draw(state.ema, np.arange(sampling.batch_size, dtype=np.int32))
                    if main:
                        grid = picture(np.asarray(x))
                        (workdir / "grids").mkdir(exist_ok=True)
                        grid.save(workdir / "grids" / f"step_{step:08d}.png")
                        log.image("samples", grid, step)
            checkpoints.save(state)
        finally:
            feed.close()
            progress.close()
            log.close()
    if main:
        lines = [line for line in read_jsonl(workdir / METRICS_FILE) if "train/loss" in line]
        pictures.loss_curve(
            [line["step"] for line in lines], [line["train/loss"] for line in lines], workdir / "loss.png"
        )
    return state


def check(
    model: Model,
    loss: ScoreLoss,
    optimizer: optax.GradientTransformation,
    dataset: Dataset,
    settings: TrainSettings,
    sampling: SampleSettings,
) -> None:
    """Traces the training step and the sampler without compiling them: what cannot work fails now, in seconds.

    Raises:
      UserError: naming the setting.
    """
    devices = Devices.all()
    devices.require_divides("training.batch_size", settings.batch_size, settings.accumulation_steps)
    require(not settings.flip or dataset.is_image, "data.flip", True, "False for vectors")
    make_draw(model, sampling, devices)
    calls = (settings.steps_per_call,) if settings.steps_per_call > 1 else ()
    batch = {
        "x": jax.ShapeDtypeStruct((*calls, settings.batch_size, *model.data_shape), np.float32),
        "label": jax.ShapeDtypeStruct((*calls, settings.batch_size), np.int32),
    }
    state = jax.eval_shape(functools.partial(init_state, model, optimizer, settings.seed))
    jax.eval_shape(_step(model, loss, optimizer, settings), state, batch)


def _step(model: Model, loss: ScoreLoss, optimizer: optax.GradientTransformation, settings: TrainSettings) -> StepFn:
    return make_train_step(
        model,
        loss,
        optimizer,
        ema_decay=settings.ema_decay,
        accumulation_steps=settings.accumulation_steps,
        steps_per_call=settings.steps_per_call,
    )


def _feed(dataset: Dataset, settings: TrainSettings, devices: Devices, start: int) -> Iterator[dict[str, jax.Array]]:
    """Batches on the devices, ahead of their use, from step `start` on."""
    local = batches(
        dataset,
        batch_size=settings.batch_size,
        seed=settings.seed,
        start_step=start,
        flip=settings.flip,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        steps=settings.num_steps - start,
    )
    if settings.steps_per_call == 1:
        return prefetch(local, devices.put)
    grouped = _grouped(local, settings.steps_per_call)
    stacked = ({name: np.stack([b[name] for b in group]) for name in group[0]} for group in grouped)
    return prefetch(stacked, functools.partial(devices.put, axis=1))


def _finite(pending: list[dict[str, jax.Array]], step: int, checkpoints: Checkpoints) -> dict[str, float]:
    """Means of the metrics of the steps up to `step`; stops the run if one of them is not finite."""
    values = {name: np.concatenate([np.asarray(m[name]) for m in pending]) for name in pending[0]}
    bad = {name: np.flatnonzero(~np.isfinite(series)) for name, series in values.items()}
    # The first to go, and of several at one step the loss.
    first = min(((at[0], name != "loss", name) for name, at in bad.items() if at.size), default=None)
    if first:
        index, _, name = first
        at = step - len(values[name]) + 1 + index
        latest = checkpoints.latest()
        kept = (
            "no checkpoint was written yet" if latest is None else f"the last good checkpoint, step {latest}, is kept"
        )
        raise UserError(
            f"training stopped: {name} is {values[name][index]} at step {at}; {kept}. "
            "Lower optimizer.learning_rate, lengthen optimizer.warmup_steps, or compute in float32"
        )
    return {name: float(series.mean()) for name, series in values.items()}


def _introduce(model: Model, state: TrainState, dataset: Dataset, devices: Devices, start: int, workdir: Path) -> None:
    """Tells on standard output what is about to be trained, on what."""
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    some = to_model_range(dataset.gather(np.arange(min(len(dataset), 1000)))["x"])
    shape = "x".join(map(str, dataset.shape))
    print(
        f"SDE: order {model.sde.order}, t from {model.sde.t_min:.4g} to {model.sde.T:.4g}\n"
        f"data: {dataset.name}, {len(dataset):,} {dataset.split} examples of {shape}, "
        f"standard deviation {float(np.std(some)):.3f} (model.sigma_data is {model.sigma_data})\n"
        f"devices: {devices.mesh.size} x {jax.devices()[0].device_kind}\n"
        f"work directory: {workdir}" + (f", going on from step {start:,}" if start else ""),
        flush=True,
    )


def _grouped(items: Iterator[dict], size: int) -> Iterator[list[dict]]:
    """Lists of `size` items; `itertools.batched` needs Python 3.12."""
    while group := list(itertools.islice(items, size)):
        yield group
