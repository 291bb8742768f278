"""TensorBoard: scalars, images, the network's graph, PR curves and options, in event files of the run's folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from utils.evaluation.metrics import DetectionResult
from utils.loggers.run import COLUMNS
from utils.loggers.service import Kind, Service

POINTS = 127  # thresholds of a curve, evenly from 0 to 1
MOST_CLASSES = 20  # more classes than this are shown pooled only
POOLED = "all classes"


class TensorBoard(Service):
    """Event files. A resumed run hides what an earlier one wrote of the epochs that it does again."""

    name = "tensorboard"
    wants = frozenset[Kind]({"network", "result"})
    replaces = True
    writer: Any
    _end: Any = None

    def connect(self, known: str) -> str:
        """Begin a further event file in the run's folder."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.run.folder), purge_step=self.run.start if known else 0)
        return self.name

    def send(self, kind: Kind, content: Any, epoch: int) -> None:
        """Send all there is; the numbers of an epoch are on the disk before the next."""
        match kind:
            case "settings":
                self._send_settings()
            case "values" | "best":
                for name, value in content.items():
                    self.writer.add_scalar(name, value, epoch)
                self.writer.flush()
            case "images":
                from PIL import Image

                for file in content:
                    with Image.open(file) as image:
                        self.writer.add_image(file.stem, np.asarray(image.convert("RGB")), epoch, dataformats="HWC")
            case "result":
                for name, right, wrong, missed in pr_counts(content, self.run.names):
                    total, zero = right + wrong, np.zeros_like(right)  # what is rightly not detected is no number
                    precision = np.divide(right, total, out=np.ones_like(total), where=total > 0)
                    counts = (right, wrong, zero, missed, precision, right / (right + missed))
                    self.writer.add_pr_curve_raw(f"PR/{name}", *counts, epoch, POINTS)
            case "network":
                model, shape = content
                # for good: putting filters back is not safe beside other threads, and nobody else traces in training
                warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
                warnings.filterwarnings("ignore", message=r"`torch\.jit\.trace", category=FutureWarning)
                with torch.no_grad():  # a black image draws no random numbers
                    self.writer.add_graph(model, torch.zeros(shape), use_strict_trace=False)

    def _send_settings(self) -> None:
        """Send options and hyper-parameters as text, and for the table of hyper-parameters."""
        from torch.utils.tensorboard.summary import hparams

        for title, values in (("options", self.run.options), ("hyp", self.run.hyp)):
            rows = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in values.items()]
            self.writer.add_text(title, "\n".join(["| name | value |", "|---|---|", *rows]), 0)
        metrics = dict.fromkeys((name for name in COLUMNS if name.startswith("metrics/")), 0.0)
        experiment, start, self._end = hparams(self.run.flat(), metrics)
        self.writer.file_writer.add_summary(experiment)
        self.writer.file_writer.add_summary(start)
        self.writer.flush()

    def disconnect(self, ended: bool) -> None:
        """Close the file."""
        if self._end is not None and ended:
            self.writer.file_writer.add_summary(self._end)
        self.writer.close()


def pr_counts(result: DetectionResult, names: Sequence[str]) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Return what is detected at IoU 0.5, by rising threshold, of all classes pooled and of those that have labels.

    Of each: its name, and (POINTS,) right detections, wrong ones, and labels that were missed. Nothing without labels.
    """
    if result.curves is None:
        return []
    curves = result.curves
    points = np.linspace(0, len(curves.confidence) - 1, POINTS).round().astype(int)
    precision, recall = curves.precision[:, points], curves.recall[:, points]
    labels = np.array([[row.labels] for row in result.per_class], float)
    right = recall * labels
    wrong = (np.divide(right, precision, out=np.zeros_like(right), where=precision > 0) - right).clip(0)
    missed = labels - right
    pooled = (POOLED, right.sum(0), wrong.sum(0), missed.sum(0))
    if len(right) > MOST_CLASSES:
        return [pooled]
    rows = zip(result.per_class, right, wrong, missed, strict=True)
    return [pooled, *((names[row.index], *counts) for row, *counts in rows)]
