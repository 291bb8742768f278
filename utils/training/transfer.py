"""Carry trained weights into another network by what layers mean, not by the numbers they happen to have.

Layers of donor and receiver are aligned as two sequences, as diff aligns lines: rows put in or taken out shift the
numbers of all that follow and change nothing else. In the head, levels go by stride and classes by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from utils.base.files import folded

_KEY = re.compile(r"((?:.*\.)?model)\.(\d+)\.(.+)")  # what precedes it, number of the layer, name inside the layer
FED_ALIKE = 0.5  # of an element: settles ties between layers that look the same, and nothing else


@dataclass(slots=True)
class Layer:
    """What decides whether a layer means the same as one of another network: `stride` in pixels per cell, `feeds` the
    kinds and strides of the layers whose outputs it takes, and its tensors by their names inside the layer."""

    index: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    stride: float | None = None
    feeds: tuple[Any, ...] = ()


@dataclass(slots=True)
class Transfer:
    """What a receiver takes over: `state` by its own keys, `pairs` of aligned layers (donor, receiver) with how many
    tensors of the receiver's layer were filled and how many it has, and sentences about the head."""

    state: dict[str, Tensor]
    pairs: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # receiver: donor, filled, all
    head: list[str] = field(default_factory=list)


# ----------------------------------------------------------------------------------------------------- aligning
def _units(layer: Layer) -> dict[str, dict[str, Tensor]]:
    """Tensors that mean something only together, such as a convolution and the batch norm behind it, by their place."""
    units: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in layer.tensors.items():
        units[".".join(name.split(".")[:-2])][name] = tensor
    return units


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def carried(donor: Layer, receiver: Layer) -> dict[str, Tensor]:
    """Return the donor's tensors that the receiver has with the same names and shapes, whole units only.

    Layers at different strides share nothing: what looks the same there has seen other sizes of things.
    """
    if donor.stride != receiver.stride and None not in (donor.stride, receiver.stride):
        return {}
    given, taken = _units(donor), _units(receiver)
    same = [place for place in taken if place in given and _shapes(given[place]) == _shapes(taken[place])]
    return {name: tensor for place in same for name, tensor in given[place].items()}


def align(donor: Sequence[Layer], receiver: Sequence[Layer]) -> list[tuple[Layer, Layer, dict[str, Tensor]]]:
    """Pair layers in order so that as many numbers as possible are carried; pairs that carry none are left out.

    The longest common subsequence of two sequences (https://doi.org/10.1145/360825.360861), weighted by elements.
    """
    fits = [[carried(old, new) for new in receiver] for old in donor]
    best = [[0.0] * (len(receiver) + 1) for _ in range(len(donor) + 1)]  # of what follows layer i and layer j
    for i in reversed(range(len(donor))):
        for j in reversed(range(len(receiver))):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], best[i + 1][j + 1] + _worth(donor, receiver, fits, i, j))
    pairs, i, j = [], 0, 0
    while i < len(donor) and j < len(receiver):
        if fits[i][j] and best[i][j] == best[i + 1][j + 1] + _worth(donor, receiver, fits, i, j):
            pairs.append((donor[i], receiver[j], fits[i][j]))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs


def _worth(donor: Sequence[Layer], receiver: Sequence[Layer], fits: Sequence[Any], i: int, j: int) -> float:
    elements = sum(tensor.numel() for tensor in fits[i][j].values())
    return elements + FED_ALIKE * (donor[i].feeds == receiver[j].feeds) if elements else 0.0


# ------------------------------------------------------------------------------------------------- states alone
def _layers_of(state: Mapping[str, Tensor]) -> tuple[str, list[Layer]]:
    """The layers of a detector's state and what their keys begin with; no layers for any other state."""
    layers: dict[int, Layer] = {}
    found = [match for match in map(_KEY.fullmatch, state) if match]
    prefix = min((match[1] for match in found), key=len, default="")
    for match in found:
        if match[1] == prefix:
            layer = layers.setdefault(int(match[2]), Layer(int(match[2])))
            layer.tensors[match[3]] = state[match[0]]
    return prefix, [layers[index] for index in sorted(layers)]


def intersect_dicts(
    wanted: Mapping[str, Tensor], there: Mapping[str, Tensor], exclude: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return what of `wanted` fits into `there`, by the keys of `there`; none whose key contains a part in `exclude`.

    In states of detectors (`model.0.conv.weight` ...) the layers are aligned first, so that layers put in or taken out
    do not matter; of other entries those with the same key and shape are returned.
    """
    (old, given), (new, taken) = _layers_of(wanted), _layers_of(there)
    aligned = {
        f"{new}.{receiver.index}.{name}": tensor
        for _, receiver, tensors in align(given, taken)
        for name, tensor in tensors.items()
    }
    layered = {f"{old}.{layer.index}.{name}" for layer in given for name in layer.tensors}
    plain = {
        key: value
        for key, value in wanted.items()
        if key not in layered and key in there and value.shape == there[key].shape
    }
    return {key: value for key, value in (plain | aligned).items() if not any(part in key for part in exclude)}


# --------------------------------------------------------------------------------------------------- two models
def _model_layers(model: nn.Module) -> list[Layer]:
    """All layers but the head, with strides and feeds as the model found them when it was built."""
    strides = model.layer_strides
    described = [(_kind(row), stride) for row, stride in zip(model.model, strides, strict=True)]
    layers = []
    for row in model.model[:-1]:
        sources = row.f if isinstance(row.f, list) else [row.f]
        feeds = tuple(described[row.i - 1 if source == -1 else source] if row.i else "image" for source in sources)
        layers.append(Layer(row.i, row.state_dict(), strides[row.i], feeds))
    return layers


def _source(model: nn.Module, row: nn.Module) -> nn.Module | None:
    """The layer whose output a row takes; None where it joins several, or takes the image."""
    if isinstance(row.f, list) or not row.i:
        return None
    return model.model[row.f if row.f >= 0 else row.i - 1]


def _fed_alike(models: Sequence[nn.Module], rows: Sequence[nn.Module], aligned: Sequence[Collection[int]]) -> bool:
    """Whether a donor's and a receiver's row both work on one layer's output, or on as many joined maps.

    Layers before them that only one of the two has, such as attention that was put in, are looked through.
    """
    feeds = [_source(model, row) for model, row in zip(models, rows, strict=True)]
    while all(feeds) and _kind(feeds[0]) != _kind(feeds[1]):
        extra = [n for n in (1, 0) if feeds[n].i not in aligned[n] and _source(models[n], feeds[n])]
        if not extra:
            break
        feeds[extra[0]] = _source(models[extra[0]], feeds[extra[0]])
    joined = [len(feed.f) if feed is not None and isinstance(feed.f, list) else 1 for feed in feeds]
    return joined[0] == joined[1]


def transfer(donor: nn.Module, receiver: nn.Module, names: Sequence[str], keep_anchors: bool = False) -> Transfer:
    """Find what of a trained detector's weights the receiver, which will know the classes `names`, can take over.

    Both are `models.yolo.Model`s that end in a `Detect` head. Boxes and objectness of the head go level by level, by
    stride; classes go by name: the same text first, then the same but for case, blanks, `-` and `_`. With
    `keep_anchors` the receiver's anchors stay. Nothing is copied: load `state` with `strict=False`.
    """
    found = Transfer({})
    pairs = align(_model_layers(donor), _model_layers(receiver))
    known = {old.index for old, _, _ in pairs}, {new.index for _, new, _ in pairs}
    for old, new, tensors in pairs:
        if not _fed_alike((donor, receiver), (donor.model[old.index], receiver.model[new.index]), known):
            continue  # of the same shape, but for another place
        found.pairs[new.index] = (old.index, len(tensors), len(new.tensors))
        found.state.update({f"model.{new.index}.{name}": tensor for name, tensor in tensors.items()})
    old, new = donor.model[-1], receiver.model[-1]
    classes = match_names(donor.names, names)
    levels = _match_levels(old, new)
    head = _head_state(old, new, levels, classes)
    if levels and not keep_anchors:
        head["anchors"] = new.anchors.clone()
        for there, here in levels.items():
            head["anchors"][there] = old.anchors[here].to(new.anchors)
    found.state.update({f"model.{new.i}.{name}": tensor for name, tensor in head.items()})
    found.head = _about_head(new, levels, classes, list(names), "anchors" in head)
    return found


def match_names(donor: Sequence[str], receiver: Sequence[str]) -> dict[int, int]:
    """Return the donor's class for each of the receiver's that it knows: of the same name, else of nearly the same one.

    A name that several of the donor's classes nearly have stands for none of them.
    """
    exact: dict[str, int] = {}
    near: dict[str, int | None] = {}
    for number, name in enumerate(map(str, donor)):
        exact.setdefault(name, number)
        near[folded(name)] = None if folded(name) in near else number
    found = {number: exact.get(name, near.get(folded(name))) for number, name in enumerate(map(str, receiver))}
    return {number: old for number, old in found.items() if old is not None}


def _match_levels(old: nn.Module, new: nn.Module) -> dict[int, int]:
    """The donor's level for each of the receiver's at the same stride, as wide, and with as many anchors."""
    if old.na != new.na:
        return {}
    strides = old.stride.tolist()
    found = {there: strides.index(stride) for there, stride in enumerate(new.stride.tolist()) if stride in strides}
    return {
        there: here for there, here in found.items() if old.m[here].weight.shape[1:] == new.m[there].weight.shape[1:]
    }


def _head_state(
    old: nn.Module, new: nn.Module, levels: Mapping[int, int], classes: Mapping[int, int]
) -> dict[str, Tensor]:
    """Weights and biases of the receiver's levels: x, y, w, h, objectness and known classes are the donor's."""
    here = torch.tensor([*range(5), *(5 + number for number in classes)])
    there = torch.tensor([*range(5), *(5 + number for number in classes.values())])
    state = {}
    for level, source in levels.items():
        for name in ("weight", "bias"):
            mine, theirs = getattr(new.m[level], name).detach(), getattr(old.m[source], name).detach()
            rows = mine.clone().unflatten(0, (new.na, new.no))
            rows[:, here.to(mine.device)] = theirs.unflatten(0, (old.na, old.no))[:, there.to(theirs.device)].to(rows)
            state[f"m.{level}.{name}"] = rows.flatten(0, 1)
    return state


# ------------------------------------------------------------------------------------------------- in words
def _about_head(
    head: nn.Module, levels: Mapping[int, int], classes: Mapping[int, int], names: list[str], anchors: bool
) -> list[str]:
    if not levels:
        return ["head: starts fresh (no level of the same stride, width and number of anchors)"]
    strides = ", ".join(f"{head.stride[level].item():g}" for level in levels)
    fresh = [f"{stride:g}" for level, stride in enumerate(head.stride.tolist()) if level not in levels]
    kept, new = [names[number] for number in classes], [name for n, name in enumerate(names) if n not in classes]
    lines = [f"head: boxes kept at stride {strides}" + f"; fresh at stride {', '.join(fresh)}" * bool(fresh)]
    lines.append(
        f"head: {len(kept)} of {len(names)} classes kept"
        + f": {_some(kept)}" * bool(kept)
        + f"; fresh: {_some(new)}" * bool(new)
    )
    lines.append(f"anchors: {'those of the weights' if anchors else 'those of the model description'}")
    return lines


def _some(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + f" and {len(names) - limit} more" * (len(names) > limit)


def report(found: Transfer, receiver: nn.Module) -> list[str]:
    """Return the lines that say what came from where and what starts fresh; layers that moved together share one."""
    runs: list[list[tuple[int, int, bool]]] = []  # of (receiver's layer, donor's layer, whole)
    for index, (source, filled, everything) in sorted(found.pairs.items()):
        pair = (index, source, filled == everything)
        if runs and _goes_on(runs[-1][-1], pair, receiver):
            runs[-1].append(pair)
        else:
            runs.append([pair])
    lines = []
    for run in runs:
        (first, source, whole), (last, source_end, _) = run[0], run[-1]
        moved = f"layers {first}-{last} from {source}-{source_end}" if len(run) > 1 else f"layer {first} from {source}"
        lines.append(moved + f" ({_kind(receiver.model[first])}, in part)" * (not whole))
    fresh = [row for row in receiver.model[:-1] if row.i not in found.pairs and row.state_dict()]
    if fresh:
        lines.append("fresh: layers " + ", ".join(f"{row.i} {_kind(row)}" for row in fresh))
    return lines + found.head


def _kind(layer: nn.Module) -> str:
    return layer.type.rpartition(".")[2]


def _goes_on(last: tuple[int, int, bool], pair: tuple[int, int, bool], receiver: nn.Module) -> bool:
    """Whether nothing but layers without weights lies between two pairs, as many of them here as there."""
    (here, there, whole), (index, source, also) = last, pair
    if not whole or not also or index - here != source - there:
        return False
    return not any(receiver.model[between].state_dict() for between in range(here + 1, index))
