"""A work directory in a bucket holds what a local one does. The bucket is a fake, in memory, behind etils.epath.

Not here: Orbax, whose arrays go to a bucket through TensorStore.
"""

import contextlib
import importlib.util
import io
import json
import os
import resource
import signal
import sys
import types
from pathlib import Path

import fsspec
import jax
import numpy as np
import PIL.Image
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from training import small
from training.small import quick_compilation  # noqa: F401

from configs import digits_hold
from hold_jax import data
from hold_jax.app import build
from hold_jax.app import config as base
from hold_jax.app.compilation_cache import cache_compilations
from hold_jax.convert import __main__ as command
from hold_jax.errors import UserError
from hold_jax.evaluation import classifier as classifiers
from hold_jax.evaluation import reference
from hold_jax.evaluation.pixels import pixels
from hold_jax.loops import generate as sampling
from hold_jax.loops import train as training
from hold_jax.loops.draw import Drawn
from hold_jax.metrics.frechet import moments
from hold_jax.runtime import curves, lock, pictures, storage, workdir
from hold_jax.runtime import log as logs
from hold_jax.runtime.log import MetricLog, log_results, read_jsonl
from hold_jax.runtime.resumable import PartialRows
from hold_jax.training.checkpoint import Checkpoints, _storage_fault
from hold_jax.training.profile import Profile

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="epath then asks TensorFlow for buckets"
)


class Bucket(MemoryFileSystem):
    """Objects, and no folders: what is below a name makes it look like one. An object appears when it is complete."""

    protocol = ("gs", "gcs")
    store = {}  # noqa: RUF012  # as in the base class
    pseudo_dirs = [""]  # noqa: RUF012
    written = []  # noqa: RUF012
    fault = None

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(os.fspath(path).removeprefix("gs://"))

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def info(self, path, **kwargs):
        self._check()
        return super().info(path, **kwargs)

    def exists(self, path, **kwargs):  # fsspec's own takes any fault for an absence; gcsfs' does not
        with contextlib.suppress(FileNotFoundError):
            return bool(self.info(path))
        return False

    def _open(self, path, mode="rb", **kwargs):
        self._check()
        if mode == "rb":
            return super()._open(path, mode=mode, **kwargs)
        assert mode == "wb", "an object cannot grow"
        return _Upload(self, path)

    def _check(self):
        if Bucket.fault is not None:
            raise Bucket.fault


class _Upload(io.BytesIO):
    def __init__(self, bucket, path):
        super().__init__()
        self.bucket, self.path = bucket, path

    def close(self):
        if not self.closed:
            Bucket.written.append(self.path)
            Bucket.store[self.path] = MemoryFile(self.bucket, self.path, self.getvalue())
        super().close()


@pytest.fixture
def bucket(monkeypatch):
    Bucket.store.clear()
    Bucket.written.clear()
    Bucket.fault = None
    for name in Bucket.protocol:
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, name, Bucket)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield storage.path("gs://bucket/run")
    backend.fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture(params=["local", "bucket"])
def folder(request, bucket, tmp_path):
    """A work directory that is not there yet, of either kind."""
    return bucket if request.param == "bucket" else tmp_path / "run"


def objects():
    """Every object below gs://bucket/run, and its bytes."""
    return {name.removeprefix("/bucket/run/"): file.getvalue() for name, file in Bucket.store.items()}


def held(folder):
    return objects() if not storage.is_local(folder) else small.contents(folder)


# Paths


def test_a_local_path_is_absolute_and_pathlib_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    for text, found in {"a/b": tmp_path / "a/b", "~/x": Path("/home/somebody/x"), "/x:/y": Path("/x:/y")}.items():
        for given in (text, Path(text), epath.Path(text)):
            path = storage.path(given)
            assert path == found and isinstance(path, Path) and storage.is_local(path)
            storage.require_local(given, "data_dir")


@pytest.mark.parametrize("text", ["gs://bucket", "gs://bucket/a run/~b", "gs://bucket/a.b"])
def test_a_path_in_a_bucket_stays_as_it_is(bucket, text):
    path = storage.path(text)
    assert str(path) == os.fspath(path) == text and str(path / "c") == f"{text}/c"
    assert not storage.is_local(path) and storage.path(path) == path
    assert build.workdir(text) == path
    with pytest.raises(UserError, match=f"^`data_dir` is '{text}'; it must be a local path"):
        storage.require_local(text, "data_dir")


@pytest.mark.parametrize("text", ["s3://bucket/run", "gs://", "gs:///run", "gs:/bucket/run", "file:///tmp", "GS://b/c"])
def test_other_urls_are_refused(bucket, text):
    with pytest.raises(UserError, match=rf"^`workdir` is '{text}'; it must be a local path, or gs://BUCKET/PATH$"):
        build.workdir(text)


def test_what_reads_buckets_is_named_where_it_is_missing(monkeypatch):
    def missing(name):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"^`workdir` is 'gs://b/run'; the package .* is missing: pip install gcsfs$"):
        build.workdir("gs://b/run")


# Files


def test_a_file_and_its_folders(folder):
    path = folder / "a" / "b.c.txt"
    assert not storage.exists(path) and not storage.is_file(path) and storage.names(path.parent) == []
    with pytest.raises(FileNotFoundError):
        storage.read(path)
    for content in (b"first", b"", b"second"):
        storage.write(path, content)
        assert storage.read(path) == path.read_bytes() == content
        with storage.opened(path) as file:
            assert file.read() == content
    storage.write(folder / "a" / "d" / "e", b"e")
    assert storage.exists(path) and storage.is_file(path)
    assert storage.exists(path.parent) and not storage.is_file(path.parent)
    assert sorted(storage.names(path.parent)) == ["b.c.txt", "d"]
    assert (path.name, path.suffix, path.stem, path.parent.name) == ("b.c.txt", ".txt", "b.c", "a")
    assert held(folder) == {"a/b.c.txt": b"second", "a/d/e": b"e"}


def test_what_fails_half_way_leaves_what_was_there(folder):
    for before in ({}, {"file": b"old"}):
        if before:
            storage.write(folder / "file", b"old")
        with pytest.raises(KeyboardInterrupt), storage.writing(folder / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt
        assert held(folder) == before


def test_a_full_disk_is_named(tmp_path):
    """A limit of the size of files stands for it: like it, the error of `write` has no name."""
    there = storage.Lines(tmp_path / "log.jsonl")
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as file:
            storage.write(tmp_path / "a" / "file", b"more than ten bytes")
        with pytest.raises(OSError, match="too large") as log:
            there.append("more than ten bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (file.value.filename, log.value.filename) == (str(tmp_path / "a" / "file"), str(tmp_path / "log.jsonl"))
    assert list((tmp_path / "a").iterdir()) == []


def test_an_error_of_words_keeps_them(tmp_path):
    with pytest.raises(OSError, match=r"^cannot write mode F$"), storage.writing(tmp_path / "x"):
        raise OSError("cannot write mode F")


def test_a_folder_is_moved_whole(folder):
    storage.write(folder / "5" / "state" / "w", b"w")
    storage.write(folder / "5" / "m", b"m")
    storage.write(folder / "50" / "m", b"another")
    storage.move(folder / "5", folder / "damaged" / "step_5")
    assert held(folder) == {"damaged/step_5/state/w": b"w", "damaged/step_5/m": b"m", "50/m": b"another"}


def test_a_bucket_that_refuses_is_one_line_whatever_its_client_raises(bucket):
    storage.write(bucket / "file", b"x")
    Bucket.fault = RuntimeError("Anonymous caller may not\nand a stack")
    line = r"gs://bucket/run/file: RuntimeError: Anonymous caller may not$"
    for do in (storage.read, storage.exists, storage.is_file, storage.names, lambda path: storage.write(path, b"y")):
        with pytest.raises(UserError, match=line):
            do(bucket / "file")
        with pytest.raises(OSError, match=line):
            do(bucket / "file")
    with pytest.raises(UserError, match=r"RuntimeError: Anonymous caller may not"):
        workdir.read(bucket)
    Bucket.fault = None
    assert objects() == {"file": b"x"}


# What a run keeps


def record(**changes):
    config = digits_hold.get_config()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return workdir.Record(build.as_json(base.read(config)), (8, 8, 1), 10)


def test_the_record(folder, tmp_path):
    with pytest.raises(UserError, match=f"no trained model in {folder}"):
        workdir.read(folder)
    with pytest.raises(UserError, match="is not the one that the first process writes"):
        workdir.require_shared(folder)
    with workdir.locked(folder):
        workdir.write(folder, record())
        workdir.write(folder, record(eval__repeats=3))
        workdir.require_shared(folder)
    assert workdir.read(folder) == record(eval__repeats=3)
    assert held(folder)["config.json"] == record(eval__repeats=3).to_json().encode()
    assert set(held(folder)) == {"config.json"} | ({lock.FILE} if storage.is_local(folder) else set())


def test_a_bucket_that_cannot_be_written_is_named(bucket):
    workdir.write(bucket, record())
    Bucket.fault = PermissionError("403")
    with pytest.raises(UserError, match=r"gs://bucket/run/config.json: PermissionError: 403"):
        workdir.write(bucket, record())


def test_rows(folder):
    rows = np.arange(60, dtype=np.uint8).reshape(20, 3)
    found = PartialRows(folder / "eval", 20)
    found.append(rows[:8])
    found.append(rows[8:12])
    again = PartialRows(folder / "eval", 20)
    assert again.count == 12
    again.append(rows[12:])
    np.testing.assert_array_equal(PartialRows(folder / "eval", 20).array(), rows)
    names = ["000000000-000000008.npy", "000000008-000000012.npy", "000000012-000000020.npy"]
    assert sorted(held(folder)) == [f"eval/{name}" for name in names]
    np.testing.assert_array_equal(np.load(io.BytesIO(held(folder)[f"eval/{names[0]}"])), rows[:8])
    storage.write(folder / "eval" / names[1], b"\x93NUMPY and no more")
    with pytest.raises(UserError, match=rf"^{folder}/eval/{names[1]} cannot be read"):
        PartialRows(folder / "eval", 20)


def test_reference_statistics(bucket, tmp_path):
    network, points = pixels(), small.points(40)
    values = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    made = reference.Reference(moments(values), values, reference.about(network, points))
    for folder in (bucket, tmp_path / "run"):
        path = reference.stats_path(folder, network, points)
        with pytest.raises(UserError, match="no such file; make it with --mode=stats"):
            reference.load(path)
        made.save(path)
        read = reference.load(path)
        np.testing.assert_array_equal(read.features, values)
        np.testing.assert_array_equal(read.moments.cov, made.moments.cov)
        assert read.about == made.about
        found = reference.prepare(network, points, folder, small.devices(1))  # not computed again
        np.testing.assert_array_equal(found.features, values)
    assert objects() == small.contents(tmp_path / "run") and len(objects()) == 1
    config = digits_hold.get_config()
    config.eval.stats = str(reference.stats_path(bucket, network, points))
    assert build.evaluation(base.read(config)).stats == reference.stats_path(bucket, network, points)
    Bucket.store["/bucket/run/stats/pixels_gaussians8_train.npz"].truncate(100)
    with pytest.raises(UserError, match=r"`eval.stats` gs://bucket/run/stats/pixels_gaussians8_train.npz cannot be"):
        reference.load(build.evaluation(base.read(config)).stats)


def test_the_classifier(bucket, tmp_path, monkeypatch):
    points = small.points(40)
    network = classifiers.Classifier(points.num_classes)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), classifiers._shapes(network, points.shape))
    monkeypatch.setattr(classifiers, "_train", lambda *args: params)
    made = [classifiers.classifier(points, folder).identity for folder in (bucket, tmp_path / "run")]
    monkeypatch.delattr(classifiers, "_train")
    assert [classifiers.classifier(points, folder).identity for folder in (bucket, tmp_path / "run")] == made
    assert objects() == small.contents(tmp_path / "run") and set(objects()) == {"classifier.npz"}


# Logs


class _Clock:
    now = 0.0

    def __call__(self):
        return self.now


def steps(folder):
    return [line["step"] for line in read_jsonl(folder / "metrics.jsonl")]


def events(folder="tensorboard/"):
    """Of the files right there, in the order of their names."""
    found = objects()
    return [found[name] for name in sorted(found) if name.startswith(folder) and "/" not in name.removeprefix(folder)]


def test_the_log_is_written_as_a_local_one_is_read(bucket, tmp_path):
    for folder in (bucket, tmp_path / "run"):
        with MetricLog(folder, start_step=0) as log:
            for step in (10, 20, 30):
                log.scalars(step, {"train/loss": 1 / step, "skipped": float("nan")})
            log.image("samples", PIL.Image.new("RGB", (6, 5)), 30)
        with MetricLog(folder, start_step=20) as log:
            log.scalars(30, {"train/loss": -1.0})
        log_results(folder, {"step": 30, "fid": 0.5}, {"samples": PIL.Image.new("RGB", (6, 5))})
        log_results(folder, {"step": 40, "fid": 0.25}, {})
    local = small.contents(tmp_path / "run")
    for name in ("metrics.jsonl", "results.jsonl"):
        assert objects()[name] == local[name] and read_jsonl(bucket / name) == read_jsonl(tmp_path / "run" / name)
    assert steps(bucket) == [10, 20, 30]

    def sizes(contents):
        return [len(content) for name, content in sorted(contents.items()) if "tfevents" in name]

    # Events bear the time, else they are the same.
    assert sizes(objects()) == sizes(local) and len(sizes(local)) == 4
    assert b"train/loss" in events()[0] and b"\x89PNG" in events()[0] and b"eval/fid" in events("tensorboard/eval/")[0]


def test_wandb_s_files_are_copied_to_a_bucket(folder, tmp_path, monkeypatch):
    """W&B writes to a disk only: of gs://bucket/run it makes the folder gs:/bucket/run here."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    folders = []

    def init(**options):
        folders.append(Path(options["dir"]))
        (folders[0] / "wandb/run-1").mkdir(parents=True)
        (folders[0] / "wandb/latest-run").symlink_to("run-1")
        return types.SimpleNamespace(finish=lambda: (folders[0] / "wandb/run-1/x.wandb").write_bytes(b"all"))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    logs.WandbLog(folder, "1", {}).close()
    assert held(folder)["wandb/run-1/x.wandb"] == b"all" and not list(here.iterdir())
    assert folders[0].exists() == storage.is_local(folder)


def test_a_log_in_a_bucket_is_sent_now_and_then_and_before_a_checkpoint(bucket):
    clock = _Clock()
    log = MetricLog(bucket, start_step=0, clock=clock)
    lines = {1: (0.0, [1]), 2: (10.0, [1]), 3: (29.0, [1]), 4: (30.0, [1, 2, 3, 4]), 5: (45.0, [1, 2, 3, 4])}
    for step, (now, there) in lines.items():
        clock.now = now
        log.scalars(step, {"loss": 0.5})
        assert steps(bucket) == there
    log.flush()
    assert steps(bucket) == [1, 2, 3, 4, 5]
    before = list(Bucket.written)
    log.flush()
    assert [name for name in Bucket.written[len(before) :] if "metrics" in name] == []  # nothing new
    log.scalars(6, {"loss": 0.5})
    # A kill now costs step 6, which the run that goes on from the checkpoint of step 5 takes again.
    with MetricLog(bucket, start_step=5) as again:
        assert steps(bucket) == [1, 2, 3, 4, 5]
        again.scalars(6, {"loss": 0.25})
    assert steps(bucket) == [1, 2, 3, 4, 5, 6] and read_jsonl(bucket / "metrics.jsonl")[-1]["loss"] == 0.25


def test_a_bucket_out_of_reach_costs_no_line_and_is_told_of_before_a_checkpoint(bucket):
    clock = _Clock()
    log = MetricLog(bucket, start_step=0, clock=clock)
    log.scalars(1, {"loss": 0.5})
    Bucket.fault, clock.now = ConnectionError("no route"), 40.0
    log.scalars(2, {"loss": 0.5})
    with pytest.raises(UserError, match=r"gs://bucket/run/metrics.jsonl: ConnectionError: no route"):
        log.flush()
    Bucket.fault = None
    assert steps(bucket) == [1]
    log.close()
    log.close()
    assert steps(bucket) == [1, 2]


def test_no_file_of_events_grows_for_ever(bucket, monkeypatch):
    monkeypatch.setattr(logs, "_EVENTS_BYTES", 2000)
    rng = np.random.default_rng(0)
    with MetricLog(bucket, start_step=0) as log:
        for step in range(6):
            log.image("samples", rng.integers(0, 256, (30, 30, 3), dtype=np.uint8), step)
            while log._events._staged.size() < 2000:  # tensorboardX writes in a thread
                log._events.writer.flush()
            log.flush()
    assert [content.count(b"\x89PNG") for content in events()] == [1, 1, 1, 1, 1, 1, 0]


def test_the_profile_is_copied(bucket, monkeypatch):
    def start(folder):
        (folder / "plugins" / "now").mkdir(parents=True)
        (folder / "plugins" / "now" / "vm.pb").write_bytes(b"trace")
        started.append(folder)

    started = []
    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: started.append("stopped"))
    profile, told = Profile(bucket, 2), []
    for _ in range(6):
        profile.before_call()
        told.append(profile.after_call(0))
    profile.close()
    assert told == [None, None, None, bucket / "profile", None, None]
    assert objects() == {"profile/plugins/now/vm.pb": b"trace"}
    assert started[1:] == ["stopped"] and not started[0].exists()


# Pictures and loops


def test_pictures(bucket, tmp_path):
    frames = [PIL.Image.fromarray(np.full((8, 8), gray, np.uint8)) for gray in (0, 90, 200)]
    for folder in (bucket, tmp_path / "run"):
        pictures.write_png(frames[1], folder / "grids" / "a.png")
        pictures.film(frames, folder / "film.gif")
        losses = [{"step": i, "train/loss": 4.0 - i} for i in (1, 2, 3)]
        pictures.write_png(curves.draw(curves.grouped(losses)), folder / "loss.png")
    assert objects() == small.contents(tmp_path / "run") and len(objects()) == 3


def test_samples(bucket, tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    drawn = Drawn(x, np.stack([x // 2, x]), np.int32(5))
    monkeypatch.setattr(sampling, "draw_blocks", lambda *args: iter([drawn]))
    settings = small.sample_settings(save_pngs=True, num_samples=3)
    for folder in (bucket, tmp_path / "run"):
        found = sampling.generate(small.unet(), {}, settings, folder, step=7)
        assert found == folder / "samples" / "step_7_sampler4"
    assert objects() == small.contents(tmp_path / "run")
    pngs = ["png/000000.png", "png/000001.png", "png/000002.png"]
    names = ["film.gif", "grid.png", *pngs, "samples.npz", "sampling.json"]
    assert sorted(objects()) == [f"samples/step_7_sampler4/{name}" for name in names]


@pytest.mark.slow
def test_training_stopped_and_gone_on_with(bucket, tmp_path, monkeypatch):
    real, model = Checkpoints.open, small.mlp(hidden_layers=1)
    monkeypatch.setattr(Checkpoints, "open", lambda workdir, **options: real(tmp_path / workdir.name, **options))
    monkeypatch.setattr(
        training, "make_draw", lambda *args: lambda params, index, condition: Drawn(params["out"]["kernel"].T, None, 5)
    )

    def train(folder, **changes):
        settings = small.train_settings(sample_every=20, **changes)
        objects = (model, small.LOSS, small.optimizer(), small.points(), settings, small.sample_settings())
        return training.Trainer(*objects).run(folder)

    train(bucket / "a", num_steps=10)
    # As a killed run leaves it: a line after its last checkpoint.
    path = bucket / "a" / "metrics.jsonl"
    storage.write(path, storage.read(path) + b'{"step": 15, "train/loss": 99.0}\n')
    state = train(bucket / "a")
    small.assert_bitwise(state, train(tmp_path / "straight"))
    local = small.contents(tmp_path / "straight")
    there = {name.removeprefix("a/"): content for name, content in objects().items()}
    name = "grids/step_00000020.png"
    assert there[name] == local[name]
    losses = [
        [(entry["step"], entry["train/loss"]) for entry in map(json.loads, files["metrics.jsonl"].splitlines())]
        for files in (there, local)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 5
    assert {"loss.png", "metrics.jsonl"} < set(there)


def test_a_damaged_checkpoint_is_set_aside(bucket):
    for step in (5, 10):
        storage.write(bucket / "checkpoints" / str(step) / "state" / "d" / "w", b"%d" % step)
        storage.write(bucket / "checkpoints" / str(step) / "commit_success.txt", b"")
    manager = types.SimpleNamespace(directory=bucket / "checkpoints", reload=lambda: None)
    for kept in ("step_10", "step_10_1"):
        assert Checkpoints(manager)._set_aside(10) == bucket / "damaged" / kept
        storage.write(bucket / "checkpoints" / "10" / "state" / "d" / "w", b"10")
    assert objects()["damaged/step_10/state/d/w"] == b"10" and "damaged/step_10/commit_success.txt" in objects()
    assert objects()["checkpoints/5/state/d/w"] == b"5"


def test_what_a_bucket_answers_to_tensorstore_is_one_line():
    error = ValueError("Error writing gs://b/run/checkpoints/5/state/d/0: PERMISSION_DENIED\nand more")
    assert _storage_fault(error) == "Error writing gs://b/run/checkpoints/5/state/d/0: PERMISSION_DENIED"
    assert _storage_fault(ValueError("a defect of ours")) is None


@pytest.mark.parametrize(
    ("where", "path"),
    [("auto", "gs://bucket/run/compilation_cache"), ("gs://bucket/cache", "gs://bucket/cache"), ("off", None)],
)
def test_compiled_programs_are_kept_there(bucket, monkeypatch, where, path):
    set_to = {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "config", types.SimpleNamespace(jax_compilation_cache_dir=None, update=set_to.__setitem__))
    cache_compilations(where, epath.Path("gs://bucket/run"))
    wanted = {"jax_compilation_cache_dir": path, "jax_persistent_cache_enable_xla_caches": "none"}
    assert set_to == ({"jax_compilation_cache_dir": None} if path is None else wanted)
    set_to.clear()
    cache_compilations("/tmp/cache", epath.Path("gs://bucket/run"))
    assert set_to == {"jax_compilation_cache_dir": "/tmp/cache"}


def test_what_stays_local_says_so(bucket, capsys):
    config = digits_hold.get_config()
    config.eval.features, config.eval.inception = "inception", "gs://bucket/inception.npz"
    with pytest.raises(UserError, match=r"^`eval.inception` is 'gs://bucket/inception.npz'; it must be a local path"):
        build.feature_networks(base.read(config), small.points, bucket)
    with pytest.raises(UserError, match=r"^`data_dir` is 'gs://bucket'; it must be a local path"):
        data.load("tfds:cifar10", split="train", data_dir="gs://bucket")
    refused = {
        "input": ["--from=pytorch_fid", "--input=gs://bucket/in.pth", "--output=out.npz"],
        "output": ["--to=score_sde_pytorch", "--input=gs://bucket/run", "--output=gs://bucket/out.pth"],
    }
    for argument, arguments in refused.items():
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert f"error: `{argument}` is 'gs://bucket/" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--to=score_sde_pytorch", "--input=gs://bucket/run", "--output=out.pth"])
    assert "error: `input` is 'gs://bucket/run'; it must be a trained run's work directory" in capsys.readouterr().err
