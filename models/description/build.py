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

import torch
from torch import nn

from models.biformer import C3BRA, BiFormerMerging, BiFormerStage, BiFormerStem
from models.bra.attention import BiLevelRoutingAttention
from models.common import (
    C3,
    C3SPP,
    C3TR,
    SPP,
    SPPF,
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
)
from models.description import budget
from models.description.checks import check_description, is_count, is_number
from models.extra_blocks import CrossConv, MixConv2d, Sum
from utils.base.config import make_divisible
from utils.base.files import printable
from utils.base.paths import ROOT, check_yaml
from utils.base.yaml import read_yaml, shortened

SIZES = {"n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}  # depth, width
MAX_TEXT = 200  # characters of an argument that may be a number or a list written as text
CANNOT_WORK = (  # what building or trying a layer may raise for arguments that do not fit
    TypeError, ValueError, LookupError, RuntimeError, ArithmeticError, AttributeError, AssertionError, MemoryError,
)  # fmt: skip

# These take the number of repeats as an argument instead of being repeated.
DEEPENED = (BottleneckCSP, C3, C3TR, C3Ghost, C3BRA, BiFormerStage)
WIDENED = (
    *DEEPENED, C3SPP, Conv, DWConv, GhostConv, Bottleneck, GhostBottleneck, SPP, SPPF, Focus, MixConv2d, CrossConv,
    BiFormerStem, BiFormerMerging,
)  # fmt: skip
RESHAPING = (Concat, Contract, Expand)
PLAIN = (Sum, Classify, BiLevelRoutingAttention)
_SEQUENTIAL = (
    nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)  # fmt: skip
BLOCKS: dict[str, type[nn.Module]] = {block.__name__: block for block in (*WIDENED, *RESHAPING, *PLAIN)}


# ---------------------------------------------------------------------------------------------------- finding them
def resolve_cfg(cfg: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """Return a description and the file as it was found or asked for (None for a mapping, which is copied).

    `yolov5{n,s,m,l,x}<rest>.yaml`, in any case, is `yolov5<rest>.yaml` of models/ or models/hub/ with the multiples of
    that size, unless there is a file of that very name. Raise ValueError for a file that is missing or no mapping.
    """
    if isinstance(cfg, Mapping):
        return copy.deepcopy(dict(cfg)), None
    sized = re.fullmatch(r"yolov5([nsmlx]?)([-_].+)\.ya?ml", Path(cfg).name.lower())
    there = {file.name.lower(): file for file in sorted((ROOT / "models").rglob("*.yaml"))}
    base = there.get(f"yolov5{sized[2]}.yaml") if sized else None
    if base is None or Path(cfg).expanduser().is_file() or Path(cfg).name in (file.name for file in there.values()):
        file = check_yaml(cfg)
        return read_yaml(file), file
    description = read_yaml(base)
    if sized[1]:
        description["depth_multiple"], description["width_multiple"] = SIZES[sized[1]]
    return description, Path(cfg)


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
    with torch.device("meta"):  # without numbers in them first: what is too large is refused before it is allocated
        _layers(description, channels, heads)
    return _layers(description, channels, heads)


def _layers(
    description: Mapping[str, Any], channels: int, heads: Mapping[str, type[nn.Module]]
) -> tuple[list[nn.Module], list[int]]:
    layers: list[nn.Module] = []
    widths: list[int] = []
    needed: set[int] = set()
    parameters = depth = 0
    for index, row in enumerate([*description["backbone"], *description["head"]]):
        source, repeats, name, args = _checked_row(index, row)
        sources = source if isinstance(source, list) else [source]
        try:
            depth += _depth(description, repeats)
            inputs = [widths[s] if index else channels for s in sources]
            plan = _plan(description, _find_block(name, heads), args, inputs, repeats, is_head=name in heads)
            layer = _build(plan)
            parameters += (np := sum(p.numel() for p in layer.parameters()))
            budget.check_parameters(parameters)
            budget.check_layers(depth)
        except CANNOT_WORK as error:
            raise ValueError(f"{_named(index, row)}: {in_short(error)}") from error
        layer.i, layer.f, layer.n, layer.np = index, source, plan.repeats, np
        layer.type = f"{plan.block.__module__}.{plan.block.__qualname__}"
        layer.arguments = [*plan.args, *([plan.named] if plan.named else [])]
        needed.update(s % index for s in sources if s != -1)
        layers.append(layer)
        widths.append(plan.channels)
    return layers, sorted(needed)


def in_short(error: BaseException) -> str:
    """The first line of an error's message, its kind if it has none."""
    lines = str(error).splitlines()
    return printable(lines[0][:300]) if lines and lines[0] else type(error).__name__


def _named(index: int, row: Any) -> str:
    return f"layer {index} {printable(row)[:80] if isinstance(row, str) else shortened(row)}"


def _checked_row(index: int, row: Any) -> tuple[int | list[int], int, str, list[Any]]:
    if not isinstance(row, (list, tuple)) or len(row) != 4:
        raise ValueError(f"{_named(index, row)}: expected [from, repeats, block, arguments]")
    source, repeats, name, args = row
    sources = source if isinstance(source, list) else [source]
    if not sources or not all(_is_earlier(s, index) for s in sources):
        here, found = _named(index, row), shortened(source)
        raise ValueError(f"{here}: 'from' must be -1 or the index of an earlier layer, not {found}")
    if not is_count(repeats):
        raise ValueError(f"{_named(index, row)}: repeats must be a whole number, at least 1, not {shortened(repeats)}")
    if not isinstance(name, str) or not isinstance(args, list):
        raise ValueError(f"{_named(index, row)}: expected a block's name and a list of arguments")
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
        if isinstance(found, type) and issubclass(found, (nn.RNNBase, *_SEQUENTIAL)):
            raise ValueError(f"{name} works on sequences, not on maps")
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
    budget.check_numbers([args, named])
    if fixed := {"device", "dtype"} & named.keys():
        raise ValueError(f"{min(fixed)} is not for a description to choose; leave it out")
    plan = _Plan(block, args, named, _depth(description, repeats), channels=inputs[0])
    if block in WIDENED:
        _widen(plan, description)
    elif block in RESHAPING:
        plan.channels = _reshaped(plan, inputs)
    elif block in (BiLevelRoutingAttention, nn.BatchNorm2d):
        plan.args = [inputs[0], *args]
    elif is_head:
        plan.args = _head_arguments(plan, inputs)
    return plan


def _depth(description: Mapping[str, Any], repeats: int) -> int:
    """Repeats scaled by the model's depth; one stays one."""
    depth = max(round(repeats * description["depth_multiple"]), 1) if repeats > 1 else 1
    budget.check_layers(depth)
    return depth


def _head_arguments(plan: _Plan, inputs: list[int]) -> list[Any]:
    """Classes, anchors, channels of the levels, and whatever the row adds."""
    if len(plan.args) < 2:
        raise ValueError(f"{plan.block.__name__} needs the arguments [nc, anchors]")
    classes, anchors, *more = plan.args
    return [classes, _head_anchors(anchors, len(inputs)), inputs, *more]


def _widen(plan: _Plan, description: Mapping[str, Any]) -> None:
    """Input channels, scaled output channels and, where the block takes it, the depth go before the arguments."""
    if not plan.args or not is_number(plan.args[0]):
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
        return ast.literal_eval(arg) if len(arg) <= MAX_TEXT else arg
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return arg


def _build(plan: _Plan) -> nn.Module:
    """The module, or a sequence of equal ones; those after the first take what the first gives out."""
    first = plan.block(*plan.args, **plan.named)
    if plan.repeats == 1:
        plan.channels = getattr(first, "out_channels", plan.channels)
        return first
    args = [plan.channels, *plan.args[1:]] if plan.block in WIDENED else plan.args
    return nn.Sequential(first, *(plan.block(*args, **plan.named) for _ in range(plan.repeats - 1)))
