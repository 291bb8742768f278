"""What all exported files have in common: fixed sizes, fixed batches, detections instead of candidates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backends.metadata import Metadata
from utils.base.files import printable


class ExportedBackend(nn.Module):
    """A file that another runtime computes.

    `run` takes float32 images (B, 3, H, W) on the device and gives what the file returns first; `model` is the
    runtime's own object.
    """

    def __init__(
        self, file: Path, metadata: Metadata, device: torch.device | str, model: Any, run: Callable[[Tensor], Any]
    ) -> None:
        super().__init__()
        self.file, self.metadata, self.device = file, metadata, torch.device(device)
        self.model, self.run = model, run
        self.stride, self.names = metadata.stride, list(metadata.names)

    def forward(self, im: Tensor, augment: bool = False, visualize: Path | str | None = None) -> tuple[Tensor, None]:
        """(B, 3, H, W) in 0..1 -> (B, M, 5 + C) cx cy w h in pixels, objectness, classes.

        Raises ValueError for images of another size than the file's, for what only a .pt file can do, and where the
        file cannot be run or returns something else.
        """
        if augment or visualize:
            flag = "--augment" if augment else "--visualize"
            raise ValueError(f"{flag} needs the network itself: give the .pt weights instead of {self.file.name}")
        if self.metadata.imgsz and tuple(im.shape[2:]) != self.metadata.imgsz:
            wanted, got = (" x ".join(map(str, size)) for size in (self.metadata.imgsz, im.shape[2:]))
            raise ValueError(f"{self.file.name} takes images of {wanted} pixels, not {got}; export one with --dynamic")
        parts = im.to(self.device, torch.float32).split(self.metadata.batch or max(len(im), 1))
        found = torch.cat([self._run(part) for part in parts]).to(self.device)
        if not self.metadata.nms:
            return found.float(), None
        # As a network would return them, so that every later step is the same for all files; suppressing again what is
        # suppressed already changes nothing, and rows of confidence 0 are padding
        nc = len(self.names)
        corner, opposite, score, number = found.float().split((2, 2, 1, 1), -1)  # (B, K, 6) xyxy, confidence, class
        kinds = torch.nn.functional.one_hot(number.squeeze(-1).long().clamp(0, nc - 1), nc).to(score)
        return torch.cat(((corner + opposite) / 2, opposite - corner, score, kinds), -1), None

    def _run(self, part: Tensor) -> Tensor:
        """One batch of the file's own size, filled up with black images; NMS looks at the numbers that come back."""
        count, wanted = len(part), self.metadata.batch or len(part)
        filled = torch.cat([part, part.new_zeros(wanted - count, *part.shape[1:])]) if count < wanted else part
        try:
            found = self.run(filled.contiguous())
        except Exception as error:  # every runtime has classes of its own
            reason = printable(str(error) or type(error).__name__)[:200]
            raise ValueError(f"{self.file}: cannot be run ({reason}); export it again") from error
        shape = tuple(getattr(found, "shape", ()))
        if len(shape) < 2 or shape[0] != wanted or (self.metadata.nms and shape[2:] != (6,)):
            returned = " x ".join(map(str, shape)) or "no table"
            raise ValueError(f"{self.file}: returns {returned} for {wanted} images; export it again")
        return found[:count]
