"""Bars where a person watches, lines elsewhere; estimates; memory."""

from __future__ import annotations

import gc
import io
import logging
import sys

import pytest
import torch

from utils.base import progress as module
from utils.base.log import LOGGER
from utils.base.progress import (
    Pace,
    duration,
    epoch_line,
    is_terminal,
    memory_in_use,
    memory_name,
    progress,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that pass are what this list holds."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_are_lines_now_and_then(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    with caplog.at_level(logging.INFO, LOGGER.name):
        assert list(progress([], "nothing")) == []
        for number in progress(range(100), "scanning", unit=" files"):
            clock[0] += 1
            assert number < 100
        assert caplog.messages == [
            "scanning: 30 of 100 files, 1:10 left", "scanning: 60 of 100 files, 0:40 left",
            "scanning: 90 of 100 files, 0:10 left",
        ]  # fmt: skip
        caplog.clear()
        with progress(None, "a.zip", 5_000_000, "B") as bar:
            clock[0] += 31
            bar.update(2_500_000)
        with progress(None, "b.zip", None, "B") as bar:
            clock[0] += 31
            bar.update(1000)
    assert caplog.messages == ["a.zip: 2.50M of 5.00M B, 0:31 left", "b.zip: 1.00k B"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with caplog.at_level(logging.INFO, LOGGER.name):
        assert is_terminal() and list(progress(range(3), "scanning", unit=" files")) == [0, 1, 2]
        shown = sys.stderr.getvalue()
        assert list(progress(range(3), "scanning", quiet=True)) == [0, 1, 2]
    assert "\r" in shown and "scanning" in shown and "3/3" in shown and not caplog.text
    LOGGER.setLevel(logging.WARNING)
    assert list(progress(range(3), "scanning")) == [0, 1, 2] and sys.stderr.getvalue() == shown, "nobody listens"
    monkeypatch.setattr(sys, "stderr", None)
    assert not is_terminal()


def test_the_rest_takes_as_long_as_what_was_done_says(clock: list[float]) -> None:
    pace = Pace(10, 2.5)  # a run that goes on in the middle of epoch 2
    assert pace.left(2.5) == "?"
    clock[0] += 30
    assert pace.left(4) == "2:00" and pace.left(10) == "0:00"


def test_durations() -> None:
    times = {0: "0:00", 59.6: "1:00", 3599: "59:59", 90_061: "25:01:01", -1: "0:00"}
    assert {seconds: duration(seconds) for seconds in times} == times


def test_memory_of_the_process_grows_with_what_it_holds() -> None:
    gc.collect()  # what earlier tests left goes now and not in between
    before, held = memory_in_use(torch.device("cpu")), torch.ones(200_000_000, dtype=torch.uint8)
    grown = float(memory_in_use(torch.device("cpu")).removesuffix("G")) - float(before.removesuffix("G"))
    assert 0.15 < grown < 0.4 and len(held)
    assert memory_name(torch.device("cpu")) == "RSS" and memory_name(torch.device("cuda")) == "gpu_mem"


def test_an_epoch_is_one_line() -> None:
    line = epoch_line("epoch 3/9", (0.5, 0.25, 0.125), (0.1, 0.2, 0.3, 0.4), ["RSS 1G", "2.0 s"])
    assert line == "epoch 3/9: box 0.5, obj 0.25, cls 0.125, P 0.1, R 0.2, mAP50 0.3, mAP50-95 0.4, RSS 1G, 2.0 s"
    assert epoch_line("epoch 0/0", (0, 0, 0), (), []) == "epoch 0/0: box 0, obj 0, cls 0"
