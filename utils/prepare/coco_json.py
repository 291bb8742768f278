"""COCO's JSON as people write it: ids as numbers or text, boxes or outlines or run-length masks, sizes left out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.base.config import ClassNames, Names
from utils.base.files import printable
from utils.base.log import LOGGER
from utils.prepare.label_formats import NONSENSE, Rows, Size, boxed, check_size, is_size, polygon_row, read_json, told
from utils.prepare.tally import Tally

FORM = "a COCO detection file"
_REMEDY = "; export as COCO with images, categories and annotations"


def no_size(_: str) -> Size | None:
    """Where no image is at hand, its size is not known."""
    return None


@dataclass
class CocoReader:
    """Reads COCO files; what it cannot keep is counted in `tally`.

    Categories become classes by name, or by the order of their ids when `names` is None. `polygons` writes the outline
    of objects made of one piece; `crowds` keeps those marked iscrowd. `size_of` gives the (w, h) of an image by its
    file_name: taken where the file does not say, compared where it does.
    """

    names: Names | None = None
    polygons: bool = False
    crowds: bool = False
    digits: int = 6
    tally: Tally = field(default_factory=Tally)
    size_of: Callable[[str], Size | None] = no_size

    def __post_init__(self) -> None:
        self.classes = None if self.names is None else ClassNames(self.names)

    def rows(self, path: str | Path) -> Rows:
        """Rows of every image of a file, in its order; images without objects have none.

        Images with boxes whose size is not known are left out. Raises ValueError for another kind of file.
        """
        content = read_json(path)
        with told(path, FORM):
            images, categories, notes = (_list(content, key) for key in ("images", "categories", "annotations"))
            names, sizes = self._images(images)
            for name, size in sizes.items():
                check_size(self.tally, size, self.size_of(name), name)
            kinds = self._kinds(categories, notes)
            rows: Rows = {name: [] for name in names.values()}
            unknown = set()
            for number, note in enumerate(notes):
                name, kind = self._target(note, names, kinds, number)
                if name is None:
                    continue
                if name not in sizes:
                    sizes[name] = self.size_of(name)
                where = f"annotation {_shown_id(note, number)} of {name}"
                if not is_size(sizes[name]):
                    reason = "of an image whose width and height are not known; write them into the file, or put"
                    self.tally.drop(f"{reason} the image where train.py looks for it", where)
                    unknown.add(name)
                else:
                    rows[name] += self._row(note, kind, sizes[name], where)
        return {name: found for name, found in rows.items() if name not in unknown}

    def _images(self, images: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, Size | None]]:
        """id -> file_name; file_name -> size, where the file says it."""
        names: dict[str, str] = {}
        sizes: dict[str, Size | None] = {}
        for image in images:
            key, name = _id(image.get("id")), image.get("file_name")
            if not key or not isinstance(name, str):
                raise ValueError(f"an image has the id {image.get('id')!r:.40} and the file_name {name!r:.40}; add it")
            if names.setdefault(key, name) != name:
                raise ValueError(f"id {key} belongs to two images, {names[key]!r:.80} and {name!r:.80}; renumber one")
            if name in sizes:
                self.tally.remark("images are listed twice; their annotations were put together", name)
            size = _number(image.get("width")), _number(image.get("height"))
            if is_size(size):
                sizes[name] = size
        return names, sizes

    def _kinds(self, categories: Sequence[Mapping[str, Any]], notes: Sequence[Any]) -> dict[str, int | str]:
        """Category id -> class, or why the category has none."""
        found = _category_names(categories)
        if (classes := self.classes) is not None:
            numbers = {key: classes.find(name) for key, name in found.items()}
            return {key: classes.unlisted(found[key]) if kind is None else kind for key, kind in numbers.items()}
        for key in _groups(categories, notes):
            LOGGER.warning(f"category {key} ({printable(found.pop(key))}) is a group of others without boxes: no class")
        ordered = sorted(found, key=lambda key: (not _is_whole(key), int(key) if _is_whole(key) else 0, key))
        LOGGER.info(f"classes by category id: {json.dumps([found[key] for key in ordered], ensure_ascii=False)}")
        return {key: kind for kind, key in enumerate(ordered)}

    def _target(
        self, note: Mapping[str, Any], names: Mapping[str, str], kinds: Mapping[str, int | str], number: int
    ) -> tuple[str | None, int]:
        """(file_name, class) of an annotation; no name where it is dropped, which is counted."""
        name, kind = names.get(_id(note.get("image_id"))), kinds.get(_id(note.get("category_id")))
        where = f"annotation {_shown_id(note, number)} of {name}"
        if name is None:
            self.tally.drop("of an image_id that is not among its images", f"image_id {note.get('image_id')!r:.40}")
        elif kind is None:
            self.tally.drop(f"of category_id {note.get('category_id')!r:.40}, which is not among its categories", where)
        elif isinstance(kind, str):
            self.tally.drop(kind, where)
        elif not self.crowds and str(note.get("iscrowd")).lower() in ("1", "1.0", "true"):
            self.tally.drop("marked iscrowd; convert with crowds=True to keep them", where)
        else:
            return name, kind
        return None, 0

    def _row(self, note: Mapping[str, Any], kind: int, size: Size, where: str) -> list[str]:
        """An annotation's outline if it is wanted and of one piece, else its box."""
        outline = note.get("segmentation")
        if self.polygons and (row := _outline_row(outline, kind, size, self.digits)):
            return [row]
        if (box := box_of(note)) is None:
            self.tally.drop("without a bbox or an outline that can be read", where)
            return []
        x, y, width, height = box
        row = boxed(self.tally, kind, (x, y, x + width, y + height), size, where, self.digits)
        if row and self.polygons:
            self.tally.remark("objects have no outline of one piece; their boxes are written", where)
        return row


def _list(content: Any, key: str) -> Sequence[Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"it is no mapping{_REMEDY}")
    if not isinstance(content.get(key), list):
        raise ValueError(f"it has no list of {key}{_REMEDY}")
    return content[key]


def _id(value: Any) -> str:
    """An id in one form, whether it was written as a number or as text; nothing for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) not in (int, str):
        return ""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip())


def _category_names(categories: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for category in categories:
        key, name = _id(category["id"]), str(category.get("name", ""))
        if not key or found.setdefault(key, name) != name:
            raise ValueError(f"category id {category['id']!r:.40} is no id, or belongs to two names; renumber it")
    return found


def _is_whole(key: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,18}", key) is not None


def _shown_id(note: Mapping[str, Any], number: int) -> Any:
    return str(note.get("id", f"no. {number}"))[:40]


def _groups(categories: Sequence[Mapping[str, Any]], notes: Sequence[Any]) -> list[str]:
    """Ids of categories that only gather others, as Roboflow writes one for the whole project."""
    parents = {category.get("supercategory") for category in categories if category.get("supercategory")}
    used = {_id(note.get("category_id")) for note in notes}
    return [
        key
        for category in categories
        if (key := _id(category["id"])) not in used
        and category.get("name") in parents
        and category.get("supercategory") in (None, "", "none")
    ]


def _number(value: Any) -> float | None:
    """A number, written as one or as text; None for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def box_of(note: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """(x, y, width, height) of an annotation: its bbox, or of its outline where that has no area; None without either.

    The numbers are as they were written: sides below 0 where corners were swapped.
    """
    box = _bbox(note.get("bbox"))
    if box and box[2] and box[3] and math.isfinite(sum(box)):
        return box
    if extent := _extent(note.get("segmentation")):
        x1, y1, x2, y2 = extent
        return x1, y1, x2 - x1, y2 - y1
    return box


def _bbox(value: Any) -> tuple[float, float, float, float] | None:
    """`[x, y, width, height]`, numbers or text; None where there is no such thing."""
    if isinstance(value, str):
        value = re.split(r"[\s,;]+", value.strip(" []()"))
    if not isinstance(value, list) or len(value) != 4:
        return None
    x, y, width, height = map(_number, value)
    return None if None in (x, y, width, height) else (x, y, width, height)


def _pieces(outline: Any) -> Iterator[np.ndarray]:
    """Polygons (n, 2) of a segmentation: a list of lists x, y, x, y ..., or one such list."""
    if isinstance(outline, list) and outline:
        lists = outline if isinstance(outline[0], list) else [outline]
        for piece in lists:
            yield np.asarray(piece, dtype=float).reshape(-1, 2)


def _outline_row(outline: Any, kind: int, size: Size, digits: int) -> str | None:
    try:
        pieces = list(_pieces(outline))
    except NONSENSE:
        return None
    return polygon_row(kind, pieces[0], size, digits) if len(pieces) == 1 else None


def _extent(outline: Any) -> tuple[float, float, float, float] | None:
    """x1, y1, x2, y2 around polygons or a run-length mask; None where there is neither."""
    try:
        if isinstance(outline, Mapping):
            return _mask_extent(outline)
        pieces = [piece for piece in _pieces(outline) if len(piece)]
        points = np.concatenate(pieces)
    except NONSENSE:
        return None
    return (*points.min(0).tolist(), *points.max(0).tolist())


def _mask_extent(mask: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """x1, y1, x2, y2 of a mask `{"size": [h, w], "counts": runs}`: column after column, runs of 0 and 1 in turn."""
    counts, (height, width) = mask["counts"], map(float, mask["size"])
    runs = np.asarray(_unpacked(counts) if isinstance(counts, str) else counts, dtype=float)
    if not height >= 1 or not (runs >= 0).all() or not runs.sum() <= min(height * width, 1 << 53):
        return None
    ends = np.cumsum(runs)
    filled = runs[1::2] > 0
    first, last = (ends - runs)[1::2][filled], ends[1::2][filled] - 1
    if not len(first):
        return None
    columns = first // height, last // height
    several = (columns[0] < columns[1]).any()  # such a run has the foot of one column and the head of the next
    top = 0.0 if several else (first % height).min()
    bottom = height if several else (last % height).max() + 1
    return (float(columns[0].min()), float(top), float(columns[1].max()) + 1, float(bottom))


def _unpacked(text: str) -> list[int]:
    """Runs of COCO's compressed form: five bits a character from '0', low ones first; from the fourth run on, what is
    added to the run two before."""
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("no compressed mask")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
