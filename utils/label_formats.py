"""Other people's annotation formats, turned into rows of our label files: COCO JSON, VOC XML, VisDrone, DOTA, xView ...

A reader takes one annotation file and gives rows; it opens no picture and writes nothing. Boxes are
cut at the picture's edges, and what is nothing after that is left out.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import operator
import os
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import MIB, printable, read_bytes

MAX_JSON_BYTES = 8192 * MIB  # Objects365 has five
MAX_TEXT_BYTES = 64 * MIB  # of the annotations of one picture
_NONSENSE = (  # what reading a file of another form leads to
    KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, csv.Error,
)  # fmt: skip

Rows = dict[str, list[str]]  # rows of each picture, by the picture's file name

# COCO numbers its 80 classes with pictures among 90
COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
# xView's numbers of its 60 kinds of object, in the order of our classes
XVIEW_TYPES = (
    *(11, 12, 13, 15, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 32, 33, 34, 35),
    *(36, 37, 38, 40, 41, 42, 44, 45, 47, 49, 50, 51, 52, 53, 54, 55, 56, 57, 59, 60),
    *(61, 62, 63, 64, 65, 66, 71, 72, 73, 74, 76, 77, 79, 83, 84, 86, 89, 91, 93, 94),
)
VISDRONE_OBJECTS = range(1, 11)  # 0 is a region to ignore, 11 "others"


def box_row(kind: int, corners: Sequence[float], size: Sequence[float], digits: int = 6) -> str | None:
    """`class cx cy w h` for a box x1, y1, x2, y2 in pixels of a picture of `size` (w, h); None if nothing is inside."""
    width, height = size
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"a picture of {width} x {height} pixels")
    x1, x2 = (min(max(x, 0.0), width) / width for x in corners[0::2])
    y1, y2 = (min(max(y, 0.0), height) / height for y in corners[1::2])
    if not (x2 > x1 and y2 > y1):  # also where one is no number
        return None
    return f"{kind} " + " ".join(f"{value:.{digits}f}" for value in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))


def polygon_row(kind: int, points: Sequence[Sequence[float]], size: Sequence[float], digits: int = 6) -> str | None:
    """`class x y x y ...` for a polygon in pixels; a triangle gets its last corner twice, fewer points give None."""
    if not all(0 < side < math.inf for side in size):
        raise ValueError(f"a picture of {size[0]} x {size[1]} pixels")
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
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", encoding="utf-8", delete=False) as file:
        file.writelines(f"{row}\n" for row in rows)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


@contextlib.contextmanager
def told(path: str | Path, form: str) -> Iterator[None]:
    """Whatever goes wrong with the content of a file inside becomes a ValueError that names file and form."""
    try:
        yield
    except _NONSENSE as error:
        reason = printable(str(error))[:200] or type(error).__name__
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{printable(path)}: not {form} ({kind}{reason})") from error


def read_annotations(path: str | Path) -> str:
    """The text of a file of annotations. Raises ValueError, naming it, where it is none or too large."""
    with told(path, "a file of annotations"):
        return read_bytes(path, MAX_TEXT_BYTES).decode("utf-8-sig")


def _read_json(path: str | Path) -> Any:
    with told(path, "valid JSON"):
        return json.loads(read_bytes(path, MAX_JSON_BYTES))


def _kinds(categories: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> dict[int, int]:
    """Category number -> class: by name when names are given, else in the order of the numbers."""
    if names is None:
        return {number: kind for kind, number in enumerate(sorted(category["id"] for category in categories))}
    wanted = {name.strip().lower(): kind for kind, name in enumerate(names)}
    found = {category["id"]: wanted.get(category["name"].strip().lower()) for category in categories}
    return {number: kind for number, kind in found.items() if kind is not None}


def _coco_row(note: Mapping[str, Any], kind: int, size: Sequence[float], polygons: bool, digits: int) -> str | None:
    """An annotation's outline if it is wanted and of one piece, else its box."""
    outline = note.get("segmentation") if polygons else None
    if isinstance(outline, list) and len(outline) == 1:
        if row := polygon_row(kind, np.reshape(outline[0], (-1, 2)), size, digits):
            return row
    x, y, width, height = note["bbox"]
    return box_row(kind, (x, y, x + width, y + height), size, digits)


def coco_rows(
    path: str | Path,
    names: Sequence[str] | None = None,
    *,
    polygons: bool = False,
    crowds: bool = False,
    digits: int = 6,
) -> Rows:
    """Rows of every picture of a COCO JSON file, in its order; pictures without objects have none.

    Categories become classes by name, or by the order of their numbers when no `names` are given. `polygons` writes the
    outline of objects made of one piece; `crowds` keeps those marked iscrowd. Raises ValueError for another file.
    """
    content = _read_json(path)
    with told(path, "a COCO detection file"):
        kinds = _kinds(content["categories"], names)
        images = {image["id"]: image for image in content["images"]}
        rows: dict[str, dict[str, None]] = {_text(image["file_name"]): {} for image in images.values()}  # ordered sets
        for note in content["annotations"]:
            kind, image = kinds.get(note["category_id"]), images[note["image_id"]]
            if kind is not None and (crowds or not note.get("iscrowd")):
                row = _coco_row(note, kind, (image["width"], image["height"]), polygons, digits)
                rows[image["file_name"]].update({row: None} if row else {})
    return {name: list(found) for name, found in rows.items()}


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a picture is called {name!r:.40}")
    return name


def voc_rows(text: str, names: Sequence[str]) -> list[str]:
    """Rows of one Pascal VOC annotation; objects marked difficult, and kinds that are not in `names`, are left out.

    VOC counts pixels from 1, so centres move by one. Raises ValueError for text that is not such an annotation.
    """
    if "<!ENTITY" in text:
        raise ValueError("annotation with XML entities, which VOC has not")
    try:
        root = ElementTree.fromstring(text)
        width, height = (float(root.find("size").find(side).text) for side in ("width", "height"))
        rows = []
        for item in root.iter("object"):
            kind, difficult = item.find("name").text, item.findtext("difficult", "0").strip()
            if kind in names and difficult != "1":
                corners = [float(item.find("bndbox").find(side).text) - 1 for side in ("xmin", "ymin", "xmax", "ymax")]
                rows.append(box_row(names.index(kind), corners, (width, height)))
    except (ElementTree.ParseError, *_NONSENSE) as error:
        raise ValueError(f"not a VOC annotation ({error})") from error
    return [row for row in rows if row]


def visdrone_rows(text: str, size: Sequence[float]) -> list[str]:
    """Rows of one VisDrone file: x, y, w, h, score, class, truncation, occlusion a line; score 0 is to be ignored."""
    rows = []
    for line in filter(str.strip, text.splitlines()):
        x, y, width, height, score, kind = map(int, line.rstrip(", \t").split(",")[:6])
        if score and kind in VISDRONE_OBJECTS:
            rows.append(box_row(kind - 1, (x, y, x + width, y + height), size))
    return [row for row in rows if row]


def dota_rows(text: str, size: Sequence[float], names: Sequence[str], polygons: bool = False) -> list[str]:
    """Rows of one DOTA file: four corners, kind and difficulty a line; upright boxes, or the corners as polygons."""
    rows = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 9:  # imagesource:, gsd: and blank lines
            continue
        if fields[8] not in names:
            raise ValueError(f"unknown kind {fields[8]!r:.60}; known: {', '.join(names)}")
        points = np.array(fields[:8], dtype=float).reshape(4, 2)
        kind = list(names).index(fields[8])
        corners = (*points.min(0), *points.max(0))
        rows.append(polygon_row(kind, points, size) if polygons else box_row(kind, corners, size))
    return [row for row in rows if row]


def sku_rows(text: str) -> Rows:
    """Rows of a SKU-110K table: image, x1, y1, x2, y2, class, width, height a line; every object is class 0.

    Raises what `told` waits for where the text is no such table.
    """
    rows: Rows = defaultdict(list)
    for image, *numbers in csv.reader(io.StringIO(text)):
        x1, y1, x2, y2, width, height = (float(numbers[i]) for i in (0, 1, 2, 3, 5, 6))
        row = box_row(0, (x1, y1, x2, y2), (width, height), 5)
        rows[image].extend([row] if row else [])
    return dict(rows)


def argoverse_rows(path: str | Path) -> Rows:
    """Rows of an Argoverse-HD file, by `sequence folder/picture`; all its pictures are 1920 x 1200."""
    content = _read_json(path)
    with told(path, "an Argoverse-HD file"):
        places = [f"{content['seq_dirs'][image['sid']]}/{image['name']}" for image in content["images"]]
        rows: Rows = {place: [] for place in places}
        for note in content["annotations"]:
            x, y, width, height = note["bbox"]
            row = box_row(operator.index(note["category_id"]), (x, y, x + width, y + height), (1920, 1200))
            rows[places[note["image_id"]]].extend([row] if row else [])
    return rows


def xview_rows(path: str | Path, sizes: Mapping[str, Sequence[float]]) -> Rows:
    """Rows of xView's GeoJSON for the pictures whose (w, h) are in `sizes`; kinds outside the 60 are left out."""
    kinds = {number: kind for kind, number in enumerate(XVIEW_TYPES)}
    rows: Rows = {name: [] for name in sizes}
    content = _read_json(path)
    with told(path, "xView's GeoJSON"):
        for feature in content["features"]:
            about = feature["properties"]
            name, kind = about["image_id"], kinds.get(about["type_id"])
            if name in sizes and kind is not None and about["bounds_imcoords"]:
                row = box_row(kind, [float(value) for value in about["bounds_imcoords"].split(",")], sizes[name])
                rows[name].extend([row] if row else [])
    return rows
