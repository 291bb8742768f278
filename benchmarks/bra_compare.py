"""Attention layers side by side on given maps: time, memory, repeatability, and how many times better one is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from benchmarks.pairing import geometric_mean, interleave, median_ratio
from benchmarks.report import Table, Value
from benchmarks.rivals import Setting, Shape, extra_memory, layer, peak, ready
from models.bra.attention import BiLevelRoutingAttention
from models.yolo import Model
from utils.base.networks import run_on_meta

MODULES = ("reference", "dense")  # what everybody is compared with, besides the first who is named
LEGEND = (
    "ms: median of the rounds. vs: the median over the rounds of how many times faster, or smaller, than that rival. "
    "both: forward and backward"
)
EXTRA_LEGEND = (
    "extra: memory of the attention alone beyond q, k, v, its output and (both) their gradients, in % of the first four"
)


@dataclass(frozen=True)
class Case:
    """A map to run on, and what the table says of it."""

    shape: Shape
    labels: dict[str, Value] = field(default_factory=dict)


class Wanted(NamedTuple):
    """What is measured besides time."""

    memory: bool = True
    extra: bool = False
    repeatable: bool = False


@dataclass
class Measured:
    """Of one rival on one map: seconds of every round, bytes at the peak, extra memory in %, results that differ."""

    forward: list[float]
    both: list[float]
    peak: int | None = None
    extra: tuple[float, float] | None = None
    differing: list[str] = field(default_factory=list)


def model_cases(sizes: Sequence[str], images: Sequence[int], batch: int) -> list[Case]:
    """The maps that BRA layers of yolov5{size}_BiFormer.yaml are given, for square images of these sides (pixels)."""
    cases = []
    for size in sizes:
        model = Model(f"yolov5{size}_BiFormer.yaml", verbose=False).eval()
        for side in images:
            for shape in attention_shapes(model, side, batch):
                level = round(math.log2(side / shape[2]))
                cases.append(Case(shape, {"model": size, "image": side, "level": f"P{level}"}))
    return cases


def attention_shapes(model: Model, side: int, batch: int) -> list[Shape]:
    """What each BRA layer of a model is given for `batch` images of side x side pixels; nothing is computed.

    Raises ValueError when there is no such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, BiLevelRoutingAttention)]
    if not layers:
        raise ValueError("the model has no BiLevelRoutingAttention; give a description with some")
    shapes: list[Shape] = []

    def note(_: nn.Module, inputs: tuple) -> None:
        shapes.append(tuple(inputs[0].shape))

    hooks = [module.register_forward_pre_hook(note) for module in layers]
    try:
        run_on_meta(model, batch, model.yaml["ch"], side, side)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def compare(names: list[str], cases: Sequence[Case], setting: Setting, wanted: Wanted) -> tuple[Table, list[str]]:
    """Measure all rivals on all maps; print and return the table, and notes on it. The first rival is the baseline.

    Raises ValueError when the baseline cannot be run on this machine.
    """
    able, left_out = ready(names, (1, 128, 14, 14), setting)
    if names[0] not in able:
        raise ValueError(f"no baseline: {left_out[0]}")
    names = list(able)
    yardsticks = [names[0], *(name for name in MODULES if name in names[1:])]
    notes = [f"baseline: {names[0]}", LEGEND, *([EXTRA_LEGEND] if wanted.extra else []), *left_out]
    print("\n".join(notes))
    table = Table(_columns(cases, yardsticks, wanted))
    for case in cases:
        measured, left_out = measure(names, case.shape, setting, wanted)
        for name in measured:
            table.add(**case.labels, **record(name, case.shape, measured, yardsticks, wanted))
        left_out += [
            f"two runs of {name} on {_text(case.shape)} differ in: {', '.join(value.differing)}"
            for name, value in measured.items()
            if value.differing
        ]
        for line in left_out:
            print(line)
        notes += left_out
    for name in names[1:]:
        add_means(table, name)
    return table, notes


def measure(names: list[str], shape: Shape, setting: Setting, wanted: Wanted) -> tuple[dict[str, Measured], list[str]]:
    """Run the rivals on a map of this shape; also a line on each that cannot be run on it."""
    rivals, left_out = ready(names, shape, setting)
    pace = {"rounds": setting.rounds, "warm_up": setting.warm_up, "budget": setting.budget}
    forward = interleave({name: rival.forward for name, rival in rivals.items()}, **pace)
    both = interleave({name: rival.both for name, rival in rivals.items()}, **pace)
    measured = {name: Measured(forward[name], both[name]) for name in rivals}
    if wanted.repeatable:
        for name in rivals:
            measured[name].differing = rivals[name].differing()
    rivals.clear()  # makes room for what is measured below
    for name, value in measured.items():
        value.peak = peak(layer, name, shape, setting, True) if wanted.memory else None
        value.extra = extra_memory(name, shape, setting) if wanted.extra and name != "reference" else None
    return measured, left_out


def record(
    name: str, shape: Shape, measured: dict[str, Measured], yardsticks: Sequence[str], wanted: Wanted
) -> dict[str, Value]:
    """One row of the table: a rival on a map, next to those yardsticks that could be run on it."""
    own = measured[name]
    row: dict[str, Value] = {"shape": _text(shape), "rival": name, "rounds": len(own.both)}
    row["forward ms"] = 1000 * statistics.median(own.forward)
    row["both ms"] = 1000 * statistics.median(own.both)
    if wanted.memory:
        row["MiB"] = own.peak / 2**20
    for other in yardsticks:
        if other not in measured:
            continue
        base = measured[other]
        row[f"forward vs {other}"] = median_ratio(base.forward, own.forward)
        row[f"both vs {other}"] = median_ratio(base.both, own.both)
        if wanted.memory:
            row[f"memory vs {other}"] = base.peak / max(1, own.peak)
    if own.extra is not None:
        row["extra forward %"], row["extra both %"] = own.extra
    if wanted.repeatable:
        row["repeats"] = "no" if own.differing else "yes"
    return row


def add_means(table: Table, name: str) -> None:
    """Append the geometric means, over the maps, of a rival's ratios."""
    rows = [row for row in table.rows if row["rival"] == name]
    means: dict[str, Value] = {}
    for column in table.widths:
        ratios = [row[column] for row in rows if " vs " in column and row[column] is not None]
        if ratios:
            means[column] = geometric_mean(ratios)
    if means:
        table.add(shape="geometric mean", rival=name, **means)


def _columns(cases: Sequence[Case], yardsticks: Sequence[str], wanted: Wanted) -> dict[str, int]:
    titles = {**dict.fromkeys(cases[0].labels, 5), "shape": 14, "rival": 9, "rounds": 0}
    titles |= {"forward ms": 0, "both ms": 7} | ({"MiB": 5} if wanted.memory else {})
    for other in yardsticks:
        kinds = ("forward", "both", "memory") if wanted.memory else ("forward", "both")
        titles |= {f"{kind} vs {other}": 0 for kind in kinds}
    titles |= {"extra forward %": 0, "extra both %": 0} if wanted.extra else {}
    return titles | ({"repeats": 0} if wanted.repeatable else {})


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
