"""The modes of `main.py`: each builds what it needs from the config, then calls one loop."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from hold_jax.app import build, card, constructors, experiment, initial, packed, prepare, results, tuned
from hold_jax.app.compilation_cache import cache_compilations
from hold_jax.app.config import KEYS, Config, names
from hold_jax.app.experiment import Experiment
from hold_jax.app.flags import Given
from hold_jax.data import Dataset
from hold_jax.data.dataset import array_dataset
from hold_jax.errors import require
from hold_jax.evaluation import figures, reference, report
from hold_jax.evaluation.features import features_of
from hold_jax.loops import tasks
from hold_jax.loops import tune as search
from hold_jax.loops.draw import SampleSettings, make_draw
from hold_jax.loops.evaluate import Evaluator
from hold_jax.loops.generate import generate
from hold_jax.loops.introduction import introduce
from hold_jax.loops.train import Trainer
from hold_jax.runtime import curves, distributed, pictures, schema, storage, workdir
from hold_jax.runtime.log import METRICS_FILE, RESULTS_FILE, read_jsonl
from hold_jax.runtime.mesh import Devices


def run(mode: str, given: Given, folder: str | None, cache: str = "off", command: str | None = None) -> None:
    """Runs one mode of `main.py`, then writes the model card.

    Args:
      mode: a key of `MODES`.
      given: the config file and flags.
      folder: the work directory; None: runs/NAME of the config file.
      cache: where compiled programs are kept, as `cache_compilations` takes it.
      command: what the user typed; the work directory keeps it.
    """
    to_train = mode == "train"
    base = initial.settings(given) if to_train else None
    found = experiment.find(given, folder, to_train=to_train, base=base)
    # Stops all processes before they wait for each other with different programs.
    distributed.require_same({"mode": mode, "workdir": str(found.path), **found.config.flat()})
    cache_compilations(cache, found.path)
    if mode in _WRITING:
        found = dataclasses.replace(found, config=tuned.apply(found.config, found.path, given.flags))
    found = dataclasses.replace(found, command=command)
    MODES[mode](found)
    if mode in (*_WRITING, "tune") and distributed.is_main():
        if mode != "train":  # which may be stopped for good, and keeps its command when it begins
            _remember(found)
        written = card.write(found.path)
        if written is not None:
            print(f"model card: {written}", flush=True)


def _remember(this: Experiment) -> None:
    if this.command is not None:
        card.remember(this.path, this.command)


def train(this: Experiment) -> None:
    """Trains, then samples and evaluates the result (config.training.report)."""
    config, path = this.config, this.path
    with contextlib.ExitStack() as held:
        with distributed.together():
            for key in ("guide", "ema_length"):
                value = getattr(config.sampling, key)
                require(value is None, f"sampling.{key}", value, "None to train; --mode=sample and eval take it")
            settings, sampling, optimizer = build.training(config), build.sampling(config), build.optimizer(config)
            step, per_call = this.step or 0, settings.steps_per_call
            allowed = f"a divisor of {step}, the step to go on from"
            require(step % per_call == 0, "training.steps_per_call", per_call, allowed)
            data = build.dataset(config, "train")
            where = config.training.init_from if this.run is None else None
            in_file = where is not None and packed.is_file(where)
            source = packed.find(where, initial.KEY) if where is not None and in_file else None
        if where is not None and not in_file:
            source = packed.find(where, initial.KEY)  # all processes read a checkpoint together
        with distributed.together():
            if source is not None and config.model.sigma_data is None:
                # The network's output was trained for this number.
                scale = build.sigma_data(source.config)
                this = dataclasses.replace(this, config=config.changed({"model.sigma_data": scale}))
            record = this.record(data)
            config = experiment.of_record(record, path / workdir.RECORD_FILE)
            loss = build.loss(config)
            model = prepare.model(config, data.shape, data.num_classes, build.statistics(record))
            start = None if source is None else initial.parameters(source, config, model)
            load_test = functools.partial(prepare.dataset, config, "test", model)
            given = build.conditions(config, model, load_test)
            rate, held_out = build.learning_rate(config), prepare.held_out(config, model)
            trainer = Trainer(
                model, loss, optimizer, data, settings, sampling,
                learning_rate=rate, held_out=held_out, initial=start, conditions=given,
            )  # fmt: skip
            log = build.log(config, record.run)
            trainer.check()
            if storage.exists(path / METRICS_FILE):
                read_jsonl(path / METRICS_FILE)  # a damaged log is an error now, not after the compilation
            report = results.Report(config, path, model, data) if config.training.report else None
            if distributed.is_main():
                held.enter_context(workdir.locked(path))
                # The record of a run that was stopped before its first checkpoint is replaced.
                now = None if experiment.newest_step(path) is None else workdir.find(path)
                before = this.run
                same = (now and now.run) == (before and before.run)
                require(
                    same, "workdir", str(path), "used by one run: another began there meanwhile; repeat the command"
                )
                if before is None:
                    card.forget(path)
                    workdir.write(path, record)
        with distributed.together():
            workdir.require_shared(path)
        if report is not None:
            report.prepare()

        # A run that goes on has its old record until its checkpoint is restored, and for good if no step is left.
        begun = functools.partial(_remember, this)
        state = trainer.run(path, log, record=None if this.run is None else record, begun=begun)
        step = int(state.step)
        if step < settings.num_steps:
            distributed.say(f"stopped at step {step:,} of {settings.num_steps:,}: the same command goes on from there")
        elif report is not None:
            # As in a checkpoint, each device has a part of the average, and a process reads its own devices alone.
            report.make(step, jax.jit(lambda tree: tree, out_shardings=Devices.all().replicated)(state.ema))


def draw(this: Experiment) -> None:
    """Draws samples from a checkpoint, or performs a task on given examples."""
    config, path, found = this.config, this.path, this.model_run
    workdir.require_writable(path)
    sampling, task = build.sampling(config), build.task(config)
    model = prepare.model(config, found.data_shape, found.num_classes, build.statistics(found))
    drawn, joined = prepare.guided(config, model)
    load_test = functools.cache(lambda: prepare.dataset(config, "test", model))
    chosen = config.sampling.checkpoint
    averages = packed.averages(config, model, path, None if chosen is None else [chosen])
    if task is None:
        make_draw(drawn, sampling, Devices.all())
        with distributed.together():
            given = prepare.conditions(config, drawn, load_test)
        for step, params in averages:
            introduce(model, None, path, step=step)
            results.print_folder(generate(drawn, joined(params), sampling, path, step=step, conditions=given))
        return
    if config.sampling.condition is not None:
        distributed.say("sampling.condition is for samples without a task; used: the conditions of the examples")
    with distributed.together():
        settings = tasks.check(drawn, task, sampling, Devices.all())
        examples = tasks.examples(drawn, task, settings, config.task.input, load_test)
    options = constructors.given(config.task)
    for step, params in averages:
        introduce(model, None, path, step=step)
        folder, result = tasks.perform(
            drawn, joined(params), task, settings, examples, path, step=step, options=options
        )
        results.print_folder(folder)
        if distributed.is_main():
            print(figures.table(result), flush=True)


def score(this: Experiment) -> None:
    """Reports the test loss, distances of samples to the data and, if chosen, bits per dimension."""
    config, path, found = this.config, this.path, this.model_run
    workdir.require_writable(path)
    if config.sampling.checkpoint is not None:
        distributed.say(f"sampling.checkpoint is for samples; evaluated: eval.checkpoints = {config.eval.checkpoints}")
    if config.sampling.condition is not None:
        distributed.say("sampling.condition is for samples; evaluated: with the conditions of the test examples")
    loss, settings = build.loss(config), build.evaluation(config)
    sampling = dataclasses.replace(build.sampling(config), frames=0)
    model = prepare.model(config, found.data_shape, found.num_classes, build.statistics(found))
    with distributed.together():
        held_out = prepare.dataset(config, "test", model)
    load_train = functools.cache(lambda: prepare.dataset(config, "train", model))
    drawn, joined = prepare.guided(config, model)
    make_draw(drawn, sampling, Devices.all())
    averages = packed.averages(config, model, path, build.checkpoint_steps(config))
    first = next(averages)
    networks = prepare.feature_networks(config, settings, load_train, path)
    evaluator = Evaluator(drawn, loss, held_out, load_train, networks, settings, sampling, path)
    evaluator.check()
    for step, params in itertools.chain([first], averages):
        introduce(model, held_out, path, step=step)
        results.print_figures(evaluator.evaluate(joined(params), step=step), path, evaluator.folder(step))


def tune(this: Experiment) -> None:
    """Finds the best sampler for each number of network calls; keeps it in tuned.json, and draws tune.png."""
    config, path, found = this.config, this.path, this.model_run
    workdir.require_writable(path)
    require(jax.process_count() == 1, "mode", "tune", "run by one process")
    sampling = dataclasses.replace(build.sampling(config), frames=0)
    model = prepare.model(config, found.data_shape, found.num_classes, build.statistics(found))
    drawn, joined = prepare.guided(config, model)
    make_draw(drawn, sampling, Devices.all())
    tried = {calls: tuned.candidates(config, calls) for calls in tuned.calls_of(config)}
    train = prepare.dataset(config, "train", model)
    first = next(iter(names(config.eval.features)), "")
    require(bool(first), "eval.features", first, "the network in whose features samples are compared")
    (network,) = build.feature_networks(config.changed({"eval.features": first}), lambda: train, path)
    load_test = functools.partial(prepare.dataset, config, "test", model)
    given = prepare.conditions(config, drawn, load_test)
    chosen = config.sampling.checkpoint
    ((step, params),) = packed.averages(config, model, path, None if chosen is None else [chosen])
    introduce(model, train, path, step=step)

    def features(data: Dataset) -> np.ndarray:
        return np.asarray(features_of(network, data, Devices.all()).values)

    size = config.tune.samples // 2 ** (search.ROUNDS - 1)
    eps = search.Network(drawn, joined(params), sampling, given, size)

    def draw(settings: SampleSettings, block: int) -> np.ndarray | None:
        x = eps.draw(settings, block)
        return None if x is None else features(array_dataset("samples", "train", x, None, 0))

    target, choices = search.Reference(features(train.subset(_REFERENCE))), {}
    for calls, candidates in tried.items():
        say = functools.partial("{} calls, {}".format, calls)
        choices[calls] = search.choose(candidates, draw, target, lambda line, say=say: distributed.say(say(line)))
        tuned.write(path, config, step, network.name, choices)
    print(search.table(choices), flush=True)
    pictures.write_png(search.plot(choices), path / "tune.png")
    print(f"kept: {path / tuned.FILE}, drawn: {path / 'tune.png'}", flush=True)


def stats(this: Experiment) -> None:
    """Computes and keeps the reference statistics of the training data, for each of config.eval.features."""
    config, path = this.config, this.path
    workdir.require_writable(path)
    require(bool(names(config.eval.features)), "eval.features", config.eval.features, "the networks of the statistics")
    with distributed.together():
        data = build.dataset(config, "train")
    for network in build.feature_networks(config, lambda: data, path):
        reference.prepare(network, data, path, Devices.all())
        if distributed.is_main():
            print(reference.stats_path(path, network, data), flush=True)


def show(this: Experiment) -> None:
    """Prints every key of the resolved config with its value, range and note; * marks what is not the default."""
    if distributed.is_main():
        print("\n".join(lines(this.config)), flush=True)


def plot(this: Experiment) -> None:
    """Draws what training logged, and the figures of every evaluated checkpoint, over the steps."""
    path = this.path
    if not distributed.is_main():
        return
    found = {METRICS_FILE: "training.png", RESULTS_FILE: "figures.png"}
    there = {name: picture for name, picture in found.items() if storage.is_file(path / name)}
    require(bool(there), "workdir", str(path), f"a folder with {METRICS_FILE}, which --mode=train writes")
    for name, picture in there.items():
        drawn = read_jsonl(path / name)
        if name == RESULTS_FILE:
            drawn = _headline(drawn, this.config.data.name)
        if name == RESULTS_FILE and len({line["step"] for line in drawn}) < 2:
            print(f"{name} has one step: figures are curves over two or more", flush=True)
            continue
        pictures.write_png(curves.draw(curves.grouped(drawn)), path / picture)
        print(f"{name}: {path / picture}", flush=True)


def _headline(results: list[dict[str, Any]], data: str) -> list[dict[str, Any]]:
    """The latest figures of each step, average and data set, by step, with their errors, as curves of their own.

    They are those of the report, "recall, pixels" as pixels/recall; of an average made of snapshots, of length 0.1, as
    pixels/recall/average 0.1; against other data than the run's as pixels/recall/against NAME.
    """

    def curve(name: str, *parts: str) -> str:
        named = "/".join(reversed(name.split(", ")))
        return "/".join([named if "/" in named or not parts else f"{named}/{named}", *parts])

    def parts(made: Mapping[str, Any]) -> tuple[str, ...]:
        other = made.get("data", data)
        length = () if made.get("ema_length") is None else (f"average {made['ema_length']:g}",)
        return (*length, *(() if other == data else (f"against {other.replace('/', '|')}",)))

    latest = {(line["step"], parts(line.get("made_by", {}))): report.intervals(line) for line in results}
    return [
        {"step": step} | {curve(name, *named): value for name, value in latest[step, named].items()}
        for step, named in sorted(latest)
    ]


def lines(config: Config) -> list[str]:
    """`section.key = value  # note; range` for every key; * before those whose value is not the default."""
    values, changed = config.flat(), set(constructors.differences(config))
    heads = {key: f"{' *'[key in changed]} {key} = {schema.shown(values[key])}" for key in KEYS}
    width = min(max(map(len, heads.values())), 48)
    return [f"{heads[key]:<{width}}  # {KEYS[key].note}; {KEYS[key].allowed}" for key in KEYS]


MODES: dict[str, Callable[[Experiment], None]] = {
    "train": train,
    "sample": draw,
    "eval": score,
    "stats": stats,
    "show": show,
    "plot": plot,
    "tune": tune,
}
_REFERENCE = 4000  # training examples that samples are compared with in `tune`
_WRITING = ("train", "sample", "eval")  # modes that draw, and change what the model card says
