"""A run to log, and what training would call of its loggers."""

from __future__ import annotations

import importlib.machinery
import logging
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from utils.base.callbacks import Callbacks
from utils.evaluation import reports
from utils.loggers import delivery, run, service, subscribe_loggers
from utils.loggers.run import COLUMNS, RunInfo

BEST = (0.1, 0.2, 0.3, 0.4, 0.0, 0.0, 0.0)


def row_of(epoch: int) -> list[float]:
    """The results of an epoch: all different, and known."""
    return [epoch, *(epoch + i / 100 for i in range(len(COLUMNS)))]


def train(callbacks: Callbacks, epochs: Sequence[int], ended: bool = True) -> None:
    """Run the hooks of some epochs, and those of the end unless `ended` is False."""
    callbacks.run("on_pretrain_routine_end")
    for epoch in epochs:
        callbacks.run("on_train_epoch_end", epoch=epoch)
        callbacks.run("on_fit_epoch_end", row_of(epoch)[1:], epoch, 0.5, 0.4)
    if ended:
        callbacks.run("on_train_end", Path("last.pt"), Path("best.pt"), True, max(epochs, default=0), BEST)
    callbacks.run("teardown")


def logged(run: RunInfo, epochs: Sequence[int], ended: bool = True) -> None:
    """Train with the loggers that the run's options name."""
    callbacks = Callbacks()
    subscribe_loggers(callbacks, run)
    train(callbacks, epochs, ended)


@pytest.fixture
def info(tmp_path: Path) -> Callable[..., RunInfo]:
    """A run of two classes; options by keyword."""

    def make(history: Sequence[Sequence[float]] = (), **options: Any) -> RunInfo:
        folder = tmp_path / "shapes" / "exp3"
        folder.mkdir(parents=True, exist_ok=True)
        labels = np.array([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.3, 0.3, 0.1, 0.4]], dtype=np.float32)
        chosen = {"epochs": 5, "project": str(folder.parent), "loggers": ["none"]} | options
        return RunInfo(folder, ["red", "blue"], labels, chosen, {"lr0": 0.01, "box_iou": "ciou"}, history)

    return make


@pytest.fixture(autouse=True)
def given_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit statuses of services that were given up, instead of a process that would end with them; short waits."""
    statuses: list[int] = []
    monkeypatch.setattr(delivery, "leave_in_time", statuses.append)
    monkeypatch.setattr(delivery, "_QUIET", 0.1)
    monkeypatch.setattr(service, "HURRY", 1.0)
    return statuses


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Warnings so far."""
    with caplog.at_level(logging.INFO, logger="yolov5"):
        yield lambda: [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]


@pytest.fixture
def sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images instead of figures, which take seconds to draw."""

    def sketch(name: str) -> Callable[..., None]:
        return lambda *where: Image.new("RGB", (20, 10), "red").save(Path(where[-1]).with_name(name))

    monkeypatch.setattr(run, "plot_labels", lambda labels, names, folder: sketch("labels.jpg")(folder / "x"))
    monkeypatch.setattr(run, "plot_results", sketch("results.png"))
    monkeypatch.setattr(reports, "plot_curves", lambda curves, names, folder: sketch("PR_curve.png")(folder / "x"))
    monkeypatch.setattr(reports, "plot_confusion_matrix", sketch("confusion_matrix.png"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Put a package that only records its calls in the place of a real one, with the given submodules."""

    def install(name: str, *parts: str) -> Any:
        package = MagicMock(name=name)
        for module in (name, *(f"{name}.{part}" for part in parts)):
            made = types.ModuleType(module)
            made.__spec__ = importlib.machinery.ModuleSpec(module, None, origin="fake")
            made.__path__ = []
            target = package
            for part in module.split(".")[1:]:
                target = getattr(target, part)
            made.__getattr__ = lambda attribute, target=target: getattr(target, attribute)
            monkeypatch.setitem(sys.modules, module, made)
        return package

    return install
