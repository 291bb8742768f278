"""What a model description must have: its keys, and the kinds of their values. Rows are judged where they are built."""

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
    _check_scalars(description)
    for key in ("backbone", "head"):
        _check_list(description[key], f"{key} must be a list of rows [from, repeats, block, arguments]")
    anchors = description["anchors"]
    if not is_count(anchors):
        _check_anchors(anchors)
    if (count := anchors if is_count(anchors) else len(anchors[0]) // 2) > MAX_ANCHORS:
        raise ValueError(f"anchors: {shortened(count)} for a level; {MAX_ANCHORS} are the most")


def _check_scalars(description: Mapping[str, Any]) -> None:
    for key in ("depth_multiple", "width_multiple"):
        if not is_number(description[key]) or not description[key] > 0:
            raise ValueError(f"{key} must be a number above 0, not {shortened(description[key])}")
    for key in ("nc", "ch"):
        if not is_count(description.get(key, 1)):
            raise ValueError(f"{key} must be a whole number, at least 1, not {shortened(description[key])}")
    for key, most in MOST.items():
        if description.get(key, 1) > most:
            raise ValueError(f"{key} must be at most {most}, not {shortened(description[key])}")
    if not isinstance(description.get("inplace", True), bool):
        raise ValueError(f"inplace must be true or false, not {shortened(description['inplace'])}")


def _check_anchors(anchors: Any) -> None:
    form = "anchors must be how many there are per level, or a list of rows [width, height, ...]"
    _check_list(anchors, form)
    for row in anchors:
        _check_list(row, form)
        if not all(is_number(side) and 0 < side < math.inf for side in row):
            raise ValueError(f"{form}, all above 0")
        if len(row) != len(anchors[0]) or len(row) % 2:
            raise ValueError("every level needs the same number of anchors, each with a width and a height")


def _check_list(value: Any, form: str) -> None:
    if not isinstance(value, list) or not value:
        raise ValueError(form)


def is_count(value: Any) -> bool:
    """Whether this is a whole number, at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: Any) -> bool:
    """Whether this is a number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
