"""What may be given to bi-level routing attention and to BiFormer, in Python and in model descriptions.

Every function raises ValueError where something is wrong: one line with the name, the value and the remedy. Most return
the value in one form. Booleans are no numbers; whole numbers are written without a decimal point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def whole_number(name: str, value: Any, least: int = 1, note: str = "") -> int:
    """An integer of at least `least`; `note` ends the error."""
    if _is_number(value, Integral) and value >= least:
        return int(value)
    raise ValueError(f"{name}={_shown(value)}: give a whole number of at least {least}{note}{_as_whole(value)}")


def positive_number(name: str, value: Any, note: str = "") -> float:
    """A finite number above 0."""
    if _is_number(value, Real) and 0 < value < math.inf:
        return float(value)
    raise ValueError(f"{name}={_shown(value)}: give a number above 0{note}")


def finite_number(name: str, value: Any) -> float:
    """Any number but infinity and what is not a number."""
    if _is_number(value, Real) and math.isfinite(value):
        return float(value)
    raise ValueError(f"{name}={_shown(value)}: give a number")


def true_or_false(**flags: Any) -> None:
    """Only booleans: text such as 'no' would count as true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={_shown(value)}: give true or false")


def one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of the words in `allowed`."""
    if isinstance(value, str) and value in allowed:
        return value
    raise ValueError(f"{name}={_shown(value)}: allowed are {', '.join(allowed)}")


def odd_kernel(name: str, value: Any) -> int:
    """Side of a convolution that keeps the size of its map, or 0 for no convolution."""
    if _is_number(value, Integral) and (value == 0 or (value > 0 and value % 2 == 1)):
        return int(value)
    raise ValueError(f"{name}={_shown(value)}: give an odd whole number, or 0 for none{_as_whole(value)}")


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
    if qk_scale is None:
        return qk_dim**-0.5
    if isinstance(qk_scale, str) and qk_scale == "head":
        return (qk_dim // num_heads) ** -0.5
    return positive_number("qk_scale", qk_scale, ", 'head', or nothing for qk_dim ** -0.5")


def region_layout(n_win: Any, region_size: Any) -> tuple[int | str, tuple[int, int] | None]:
    """Regions per side ("auto" stays) and, where it is given, height and width of a region in tokens."""
    if not (isinstance(n_win, str) and n_win == "auto"):
        n_win = whole_number("n_win", n_win, note=", or 'auto'")
    if region_size is None:
        return n_win, None
    sides = region_size if isinstance(region_size, (list, tuple)) else (region_size, region_size)
    if len(sides) != 2 or not all(_is_number(side, Integral) and side >= 1 for side in sides):
        form = "a whole number of tokens per side of at least 1, or two: height and width"
        raise ValueError(f"region_size={_shown(region_size)}: give {form}{_as_whole(region_size)}")
    return n_win, (int(sides[0]), int(sides[1]))


def drop_rate(value: Any) -> float:
    """The share of samples for which stochastic depth skips a branch."""
    if _is_number(value, Real) and 0 <= value < 1:
        return float(value)
    raise ValueError(f"drop path rate {_shown(value)}: give a number from 0 to below 1")


def check_means(query_means: Tensor, key_means: Tensor, allowed: Tensor | None) -> None:
    """Means (B, R, C) of queries and keys, and the regions that may be routed to, (B, R) or (1, R)."""
    if query_means.ndim != 3 or query_means.shape != key_means.shape:
        found = f"query_means {tuple(query_means.shape)}, key_means {tuple(key_means.shape)}"
        raise ValueError(f"{found}: give both as (B, R, C)")
    if allowed is None:
        return
    batch, regions = query_means.shape[:2]
    fits = allowed.ndim == 2 and allowed.shape[0] in (1, batch) and allowed.shape[1] == regions
    if allowed.dtype != torch.bool or not fits:
        raise ValueError(f"allowed {tuple(allowed.shape)} of {allowed.dtype}: give torch.bool, (B, R) or (1, R)")


def check_routes(index: Tensor, weight: Tensor | None, key_mask: Tensor | None, keys: Sequence[int]) -> None:
    """The parts of `Routes` for keys of the shape (B, R, L, ...).

    Numbers are looked at where that costs next to nothing: not on a GPU, which would be waited for, nor while a
    compiler or a trace writes down what is done.
    """
    _check_index(index, keys)
    if weight is not None and weight.shape != index.shape:
        found = f"routes.weight {tuple(weight.shape)} for routes.index {tuple(index.shape)}"
        raise ValueError(f"{found}: give one weight for each route")
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != keys[:3]):
        found = f"routes.key_mask {tuple(key_mask.shape)} of {key_mask.dtype}"
        raise ValueError(f"{found}: give torch.bool, one for each key: {tuple(keys[:3])}")
    if _is_readable(index):
        _check_numbers(index, key_mask)


def _check_index(index: Tensor, keys: Sequence[int]) -> None:
    if index.ndim != 3 or index.shape[:2] != keys[:2]:
        found = f"routes for {tuple(index.shape)}, queries for {tuple(keys[:2])} regions"
        raise ValueError(f"{found}: give routes.index as (B, R, K)")
    if index.shape[2] < 1:
        raise ValueError(f"routes.index {tuple(index.shape)}: a region needs at least one region to look at")
    if index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"routes.index is {index.dtype}: give numbers of regions as torch.int64")


def _check_numbers(index: Tensor, key_mask: Tensor | None) -> None:
    """A region out of range would be one of the next picture; a softmax of nothing is not a number."""
    last = index.shape[1] - 1
    low, high = (int(bound) for bound in index.aminmax())
    if low < 0 or high > last:
        raise ValueError(f"routes.index goes from {low} to {high}: give numbers of regions from 0 to {last}")
    if key_mask is not None and not key_mask.any(2).gather(1, index.flatten(1).long()).view(index.shape).any(2).all():
        raise ValueError("routes.key_mask leaves a region without any key to attend to: give each at least one")


def _is_readable(x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _as_whole(value: Any) -> str:
    """How to write a number like 4.0."""
    return f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else ""


def _shown(value: Any) -> str:
    """The value in a single line of modest length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
