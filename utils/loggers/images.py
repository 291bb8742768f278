"""The pictures that training leaves: label statistics, the first batches, the curves of results.csv."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils.base.log import LOGGER, one_line
from utils.drawing.batches import plot_images, plot_labels, plot_results

_DRAWN_BATCHES = 3


class PictureLogger:
    """Draws labels.jpg, train_batch{0,1,2}.jpg and results.png into the run's folder; a failure costs a warning."""

    def __init__(self, folder: Path, names: Sequence[str], labels: np.ndarray) -> None:
        self.folder, self.names, self.labels = folder, names, labels

    def on_pretrain_routine_end(self) -> None:
        """How many labels of each class, where they lie and how large they are."""
        self._draw("labels.jpg", lambda _: plot_labels(self.labels, self.names, self.folder))

    def on_train_batch_end(
        self, ni: int, model: Any, imgs: Tensor, targets: Tensor, paths: Sequence[str], plots: bool, sync_bn: bool
    ) -> None:
        """What the network really sees in its first batches."""
        if ni < _DRAWN_BATCHES:
            self._draw(f"train_batch{ni}.jpg", lambda file: plot_images(imgs, targets, paths, file, self.names))

    def on_train_end(self, last: Path, best: Path, plots: bool, epoch: int, results: Any) -> None:
        """Losses and metrics over the epochs."""
        self._draw("results.png", lambda _: plot_results(self.folder / "results.csv"))

    def _draw(self, name: str, draw: Callable[[Path], Any]) -> None:
        try:
            draw(self.folder / name)
        except Exception as error:  # whatever a drawing library thinks up, a picture is no reason to end a run
            LOGGER.warning(f"{self.folder / name}: could not be drawn ({one_line(error)}); training goes on without it")
