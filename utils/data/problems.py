"""What is wrong with the files of a data set, or worth a word: said in the log and listed in its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from utils.base.files import printable


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one file of a data set, in words for the person who owns it.

    With a `count` it stands for that many images, of which `file` is the first: what can be so with every image of a
    large data set is counted and said once.
    """

    file: str
    line: int | None
    reason: str
    remedy: str
    dropped: bool = True
    count: int = 0

    def __str__(self) -> str:
        where = printable(self.file) if self.line is None else f"{printable(self.file)}:{self.line}"
        if self.count:
            where = f"{self.count} image{'s' * (self.count > 1)}, the first {where}"
        return f"{where}: {self.reason}; {self.remedy}{' (image left out)' if self.dropped else ''}"


def gathered(problems: Sequence[Problem], units: Sequence[int]) -> tuple[list[Problem], list[int]]:
    """The problems, counted ones once for each reason; and of the `units` that they belong to, the first of each."""
    kept: list[Problem] = []
    places: dict[str, int] = {}
    first: list[int] = []
    for problem, unit in zip(problems, units, strict=True):
        if problem.count and problem.reason in places:
            place = places[problem.reason]
            kept[place] = replace(kept[place], count=kept[place].count + problem.count)
            continue
        if problem.count:
            places[problem.reason] = len(kept)
        kept.append(problem)
        first.append(unit)
    return kept, first
