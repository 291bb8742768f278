"""What a validation writes."""

from __future__ import annotations

import torch

from utils.evaluation.reports import Report
from utils.prepare.label_formats import COCO_IDS


def add(report, name="7.jpg", batch=0, count=1):
    """An image with detections of the class 1."""
    report.image(name, (100, 200), torch.tensor([[10.0, 20, 30, 60, 0.9, 1]]).repeat(count, 1), batch)


def test_nothing_is_written_unless_asked(tmp_path):
    add(Report(tmp_path, ["a", "b"], plots=False))
    assert not list(tmp_path.iterdir())
    Report(tmp_path, ["a"], json=tmp_path / "rows.json").finish(None)
    assert not list(tmp_path.iterdir())


def test_label_file_and_rows(tmp_path):
    report = Report(
        tmp_path, ["a", "b"], plots=False, txt=True, confidence=True, json=tmp_path / "rows.json", categories=COCO_IDS
    )
    add(report)
    assert (tmp_path / "labels/7.txt").read_text() == "1 0.1 0.4 0.1 0.4 0.9\n"
    report.receive([report.found])
    assert report.rows == [{"image_id": 7, "category_id": 2, "bbox": [10, 20, 20, 40], "score": 0.9}]


def test_images_of_one_name_have_label_files_of_their_own(tmp_path, caplog):
    report = Report(tmp_path, ["a", "b"], plots=False, txt=True)
    report.name_images([])
    images = ["x/1.jpg", "x/1.png", "y/1.jpg", "y/2.jpg"]
    report.name_images(images)
    for count, image in enumerate(images, 1):
        add(report, image, count=count)
    rows = {file.name: len(file.read_text().splitlines()) for file in (tmp_path / "labels").iterdir()}
    assert rows == {"1.txt": 1, "1-2.txt": 2, "1-3.txt": 3, "2.txt": 4}
    report.name_images(["x/7.jpg", "y/7.jpg", "x/007.png", "x/b.jpg"])
    report.receive([report.found])
    assert not report.rows and list(report._ids.values()) == [7, "7-2", "7-3", "b"], "ids of the JSON"
    record = caplog.records[0]
    assert record.getMessage().startswith("2 of 4 sources are named like others")


def test_rows_of_several_processes_come_in_the_order_of_the_data_set(tmp_path):
    reports = [Report(tmp_path, ["a", "b"], plots=False, json=tmp_path / "rows.json") for _ in range(3)]
    for batch in range(5):
        for place in range(2):
            add(reports[batch % 2], f"{10 * batch + place}.jpg", batch, count=int(batch != 3))
    reports[0].receive([report.found for report in reports])
    assert [row["image_id"] for row in reports[0].rows] == [0, 1, 10, 11, 20, 21, 40, 41]
