import io
import json
import math

import numpy as np
import PIL.Image
import pytest

from hold_jax.errors import UserError
from hold_jax.training.log import MetricLog, NullLog, Progress, log_results, read_jsonl


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


def test_numbers_that_are_not_finite_are_strict_json_and_come_back(tmp_path):
    with MetricLog(tmp_path, start_step=0) as log:
        log.scalars(1, {"a": math.nan, "b": math.inf, "c": np.float32(-np.inf), "d": 1.0})
    with MetricLog(tmp_path, start_step=1):  # rewrites the line
        pass
    path = tmp_path / "metrics.jsonl"
    assert _strict(path.read_text()) == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1.0}
    (entry,) = read_jsonl(path)
    assert math.isnan(entry["a"]) and entry["b"] == math.inf and entry["c"] == -math.inf


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
        log.image("grey", np.full((5, 6, 1), 128, np.uint8), 1)
    first = _events(tmp_path)
    assert b"train/loss" in first and b"samples" in first and b"grey" in first
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


def test_the_null_log_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with NullLog() as log:
        log.scalars(1, {"loss": 0.5})
        log.image("samples", np.zeros((4, 4), np.uint8), 1)
    assert list(tmp_path.iterdir()) == []


def test_results_are_a_line_and_events_of_their_own(tmp_path):
    with MetricLog(tmp_path, start_step=0) as log:
        log.scalars(1, {"train/loss": 0.5})
    trained = _events(tmp_path)
    picture = PIL.Image.new("RGB", (6, 5), (255, 0, 0))
    log_results(tmp_path, {"step": 10, "fid": np.float32(0.5), "num_samples": 20}, {"samples": picture})
    log_results(tmp_path, {"step": 20, "fid": math.nan, "kid": -math.inf}, {"grey": PIL.Image.new("1", (6, 5))})
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [_strict(line) for line in lines] == [
        {"step": 10, "fid": 0.5, "num_samples": 20},
        {"step": 20, "fid": "NaN", "kid": "-Infinity"},
    ]
    assert math.isnan(read_jsonl(tmp_path / "results.jsonl")[1]["fid"])
    found = _events(tmp_path, "tensorboard/eval")
    for tag in (b"eval/fid", b"eval/kid", b"eval/num_samples", b"eval/samples", b"eval/grey"):
        assert tag in found
    assert b"eval/step" not in found and found.count(b"\x89PNG") == 2
    assert len(list((tmp_path / "tensorboard" / "eval").iterdir())) == 2  # in one second: the second beside the first
    # The training's own files and log are as they were, and stay when it goes on.
    assert _events(tmp_path) == trained and len(read_jsonl(tmp_path / "metrics.jsonl")) == 1
    with MetricLog(tmp_path, start_step=5):
        pass
    assert _events(tmp_path, "tensorboard/eval") == found and len(read_jsonl(tmp_path / "results.jsonl")) == 2


class _Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_rate_and_time_left_exclude_the_compilation():
    clock, stream = _Clock(), io.StringIO()
    progress = Progress(1000, 100, 32, clock=clock, stream=stream)
    clock.now += 500.0  # compilation
    progress.update(101, 1.0)
    assert progress.images_per_second is None and progress.seconds_left is None
    clock.now += 10.0
    progress.update(201, 0.5)
    assert progress.images_per_second == pytest.approx(100 * 32 / 10.0)
    assert progress.seconds_left == pytest.approx(799 * 10.0 / 100)
    clock.now += 30.0  # slower: the mean counts
    progress.update(301, 0.5)
    assert progress.images_per_second == pytest.approx(200 * 32 / 40.0)


def test_without_a_terminal_there_are_few_plain_lines():
    clock, stream = _Clock(), io.StringIO()
    with Progress(100, 0, 64, clock=clock, stream=stream) as progress:
        for step in range(1, 101):
            clock.now += 1.0
            progress.update(step, 1.0 / step)
    assert stream.getvalue() == (
        "step 1/100, loss 1\n"
        "step 31/100, loss 0.03226, 64 images/s, 01:09 left\n"
        "step 61/100, loss 0.01639, 64 images/s, 00:39 left\n"
        "step 91/100, loss 0.01099, 64 images/s, 00:09 left\n"
        "finished after 01:40: step 100/100, loss 0.01, 64 images/s\n"
    )


def test_what_is_counted_has_its_name():
    clock, stream = _Clock(), io.StringIO()
    with Progress(50_000, 128, 1, unit="sample", clock=clock, stream=stream) as progress:
        progress.update(128)
        clock.now += 40.0
        progress.update(528)
    assert stream.getvalue() == (
        "sample 128/50,000\n"
        "sample 528/50,000, 10 images/s, 1:22:27 left\n"
        "stopped after 00:40: sample 528/50,000, 10 images/s, 1:22:27 left\n"
    )


def test_a_run_cut_short_says_so_once():
    clock, stream = _Clock(), io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(100, 0, 64, clock=clock, stream=stream) as progress:
        progress.update(5)
        progress.write("saved step 5")
        raise KeyboardInterrupt
    progress.close()
    assert stream.getvalue() == "step 5/100\nsaved step 5\nstopped after 00:00: step 5/100\n"


def test_on_a_terminal_there_is_one_bar():
    clock, stream = _Clock(), _Terminal()
    with Progress(100, 50, 64, clock=clock, stream=stream) as progress:
        progress.update(51, 0.75)
        progress.write("saved step 51")
        clock.now += 2.0
        progress.update(100, 0.25)
    shown = stream.getvalue()
    assert "\r" in shown and "saved step 51\n" in shown
    last = shown.rstrip("\n").split("\r")[-1]
    assert "100%" in last and "step 100/100, loss 0.25, 1,568 images/s" in last


def test_disabled_shows_nothing_but_still_measures():
    clock, stream = _Clock(), io.StringIO()
    with Progress(100, 0, 64, enabled=False, clock=clock, stream=stream) as progress:
        progress.update(1, 1.0)
        clock.now += 1.0
        progress.update(2, 1.0)
        progress.write("nothing")
    assert stream.getvalue() == ""
    assert progress.images_per_second == pytest.approx(64.0)
