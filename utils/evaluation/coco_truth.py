"""Annotations in COCO's JSON as ground truth: which images and classes of a data set they mean, and COCO's own score.

Categories are found by name and images by file_name, whatever their ids are. What matches nothing is counted and said.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.evaluation.coco_names import Id, match_images, match_names, order, text_of, without
from utils.prepare.coco_json import box_of
from utils.prepare.label_formats import read_json

EVALUATORS = (  # package, module of the evaluation, its class, module of the annotations
    ("faster_coco_eval", "COCOeval_faster", "faster_coco_eval"),
    ("pycocotools.cocoeval", "COCOeval", "pycocotools.coco"),
)


@dataclass(slots=True)
class CocoTruth:
    """The annotations of the images that are scored, and the ids that a JSON of detections needs to go with them."""

    file: Path
    image_ids: dict[str, Id] = field(default_factory=dict)  # by path, as the file writes them
    category_ids: list[Id | None] = field(default_factory=list)  # by class; None for one that the file lacks
    annotations: list[dict[str, Any]] = field(default_factory=list)  # image_id, category_id, bbox, area, iscrowd
    merged: bool = False  # all classes count as one

    def score(self, rows: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
        """(mAP50-95, mAP50) of detections that carry the file's ids; None, and a line, without an evaluation package.

        Ids become numbers from 1 on in the file's order, as the packages want them.
        """
        images = {key: number for number, key in enumerate(sorted(set(self.image_ids.values()), key=order), 1)}
        classes = {key: number for number, key in enumerate(self.category_ids, 1) if key is not None}

        def numbered(row: Mapping[str, Any]) -> dict[str, Any]:
            return dict(row) | {"image_id": images[row["image_id"]], "category_id": classes[row["category_id"]]}

        found = [numbered(row) for row in rows if row["image_id"] in images and row["category_id"] in classes]
        content = {
            "info": {},
            "images": [{"id": number} for number in images.values()],
            "categories": [{"id": number, "name": str(key)} for key, number in classes.items()],
            "annotations": [numbered(row) | {"id": number} for number, row in enumerate(self.annotations, 1)],
        }
        return _evaluate(content, found, self.merged)


def _evaluate(content: dict[str, Any], rows: list[dict[str, Any]], merged: bool) -> tuple[float, float] | None:
    """COCO's own evaluation by the first package that is installed; its table is logged."""
    for module, kind, home in EVALUATORS:
        try:
            evaluation = getattr(importlib.import_module(module), kind)
            coco = importlib.import_module(home).COCO
        except ImportError:
            continue
        if not rows:
            return 0.0, 0.0
        with contextlib.redirect_stdout(io.StringIO()) as words:
            truth = coco()
            truth.dataset = content
            truth.createIndex()
            scored = evaluation(truth, truth.loadRes(rows), "bbox")
            scored.print_function = print  # one of the packages is silent without it
            scored.params.useCats = int(not merged)
            scored.evaluate()
            scored.accumulate()
            scored.summarize()
        LOGGER.info("\n".join(line for line in words.getvalue().splitlines() if line.startswith(" Average")))
        return float(scored.stats[0]), float(scored.stats[1])
    LOGGER.info("pip install pycocotools (or faster-coco-eval) to have COCO's own evaluation as well")
    return None


def find_annotations(root: Path, split: str, folders: Iterable[Path]) -> Path | None:
    """The file of COCO annotations that belongs to a split: where COCO, CVAT, Roboflow and others put it.

    That is annotations/instances_val2017.json, annotations/val.json and the like below the data set's `root`, or beside
    the split's `folders` of images. None, which is said, where there is no such file.
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


def read_truth(
    file: Path, images: Sequence[str | int], names: Sequence[str] | None = None, merged: bool = False
) -> CocoTruth:
    """The part of a file of COCO annotations that is about these images (paths) and classes (names, in order).

    Without `names` the classes are the categories by rising id. With `merged` all categories are one. What is left out
    on either side is logged in one line. Raises ValueError, in one line, for another kind of file, and where no image
    or no category is found.
    """
    content = _read(file)
    entries, categories = _texts(content["images"], "file_name"), _texts(content["categories"], "name")
    if not (image_ids := match_images(entries, images)):
        words = _none_of(entries, "images", [Path(str(image)).name for image in images])
        raise ValueError(f"{printable(file)}: {words} scored: name the annotations of this split by --annotations")
    names, kinds = _kinds(file, categories, names, merged)
    firsts = {kind: key for key, kind in reversed(kinds.items())}
    truth = CocoTruth(file, image_ids, [firsts.get(kind) for kind in range(len(names))], merged=merged)
    lost = _take(
        content["annotations"], truth, {key: firsts[kind] for key, kind in kinds.items()}, (entries, categories)
    )
    if not merged:
        lost.add("classes that it lacks", (name for kind, name in enumerate(names) if kind not in firsts))
    lost.add("scored images that it lacks", map(str, without(images, image_ids)))
    lost.add("images of its own that are not scored", map(entries.get, without(entries, set(image_ids.values()))))
    if lost.reasons:
        LOGGER.warning(f"COCO's evaluation by {printable(file)} leaves out {lost}")
    if not truth.annotations:
        LOGGER.warning(f"{printable(file)} has no objects to score by on these images: COCO's evaluation will say -1")
    return truth


def _kinds(
    file: Path, categories: Mapping[Id, str], names: Sequence[str] | None, merged: bool
) -> tuple[Sequence[str], dict[Id, int]]:
    """The names of the classes, and category id -> class. Raises ValueError where no category is a class."""
    if names is None:
        ordered = sorted(categories, key=order)
        return [categories[key] for key in ordered], {key: kind for kind, key in enumerate(ordered)}
    kinds = dict.fromkeys(categories, 0) if merged else match_names(categories, names)
    if not kinds:
        words = _none_of(categories, "categories", names)
        raise ValueError(f"{printable(file)}: {words} classes of the data set: give both the same names")
    return names, kinds


def _texts(items: Sequence[Mapping[str, Any]], key: str) -> dict[Id, str]:
    """Each item's text by its id, the id itself where there is none."""
    return {_id(item.get("id")): text_of(item.get(key) or item.get("id")) for item in items}


class _Lost:
    """What is left out, by reason: how many, and the first."""

    def __init__(self) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, items: Iterable[str]) -> None:
        """Count the items."""
        for item in items:
            count, first = self.reasons.get(reason, (0, item))
            self.reasons[reason] = count + 1, first

    def __str__(self) -> str:
        parts = (f"{reason}: {count} (first: {first[:80]})" for reason, (count, first) in self.reasons.items())
        return printable("; ".join(parts))


def _read(file: Path) -> dict[str, list[Any]]:
    """The three lists of a file of COCO annotations. Raises ValueError, naming it, for another kind of file."""
    content = read_json(file)
    for key in ("images", "categories", "annotations"):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError(f"{printable(file)}: no COCO annotations: it has no list of {key}")
    return content


def _id(value: Any) -> Id:
    """An id as it may be compared: text and whole numbers as they are, 3.0 as 3."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else str(value)


def _none_of(ours: Mapping[Id, str], what: str, theirs: Sequence[str]) -> str:
    """`none of its 3 images ('a', 'b', 'c') is one of the 2 ('d', 'e')`, long lists cut short."""
    mine, others = (
        printable(", ".join(repr(item[:80]) for item in items[:3]) + " ..." * (len(items) > 3))
        for items in (list(ours.values()), theirs)
    )
    return f"none of its {len(ours)} {what} ({mine}) is among the {len(theirs)} ({others})"


# ------------------------------------------------------------------------------------------------------- annotations
def _take(
    notes: Sequence[Mapping[str, Any]],
    truth: CocoTruth,
    kinds: Mapping[Id, Id],
    listed: tuple[Mapping[Id, str], Mapping[Id, str]],
) -> _Lost:
    """Put the annotations of scored images into `truth`; what is left out.

    `kinds` says which id stands for a category, `listed` are the names of images and categories by id. An id may be
    written as a number in one place and as text in another.
    """
    (entries, images), (categories, numbers) = ((names, {str(key): key for key in names}) for names in listed)
    scored, lost = set(truth.image_ids.values()), _Lost()
    for note in notes:
        image = images.get(str(_id(note.get("image_id"))))
        category = numbers.get(str(_id(note.get("category_id"))))
        where = f"annotation {note.get('id')} of {entries.get(image, note.get('image_id'))}"
        if image is None or category is None:
            lost.add("objects of images or categories that it does not list", [where])
        elif image not in scored:
            continue
        elif category not in kinds:
            lost.add("objects of categories that are no classes", [categories[category]])
        elif (box := _upright(box_of(note))) is None:
            lost.add("objects without a box", [where])
        else:
            area = _number_in(note.get("area"))
            row = {"image_id": image, "category_id": kinds[category], "bbox": box}
            row["area"] = box[2] * box[3] if area is None else area
            row["iscrowd"] = int(str(note.get("iscrowd")).lower() in ("1", "1.0", "true"))
            truth.annotations.append(row)
    return lost


def _upright(box: Sequence[float] | None) -> list[float] | None:
    """[x, y, width, height] with sides of at least 0; None without numbers."""
    if box is None or not math.isfinite(sum(box)):
        return None
    x, y, width, height = box
    return [x + min(width, 0), y + min(height, 0), abs(width), abs(height)]


def _number_in(value: Any) -> float | None:
    """A number of at least 0, None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < float("inf") else None
