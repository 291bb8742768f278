"""Annotations in COCO's JSON as ground truth: which images and classes of a data set they mean, and COCO's own score.

Categories are found by name and images by file_name, whatever their ids are. What matches nothing is counted and
logged.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import filterfalse
from pathlib import Path
from typing import Any

import numpy as np

from utils.base.config import ClassNames
from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.prepare.coco_json import box_of
from utils.prepare.label_formats import read_json

EVALUATORS = (  # package, module of the evaluation, its class, module of the annotations
    ("faster_coco_eval", "COCOeval_faster", "faster_coco_eval"),
    ("pycocotools.cocoeval", "COCOeval", "pycocotools.coco"),
)
Id = int | str


@dataclass(slots=True)
class CocoTruth:
    """The annotations of the images that are scored, and the ids that a JSON of detections needs to go with them."""

    image_ids: dict[str, Id]  # by path, as the file writes them
    category_ids: list[Id | None]  # by class; None for one that the file lacks
    merged: bool = False  # all classes count as one
    annotations: list[dict[str, Any]] = field(default_factory=list)  # image_id, category_id, bbox, area, iscrowd

    def score(self, rows: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
        """Return (mAP50-95, mAP50) of detections that carry the file's ids, by COCO's own evaluation; log its table.

        None, and a line, without an evaluation package. These want ids that are numbers from 1 on.
        """
        images = {key: number for number, key in enumerate(sorted(set(self.image_ids.values()), key=order), 1)}
        classes = {key: number for number, key in enumerate(self.category_ids, 1) if key is not None}
        found, notes = (
            [
                dict(row) | {"id": number, "image_id": images[image], "category_id": classes[kind]}
                for number, row in enumerate(several, 1)
                if (image := row["image_id"]) in images and (kind := row["category_id"]) in classes
            ]
            for several in (rows, self.annotations)
        )
        for module, kind, home in EVALUATORS:
            try:
                evaluation = getattr(importlib.import_module(module), kind)
                truth = importlib.import_module(home).COCO()
            except ImportError:
                continue
            if not found:
                return 0.0, 0.0
            with contextlib.redirect_stdout(io.StringIO()) as table:
                categories = [{"id": number, "name": str(key)} for key, number in classes.items()]
                listed = [{"id": number} for number in images.values()]
                truth.dataset = {"info": {}, "images": listed, "categories": categories, "annotations": notes}
                truth.createIndex()
                scored = evaluation(truth, truth.loadRes(found), "bbox")
                scored.print_function = print  # one of the packages is silent without it
                scored.params.useCats = int(not self.merged)
                scored.evaluate()
                scored.accumulate()
                scored.summarize()
            LOGGER.info("\n".join(re.findall("^ Average.*", table.getvalue(), re.MULTILINE)))
            return float(scored.stats[0]), float(scored.stats[1])
        LOGGER.info("pip install pycocotools (or faster-coco-eval) to have COCO's own evaluation as well")
        return None


def find_annotations(root: Path, split: str, folders: Iterable[Path]) -> Path | None:
    """Return the file of COCO annotations that belongs to a split: where COCO, CVAT, Roboflow and others put it.

    That is annotations/instances_val2017.json, annotations/val.json and the like below the data set's `root`, or beside
    the split's `folders` of images. None, which is logged, where there is no such file.
    """
    folders = list(dict.fromkeys(folders))
    words = [split, *(folder.name for folder in folders), {"val": "val2017"}.get(split, split)]
    names = [name for word in words for name in (f"instances_{word}.json", f"{word}.json")]
    roots = [root, *(above for folder in folders for above in folder.parents[:2])]
    places = [above / "annotations" / name for above in roots for name in (*names, "instances_default.json")]
    places += [place / "_annotations.coco.json" for folder in folders for place in (folder, folder.parent)]
    file = next(filter(Path.is_file, dict.fromkeys(places)), None)
    none = f"no {shown(places[0])} or the like: COCO's own evaluation is left out; name a file by --annotations"
    LOGGER.info(f"COCO annotations: {shown(file)}" if file else none)
    return file


def read_truth(file: Path, images: Sequence[str], names: Sequence[str], merged: bool = False) -> CocoTruth:
    """Return the part of a file of COCO annotations that is about these images (paths) and classes (names, in order).

    With `merged` all categories are one. What is left out on either side is logged in one line. Raise ValueError, in
    one line, for another kind of file, and where no image or no category is found.
    """
    entries, categories, notes = read_annotations(file)
    if not (image_ids := match_images(entries, images)):
        words = _none_of(entries, "images", list(map(os.path.basename, images)))
        raise ValueError(f"{printable(file)}: {words} scored: name the annotations of this split by --annotations")
    find = ClassNames(names).find
    found = dict.fromkeys(categories, 0) if merged else {key: find(name) for key, name in categories.items()}
    kinds = {key: kind for key, kind in found.items() if kind is not None}
    if not kinds:
        words = _none_of(categories, "categories", names)
        raise ValueError(f"{printable(file)}: {words} classes of the data set: give both the same names")
    firsts = {kind: key for key, kind in reversed(kinds.items())}
    truth = CocoTruth(image_ids, list(map(firsts.get, range(len(names)))), merged)
    lost = _add_annotations(truth, notes, entries, categories, kinds)
    scored = set(image_ids.values())
    lost["classes that it lacks"] = [name for kind, name in enumerate(names) if not merged and kind not in firsts]
    lost["scored images that it lacks"] = list(filterfalse(image_ids.__contains__, images))
    lost["images of its own that are not scored"] = [name for key, name in entries.items() if key not in scored]
    _log_lost(file, lost)
    if not truth.annotations:
        LOGGER.warning(f"{printable(file)} has no objects to score by on these images: COCO's evaluation will say -1")
    return truth


def read_annotations(file: Path) -> tuple[dict[Id, str], dict[Id, str], list[dict[str, Any]]]:
    """Return the names of images and of categories by id, and the annotations. Raise ValueError for another file."""
    content = read_json(file)
    for part in ("images", "categories", "annotations"):
        items = content.get(part) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError(f"{printable(file)}: no COCO annotations: it has no list of {part}")
    images, categories = (
        {_id(item.get("id")): _text(item.get(key) or item.get("id")) for item in content[part]}
        for part, key in (("images", "file_name"), ("categories", "name"))
    )
    return images, categories, content["annotations"]


def _add_annotations(
    truth: CocoTruth, notes: list[dict[str, Any]], names: dict[Id, str], categories: dict[Id, str], kinds: dict[Id, int]
) -> dict[str, list[str]]:
    """Put the annotations of scored images into `truth`; return what is left out, by reason.

    `names` and `categories` are those of images and categories by id, `kinds` the classes of categories. An id may be
    written as a number in one place and as text in another.
    """
    images, listed = {str(key): key for key in names}, {str(key): key for key in categories}
    scored, lost = set(truth.image_ids.values()), defaultdict(list)
    for note in notes:
        image, category = images.get(str(_id(note.get("image_id")))), listed.get(str(_id(note.get("category_id"))))
        where = f"annotation {note.get('id')} of {note.get('image_id') if image is None else names[image]}"
        if image is None or category is None:
            lost["objects of images or categories that it does not list"].append(where)
        elif image not in scored:
            continue
        elif category not in kinds:
            lost["objects of categories that are no classes"].append(categories[category])
        elif (box := upright(box_of(note))) is None:
            lost["objects without a box"].append(where)
        else:
            area = box[2] * box[3]
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                area = given if 0 <= (given := float(note.get("area", ""))) < math.inf else area
            crowd = int(str(note.get("iscrowd")).lower() in ("1", "1.0", "true"))
            row = {"image_id": image, "category_id": truth.category_ids[kinds[category]], "bbox": box}
            truth.annotations.append(row | {"area": area, "iscrowd": crowd})
    return lost


def _log_lost(file: Path, lost: dict[str, list[str]]) -> None:
    parts = [f"{reason}: {len(items)} (first: {items[0][:80]})" for reason, items in lost.items() if items]
    if parts:
        LOGGER.warning(f"COCO's evaluation by {printable(file)} leaves out {printable('; '.join(parts))}")


def upright(box: Sequence[float] | None) -> list[float] | None:
    """Return [x, y, width, height] with sides of at least 0; None without numbers."""
    if box is None or not math.isfinite(sum(box)):
        return None
    x, y, width, height = box
    return [x + min(width, 0), y + min(height, 0), abs(width), abs(height)]


def order(key: Id) -> tuple[bool, int, str]:
    """Sort numbers by size, also those written as text, before other text."""
    is_number = isinstance(key, int) or key.isdecimal()
    return not is_number, int(key) if is_number else 0, str(key)


def match_images(entries: Mapping[Id, str], images: Sequence[str]) -> dict[str, Id]:
    """Return the id of each image by the entries (id -> file_name): by name, else without case or ending, or by number.

    Folders, with either kind of slash, decide between images of one name; where they do not, none is taken.
    """
    found: dict[str, Id] = {}
    spelled = {name: _spellings(name) for name in (*entries.values(), *images)}
    for tier in range(len(_spellings(""))):
        index: dict[Any, dict[Id, str]] = defaultdict(dict)
        taken = set(found.values())
        for key, name in entries.items():
            if key not in taken and (spelling := spelled[name][tier]) not in ("", None):
                index[spelling][key] = name
        claims: dict[Id, dict[str, str]] = defaultdict(dict)
        for image in images:
            if image not in found and (key := _nearest(image, index.get(spelled[image][tier], {}))) is not None:
                claims[key][image] = image
        found |= {best: key for key, several in claims.items() if (best := _nearest(entries[key], several)) is not None}
    return {image: found[image] for image in images if image in found}


def _spellings(path: str) -> tuple[Hashable, ...]:
    """Return what a path is compared by, one after the other.

    The first has two folders: in large sets hundreds of images share a name, which are compared one by one otherwise.
    """
    parts = _parts(path)
    folded = parts[-1].casefold()
    stem = os.path.splitext(folded)[0]
    number = int(stem) if stem.isdecimal() else None
    return tuple(parts[-3:]) if len(parts) > 2 else None, parts[-1], folded, stem, number


def _nearest(path: str, candidates: Mapping[Any, str]) -> Any:
    """Return the key of the candidate that shares the most last folders with `path`; None where several do, or none."""
    wanted, shared = [part.casefold() for part in _parts(path)[-2::-1]], []
    for other in candidates.values():
        same = [one == part.casefold() for one, part in zip(wanted, _parts(other)[-2::-1], strict=False)]
        shared.append([*same, False].index(False))
    return list(candidates)[int(np.argmax(shared))] if shared and shared.count(max(shared)) == 1 else None


def _parts(path: str) -> list[str]:
    return [part for part in _text(path).replace("\\", "/").split("/") if part not in ("", ".")] or [""]


def _text(value: Any) -> str:
    """Return a name as it may be compared: composed letters, no spaces around it."""
    return unicodedata.normalize("NFC", str(value)).strip()


def _id(value: Any) -> Id:
    """Return an id as it may be compared: text and whole numbers as they are, 3.0 as 3."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else str(value)


def _none_of(ours: Mapping[Id, str], what: str, theirs: Sequence[str]) -> str:
    """Return `none of its 3 images ('a', 'b', 'c') is among the 2 ('d', 'e')`, long lists cut short."""
    mine, others = (
        printable(", ".join(repr(item[:80]) for item in items[:3]) + " ..." * (len(items) > 3))
        for items in (list(ours.values()), theirs)
    )
    return f"none of its {len(ours)} {what} ({mine}) is among the {len(theirs)} ({others})"
