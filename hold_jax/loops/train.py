"""The training loop: from built objects to checkpoints, logs and sample grids."""

import contextlib
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from hold_jax.data import Dataset, batches, prefetch
from hold_jax.errors import UserError, require, require_choice
from hold_jax.loops.best import BestCheckpoint
from hold_jax.loops.conditions import NONE, Conditions
from hold_jax.loops.draw import SampleSettings, make_draw
from hold_jax.loops.evaluate import loss_of_examples
from hold_jax.loops.generate import picture
from hold_jax.loops.introduction import introduce_training
from hold_jax.model import Model
from hold_jax.runtime import curves, distributed, flops, pictures, storage
from hold_jax.runtime import workdir as work_directory
from hold_jax.runtime.log import METRICS_FILE, Logs, MetricLog, OpenLog, read_jsonl
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.progress import Progress
from hold_jax.runtime.storage import LostFileError, Path
from hold_jax.training import power_average
from hold_jax.training.checkpoint import Checkpoints
from hold_jax.training.optimizer import Decay, halflife_decay
from hold_jax.training.preemption import Preemption
from hold_jax.training.profile import Profile
from hold_jax.training.state import TrainState
from hold_jax.training.step import GRADIENT_DTYPES, Program, ScoreLoss
from hold_jax.training.window import Window

_BINS = 10  # of noise levels, in which the held-out loss is logged


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Length, batches and intervals of a training run. All counts are in optimizer steps.

    Attributes:
      seed: of the initial parameters, the noise, and the order of the data; in [0, 2^32).
      batch_size: examples per step, over all devices and processes.
      num_steps: total number of steps.
      accumulation_steps: number of parts into which each batch is split, to save memory.
      steps_per_call: steps per call of the compiled function. It divides `num_steps` and the intervals of
        log lines, sample grids and checkpoints.
      ema_decay: decay of the exponential moving average of the parameters per step, in [0, 1).
      ema_halflife_images: images in which a weight of that average halves, in place of `ema_decay`.
      ema_rampup_ratio: largest half-life as a share of the images seen; 0 sets no limit (`optimizer.halflife_decay`).
      ema_snapshot_every: interval between files of the power-function averages (`power_average`); 0 keeps none.
      flip: whether images are mirrored left to right at random.
      log_every: interval between lines of the log.
      sample_every: interval between sample grids; 0 draws none.
      checkpoint_every: interval between checkpoints.
      keep_last: number of newest checkpoints to keep.
      keep_every: checkpoints at multiples of this step are also kept; 0 keeps no others.
      skip_limit: maximum number of consecutive steps that are skipped because their loss or gradient is not finite.
      profile: number of steps to trace into `workdir`/profile; 0 traces none.
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
    ema_halflife_images: int | None = None
    ema_rampup_ratio: float = 0.05
    ema_snapshot_every: int = 0
    gradient_dtype: str = "float32"

    def __post_init__(self):
        require(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2^32)")
        for name in ("num_steps", "accumulation_steps", "steps_per_call", "log_every", "checkpoint_every", "keep_last"):
            value = getattr(self, name)
            require(value >= 1, f"training.{name}", value, "1 or more")
        for name in ("num_steps", "log_every", "sample_every", "checkpoint_every", "ema_snapshot_every"):
            value = getattr(self, name)
            whole = value >= 0 and value % self.steps_per_call == 0
            require(whole, f"training.{name}", value, f"a multiple of steps_per_call = {self.steps_per_call}")
        require_choice("training.gradient_dtype", self.gradient_dtype, GRADIENT_DTYPES)
        require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "in [0, 1)")
        for name in ("keep_every", "skip_limit", "profile"):
            require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "0 or more")

    @property
    def decay(self) -> Decay:
        """Decay of the averaged parameters, as `update_ema` takes it."""
        if self.ema_halflife_images is None:
            return self.ema_decay
        return halflife_decay(self.ema_halflife_images, self.ema_rampup_ratio, self.batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """Trains one model on one data set.

    Attributes:
      model: the SDE, the network and its parameterization.
      loss: per-example loss with its options bound.
      optimizer: optax transformation of the gradients.
      dataset: training data.
      settings: length, batches and intervals of the run.
      sampling: how the sample grids are drawn.
      learning_rate: the rate by step, for the log.
      held_out: examples whose loss is logged at each checkpoint; the checkpoint of least loss is kept as the best one.
        None: no such loss.
      initial: parameters that a new run starts from, by path such as conv_in/kernel, averages too; those that are not
        among them are initialized at random. None: all are.
      conditions: of the samples in the grids.
    """

    model: Model
    loss: ScoreLoss
    optimizer: optax.GradientTransformation
    dataset: Dataset
    settings: TrainSettings
    sampling: SampleSettings
    learning_rate: Callable[[int], Any] | None = None
    held_out: Dataset | None = None
    initial: Mapping[str, Any] | None = None
    conditions: Conditions = NONE

    def check(self) -> None:
        """Traces the training step and the sampler without compiling them, to find invalid settings in seconds.

        Raises:
          UserError: if a setting cannot work; the message names it.
        """
        devices, settings = Devices.all(), self.settings
        devices.require_divides("training.batch_size", settings.batch_size, settings.accumulation_steps)
        allowed = f"False for data of kind {self.dataset.kind!r}"
        require(not settings.flip or self.dataset.is_image, "data.flip", True, allowed)
        kind = self.model.kind if self.held_out is None else self.held_out.kind
        named = self.dataset.name if self.held_out is None else self.held_out.name
        allowed = f"data with {self.model.kind}s to test, as to train; these have {kind}s"
        require(kind == self.model.kind, "data.name", named, allowed)
        computed = self.model.dtype
        allowed = "bfloat16 or float32 to train: in float16, which is for sampling and evaluation, gradients underflow"
        require(computed != jnp.float16, "model.dtype", computed.name, allowed)
        usable = settings.gradient_dtype in ("float32", computed.name)
        require(usable, "training.gradient_dtype", settings.gradient_dtype, f"float32 where model.dtype is {computed}")
        make_draw(self.model, self.sampling, devices)
        program = self._program(devices)
        jax.eval_shape(program.step, program.abstract(), self._abstract_batch(devices))

    def run(
        self,
        workdir: str | Path,
        log: OpenLog = MetricLog,
        *,
        record: work_directory.Record | None = None,
        begun: Callable[[], None] = lambda: None,
    ) -> TrainState:
        """Trains to step `settings.num_steps`, from the newest intact checkpoint in `workdir` if there is one.

        An interrupted run continues from its last checkpoint when it is called again, and gives the same numbers as a
        run without interruption. On SIGTERM, Ctrl-C or SIGHUP it writes a checkpoint and returns early.

        Args:
          workdir: folder that receives checkpoints/, metrics.jsonl, parameters.txt, tensorboard/, grids/ and loss.png.
          log: opens the log, on process 0; by default `MetricLog`. A log must write `metrics.jsonl` as that one does
            for loss.png, and for the best checkpoint of a run that goes on.
          record: of a run that goes on, with its new settings; written once the checkpoint is restored, if a step is
            left to take. None: that in the work directory stays.
          begun: called on process 0, once nothing speaks against the run any more.

        Returns:
          The state after the last step that was taken; its `step` is less than `settings.num_steps` if the run was
          stopped by a signal.

        Raises:
          UserError: before compilation, if a setting cannot work; later, if more than `settings.skip_limit`
            consecutive steps are not finite or a checkpoint cannot be written (the last good checkpoint is kept), or if
            the work directory was deleted or moved (the state is saved there again).
        """
        began = time.monotonic()
        workdir = storage.path(workdir)  # absolute, as Orbax needs it
        devices, settings = Devices.all(), self.settings
        main = distributed.is_main()
        draw = make_draw(self.model, self.sampling, devices)
        program = self._program(devices)
        per_call = settings.steps_per_call
        with contextlib.ExitStack() as stack:
            checkpoints = stack.enter_context(
                Checkpoints.open(workdir, keep_last=settings.keep_last, keep_every=settings.keep_every or None)
            )
            saved = checkpoints.resume(program.abstract_tree())
            start = 0 if saved is None else int(saved.step)
            if start >= settings.num_steps:
                if main:
                    begun()
                    print(f"already trained: {workdir} is at step {start:,} of {settings.num_steps:,}", file=sys.stderr)
                    if record not in (None, checkpoints.record):
                        print(f"no step to take: {work_directory.RECORD_FILE} keeps its settings", file=sys.stderr)
                assert saved is not None  # num_steps is 1 or more
                return saved
            whole = start % per_call == 0
            require(whole, "training.steps_per_call", per_call, f"a divisor of {start}, the step to go on from")
            state = self._start(program) if saved is None else program.from_tree(saved)
            del saved
            with distributed.together():
                if main:
                    begun()
                    if record is not None:
                        work_directory.write(workdir, record)
            if record is not None:
                checkpoints = dataclasses.replace(checkpoints, record=record)
            record = checkpoints.record
            run = (record and record.run) or ""
            if main:
                power_average.drop_after(workdir, run, start)
                introduce_training(
                    self.model, self.dataset, program.abstract_tree().params, workdir, step=start, flip=settings.flip
                )
                print("compiling the training step...", flush=True)

            feed = self._feed(devices, start)
            # Compiled ahead: a call with any other shape, type or sharding is an error, never a second compilation.
            written = program.step.trace(state, self._abstract_batch(devices))
            step_fn, operations = written.lower().compile(), flops.of_products(written.jaxpr) / per_call
            compiled = time.monotonic()
            history = record.history if record is not None else {}
            best = stack.enter_context(BestCheckpoint(workdir, start, history)) if self.held_out is not None else None
            metric_log = log(workdir, start) if main else Logs([])
            counted = {"picture": "images", "vector": "points", "signal": "signals"}.get(self.dataset.kind, "examples")
            progress = Progress(settings.num_steps, start, settings.batch_size, enabled=main, examples=counted)
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
                        checkpointed = due(settings.checkpoint_every) or stop_requested
                        reported = due(settings.log_every) or checkpointed
                        if reported or (first and start == 0):
                            values, skipped = window.close(step, checkpoints.latest())
                            values |= self._rates(step, values, operations)
                            line = {f"train/{name}": value for name, value in values.items()}
                            if best is not None and due(settings.checkpoint_every):
                                found = self._held_out_loss(program.average(state), devices)
                                line |= {f"test/{name}": value for name, value in found.items()}
                                best.offer(found["loss"], program.to_tree(state), checkpoints)
                                window.start_clock()
                            metric_log.scalars(step, line)
                            for text in skipped:
                                progress.write(text)
                            progress.update(step, values["loss"])
                        elif first:
                            progress.update(step, window.loss())
                        if first:
                            window.start_clock()
                            seconds = time.monotonic() - began
                            progress.write(
                                f"first step after {seconds:.1f} s, {compiled - began:.1f} s of it compiling"
                            )
                        if due(settings.ema_snapshot_every):  # before the checkpoint, from which a run goes on
                            averages = program.power(state)
                            if main:
                                power_average.write(workdir, averages, step, run)
                        if checkpointed:
                            metric_log.flush()  # a run that goes on from here has all lines up to here
                            checkpoints.save(program.to_tree(state))
                        if stop_requested:
                            break
                        if due(settings.sample_every):
                            index = np.arange(self.sampling.batch_size, dtype=np.int32)
                            x = draw(program.average(state), index, self.conditions.of(index)).x
                            if main:
                                grid = picture(np.asarray(self.model.to_data(x)))
                                pictures.write_png(grid, workdir / "grids" / f"step_{step:08d}.png")
                                metric_log.image("samples", grid, step)
                state = program.to_tree(state)
                checkpoints.save(state)
                checkpoints.wait()
            except LostFileError as error:
                raise UserError(f"{error}; {checkpoints.rescue(program.to_tree(state))}") from None
            finally:
                profile.close()
                feed.close()
                progress.close()
                metric_log.close()
        if main:
            lines = read_jsonl(workdir / METRICS_FILE)
            losses = [{key: line[key] for key in ("step", "train/loss", "test/loss") if key in line} for line in lines]
            pictures.write_png(curves.draw(curves.grouped(losses)), workdir / "loss.png")
        return state

    def _rates(self, step: int, values: Mapping[str, float], operations: float) -> dict[str, float]:
        """Returns the learning rate of the last step, and the speed where it is known."""
        rates = {}
        if self.learning_rate is not None:
            rates["learning_rate"] = float(self.learning_rate(step - 1))
        if "images_per_second" in values:
            rates["tflops_per_second"] = operations * values["images_per_second"] / self.settings.batch_size / 1e12
        return rates

    def _held_out_loss(self, params: Any, devices: Devices) -> dict[str, float]:
        """Returns the mean loss of the held-out examples, its error, and the means in ten bins of rising noise.

        Times and noise are those of the example's number: losses of several checkpoints, and of several runs on the
        same data, compare. A bin is a tenth of the loss's time law.
        """
        assert self.held_out is not None
        size = self.settings.batch_size // self.settings.accumulation_steps
        each = loss_of_examples(
            self.model, self.loss, params, self.held_out, _BINS, self.settings.seed, devices, batch_size=size
        )
        mean = each.mean(axis=1)
        found = {"loss": float(mean.mean()), "loss_error": float(mean.std(ddof=1) / np.sqrt(len(mean)))}
        return found | {f"loss_noise{i}": float(value) for i, value in enumerate(each.mean(axis=0))}

    def _start(self, program: Program) -> TrainState:
        """Returns the running state at step 0."""
        state = program.start()
        if self.initial is None:
            return state
        tree = program.to_tree(state)
        given = {path: jnp.asarray(value, jnp.float32) for path, value in self.initial.items()}
        flat: Any = traverse_util.flatten_dict(tree.params, sep="/")
        flat = {path: jax.device_put(given.get(path, value), value.sharding) for path, value in flat.items()}
        params = traverse_util.unflatten_dict(flat, sep="/")
        return program.from_tree(
            dataclasses.replace(tree, params=params, ema=params, power=(params,) * len(tree.power))
        )

    def _abstract_batch(self, devices: Devices) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes, dtypes and shardings of the batches of `_feed`."""
        settings = self.settings
        calls = (settings.steps_per_call,) if settings.steps_per_call > 1 else ()
        sharding = devices.batch(axis=len(calls))
        return {
            name: jax.ShapeDtypeStruct((*calls, settings.batch_size, *shape), kind, sharding=sharding)
            for name, (shape, kind) in self.dataset.layout.items()
        }

    def _program(self, devices: Devices) -> Program:
        """Returns the functions that start a run and take its steps, not yet compiled."""
        settings = self.settings
        return Program.make(
            self.model,
            self.loss,
            self.optimizer,
            devices,
            seed=settings.seed,
            power_averages=settings.ema_snapshot_every > 0,
            ema_decay=settings.decay,
            accumulation_steps=settings.accumulation_steps,
            steps_per_call=settings.steps_per_call,
            gradient_dtype=settings.gradient_dtype,
        )

    def _feed(self, devices: Devices, start: int) -> Generator[dict[str, jax.Array], None, None]:
        """Yields batches from step `start` on, moved to the devices before they are needed."""
        settings = self.settings
        local = batches(
            self.dataset,
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


def _grouped(items: Iterator[dict], size: int) -> Iterator[list[dict]]:
    """Yields lists of `size` items, the last perhaps shorter. (`itertools.batched` needs Python 3.12.)"""
    while group := list(itertools.islice(items, size)):
        yield group
