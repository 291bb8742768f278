"""results.csv, in YOLOv5's columns and widths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.log import LOGGER

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
    """One row an epoch, appended as it ends. A resumed run drops the rows of epochs that it does again."""

    def __init__(self, folder: Path, start_epoch: int = 0) -> None:
        self.file = folder / "results.csv"
        if not self.file.is_file() or not start_epoch:
            self.file.write_text(
                ("%20s," * (1 + len(COLUMNS)) % ("epoch", *COLUMNS)).rstrip(",") + "\n", encoding="utf-8"
            )
            return
        header, *rows = self.file.read_text(encoding="utf-8").splitlines()
        kept = [row for row in rows if row.split(",")[0].strip().isdigit() and int(row.split(",")[0]) < start_epoch]
        self.file.write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")

    def on_fit_epoch_end(self, values: Sequence[float], epoch: int, best_fitness: float, fitness: float) -> None:
        """`values` in the order of COLUMNS."""
        row = ("%20.5g," * (1 + len(COLUMNS)) % (epoch, *values)).rstrip(",")
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(row + "\n")
        except OSError as error:  # a table is no reason to lose the epoch: its checkpoint is written next
            LOGGER.warning(f"{self.file}: epoch {epoch} could not be added ({error.strerror}); make room on the disk")
