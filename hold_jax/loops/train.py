"""Train a score model: the loop. It takes built objects and knows no config."""

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hold_jax.data import Dataset, batches, prefetch
from hold_jax.errors import require, require_choice
from hold_jax.loops.generate import SampleSettings, make_draw, picture
from hold_jax.model import Model
from hold_jax.runtime import distributed, pictures
from hold_jax.runtime.log import METRICS_FILE, MetricLog, NullLog, read_jsonl
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.progress import Progress
from hold_jax.runtime.storage import Path
from hold_jax.training.checkpoint import Checkpoints
from hold_jax.training.preemption import Preemption
from hold_jax.training.profile import Profile
from hold_jax.training.state import TrainState
from hold_jax.training.step import GRADIENT_DTYPES, Program, ScoreLoss
from hold_jax.training.window import Window


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How long and how often; counts are in optimizer steps.

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
      skip_limit: steps in a row that may be skipped because their loss or gradient is not finite.
      profile: steps to trace into `workdir`/profile; 0: none.
      gradient_dtype: type in which the gradients of convolutions are summed over devices, one of `GRADIENT_DTYPES`.
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
    skip_limit: int
    profile: int
    gradient_dtype: str = "float32"

    def __post_init__(self):
        require(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2^32)")
        for name in ("num_steps", "accumulation_steps", "steps_per_call", "log_every", "checkpoint_every", "keep_last"):
            value = getattr(self, name)
            require(value >= 1, f"training.{name}", value, "1 or more")
        for name in ("num_steps", "log_every", "sample_every", "checkpoint_every"):
            value = getattr(self, name)
            whole = value >= 0 and value % self.steps_per_call == 0
            require(whole, f"training.{name}", value, f"a multiple of steps_per_call = {self.steps_per_call}")
        require_choice("training.gradient_dtype", self.gradient_dtype, GRADIENT_DTYPES)
        require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "in [0, 1)")
        for name in ("keep_every", "skip_limit", "profile"):
            require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "0 or more")


def train(
    model: Model,
    loss: ScoreLoss,
    optimizer: optax.GradientTransformation,
    dataset: Dataset,
    settings: TrainSettings,
    sampling: SampleSettings,
    workdir: Path,
) -> TrainState:
    """Trains from the newest intact checkpoint in `workdir`, or from the start, to `settings.num_steps`.

    Leaves checkpoints/, metrics.jsonl, tensorboard/, grids/ and loss.png in `workdir`. Stopped at any
    moment, the same call goes on from the last checkpoint with the same numbers. At SIGTERM, or Ctrl-C, it
    writes a checkpoint and returns the state so far.

    Raises:
      UserError: before compilation for settings that cannot work; where more than `settings.skip_limit`
        steps in a row are not finite, and where a checkpoint cannot be written, with the last good one kept.
    """
    began = time.monotonic()
    devices = Devices.all()
    main = distributed.is_main()
    draw = make_draw(model, sampling, devices)
    program = _program(model, loss, optimizer, settings, devices)
    per_call = settings.steps_per_call
    with Checkpoints.open(workdir, keep_last=settings.keep_last, keep_every=settings.keep_every or None) as checkpoints:
        saved = checkpoints.resume(program.abstract_tree())
        start = 0 if saved is None else int(saved.step)
        if start >= settings.num_steps:
            if main:
                print(f"already trained: {workdir} is at step {start:,} of {settings.num_steps:,}", file=sys.stderr)
            assert saved is not None  # num_steps is 1 or more
            return saved
        whole = start % per_call == 0
        require(whole, "training.steps_per_call", per_call, f"a divisor of {start}, the step to go on from")
        state = program.start() if saved is None else program.from_tree(saved)
        del saved
        if main:
            _introduce(model, program.abstract_tree().params, dataset, settings, devices, start, workdir)

        feed = _feed(dataset, settings, devices, start)
        # Compiled ahead: a call with any other shape, type or sharding is an error, never a second compilation.
        step_fn = program.step.lower(state, _abstract_batch(model, settings, devices)).compile()
        compiled = time.monotonic()
        log = MetricLog(workdir, start_step=start) if main else NullLog()
        progress = Progress(settings.num_steps, start, settings.batch_size, enabled=main)
        window = Window(settings.batch_size, settings.skip_limit)
        profile = Profile(workdir, -(-settings.profile // per_call) if main else 0)
        try:
            with Preemption() as preemption:
                for step in range(start + per_call, settings.num_steps + 1, per_call):
                    profile.before_call()
                    state, metrics = step_fn(state, window.next_batch(feed))
                    window.add(metrics)
                    traced = profile.after_call(metrics)
                    if traced:
                        progress.write(f"profile: {traced}")

                    def due(every: int, step: int = step) -> bool:
                        return bool(every) and (step % every == 0 or step == settings.num_steps)

                    first, stop_requested = step == start + per_call, preemption.reached()
                    # A resumed run's first call only starts the clock: its log is that of a run that never stopped.
                    reported = due(settings.log_every) or due(settings.checkpoint_every) or stop_requested
                    if reported or (first and start == 0):
                        values, skipped = window.close(step, checkpoints.latest())
                        log.scalars(step, {f"train/{name}": value for name, value in values.items()})
                        for line in skipped:
                            progress.write(line)
                        progress.update(step, values["loss"])
                    elif first:
                        progress.update(step, window.loss())
                    if first:
                        window.start_clock()
                        seconds = time.monotonic() - began
                        progress.write(f"first step after {seconds:.1f} s, {compiled - began:.1f} s of it compiling")
                    if due(settings.checkpoint_every) or stop_requested:
                        log.flush()  # a run that goes on from here has all lines up to here
                        checkpoints.save(program.to_tree(state))
                    if stop_requested:
                        break
                    if due(settings.sample_every):
                        x, _ = draw(program.average(state), np.arange(sampling.batch_size, dtype=np.int32))
                        if main:
                            grid = picture(np.asarray(model.to_data(x)))
                            pictures.write_png(grid, workdir / "grids" / f"step_{step:08d}.png")
                            log.image("samples", grid, step)
            state = program.to_tree(state)
            checkpoints.save(state)
            checkpoints.wait()
        finally:
            profile.close()
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
    computed = jnp.dtype(getattr(model.network, "dtype", jnp.float32))
    usable = settings.gradient_dtype in ("float32", computed.name)
    require(usable, "training.gradient_dtype", settings.gradient_dtype, f"float32 where model.dtype is {computed}")
    make_draw(model, sampling, devices)
    program = _program(model, loss, optimizer, settings, devices)
    jax.eval_shape(program.step, program.abstract(), _abstract_batch(model, settings, devices))


def _abstract_batch(model: Model, settings: TrainSettings, devices: Devices) -> dict[str, jax.ShapeDtypeStruct]:
    """What `_feed` yields: shapes, types and shardings."""
    calls = (settings.steps_per_call,) if settings.steps_per_call > 1 else ()
    sharding = devices.batch(axis=len(calls))
    kind = np.uint8 if len(model.data_shape) == 3 else np.float32
    return {
        "x": jax.ShapeDtypeStruct((*calls, settings.batch_size, *model.data_shape), kind, sharding=sharding),
        "label": jax.ShapeDtypeStruct((*calls, settings.batch_size), np.int32, sharding=sharding),
    }


def _program(
    model: Model,
    loss: ScoreLoss,
    optimizer: optax.GradientTransformation,
    settings: TrainSettings,
    devices: Devices,
) -> Program:
    return Program.make(
        model,
        loss,
        optimizer,
        devices,
        seed=settings.seed,
        ema_decay=settings.ema_decay,
        accumulation_steps=settings.accumulation_steps,
        steps_per_call=settings.steps_per_call,
        gradient_dtype=settings.gradient_dtype,
    )


def _feed(
    dataset: Dataset, settings: TrainSettings, devices: Devices, start: int
) -> Generator[dict[str, jax.Array], None, None]:
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


def _introduce(
    model: Model,
    params: Any,
    dataset: Dataset,
    settings: TrainSettings,
    devices: Devices,
    start: int,
    workdir: Path,
) -> None:
    """Prints a summary of model, data and devices; warns of data whose scale the noise levels are not made for."""
    from clu import parameter_overview  # the extra [train]; sampling and converting do without it

    print(parameter_overview.get_parameter_overview(params, include_stats=False))
    some = dataset.subset(10_000)
    deviation = float(np.std(model.to_model(some.gather(np.arange(len(some)))["x"])))
    shape = "x".join(map(str, dataset.shape))
    print(
        f"SDE: order {model.sde.order}, t from {model.sde.t_min:.4g} to {model.sde.T:.4g}\n"
        f"data: {dataset.name}, {len(dataset):,} {dataset.split} examples of {shape}, "
        f"standard deviation {deviation:.3f} in the model's range (model.sigma_data is {model.sigma_data:g})"
        + (", mirrored left to right at random (data.flip)\n" if settings.flip else "\n")
        + f"devices: {devices.mesh.size} x {jax.devices()[0].device_kind}"
        + (f" in {jax.process_count()} processes\n" if jax.process_count() > 1 else "\n")
        + f"work directory: {workdir}"
        + (f", going on from step {start:,}" if start else ""),
        flush=True,
    )
    if not model.sigma_data / 2 <= deviation <= 2 * model.sigma_data:
        distributed.say(
            f"warning: the data's standard deviation is {deviation:.3g} in the model's range and model.sigma_data is "
            f"{model.sigma_data:g}: noise levels and preconditioning are scaled for the latter; set model.sigma_data "
            "to the former"
        )


def _grouped(items: Iterator[dict], size: int) -> Iterator[list[dict]]:
    """Lists of `size` items; `itertools.batched` needs Python 3.12."""
    while group := list(itertools.islice(items, size)):
        yield group
