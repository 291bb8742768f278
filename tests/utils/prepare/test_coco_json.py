"""COCO files as people write them; all values by hand, masks against pycocotools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.base.config import ClassNames
from utils.data.labels import parse_label_text
from utils.prepare.coco_json import CocoReader, box_of

IMAGE = {"id": 7, "file_name": "train/a.jpg", "width": 100, "height": 50}
OTHER = {"id": 9, "file_name": "b.c.jpg", "width": 10, "height": 10}
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car "}]
BOX = {"image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10]}
ROW = [1, 0.2, 0.2, 0.2, 0.2]  # BOX: centre (20, 10), 20 x 10 pixels, of 100 x 50
OUTLINE = [10, 5, 30, 5, 30, 15]  # around it
NAN = float("nan")


def coco(path: Path, notes: list[Any], **changes: Any) -> Path:
    content = {"images": [IMAGE, OTHER], "categories": CATEGORIES, "annotations": notes, **changes}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def read(tmp_path: Path):
    """Rows of the first image as numbers, and the reader, for these annotations."""

    def rows(*notes: Any, changes: Any = None, **options: Any) -> tuple[list[list[float]], CocoReader]:
        names = options.pop("names", ["car", "Dog"])
        reader = CocoReader(names and ClassNames(names), **options)
        found = reader.rows(coco(tmp_path / "a.json", list(notes), **(changes or {})))
        assert not changes or "images" in changes or list(found) == ["train/a.jpg", "b.c.jpg"]
        return [[float(value) for value in row.split()] for row in found.get("train/a.jpg", [])], reader

    return rows


@pytest.mark.parametrize(
    "note, changes",
    [
        ({}, {}), ({"category_id": "18"}, {}), ({"image_id": "7"}, {}), ({"image_id": 7.0, "category_id": " 18 "}, {}),
        ({"category_id": "18.0"}, {}), ({"bbox": ["10", "5", "20.0", "10"]}, {}), ({"bbox": "10, 5, 20, 10"}, {}),
        ({"bbox": "[10 5 20 10]"}, {}), ({"bbox": [30, 15, -20, -10]}, {}), ({"bbox": [30, 5, -20, 10]}, {}),
        ({"bbox": None, "segmentation": [OUTLINE]}, {}), ({"bbox": [], "segmentation": [OUTLINE]}, {}),
        ({"bbox": [0, 0, 0, 0], "segmentation": [OUTLINE]}, {}), ({"bbox": [NAN] * 4, "segmentation": OUTLINE}, {}),
        ({"bbox": ["a", 1, 2, 3], "segmentation": [[*OUTLINE[:4], 30, 6], [20, 10, 21, 15]]}, {}),
        ({"iscrowd": "0"}, {}), ({"iscrowd": None}, {}), ({}, {"images": [{**IMAGE, "id": "7"}]}),
        ({}, {"images": [{**IMAGE, "width": "100", "height": "50.0"}]}),
        ({}, {"categories": [{"id": "18", "name": "DOG"}, {"id": 3, "name": "car"}]}),
    ],
    ids=str,
)  # fmt: skip
def test_what_everybody_writes_is_read(read, note: dict[str, Any], changes: dict[str, Any]) -> None:
    rows, reader = read({**BOX, **note}, changes=changes)
    assert rows == [pytest.approx(ROW)] and not reader.counts.dropped
    turned = "-" in str(note)
    assert len(reader.counts.remarks) == turned and ("turned round" in str(reader.counts.remarks)) == turned


@pytest.mark.parametrize(
    "note, reason",
    [
        ({"iscrowd": 1}, "iscrowd; convert with crowds=True"),
        ({"iscrowd": "1"}, "iscrowd"),
        ({"iscrowd": True}, "iscrowd"),
        ({"image_id": 8}, "image_id that is not among its images"),
        ({"image_id": None}, "image_id"),
        ({"image_id": ["x"]}, "image_id"),
        ({"category_id": 4}, "category_id 4, which is not among its categories"),
        ({"category_id": {}}, "category_id {}"),
        ({"category_id": 3}, "called 'car ', which is not among the names; did you mean 'cars'?"),
        ({"bbox": None}, "without a bbox or an outline"),
        ({"bbox": [1, 2, 3]}, "without a bbox or an outline"),
        ({"bbox": [1, 2, "x", 4]}, "without a bbox or an outline"),
        ({"bbox": None, "segmentation": []}, "without a bbox or an outline"),
        ({"bbox": None, "segmentation": {"counts": "\x7f", "size": [1, 1]}}, "without a bbox or an outline"),
        *(({"bbox": None, "segmentation": {"counts": [60, 20], "size": size}}, "without a bbox or an outline")
          for size in ([8, 9], [0, 9], [80], None)),
        ({"bbox": [10, 10, 0, 5]}, "without width or height"),
        ({"bbox": [200, 10, 5, 5]}, "outside of its image"),
        ({"bbox": [1, 2, 3, NAN]}, "not finite"),
        ({"bbox": [1, 2, 3, float("inf")]}, "not finite"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_dropped_is_counted_with_its_reason_and_example(read, note: dict[str, Any], reason: str) -> None:
    rows, reader = read(BOX, {**BOX, "id": 44, **note}, {**BOX, "id": 45, **note}, names=["cars", "dog"])
    assert rows == [pytest.approx(ROW)]
    ((said, (count, example)),) = reader.counts.dropped.items()
    assert reason in said and count == 2 and ("44" in example or "image_id" in example)
    if "crowds" in reason:
        assert len(read({**BOX, **note}, crowds=True)[0]) == 1


def test_without_names_classes_go_by_their_ids(read, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "yolov5")
    categories = [{"id": "10", "name": "ten"}, {"id": 9, "name": "nine"}, {"id": "x", "name": "ex"}]
    notes = [{**BOX, "category_id": key} for key in (9, 10, "x")]
    notes[1]["image_id"] = 8
    images = [IMAGE, {**IMAGE, "id": 8}, OTHER]
    rows, reader = read(*notes, names=None, changes={"categories": categories, "images": images})
    assert "images are listed twice" in str(reader.counts.remarks)
    assert [row[0] for row in rows] == [0, 1, 2] and 'category id: ["nine", "ten", "ex"]' in caplog.text


def test_roboflows_group_of_all_categories_is_no_class(read) -> None:
    group = {"id": 0, "name": "Bolts", "supercategory": "none"}
    bolt = {"id": 1, "name": "bolt", "supercategory": "Bolts"}
    own = {"id": 2, "name": "person", "supercategory": "person"}
    notes = [{**BOX, "category_id": 1}, {**BOX, "category_id": 2}]
    assert [row[0] for row in read(*notes, names=None, changes={"categories": [group, bolt, own]})[0]] == [0, 1]
    notes.append({**BOX, "category_id": 0})
    assert [row[0] for row in read(*notes, names=None, changes={"categories": [group, bolt]})[0]] == [1, 0]


@pytest.mark.parametrize("size", [{"width": 0}, {"height": -5}, {"height": NAN}, {"width": None}, {"width": "x"}])
def test_an_unknown_size_is_asked_for_and_else_said(read, tmp_path: Path, size: dict[str, Any]) -> None:
    changes = {"images": [{**IMAGE, **size}, OTHER]}
    assert read(BOX, changes=changes, size_of={"train/a.jpg": (100, 50)}.get)[0] == [pytest.approx(ROW)]
    _, reader = read(BOX, BOX, changes=changes)
    ((reason, (count, _)),) = reader.counts.dropped.items()
    assert count == 2 and "width and height are not known; write them into the file, or put the image" in reason
    assert CocoReader().rows(tmp_path / "a.json") == {"b.c.jpg": []}, "no empty labels for what is not known"


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"images": [IMAGE, {**OTHER, "id": "7"}]}, "id 7 belongs to two images, 'train/a.jpg' and 'b.c.jpg'"),
        ({"categories": [*CATEGORIES, {"id": 3, "name": "cat"}]}, "category id 3 is no id, or belongs to two names"),
        ({"images": {}}, "no list of images; export as COCO with images, categories and annotations"),
        ({"annotations": None}, "no list of annotations"), ({"categories": [5]}, "AttributeError|TypeError"),
        ({"images": [{**IMAGE, "file_name": 5}]}, "file_name 5"),
        ({"images": [{"id": 1, "width": 5, "height": 5}]}, "the file_name None; add it"),
        ({"images": [{**IMAGE, "id": {}}]}, "the id {}"), ({"annotations": [3]}, "AttributeError"),
    ],
    ids=str,
)  # fmt: skip
def test_files_that_contradict_themselves_are_refused(read, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.json: not a COCO detection file \(.*({what})") as caught:
        read(BOX, changes=changes)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "1" * 5000, "\x80", '{"images": 1' + "0" * 400 + "}"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="a.json: not "):
        CocoReader().rows(tmp_path / "a.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_in_every_encoding_of_its_own(tmp_path: Path, encoding: str) -> None:
    image = {**IMAGE, "file_name": "螺栓.jpg"}
    text = json.dumps({"images": [image], "categories": CATEGORIES, "annotations": [BOX]}, ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    assert len(CocoReader().rows(tmp_path / "a.json")["螺栓.jpg"]) == 1
    (tmp_path / "a.json").write_bytes(text.encode("gbk"))
    with pytest.raises(ValueError, match="a.json: not valid JSON .it is not text in UTF-8; save it as UTF-8"):
        CocoReader().rows(tmp_path / "a.json")


@pytest.mark.parametrize("size, said", [((40, 20), 0), ((80, 40), 0), ((20, 40), 1), ((40, 30), 1), (None, 0)])
def test_other_proportions_on_disk_are_said(read, size: tuple[int, int] | None, said: int) -> None:
    _, reader = read(BOX, changes={"images": [{**IMAGE, "width": 40, "height": 20}]}, size_of=lambda _: size)
    assert len(reader.counts.remarks) == said
    for what, (count, first) in reader.counts.remarks.items():
        assert "other proportions" in what and count == 1
        assert first == f"train/a.jpg: 40 x 20 written, {size[0]} x {size[1]} on disk"


def test_outlines_of_one_piece_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    outlines = [[OUTLINE], None, [OUTLINE, OUTLINE], [[1, 1, NAN, 9, 9, 9]]]
    reader = CocoReader(ClassNames(["car", "dog"]), polygons=True)
    notes = [{**BOX, "segmentation": outline} for outline in outlines]
    rows = reader.rows(coco(tmp_path / "a.json", notes))["train/a.jpg"]
    labels, segments, *_ = parse_label_text("\n".join(rows))
    np.testing.assert_allclose(labels, [ROW] * 4, atol=1e-6)
    assert [len(points) for points in segments] == [4, 0, 0, 0]
    ((remark, (count, _)),) = reader.counts.remarks.items()
    assert count == 3 and "their boxes are written" in remark


@pytest.mark.parametrize(
    "counts, box",
    [
        ([7, 2, 3, 2, 6], (1, 2, 2, 2)),  # 5 rows x 4 columns, rows 2 and 3 of columns 1 and 2
        ([0, 20], (0, 0, 4, 5)),
        ([4, 2, 14], (0, 0, 2, 5)),  # the foot of column 0 and the head of column 1
        *(([20], None), ([5, 0, 15], None), ([-1, 5], None), ([], None)),
    ],
)
def test_boxes_of_run_lengths_by_hand(counts: list[int], box: tuple[int, ...] | None) -> None:
    assert box_of({"segmentation": {"counts": counts, "size": [5, 4]}}) == box


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_masks_have_the_boxes_of_pycocotools(seed: int, height: int, width: int) -> None:
    tools = pytest.importorskip("pycocotools.mask")
    pixels = (np.random.default_rng(seed).random((height, width)) < 0.15).astype(np.uint8)
    flat = pixels.T.ravel()
    ends = [*np.flatnonzero(np.diff(flat)) + 1, len(flat)]
    runs = [*([0] if flat[0] else []), *np.diff([0, *ends]).tolist()]
    packed = tools.encode(np.asfortranarray(pixels))
    wanted = tuple(tools.toBbox(packed)) if pixels.any() else None
    for counts in (runs, packed["counts"].decode()):
        found = box_of({"segmentation": {"counts": counts, "size": [height, width]}})
        whole = found is not None and (found[1], found[3]) == (0, height)  # a run over two columns has all rows
        assert found == wanted or (whole and (found[0], found[2]) == (wanted[0], wanted[2]))
