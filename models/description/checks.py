"""What a model description must have: its keys, and the kinds of their values. Rows are checked as they are built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from utils.base.config import MAX_CLASSES
from utils.base.log import LOGGER
from utils.base.yaml import shortened

REQUIRED = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head")
OPTIONAL = ("ch", "inplace")
MOST = {"depth_multiple": 100, "width_multiple": 100, "nc": MAX_CLASSES, "ch": 1000}
MAX_ANCHORS = 100  # of a level


def check_description(description: Mapping[str, Any]) -> None:
    """Raise ValueError, with the remedy, for a description that lacks a key or has a value of the wrong kind."""
    missing = [key for key in REQUIRED if key not in description]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}; a model description has {', '.join(REQUIRED)}")
    for key in description.keys() - {*REQUIRED, *OPTIONAL}:
        known = ", ".join((*REQUIRED, *OPTIONAL))
        LOGGER.warning(f"model description: unknown key {shortened(key)} is ignored; known: {known}")
    _check_sizes(description)
    for key in ("backbone", "head"):
        if not isinstance(description[key], list) or not description[key]:
            raise ValueError(f"{key} must be a list of rows [from, repeats, block, arguments]")
    _check_anchors(description["anchors"])


def _check_sizes(description: Mapping[str, Any]) -> None:
    for key, most in MOST.items():
        value, whole = description.get(key, 1), key in ("nc", "ch")
        if not (is_count(value) if whole else is_number(value) and value > 0):
            kind = "a whole number, at least 1" if whole else "a number above 0"
            raise ValueError(f"{key} must be {kind}, not {shortened(value)}")
        if value > most:
            raise ValueError(f"{key} must be at most {most}, not {shortened(value)}")
    if not isinstance(inplace := description.get("inplace", True), bool):
        raise ValueError(f"inplace must be true or false, not {shortened(inplace)}")


def _check_anchors(anchors: Any) -> None:
    count = anchors
    if not is_count(anchors):
        if not isinstance(anchors, list) or not anchors or not all(map(_is_row, anchors)):
            form = "how many there are per level, or a list of rows [width, height, ...]"
            raise ValueError(f"anchors must be {form}, all above 0")
        if len(anchors[0]) % 2 or len({len(row) for row in anchors}) > 1:
            raise ValueError("every level needs the same number of anchors, each with a width and a height")
        count = len(anchors[0]) // 2
    if count > MAX_ANCHORS:
        raise ValueError(f"anchors: {shortened(count)} for a level; {MAX_ANCHORS} are the most")


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and len(row) > 0 and all(is_number(side) and 0 < side < math.inf for side in row)


def is_count(value: Any) -> bool:
    """Whether this is a whole number, at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: Any) -> bool:
    """Whether this is a number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
