"""What keeps a fault from ruining a run: steps that are not finite are taken back, many end the run; lack of memory;
loader processes that die.
"""

from __future__ import annotations

import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from utils.dist import gather_to_main, is_main
from utils.log import LOGGER

LIMIT = 10  # refused steps in a row that end the run
SHOWN_PATHS = 4
_CPU_ALLOCATOR = "DefaultCPUAllocator"
_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? (\d+)[\d, ]*\) (.*)", re.DOTALL)  # torch's words
_FAILED = re.compile(r"Caught (\w+) in (?:DataLoader worker process|pin memory thread)")
_BY_SIGNAL = "is killed by signal: "
_LESS_MEMORY = "train with fewer --workers, a smaller --batch-size or without --cache"


class TrainingFault(RuntimeError):
    """Training cannot go on; the message says why, what is safe, and what to do."""


class WorkerFault(TrainingFault):
    """A loader process died or failed; the message names it, the likely cause and the remedy."""


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
class _Calm:
    """torch's signal handler for children that end, without its raising in the midst of anything.

    A death is noticed when the next batch is asked for; what torch said of it is kept by process.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler, self.said = handler, dict[int, str]()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except RuntimeError as error:
            if found := _DEAD.match(str(error)):
                self.said[int(found[1])] = found[2]


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader. What happens to its processes is raised here, between two batches, as WorkerFault.

    So the state between two steps stays whole: torch itself would raise in the middle of whatever is being done.
    """
    iterator: Iterator[Any] | None = None
    while True:
        try:
            iterator = iterator or iter(loader)
            _calm_down()
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            if getattr(loader, "num_workers", 0) == 0 or (words := _worker_words(error)) is None:
                raise
            raise WorkerFault(words) from None
        yield batch


def _calm_down() -> None:
    """Put `_Calm` before torch's handler, which torch sets when the first loader process starts."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _Calm):
        signal.signal(signal.SIGCHLD, _Calm(handler))


def _worker_words(error: Exception) -> str | None:
    """One line on the loader process whose end or failure an error tells of; None for an error of another kind."""
    text = str(error)
    if found := _DEAD.match(text):
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        said = handler.said.pop(int(found[1]), found[2]) if isinstance(handler, _Calm) else found[2]
        return f"the loader process {found[1]} {_end_words(said)}"
    if found := _FAILED.match(text):
        named = [one.start() for one in re.finditer(rf"^(?:[\w.]+\.)?{found[1]}\b", text, re.MULTILINE)]
        reason = " ".join(text[named[-1] if named else 0 :].split())  # what follows the traceback
        return f"a loader process failed with {reason}{_remedy(reason)}"
    if isinstance(error, (ConnectionError, EOFError)):  # its end of the line is gone
        return f"a loader process died; most likely memory ran out: {_LESS_MEMORY}"
    if isinstance(error, OSError):
        return f"no loader process could be started ({error.strerror or error}); train with fewer --workers"
    return None


def _end_words(said: str) -> str:
    """How a process ended and what to do, from torch's words."""
    if not said.startswith(_BY_SIGNAL):
        return f"ended without a word; most likely memory ran out: {_LESS_MEMORY}"
    word = said.removeprefix(_BY_SIGNAL).split(". ")[0].strip(" .")
    name = next((one.name for one in signal.Signals if signal.strsignal(one) == word), word)
    if name == "SIGBUS":
        return f"was ended by SIGBUS{_remedy('shared memory')}"
    if name == "SIGKILL":
        return f"was killed (SIGKILL), as the system does when memory runs out: {_LESS_MEMORY}"
    if name in ("SIGTERM", "SIGINT", "SIGHUP"):
        return f"was ended by {name}, from outside; begin again"
    return f"crashed ({name}), which a library does; see with --workers 0 which picture does it"


def _remedy(reason: str) -> str:
    """What helps where memory, shared or not, ran out; nothing for other reasons."""
    if re.search(r"shared memory|shm|No space left", reason):
        try:
            size = f" ({shutil.disk_usage('/dev/shm').total >> 20} MiB)"
        except OSError:
            size = ""
        return f": /dev/shm{size} is full, most likely; enlarge it (docker run --shm-size 8g), or {_LESS_MEMORY}"
    if re.search(r"MemoryError|[Cc]annot allocate|bad_alloc|[Oo]ut of memory|[Ii]nsufficient memory", reason):
        return f": {_LESS_MEMORY}"
    return ""
