"""What services of any kind are sent: each epoch once, and nothing that could hurt training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.utils.loggers.conftest import BEST, row_of, train
from utils.base.callbacks import Callbacks
from utils.loggers import service as module
from utils.loggers.run import COLUMNS, RunInfo
from utils.loggers.service import Kind, Service, ServiceLogger

Info = Callable[..., RunInfo]
Warnings = Callable[[], list[str]]
CALLS = ("connect", "settings", "values", "images", "best", "network", "boxes", "disconnect")


class Recorder(Service):
    """Writes down what it is sent; `trouble` is done first in the call that is named."""

    name = "recorder"
    wants = frozenset[Kind]({"network", "boxes"})
    trouble: ClassVar[dict[str, Callable[[], Any]]] = {}

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self.calls: list[tuple[Any, ...]] = []

    def connect(self, known: str) -> str:
        self.send("connect", known, -1)
        return known or "run1"

    def send(self, kind: Any, content: Any, epoch: int) -> None:
        self.trouble.get(kind, lambda: None)()
        self.calls.append((kind, content, epoch))

    def disconnect(self, ended: bool) -> None:
        self.send("disconnect", ended, -1)

    def of(self, kind: str) -> list[Any]:
        return [content for name, content, _ in self.calls if name == kind]

    @property
    def epochs(self) -> list[int]:
        return [epoch for name, _, epoch in self.calls if name == "values"]


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Any]]:
    calls: dict[str, Callable[[], Any]] = {}
    monkeypatch.setattr(Recorder, "trouble", calls)
    return calls


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs until the test ends, when the threads that hang are let go and waited for."""
    opened = threading.Event()
    yield opened
    opened.set()
    for thread in threading.enumerate():
        if thread.name == "logger of recorder":
            thread.join(5)


def subscribed(run: RunInfo) -> tuple[Callbacks, Recorder]:
    callbacks, service = Callbacks(), Recorder(run)
    callbacks.subscribe(ServiceLogger(run, [service]))
    return callbacks, service


def whole_epoch(callbacks: Callbacks, model: nn.Module, epoch: int) -> None:
    images = torch.zeros(2, 3, 32, 64)
    for batch in range(2):
        callbacks.run("on_train_batch_end", 2 * epoch + batch, model, images, torch.zeros(0, 6), ("a",), True, False)
    callbacks.run("on_train_epoch_end", epoch=epoch)
    found = torch.tensor([[1.0, 2, 3, 4, 0.9, 1]])
    for number in range(20):
        callbacks.run("on_val_image_end", found, found, f"{number}.png", ["red", "blue"], None)
    callbacks.run("on_val_metrics", None, epoch)
    callbacks.run("on_fit_epoch_end", [float(epoch)] * len(COLUMNS), epoch, 0.5, 0.4)


def whole_run(callbacks: Callbacks, run: RunInfo, model: nn.Module) -> None:
    for name in ("labels.jpg", "train_batch0.jpg", "val_batch0_pred.jpg", "results.png", "notes.txt"):
        (run.folder / name).touch()
    callbacks.run("on_pretrain_routine_end")
    for epoch in range(3):
        whole_epoch(callbacks, model, epoch)
    callbacks.run("on_train_end", Path("last.pt"), Path("best.pt"), True, 2, BEST)
    callbacks.run("teardown")


def test_a_whole_run(info: Info, warnings: Warnings) -> None:
    run = info(bbox_interval=2)
    callbacks, recorder = subscribed(run)
    whole_run(callbacks, run, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert not warnings() and recorder.epochs == [0, 1, 2]
    assert recorder.of("values")[1] == dict.fromkeys(COLUMNS, 1.0)
    images = [([file.name for file in content], epoch) for kind, content, epoch in recorder.calls if kind == "images"]
    assert images == [
        (["labels.jpg", "train_batch0.jpg"], 0), (["results.png", "val_batch0_pred.jpg"], 2)
    ]  # fmt: skip
    best = {"best/precision": 0.1, "best/recall": 0.2, "best/mAP_0.5": 0.3, "best/mAP_0.5:0.95": 0.4}
    assert recorder.of("best") == [best]
    assert [(len(found), epoch) for kind, found, epoch in recorder.calls if kind == "boxes"] == [(16, 0), (16, 2)]
    ((_, shape),) = recorder.of("network")
    assert shape == (1, 3, 32, 64) and recorder.of("disconnect") == [True]
    np.testing.assert_allclose(recorder.of("boxes")[0][0][1], [[1, 2, 3, 4, 0.9, 1]], rtol=1e-6)


@pytest.mark.parametrize("call", CALLS)
def test_one_that_raises_costs_its_own_entries(info, call, trouble, warnings):
    def broken() -> None:
        raise ConnectionError(f"{call} is down")

    trouble[call] = broken
    run = info(bbox_interval=1)
    callbacks, recorder = subscribed(run)
    whole_run(callbacks, run, nn.Identity())
    assert sum(f"recorder: {call} is down; training goes on" in line for line in warnings()) == 1
    assert not recorder.of(call)
    if call not in ("connect", "values", "settings"):
        assert recorder.epochs == [0, 1, 2]


@pytest.mark.parametrize("call", CALLS)
def test_one_that_hangs_is_left_behind(info, call, trouble, warnings, given_up, monkeypatch, gate) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.7)
    trouble[call] = lambda: gate.wait(60)
    run, began = info(bbox_interval=1), time.monotonic()
    callbacks = Callbacks()
    callbacks.subscribe(ServiceLogger(run, [Recorder(run) for _ in range(30)]))  # they share one wait
    whole_run(callbacks, run, nn.Identity())
    assert "did not finish in time" in warnings()[-1] and given_up == [0] * 30 and time.monotonic() - began < 20


@pytest.mark.parametrize("sent", [1, 4])
def test_a_resumed_run_sends_each_epoch_once(info: Info, sent: int) -> None:
    """The checkpoint is that of epoch 2, whatever the service has by then."""
    callbacks, first = subscribed(info())
    train(callbacks, range(sent), ended=False)
    assert (first.run.folder / "recorder.id").read_text() == f"run1 {sent - 1}\n"
    callbacks, second = subscribed(info([row_of(epoch) for epoch in range(3)], resume="last.pt"))
    train(callbacks, range(3, 6))
    assert second.of("connect") == ["run1"] and not second.of("settings")
    assert first.epochs + second.epochs == list(range(6))
    assert second.of("values")[0] == dict(zip(COLUMNS, row_of(sent)[1:], strict=True))


@pytest.mark.parametrize("content", [None, "", "run1", "run1 x", "a b c", "\x00"])
def test_without_a_readable_note_the_service_gets_a_new_run_with_all(info: Info, content: str | None) -> None:
    run = info([row_of(epoch) for epoch in range(2)], resume=True)
    if content is not None:
        (run.folder / "recorder.id").write_text(content)
    callbacks, recorder = subscribed(run)
    train(callbacks, [2])
    assert recorder.of("connect") == [""] and recorder.epochs == [0, 1, 2] and len(recorder.of("settings")) == 1


def test_new_runs_are_new_and_interrupted_ones_go_on(info: Info) -> None:
    (info().folder / "recorder.id").write_text("old 7\n")
    callbacks, recorder = subscribed(info())
    train(callbacks, [], ended=False)  # interrupted before its first epoch
    assert recorder.calls == [("connect", "", -1), ("settings", None, 0), ("disconnect", False, -1)]
    callbacks, second = subscribed(info([], resume="last.pt"))
    train(callbacks, [0])
    assert second.of("connect") == ["run1"] and second.epochs == [0]


def test_a_copy_shares_nothing_with_the_network(info: Info) -> None:
    callbacks, recorder = subscribed(info())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole_epoch(callbacks, model, 0)
    callbacks.run("teardown")
    ((twin, _),) = recorder.of("network")
    assert not any(part.training for part in twin.modules()) and all(part.training for part in model.modules())
    for (name, mine), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs) and mine.data_ptr() != theirs.data_ptr(), name
    assert not any(value.requires_grad for value in twin.parameters())
    twin.train()(torch.rand(2, 3, 8, 8) + 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is not None for value in model.parameters())
