"""COCO's JSON as people write it: ids as numbers or text, boxes or outlines or run-length masks, sizes left out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.base.config import ClassNames
from utils.base.files import printable
from utils.base.log import LOGGER
from utils.prepare.label_formats import (
    NONSENSE,
    DropCounts,
    Rows,
    Size,
    box_rows,
    is_size,
    naming,
    polygon_row,
    read_json,
)

Box = tuple[float, float, float, float]


@dataclass
class CocoReader:
    """Reads COCO files; what it cannot keep is counted in `counts`.

    Categories become classes by name, or by the order of their ids when `classes` is None. `polygons` writes the
    outline of objects made of one piece; `crowds` keeps those marked iscrowd. `size_of` gives the (w, h) of an image by
    its file_name: taken where the file does not say, compared where it does.
    """

    classes: ClassNames | None = None
    polygons: bool = False
    crowds: bool = False
    digits: int = 6
    counts: DropCounts = field(default_factory=DropCounts)
    size_of: Callable[[str], Size | None] = lambda _: None

    def rows(self, path: str | Path) -> Rows:
        """Return the rows of every image of a file, in its order; images without objects have none.

        Images with boxes whose size is not known are left out. Raises ValueError for another kind of file.
        """
        content = read_json(path)
        with naming(path, "a COCO detection file"):
            for key in ("images", "categories", "annotations"):
                if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
                    raise ValueError(f"it has no list of {key}; export as COCO with images, categories and annotations")
            names, sizes = self._images(content["images"])
            classes = self._classes(content["categories"], content["annotations"])
            rows: Rows = {name: [] for name in names.values()}
            for number, note in enumerate(content["annotations"]):
                name, where = names.get(_id(note.get("image_id"))), f"{note.get('id', f'no. {number}')!s:.40}"
                if name is None:
                    reason = "of an image_id that is not among its images"
                    self.counts.drop(reason, f"image_id {note.get('image_id')!r:.40}")
                    continue
                kind = self._class(note, classes)
                if isinstance(kind, int) and name not in sizes:
                    sizes[name] = self.size_of(name)
                rows[name] += self._rows(note, kind, sizes.get(name), f"annotation {where} of {name}")
        return {name: found for name, found in rows.items() if name not in sizes or is_size(sizes[name])}

    def _images(self, images: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, Size | None]]:
        """Return id -> file_name; and file_name -> size, where the file says it."""
        names: dict[str, str] = {}
        sizes: dict[str, Size | None] = {}
        for image in images:
            key, name = _id(image.get("id")), image.get("file_name")
            if not key or not isinstance(name, str):
                raise ValueError(f"an image has the id {image.get('id')!r:.40} and the file_name {name!r:.40}; add it")
            if names.setdefault(key, name) != name:
                raise ValueError(f"id {key} belongs to two images, {names[key]!r:.80} and {name!r:.80}; renumber one")
            if name in sizes:
                self.counts.remark("images are listed twice; their annotations were put together", name)
            size = _numbers((image.get("width"), image.get("height")))
            if is_size(size) and sizes.setdefault(name, size) is size:
                self.counts.check_size(size, self.size_of(name), name)
        return names, sizes

    def _classes(self, categories: Sequence[Mapping[str, Any]], notes: Sequence[Any]) -> dict[str, int | str]:
        """Return category id -> class, or why the category has none."""
        names: dict[str, str] = {}
        for category in categories:
            key, name = _id(category["id"]), str(category.get("name", ""))
            if not key or names.setdefault(key, name) != name:
                raise ValueError(f"category id {category['id']!r:.40} is no id, or belongs to two names; renumber it")
        if (classes := self.classes) is not None:
            return {
                key: classes.unlisted(name) if (kind := classes.find(name)) is None else kind
                for key, name in names.items()
            }
        for key in _groups(categories) - {_id(note.get("category_id")) for note in notes}:
            LOGGER.warning(f"category {key} ({printable(names.pop(key))}) is a group of others without boxes: no class")
        ordered = sorted(names, key=lambda key: (not key.isdecimal(), key.zfill(20)))  # numbers by their size
        LOGGER.info(f"classes by category id: {json.dumps([names[key] for key in ordered], ensure_ascii=False)}")
        return dict(zip(ordered, range(len(ordered)), strict=True))

    def _class(self, note: Mapping[str, Any], classes: Mapping[str, int | str]) -> int | str:
        """Return an annotation's class, or why it has none."""
        category = note.get("category_id")
        kind = classes.get(_id(category), f"of category_id {category!r:.40}, which is not among its categories")
        if isinstance(kind, int) and not self.crowds and str(note.get("iscrowd")).lower() in ("1", "1.0", "true"):
            return "marked iscrowd; convert with crowds=True to keep them"
        return kind

    def _rows(self, note: Mapping[str, Any], kind: int | str, size: Size | None, where: str) -> list[str]:
        """Return the row of an annotation of this class (or without one, for this reason), or count it."""
        if isinstance(kind, str):
            self.counts.drop(kind, where)
        elif not is_size(size):
            reason = "of an image whose width and height are not known; write them into the file, or put"
            self.counts.drop(f"{reason} the image where train.py looks for it", where)
        else:
            pieces = _polygons(note.get("segmentation")) if self.polygons else []
            if len(pieces) == 1 and (row := polygon_row(kind, pieces[0], size, self.digits)):
                return [row]
            if box := box_of(note):
                x, y, width, height = box
                rows = box_rows(self.counts, kind, (x, y, x + width, y + height), size, where, self.digits)
                if rows and self.polygons:
                    self.counts.remark("objects have no outline of one piece; their boxes are written", where)
                return rows
            self.counts.drop("without a bbox or an outline that can be read", where)
        return []


def _groups(categories: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return ids of categories that only gather others, as Roboflow writes one for the whole project."""
    parents = {category.get("supercategory") or None for category in categories} - {None}
    tops = [category for category in categories if category.get("supercategory") in (None, "", "none")]
    return {_id(category["id"]) for category in tops if category.get("name") in parents}


def _id(value: Any) -> str:
    """Return an id in one form, whether it was written as a number or as text; nothing for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip()) if type(value) in (int, str) else ""


def _numbers(values: Sequence[Any]) -> tuple[float, ...] | None:
    """Return numbers, written as such or as text; None where one is neither."""
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return None


def box_of(note: Mapping[str, Any]) -> Box | None:
    """Return (x, y, width, height) of an annotation: its bbox, or of its outline where that has no area.

    The numbers are as they were written, with sides below 0 where corners were swapped; None where there is neither.
    """
    value = note.get("bbox")
    if isinstance(value, str):
        value = re.split(r"[\s,;]+", value.strip(" []()"))
    numbers = _numbers(value) if isinstance(value, list) and len(value) == 4 else None
    box = (numbers[0], numbers[1], numbers[2], numbers[3]) if numbers else None
    if box and box[2] and box[3] and math.isfinite(sum(box)):
        return box
    return _outline_box(note.get("segmentation")) or box


def _outline_box(outline: Any) -> Box | None:
    """Return (x, y, width, height) around polygons or a run-length mask; None where there is neither."""
    if isinstance(outline, Mapping):
        return _mask_box(outline)
    if not (pieces := [piece for piece in _polygons(outline) if len(piece)]):
        return None
    (x1, y1), (x2, y2) = np.concatenate(pieces).min(0).tolist(), np.concatenate(pieces).max(0).tolist()
    return x1, y1, x2 - x1, y2 - y1


def _polygons(outline: Any) -> list[np.ndarray]:
    """Return the polygons (n, 2) of a segmentation: a list of lists x, y, x, y ..., or one such list."""
    try:
        pieces = outline if isinstance(outline[0], list) else [outline]
        return [np.asarray(piece, dtype=float).reshape(-1, 2) for piece in pieces] if type(outline) is list else []
    except NONSENSE:
        return []


def _mask_box(mask: Mapping[str, Any]) -> Box | None:
    """Return (x, y, width, height) around a mask `{"size": [h, w], "counts": runs}`, None where it is none.

    Its runs of 0 and 1 in turn go down column after column.
    """
    try:
        counts, (height, width) = mask["counts"], map(float, mask["size"])
        runs = np.asarray(_unpacked(counts) if isinstance(counts, str) else counts, dtype=float)
        sound = height >= 1 and bool((runs >= 0).all()) and runs.sum() <= min(height * width, 1 << 53)
        ends = np.cumsum(runs)
        filled = runs[1::2] > 0
        first, last = (ends - runs)[1::2][filled], ends[1::2][filled] - 1
    except NONSENSE:
        return None
    if not sound or not len(first):
        return None
    left, right = float((first // height).min()), float((last // height).max())
    if (first // height < last // height).any():  # such a run has the foot of one column and the head of the next
        return left, 0.0, right + 1 - left, height
    top = float((first % height).min())
    return left, top, right + 1 - left, float((last % height).max()) + 1 - top


def _unpacked(text: str) -> list[int]:
    """Return the runs of COCO's compressed form: five bits a character from '0', low ones first.

    From the fourth run on, what is written is added to the run two before.
    """
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
