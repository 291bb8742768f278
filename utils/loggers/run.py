"""A run, and what each leaves in its folder: results.csv in YOLOv5's columns and widths, residual.csv, and images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.base.files import write_whole
from utils.base.log import LOGGER, one_line
from utils.base.networks import started_at_zero
from utils.drawing.batches import plot_images, plot_labels, plot_results

COLUMNS = tuple(
    "train/box_loss train/obj_loss train/cls_loss metrics/precision metrics/recall metrics/mAP_0.5 "
    "metrics/mAP_0.5:0.95 val/box_loss val/obj_loss val/cls_loss x/lr0 x/lr1 x/lr2".split()
)
_ROW = ",".join(["%20.5g"] * (1 + len(COLUMNS)))


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run before its first batch."""

    folder: Path  # the run's own
    names: Sequence[str]
    labels: np.ndarray  # (N, 5) of the training set
    options: dict[str, Any]  # the command line
    hyp: dict[str, Any]
    history: Sequence[Sequence[float]] = ()  # epoch, then a value a column, of epochs finished before: a resumed run

    @property
    def resumed(self) -> bool:
        """Whether this run goes on with an earlier one; that may have been interrupted before its first epoch ended."""
        return bool(self.history) or bool(self.options.get("resume"))

    @property
    def start(self) -> int:
        """The epoch that comes first."""
        return int(self.history[-1][0]) + 1 if self.history else 0

    @property
    def project(self) -> str:
        """The project's name for a service: the last folder of --project, YOLOv5 for the usual runs/train."""
        parts = Path(self.options.get("project") or "runs/train").parts
        return "YOLOv5" if parts[-2:] == ("runs", "train") else parts[-1]

    def flat(self) -> dict[str, Any]:
        """Return options and hyper-parameters (as hyp/name) in one level; what is no number or word as text."""
        together = self.options | {f"hyp/{name}": value for name, value in self.hyp.items()}
        plain = (bool, int, float, str)
        return {name: value if isinstance(value, plain) else str(value) for name, value in together.items()}


class CsvLogger:
    """One row an epoch, `history` first. The file is written whole each time: whatever became of it is made good."""

    def __init__(self, folder: Path, history: Sequence[Sequence[float]] = ()) -> None:
        self.file = folder / "results.csv"
        self.lines = [",".join(f"{name:>20}" for name in ("epoch", *COLUMNS))]
        self.lines += [_ROW % tuple(row) for row in history]
        self._write()

    def on_fit_epoch_end(self, values: Sequence[float], epoch: int, best_fitness: float, fitness: float) -> None:
        """Add an epoch's `values`, in the order of COLUMNS."""
        self.lines.append(_ROW % (epoch, *values))
        self._write()

    def _write(self) -> None:
        _write_table(self.file, self.lines)


def _write_table(file: Path, lines: Sequence[str]) -> None:
    try:
        write_whole(file, "\n".join(lines) + "\n")
    except OSError as error:  # a table is no reason to lose the epoch: its checkpoint is written next
        remedy = "make room on the disk, the next epoch writes all rows again"
        LOGGER.warning(f"{file}: could not be written ({error.strerror}); {remedy}")


def write_scales(file: Path, model: nn.Module, epoch: int) -> None:
    """Add an epoch to the table of how far layers that began at zero have come; nothing for a model without them.

    It is the root mean square of all numbers of a layer: what the layer adds is proportional to them, and they need no
    forward pass. Rows of this epoch and later ones, left by a run that was cut off, are replaced.
    """
    if not (layers := started_at_zero(model)):
        return
    header = ",".join(["epoch", *(name.removeprefix("model.") for name in layers)])
    before = file.read_text("utf-8", errors="replace").splitlines() if file.is_file() else []
    numbered = [(line, re.match(r"(-?\d+),", line)) for line in before if before[0] == header]
    rows = [line for line, number in numbered if number and int(number[1]) < epoch]
    numbers = [torch.cat([part.detach().flatten() for part in layer.parameters()]) for layer in layers.values()]
    sizes = [f"{part.double().square().mean().sqrt().item():.5g}" for part in numbers]
    _write_table(file, [header, *rows, ",".join([str(epoch), *sizes])])


class ImageLogger:
    """Draws labels.jpg, train_batch{0,1,2}.jpg and results.png into the run's folder; a failure costs a warning."""

    def __init__(self, folder: Path, names: Sequence[str], labels: np.ndarray) -> None:
        self.folder, self.names, self.labels = folder, names, labels

    def on_pretrain_routine_end(self) -> None:
        """Draw how many labels of each class, where they lie and how large they are."""
        self._draw("labels.jpg", lambda _: plot_labels(self.labels, self.names, self.folder))

    def on_train_batch_end(
        self, ni: int, model: Any, imgs: Tensor, targets: Tensor, paths: Sequence[str], *others: Any
    ) -> None:
        """Draw what the network really sees in its first batches."""
        if ni < 3:
            self._draw(f"train_batch{ni}.jpg", lambda file: plot_images(imgs, targets, paths, file, self.names))

    def on_train_end(self, last: Path, best: Path, plots: bool, epoch: int, results: Any) -> None:
        """Draw losses and metrics over the epochs."""
        self._draw("results.png", lambda _: plot_results(self.folder / "results.csv"))

    def _draw(self, name: str, draw: Callable[[Path], Any]) -> None:
        try:
            draw(self.folder / name)
        except Exception as error:  # whatever a drawing library thinks up, an image is no reason to end a run
            LOGGER.warning(f"{self.folder / name}: could not be drawn ({one_line(error)}); training goes on without it")
