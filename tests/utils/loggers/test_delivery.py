"""A service may hang, raise and fall behind: whoever tells it something goes on at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from utils.base.paths import ROOT
from utils.loggers import delivery as module
from utils.loggers.delivery import CAPACITY, STRIKES, Guard

Said = Callable[[], list[str]]


def lost_of(line: str) -> int:
    return int(line.split("missed ")[1].split()[0])


def nothing() -> None:
    pass


def fail() -> None:
    raise RuntimeError("service\nsays no")


@pytest.fixture
def stuck() -> Iterator[Callable[[], None]]:
    """An entry that does not end before the test does."""
    gate = threading.Event()
    yield lambda: gate.wait(60) and None
    gate.set()


def end(guard: Guard, seconds: float = 5) -> None:
    guard.close(nothing)
    guard.wait(time.monotonic() + seconds, status=0)


def test_told_nothing(said: Said, given_up: list[int]) -> None:
    began = time.monotonic()
    end(Guard("quiet", nothing))
    assert time.monotonic() - began < 2 and not said() and not given_up


def test_entries_come_in_order_after_the_start_in_another_thread(said: Said) -> None:
    done: list[object] = []
    guard = Guard("one", lambda: done.append(threading.current_thread().daemon))
    for number in range(20):
        guard.put(lambda number=number: done.append(number))
    end(guard)
    assert done == [True, *range(20)] and not said()


def test_errors_are_told_once_and_the_third_in_a_row_ends_it(said: Said, given_up: list[int]) -> None:
    guard, done = Guard("sick", nothing), []
    for _ in range(STRIKES - 1):
        guard.put(fail)
    guard.put(lambda: done.append("a good one forgives"))
    for _ in range(STRIKES):
        guard.put(fail)
    guard.put(lambda: done.append("never"))
    end(guard)
    assert done == ["a good one forgives"]
    first, last, lost = said()
    assert first == "sick: service says no; training goes on"
    assert last.startswith("sick: left out from now on")
    assert lost_of(lost) in (2 * STRIKES, 2 * STRIKES + 1), "the last entry may come before it is left out, or after"
    guard.put(lambda: done.append("never"))
    assert guard.out and given_up == [0]


def test_a_start_that_fails_is_tried_again(said: Said) -> None:
    tries: list[int] = []

    def start() -> None:
        tries.append(1)
        if len(tries) < STRIKES:
            sys.exit("no server yet")  # some services leave their thread

    guard, done = Guard("late", start), []
    for number in range(STRIKES):
        guard.put(lambda number=number: done.append(number))
    end(guard)
    assert done == [STRIKES - 1] and len(tries) == STRIKES and "no server yet" in said()[0]


def test_a_service_that_hangs_loses_its_entries_only(
    said: Said, given_up: list[int], stuck: Callable[[], None]
) -> None:
    guard = Guard("stuck", stuck)
    began = time.monotonic()
    for _ in range(CAPACITY + 50):
        guard.put(nothing)
    assert time.monotonic() - began < 1
    assert [line for line in said() if "does not keep up" in line] == said()[:1] and len(said()) == 1
    end(guard, seconds=0.3)
    assert time.monotonic() - began < 2
    assert CAPACITY + 50 <= lost_of(said()[-1]) <= CAPACITY + 52 and given_up == [0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not copied here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_copy_of_the_process_waits_for_a_pause_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, stuck: Callable[[], None]
) -> None:
    monkeypatch.setattr(module, "_FORK_WAIT", 1.0)
    importing, done = threading.Event(), []

    def busy() -> None:
        importing.set()
        time.sleep(0.3)
        done.append("busy")

    def fork() -> float:
        began = time.monotonic()
        if (child := os.fork()) == 0:
            os._exit(0 if not module._guards else 1)
        assert os.waitpid(child, 0)[1] == 0
        return time.monotonic() - began

    working, hanging = Guard("busy", nothing), Guard("stuck", nothing)
    working.put(busy)
    assert importing.wait(5)
    fork()
    assert done == ["busy"]
    hanging.put(stuck)
    time.sleep(0.1)
    assert 1 <= fork() < 3 and fork() < 1, "a service that hangs was waited for again"
    working.put(lambda: done.append("goes on"))
    end(working)
    assert done == ["busy", "goes on"]


END = """
import atexit, importlib.util, sys, threading, time
spec = importlib.util.spec_from_file_location("guard", {file!r})  # alone: its package imports torch
guard = sys.modules["guard"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guard)
guard.leave_in_time.__defaults__ = (0.5,)
hung = guard.Guard("stuck", lambda: time.sleep(600))
atexit.register(time.sleep, 600)
threading.Thread(target=time.sleep, args=(600,)).start()
hung.close(lambda: None)
hung.wait(time.monotonic() + 0.1, status=0)
print("trained")
{last}
"""


@pytest.mark.parametrize("last, status", [("", 0), ("raise ValueError('afterwards')", 1)])
def test_the_process_ends_though_a_service_would_not_let_it(last: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", END.format(last=last, file=module.__file__)],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == status and "trained" in done.stdout and ("afterwards" in done.stderr) == bool(status)
