"""What may be given to bi-level routing attention and to BiFormer, in Python and in model descriptions.

Every function raises ValueError where something is wrong: one line with the name, the value and the remedy. Most return
the value in one form. Booleans are no numbers; whole numbers are written without a decimal point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from utils.base.yaml import shortened


def refusal(name: str, value: Any, wanted: str) -> ValueError:
    """The error for a value, in a single line of modest length; for a number like 4.0 with how to write it."""
    text = " ".join(shortened(value).split())
    whole = f"; write {int(value)}" if "whole" in wanted and isinstance(value, float) and value.is_integer() else ""
    return ValueError(f"{name}={text}: give {wanted}{whole}")


def whole_number(name: str, value: Any, least: int = 1, note: str = "") -> int:
    """An integer of at least `least`; `note` ends the error."""
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise refusal(name, value, f"a whole number of at least {least}{note}")


def odd_kernel(name: str, value: Any) -> int:
    """Side of a convolution that keeps the size of its map, or 0 for no convolution."""
    if isinstance(value, Integral) and not isinstance(value, bool) and (value == 0 or (int(value) > 0 and value % 2)):
        return int(value)
    raise refusal(name, value, "an odd whole number, or 0 for none")


def real_number(name: str, value: Any, fits: Callable[[Any], bool], wanted: str) -> float:
    """A number that fits; `wanted` says which do."""
    if isinstance(value, Real) and not isinstance(value, bool) and fits(value):
        return float(value)
    raise refusal(name, value, wanted)


def drop_rate(value: Any) -> float:
    """The share of samples for which stochastic depth skips a branch."""
    return real_number("drop_path", value, lambda rate: 0 <= rate < 1, "a number from 0 to below 1")


def true_or_false(**flags: Any) -> None:
    """Only booleans: text such as 'no' would count as true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise refusal(name, value, "true or false")


def one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of the words in `allowed`."""
    if isinstance(value, str) and value in allowed:
        return value
    raise refusal(name, value, f"one of {', '.join(allowed)}")


def head_widths(dim: Any, qk_dim: Any, num_heads: Any) -> tuple[int, int, int]:
    """Channels of the map, of queries and keys (None for as many), and the number of heads that divides both."""
    heads = whole_number("num_heads", num_heads)
    qk_dim = dim if qk_dim is None else qk_dim
    for name, value in (("dim", dim), ("qk_dim", qk_dim)):
        if whole_number(name, value, note=f", a multiple of num_heads={heads}") % heads:
            raise ValueError(f"{name}={value} does not divide into num_heads={heads} heads; give a multiple of it")
    return int(dim), int(qk_dim), heads


def logit_scale(qk_scale: Any, qk_dim: int, num_heads: int = 1) -> float:
    """The factor of the logits: a number, None for qk_dim ** -0.5, or "head" for (qk_dim / num_heads) ** -0.5."""
    if qk_scale is None or (isinstance(qk_scale, str) and qk_scale == "head"):
        return float((qk_dim // (num_heads if qk_scale else 1)) ** -0.5)
    wanted = "a number above 0, 'head', or nothing for qk_dim ** -0.5"
    return real_number("qk_scale", qk_scale, lambda scale: 0 < scale < float("inf"), wanted)


def region_layout(n_win: Any, region_size: Any) -> tuple[int | str, tuple[int, int] | None]:
    """Regions per side ("auto" stays) and, where it is given, height and width of a region in tokens."""
    if not (isinstance(n_win, str) and n_win == "auto"):
        n_win = whole_number("n_win", n_win, note=", or 'auto'")
    if region_size is None:
        return n_win, None
    sides = region_size if isinstance(region_size, (list, tuple)) else (region_size, region_size)
    try:
        height, width = (whole_number("", side) for side in sides)
    except ValueError:
        wanted = "a whole number of tokens per side of at least 1, or two: height and width"
        raise refusal("region_size", region_size, wanted) from None
    return n_win, (height, width)
