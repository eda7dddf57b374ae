"""The modes of `main.py`: each builds what it needs from the config, then calls one loop."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from hold_jax.app import build, card, experiment, initial, packed, tuned
from hold_jax.app.config import KEYS, Config
from hold_jax.app.experiment import Experiment
from hold_jax.app.flags import Given
from hold_jax.autoguided import Autoguided
from hold_jax.data import Dataset, Statistics
from hold_jax.data.dataset import array_dataset
from hold_jax.errors import UserError, require
from hold_jax.evaluation import figures, reference, report
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.evaluation.features import features_of
from hold_jax.loops import tasks
from hold_jax.loops import tune as search
from hold_jax.loops.draw import SampleSettings, make_draw
from hold_jax.loops.evaluate import FOLDER as EVALUATION_FOLDER
from hold_jax.loops.evaluate import EvalSettings, Evaluator
from hold_jax.loops.generate import generate
from hold_jax.loops.introduction import introduce
from hold_jax.loops.train import Trainer
from hold_jax.model import Model
from hold_jax.runtime import curves, distributed, pictures, schema, storage, workdir
from hold_jax.runtime.log import METRICS_FILE, RESULTS_FILE, read_jsonl
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.storage import Path
from hold_jax.training.checkpoint import BEST_FOLDER, FOLDER, Checkpoints, abstract_state
from hold_jax.training.state import init_state


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
    distributed.require_same({"workdir": str(found.path), **found.config.flat()})
    cache_compilations(cache, found.path)
    if mode in _WRITING:
        found = dataclasses.replace(found, config=tuned.apply(found.config, found.path, given.flags))
    MODES[mode](found)
    if mode in _WRITING and distributed.is_main():
        if command is not None:
            card.remember(found.path, command)
        written = card.write(found.path)
        if written is not None:
            print(f"model card: {written}", flush=True)


def train(this: Experiment) -> None:
    """Trains, then samples and evaluates the result (config.training.report)."""
    config, path = this.config, this.path
    with contextlib.ExitStack() as held:
        with distributed.together():
            require(config.sampling.guide is None, "sampling.guide", config.sampling.guide, "None to train")
            settings, sampling, optimizer = build.training(config), build.sampling(config), build.optimizer(config)
            data = build.dataset(config, "train")
            where = config.training.init_from if this.run is None else None
            source = None if where is None else packed.find(where, initial.KEY)
            if source is not None and config.model.sigma_data is None:
                # The network's output was trained for this number.
                scale = build.sigma_data(source.config)
                this = dataclasses.replace(this, config=config.changed({"model.sigma_data": scale}))
            record = this.record(data)
            config = experiment.of_record(record, path / workdir.RECORD_FILE)
            loss = build.loss(config)
            model = _model(config, data.shape, data.num_classes, build.statistics(record))
            start = None if source is None else initial.parameters(source, config, model)
            given = build.conditions(config, model, lambda: _dataset(config, "test", data.shape))
            rate, held_out = build.learning_rate(config), _held_out(config, data.shape)
            trainer = Trainer(
                model, loss, optimizer, data, settings, sampling,
                learning_rate=rate, held_out=held_out, initial=start, conditions=given,
            )  # fmt: skip
            log = build.log(config, record.run)
            trainer.check()
            if storage.exists(path / METRICS_FILE):
                read_jsonl(path / METRICS_FILE)  # a damaged log is an error now, not after the compilation
            report = (_Report if config.training.report else _NoReport)(config, path, model, data)
            if distributed.is_main():
                held.enter_context(workdir.locked(path))
                workdir.write(path, record)
        with distributed.together():
            workdir.require_shared(path)
        report.prepare()

        state = trainer.run(path, log)
        step = int(state.step)
        if step < settings.num_steps:
            distributed.say(f"stopped at step {step:,} of {settings.num_steps:,}: the same command goes on from there")
        else:
            report.make(step, state.ema)


class _NoReport:
    """No report at the end of training."""

    def __init__(self, config: Config, path: Path, model: Model, data: Dataset):
        pass

    def prepare(self) -> None:
        """Does nothing."""

    def make(self, step: int, params: Any) -> None:
        """Does nothing."""


class _Report:
    """Samples and figures at the end of training. It comes after hours of work: what it needs is checked before them.

    Args:
      config: the settings.
      path: the work directory.
      model: the model that is trained.
      data: the training data.
    """

    def __init__(self, config: Config, path: Path, model: Model, data: Dataset):
        self._config, self._path, self._model, self._data = config, path, model, data
        self._sampling, self._settings = build.sampling(config), build.evaluation(config)
        self._held_out = _dataset(config, "test", data.shape)
        Devices.all().require_divides("eval.batch_size", self._settings.batch_size)
        self._evaluator: Evaluator | None = None

    def prepare(self) -> None:
        """Makes the feature networks; call it once the work directory can be written."""
        networks = _networks(self._config, self._settings, lambda: self._data, self._path)
        self._evaluator = Evaluator(
            self._model,
            build.loss(self._config),
            self._held_out,
            lambda: self._data,
            networks,
            self._settings,
            self._sampling,
            self._path,
        )
        self._evaluator.check()

    def make(self, step: int, params: Any) -> None:
        """Draws the samples and computes the figures of averaged parameters; call it after `prepare`."""
        assert self._evaluator is not None
        folder = generate(
            self._model,
            params,
            self._sampling,
            self._path,
            step=step,
            reference=_reference(self._data),
            conditions=build.conditions(self._config, self._model, lambda: self._held_out),
        )
        _announce(folder)
        _print_results(self._evaluator.evaluate(params, step=step), self._path)


def draw(this: Experiment) -> None:
    """Draws samples from a checkpoint, or performs a task on given examples."""
    config, path, found = this.config, this.path, this.model_run
    workdir.require_writable(path)
    sampling, task = build.sampling(config), build.task(config)
    model = _model(config, found.data_shape, found.num_classes, build.statistics(found))
    drawn, joined = _guided(config, model)
    load_test = functools.cache(lambda: _dataset(config, "test", found.data_shape))
    chosen = config.sampling.checkpoint
    averages = _averages(config, model, path, None if chosen is None else [chosen])
    if task is None:
        make_draw(drawn, sampling, Devices.all())
        given = build.conditions(config, model, load_test)
        for step, params in averages:
            introduce(model, None, path, step=step)
            _announce(generate(drawn, joined(params), sampling, path, step=step, conditions=given))
        return
    settings = tasks.check(drawn, task, sampling, Devices.all())
    examples = tasks.examples(drawn, task, settings, config.task.input, load_test)
    options = build.given(config.task)
    for step, params in averages:
        introduce(model, None, path, step=step)
        folder, result = tasks.perform(
            drawn, joined(params), task, settings, examples, path, step=step, options=options
        )
        _announce(folder)
        if distributed.is_main():
            print(figures.table(result), flush=True)


def score(this: Experiment) -> None:
    """Reports the test loss, distances of samples to the data and, if chosen, bits per dimension."""
    config, path, found = this.config, this.path, this.model_run
    workdir.require_writable(path)
    loss, settings = build.loss(config), build.evaluation(config)
    sampling = dataclasses.replace(build.sampling(config), frames=0)
    model = _model(config, found.data_shape, found.num_classes, build.statistics(found))
    held_out = _dataset(config, "test", found.data_shape)
    load_train = functools.cache(lambda: _dataset(config, "train", found.data_shape))
    drawn, joined = _guided(config, model)
    make_draw(drawn, sampling, Devices.all())
    averages = _averages(config, model, path, build.checkpoint_steps(config))
    first = next(averages)
    networks = _networks(config, settings, load_train, path)
    evaluator = Evaluator(drawn, loss, held_out, load_train, networks, settings, sampling, path)
    evaluator.check()
    for step, params in itertools.chain([first], averages):
        introduce(model, held_out, path, step=step)
        _print_results(evaluator.evaluate(joined(params), step=step), path)


def tune(this: Experiment) -> None:
    """Finds the best sampler for each number of network calls; keeps it in tuned.json, and draws tune.png."""
    config, path, found = this.config, this.path, this.model_run
    workdir.require_writable(path)
    require(jax.process_count() == 1, "mode", "tune", "run by one process")
    model = _model(config, found.data_shape, found.num_classes, build.statistics(found))
    tried = {calls: tuned.candidates(config, calls) for calls in tuned.calls_of(config)}
    train = _dataset(config, "train", found.data_shape)
    network = build.feature_networks(config, lambda: train, path)[:1]
    require(bool(network), "eval.features", config.eval.features, "the network in whose features samples are compared")
    given = build.conditions(config, model, lambda: _dataset(config, "test", found.data_shape))
    chosen = config.sampling.checkpoint
    ((step, params),) = _averages(config, model, path, None if chosen is None else [chosen])
    introduce(model, train, path, step=step)

    def features(data: Dataset) -> np.ndarray:
        values = np.asarray(features_of(network[0], data, Devices.all()).values)
        # Coordinates of vectors may differ in scale; those of feature networks stay as they are.
        std = model.statistics.std
        return values / np.array(std) if len(std) == values.shape[1] else values

    size = config.tune.samples // 2 ** (search.ROUNDS - 1)
    drawn, joined = _guided(config, model)
    eps = search.Network(drawn, joined(params), build.sampling(config), given, size)

    def draw(settings: SampleSettings, block: int) -> np.ndarray | None:
        x = eps.draw(settings, block)
        return None if x is None else features(array_dataset("samples", "train", x, None, 0))

    target, choices = search.Reference(features(train.subset(_REFERENCE))), {}
    for calls, candidates in tried.items():
        say = functools.partial("{} calls, {}".format, calls)
        choices[calls] = search.choose(candidates, draw, target, lambda line, say=say: distributed.say(say(line)))
        tuned.write(path, config, step, network[0].name, choices)
    print(search.table(choices), flush=True)
    pictures.write_png(search.plot(choices), path / "tune.png")
    print(f"kept: {path / tuned.FILE}, drawn: {path / 'tune.png'}", flush=True)


def stats(this: Experiment) -> None:
    """Computes and keeps the reference statistics of the training data, for each of config.eval.features."""
    config, path = this.config, this.path
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
        drawn = _headline(read_jsonl(path / name)) if name == RESULTS_FILE else read_jsonl(path / name)
        if name == RESULTS_FILE and len(drawn) < 2:
            continue  # the figures of one step are no curve
        pictures.write_png(curves.draw(curves.grouped(drawn)), path / picture)
        print(f"{name}: {path / picture}", flush=True)


def _headline(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The latest figures of each step, by step: those of the report, "recall, pixels" as pixels/recall."""
    latest = {line["step"]: report.values(line) for line in results}
    named = {step: {"/".join(reversed(name.split(", "))): v for name, v in latest[step].items()} for step in latest}
    return [{"step": step} | named[step] for step in sorted(named)]


def lines(config: Config) -> list[str]:
    """`section.key = value  # note; range` for every key; * before those whose value is not the default."""
    values, changed = config.flat(), set(build.differences(config))
    heads = {key: f"{' *'[key in changed]} {key} = {schema.shown(values[key])}" for key in KEYS}
    width = min(max(map(len, heads.values())), 48)
    return [f"{heads[key]:<{width}}  # {KEYS[key].note}; {KEYS[key].allowed}" for key in KEYS]


def cache_compilations(where: str, folder: Path) -> None:
    """Keeps compiled programs in a folder, so that a run that goes on does not wait for them again.

    It also makes a GPU's program the same one after a restart, whatever its autotuner would find now.

    Args:
      where: a folder; "off"; or "auto": `folder`/compilation_cache on accelerators, off on CPUs, whose programs may
        not run on another machine that shares the folder. A folder set by JAX_COMPILATION_CACHE_DIR wins over auto.
      folder: the work directory.

    Raises:
      UserError: if `where` is a file or no path.
    """
    chosen = jax.config.jax_compilation_cache_dir is not None  # pyright: ignore[reportAttributeAccessIssue]
    if where == "off":
        jax.config.update("jax_compilation_cache_dir", None)
        return
    if where == "auto" and (chosen or jax.default_backend() == "cpu"):
        return
    path = folder / "compilation_cache" if where == "auto" else storage.path(where, "compilation_cache")
    require(not storage.is_file(path), "compilation_cache", where, "a folder, auto or off; it is a file")
    if not storage.is_local(path):
        # JAX gives XLA a folder in this one for its autotuner, whose C++ knows no gs:// and fails to compile with it.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(path))


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
_WRITING = ("train", "sample", "eval")  # modes that change what the model card says


def _model(config: Config, data_shape: tuple[int, ...], num_classes: int, statistics: Statistics) -> Model:
    """The model, in float32 where the devices have no bfloat16; parameters are float32 either way."""
    if config.model.dtype == "bfloat16" and not Devices.all().have_bfloat16():
        kind = jax.devices()[0].device_kind
        distributed.say(f"model.dtype is bfloat16, which {kind} does not have: computing in float32")
        config = config.changed({"model.dtype": "float32"})
    return build.model(config, data_shape, num_classes, statistics)


def _guided(config: Config, model: Model) -> tuple[Model, Callable[[Any], Any]]:
    """The model that samples are drawn from, with `sampling.guide` if it is set, and its parameters of the run's."""
    where = config.sampling.guide
    if where is None:
        return model, lambda params: params
    found = packed.find(where, "sampling.guide")
    theirs = found.config
    allowed = "a run of the process of the samples, or a denoiser of any"
    usable = build.any_process(theirs) or theirs.sde == config.sde
    require(usable, "sampling.guide", where, allowed)
    theirs = theirs.changed({key: value for key, value in config.flat().items() if key.startswith("sde.")})
    record = found.record
    guide = build.model(theirs, record.data_shape, record.num_classes, build.statistics(record))
    try:
        return Autoguided.of(model, guide), lambda params: (params, found.params)
    except UserError as error:
        raise UserError(f"`sampling.guide` is {where!r}: {error}") from None


def _dataset(config: Config, split: str, shape: tuple[int, ...]) -> Dataset:
    """A split that must have the shape the model was made for."""
    data = build.dataset(config, split)
    require(
        data.shape == shape,
        "data.name",
        config.data.name,
        f"data of shape {shape}; its {split} split's is {data.shape}",
    )
    return data


def _networks(
    config: Config, settings: EvalSettings, load_train: Callable[[], Dataset], path: Path
) -> list[FeatureNetwork]:
    """What samples are compared in, if any are drawn."""
    return [] if settings.num_samples == 0 else build.feature_networks(config, load_train, path)


def _held_out(config: Config, shape: tuple[int, ...]) -> Dataset | None:
    """The test examples whose loss training logs; None where there are none."""
    if config.training.held_out == 0:
        return None
    try:
        found = _dataset(config, "test", shape)
    except UserError as error:
        if config.training.report:
            raise
        distributed.say(f"no held-out loss and no best checkpoint: {error}")
        return None
    return found.subset(config.training.held_out) if len(found) >= 2 else None


def _averages(config: Config, model: Model, path: Path, steps: Sequence[int | str] | None) -> Iterator[tuple[int, Any]]:
    """The averaged parameters of checkpoints in turn.

    Args:
      config: the settings.
      model: the run's.
      path: the work directory.
      steps: of the checkpoints; ["best"]: of least held-out loss; empty: all; None: the newest.
    """
    optimizer = build.optimizer(config)
    abstract = abstract_state(lambda: init_state(model, optimizer, config.seed), Devices.all().replicated)
    best = steps is not None and list(steps) == ["best"]
    with Checkpoints.open_to_read(path, BEST_FOLDER if best else FOLDER) as checkpoints:
        newest = steps is None or best
        chosen: Sequence[Any] = [checkpoints.latest()] if newest else steps or checkpoints.steps() or [None]
        for step in chosen:
            state = checkpoints.restore(abstract, step)
            yield int(state.step), state.ema


def _reference(data: Dataset) -> np.ndarray | None:
    """Data to plot beside samples of vectors and signals; none for pictures and arrays."""
    if data.kind not in ("vector", "signal"):
        return None
    some = data.subset(20_000 if data.kind == "vector" else 64)
    return some.gather(np.arange(len(some)))["x"]


def _announce(folder: Path) -> None:
    distributed.say(f"samples: {folder / 'grid.png'}")


def _print_results(results: dict[str, float], path: Path) -> None:
    """Prints the most important figures, and where the others are."""
    if distributed.is_main():
        num = f", {results['num_samples']:,.0f} samples" if "num_samples" in results else ""
        step = int(results["step"])
        print(
            f"step {step:,}{num}:",
            *report.lines(report.rows(results)),
            f"all figures: {path / RESULTS_FILE}; pictures: {path / EVALUATION_FOLDER / f'step_{step}'}",
            sep="\n",
            flush=True,
        )
