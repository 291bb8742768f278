"""Signals become wishes; the second one is an order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from utils.base.paths import ROOT
from utils.training.interruption import Interrupted, Interruption


def test_without_a_signal_nothing_happens() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption() as told:
        told.check()
        assert not told.number and signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_heard_and_the_handlers_are_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interruption() as told:
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 5
        while not told.number and time.monotonic() < deadline:
            time.sleep(0.001)
        assert signal.getsignal(number) == before, "a second one would be ignored"
        with pytest.raises(Interrupted) as stop:
            told.check()
    assert stop.value.signal == number and isinstance(stop.value, KeyboardInterrupt)


def test_the_second_one_ends_the_program() -> None:
    code = (
        "import os, signal, time\nfrom utils.training.interruption import Interruption\n"
        "with Interruption():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60, capture_output=True)
    assert done.returncode == -signal.SIGTERM


def test_in_another_thread_signals_are_left_alone() -> None:
    seen = []

    def enter() -> None:
        with Interruption():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_one_of_several_does_not_wait_for_the_dead() -> None:
    """In a run of several processes the step at hand may never end: the process then ends by itself."""
    code = (
        "import os, signal, time\nfrom utils.training import interruption\n"
        "interruption.is_joined, interruption.GRACE = lambda: True, 0.3\n"
        "with interruption.Interruption():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60, capture_output=True)
    assert done.returncode == 128 + signal.SIGTERM
