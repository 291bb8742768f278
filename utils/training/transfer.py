"""Carry trained weights into another network by what layers mean, not by the numbers they happen to have.

Layers of donor and receiver are aligned as two sequences, as diff aligns lines: rows put in or taken out shift the
numbers of all that follow and change nothing else. In the head, levels go by stride and classes by name. The models are
`models.yolo.Model`s, which this layer knows only by their attributes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.base.files import folded
from utils.base.networks import started_at_zero

_KEY = re.compile(r"((?:.*\.)?model)\.(\d+)\.(.+)")  # what precedes it, number of the layer, name inside the layer
FED_ALIKE = 0.5  # of an element: settles ties between layers that look the same, and nothing else


@dataclass(slots=True)
class Layer:
    """What decides whether a layer means the same as one of another network: its class, `stride` in pixels per cell,
    `feeds` the kinds and strides of the layers whose outputs it takes, its tensors by their names inside the layer, and
    which of them are `added`, made for a sum: where the output replaces the input, the same numbers mean another thing.
    """

    index: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    stride: float | None = None
    feeds: tuple[Any, ...] = ()
    added: Collection[str] = ()
    kind: type | None = None


@dataclass(slots=True)
class Transfer:
    """What a receiver takes over: `state` by its own keys, `pairs` of aligned layers (donor, receiver) with how many
    tensors of the receiver's layer were filled and how many it has, and sentences about the head."""

    state: dict[str, Tensor]
    pairs: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # receiver: donor, filled, all
    head: list[str] = field(default_factory=list)


def _related(one: type | None, other: type | None) -> bool:
    return one is None or other is None or issubclass(one, other) or issubclass(other, one)


def carried(donor: Layer, receiver: Layer) -> dict[str, Tensor]:
    """Return the donor's tensors that the receiver has with the same names and shapes, whole units only.

    A unit means something only together, such as a convolution and the batch norm behind it. Layers at different
    strides share nothing: what looks the same there has seen other sizes of things. Nor do classes of which neither is
    a kind of the other.
    """
    other_stride = donor.stride != receiver.stride and None not in (donor.stride, receiver.stride)
    if other_stride or not _related(donor.kind, receiver.kind):
        return {}
    given, taken = (defaultdict[str, dict[str, tuple[torch.Size, bool]]](dict) for _ in range(2))
    for units, layer in ((given, donor), (taken, receiver)):
        for name, tensor in layer.tensors.items():
            units[".".join(name.split(".")[:-2])][name] = tensor.shape, name in layer.added
    same = [unit for place, unit in taken.items() if given.get(place) == unit]
    return {name: donor.tensors[name] for unit in same for name in unit}


def align(donor: Sequence[Layer], receiver: Sequence[Layer]) -> list[tuple[Layer, Layer, dict[str, Tensor]]]:
    """Pair layers in order so that as many numbers as possible are carried; pairs that carry none are left out.

    The longest common subsequence of two sequences (https://doi.org/10.1145/360825.360861), weighted by elements.
    """
    fits = [[carried(old, new) for new in receiver] for old in donor]
    worth = np.zeros((len(donor), len(receiver)))
    best = np.zeros((len(donor) + 1, len(receiver) + 1))  # of what follows layer i and layer j
    for i, j in sorted(np.ndindex(*worth.shape), reverse=True):
        if fits[i][j]:
            worth[i, j] = sum(map(Tensor.numel, fits[i][j].values())) + FED_ALIKE * (
                donor[i].feeds == receiver[j].feeds
            )
        best[i, j] = max(best[i + 1, j], best[i, j + 1], best[i + 1, j + 1] + worth[i, j])
    pairs, i, j = [], 0, 0
    while i < len(donor) and j < len(receiver):
        if fits[i][j] and best[i, j] == best[i + 1, j + 1] + worth[i, j]:
            pairs.append((donor[i], receiver[j], fits[i][j]))
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return pairs


def _layers_of(state: Mapping[str, Tensor]) -> tuple[str, list[Layer]]:
    """Return what the keys of a detector's state begin with, and its layers; no layers for any other state."""
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
    layered = {f"{old}.{layer.index}.{name}" for layer in given for name in layer.tensors}
    found = {
        key: value
        for key, value in wanted.items()
        if key not in layered and key in there and value.shape == there[key].shape
    }
    for _, receiver, tensors in align(given, taken):
        found |= {f"{new}.{receiver.index}.{name}": tensor for name, tensor in tensors.items()}
    return {key: value for key, value in found.items() if not any(part in key for part in exclude)}


# --------------------------------------------------------------------------------------------------- two models
def _kind(layer: Any) -> str:
    return layer.type.rpartition(".")[2]


def _model_layers(model: Any) -> list[Layer]:
    """Return all layers but the head, with strides and feeds as the model found them when it was built."""
    strides = [shape and shape[1] for shape in model.layer_maps]
    described = [(_kind(row), stride) for row, stride in zip(model.model, strides, strict=True)]
    layers = []
    for row in model.model[:-1]:
        sources = row.f if isinstance(row.f, list) else [row.f]
        feeds = tuple(described[row.i - 1 if source == -1 else source] if row.i else "image" for source in sources)
        added = {f"{name}.{part}".lstrip(".") for name, of in started_at_zero(row).items() for part in of.state_dict()}
        layers.append(Layer(row.i, row.state_dict(), strides[row.i], feeds, added, type(row)))
    return layers


def _source(model: Any, row: Any) -> Any:
    """Return the layer whose output a row takes; None where it joins several, or takes the image."""
    if isinstance(row.f, list) or not row.i:
        return None
    return model.model[row.f if row.f >= 0 else row.i - 1]


def _keeps_shape(model: Any, row: Any) -> bool:
    source = _source(model, row)
    return source is not None and model.layer_maps[source.i] == model.layer_maps[row.i] is not None


def _fed_alike(models: Sequence[Any], rows: Sequence[Any], aligned: Sequence[Collection[int]]) -> bool:
    """Return whether a donor's and a receiver's row both work on one layer's output, or on as many joined maps.

    Layers before them that only one of the two has and that keep the shape of their map, such as attention that was put
    in, are looked through.
    """
    feeds = [_source(model, row) for model, row in zip(models, rows, strict=True)]
    while all(feeds) and _kind(feeds[0]) != _kind(feeds[1]):
        extra = [n for n in (1, 0) if feeds[n].i not in aligned[n] and _keeps_shape(models[n], feeds[n])]
        if not extra:
            break
        feeds[extra[0]] = _source(models[extra[0]], feeds[extra[0]])
    joined = [len(feed.f) if feed is not None and isinstance(feed.f, list) else 1 for feed in feeds]
    return joined[0] == joined[1]


def transfer(donor: Any, receiver: Any, names: Sequence[str], keep_anchors: bool = False) -> Transfer:
    """Find what of a trained detector's weights the receiver, which will know the classes `names`, can take over.

    Both are `models.yolo.Model`s that end in a `Detect` head. Boxes and objectness of the head go level by level, by
    stride; classes go by name: the same text first, then the same but for case, blanks, `-` and `_`. With
    `keep_anchors` the receiver's anchors stay. Nothing is copied: load `state` with `strict=False`.
    """
    found = Transfer({})
    pairs = align(_model_layers(donor), _model_layers(receiver))
    known = {old.index for old, _, _ in pairs}, {new.index for _, new, _ in pairs}
    for old, new, tensors in pairs:
        if _fed_alike((donor, receiver), (donor.model[old.index], receiver.model[new.index]), known):
            found.pairs[new.index] = (old.index, len(tensors), len(new.tensors))
            found.state |= {f"model.{new.index}.{name}": tensor for name, tensor in tensors.items()}
    classes = match_names(donor.names, names)
    head, found.head = _transfer_head(donor.model[-1], receiver.model[-1], classes, list(names), keep_anchors)
    found.state |= {f"model.{receiver.model[-1].i}.{name}": tensor for name, tensor in head.items()}
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


def _transfer_head(
    old: Any, new: Any, classes: Mapping[int, int], names: list[str], keep_anchors: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state of the receiver's head and sentences about it.

    A level is taken from the donor's at the same stride, as wide, and with as many anchors.
    """
    levels, strides = _match_levels(old, new), [f"{stride:g}" for stride in new.stride.tolist()]
    if not levels:
        return {}, ["head: starts fresh (no level of the same stride, width and number of anchors)"]
    state = _head_rows(old, new, levels, classes)
    if not keep_anchors:
        state["anchors"] = new.anchors.clone()
        state["anchors"][[*levels]] = old.anchors[[*levels.values()]].to(new.anchors)
    kept = _listed(" at stride", [strides[level] for level in levels])
    fresh = _listed("; fresh at stride", [strides[level] for level in range(new.nl) if level not in levels])
    known = _listed(":", [names[number] for number in classes])
    others = _listed("; fresh:", [name for number, name in enumerate(names) if number not in classes])
    return state, [
        f"head: boxes kept{kept}{fresh}",
        f"head: {len(classes)} of {len(names)} classes kept{known}{others}",
        "anchors: those of the model description" if keep_anchors else f"anchors: those of the weights{kept}",
    ]


def _head_rows(old: Any, new: Any, levels: Mapping[int, int], classes: Mapping[int, int]) -> dict[str, Tensor]:
    """Return weights and biases of these levels: x, y, w, h, objectness and known classes are the donor's.

    Other classes start as from scratch: from the mean of the known ones they learnt more slowly (docs/results.md).
    """
    here, there = ([*range(5), *(5 + number for number in numbers)] for numbers in (classes, classes.values()))
    state = {}
    for level, source in levels.items():
        for name, mine in new.m[level].named_parameters():
            given = old.m[source].get_parameter(name).detach().to(mine).unflatten(0, (new.na, -1))
            rows = mine.detach().clone().unflatten(0, (new.na, -1))
            rows[:, here] = given[:, there]
            state[f"m.{level}.{name}"] = rows.flatten(0, 1)
    return state


def _match_levels(old: Any, new: Any) -> dict[int, int]:
    """Return the donor's level for each of the receiver's at the same stride, as wide, and with as many anchors."""
    theirs = {stride: level for level, stride in enumerate(old.stride.tolist())}
    pairs = {level: theirs[stride] for level, stride in enumerate(new.stride.tolist()) if stride in theirs}
    return {
        level: source
        for level, source in pairs.items()
        if old.na == new.na and old.m[source].weight.shape[1:] == new.m[level].weight.shape[1:]
    }


def _listed(title: str, items: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(items) - limit} more" * (len(items) > limit)
    return f"{title} {', '.join(items[:limit])}{more}" if items else ""


def _fresh_parts(found: Transfer, row: Any) -> str:
    """Say what of a layer got nothing, by the shortest names that nothing else has; nothing for a whole layer."""
    names = list(row.state_dict())
    kept = [f"{name}." for name in names if f"model.{row.i}.{name}" in found.state]
    parts: dict[str, None] = {}
    for name in (name for name in names if f"{name}." not in kept):
        prefixes = accumulate(name.split("."), "{}.{}".format)
        parts[next(part for part in prefixes if not any(other.startswith(f"{part}.") for other in kept))] = None
    return f" ({_kind(row)}, fresh: {', '.join(parts)})" if parts else ""


def report(found: Transfer, receiver: Any) -> list[str]:
    """Return the lines that say what came from where and what starts fresh; layers that moved together share one."""
    fresh = [row for row in receiver.model[:-1] if row.i not in found.pairs and row.state_dict()]

    def block(pair: tuple[int, tuple[int, int, int]]) -> tuple[int, int, int | None]:
        """Return what layers of one line have in common: the shift, no fresh one between them, and being whole."""
        index, (source, filled, everything) = pair
        return index - source, sum(row.i < index for row in fresh), None if filled == everything else index

    lines = []
    for (shift, _, _), pairs in groupby(sorted(found.pairs.items()), block):
        first, *rest = (index for index, _ in pairs)
        end = f"{rest[-1]} from {first - shift}-{rest[-1] - shift}" if rest else ""
        moved = f"layers {first}-{end}" if rest else f"layer {first} from {first - shift}"
        lines.append(moved + _fresh_parts(found, receiver.model[first]))
    if fresh:
        kinds = [f"{row.i} {_kind(row)}{' (adds nothing yet)' * bool(started_at_zero(row))}" for row in fresh]
        lines.append(f"fresh: layers {', '.join(kinds)}")
    return lines + found.head
