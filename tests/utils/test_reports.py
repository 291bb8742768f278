"""What a validation writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from utils.evaluator import ImageResult
from utils.label_formats import COCO_IDS
from utils.reports import Report, ReportSettings, coco_score


def result(name: str = "7.jpg") -> ImageResult:
    detections = torch.tensor([[10.0, 20, 30, 60, 0.9, 1]])
    return ImageResult(name, (100, 200), detections, torch.ones(1, 10, dtype=torch.bool))


def test_nothing_is_written_unless_asked(tmp_path: Path) -> None:
    Report(ReportSettings(tmp_path, ["a", "b"], plots=False)).image(result())
    assert not list(tmp_path.iterdir())


def test_label_file_and_rows(tmp_path: Path) -> None:
    settings = ReportSettings(
        tmp_path, ["a", "b"], plots=False, txt=True, confidence=True, json=tmp_path / "rows.json", categories=COCO_IDS
    )
    report = Report(settings)
    report.image(result())
    assert (tmp_path / "labels/7.txt").read_text() == "1 0.1 0.4 0.1 0.4 0.9\n"
    assert settings.rows == [{"image_id": 7, "category_id": 2, "bbox": [10, 20, 20, 40], "score": 0.9}]


def test_coco_ids_are_the_80_of_91() -> None:
    assert len(COCO_IDS) == 80 and COCO_IDS[0] == 1 and COCO_IDS[11] == 13 and COCO_IDS[-1] == 90


def test_cocos_own_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    truth = {
        "info": {},
        "images": [{"id": 7, "width": 200, "height": 100}],
        "categories": [{"id": 2, "name": "b"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 20, 20, 40], "area": 800, "iscrowd": 0}
        ],
    }
    (annotations := tmp_path / "truth.json").write_text(json.dumps(truth))
    (rows := tmp_path / "rows.json").write_text(
        json.dumps([{"image_id": 7, "category_id": 2, "bbox": [10, 20, 20, 40], "score": 0.9}])
    )
    assert coco_score(rows, annotations, [7]) == pytest.approx((1.0, 1.0))
    rows.write_text("[]")
    assert coco_score(rows, annotations, [7]) == (0.0, 0.0)
    assert coco_score(rows, tmp_path / "none.json", [7]) is None
