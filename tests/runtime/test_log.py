import json
import math
import sys
import time
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from hold_jax.app import build
from hold_jax.app import config as base
from hold_jax.errors import UserError
from hold_jax.runtime.log import Logs, MetricLog, log_results, read_jsonl


def _events(workdir, folder="tensorboard"):
    return b"".join(path.read_bytes() for path in sorted((workdir / folder).glob("*tfevents*")))


def _strict(line):
    def reject(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=reject)


def test_each_line_is_on_disk_at_once(tmp_path):
    with MetricLog(tmp_path, start_step=0) as log:
        log.scalars(10, {"train/loss": np.float32(0.5), "lr": 1e-3})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 10, "train/loss": 0.5, "lr": 0.001}\n'
        log.scalars(20, {"train/loss": 0.25})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 10, "train/loss": 0.5, "lr": 0.001},
        {"step": 20, "train/loss": 0.25},
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_an_error_and_not_a_wait(tmp_path, monkeypatch):
    """The thread that writes TensorBoard's file ends at the first error; its queue would be full after a while."""

    def full(*_):
        raise SystemExit  # ends a thread without a traceback

    log = MetricLog(tmp_path, start_step=0)
    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.write_event", full)
    with pytest.raises(OSError, match="TensorBoard's writer ended, as on a full disk"):
        for step in range(1, 100):
            log.scalars(step, {"a": 1.0})
            time.sleep(0.01)
    log.close()


def test_a_full_disk_at_the_end_loses_tensorboard_s_last_events_with_one_line(tmp_path, monkeypatch, capsys):
    log = MetricLog(tmp_path, start_step=0)
    log.scalars(1, {"loss": 2.0})
    files = log._events.writer._get_file_writer().event_writer
    worker = files._worker

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files._ev_writer, "flush", full)
    log.close()
    printed = capsys.readouterr()
    said = "warning: TensorBoard's last events could not be written (No space left on device)\n"
    assert said in printed.out + printed.err and not worker.is_alive()
    files.close()  # as Python does when it exits
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_a_line_that_does_not_fit_at_the_end_names_the_log_and_closes_tensorboard(tmp_path, monkeypatch):
    log = MetricLog(tmp_path, start_step=0)
    log.scalars(1, {"loss": 2.0})
    worker = log._events.writer._get_file_writer().event_writer._worker

    class Full:
        def close(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(log._lines, "_file", Full())
    with pytest.raises(OSError) as error:
        log.close()
    assert error.value.filename == str(tmp_path / "metrics.jsonl") and not worker.is_alive()


def test_numbers_that_are_not_finite_are_strict_json_and_come_back(tmp_path):
    with MetricLog(tmp_path, start_step=0) as log:
        log.scalars(1, {"a": math.nan, "b": math.inf, "c": np.float32(-np.inf), "d": 1.0})
    with MetricLog(tmp_path, start_step=1):  # rewrites the line
        pass
    path = tmp_path / "metrics.jsonl"
    assert _strict(path.read_text()) == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1.0}
    (entry,) = read_jsonl(path)
    assert math.isnan(entry["a"]) and entry["b"] == math.inf and entry["c"] == -math.inf


class Wandb:
    """Stands for the package wandb: keeps what it is given."""

    def __init__(self):
        self.began, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.began.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def Image(self, image):
        return ("image", image)

    def finish(self):
        self.finished += 1


def test_wandb_gets_what_the_files_get(tmp_path, monkeypatch):
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    given = base.Config().changed({"logging": "wandb", "data.name": "digits"})
    log = build.log(given, "a1")(tmp_path, 0)
    image = np.zeros((4, 4), np.uint8)
    log.scalars(1, {"train/loss": 0.5})
    log.image("samples", image, 1)
    log.flush()
    log.close()
    (options,) = fake.began
    assert (options["project"], options["id"], options["resume"]) == ("hold_jax", "a1", "allow")
    assert options["config"]["data"]["name"] == "digits" and options["dir"] == str(tmp_path)
    assert fake.logged == [(1, {"train/loss": 0.5}), (1, {"samples": ("image", image)})] and fake.finished == 1
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 0.5}] and _events(tmp_path)


def test_the_files_are_closed_where_a_log_before_or_after_them_fails(tmp_path):
    class Fails:
        def close(self):
            raise ConnectionError("no route")

    for name, at in (("before", 0), ("after", 1)):
        files = MetricLog(tmp_path / name, start_step=0)
        files.scalars(1, {"loss": 2.0})
        logs = [files]
        logs.insert(at, Fails())
        with pytest.raises(ConnectionError, match="no route"):
            Logs(logs).close()
        assert files._lines._file.closed and b"loss" in _events(tmp_path / name)


def test_the_first_error_of_closing_is_raised_and_all_are_closed():
    closed = []

    def log(error):
        def close():
            closed.append(error)
            raise error

        return SimpleNamespace(close=close)

    errors = [OSError("first"), ValueError("second")]
    with pytest.raises(OSError, match="first"):
        Logs([log(error) for error in errors]).close()
    assert closed == errors


def test_wandb_is_looked_for_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="wandb"):
        build.log(base.Config().changed({"logging": "wandb"}), None)


def test_resuming_drops_the_steps_that_are_taken_again(tmp_path):
    with MetricLog(tmp_path, start_step=0) as log:
        for step in (10, 20, 30, 40):
            log.scalars(step, {"loss": float(step)})
    with MetricLog(tmp_path, start_step=20) as log:
        log.scalars(30, {"loss": -30.0})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss": 10.0},
        {"step": 20, "loss": 20.0},
        {"step": 30, "loss": -30.0},
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_starting_at_zero_starts_anew(tmp_path):
    for loss in (1.0, 2.0):
        with MetricLog(tmp_path, start_step=0) as log:
            log.scalars(0, {"loss": loss})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 2.0}]


@pytest.mark.parametrize("tail", [b'{"st', b'{"step": 3, "loss": 0.', b"\x00\x00\x00", b"7", b"{}"])
def test_a_damaged_last_line_is_dropped(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n' + tail)
    whole = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert read_jsonl(path) == whole
    with MetricLog(tmp_path, start_step=5) as log:
        log.scalars(6, {"loss": 0.25})
    assert read_jsonl(path) == [*whole, {"step": 6, "loss": 0.25}]
    assert [_strict(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 6]


@pytest.mark.parametrize("line", [b'{"step": 1, "lo', b'{"step": 1, "loss": NaN}', b"[1]", b'{"loss": 1.0}'])
def test_damage_elsewhere_is_named_and_touches_nothing(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    before = b'{"step": 0, "loss": 2.0}\n' + line + b'\n{"step": 2, "loss": 0.5}\n'
    path.write_bytes(before)
    with pytest.raises(ValueError, match="line 2 of"):
        MetricLog(tmp_path, start_step=2)
    assert path.read_bytes() == before


def test_tensorboard_files_hold_tags_images_and_the_purge_step(tmp_path):
    with MetricLog(tmp_path, start_step=0) as log:
        log.scalars(1, {"train/loss": 0.5})
        log.image("samples", PIL.Image.new("RGB", (6, 5), (255, 0, 0)), 1)
        log.image("gray", np.full((5, 6, 1), 128, np.uint8), 1)
    first = _events(tmp_path)
    assert b"train/loss" in first and b"samples" in first and b"gray" in first
    assert first.count(b"\x89PNG") == 2

    # A resumed run in the same second must not overwrite the file of the first.
    with MetricLog(tmp_path, start_step=7) as log:
        log.scalars(8, {"eval/frechet": 0.5})
    both = _events(tmp_path)
    assert first in both and b"eval/frechet" in both
    # Event protobuf: field 2 (step) = 8, field 7 (session_log) of two bytes, status (field 1) = START (1).
    assert b"\x10\x08\x3a\x02\x08\x01" in both and b"\x10\x08\x3a\x02\x08\x01" not in first


def test_log_errors_name_the_fault(tmp_path):
    with MetricLog(tmp_path, start_step=0) as log:
        with pytest.raises(UserError, match='"step"'):
            log.scalars(1, {"step": 2.0})
        with pytest.raises(UserError, match=r"float64 of shape \(4, 4\)"):
            log.image("samples", np.zeros((4, 4)), 1)
        log.close()
    log.close()
    with pytest.raises(UserError, match="`start_step` is -1"):
        MetricLog(tmp_path, start_step=-1)


def test_no_logs_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = Logs([])
    log.scalars(1, {"loss": 0.5})
    log.image("samples", np.zeros((4, 4), np.uint8), 1)
    log.flush()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_results_are_a_line_and_events_of_their_own(tmp_path):
    with MetricLog(tmp_path, start_step=0) as log:
        log.scalars(1, {"train/loss": 0.5})
    trained = _events(tmp_path)
    picture = PIL.Image.new("RGB", (6, 5), (255, 0, 0))
    log_results(tmp_path, {"step": 10, "fid": np.float32(0.5), "num_samples": 20}, {"samples": picture})
    log_results(tmp_path, {"step": 20, "fid": math.nan, "kid": -math.inf}, {"gray": PIL.Image.new("1", (6, 5))})
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [_strict(line) for line in lines] == [
        {"step": 10, "fid": 0.5, "num_samples": 20},
        {"step": 20, "fid": "NaN", "kid": "-Infinity"},
    ]
    assert math.isnan(read_jsonl(tmp_path / "results.jsonl")[1]["fid"])
    found = _events(tmp_path, "tensorboard/eval")
    for tag in (b"eval/fid", b"eval/kid", b"eval/num_samples", b"eval/samples", b"eval/gray"):
        assert tag in found
    assert b"eval/step" not in found and found.count(b"\x89PNG") == 2
    assert len(list((tmp_path / "tensorboard" / "eval").iterdir())) == 2  # in one second: the second beside the first
    # The training's own files and log are as they were, and stay when it goes on.
    assert _events(tmp_path) == trained and len(read_jsonl(tmp_path / "metrics.jsonl")) == 1
    with MetricLog(tmp_path, start_step=5):
        pass
    assert _events(tmp_path, "tensorboard/eval") == found and len(read_jsonl(tmp_path / "results.jsonl")) == 2


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (b'{"step": 1}\n{"step": 4, "te', b'{"step": 1}\n'),
        (b'{"step": 1}\n{"step": 4}', b'{"step": 1}\n{"step": 4}\n'),
        (b'{"st', b""),
        (b"", b""),
    ],
)
def test_half_a_last_result_does_not_glue_the_next(tmp_path, before, kept):
    (tmp_path / "results.jsonl").write_bytes(before)
    log_results(tmp_path, {"step": 9, "fid": 1.5}, {})
    assert (tmp_path / "results.jsonl").read_bytes() == kept + b'{"step": 9, "fid": 1.5}\n'


def test_results_are_not_written_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("precious\n")
    (tmp_path / "results.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is a link or not a regular file"):
        log_results(tmp_path, {"step": 9, "fid": 1.5}, {})
    assert (tmp_path / "mine").read_text() == "precious\n"
