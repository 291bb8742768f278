"""What keeps a fault or a signal from ruining a run: bad steps are undone, lack of memory and signals recognised."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from utils.base.log import LOGGER, Fault
from utils.distributed.processes import gather_to_main, is_joined, is_main

LIMIT = 10  # refused steps in a row that end the run
SHOWN_PATHS = 4
SIGNALS = (signal.SIGINT, signal.SIGTERM)
NO_MEMORY = (  # what errors of no class of their own say where memory ran out
    "DefaultCPUAllocator", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory",
)  # fmt: skip
UNREPEATABLE = " does not have a deterministic implementation"  # PyTorch, after the name of an operation
GRACE = 20.0  # seconds that a process of a distributed run has to reach its next step; another one may be gone already


class TrainingFault(Fault):
    """Training cannot go on; the message says why, what is safe, and what to do."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped training, which has saved where it stands. `signal` is the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class OutOfMemory(Exception):
    """Memory ran out while a batch's gradients were computed: the last step can be gone back to."""


@contextmanager
def short_of_memory() -> Iterator[None]:
    """Raise OutOfMemory where memory runs out in the block, on a GPU or on a CPU; what it moves can be undone."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kinds = (torch.OutOfMemoryError, MemoryError)
        if isinstance(error, kinds) or any(words in str(error) for words in NO_MEMORY):
            raise OutOfMemory from None
        raise


@contextmanager
def repeatable() -> Iterator[None]:
    """Raise TrainingFault, which names it, where --deterministic met an operation that cannot repeat bit for bit."""
    try:
        yield
    except RuntimeError as error:
        name, found, _ = str(error).partition(UNREPEATABLE)
        if found:
            remedy = "train without --deterministic, or with a model that does without it (docs/reliability.md)"
            raise TrainingFault(f"--deterministic: {name} does not repeat bit for bit here; {remedy}") from None
        raise


def in_pieces(images: Tensor, targets: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a batch in `count` pieces, or one per image: images (b, 3, H, W), targets (n, 6) numbered anew."""
    if count == 1:
        yield images, targets
        return
    start = 0
    for piece in images.tensor_split(min(count, len(images))):
        mine = targets[(targets[:, 0] >= start) & (targets[:, 0] < start + len(piece))].clone()
        mine[:, 0] -= start
        start += len(piece)
        yield piece, mine


class StepGuard:
    """Undoes what a step with a loss or gradient that is not finite has done to buffers and to the loss's state.

    The forward pass of such a batch has already moved the running statistics of the normalisations: not stepping is not
    enough. `skipped` counts refused steps of the run, `streak` those in a row.
    """

    def __init__(self, model: nn.Module, loss: Any) -> None:
        self.skipped = self.streak = 0
        self._loss, self._loss_state = loss, loss.state_dict()
        self._buffers = list(model.buffers()) or [torch.empty(0)]  # as torch copies no empty list
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._suspects: list[str] = []

    def suspect(self, losses: Tensor, batch: int, paths: Sequence[str]) -> None:
        """Remember a batch if its losses (3,) in this process are not finite."""
        if not losses.isfinite().all():
            more = f" and {len(paths) - SHOWN_PATHS} more" if len(paths) > SHOWN_PATHS else ""
            self._suspects.append(f"batch {batch} ({', '.join(paths[:SHOWN_PATHS])}{more})")

    def accept(self) -> None:
        """Keep the state after a good step, for later ones to be taken back to."""
        torch._foreach_copy_(self._kept, self._buffers)
        self._loss_state = self._loss.state_dict()
        self._suspects.clear()
        self.streak = 0

    def undo(self) -> None:
        """Give model and loss the state they had after the last good step."""
        torch._foreach_copy_(self._buffers, self._kept)
        self._loss.load_state_dict(self._loss_state)
        self._suspects.clear()

    def refuse(self, epoch: int, batch: int) -> None:
        """Take back a step that ended with this batch, and log which batch did it, in every process alike.

        Raise TrainingFault when it was the last of `LIMIT` in a row.
        """
        self.skipped, self.streak = self.skipped + 1, self.streak + 1
        suspects = [suspect for process in gather_to_main(self._suspects) or () for suspect in process]
        self.undo()
        where = "; ".join(suspects) or f"the gradient up to batch {batch}"
        if is_main():
            LOGGER.warning(f"epoch {epoch}: not finite: {where}; step skipped ({self.streak} in a row)")
        if self.streak >= LIMIT:
            raise TrainingFault(
                f"stopped in epoch {epoch}: {LIMIT} steps in a row were not finite, the last by {where}; last.pt holds "
                "the weights before them; look at these images and labels, lower lr0, or train with --amp off"
            )


class Interruption:
    """Within `with Interruption() as interruption:` a first SIGINT or SIGTERM only sets `interruption.number`.

    A second one ends the program at once, as Python does. Outside of the main thread signals are left alone.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        LOGGER.warning(f"{signal.Signals(number).name}: stopping after this step; once more to stop at once")
        self.__exit__()
        if is_joined():  # a process that is gone would be waited for without end
            last = threading.Timer(GRACE, os._exit, (128 + number,))
            last.daemon = True
            last.start()


@dataclass(slots=True)
class StoppableLoader:
    """A loader that raises Interrupted between two batches after a signal, if this process is the only one."""

    loader: Any
    interruption: Interruption

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if self.interruption.number and not is_joined():
                raise Interrupted(self.interruption.number)
            yield batch
