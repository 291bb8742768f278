"""Model descriptions: where they are found, what their rows mean, and the layers built from them.

A row is [from, repeats, block, arguments]. `from` is the index of the layer (or layers) whose output goes in, -1 the
one before; `block` is a name of the table BLOCKS, which `register_block` adds to, or `nn.` with a module of torch.nn. A
mapping as last argument names arguments.
"""

from __future__ import annotations

import ast
import copy
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, filterfalse
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from models import biformer, common, custom, extra_blocks
from models.bra.arguments import real_number, refusal, true_or_false, whole_number
from models.description import budget
from utils.base.config import MAX_CLASSES, make_divisible
from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.options import nearest
from utils.base.paths import ROOT, check_yaml
from utils.base.yaml import read_yaml, shortened

REQUIRED = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head")
KNOWN = (*REQUIRED, "ch", "inplace")
MOST = {"nc": MAX_CLASSES, "ch": 1000, "anchors": 100}  # of a level
MOST_TIMES = 100
SIZES = {"n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}  # depth, width
MAX_TEXT = 200  # characters of an argument that may be a number or a list written as text
OF_SEQUENCES = (
    nn.RNNBase, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)  # fmt: skip
TAKES = ("c1", "ch", "c2", "n", "nc", "anchors")
Kind = TypeVar("Kind", bound=type[nn.Module])


# ------------------------------------------------------------------------------------------------ the table of blocks
@dataclass(frozen=True, slots=True)
class Block:
    """A block as descriptions know it; see `register_block`."""

    kind: type[nn.Module]
    takes: str
    channels: Callable[[list[int], list[Any]], int] | None = None


BLOCKS: dict[str, Block] = {}


def register_block(
    kind: Kind | None = None, *, takes: str = "c1 c2", channels: Callable[[list[int], list[Any]], int] | None = None
) -> Any:
    """Let model descriptions name a class: `@register_block` above it, or with a declaration of how it is built.

    Args:
        takes: what the constructor gets before the rest of a row's arguments, in this order. `c1`: channels that come
            in. `ch`: the list of channels of all layers the row reads. `n`: the repeats, scaled by depth_multiple;
            without it the block is repeated one after the other. `c2`, `nc` and `anchors` are the row's next argument:
            channels that come out, scaled by width_multiple; as it is; and the anchors of a detection head.
        channels: called with the channels of all layers the row reads and the constructor's arguments, returns those
            that come out. Where it is not given they are `c2`, or else as many as come in.

    Raises ValueError for a declaration that cannot be and for a name that another class has.
    """
    if kind is None:
        return lambda kind: register_block(kind, takes=takes, channels=channels)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ValueError(f"register_block: {kind!r} is no class derived from torch.nn.Module")
    if wrong := [name for name in takes.split() if name not in TAKES]:
        raise ValueError(f"register_block: {kind.__name__} takes {wrong[0]!r}; there are: {', '.join(TAKES)}")
    there = BLOCKS.get(kind.__name__)
    if there and (there.kind.__module__, there.kind.__qualname__) != (kind.__module__, kind.__qualname__):
        owner = f"{there.kind.__module__}.{kind.__name__}"
        raise ValueError(f"register_block: {kind.__name__} is the name of {owner}; choose another")
    BLOCKS[kind.__name__] = Block(kind, takes, channels)
    return kind


_SHIPPED: dict[str, tuple[type[nn.Module], ...]] = {
    "c1 c2": (
        common.Conv, common.DWConv, common.GhostConv, common.Focus, common.Bottleneck, common.GhostBottleneck,
        common.SPP, common.SPPF, common.C3SPP, extra_blocks.MixConv2d, extra_blocks.CrossConv, biformer.BiFormerStem,
        biformer.BiFormerMerging,
    ),
    "c1 c2 n": (
        common.BottleneckCSP, common.C3, common.C3TR, common.C3Ghost, biformer.C3BRA, biformer.BiFormerStage,
    ),
    "c1": (common.BiLevelRoutingAttention,),
    "": (extra_blocks.Sum, common.Classify),
}  # fmt: skip
for _takes, _kinds in _SHIPPED.items():
    for _kind in _kinds:
        register_block(_kind, takes=_takes)
register_block(common.Concat, takes="", channels=lambda ch, args: sum(ch) if args in ([], [1]) else ch[0])
register_block(common.Contract, takes="", channels=lambda ch, args: ch[0] * (args[0] if args else 2) ** 2)
register_block(common.Expand, takes="", channels=lambda ch, args: ch[0] // (args[0] if args else 2) ** 2)


def find_block(name: str) -> Block:
    """Look a block up by name; an unknown one raises ValueError with the nearest known."""
    if name in BLOCKS:
        return BLOCKS[name]
    if name.startswith("nn."):
        found = getattr(nn, name[3:], None)
        if isinstance(found, type) and issubclass(found, OF_SEQUENCES):
            raise ValueError(f"{name} works on sequences, not on maps")
        if isinstance(found, type) and issubclass(found, nn.Module):
            return Block(found, "c1" if found is nn.BatchNorm2d else "")
    near = nearest(name, [*BLOCKS, *(f"nn.{n}" for n in dir(nn) if n[0].isupper())])
    own = "a layer of your own is registered in a file of models/custom/ (docs/extending.md)"
    raise ValueError(f"unknown layer {name!r}{near or ';'} {own}; known: nn.*, {', '.join(sorted(BLOCKS))}")


# ------------------------------------------------------------------------------------------- finding descriptions
def resolve_cfg(cfg: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """Return a description and the file as it was found or asked for (None for a mapping, which is copied).

    `yolov5{n,s,m,l,x}<rest>.yaml`, in any case, is `yolov5<rest>.yaml` of models/ or models/hub/ with the multiples of
    that size, unless there is a file of that very name. Raise ValueError for a file that is missing or no mapping.
    """
    if custom.BROKEN:
        raise ValueError("; ".join(custom.BROKEN))
    if isinstance(cfg, Mapping):
        return copy.deepcopy(dict(cfg)), None
    sized = re.fullmatch(r"yolov5([nsmlx]?)([-_].+)\.ya?ml", Path(cfg).name.lower())
    there = {file.name.lower(): file for file in sorted((ROOT / "models").rglob("*.yaml"))}
    base = there.get(f"yolov5{sized[2]}.yaml") if sized else None
    is_file = Path(cfg).expanduser().is_file() or Path(cfg).name in (file.name for file in there.values())
    if sized is None or base is None or is_file:
        file = check_yaml(cfg)
        return read_yaml(file), file
    description = read_yaml(base)
    if sized[1]:
        description["depth_multiple"], description["width_multiple"] = SIZES[sized[1]]
    return description, Path(cfg)


# -------------------------------------------------------------------------------------------------- building layers
def _check_description(description: Mapping[str, Any]) -> None:
    """Raise ValueError, with the remedy, for a lacking key or a value of the wrong kind; rows are checked later."""
    if missing := [key for key in REQUIRED if key not in description]:
        raise ValueError(f"lacks {', '.join(missing)}; a model description has {', '.join(REQUIRED)}")
    for key in description.keys() - {*KNOWN}:
        LOGGER.warning(f"model description: unknown key {shortened(key)} is ignored; known: {', '.join(KNOWN)}")
    checks: dict[str, Callable[[str, Any], int]] = {"nc": whole_number, "ch": whole_number, "anchors": _count_anchors}
    for key, check in checks.items():
        if check(key, description.get(key, 1)) > MOST[key]:
            raise refusal(key, description[key], f"at most {MOST[key]}")
    for key in ("depth_multiple", "width_multiple"):
        real_number(key, description[key], lambda number: 0 < number <= MOST_TIMES, f"a number above 0 to {MOST_TIMES}")
    true_or_false(inplace=description.get("inplace", True))
    for key in ("backbone", "head"):
        if not isinstance(description[key], list) or not description[key]:
            raise ValueError(f"{key} must be a list of rows [from, repeats, block, arguments]")


def _count_anchors(name: str, anchors: Any) -> int:
    """How many anchors a level has; they may be listed, or no more than their number be known."""
    if not isinstance(anchors, list):
        return whole_number(name, anchors, note=", or for each level a list [width, height, ...]")
    lengths = {len(row) if isinstance(row, list) else 0 for row in anchors}
    if len(lengths) != 1 or 0 in lengths or sum(lengths) % 2:
        raise ValueError("anchors: every level needs the same number of them, each with a width and a height")
    for side in chain.from_iterable(anchors):
        real_number(name, side, lambda length: 0 < length < math.inf, "widths and heights above 0")
    return len(anchors[0]) // 2


def build_layers(
    description: Mapping[str, Any], channels: int, verbose: bool = False
) -> tuple[list[nn.Module], list[int], list[int | None]]:
    """Build the layers of a description for images with this many channels.

    Returns them, the sorted indices that others refer to, and the channels that each layer was declared to give (None
    for modules of torch.nn, which declare nothing). Every layer gets v6.1's attributes `i` (index), `f` (from), `type`
    (its class) and `np` (parameters). Raises ValueError naming the row when it cannot be built. `verbose` logs a table.
    """
    _check_description(description)
    with torch.device("meta"):  # without numbers in them first: what is too large is refused before it is allocated
        _layers(description, channels)
    layers, needed, declared, table = _layers(description, channels)
    for line in table if verbose else ():
        LOGGER.info(line)
    return layers, needed, declared


def _layers(
    description: Mapping[str, Any], channels: int
) -> tuple[list[nn.Module], list[int], list[int | None], list[str]]:
    """What `build_layers` returns, and the table to log."""
    layers: list[nn.Module] = []
    widths: list[int] = []
    declared: list[int | None] = []
    needed: set[int] = set()
    parameters = depth = 0
    table = [f"{'':>3}{'from':>18}{'n':>3}{'params':>10}  {'module':<42}arguments"]
    for index, row in enumerate([*description["backbone"], *description["head"]]):
        try:
            sources, repeats, name, args = _checked_row(index, row)
            repeats = max(round(repeats * description["depth_multiple"]), 1) if repeats > 1 else 1
            budget.check_counts(depth := depth + repeats, parameters)
            block, inputs = find_block(name), [widths[s] if index else channels for s in sources]
            layer, used, width = _build(block, args, inputs, repeats, description)
            parameters += (np := sum(p.numel() for p in layer.parameters()))
            budget.check_counts(depth, parameters)
        except Exception as error:  # a block may be anybody's, and raise anything
            shown = printable(row)[:80] if isinstance(row, str) else shortened(row)
            raise ValueError(f"layer {index} {shown}: {in_short(error)}") from error
        kind = f"{block.kind.__module__}.{block.kind.__qualname__}"
        vars(layer).update(i=index, f=row[0], type=kind, np=np)
        needed.update(s % index for s in sources if s != -1)
        layers.append(layer)
        widths.append(width)
        declared.append(None if name.startswith("nn.") else width)
        table.append(f"{index:>3}{row[0]!s:>18}{repeats:>3}{np:>10}  {kind:<42}{used}")
    return layers, sorted(needed), declared, table


def in_short(error: BaseException) -> str:
    """The first line of an error's message, after its class unless that is ValueError, which our own checks raise."""
    line = printable(str(error).partition("\n")[0][:300])
    return line if line and type(error) is ValueError else f"{type(error).__name__}: {line}".removesuffix(": ")


def _checked_row(index: int, row: Any) -> tuple[list[int], int, str, list[Any]]:
    if not isinstance(row, (list, tuple)) or len(row) != 4:
        raise ValueError("expected [from, repeats, block, arguments]")
    source, repeats, name, args = row
    sources = source if isinstance(source, list) else [source]
    if not sources or not all(type(s) is int and -max(index, 1) <= s < index for s in sources):
        raise ValueError(f"'from' must be -1 or the index of an earlier layer, not {shortened(source)}")
    whole_number("repeats", repeats)
    if (type(name), type(args)) != (str, list):
        raise ValueError("expected a block's name and a list of arguments")
    return sources, repeats, name, args


def _build(
    block: Block, args: list[Any], inputs: list[int], repeats: int, description: Mapping[str, Any]
) -> tuple[nn.Module, list[Any], int]:
    """The module (a sequence of equal ones where it does not take its repeats), its arguments, its output's channels.

    Of a sequence, modules after the first take what the first gives out.
    """
    names = block.takes.split()
    named = args[-1] if args and isinstance(args[-1], dict) else {}
    given, rest, named = _given(block, args[: len(args) - bool(named)], named, inputs, description)
    given["n"] = repeats
    modules: list[nn.Module] = []
    first: list[Any] = []
    for _ in range(1 if "n" in names else repeats):
        used = [*(given[name] for name in names), *rest]
        first = first or used
        modules.append(_construct(block, used, named))
        width = block.channels(inputs, used) if block.channels else given.get("c2", inputs[0])
        given["c1"], given["ch"], inputs = width, [width], [width]
    layer = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    return layer, [*first, named] if named else first, getattr(layer, "out_channels", width)


def _given(
    block: Block, args: list[Any], named: dict[str, Any], inputs: list[int], description: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
    """What goes before a row's arguments, by the names of `Block.takes`; the rest of them; and the named ones."""
    rest = [_value(arg, description) for arg in args]
    named = {key: _value(value, description) for key, value in named.items()}
    budget.check_numbers([rest, named])
    given: dict[str, Any] = {"c1": inputs[0], "ch": inputs, "n": 1}
    for name in filterfalse(given.__contains__, block.takes.split()):
        if not rest or (name == "c2" and type(rest[0]) not in (int, float)):
            wanted = {"c2": "its number of output channels"}.get(name, name)
            raise ValueError(f"the first argument of {block.kind.__name__} must be {wanted}")
        given[name] = rest.pop(0)
    count = _count_anchors("anchors", description["anchors"])
    outputs = count * (description["nc"] + 5)
    if given.get("c2", outputs) != outputs:  # a layer as wide as the head's output stays so
        given["c2"] = make_divisible(given["c2"] * description["width_multiple"], 8)
    if isinstance(given.get("anchors"), int):  # placeholders until autoanchor
        given["anchors"] = [list(range(2 * count))] * len(inputs)
    if len(given.get("anchors", inputs)) != len(inputs):
        levels = f"the head reads {len(inputs)} levels but there are anchors for {len(given['anchors'])}"
        raise ValueError(f"{levels}; make them agree")
    return given, rest, named


def _construct(block: Block, args: list[Any], named: dict[str, Any]) -> nn.Module:
    """Call the constructor; an error for arguments it does not have says which it has."""
    if fixed := {"device", "dtype"} & named.keys():
        raise ValueError(f"{min(fixed)} is not for a description to choose; leave it out")
    try:
        layer = block.kind(*args, **named)
    except TypeError:
        signature, name = inspect.signature(block.kind), block.kind.__name__
        try:
            signature.bind(*args, **named)
        except TypeError as error:
            front = f", of which {block.takes} are put in front of the row's" if block.takes else ""
            raise ValueError(f"{error}; {name} takes {', '.join(signature.parameters)}{front}") from error
        raise
    if taken := {"i", "f", "type", "np"} & {*vars(layer), *layer._modules, *layer._parameters, *layer._buffers}:
        raise ValueError(f"the model keeps its own {min(taken)!r} in a layer; rename that attribute of the class")
    return layer


def _value(arg: Any, description: Mapping[str, Any]) -> Any:
    """What an argument stands for; text that means nothing special ('nearest') stays text."""
    if isinstance(arg, list):
        return [_value(part, description) for part in arg]
    if not isinstance(arg, str):
        return arg
    if arg in ("nc", "anchors"):
        return description[arg]
    if module := re.fullmatch(r"nn\.(\w+)\(\)", arg):
        return find_block(f"nn.{module[1]}").kind()
    try:
        return ast.literal_eval(arg) if len(arg) <= MAX_TEXT else arg
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return arg
