"""What keeps a fault from ruining a run: steps that are not finite are taken back, many end the run; lack of memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from utils.base.log import LOGGER, Fault
from utils.distributed.processes import gather_to_main, is_main

LIMIT = 10  # refused steps in a row that end the run
SHOWN_PATHS = 4
_CPU_ALLOCATOR = "DefaultCPUAllocator"


class TrainingFault(Fault):
    """Training cannot go on; the message says why, what is safe, and what to do."""


class OutOfMemory(TrainingFault):
    """One of several processes ran out of memory; the next try is to compute its batches in `pieces`."""

    def __init__(self, message: str, pieces: int) -> None:
        super().__init__(message)
        self.pieces = pieces


def out_of_memory(error: BaseException) -> bool:
    """Does this error say that memory ran out, on a GPU or on a CPU?"""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
    )


def halves(images: Tensor, targets: Tensor, parts: int) -> Iterable[tuple[Tensor, Tensor]]:
    """A batch in `parts` pieces, or as many as it has pictures: images (b, 3, H, W), targets (n, 6) numbered anew."""
    start = 0
    for piece in images.tensor_split(min(parts, len(images))):
        mine = targets[(targets[:, 0] >= start) & (targets[:, 0] < start + len(piece))].clone()
        mine[:, 0] -= start
        start += len(piece)
        yield piece, mine


class StepGuard:
    """Takes back what a step with a loss or gradient that is not finite has done to the model's buffers.

    The forward pass of such a batch has already moved the running statistics of the normalisations: not stepping is not
    enough. `skipped` counts refused steps of the run, `streak` those in a row.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._suspects: list[str] = []
        self.skipped = self.streak = 0

    def note(self, losses: Tensor, batch: int, paths: Sequence[str]) -> bool:
        """Remember a batch whose losses (3,) in this process are not finite; is this one such?"""
        bad = not bool(losses.isfinite().all())
        if bad:
            more = f" and {len(paths) - SHOWN_PATHS} more" if len(paths) > SHOWN_PATHS else ""
            self._suspects.append(f"batch {batch} ({', '.join(paths[:SHOWN_PATHS])}{more})")
        return bad

    def accept(self) -> None:
        """A step was good: this is what a later one is taken back to."""
        _copy(self._buffers, self._kept)
        self._suspects.clear()
        self.streak = 0

    def undo(self) -> None:
        """Give the model the buffers it had after the last good step."""
        _copy(self._kept, self._buffers)

    def refuse(self, epoch: int, batch: int) -> None:
        """Take back a step that ended with this batch, and say whose fault it was, in every process alike.

        Raises TrainingFault when it was the last of `LIMIT` in a row.
        """
        self.undo()
        self.skipped, self.streak = self.skipped + 1, self.streak + 1
        told = gather_to_main(self._suspects)
        self._suspects = []
        suspects = [suspect for process in told or () for suspect in process]
        where = "; ".join(suspects) or f"the gradient up to batch {batch}"
        if is_main():
            LOGGER.warning(f"epoch {epoch}: not finite: {where}; step skipped ({self.streak} in a row)")
        if self.streak >= LIMIT:
            raise TrainingFault(
                f"stopped in epoch {epoch}: {LIMIT} steps in a row were not finite, the last by {where}; last.pt holds "
                "the weights before them; look at these pictures and labels, lower lr0, or train with --amp off"
            )


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    if sources:
        torch._foreach_copy_(targets, sources)


# ---------------------------------------------------------------------------------------------------- loader processes
