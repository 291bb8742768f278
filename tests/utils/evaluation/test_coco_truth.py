"""Other people's COCO annotations, in all the ways they are written, as ground truth."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.drawing.writers import coco_rows
from utils.evaluation import coco_truth
from utils.evaluation.coco_truth import find_annotations, match_images, order, read_truth, upright
from utils.evaluation.reports import coco_score
from utils.prepare.coco_json import box_of
from utils.prepare.label_formats import COCO_IDS

NAMES = ["bolt", "hex nut"]
IMAGES = [f"/data/own/images/val/{name}" for name in ("first.jpg", "007.jpg", "third.png")]
Doc = dict[str, Any]


def document():
    """Three images of 100 x 50 with bolts and nuts, as an exporter writes them: ids from 1, all keys there."""
    boxes = {1: [(1, 10, 10, 20, 20), (2, 60, 5, 30, 40)], 2: [(1, 0, 0, 50, 25)], 3: [(2, 5, 5, 40, 40)]}
    notes = [(image, *note) for image, several in boxes.items() for note in several]
    return {
        "info": {},
        "images": [
            {"id": number, "file_name": Path(path).name, "width": 100, "height": 50}
            for number, path in enumerate(IMAGES, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for number, (image, kind, *box) in enumerate(notes, 1)
        ],
    }


def rows_for(truth):
    """Detections: all right but one, which is off, and one too many; as val.py writes them for these annotations."""
    found = {
        IMAGES[0]: [[10, 10, 30, 30, 0.9, 0], [60, 5, 90, 45, 0.8, 1]],
        IMAGES[1]: [[0, 0, 50, 20, 0.7, 0], [70, 30, 90, 45, 0.75, 0]],
        IMAGES[2]: [[5, 5, 45, 45, 0.6, 1]],
    }
    rows: list[Doc] = []
    for path, values in found.items():
        if path in truth.image_ids:
            rows += coco_rows(torch.tensor(values), path, truth.category_ids, truth.image_ids[path])
    return rows


def straight(doc, rows):
    """What pycocotools makes of a well-formed document and rows with its ids."""
    pycocotools = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = pycocotools.COCO()
        truth.dataset = copy.deepcopy(doc)
        truth.createIndex()
        scored = COCOeval(truth, truth.loadRes(copy.deepcopy(rows)), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return scored.stats[0], scored.stats[1]


def written(folder, doc):
    file = folder / "own.json"
    file.write_text(json.dumps(doc), encoding="utf-8")
    return file


# ---- what exporters do: each takes the document and changes it
def each(part, change):
    """Return what changes every entry of a part of a document."""
    return lambda doc: [change(thing) for thing in doc[part]]


def renamed(part, change):
    key = "file_name" if part == "images" else "name"
    return each(part, lambda thing: thing.update({key: change(thing[key])}))


def both(*changes):
    return lambda doc: [change(doc) for change in changes]


def only(*keys):
    return lambda thing: [thing.pop(key) for key in set(thing) - set(keys)]


def outlined(note):
    x, y, width, height = note.pop("bbox")
    note["segmentation"] = [[x, y, x + width, y, x + width, y + height], [x, y + height, x + 1, y, x, y]]


def swapped(note):
    x, y, width, height = note["bbox"]
    note["bbox"] = [str(x + width), str(y + height), str(-width), str(-height)]


def other_order(doc):
    doc["categories"] = [{"id": 9, "name": "hex nut"}, {"id": 70, "name": "bolt"}]
    each("annotations", lambda note: note.update(category_id={1: 70, 2: 9}[note["category_id"]]))(doc)


def other_images(doc):
    doc["images"] += [{"id": 8, "file_name": "train/other.jpg"}, {"id": 9, "file_name": "train/first.jpg"}]
    doc["images"][0]["file_name"] = "val/first.jpg"
    doc["annotations"] += [{"id": 99, "image_id": 8, "category_id": 1, "bbox": [0, 0, 9, 9]}]


def more_categories(doc):
    parts = {"id": 0, "name": "parts", "supercategory": "none"}
    doc["categories"] = [parts, *doc["categories"], {"id": 5, "name": "x"}]
    box = {"bbox": [0, 0, 9, 9]}
    pairs = [((1, 5), box), ((44, 1), box), ((1, 1), {}), ((1, 1), {"bbox": [0, 0, float("nan"), 9]})]
    doc["annotations"] += [{"id": 99, "image_id": i, "category_id": k} | more for (i, k), more in pairs]


text_ids = lambda thing: thing.update(id=str(thing["id"]))  # noqa: E731
from_0 = lambda thing: thing.update({key: value - 1 for key, value in thing.items() if key.endswith("id")})  # noqa: E731
WAYS = {
    "as exporters write it": lambda doc: None,
    "ids as text": both(each("images", text_ids), each("categories", text_ids)),
    "references as text and as fractions": each(
        "annotations",
        lambda note: note.update(image_id=str(note["image_id"]), category_id=float(note["category_id"]), id="a"),
    ),
    "words for ids": both(
        each("images", lambda image: image.update(id=f"image-{image['id']}")),
        each("annotations", lambda note: note.update(image_id=f"image-{note['image_id']}")),
    ),
    "ids from 0": both(*(each(part, from_0) for part in ("images", "categories", "annotations"))),
    "categories in another order": other_order,
    "nothing but boxes": both(
        lambda doc: doc.pop("info"),
        each("annotations", only("image_id", "category_id", "bbox")),
        each("images", only("id", "file_name")),
    ),
    "outlines only": each("annotations", outlined),
    "swapped corners, as text": each("annotations", swapped),
    "folders": renamed("images", lambda name: f"images/val/{name}"),
    "Windows": renamed("images", lambda name: f"C:\\Users\\me\\images\\{name}"),
    "upper case": renamed("images", str.upper),
    "another ending": renamed("images", lambda name: f"{Path(name).stem}.tif"),
    "names in other letters": renamed("categories", {"bolt": " Bolt", "hex nut": "HEX_NUT"}.__getitem__),
    "other images": other_images,
    "more categories, broken objects": more_categories,
}


@pytest.mark.parametrize("way", WAYS)
def test_annotations_score_the_same_however_they_are_written(tmp_path, way):
    plain = read_truth(written(tmp_path, document()), IMAGES, NAMES)
    expected = straight(document(), rows_for(plain))
    assert 0.5 < expected[0] < 1
    WAYS[way](doc := document())
    truth = read_truth(written(tmp_path, doc), IMAGES, NAMES)
    rows = rows_for(truth)
    assert truth.score(rows) == pytest.approx(expected, abs=1e-12)
    ids = [image["id"] for image in doc["images"]]
    assert [row["image_id"] for row in rows if row["score"] > 0.89] == ids[:1], "the JSON carries the file's own ids"


@pytest.mark.parametrize("package", [one[0].partition(".")[0] for one in coco_truth.EVALUATORS])
def test_either_package_will_do(tmp_path, monkeypatch, package):
    pytest.importorskip(package)
    truth = read_truth(written(tmp_path, document()), IMAGES, NAMES)
    expected = straight(document(), rows_for(truth))
    monkeypatch.setattr(coco_truth, "EVALUATORS", [one for one in coco_truth.EVALUATORS if one[0].startswith(package)])
    assert truth.score(rows_for(truth)) == pytest.approx(expected, abs=1e-12)
    assert truth.score([]) == (0, 0)
    monkeypatch.setattr(coco_truth, "EVALUATORS", [])
    assert truth.score(rows_for(truth)) is None, "without a package there is no score, and no error"


def test_coco_itself_scores_to_the_last_digit_as_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_truth, "EVALUATORS", coco_truth.EVALUATORS[1:])  # pycocotools
    rng = np.random.default_rng(0)
    ids = sorted(rng.choice(600000, 40, replace=False).tolist())
    doc: Doc = {
        "info": {},
        "images": [{"id": key, "file_name": f"{key:012}.jpg", "width": 640, "height": 480} for key in ids],
        "categories": [{"id": key, "name": f"kind {key}"} for key in COCO_IDS],
        "annotations": [],
    }
    rng.shuffle(doc["images"])
    images, found = [f"coco/images/val2017/{key:012}.jpg" for key in rng.permutation(ids)], {}
    for path in images:
        kinds, corners = rng.integers(0, 80, 6), rng.uniform(0, 400, (6, 2)).round(2)
        sides = rng.uniform(5, 200, (6, 2)).round(2)
        for kind, (x, y), (width, height) in zip(kinds.tolist(), corners.tolist(), sides.tolist(), strict=True):
            note = {"image_id": int(Path(path).stem), "category_id": COCO_IDS[kind], "bbox": [x, y, width, height]}
            more = {"id": len(doc["annotations"]) + 1, "area": round(0.7 * width * height, 3), "iscrowd": int(x > 380)}
            doc["annotations"].append(note | more)
        shifted = corners + rng.normal(0, 6, (6, 2))
        scores = rng.choice([0.3, 0.5, 0.7], 6)  # many of one score, whose order then matters
        found[path] = torch.tensor(np.column_stack([shifted, shifted + sides, scores, kinds]))
    names = [f"kind {key}" for key in COCO_IDS]
    truth = read_truth(written(tmp_path, doc), images, names)
    rows = [row for path in images for row in coco_rows(found[path], path, COCO_IDS)]
    ours = [row for path in images for row in coco_rows(found[path], path, truth.category_ids, truth.image_ids[path])]
    assert ours == rows, "the JSON has COCO's numbers"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    expected = straight(doc, rows)
    assert truth.score(ours) == expected and expected[0] > 0.05
    assert coco_score(tmp_path / "rows.json", tmp_path / "own.json", ids) == expected


def test_one_class_for_all_and_what_is_left_out(tmp_path, caplog):
    truth = read_truth(written(tmp_path, document()), IMAGES, ["item"], merged=True)
    found = torch.tensor([[10.0, 10, 30, 30, 0.9, 0], [60, 5, 90, 45, 0.8, 0]])
    rows = coco_rows(found, IMAGES[0], truth.category_ids, 1)
    rows += coco_rows(torch.tensor([[0, 0, 50, 25, 0.7, 0]]), IMAGES[1], truth.category_ids, 2)
    rows += coco_rows(torch.tensor([[5, 5, 45, 45, 0.7, 0]]), IMAGES[2], truth.category_ids, 3)
    assert truth.score(rows) in (pytest.approx((1, 1)), None)
    assert len(truth.annotations) == 4
    more_categories(doc := document())
    doc["images"] = [*doc["images"][1:], {"id": 20, "file_name": "unseen.jpg"}]
    truth = read_truth(written(tmp_path, doc), IMAGES, [*NAMES, "washer"])
    assert truth.image_ids == {IMAGES[1]: 2, IMAGES[2]: 3} and truth.category_ids == [1, 2, None]
    assert len(truth.annotations) == 2 and len(caplog.records) == 1
    for words in (
        "classes that it lacks: 1 (first: washer)",
        "scored images that it lacks: 1 (first: /data/own/images/val/first.jpg)",
        "images of its own that are not scored: 1 (first: unseen.jpg)",
        "objects of images or categories that it does not list",
    ):
        assert words in caplog.text
    found = torch.tensor([[0, 0, 9, 9, 0.5, 2]])
    assert coco_rows(found, IMAGES[1], truth.category_ids, 2) == [], "no row for a class without a category"


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "not valid JSON"),
        ([], "no list of images"),
        ({"images": [], "categories": []}, "no list of annotations"),
        ({"images": [3], "categories": [], "annotations": []}, "no list of images"),
        (document() | {"images": []}, "none of its 0 images"),
        (document() | {"categories": []}, "none of its 0 categories"),
        (document() | {"images": [{"id": 1, "file_name": "a\n.jpg"}]}, "'first.jpg', '007.jpg', 'third.png'"),
        (document() | {"categories": [{"id": i, "name": f"c{i}"} for i in range(1, 9)]}, r"'c3' \.\.\..*'hex nut'"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, content, words):
    file = written(tmp_path, content)
    if content == "":
        file.write_text("{")
    with pytest.raises(ValueError, match=words) as caught:
        read_truth(file, IMAGES, NAMES)
    assert "\n" not in str(caught.value) and "own.json" in str(caught.value)


def test_images_of_one_name_are_told_apart_by_their_folders_or_not_at_all():
    images = ["/d/a/1.jpg", "/d/b/1.jpg", "/d/c/2.jpg"]

    def ids(*names):
        return match_images(dict(enumerate(names, 1)), images)

    assert ids() == match_images({1: "a.jpg"}, []) == {}
    assert ids("b\\1.jpg", "x/a/1.jpg", "2.jpg") == {"/d/a/1.jpg": 2, "/d/b/1.jpg": 1, "/d/c/2.jpg": 3}
    assert ids("1.jpg", "2.jpg") == {"/d/c/2.jpg": 2}, "it may be either"
    assert ids("1.jpg", "a/1.jpg", "2.jpg") == {"/d/a/1.jpg": 2, "/d/b/1.jpg": 1, "/d/c/2.jpg": 3}
    assert ids("x/2.jpg", "y/2.jpg", "a/1.jpg") == {"/d/a/1.jpg": 3}
    near = match_images({1: "A.JPG", 2: "a.jpg", 3: "a.png"}, ["a.jpg", "a.png", "b.jpg"])
    assert near == {"a.jpg": 2, "a.png": 3}, "exact names go before near ones"
    assert match_images({1: "ca\u0308t.tif"}, ["d/CÄT.jpg"]) == {"d/CÄT.jpg": 1}


def test_ids_and_names(tmp_path, caplog):
    assert sorted([10, "9", "b", 1, "a"], key=order) == [1, "9", 10, "a", "b"]
    doc = document() | {"images": [{"id": 7}, {"id": 1}]}
    assert read_truth(written(tmp_path, doc), IMAGES, NAMES).image_ids == {IMAGES[1]: 7}
    (file := tmp_path / "a.json").write_text(json.dumps(document() | {"annotations": []}))
    assert read_truth(file, IMAGES, NAMES).annotations == []
    assert "a.json has no objects to score by on these images" in caplog.text


@pytest.mark.parametrize(
    "note, box",
    [
        *((note, None) for note in ({}, {"bbox": []}, {"bbox": ["a", 1, 2, 3]}, {"bbox": [1, 2, 3]})),
        *(({"bbox": [1, 2, float("inf"), 3]}, None), ({"segmentation": [[1, 2, 3]]}, None)),
        *(({"bbox": [1, 2, 3, 4]}, [1, 2, 3, 4]), ({"bbox": [5, 5, -5, -1]}, [0, 4, 5, 1])),
        ({"bbox": None, "segmentation": [0, 0, 4, 0, 4, 2]}, [0, 0, 4, 2]),
        ({"segmentation": {"counts": "abc", "size": [3, 3]}}, None),
    ],
)
def test_boxes_of_annotations(note, box):
    assert upright(box_of(note)) == box


def test_annotations_are_found_where_tools_put_them(tmp_path):
    folder = tmp_path / "images/val2017"
    assert find_annotations(tmp_path, "val", [folder]) is None
    places = [
        "valid/_annotations.coco.json", "annotations/instances_default.json", "annotations/val.json",
        "annotations/instances_val.json",
    ]  # fmt: skip
    for name in places:  # each goes before those above it
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
        assert find_annotations(tmp_path, "val", [tmp_path / "valid/images"]) == tmp_path / name
    assert find_annotations(tmp_path / "elsewhere", "val", [folder]) == tmp_path / places[-1]
    assert find_annotations(tmp_path / "elsewhere", "test", [folder]) == tmp_path / places[1]
