"""Model descriptions: where they are found, what their rows mean, and the layers built from them.

A row is [from, repeats, block, arguments]. `from` is the index of the layer (or layers) whose output goes in, -1 the
one before; `block` is a name of the table below or `nn.` with a module of torch.nn. A mapping as last argument names
arguments.
"""

from __future__ import annotations

import ast
import copy
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from models.biformer import C3BRA, BiFormerMerging, BiFormerStage, BiFormerStem
from models.common import (
    C3,
    C3SPP,
    C3TR,
    SPP,
    SPPF,
    BiLevelRoutingAttention,
    Bottleneck,
    BottleneckCSP,
    C3Ghost,
    Classify,
    Concat,
    Contract,
    Conv,
    DWConv,
    Expand,
    Focus,
    GhostBottleneck,
    GhostConv,
)  # fmt: skip
from models.extra_blocks import CrossConv, MixConv2d, Sum
from utils.config import make_divisible, read_yaml
from utils.log import LOGGER
from utils.paths import ROOT, check_yaml

SIZES = {"n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}  # depth, width
REQUIRED = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head")
OPTIONAL = ("ch", "inplace")

# These take the number of repeats as an argument instead of being repeated.
DEEPENED = (BottleneckCSP, C3, C3TR, C3Ghost, C3BRA, BiFormerStage)
WIDENED = (
    *DEEPENED, C3SPP, Conv, DWConv, GhostConv, Bottleneck, GhostBottleneck, SPP, SPPF, Focus, MixConv2d, CrossConv,
    BiFormerStem, BiFormerMerging,
)  # fmt: skip
RESHAPING = (Concat, Contract, Expand)
PLAIN = (Sum, Classify, BiLevelRoutingAttention)
BLOCKS: dict[str, type[nn.Module]] = {block.__name__: block for block in (*WIDENED, *RESHAPING, *PLAIN)}


# ---------------------------------------------------------------------------------------------------- finding them
def resolve_cfg(cfg: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """A description and the file as it was found or asked for (None for a mapping, which is copied).

    `yolov5{n,s,m,l,x}_BiFormer.yaml`, in any case, is `yolov5_BiFormer.yaml` with the multiples of that size, unless
    there is a file of that very name. Raises ValueError for a file that is missing or is not a mapping.
    """
    if isinstance(cfg, Mapping):
        return copy.deepcopy(dict(cfg)), None
    sized = re.fullmatch(r"yolov5([nsmlx]?)_biformer\.ya?ml", Path(cfg).name.lower())
    if sized is None or Path(cfg).expanduser().is_file():
        file = check_yaml(cfg)
        return read_yaml(file), file
    description = read_yaml(ROOT / "models" / "yolov5_BiFormer.yaml")
    if sized[1]:
        description["depth_multiple"], description["width_multiple"] = SIZES[sized[1]]
    return description, Path(cfg)


def check_description(description: Mapping[str, Any]) -> None:
    """Raise ValueError, with the remedy, for a description that lacks a key or has a value of the wrong kind."""
    missing = [key for key in REQUIRED if key not in description]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}; a model description has {', '.join(REQUIRED)}")
    for key in description.keys() - {*REQUIRED, *OPTIONAL}:
        LOGGER.warning(f"model description: unknown key {key!r} is ignored; known: {', '.join((*REQUIRED, *OPTIONAL))}")
    _check_scalars(description)
    for key in ("backbone", "head"):
        _check_list(description[key], f"{key} must be a list of rows [from, repeats, block, arguments]")
    if not _is_count(description["anchors"]):
        _check_anchors(description["anchors"])


def _check_scalars(description: Mapping[str, Any]) -> None:
    for key in ("depth_multiple", "width_multiple"):
        if not _is_number(description[key]) or description[key] <= 0:
            raise ValueError(f"{key} must be a number above 0, not {description[key]!r}")
    for key in ("nc", "ch"):
        if not _is_count(description.get(key, 1)):
            raise ValueError(f"{key} must be a whole number, at least 1, not {description[key]!r}")
    if not isinstance(description.get("inplace", True), bool):
        raise ValueError(f"inplace must be true or false, not {description['inplace']!r}")


def _check_anchors(anchors: Any) -> None:
    form = "anchors must be how many there are per level, or a list of rows [width, height, ...]"
    _check_list(anchors, form)
    for row in anchors:
        _check_list(row, form)
        if not all(_is_number(side) and side > 0 for side in row):
            raise ValueError(f"{form}, all above 0")
        if len(row) != len(anchors[0]) or len(row) % 2:
            raise ValueError("every level needs the same number of anchors, each with a width and a height")


def _check_list(value: Any, form: str) -> None:
    if not isinstance(value, list) or not value:
        raise ValueError(form)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --------------------------------------------------------------------------------------------------- building them
@dataclass(slots=True)
class _Plan:
    """What one row asks for, in terms of constructors."""

    block: type[nn.Module]
    args: list[Any]
    named: dict[str, Any]
    repeats: int
    channels: int  # of the output


def build_layers(
    description: Mapping[str, Any], channels: int, heads: Mapping[str, type[nn.Module]]
) -> tuple[list[nn.Module], list[int]]:
    """The layers of a description for pictures with this many channels, and the sorted indices others refer to.

    `heads` are blocks called with (classes, anchors, channels of the levels). Every layer gets the attributes `i`
    (index), `f` (from), `n` (repeats), `type` (its class), `np` (parameters) and `arguments`.
    Raises ValueError naming the row when it cannot be built.
    """
    check_description(description)
    layers: list[nn.Module] = []
    widths: list[int] = []
    needed: set[int] = set()
    for index, row in enumerate([*description["backbone"], *description["head"]]):
        source, repeats, name, args = _checked_row(index, row)
        sources = source if isinstance(source, list) else [source]
        try:
            inputs = [widths[s] if index else channels for s in sources]
            plan = _plan(description, _find_block(name, heads), args, inputs, repeats, is_head=name in heads)
            layer = _build(plan)
        except (TypeError, ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
            raise ValueError(f"layer {index} {row}: {error}") from error
        layer.i, layer.f, layer.n = index, source, plan.repeats
        layer.type = f"{plan.block.__module__}.{plan.block.__qualname__}"
        layer.np = sum(p.numel() for p in layer.parameters())
        layer.arguments = [*plan.args, *([plan.named] if plan.named else [])]
        needed.update(s % index for s in sources if s != -1)
        layers.append(layer)
        widths.append(plan.channels)
    return layers, sorted(needed)


def _checked_row(index: int, row: Any) -> tuple[int | list[int], int, str, list[Any]]:
    if not isinstance(row, (list, tuple)) or len(row) != 4:
        raise ValueError(f"layer {index} {row}: expected [from, repeats, block, arguments]")
    source, repeats, name, args = row
    sources = source if isinstance(source, list) else [source]
    if not sources or not all(_is_earlier(s, index) for s in sources):
        raise ValueError(f"layer {index} {row}: 'from' must be -1 or the index of an earlier layer, not {source}")
    if not _is_count(repeats):
        raise ValueError(f"layer {index} {row}: repeats must be a whole number, at least 1, not {repeats!r}")
    if not isinstance(name, str) or not isinstance(args, list):
        raise ValueError(f"layer {index} {row}: expected a block's name and a list of arguments")
    return source, repeats, name, args


def _is_earlier(source: Any, index: int) -> bool:
    return isinstance(source, int) and (source == -1 or -index <= source < index)


def _find_block(name: str, heads: Mapping[str, type[nn.Module]]) -> type[nn.Module]:
    """Look a block up by name; an unknown one raises ValueError with the nearest known."""
    known = {**BLOCKS, **heads}
    if name in known:
        return known[name]
    if name.startswith("nn."):
        found = getattr(nn, name[3:], None)
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
    names = [*known, *(f"nn.{n}" for n in dir(nn) if n[0].isupper())]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown layer {name!r}{hint}; known: {', '.join(sorted(known))}, nn.*")


def _plan(
    description: Mapping[str, Any],
    block: type[nn.Module],
    args: list[Any],
    inputs: list[int],
    repeats: int,
    is_head: bool,
) -> _Plan:
    """Fill in what a row leaves out: input channels, scaled output channels and repeats, the head's levels."""
    named = args[-1] if args and isinstance(args[-1], dict) else {}
    args = [_value(arg, description) for arg in (args[:-1] if named else args)]
    named = {key: _value(value, description) for key, value in named.items()}
    if repeats > 1:
        repeats = max(round(repeats * description["depth_multiple"]), 1)
    plan = _Plan(block, args, named, repeats, channels=inputs[0])
    if block in WIDENED:
        _widen(plan, description)
    elif block in RESHAPING:
        plan.channels = _reshaped(plan, inputs)
    elif block in (BiLevelRoutingAttention, nn.BatchNorm2d):
        plan.args = [inputs[0], *args]
    elif is_head:
        plan.args = _head_arguments(plan, inputs)
    return plan


def _head_arguments(plan: _Plan, inputs: list[int]) -> list[Any]:
    """Classes, anchors, channels of the levels, and whatever the row adds."""
    if len(plan.args) < 2:
        raise ValueError(f"{plan.block.__name__} needs the arguments [nc, anchors]")
    classes, anchors, *more = plan.args
    return [classes, _head_anchors(anchors, len(inputs)), inputs, *more]


def _widen(plan: _Plan, description: Mapping[str, Any]) -> None:
    """Input channels, scaled output channels and, where the block takes it, the depth go before the arguments."""
    if not plan.args or not _is_number(plan.args[0]):
        raise ValueError(f"the first argument of {plan.block.__name__} must be its number of output channels")
    c1, further = plan.channels, plan.args[1:]
    plan.channels = _width(description, plan.args[0])
    if plan.block in DEEPENED:
        further, plan.repeats = [plan.repeats, *further], 1
    plan.args = [c1, plan.channels, *further]


def _reshaped(plan: _Plan, inputs: list[int]) -> int:
    """Channels that come out of a block that only moves numbers around."""
    if plan.block is Concat:
        return sum(inputs)
    area = (plan.args[0] if plan.args else 2) ** 2
    return inputs[0] * area if plan.block is Contract else inputs[0] // area


def _width(description: Mapping[str, Any], channels: int) -> int:
    """Scaled to a multiple of 8; a layer as wide as the head's output stays so (YOLOv5 6.1's rule)."""
    per_level = description["anchors"]
    anchors = per_level if isinstance(per_level, int) else len(per_level[0]) // 2
    if channels == anchors * (description["nc"] + 5):
        return channels
    return make_divisible(channels * description["width_multiple"], 8)


def _head_anchors(anchors: int | list[list[float]], levels: int) -> list[list[float]]:
    """A number of anchors becomes placeholders 0, 1, 2, ... on every level."""
    if isinstance(anchors, int):
        return [list(range(2 * anchors))] * levels
    if len(anchors) != levels:
        raise ValueError(f"the head reads {levels} levels but there are anchors for {len(anchors)}; make them agree")
    return anchors


def _value(arg: Any, description: Mapping[str, Any]) -> Any:
    """What an argument stands for; text that means nothing special ('nearest') stays text."""
    if isinstance(arg, list):
        return [_value(part, description) for part in arg]
    if not isinstance(arg, str):
        return arg
    if arg in ("nc", "anchors"):
        return description[arg]
    if module := re.fullmatch(r"nn\.(\w+)\(\)", arg):
        return _find_block(f"nn.{module[1]}", {})()
    try:
        return ast.literal_eval(arg)
    except (ValueError, SyntaxError):
        return arg


def _build(plan: _Plan) -> nn.Module:
    """The module, or a sequence of equal ones; those after the first take what the first gives out."""
    first = plan.block(*plan.args, **plan.named)
    if plan.repeats == 1:
        plan.channels = getattr(first, "out_channels", plan.channels)
        return first
    args = [plan.channels, *plan.args[1:]] if plan.block in WIDENED else plan.args
    return nn.Sequential(first, *(plan.block(*args, **plan.named) for _ in range(plan.repeats - 1)))
