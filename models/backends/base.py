"""What all exported files have in common: fixed sizes, fixed batches, detections instead of candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backends.facts import Facts
from utils.base.files import printable


class ExportedBackend(nn.Module):
    """A file that another runtime computes; a subclass opens it in `__init__` and computes in `run`.

    Attributes: `facts`, `names`, `stride`, `model` (the runtime's own object), `takes_half` (whether the runtime can
    be told to compute in 16 bits).
    """

    takes_half = False

    def __init__(self, file: Path, facts: Facts, device: torch.device, model: Any) -> None:
        super().__init__()
        self.file, self.facts, self.device = file, facts, device
        self.model = model
        self.stride, self.names = facts.stride, list(facts.names)

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> what the file returns first."""
        raise NotImplementedError

    def forward(self, im: Tensor, augment: bool = False, visualize: Path | str | None = None) -> tuple[Tensor, None]:
        """(B, 3, H, W) in 0..1 -> (B, M, 5 + C) cx cy w h in pixels, objectness, classes.

        Raises ValueError for pictures of another size than the file's, for what only a .pt file can do, and where the
        file cannot be run or returns something else.
        """
        if augment or visualize:
            flag = "--augment" if augment else "--visualize"
            raise ValueError(f"{flag} needs the network itself: give the .pt weights instead of {self.file.name}")
        if self.facts.imgsz and tuple(im.shape[2:]) != self.facts.imgsz:
            wanted, got = (" x ".join(map(str, size)) for size in (self.facts.imgsz, im.shape[2:]))
            raise ValueError(
                f"{self.file.name} takes pictures of {wanted} pixels, not {got}; export one with --dynamic"
            )
        parts = im.to(self.device, torch.float32).split(self.facts.batch or max(len(im), 1))
        found = torch.cat([self._run_part(part) for part in parts]).to(self.device)
        return (as_candidates(found, len(self.names)) if self.facts.nms else found.float()), None

    def _run_part(self, part: Tensor) -> Tensor:
        """One batch of the file's own size, filled up with black pictures."""
        count, wanted = len(part), self.facts.batch or len(part)
        if count < wanted:
            part = torch.cat([part, part.new_zeros(wanted - count, *part.shape[1:])])
        try:
            found = self.run(part.contiguous())
        except ValueError:
            raise
        except Exception as error:  # every runtime has classes of its own
            reason = printable(str(error) or type(error).__name__)[:200]
            raise ValueError(f"{self.file}: cannot be run ({reason}); export it again") from error
        self._check(found, len(part))
        return found[:count]

    def _check(self, found: Any, count: int) -> None:
        """Raise ValueError for what are no candidates or detections of so many pictures; NMS looks at the rest."""
        shape = tuple(getattr(found, "shape", ()))
        if len(shape) < 2 or shape[0] != count or (self.facts.nms and shape[2:] != (6,)):
            words = " x ".join(map(str, shape)) or "no table"
            raise ValueError(f"{self.file}: returns {words} for {count} pictures; export it again")


def as_candidates(found: Tensor, nc: int) -> Tensor:
    """Detections (B, K, 6) xyxy, confidence, class -> (B, K, 5 + nc) as a network would return them.

    So every later step is the same for all files; suppressing again what is suppressed already changes nothing. Rows of
    confidence 0 are padding.
    """
    corner, opposite, score, number = found.float().split((2, 2, 1, 1), -1)
    kinds = torch.nn.functional.one_hot(number.squeeze(-1).long().clamp(0, nc - 1), nc).to(score)
    return torch.cat(((corner + opposite) / 2, opposite - corner, score, kinds), -1)
