"""How far something is: a bar on a terminal, elsewhere a line now and then; how long the rest takes; memory in use."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.base.log import LOGGER

SPARSE = 30.0  # seconds between two lines where there is no terminal; what takes less has none
BAR = "{l_bar}{bar:10}{r_bar}{bar:-10b}"  # YOLOv5's


def is_terminal() -> bool:
    """Return whether a person watches the log, who can be shown a bar. Files, pipes and notebooks get lines."""
    return sys.stderr is not None and sys.stderr.isatty()


class SparseLines(nullcontext[Any]):
    """Stands in for a bar where there is no terminal: logs every `SPARSE` seconds how far things are."""

    def __init__(self, items: Iterable[Any] | None, description: str, total: int | None, unit: str) -> None:
        super().__init__(self)
        self.items, self.description, self.unit = items if items is not None else (), description, unit
        self.total = len(items) if total is None and isinstance(items, Sized) else total
        self.done, self.pace, self.said = 0, Pace(self.total or 0), time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        """Count so many more as done."""
        self.done += count
        now = time.monotonic()
        if now - self.said < SPARSE:
            return
        self.said = now
        done, total = (tqdm.format_sizeof(n) if self.unit == "B" else str(n) for n in (self.done, self.total or 0))
        left = ""
        if self.total:
            done += f" of {total}"
            left = f", {self.pace.left(self.done)} left"
        LOGGER.info(f"{self.description}: {done} {self.unit.strip()}{left}")


def progress(
    items: Iterable[Any] | None = None,
    description: str = "",
    total: int | None = None,
    unit: str = "",
    quiet: bool = False,
    **bar: Any,
) -> Any:
    """Return `items`, or, without any, something to `update`, with a bar on a terminal and sparse lines elsewhere.

    Nothing is shown if `quiet`, or where nobody listens to the log. `unit` "B" stands for bytes; `bar` goes to tqdm.
    """
    quiet = quiet or not LOGGER.isEnabledFor(logging.INFO) or not LOGGER.hasHandlers()
    if not quiet and not is_terminal():
        return SparseLines(items, description, total, unit)
    shape = {} if "bar_format" in bar else {"dynamic_ncols": True}
    return tqdm(items, description, total, unit=unit or "it", unit_scale=unit == "B", disable=quiet, **shape | bar)


# ---------------------------------------------------------------------------------------------------- time and memory
class Pace:
    """How long the rest takes, by how long it took since this object was made. All in one unit, as epochs."""

    def __init__(self, total: float, done: float = 0.0) -> None:
        self.total, self.first, self.began = total, done, time.monotonic()

    def left(self, done: float) -> str:
        """Return the time that is left when so much is done, "?" before anything is."""
        if done <= self.first:
            return "?"
        return duration((time.monotonic() - self.began) / (done - self.first) * (self.total - done))


def duration(seconds: float) -> str:
    """Return seconds as people read them: 0:07, 12:30, 3:04:05."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def memory_name(device: torch.device) -> str:
    """Return what `memory_in_use` counts: a GPU's memory, or the resident set of the process."""
    return "gpu_mem" if device.type == "cuda" else "RSS"


def memory_in_use(device: torch.device) -> str:
    """Return the gigabytes that training on this device holds at present, on a CPU without the loader's processes.

    Where the system tells the present size of no process it is the largest so far, 0 where not that either.
    """
    if device.type == "cuda":
        return f"{torch.cuda.memory_reserved(device) / 1e9:.3g}G"
    try:
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        try:
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            held = peak if sys.platform == "darwin" else peak * 1024
        except ImportError:  # Windows
            held = 0
    return f"{held / 1e9:.3g}G"


def epoch_line(when: str, losses: Sequence[float], scores: Sequence[float], rest: Sequence[str]) -> str:
    """Return an epoch in one line: which it is, (box, obj, cls) losses, (P, R, mAP50, mAP50-95), the `rest`.

    `losses` are empty when nothing was trained, `scores` when it was not validated.
    """
    words = [f"{name} {value:.4g}" for name, value in zip(("box", "obj", "cls"), losses, strict=False)]
    words += [f"{name} {value:.3g}" for name, value in zip(("P", "R", "mAP50", "mAP50-95"), scores, strict=False)]
    return f"{when}: {', '.join([*words, *rest])}"
