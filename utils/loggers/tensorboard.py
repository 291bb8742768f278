"""TensorBoard: scalars, pictures, the network's graph, PR curves and options, in event files of the run's folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.loggers.csv import COLUMNS
from utils.loggers.curves import PrCurve
from utils.loggers.service import Service


class TensorBoard(Service):
    """Event files. A resumed run hides what an earlier one wrote of the epochs that it does again."""

    name = "tensorboard"
    wants = frozenset({"graph", "curves"})
    replaces = True
    writer: Any
    _end: Any = None

    def connect(self, known: str) -> str:
        """A further event file in the run's folder."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.run.folder), purge_step=self.run.start if known else 0)
        return self.name

    def send_options(self) -> None:
        """As text, and for the table of hyper-parameters."""
        from torch.utils.tensorboard.summary import hparams

        self.writer.add_text("options", _table(self.run.options), 0)
        self.writer.add_text("hyp", _table(self.run.hyp), 0)
        metrics = dict.fromkeys((name for name in COLUMNS if name.startswith("metrics/")), 0.0)
        experiment, start, self._end = hparams(self.run.flat(), metrics)
        self.writer.file_writer.add_summary(experiment)
        self.writer.file_writer.add_summary(start)
        self.writer.flush()

    def send_scalars(self, values: dict[str, float], epoch: int) -> None:
        """One point a column, on the disk before the next."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def send_pictures(self, files: Sequence[Path], epoch: int) -> None:
        """The pictures themselves."""
        from PIL import Image

        for file in files:
            with Image.open(file) as picture:
                self.writer.add_image(file.stem, np.asarray(picture.convert("RGB")), epoch, dataformats="HWC")

    def send_curves(self, curves: Sequence[PrCurve], epoch: int) -> None:
        """One PR curve a class; there is no number of things that are rightly not detected, 0 stands for it."""
        for curve in curves:
            nothing = np.zeros_like(curve.right)
            self.writer.add_pr_curve_raw(
                f"PR/{curve.name}", curve.right, curve.wrong, nothing, curve.missed, curve.precision, curve.recall,
                epoch, len(nothing),
            )  # fmt: skip

    def send_graph(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        """Trace the copy with a black picture, which draws no random numbers."""
        # for good: putting filters back is not safe beside other threads, and nobody else traces in training
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.trace", category=FutureWarning)
        with torch.no_grad():
            self.writer.add_graph(model, torch.zeros(shape), use_strict_trace=False)

    def disconnect(self, ended: bool) -> None:
        """Close the file."""
        if self._end is not None and ended:
            self.writer.file_writer.add_summary(self._end)
        self.writer.close()


def _table(values: dict[str, Any]) -> str:
    """Names and values as a Markdown table."""
    rows = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in values.items()]
    return "\n".join(["| name | value |", "|---|---|", *rows])
