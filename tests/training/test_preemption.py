import os
import signal
import subprocess
import sys
import threading

import pytest

from hold_jax.training.preemption import Preemption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_come_back(number, capsys):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with Preemption() as preemption:
        assert not preemption.reached()
        os.kill(os.getpid(), number)
        assert preemption.reached() and preemption.reached()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    said = capsys.readouterr().err.strip()
    assert said == f"{number.name}: stopping after this step with a checkpoint (again: at once)"


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
