"""results.csv and what else listens to training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from utils.callbacks import Callbacks
from utils.loggers import subscribe_loggers, tensorboard
from utils.loggers.csv import COLUMNS, CsvLogger


def row(start: float) -> list[float]:
    return [start + i for i in range(len(COLUMNS))]


def test_csv_before_the_first_epoch_is_a_header(tmp_path: Path) -> None:
    CsvLogger(tmp_path)
    table = pd.read_csv(tmp_path / "results.csv", skipinitialspace=True)
    assert table.empty and [c.strip() for c in table.columns] == ["epoch", *COLUMNS]


def test_csv_is_v61s_to_the_byte(tmp_path: Path) -> None:
    CsvLogger(tmp_path).on_fit_epoch_end(row(0.123456789), 0, 0, 0)
    header, first = (tmp_path / "results.csv").read_text().splitlines()
    assert header.startswith("               epoch,      train/box_loss,") and len(header) == len(first) == 14 * 21 - 1
    assert first.split(",")[1] == f"{0.123456789:20.5g}"


def test_csv_of_a_resumed_run_repeats_no_epoch(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    for epoch in range(4):
        logger.on_fit_epoch_end(row(epoch), epoch, 0, 0)
    CsvLogger(tmp_path, start_epoch=2).on_fit_epoch_end(row(9), 2, 0, 0)
    assert pd.read_csv(tmp_path / "results.csv").iloc[:, 0].tolist() == [0, 1, 2]


def test_subscribers_draw_their_pictures(tmp_path: Path) -> None:
    callbacks = Callbacks()
    labels = np.array([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.3, 0.3, 0.1, 0.4]], dtype=np.float32)
    subscribe_loggers(callbacks, tmp_path, ["a", "b"], labels)
    callbacks.run("on_pretrain_routine_end")
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.2, 0.2]])
    callbacks.run("on_train_batch_end", 0, None, torch.rand(1, 3, 64, 64), targets, ("x.jpg",), True, False)
    callbacks.run("on_train_batch_end", 9, None, torch.rand(1, 3, 64, 64), targets, ("x.jpg",), True, False)
    callbacks.run("on_fit_epoch_end", row(0.1), 0, 0.1, 0.1)
    callbacks.run("on_train_end", tmp_path / "last.pt", tmp_path / "best.pt", True, 0, ())
    names = {path.name for path in tmp_path.iterdir()}
    assert {"results.csv", "results.png", "labels.jpg", "labels_correlogram.jpg", "train_batch0.jpg"} <= names
    assert "train_batch9.jpg" not in names
    assert tensorboard.available() == any(name.startswith("events.out") for name in names)


def test_tensorboard_has_the_scalars(tmp_path: Path) -> None:
    if not tensorboard.available():
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = tensorboard.TensorBoardLogger(tmp_path)
    logger.on_fit_epoch_end(row(0.5), 3, 0, 0)
    logger.writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Scalars("metrics/mAP_0.5")[0].value == pytest.approx(0.5 + COLUMNS.index("metrics/mAP_0.5"))
