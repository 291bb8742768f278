"""Scalars and pictures for TensorBoard, when it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.loggers.csv import COLUMNS


def available() -> bool:
    """Is TensorBoard installed? (Nothing is imported to find out.)"""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoardLogger:
    """An event file in the run's folder with the columns of results.csv and the final plots."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self.writer = SummaryWriter(str(folder))

    def on_fit_epoch_end(self, values: Sequence[float], epoch: int, best_fitness: float, fitness: float) -> None:
        """One point a column."""
        for name, value in zip(COLUMNS, values):
            self.writer.add_scalar(name, value, epoch)

    def on_train_end(self, last: Path, best: Path, plots: bool, epoch: int, results: Any) -> None:
        """The pictures that training drew, then close the file."""
        from PIL import Image

        for file in sorted([*self.folder.glob("*.png"), *self.folder.glob("train_batch*.jpg")]):
            with Image.open(file) as picture:
                self.writer.add_image(file.stem, np.asarray(picture.convert("RGB")), epoch, dataformats="HWC")
        self.writer.close()
