"""What a conversion kept, dropped and changed, counted reason by reason with the first example of each."""

from __future__ import annotations

import logging

from utils.base.files import printable
from utils.base.log import LOGGER

SHOWN = 12  # reasons that get a line of their own
LONGEST = 160  # characters of an example


class Tally:
    """Counts boxes that were dropped and what else is worth saying; `report` logs it, or raises if nothing is left."""

    def __init__(self) -> None:
        self.dropped: dict[str, tuple[int, str]] = {}  # reason -> how many boxes, first example
        self.remarks: dict[str, tuple[int, str]] = {}

    @property
    def lost(self) -> int:
        """How many boxes were dropped."""
        return sum(count for count, _ in self.dropped.values())

    def drop(self, reason: str, example: str, count: int = 1) -> None:
        """Count boxes that are not written; `reason` completes "3 boxes dropped: ...", with the remedy."""
        _count(self.dropped, reason, example, count)

    def remark(self, what: str, example: str, count: int = 1) -> None:
        """Count what is written, but not as it stood; `what` completes "3 ..."."""
        _count(self.remarks, what, example, count)

    def report(self, source: object, target: object, kept: int, images: int) -> None:
        """Log how many boxes were kept and why others were not: one line, and one more a reason.

        Raises ValueError, with the commonest reasons, where no box at all was kept.
        """
        source, target, lost = printable(str(source)), printable(str(target)), self.lost
        reasons = sorted(self.dropped.items(), key=lambda item: -item[1][0])
        if not kept and lost:
            why = "; ".join(_with_example(f"{count} {reason}", first) for reason, (count, first) in reasons[:3])
            raise ValueError(f"{source}: none of its {lost} boxes can be used: {why}")
        if not kept:
            raise ValueError(f"{source}: no boxes in it; name annotations that have some (background needs no labels)")
        level = logging.WARNING if lost else logging.INFO  # without logging set up only warnings are seen
        LOGGER.log(level, f"{source}: {kept} boxes of {images} images kept, {lost} dropped; labels in {target}")
        lines = [_with_example(f"{count} dropped: {reason}", first) for reason, (count, first) in reasons]
        lines += [_with_example(f"{count} {what}", first) for what, (count, first) in self.remarks.items()]
        for line in lines[:SHOWN]:
            LOGGER.warning(f"{source}: {line}")
        if (more := len(lines) - SHOWN) > 0:
            LOGGER.warning(f"{source}: ... and {more} more reasons")


def _count(table: dict[str, tuple[int, str]], key: str, example: str, count: int) -> None:
    if count:
        before, first = table.get(key, (0, example))
        table[key] = before + count, first


def _with_example(text: str, example: str) -> str:
    return f"{printable(text)} (first: {printable(example)[:LONGEST]})"
