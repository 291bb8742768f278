"""Rows of our label files from other people's annotations; all values by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.labels import parse_label_text
from utils.prepare.label_formats import (
    XVIEW_TYPES,
    DotaReader,
    argoverse_rows,
    box_row,
    boxed,
    is_size,
    polygon_row,
    sku_rows,
    visdrone_rows,
    write_rows,
    xview_rows,
)
from utils.prepare.tally import Tally

VISDRONE = "10,20,30,40,1,4,0,0\n0,0,5,5,0,0,0,0\n1,1,4,4,1,11,0,0\n90,40,20,20,1,1,0,0,\n"
DOTA = "imagesource:GoogleEarth\ngsd:0.5\n10 10 30 10 30 20 10 20 ship 0\n0 0 50 0 50 50 0 50 plane 1\n"
NAN, INF = float("nan"), float("inf")


def values(rows: list[str]) -> list[list[float]]:
    return [[float(value) for value in row.split()] for row in rows]


def test_nothing_gives_nothing(tmp_path: Path) -> None:
    assert visdrone_rows("", (10, 10)) == DotaReader(["a"]).rows("", (10, 10)) == [] and sku_rows("") == {}
    (tmp_path / "a.json").write_text('{"features": [], "images": [], "annotations": []}')
    assert argoverse_rows(tmp_path / "a.json") == xview_rows(tmp_path / "a.json", {}) == {}


# ---- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_are_cut_at_the_edges() -> None:
    assert box_row(3, (10, 10, 30, 20), (100, 50)) == "3 0.200000 0.300000 0.200000 0.200000"
    assert box_row(0, (-10, -10, 50, 25), (100, 50), 2) == "0 0.25 0.25 0.50 0.50"
    assert box_row(0, (100, 0, 120, 10), (100, 50)) is None and box_row(0, (5, 5, 5, 9), (100, 50)) is None
    assert box_row(0, (1, 2, NAN, 4), (100, 50)) is None and box_row(0, (1, 2, INF, 4), (100, 50)) is None


def test_outlines_need_three_points() -> None:
    assert polygon_row(1, [[0, 0], [10, 0]], (10, 10)) is None
    assert len(polygon_row(1, [[0, 0], [10, 0], [10, 10]], (10, 10)).split()) == 9


@pytest.mark.parametrize("size", [(0, 9), (9, -1), (NAN, 9), (9, INF), (None, 9)])
def test_sizes_that_no_image_has(size: tuple[float, float]) -> None:
    assert not is_size(size) and not is_size(None) and is_size((9, 1))
    if None not in size:
        for call in (lambda: box_row(0, (1, 1, 2, 2), size), lambda: polygon_row(0, [[1, 1]], size)):
            with pytest.raises(ValueError, match="an image of"):
                call()


@given(st.lists(st.floats(-20, 120), min_size=4, max_size=4))
def test_any_two_opposite_corners_are_one_box(corners: list[float]) -> None:
    x1, y1, x2, y2 = corners
    assert (
        box_row(0, corners, (100, 50))
        == box_row(0, (x2, y1, x1, y2), (100, 50))
        == box_row(0, (x2, y2, x1, y1), (100, 50))
    )


@pytest.mark.parametrize(
    "corners, kept, said",
    [
        ((10, 10, 30, 20), 1, ""),
        ((-1, -1, 101, 51), 1, ""),  # a pixel may be a matter of counting
        ((30, 10, 10, 20), 1, "turned round"),
        ((10, 20, 30, 10), 1, "turned round"),
        ((-2, 10, 30, 20), 1, "cut at its edges"),
        ((10, 10, 30, 52), 1, "cut at its edges"),
        ((0.1, 0.2, 0.5, 0.6), 1, "not fractions"),
        ((10, 10, 10, 20), 0, "without width or height"),
        ((100, 10, 110, 20), 0, "outside"),
        ((10, 10, NAN, 20), 0, "not finite"),
    ],
)
def test_what_is_wrong_with_a_box_is_counted(corners: tuple[float, ...], kept: int, said: str) -> None:
    tally = Tally()
    assert len(boxed(tally, 0, corners, (100, 50), "here")) == kept and tally.lost == 1 - kept
    ((what, (count, example)),) = ({**tally.dropped, **tally.remarks} or {"": (1, "here")}).items()
    assert said in what and (count, example) == (1, "here")


def test_a_label_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken():
        yield "0 1 1 1 1"
        raise RuntimeError

    write_rows(tmp_path / "b/a.txt", ["1", "2"])
    with pytest.raises(RuntimeError):
        write_rows(tmp_path / "b/a.txt", broken())
    assert [(file.name, file.read_text()) for file in (tmp_path / "b").iterdir()] == [("a.txt", "1\n2\n")]


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_dota_boxes_and_corners() -> None:
    reader = DotaReader({0: "Plane", 1: "ship"})
    rows = reader.rows(DOTA, (100, 50), "P1.txt")
    assert values(rows) == [[1, 0.2, 0.3, 0.2, 0.2], [0, 0.25, 0.5, 0.5, 1]]
    assert reader.tally.remarks == {"objects are marked difficult; they are kept": (1, "P1.txt:4")}
    rows = DotaReader(["plane", "ship"], polygons=True).rows(DOTA, (100, 50))
    _, segments, _ = parse_label_text("\n".join(rows))
    assert [len(points) for points in segments] == [4, 4]


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize(
    "line, reason",
    [
        ("10 10 30 10 30 20 10 20 ships 0", "called 'ships', which is not among the names; did you mean 'ship'?"),
        ("10 10 30 10 30 20 10 20", "line without four corners and a kind"),
        ("10 10 30 10 30 20 10 x ship 0", "corners that are not numbers"),
        ("nan 10 30 10 30 20 10 20 ship 0", "not finite"),
        ("200 1 300 1 300 2 200 2 ship 0", "outside of its image"),
    ],
)
def test_what_dota_lines_are_dropped_for(line: str, reason: str, polygons: bool) -> None:
    reader = DotaReader(["ship", "plane"], polygons)
    assert len(reader.rows(f"{DOTA}{line}\n", (100, 50), "P1.txt")) == 2
    ((said, counted),) = reader.tally.dropped.items()
    assert reason in said and counted == (1, "P1.txt:5")


def test_visdrone_skips_what_is_to_be_ignored() -> None:
    tally = Tally()
    rows = values(visdrone_rows(VISDRONE, (100, 50), tally, "a.txt"))
    assert [row[0] for row in rows] == [3, 0]
    np.testing.assert_allclose(rows[0][1:], [0.25, 0.7, 0.3, 0.6])
    np.testing.assert_allclose(rows[1][1:], [0.95, 0.9, 0.1, 0.2])
    ((reason, counted),) = tally.dropped.items()
    assert "region to ignore" in reason and counted == (2, "a.txt:2")


def test_tables_of_shelves() -> None:
    tally = Tally()
    text = "a.jpg,10,10,30,20,object,100,50\na.jpg,50,50,0,0,object,100,50\n\nb.jpg,5,5,5,5,object,9,9\n"
    rows = sku_rows(text, tally, "t.csv")
    assert values(rows["a.jpg"]) == [[0, 0.2, 0.3, 0.2, 0.2], [0, 0.25, 0.5, 0.5, 1]] and rows["b.jpg"] == []
    assert tally.dropped == {"box without width or height": (1, "t.csv:3")} and len(tally.remarks) == 1


def test_argoverse_images_have_one_size(tmp_path: Path) -> None:
    notes = {
        "seq_dirs": ["train/s0/front"],
        "images": [{"sid": 0, "name": "a.jpg"}, {"sid": 0, "name": "b.jpg"}],
        "annotations": [
            {"image_id": 1, "category_id": 2, "bbox": [192, 120, 384, 240]},
            {"image_id": 1, "category_id": 2, "bbox": [192, 120, 0, 240]},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(notes))
    tally = Tally()
    rows = argoverse_rows(tmp_path / "a.json", tally)
    assert rows["train/s0/front/a.jpg"] == [] and values(rows["train/s0/front/b.jpg"]) == [[2, 0.2, 0.2, 0.2, 0.2]]
    assert tally.lost == 1


def test_xview_has_sixty_kinds(tmp_path: Path) -> None:
    assert len(XVIEW_TYPES) == 60 and sorted(set(XVIEW_TYPES)) == list(XVIEW_TYPES)
    assert (XVIEW_TYPES[0], XVIEW_TYPES[48], XVIEW_TYPES[59]) == (11, 73, 94)
    features = [("1.tif", 94, "10,10,30,20"), ("1.tif", 75, "1,1,2,2"), ("2.tif", 94, "1,1,2,2"), ("1.tif", 94, "")]
    content = [dict(zip(("image_id", "type_id", "bounds_imcoords"), about, strict=True)) for about in features]
    (tmp_path / "x.geojson").write_text(json.dumps({"features": [{"properties": about} for about in content]}))
    tally = Tally()
    rows = xview_rows(tmp_path / "x.geojson", {"1.tif": (100, 50)}, tally)
    assert values(rows["1.tif"]) == [[59, 0.2, 0.3, 0.2, 0.2]] and tally.lost == 3
    assert [reason.split()[-1] for reason in tally.dropped] == ["sixty", "there", "bounds"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "\x80", '{"images": 1' + "0" * 400 + "}"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    for read in (argoverse_rows, lambda path: xview_rows(path, {})):
        with pytest.raises(ValueError, match="a.json: not "):
            read(tmp_path / "a.json")
