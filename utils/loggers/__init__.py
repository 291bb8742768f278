"""Loggers are subscribers to the training hooks; none of them can change what training does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.callbacks import Callbacks
from utils.loggers import tensorboard
from utils.loggers.csv import CsvLogger
from utils.loggers.pictures import PictureLogger


def subscribe_loggers(
    callbacks: Callbacks, folder: Path, names: Sequence[str], labels: np.ndarray, start_epoch: int = 0
) -> None:
    """results.csv and pictures always, TensorBoard when it is installed; `labels` (N, 5) are the training set's."""
    callbacks.subscribe(CsvLogger(folder, start_epoch))
    callbacks.subscribe(PictureLogger(folder, names, labels))
    if tensorboard.available():
        callbacks.subscribe(tensorboard.TensorBoardLogger(folder))
