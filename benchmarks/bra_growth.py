"""How the cost of attention layers grows with the map: exponents of height x width, measured and counted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.pairing import interleave
from benchmarks.report import Table
from benchmarks.rivals import DenseAttention, Rival, Setting, around
from models.bra.attention import BiLevelRoutingAttention
from utils.base.networks import count_flops
from utils.drawing.figures import new_figure, save_figure, series_colour, title

SIDES = (40, 57, 80, 113, 160, 226, 320)  # each map has about twice the tokens of the one before
HEAD_WIDTH = 16
LAYERS: dict[str, dict[str, Any]] = {
    "n_win=7": {"n_win": 7},
    "n_win=auto": {"n_win": "auto"},
    "region_size=8": {"region_size": 8},
    "dense": {},
}
BOUNDS = {"n_win=auto": 1.4, "region_size=8": 1.1}  # exponents that are not to be exceeded
KINDS = ("forward", "both", "counted")
IMAGES = (".png", ".svg", ".pdf", ".jpg")


@dataclass(frozen=True)
class Plan:
    """Which maps: sides in tokens, channels; dense attention only up to `dense_limit` tokens a side.

    backend: of our layers, see `models.bra.functions.routed_attention`.
    """

    sides: Sequence[int] = SIDES
    channels: int = 64
    dense_limit: int = 160
    backend: str = "auto"

    def layers(self, side: int) -> list[str]:
        """The layers that are run on a map of this side."""
        return [name for name in LAYERS if name != "dense" or side <= self.dense_limit]


@dataclass
class Curve:
    """Of one layer, map by map: tokens, seconds of one forward and of forward and backward, counted operations."""

    tokens: list[int] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)

    def exponents(self) -> dict[str, float]:
        """Exponent of each kind of cost."""
        return {kind: exponent(self.tokens, getattr(self, kind)) for kind in KINDS}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The p of cost ~ size ** p: slope of the least-squares line through the logarithms.

    Raises ValueError for fewer than two different sizes, which no line goes through.
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"an exponent needs at least two different sizes, not {list(sizes)}")
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in costs]).slope


def make_layer(name: str, plan: Plan) -> nn.Module:
    """One of LAYERS, with heads of HEAD_WIDTH channels."""
    torch.manual_seed(0)
    heads = max(1, plan.channels // HEAD_WIDTH)
    if name == "dense":
        return DenseAttention(plan.channels, heads)
    return BiLevelRoutingAttention(plan.channels, num_heads=heads, backend=plan.backend, **LAYERS[name])


def count(name: str, side: int, plan: Plan) -> int:
    """Floating point operations of one forward on a side x side map: two for each multiply-add; no clock, no noise."""
    return count_flops(make_layer(name, replace(plan, backend="sdpa")), side, plan.channels)


def grow(plan: Plan, setting: Setting) -> tuple[Table, list[str], dict[str, Curve]]:
    """Run all layers on all maps; print and return the table, notes on it, and the curves."""
    table = Table({"map": 9, "layer": 13, "rounds": 0, "forward ms": 0, "both ms": 8, "counted GFLOPs": 0})
    curves: dict[str, Curve] = {name: Curve() for name in LAYERS}
    notes = [
        f"one image, {plan.channels} channels; both: forward and backward; counted: two operations for each "
        "multiply-add of a forward; exponents are those of height x width"
    ]
    if max(plan.sides) > plan.dense_limit:
        notes.append(f"dense is left out beyond {plan.dense_limit} tokens a side (--dense-limit)")
    print("\n".join(notes))
    for side in plan.sides:
        _run_on(side, plan, setting, table, curves)
    curves = {name: curve for name, curve in curves.items() if len(curve.tokens) > 1}
    for name, curve in curves.items():
        slopes = curve.exponents()
        table.add(
            **{"map": "exponent", "layer": name, "forward ms": slopes["forward"], "both ms": slopes["both"]},
            **{"counted GFLOPs": slopes["counted"]},
        )
    found = verdicts({name: curve.exponents() for name, curve in curves.items()})
    print("\n".join(found))
    return table, [*notes, *found], curves


def _run_on(side: int, plan: Plan, setting: Setting, table: Table, curves: dict[str, Curve]) -> None:
    """Run the layers on one map; add to table and curves."""
    shape = (1, plan.channels, side, side)
    rivals = {name: around(make_layer(name, plan), shape, setting) for name in plan.layers(side)}
    forward, both = _times(rivals, setting)
    for name in rivals:
        curve = curves[name]
        curve.tokens.append(side * side)
        curve.forward.append(statistics.median(forward[name]))
        curve.both.append(statistics.median(both[name]))
        curve.counted.append(count(name, side, plan))
        table.add(
            **{"map": f"{side}x{side}", "layer": name, "rounds": len(both[name])},
            **{"forward ms": 1000 * curve.forward[-1], "both ms": 1000 * curve.both[-1]},
            **{"counted GFLOPs": curve.counted[-1] / 1e9},
        )


def _times(rivals: Mapping[str, Rival], setting: Setting) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every round, forward and both, after one run of each."""
    for rival in rivals.values():
        rival.both()
    pace = {"rounds": setting.rounds, "warm_up": setting.warm_up, "budget": setting.budget}
    forward = interleave({name: rival.forward for name, rival in rivals.items()}, **pace)
    return forward, interleave({name: rival.both for name, rival in rivals.items()}, **pace)


def verdicts(exponents: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line on each layer that has a bound: whether every kind of cost keeps it."""
    lines = []
    for name, bound in BOUNDS.items():
        if name in exponents:
            found = exponents[name]
            listed = ", ".join(f"{kind} {found[kind]:.2f}" for kind in KINDS)
            kept = "kept" if max(found.values()) <= bound else "EXCEEDED"
            lines.append(f"{name}: exponents are to be at most {bound}: {listed}: {kept}")
    return lines


def draw(curves: Mapping[str, Curve], file: Path) -> Path:
    """Draw the curves, time forward, time forward and backward, and operations, over the map; both axes logarithmic."""
    labels = {"forward": "Forward, ms", "both": "Forward and backward, ms", "counted": "Forward, counted GFLOPs"}
    units = {"forward": 1e3, "both": 1e3, "counted": 1e-9}
    tokens = sorted({number for curve in curves.values() for number in curve.tokens})
    figure, axes = new_figure(1, 3, (13.5, 4.5))
    for axis, kind in zip(axes, KINDS, strict=True):
        title(axis, labels[kind], x="map, tokens")
        axis.set(xscale="log", yscale="log")
        for index, (name, curve) in enumerate(curves.items()):
            label = f"{name}: exponent {curve.exponents()[kind]:.2f}"
            costs = [units[kind] * cost for cost in getattr(curve, kind)]
            axis.plot(curve.tokens, costs, "o-", color=series_colour(index), label=label, markersize=4)
        axis.set_xticks(tokens, [f"{math.isqrt(number)}²" for number in tokens])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.legend(fontsize=9, frameon=False)
    return save_figure(figure, file)
