"""Which images and classes of a data set the names in COCO annotations mean."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from utils.base.config import ClassNames

Id = int | str


def text_of(value: Any) -> str:
    """A name as it may be compared: composed letters, no spaces around it."""
    return unicodedata.normalize("NFC", str(value)).strip()


def order(key: Id) -> tuple[bool, int, str]:
    """Numbers by size, also those written as text, then other text."""
    is_number = isinstance(key, int) or key.isdecimal()
    return not is_number, int(key) if is_number else 0, str(key)


def without(items: Iterable[Any], others: Container[Any]) -> Iterator[Any]:
    """The items that are not among the others."""
    return (item for item in items if item not in others)


def match_names(categories: Mapping[Id, str], names: Sequence[str]) -> dict[Id, int]:
    """Category id -> class, by the name as it stands, else by what is left of it without case and spacing."""
    classes = ClassNames(names)
    kinds = {key: classes.find(name) for key, name in categories.items()}
    return {key: kind for key, kind in kinds.items() if kind is not None}


def match_images(entries: Mapping[Id, str], images: Sequence[str | int]) -> dict[str | int, Id]:
    """The id of each image that the entries (id -> file_name) have: by name, else without case or ending, or by number.

    Folders, with either kind of slash, decide between images of one name; where they do not, none is taken. A number
    that no name has is an id.
    """
    found: dict[str | int, Id] = {}
    for tier in (_place, _name, _folded_name, _folded_stem, _number):
        index = _index(entries.items(), tier, set(found.values()))
        claims: dict[Id, list[tuple[str | int, str]]] = defaultdict(list)
        for image in without(images, found.copy()):
            best = _nearest(str(image), index.get(tier(str(image)), ()))
            claims[best].append((image, str(image)))
        for key in without(claims, [None]):
            if (winner := _nearest(entries[key], claims[key])) is not None:
                found[winner] = key
    free = entries.keys() - found.values()
    found |= {image: image for image in without(images, found.copy()) if image in free}
    return {image: found[image] for image in images if image in found}


def _index(
    entries: Iterable[tuple[Id, str]], tier: Callable[[str], Any], taken: set[Id]
) -> dict[Any, list[tuple[Id, str]]]:
    """The entries that are not taken, by what the tier makes of their names."""
    index: dict[Any, list[tuple[Id, str]]] = defaultdict(list)
    for key, name in entries:
        if key not in taken and (place := tier(name)) not in ("", None):
            index[place].append((key, name))
    return index


def _parts(path: str) -> list[str]:
    return [part for part in text_of(path).replace("\\", "/").split("/") if part not in ("", ".")] or [""]


def _place(path: str) -> tuple[str, ...] | None:
    """The name with two folders: in large sets hundreds of images share a name, which are compared one by one below."""
    parts = _parts(path)
    return tuple(parts[-3:]) if len(parts) > 2 else None


def _name(path: str) -> str:
    return _parts(path)[-1]


def _folded_name(path: str) -> str:
    return _name(path).casefold()


def _folded_stem(path: str) -> str:
    return os.path.splitext(_folded_name(path))[0]


def _number(path: str) -> int | None:
    stem = _folded_stem(path)
    return int(stem) if stem.isdecimal() else None


def _nearest(path: str, candidates: Sequence[tuple[Any, str]]) -> Any:
    """The one of the candidates (key, path) that shares the most last folders with `path`; None where several do."""
    if not candidates:
        return None
    wanted = [part.casefold() for part in _parts(path)[-2::-1]]
    shared = []
    for _, other in candidates:
        folders = [part.casefold() for part in _parts(other)[-2::-1]]
        same = [one == two for one, two in zip(wanted, folders, strict=False)]
        shared.append([*same, False].index(False))
    return candidates[int(np.argmax(shared))][0] if shared.count(max(shared)) == 1 else None
