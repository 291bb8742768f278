"""What a request may choose: thresholds, classes and size, read from its query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from utils.base.options import class_numbers, nearest
from utils.serving.limits import Limits, Refusal

NAMES = ("conf", "iou", "classes", "size")


@dataclass(frozen=True, slots=True)
class Settings:
    """How one picture is looked at: thresholds in 0..1, class numbers or None for all, side of the input in pixels."""

    conf: float = 0.25
    iou: float = 0.45
    classes: tuple[int, ...] | None = None
    size: int = 640


def read_settings(
    given: Sequence[tuple[str, str]], usual: Settings, names: Sequence[str], limits: Limits, fixed: bool = False
) -> Settings:
    """The settings that a query's (name, value) pairs ask for, `usual` where they ask for nothing.

    `names` are the classes'. With `fixed` no other size than the usual one is taken. Raises Refusal(400).
    """
    chosen = usual
    seen: set[str] = set()
    for name, value in given:
        if name not in NAMES:
            raise Refusal(400, f"unknown parameter {name[:40]!r}{nearest(name[:40], NAMES)}; known: {', '.join(NAMES)}")
        if name in seen:
            raise Refusal(400, f"{name} is given twice; give it once")
        seen.add(name)
        if name in ("conf", "iou"):
            chosen = replace(chosen, **{name: _fraction(name, value)})
        elif name == "classes":
            chosen = replace(chosen, classes=_classes(value, names))
        else:
            chosen = replace(chosen, size=_size(value, usual.size, limits, fixed))
    return chosen


def _fraction(name: str, value: str) -> float:
    try:
        number = float(value[:40])
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise Refusal(400, f"{name}={value[:40]}: give a number from 0 to 1")
    return number


def _classes(value: str, names: Sequence[str]) -> tuple[int, ...]:
    try:
        words = [word.strip() for word in value.split(",")]
        return tuple(dict.fromkeys(class_numbers(words, names, "classes:")))
    except ValueError as error:
        raise Refusal(400, str(error)) from None


def _size(value: str, usual: int, limits: Limits, fixed: bool) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 7):
        raise Refusal(400, f"size={value[:40]}: give a whole number of pixels")
    size = int(value)
    if fixed and size != usual:
        raise Refusal(400, f"size={size}: these weights take {usual} pixels only")
    if not limits.smallest <= size <= limits.largest:
        raise Refusal(400, f"size={size}: give {limits.smallest} to {limits.largest} pixels")
    return size
