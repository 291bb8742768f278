"""Other people's annotation formats, turned into rows of our label files: DOTA, VisDrone, SKU-110K, Argoverse, xView.

A reader takes the annotations of one image or data set and gives rows; it opens no image and writes nothing. Boxes are
turned the right way round and cut at the image's edges; what is nothing after that, or cannot be read, is counted in a
`Tally`. COCO and VOC are in `coco_json` and `voc_xml`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.base.config import ClassNames, Names
from utils.base.files import MIB, decoded, printable, read_bytes, replacing
from utils.prepare.tally import Tally

MAX_JSON_BYTES = 8192 * MIB  # Objects365 has five
MAX_TEXT_BYTES = 64 * MIB  # of the annotations of one image
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


def is_size(size: Sequence[float | None] | None) -> bool:
    """Whether these are a width and a height that an image can have."""
    return size is not None and all(side is not None and 0 < side < math.inf for side in size)


def check_size(tally: Tally, written: Size, found: Size | None, where: str) -> None:
    """Remark that an image on disk has other proportions than its annotations say: its boxes may be out of place."""
    if found is None or abs(written[0] * found[1] - written[1] * found[0]) <= 0.02 * written[0] * found[1]:
        return
    sides = f"{where}: {written[0]:g} x {written[1]:g} written, {found[0]} x {found[1]} on disk"
    what = "images have other proportions than written, so boxes may be out of place; were they turned (EXIF) or cut"
    tally.remark(f"{what} after annotating?", sides)


def box_row(kind: int, corners: Sequence[float], size: Size, digits: int = 6) -> str | None:
    """`class cx cy w h` for a box between two corners x1, y1, x2, y2 in pixels of an image of `size` (w, h).

    Any two opposite corners will do. None if nothing of the box is inside the image.
    """
    width, height = size
    if not is_size(size):
        raise ValueError(f"an image of {width} x {height} pixels")
    x1, x2 = sorted(min(max(x, 0.0), width) / width for x in corners[0::2])
    y1, y2 = sorted(min(max(y, 0.0), height) / height for y in corners[1::2])
    if not (x2 > x1 and y2 > y1 and all(map(math.isfinite, corners))):
        return None
    return f"{kind} " + " ".join(f"{value:.{digits}f}" for value in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))


def boxed(tally: Tally, kind: int, corners: Sequence[float], size: Size, where: str, digits: int = 6) -> list[str]:
    """The row of `box_row` in a list, which is empty for a box that is none; what was wrong with it is counted."""
    row = box_row(kind, corners, size, digits)
    x1, y1, x2, y2 = corners
    if row is None:
        tally.drop(_why_no_box(corners), where)
        return []
    if abs(x2 - x1) < 1 and abs(y2 - y1) < 1:
        tally.remark("boxes are smaller than a pixel; their numbers should be pixels, not fractions", where)
    if x2 < x1 or y2 < y1:
        tally.remark("boxes had their corners swapped (or a negative width or height) and were turned round", where)
    if min(x1, x2, y1, y2) < -1 or max(x1, x2) > size[0] + 1 or max(y1, y2) > size[1] + 1:
        tally.remark("boxes reached beyond the image and were cut at its edges; check its width and height", where)
    return [row]


def _why_no_box(corners: Sequence[float]) -> str:
    x1, y1, x2, y2 = corners
    if not all(map(math.isfinite, corners)):
        return "box of values that are not finite numbers"
    return "box without width or height" if x1 == x2 or y1 == y2 else "box outside of its image"


def polygon_row(kind: int, points: Sequence[Sequence[float]], size: Sequence[float], digits: int = 6) -> str | None:
    """`class x y x y ...` for a polygon in pixels; a triangle gets its last corner twice, fewer points give None."""
    if not is_size(size):
        raise ValueError(f"an image of {size[0]} x {size[1]} pixels")
    inside = np.clip(np.asarray(points, dtype=float).reshape(-1, 2) / np.asarray(size, dtype=float), 0, 1)
    if len(inside) < 3 or not np.isfinite(inside).all() or not np.ptp(inside, axis=0).all():
        return None
    if len(inside) == 3:
        inside = np.concatenate((inside, inside[-1:]))
    return f"{kind} " + " ".join(f"{value:.{digits}f}" for value in inside.ravel())


def write_rows(path: str | Path, rows: Iterable[str]) -> None:
    """Write a label file, whole or not at all; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(f"{row}\n" for row in rows)


@contextlib.contextmanager
def told(path: str | Path, form: str) -> Iterator[None]:
    """Whatever goes wrong with a file or its content inside becomes a ValueError that names file and form."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{printable(path)}: cannot be read ({error.strerror or error})") from error
    except NONSENSE as error:
        reason = printable(str(error))[:200] or type(error).__name__
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{printable(path)}: not {form} ({kind}{reason})") from error


def read_annotations(path: str | Path) -> str:
    """The text of a file of annotations. Raises ValueError, naming it, where it is none or too large."""
    with told(path, "a file of annotations"):
        return decoded(read_bytes(path, MAX_TEXT_BYTES))


def read_json(path: str | Path) -> Any:
    """What a JSON file says, in UTF-8, -16 or -32. Raises ValueError, naming it, where it is none or too large."""
    with told(path, "valid JSON"):
        try:
            return json.loads(read_bytes(path, MAX_JSON_BYTES))
        except UnicodeError as error:
            raise ValueError("it is not text in UTF-8; save it as UTF-8") from error


def visdrone_rows(text: str, size: Size, tally: Tally | None = None, where: str = "VisDrone file") -> list[str]:
    """Rows of one VisDrone file: x, y, w, h, score, class, truncation, occlusion a line; score 0 is to be ignored."""
    tally, rows = tally or Tally(), []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        x, y, width, height, score, kind = (int(float(field)) for field in line.rstrip(", \t").split(",")[:6])
        if not score or kind not in VISDRONE_OBJECTS:
            tally.drop("of a region to ignore (score 0, or a class that is none of the ten)", f"{where}:{number}")
            continue
        rows += boxed(tally, kind - 1, (x, y, x + width, y + height), size, f"{where}:{number}")
    return rows


@dataclass
class DotaReader:
    """Reads DOTA's label files: four corners, kind and difficulty a line.

    `polygons` keeps the four corners, else they become upright boxes.
    """

    names: Names
    polygons: bool = False
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.classes = ClassNames(self.names)

    def rows(self, text: str, size: Size, where: str = "DOTA file") -> list[str]:
        """Rows of one file; `where` is its name in what is counted."""
        rows = []
        for number, line in enumerate(text.splitlines(), start=1):
            fields, place = line.split(), f"{where}:{number}"
            if not fields or fields[0].lower().startswith(("imagesource:", "gsd:")):
                continue
            if len(fields) < 9:
                self.tally.drop("line without four corners and a kind", place)
                continue
            words = fields[8:-1] if fields[-1].isdecimal() and fields[9:] else fields[8:]  # a name may have spaces
            if (kind := self.classes.find(name := " ".join(words))) is None:
                self.tally.drop(self.classes.unlisted(name), place)
            else:
                rows += self._row(kind, fields[:8], size, place)
                if len(words) < len(fields[8:]) and int(fields[-1]):
                    self.tally.remark("objects are marked difficult; they are kept", place)
        return rows

    def _row(self, kind: int, numbers: Sequence[str], size: Size, place: str) -> list[str]:
        try:
            points = np.array(numbers, dtype=float).reshape(4, 2)
        except ValueError:
            self.tally.drop("corners that are not numbers", place)
            return []
        if not np.isfinite(points).all():
            self.tally.drop("box of values that are not finite numbers", place)
            return []
        box = boxed(self.tally, kind, (*points.min(0), *points.max(0)), size, place)
        outline = polygon_row(kind, points, size) if self.polygons and box else None
        return [outline] if outline else box


def sku_rows(text: str, tally: Tally | None = None, where: str = "table") -> Rows:
    """Rows of a SKU-110K table: image, x1, y1, x2, y2, class, width, height a line; every object is class 0.

    Raises what `told` waits for where the text is no such table.
    """
    tally, rows = tally or Tally(), defaultdict(list)
    for number, (image, *numbers) in enumerate(filter(None, csv.reader(io.StringIO(text))), start=1):
        x1, y1, x2, y2, width, height = (float(numbers[i]) for i in (0, 1, 2, 3, 5, 6))
        rows[image] += boxed(tally, 0, (x1, y1, x2, y2), (width, height), f"{where}:{number}", 5)
    return dict(rows)


def argoverse_rows(path: str | Path, tally: Tally | None = None) -> Rows:
    """Rows of an Argoverse-HD file, by `sequence folder/image`; all its images are 1920 x 1200."""
    content, tally = read_json(path), tally or Tally()
    with told(path, "an Argoverse-HD file"):
        places = [f"{content['seq_dirs'][image['sid']]}/{image['name']}" for image in content["images"]]
        rows: Rows = {place: [] for place in places}
        for number, note in enumerate(content["annotations"]):
            x, y, width, height = note["bbox"]
            place, kind = places[note["image_id"]], operator.index(note["category_id"])
            where = f"annotation {number} of {place}"
            rows[place] += boxed(tally, kind, (x, y, x + width, y + height), (1920, 1200), where)
    return rows


def xview_rows(path: str | Path, sizes: Mapping[str, Size], tally: Tally | None = None) -> Rows:
    """Rows of xView's GeoJSON for the images whose (w, h) are in `sizes`; kinds outside the 60 are left out."""
    kinds = {number: kind for kind, number in enumerate(XVIEW_TYPES)}
    rows: Rows = {name: [] for name in sizes}
    content, tally = read_json(path), tally or Tally()
    with told(path, "xView's GeoJSON"):
        for number, feature in enumerate(content["features"]):
            about = feature["properties"]
            name, kind, bounds = about["image_id"], kinds.get(about["type_id"]), about["bounds_imcoords"]
            where = f"feature {number} of {name}"
            if name not in sizes:
                tally.drop("of an image that is not there", where)
            elif kind is None:
                tally.drop("of a type that is none of the sixty", where)
            elif not bounds:
                tally.drop("without bounds", where)
            else:
                rows[name] += boxed(tally, kind, [float(value) for value in bounds.split(",")], sizes[name], where)
    return rows
