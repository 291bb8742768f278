"""TensorBoard: scalars, images, the network's graph and options, in event files of the run's folder."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image

from utils.loggers.service import Kind, Service


class TensorBoard(Service):
    """Event files. A resumed run hides what an earlier one wrote of the epochs that it does again."""

    name = "tensorboard"
    wants = frozenset[Kind]({"network"})
    replaces = True
    writer: Any

    def connect(self, known: str) -> str:
        """Begin a further event file in the run's folder."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.run.folder), purge_step=self.run.start if known else 0)
        return self.name

    def send(self, kind: Kind, content: Any, epoch: int) -> None:
        """Send scalars, images, texts and the graph; the numbers of an epoch are on the disk before the next."""
        match kind:
            case "settings":
                for title, values in (("options", self.run.options), ("hyp", self.run.hyp)):
                    rows = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in values.items()]
                    self.writer.add_text(title, "\n".join(["| name | value |", "|---|---|", *rows]), 0)
                self.writer.flush()
            case "values" | "best":
                for name, value in content.items():
                    self.writer.add_scalar(name, value, epoch)
                self.writer.flush()
            case "images":
                for file in content:
                    with Image.open(file) as image:
                        self.writer.add_image(file.stem, np.asarray(image.convert("RGB")), epoch, dataformats="HWC")
            case "network":
                model, shape = content
                # for good: putting filters back is not safe beside other threads, and nobody else traces in training
                warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
                for message in (r"`torch\.jit\.trace", "The input to trace is already"):
                    warnings.filterwarnings("ignore", message=message)
                with torch.no_grad():  # a black image draws no random numbers
                    black = torch.zeros(shape)
                    # unchecked: a validation beside it sets flags of cuDNN that are part of a trace
                    traced = torch.jit.trace(model, black, strict=False, check_trace=False)
                    self.writer.add_graph(traced, black)

    def disconnect(self, ended: bool) -> None:
        """Close the file."""
        self.writer.close()
