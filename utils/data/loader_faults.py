"""Loader processes that die or fail: which one, the likely cause and the remedy, in one line."""

from __future__ import annotations

import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from utils.base.log import Fault

_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? (\d+)[\d, ]*\) (.*)", re.DOTALL)  # torch's message
_FAILED = re.compile(r"Caught (\w+) in (?:DataLoader worker process|pin memory thread)")
_BY_SIGNAL = "is killed by signal: "
_LESS_MEMORY = "train with fewer --workers, a smaller --batch-size or without --cache"
_deaths: dict[int, str] = {}  # what torch's signal handler said, by process


class WorkerFault(Fault):
    """A loader process died or failed; the message names it, the likely cause and the remedy."""


def _late(handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
    """Call torch's handler for children that end: a death is noticed when the next batch is asked for, not before."""
    try:
        handler(number, frame)
    except RuntimeError as error:
        if found := _DEAD.match(str(error)):
            _deaths[int(found[1])] = found[2]


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader. What happens to its processes is raised here, between two batches, as WorkerFault.

    So the state between two steps stays whole: torch itself would raise in the middle of whatever is being done.
    """
    iterator: Iterator[Any] | None = None
    while True:
        try:
            iterator = iterator or iter(loader)
            if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
                handler = signal.getsignal(signal.SIGCHLD)  # which torch sets when the first loader process starts
                if callable(handler) and getattr(handler, "func", None) is not _late:
                    signal.signal(signal.SIGCHLD, partial(_late, handler))
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            if getattr(loader, "num_workers", 0) == 0 or (message := _message(error)) is None:
                raise
            raise WorkerFault(message) from None
        yield batch


def _message(error: Exception) -> str | None:
    """Return one line on the loader process whose end or failure an error is; None for an error of another kind."""
    text = str(error)
    if found := _DEAD.match(text):
        return f"the loader process {found[1]} {_ending(_deaths.pop(int(found[1]), found[2]))}"
    if found := _FAILED.match(text):
        named = [one.start() for one in re.finditer(rf"^(?:[\w.]+\.)?{found[1]}\b", text, re.MULTILINE)]
        reason = " ".join(text[named[-1] if named else 0 :].split())  # what follows the traceback
        return f"a loader process failed with {reason}{_remedy(reason)}"
    if isinstance(error, (ConnectionError, EOFError)):  # its end of the line is gone
        return f"a loader process died; most likely memory ran out: {_LESS_MEMORY}"
    if isinstance(error, OSError):
        return f"no loader process could be started ({error.strerror or error}); train with fewer --workers"
    return None


def _ending(said: str) -> str:
    """Return how a process ended and what to do, from torch's message."""
    if not said.startswith(_BY_SIGNAL):
        return f"ended without a message; most likely memory ran out: {_LESS_MEMORY}"
    described = said.removeprefix(_BY_SIGNAL).split(". ")[0].strip(" .")
    name = next((one.name for one in signal.Signals if signal.strsignal(one) == described), described)
    if name == "SIGBUS":
        return f"was ended by SIGBUS{_remedy('shared memory')}"
    if name == "SIGKILL":
        return f"was killed (SIGKILL), as the system does when memory runs out: {_LESS_MEMORY}"
    if name in ("SIGTERM", "SIGINT", "SIGHUP"):
        return f"was ended by {name}, from outside; begin again"
    return f"crashed ({name}), which a library does; see with --workers 0 which image does it"


def _remedy(reason: str) -> str:
    """Return what helps where memory, shared or not, ran out; nothing for other reasons."""
    if re.search(r"shared memory|shm|No space left", reason):
        try:
            size = f" ({shutil.disk_usage('/dev/shm').total >> 20} MiB)"
        except OSError:
            size = ""
        return f": /dev/shm{size} is full, most likely; enlarge it (docker run --shm-size 8g), or {_LESS_MEMORY}"
    if re.search(r"MemoryError|[Cc]annot allocate|bad_alloc|[Oo]ut of memory|[Ii]nsufficient memory", reason):
        return f": {_LESS_MEMORY}"
    return ""
