import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from hold_jax.training.preemption import Preemption

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def usual_handlers():
    """Whatever started the tests may ignore SIGHUP (nohup) or SIGINT (a shell's background job)."""
    before = {number: signal.getsignal(number) for number in STOPS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_is_noted_and_the_handlers_come_back(number, capsys):
    before = [signal.getsignal(n) for n in STOPS]
    with Preemption() as preemption:
        assert not preemption.reached()
        os.kill(os.getpid(), number)
        assert preemption.reached() and preemption.reached()
    assert [signal.getsignal(n) for n in STOPS] == before
    said = capsys.readouterr().err.strip()
    again = "" if number == signal.SIGHUP else " (again: at once)"
    assert said == f"{number.name}: stopping after this step with a checkpoint{again}"


def test_a_terminal_that_closes_may_send_two_signals_and_takes_no_more_output(monkeypatch):
    kept = os.dup(2)
    terminal, other_end = pty.openpty()
    os.dup2(other_end, 2)
    os.close(other_end)
    os.close(terminal)
    monkeypatch.setattr(sys, "stderr", open(2, "w", closefd=False))
    try:
        with pytest.raises(OSError, match="Input/output error"):
            os.write(2, b"said to nobody")
        with Preemption() as preemption:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert preemption.reached()
        os.write(2, b"said later")
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_a_hangup_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not preemption.reached()


def test_a_second_signal_ends_the_process():
    program = (
        "import os, signal, time\n"
        "from hold_jax.training.preemption import Preemption\n"
        "with Preemption():\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1)\n"
        "print('still here')"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert found.returncode == -signal.SIGTERM and "still here" not in found.stdout


def test_outside_the_main_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def work():
        with Preemption() as preemption:
            found.append((signal.getsignal(signal.SIGTERM), preemption.reached()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]
