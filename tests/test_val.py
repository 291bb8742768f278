"""val.py on data sets of people's own: their COCO annotations, one class for all, crowded images."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest

import val
from models.yolo import Model
from tests.known_detector import NAMES, write_weights
from utils.checkpoints.checkpoint import describe_model, save_checkpoint

FILES = ("one.png", "7.png")
BASE: dict[str, Any] = {"imgsz": 32, "workers": 0, "device": "cpu", "batch_size": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("known") / "best.pt")


@pytest.fixture
def own(tmp_path):
    """Two images of 32 x 32 with a person each where the known detector sees one; the path of the YAML."""
    for name in FILES:
        for folder in ("images", "labels"):
            (tmp_path / folder / "val").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "images/val" / name), np.full((32, 32, 3), 90, np.uint8))
        (tmp_path / "labels/val" / name).with_suffix(".txt").write_text("1 0.375 0.375 0.3125 0.40625\n")
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({"train": "images/val", "val": "images/val", "names": NAMES}))
    return file


def annotations(folder, **more):
    """The same in COCO's JSON, with ids and an order of its own."""
    doc = {
        "images": [{"id": 10 + number, "file_name": f"val/{name}"} for number, name in enumerate(FILES)],
        "categories": [{"id": 4, "name": "Person"}, {"id": 9, "name": "car"}],
        "annotations": [
            {"id": number, "image_id": 10 + number, "category_id": 4, "bbox": [7, 5.5, 10, 13]} for number in range(2)
        ],
    }
    file = folder / "instances_val.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(doc | more))
    return file


def run(weights, own, **given):
    return val.run(weights=str(weights), data=str(own), project=str(own.parent / "val"), **BASE, **given)[0]


@pytest.mark.parametrize("named", [False, True])
def test_own_coco_annotations_are_scored_by_name(weights, own, caplog, named):
    file = annotations(own.parent / ("elsewhere" if named else "annotations"))
    with caplog.at_level("INFO", "yolov5"):
        summary = run(weights, own, **({"annotations": str(file)} if named else {"save_json": True}))
    rows = json.loads((own.parent / "val/exp/best_predictions.json").read_text())
    assert {row["image_id"] for row in rows} == {10, 11} and {row["category_id"] for row in rows} == {4}
    assert "leaves out classes that it lacks: 1 (first: 行人)" in caplog.text
    lines = [record.getMessage() for record in caplog.records if "Average Precision" in record.getMessage()]
    pytest.importorskip("pycocotools")
    score = float(lines[0].splitlines()[1].rpartition("=")[2])  # at an IoU of 0.5
    assert summary[2] > 0.02 and score == pytest.approx(summary[2], abs=0.001)


def test_without_annotations_the_json_is_as_in_v61(weights, own, caplog):
    with caplog.at_level("INFO", "yolov5"):
        run(weights, own, save_json=True)
    rows = json.loads((own.parent / "val/exp/best_predictions.json").read_text())
    assert {row["image_id"] for row in rows} == {"one", 7} and {row["category_id"] for row in rows} == {1}
    assert "name a file by --annotations" in caplog.text


@pytest.mark.parametrize(
    "more, words",
    [
        ({"categories": [{"id": 4, "name": "plane"}]}, "none of its 1 categories ('plane') is among the 3"),
        ({"images": [{"id": 10, "file_name": "x.png"}]}, "none of its 1 images ('x.png') is among the 2"),
    ],
)
def test_annotations_of_something_else_end_it_before_it_begins(weights, own, capsys, more, words):
    annotations(own.parent / "annotations", **more)
    project = own.parent / "val"
    given = ["--weights", str(weights), "--data", str(own), "--project", str(project), "--workers", "0", "--save-json"]
    assert val.main([*given, "--imgsz", "32"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "ERROR" in line]
    assert len(errors) == 1 and words in errors[0] and not project.exists()


def test_weights_of_one_class_for_all_score_on_the_data_that_they_were_trained_on(own, capsys):
    model = Model("yolov5n.yaml", nc=1, verbose=False)
    annotations(own.parent / "annotations")

    def score(name, *more):
        model.names = [name]
        save_checkpoint(own.parent / "moved.pt", {"epoch": -1, "model": describe_model(model), "ema": None})
        given = ["--weights", str(own.parent / "moved.pt"), "--data", str(own), "--project", str(own.parent / "val")]
        return val.main([*given, "--workers", "0", "--imgsz", "32", *more]), capsys.readouterr().err

    status, log = score("item", "--save-json")
    assert status == 0 and "--single-cls (the weights were trained with it): the 3 classes" in log
    status, log = score("thing")
    assert status == 1 and "give --single-cls" in log
    assert score("thing", "--single-cls")[0] == 0
    own.write_text(json.dumps({"train": "images/val", "val": "images/val", "names": ["bolt"]}))
    for file in (own.parent / "labels/val").iterdir():
        file.write_text("0 0.5 0.5 0.5 0.5\n")
    status, log = score("item")
    assert status == 0 and "--single-cls" not in log, "a data set of one class keeps its name"


def test_images_with_more_objects_than_are_kept_are_counted(weights, own, caplog):
    labels = [f"1 {0.1 + 0.01 * i:.2f} 0.5 0.1 0.1\n" for i in range(12)]
    (own.parent / "labels/val/7.txt").write_text("".join(labels))
    run(weights, own, max_det=12)
    assert "--max-det" not in caplog.text
    run(weights, own, max_det=11)
    said = [record.getMessage() for record in caplog.records if "--max-det" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("1 image has more than 11 objects (most: 12)")


def test_objects_too_small_for_the_whole_image_are_scored_in_tiles(weights, own):
    for name in FILES:
        cv2.imwrite(str(own.parent / "images/val" / name), np.full((80, 80, 3), 90, np.uint8))
        label = (own.parent / "labels/val" / name).with_suffix(".txt")
        label.write_text(f"1 {12 / 80} {12 / 80} {10 / 80} {13 / 80}\n")  # as the known detector sees one in a tile
    assert run(weights, own)[2] == 0
    assert run(weights, own, tile=32, tile_overlap=0.25)[2] > 0.005
    drawn = {path.name for path in (own.parent / "val/exp2").glob("val_batch*")}
    assert {"val_batch0_pred.jpg", "val_batch1_pred.jpg"} <= drawn  # an image each
    with pytest.raises(ValueError, match="give --tile SIZE"):
        run(weights, own, tile_merge="wbf")
