"""A service may hang, raise and fall behind: whoever gives it something to send goes on at once."""

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
from utils.loggers.delivery import CAPACITY, STRIKES, Delivery

Warnings = Callable[[], list[str]]


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


def end(delivery: Delivery, seconds: float = 5) -> None:
    delivery.put(nothing, last=True)
    delivery.wait(time.monotonic() + seconds, status=0)


def test_entries_come_in_order_after_the_start_in_another_thread(warnings: Warnings) -> None:
    done: list[object] = []
    delivery = Delivery("one", lambda: done.append(threading.current_thread().daemon))
    for number in range(20):
        delivery.put(lambda number=number: done.append(number))
    end(delivery)
    assert done == [True, *range(20)] and not warnings()


def test_errors_are_said_once_and_the_third_in_a_row_ends_it(warnings: Warnings, given_up: list[int]) -> None:
    delivery, done = Delivery("sick", nothing), []
    for _ in range(STRIKES - 1):
        delivery.put(fail)
    delivery.put(lambda: done.append("a good one forgives"))
    for _ in range(STRIKES):
        delivery.put(fail)
    delivery.put(lambda: done.append("never"))
    end(delivery)
    assert done == ["a good one forgives"]
    first, last, lost = warnings()
    assert first == "sick: service says no; training goes on"
    assert last.startswith("sick: left out from now on")
    assert lost_of(lost) in (2 * STRIKES, 2 * STRIKES + 1), "the last entry may come before it is left out, or after"
    delivery.put(lambda: done.append("never"))
    assert delivery.out and given_up == [0]


def test_a_start_that_fails_is_tried_again(warnings: Warnings) -> None:
    tries: list[int] = []

    def start() -> None:
        tries.append(1)
        if len(tries) < STRIKES:
            sys.exit("no server yet")  # some services leave their thread

    delivery, done = Delivery("late", start), []
    for number in range(STRIKES):
        delivery.put(lambda number=number: done.append(number))
    end(delivery)
    assert done == [STRIKES - 1] and len(tries) == STRIKES and "no server yet" in warnings()[0]


def test_a_service_that_hangs_loses_its_entries_only(warnings, given_up, stuck):
    delivery = Delivery("stuck", stuck)
    began = time.monotonic()
    for _ in range(CAPACITY + 50):
        delivery.put(nothing)
    assert time.monotonic() - began < 1
    assert [line for line in warnings() if "does not keep up" in line] == warnings()[:1] and len(warnings()) == 1
    end(delivery, seconds=0.3)
    assert time.monotonic() - began < 2
    assert CAPACITY + 50 <= lost_of(warnings()[-1]) <= CAPACITY + 52 and given_up == [0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not copied here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_copy_of_the_process_waits_for_a_pause_but_not_for_ever(monkeypatch, stuck):
    monkeypatch.setattr(module, "_FORK_WAIT", 1.0)
    importing, done = threading.Event(), []

    def busy() -> None:
        importing.set()
        time.sleep(0.3)
        done.append("busy")

    def fork() -> float:
        began = time.monotonic()
        if (child := os.fork()) == 0:
            os._exit(0 if not module._deliveries else 1)
        assert os.waitpid(child, 0)[1] == 0
        return time.monotonic() - began

    working, hanging = Delivery("busy", nothing), Delivery("stuck", nothing)
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
spec = importlib.util.spec_from_file_location("delivery", {file!r})  # alone: its package imports torch
delivery = sys.modules["delivery"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(delivery)
delivery.leave_in_time.__defaults__ = (0.5,)
hung = delivery.Delivery("stuck", lambda: time.sleep(600))
atexit.register(time.sleep, 600)
threading.Thread(target=time.sleep, args=(600,)).start()
hung.put(lambda: None, last=True)
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
