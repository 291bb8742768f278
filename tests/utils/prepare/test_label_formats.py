"""Rows of our label files from other people's annotations, and what is counted of them; all values by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.base.config import ClassNames
from utils.data.labels import parse_label_text
from utils.prepare.label_formats import (
    MAX_REASONS,
    XVIEW_TYPES,
    DropCounts,
    argoverse_rows,
    box_rows,
    dota_rows,
    is_size,
    polygon_row,
    sku_rows,
    visdrone_rows,
    xview_rows,
)

SIZE = (100, 50)
SHIPS = ClassNames(["ship", "plane"])
VISDRONE = "10,20,30,40,1,4,0,0\n0,0,5,5,0,0,0,0\n1,1,4,4,1,11,0,0\n90,40,20,20,1,1,0,0,\n"
DOTA = "imagesource:GoogleEarth\ngsd:0.5\n10 10 30 10 30 20 10 20 ship 0\n0 0 50 0 50 50 0 50 plane 1\n"
NAN, INF = float("nan"), float("inf")


def values(rows: list[str]) -> list[list[float]]:
    return [[float(value) for value in row.split()] for row in rows]


# ---- counts ----------------------------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_each_reason_has_its_count_and_its_first_example(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "yolov5")
    counts = DropCounts()
    counts.report("a.json", "labels", 5, 3)
    for reason, example, count in (("too small", "b.jpg", 1), ("a crowd", "c\n.jpg", 2), ("too small", "z.jpg", 4)):
        counts.drop(reason, example, count)
    counts.drop("never", "x", 0)
    counts.remark("were turned", "d.jpg")
    counts.report("a.json", "labels", 1, 3)
    assert counts.total == 7 and lines(caplog) == [
        "INFO a.json: 5 boxes of 3 images kept, 0 dropped; labels in labels",
        "WARNING a.json: 1 boxes of 3 images kept, 7 dropped; labels in labels",
        "WARNING a.json: 5 dropped: too small (first: b.jpg)",
        "WARNING a.json: 2 dropped: a crowd (first: c\\n.jpg)",
        "WARNING a.json: 1 were turned (first: d.jpg)",
    ]


def test_nothing_kept_is_an_error_and_a_thousand_reasons_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    counts = DropCounts()
    for count, reason in enumerate("abcd", start=1):
        counts.drop(reason, f"{reason}.jpg", count)
    with pytest.raises(ValueError, match=r"none of its 10 boxes can be used: 4 d \(first: d.jpg\); 3 c .*; 2 b"):
        counts.report("a.json", "labels", 0, 3)
    for number in range(1000):
        counts.drop(f"called {number}", "a.jpg")
    counts.report("a.json", "labels", 1, 1)
    assert len(lines(caplog)) == MAX_REASONS + 2 and lines(caplog)[-1].endswith(
        f"and {1004 - MAX_REASONS} more reasons"
    )


# ---- boxes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(0, 9), (9, -1), (NAN, 9), (9, INF), (None, 9), None])
def test_sizes_that_no_image_has(size: tuple[float, float] | None) -> None:
    assert not is_size(size) and is_size((9, 1))


@given(st.lists(st.floats(-20, 120), min_size=4, max_size=4))
def test_any_two_opposite_corners_are_one_box(corners: list[float]) -> None:
    x1, y1, x2, y2 = corners
    boxes = [box_rows(DropCounts(), 0, box, SIZE, "") for box in (corners, (x2, y1, x1, y2), (x2, y2, x1, y1))]
    assert boxes[0] == boxes[1] == boxes[2]


@pytest.mark.parametrize(
    "corners, row, said",
    [
        ((10, 10, 30, 20), "0.200 0.300 0.200 0.200", ""),
        ((-1, -1, 101, 51), "0.500 0.500 1.000 1.000", ""),  # a pixel may be a matter of counting
        ((30, 10, 10, 20), "0.200 0.300 0.200 0.200", "turned round"),
        ((10, 20, 30, 10), "0.200 0.300 0.200 0.200", "turned round"),
        ((-10, -10, 50, 25), "0.250 0.250 0.500 0.500", "cut at its edges"),
        ((10, 10, 30, 52), "0.200 0.600 0.200 0.800", "cut at its edges"),
        ((0.1, 0.2, 0.5, 0.6), "0.003 0.008 0.004 0.008", "not fractions"),
        ((10, 10, 10, 20), None, "without width or height"),
        ((100, 10, 110, 20), None, "outside"),
        ((10, 10, NAN, 20), None, "not finite"),
        ((10, 10, INF, 20), None, "not finite"),
    ],
)
def test_boxes_are_cut_and_what_is_wrong_with_them_is_counted(corners, row, said):
    counts = DropCounts()
    assert box_rows(counts, 3, corners, SIZE, "here", 3) == ([f"3 {row}"] if row else [])
    assert counts.total == (row is None)
    ((what, (count, example)),) = ({**counts.dropped, **counts.remarks} or {"": (1, "here")}).items()
    assert said in what and (count, example) == (1, "here")


def test_outlines_need_three_points() -> None:
    points = np.array([[0, 0], [10, 0], [10, 10]])
    assert polygon_row(1, points[:2], (10, 10)) is None
    assert len(polygon_row(1, points, (10, 10)).split()) == 9


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_dota_boxes_and_corners() -> None:
    counts = DropCounts()
    rows = dota_rows(DOTA, SIZE, ClassNames({0: "Plane", 1: "ship"}), counts, "P1.txt")
    assert values(rows) == [[1, 0.2, 0.3, 0.2, 0.2], [0, 0.25, 0.5, 0.5, 1]]
    assert counts.remarks == {"objects are marked difficult; they are kept": (1, "P1.txt:4")}
    rows = dota_rows(DOTA, SIZE, SHIPS, counts, "P1.txt", polygons=True)
    segments = parse_label_text("\n".join(rows)).segments
    assert [len(points) for points in segments] == [4, 4]


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize(
    "line, reason",
    [
        ("10 10 30 10 30 20 10 20 ships 0", "called 'ships', which is not among the names; did you mean 'ship'?"),
        ("10 10 30 10 30 20 10 20", "line without four corners and a kind"),
        ("10 10 30 10 30 20 10 x ship 0", "corners that are not numbers"),
        ("nan 10 30 10 30 20 10 20 ship 0", "not finite"), ("200 1 300 1 300 2 200 2 ship 0", "outside of its image"),
    ],
)  # fmt: skip
def test_what_dota_lines_are_dropped_for(line: str, reason: str, polygons: bool) -> None:
    counts = DropCounts()
    assert len(dota_rows(f"{DOTA}{line}\n", SIZE, SHIPS, counts, "P1.txt", polygons)) == 2
    ((said, counted),) = counts.dropped.items()
    assert reason in said and counted == (1, "P1.txt:5")


def test_what_named_data_sets_drop(tmp_path: Path) -> None:
    """What they keep is tested with `prepare`, in test_converters."""
    counts = DropCounts()
    assert len(visdrone_rows(VISDRONE, SIZE, counts, "a.txt")) == 2
    text = "a.jpg,10,10,30,20,object,100,50\na.jpg,50,50,0,0,object,100,50\n\nb.jpg,5,5,5,5,object,9,9\n"
    assert {name: len(rows) for name, rows in sku_rows(text, counts, "t.csv").items()} == {"a.jpg": 2, "b.jpg": 0}
    images = [{"sid": 0, "name": name} for name in ("a.jpg", "b.jpg")]
    boxes = [{"image_id": 1, "category_id": 2, "bbox": [192, 120, width, 240]} for width in (384, 0)]
    features = [("1.tif", 94, "10,10,30,20"), ("1.tif", 75, "1,1,2,2"), ("2.tif", 94, "1,1,2,2"), ("1.tif", 94, "")]
    named = [dict(zip(("image_id", "type_id", "bounds_imcoords"), feature, strict=True)) for feature in features]
    content = {"seq_dirs": ["s0/front"], "images": images, "annotations": boxes}
    (tmp_path / "a.json").write_text(json.dumps(content | {"features": [{"properties": one} for one in named]}))
    assert argoverse_rows(tmp_path / "a.json", counts)["s0/front/a.jpg"] == []
    rows = xview_rows(tmp_path / "a.json", {"1.tif": SIZE, "3.tif": SIZE}, counts)
    assert rows == {"1.tif": ["59 0.200000 0.300000 0.200000 0.200000"], "3.tif": []}
    assert counts.dropped == {
        "of a region to ignore (score 0, or a class that is none of the ten)": (2, "a.txt:2"),
        "box without width or height": (2, "t.csv:3"),
        "of a type that is none of the sixty": (1, "feature 1 of 1.tif"),
        "of an image that is not there": (1, "feature 2 of 2.tif"),
        "without bounds": (1, "feature 3 of 1.tif"),
    }
    with pytest.raises(ValueError, match=r"an image of 0.0 x 50.0 pixels"):
        sku_rows("a.jpg,10,10,30,20,object,0,50\n", counts, "t.csv")
    assert len(XVIEW_TYPES) == 60 and sorted(set(XVIEW_TYPES)) == list(XVIEW_TYPES)


@pytest.mark.parametrize("read", [argoverse_rows, lambda path, counts: xview_rows(path, {}, counts)])
@pytest.mark.parametrize("content", ["[]", '{"images": 5, "features": [3]}', "5"])
def test_another_file_is_named(tmp_path: Path, read, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="a.json: not (an Argoverse|xView)"):
        read(tmp_path / "a.json", DropCounts())
