"""Pictures of a run; none of them is worth the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.base.callbacks import Callbacks
from utils.loggers import images as pictures
from utils.loggers.csv import COLUMNS, CsvLogger
from utils.loggers.images import PictureLogger

TARGETS = torch.tensor([[0, 0, 0.5, 0.5, 0.2, 0.2]])


def hooks(callbacks: Callbacks) -> None:
    callbacks.run("on_pretrain_routine_end")
    for number in (0, 9):
        callbacks.run("on_train_batch_end", number, None, torch.rand(1, 3, 64, 64), TARGETS, ("x.jpg",), True, False)
    callbacks.run("on_fit_epoch_end", [0.1] * len(COLUMNS), 0, 0.1, 0.1)
    callbacks.run("on_train_end", Path("last.pt"), Path("best.pt"), True, 0, ())


def test_they_are_drawn(tmp_path: Path) -> None:
    callbacks = Callbacks()
    labels = np.array([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.3, 0.3, 0.1, 0.4]], dtype=np.float32)
    callbacks.subscribe(CsvLogger(tmp_path))
    callbacks.subscribe(PictureLogger(tmp_path, ["a", "b"], labels))
    hooks(callbacks)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.csv", "results.png", "labels.jpg", "labels_correlogram.jpg", "train_batch0.jpg"}


def test_failures_are_told_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("no room for a mosaic")

    for name in ("plot_labels", "plot_images", "plot_results"):
        monkeypatch.setattr(pictures, name, broken)
    callbacks = Callbacks()
    callbacks.subscribe(PictureLogger(tmp_path, ["a"], np.zeros((0, 5))))
    hooks(callbacks)
    assert [line.split(": ")[0].rpartition("/")[2] for line in said()] == [
        "labels.jpg",
        "train_batch0.jpg",
        "results.png",
    ]
    assert all("no room for a mosaic" in line for line in said())
