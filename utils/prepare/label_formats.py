"""Annotations of other people's formats as rows of our label files: DOTA, VisDrone, SKU-110K, Argoverse, xView.

A reader takes the annotations of one image or data set and gives rows; it opens no image and writes nothing. Boxes are
turned the right way round and cut at the image's edges; what is nothing after that, or cannot be read, is counted in
`DropCounts`. COCO's are in `coco_json`, VOC's in `own_data`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from utils.base.config import ClassNames
from utils.base.files import MIB, decoded, printable, read_bytes, replacing
from utils.base.log import LOGGER

MAX_JSON_BYTES = 8192 * MIB  # Objects365 has five
MAX_TEXT_BYTES = 64 * MIB  # of the annotations of one image
MAX_REASONS = 12  # that get a line of their own
MAX_EXAMPLE = 160  # characters
NONSENSE = (  # what reading a file of another form leads to
    KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, csv.Error,
)  # fmt: skip

Rows = dict[str, list[str]]  # rows of each image, by the name that the annotations give it
Size = Sequence[float]  # width and height of an image in pixels

# COCO numbers its 80 classes with images among 90
COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
# xView's numbers of its 60 kinds of object, in the order of our classes
XVIEW_TYPES = (
    *(11, 12, 13, 15, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 32, 33, 34, 35),
    *(36, 37, 38, 40, 41, 42, 44, 45, 47, 49, 50, 51, 52, 53, 54, 55, 56, 57, 59, 60),
    *(61, 62, 63, 64, 65, 66, 71, 72, 73, 74, 76, 77, 79, 83, 84, 86, 89, 91, 93, 94),
)
VISDRONE_OBJECTS = range(1, 11)  # 0 is a region to ignore, 11 "others"


class DropCounts:
    """Boxes that a conversion drops and what else is worth saying, by reason: how many, and the first example."""

    def __init__(self) -> None:
        self.dropped: dict[str, tuple[int, str]] = {}
        self.remarks: dict[str, tuple[int, str]] = {}

    @property
    def total(self) -> int:
        """How many boxes were dropped."""
        return sum(count for count, _ in self.dropped.values())

    def drop(self, reason: str, example: str, count: int = 1) -> None:
        """Count boxes that are not written; `reason` completes "3 boxes dropped: ...", with the remedy."""
        before, first = self.dropped.get(reason, (0, example))
        if count:
            self.dropped[reason] = before + count, first

    def remark(self, what: str, example: str) -> None:
        """Count what is written, but not as it stood; `what` completes "3 ..."."""
        before, first = self.remarks.get(what, (0, example))
        self.remarks[what] = before + 1, first

    def check_size(self, written: Size, found: Size | None, where: str) -> None:
        """Remark that an image on disk has other proportions than its annotations say."""
        if found and abs(written[0] * found[1] - written[1] * found[0]) > 0.02 * written[0] * found[1]:
            sides = f"{where}: {written[0]:g} x {written[1]:g} written, {found[0]} x {found[1]} on disk"
            what = "images have other proportions than written, so boxes may be out of place; were they turned (EXIF)"
            self.remark(f"{what} or cut after annotating?", sides)

    def report(self, source: object, target: object, kept: int, images: int) -> None:
        """Log how many boxes were kept and why others were not: one line, and one more a reason.

        Raises ValueError, with the commonest reasons, where no box at all was kept.
        """
        source, target = printable(str(source)), printable(str(target))
        reasons = sorted(self.dropped.items(), key=lambda item: -item[1][0])
        counted = [(f"{count} dropped: {reason}", first) for reason, (count, first) in reasons]
        counted += [(f"{count} {what}", first) for what, (count, first) in self.remarks.items()]
        lines = [f"{printable(text)} (first: {printable(first)[:MAX_EXAMPLE]})" for text, first in counted]
        if not kept and reasons:
            why = "; ".join(line.replace(" dropped:", "", 1) for line in lines[: min(len(reasons), 3)])
            raise ValueError(f"{source}: none of its {self.total} boxes can be used: {why}")
        if not kept:
            raise ValueError(f"{source}: no boxes in it; name annotations that have some (background needs no labels)")
        level = logging.WARNING if reasons else logging.INFO  # without logging set up only warnings are seen
        LOGGER.log(level, f"{source}: {kept} boxes of {images} images kept, {self.total} dropped; labels in {target}")
        if (more := len(lines) - MAX_REASONS) > 0:
            lines[MAX_REASONS:] = [f"... and {more} more reasons"]
        for line in lines:
            LOGGER.warning(f"{source}: {line}")


def is_size(size: Sequence[float | None] | None) -> TypeGuard[Size]:
    """Whether these are a width and a height that an image can have."""
    return size is not None and all(side is not None and 0 < side < math.inf for side in size)


def box_rows(
    counts: DropCounts, kind: int, corners: Sequence[float], size: Size, where: str, digits: int = 6
) -> list[str]:
    """Return `class cx cy w h` in a list for a box x1, y1, x2, y2 in pixels of an image of `size` (w, h).

    Any two opposite corners will do. Nothing is returned for a box that has no part in the image, which is counted.
    """
    assert is_size(size)
    (width, height), (x1, y1, x2, y2) = size, corners
    left, right = sorted(min(max(x, 0.0), width) / width for x in (x1, x2))
    top, bottom = sorted(min(max(y, 0.0), height) / height for y in (y1, y2))
    if not all(map(math.isfinite, corners)):
        counts.drop("box of values that are not finite numbers", where)
    elif 0 in (x1 - x2, y1 - y2):
        counts.drop("box without width or height", where)
    elif 0 in (right - left, bottom - top):
        counts.drop("box outside of its image", where)
    else:
        odd = {
            "are smaller than a pixel; their numbers should be pixels, not fractions": max(abs(x2 - x1), abs(y2 - y1))
            < 1,
            "had their corners swapped (or a negative width or height) and were turned round": min(x2 - x1, y2 - y1)
            < 0,
            "reached beyond the image and were cut at its edges; check its width and height": max(
                *(-corner for corner in corners), x1 - width, x2 - width, y1 - height, y2 - height
            )
            > 1,
        }
        for remark in filter(odd.get, odd):
            counts.remark(f"boxes {remark}", where)
        box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        return [f"{kind} " + " ".join(f"{value:.{digits}f}" for value in box)]
    return []


def polygon_row(kind: int, points: np.ndarray, size: Size, digits: int = 6) -> str | None:
    """Return `class x y x y ...` for a polygon (n, 2) in pixels; None for fewer than three points, or no area.

    A triangle gets its last corner twice, so that its row is longer than that of a box.
    """
    assert is_size(size)
    inside = np.clip(points / np.asarray(size, dtype=float), 0, 1)
    if len(inside) < 3 or not np.isfinite(inside).all() or not np.ptp(inside, axis=0).all():
        return None
    if len(inside) == 3:
        inside = np.concatenate((inside, inside[-1:]))
    return f"{kind} " + " ".join(f"{value:.{digits}f}" for value in inside.ravel())


@contextlib.contextmanager
def naming(path: str | Path, form: str) -> Iterator[None]:
    """Raise whatever goes wrong with a file or its content inside as a ValueError that names file and form."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{printable(path)}: cannot be read ({error.strerror or error})") from error
    except NONSENSE as error:
        reason = printable(str(error))[:200] or type(error).__name__
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{printable(path)}: not {form} ({kind}{reason})") from error


def read_annotations(path: str | Path) -> str:
    """Return the text of a file of annotations. Raises ValueError, naming it, where it is none or too large."""
    with naming(path, "a file of annotations"):
        return decoded(read_bytes(path, MAX_TEXT_BYTES))


def read_json(path: str | Path) -> Any:
    """Return what a JSON file says, in UTF-8, -16 or -32. Raises ValueError, naming it, for anything else."""
    with naming(path, "valid JSON"):
        try:
            return json.loads(read_bytes(path, MAX_JSON_BYTES))
        except UnicodeError as error:
            raise ValueError("it is not text in UTF-8; save it as UTF-8") from error


def dota_rows(
    text: str, size: Size, classes: ClassNames, counts: DropCounts, where: str, polygons: bool = False
) -> list[str]:
    """Return the rows of one DOTA file: four corners, kind and difficulty a line.

    `polygons` keeps the four corners, else they become upright boxes. `where` is the file's name in what is counted.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lower().lstrip().startswith(("imagesource:", "gsd:")):
            rows += _dota_row(line.split(), size, classes, counts, f"{where}:{number}", polygons)
    return rows


def _dota_row(
    fields: list[str], size: Size, classes: ClassNames, counts: DropCounts, place: str, polygons: bool
) -> list[str]:
    difficult = len(fields) > 9 and fields[-1].isdecimal()
    name = " ".join(fields[8:-1] if difficult else fields[8:])  # a name may have spaces
    if len(fields) < 9:
        counts.drop("line without four corners and a kind", place)
    elif (kind := classes.find(name)) is None:
        counts.drop(classes.unlisted(name), place)
    else:
        try:
            points = np.array(fields[:8], dtype=float).reshape(4, 2)
        except ValueError:
            counts.drop("corners that are not numbers", place)
            return []
        box = box_rows(counts, kind, (*points.min(0).tolist(), *points.max(0).tolist()), size, place)
        if difficult and int(fields[-1]):
            counts.remark("objects are marked difficult; they are kept", place)
        return [polygon_row(kind, points, size) or row for row in box] if polygons else box
    return []


def visdrone_rows(text: str, size: Size, counts: DropCounts, where: str) -> list[str]:
    """Return the rows of one VisDrone file: x, y, w, h, score, class, truncation, occlusion a line."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            x, y, width, height, score, kind = (int(float(field)) for field in line.rstrip(", \t").split(",")[:6])
            if score and kind in VISDRONE_OBJECTS:
                rows += box_rows(counts, kind - 1, (x, y, x + width, y + height), size, f"{where}:{number}")
            else:
                reason = "of a region to ignore (score 0, or a class that is none of the ten)"
                counts.drop(reason, f"{where}:{number}")
    return rows


def sku_rows(text: str, counts: DropCounts, where: str) -> Rows:
    """Return the rows of a SKU-110K table: image, x1, y1, x2, y2, class, width, height a line; all are class 0."""
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for number, (image, *numbers) in enumerate(filter(None, csv.reader(io.StringIO(text))), start=1):
        x1, y1, x2, y2, width, height = (float(numbers[i]) for i in (0, 1, 2, 3, 5, 6))
        if not is_size((width, height)):
            raise ValueError(f"an image of {width} x {height} pixels")
        rows[image] += box_rows(counts, 0, (x1, y1, x2, y2), (width, height), f"{where}:{number}", 5)
    return dict(rows)


def argoverse_rows(path: str | Path, counts: DropCounts) -> Rows:
    """Return the rows of an Argoverse-HD file, by `sequence folder/image`; all its images are 1920 x 1200."""
    content = read_json(path)
    with naming(path, "an Argoverse-HD file"):
        places = [f"{content['seq_dirs'][image['sid']]}/{image['name']}" for image in content["images"]]
        rows: Rows = {place: [] for place in places}
        for number, note in enumerate(content["annotations"]):
            x, y, width, height = note["bbox"]
            place, kind = places[note["image_id"]], operator.index(note["category_id"])
            where = f"annotation {number} of {place}"
            rows[place] += box_rows(counts, kind, (x, y, x + width, y + height), (1920, 1200), where)
    return rows


def xview_rows(path: str | Path, sizes: Mapping[str, Size], counts: DropCounts) -> Rows:
    """Return the rows of xView's GeoJSON for images whose (w, h) are in `sizes`; kinds outside the 60 are left out."""
    rows: Rows = {name: [] for name in sizes}
    content = read_json(path)
    with naming(path, "xView's GeoJSON"):
        for number, feature in enumerate(content["features"]):
            about = feature["properties"]
            name, kind, bounds = about["image_id"], about["type_id"], about["bounds_imcoords"]
            where = f"feature {number} of {name}"
            if name not in sizes:
                counts.drop("of an image that is not there", where)
            elif kind not in XVIEW_TYPES:
                counts.drop("of a type that is none of the sixty", where)
            elif not bounds:
                counts.drop("without bounds", where)
            else:
                corners = [float(value) for value in bounds.split(",")]
                rows[name] += box_rows(counts, XVIEW_TYPES.index(kind), corners, sizes[name], where)
    return rows


def write_rows(path: str | Path, rows: Iterable[str]) -> None:
    """Write a label file, or a list of images, whole or not at all; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
