"""The progress line."""

import io

import pytest

from hold_jax.runtime.progress import Progress


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
    assert progress.examples_per_second is None and progress.seconds_left is None
    clock.now += 10.0
    progress.update(201, 0.5)
    assert progress.examples_per_second == pytest.approx(100 * 32 / 10.0)
    assert progress.seconds_left == pytest.approx(799 * 10.0 / 100)
    clock.now += 30.0  # slower: the mean counts
    progress.update(301, 0.5)
    assert progress.examples_per_second == pytest.approx(200 * 32 / 40.0)


def test_without_a_terminal_there_are_few_plain_lines():
    clock, stream = _Clock(), io.StringIO()
    with Progress(100, 0, 64, examples="points", clock=clock, stream=stream) as progress:
        for step in range(1, 101):
            clock.now += 1.0
            progress.update(step, 1.0 / step)
    assert stream.getvalue() == (
        "step 1/100, loss 1\n"
        "step 31/100, loss 0.03226, 64 points/s, 01:09 left\n"
        "step 61/100, loss 0.01639, 64 points/s, 00:39 left\n"
        "step 91/100, loss 0.01099, 64 points/s, 00:09 left\n"
        "finished after 01:40: step 100/100, loss 0.01, 64 points/s\n"
    )


def test_what_is_counted_has_its_name():
    clock, stream = _Clock(), io.StringIO()
    with Progress(50_000, 128, 1, unit="sample", clock=clock, stream=stream) as progress:
        progress.update(128)
        clock.now += 40.0
        progress.update(528)
    assert stream.getvalue() == (
        "sample 528/50,000, 10 samples/s, 1:22:27 left\n"
        "stopped after 00:40: sample 528/50,000, 10 samples/s, 1:22:27 left\n"
    )


@pytest.mark.parametrize("seconds", [20.0, 40.0])
def test_work_with_a_title_shows_lines_only_if_it_takes_long(seconds):
    clock, stream = _Clock(), io.StringIO()
    with Progress(3, 0, 1, unit="example", title="features", clock=clock, stream=stream) as progress:
        progress.update(1)
        clock.now += seconds
        progress.update(2)
        progress.update(3)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ([] if seconds < 30 else [
        "features: example 2/3", "finished after 00:40: features: example 3/3"
    ])  # fmt: skip


def test_a_run_cut_short_says_so_once():
    clock, stream = _Clock(), io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(100, 0, 64, clock=clock, stream=stream) as progress:
        progress.update(5)
        progress.write("saved step 5")
        raise KeyboardInterrupt
    progress.close()
    assert stream.getvalue() == "saved step 5\nstopped after 00:00: step 5/100\n"


def test_on_a_terminal_there_is_one_bar():
    clock, stream = _Clock(), _Terminal()
    with Progress(100, 50, 64, examples="images", clock=clock, stream=stream) as progress:
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
    assert progress.examples_per_second == pytest.approx(64.0)
