"""results.csv, in YOLOv5's columns and widths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.base.files import write_whole
from utils.base.log import LOGGER

COLUMNS = (
    "train/box_loss",
    "train/obj_loss",
    "train/cls_loss",
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/obj_loss",
    "val/cls_loss",
    "x/lr0",
    "x/lr1",
    "x/lr2",
)


class CsvLogger:
    """One row an epoch. The file is written whole each time, from memory: whatever became of it is made good.

    `history` are the rows of epochs that a resumed run does not do again: epoch, then a value a column.
    """

    def __init__(self, folder: Path, history: Sequence[Sequence[float]] = ()) -> None:
        self.file = folder / "results.csv"
        self.lines = [("%20s," * (1 + len(COLUMNS)) % ("epoch", *COLUMNS)).rstrip(","), *map(_line, history)]
        self._write()

    def on_fit_epoch_end(self, values: Sequence[float], epoch: int, best_fitness: float, fitness: float) -> None:
        """`values` in the order of COLUMNS."""
        self.lines.append(_line((epoch, *values)))
        self._write()

    def _write(self) -> None:
        try:
            write_whole(self.file, "\n".join(self.lines) + "\n")
        except OSError as error:  # a table is no reason to lose the epoch: its checkpoint is written next
            LOGGER.warning(
                f"{self.file}: could not be written ({error.strerror}); make room on the disk, the next epoch writes "
                "all rows again"
            )


def _line(row: Sequence[float]) -> str:
    return ("%20.5g," * (1 + len(COLUMNS)) % tuple(row)).rstrip(",")
