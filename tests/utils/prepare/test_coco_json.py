"""COCO files as people write them; all values by hand, masks against pycocotools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.labels import parse_label_text
from utils.prepare.coco_json import CocoReader, _extent

IMAGE = {"id": 7, "file_name": "train/a.jpg", "width": 100, "height": 50}
OTHER = {"id": 9, "file_name": "b.c.jpg", "width": 10, "height": 10}
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car "}]
BOX = {"image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10]}
ROW = [1, 0.2, 0.2, 0.2, 0.2]  # BOX: centre (20, 10), 20 x 10 pixels, of 100 x 50
OUTLINE = [10, 5, 30, 5, 30, 15]  # around it


def coco(path: Path, notes: list[Any], **changes: Any) -> Path:
    content = {"images": [IMAGE, OTHER], "categories": CATEGORIES, "annotations": notes, **changes}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def read(tmp_path: Path):
    """Rows of the first image as numbers, and the reader, for these annotations."""

    def rows(*notes: Any, changes: Any = None, **options: Any) -> tuple[list[list[float]], CocoReader]:
        reader = CocoReader(**{"names": ["car", "Dog"], **options})
        found = reader.rows(coco(tmp_path / "a.json", list(notes), **(changes or {})))
        return [[float(value) for value in row.split()] for row in found.get("train/a.jpg", [])], reader

    return rows


def dropped(reader: CocoReader) -> list[str]:
    return list(reader.tally.dropped)


def test_nothing_gives_nothing(read) -> None:
    rows, reader = read()
    assert rows == [] and not reader.tally.dropped and not reader.tally.remarks


def test_every_image_has_rows_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = coco(tmp_path / "a.json", [BOX, {"image_id": 7, "category_id": 3, "bbox": [90, 40, 20, 20]}])
    rows = CocoReader(["car", "Dog"]).rows(file)
    assert list(rows) == ["train/a.jpg", "b.c.jpg"] and rows["b.c.jpg"] == []
    labels, _, _ = parse_label_text("\n".join(rows["train/a.jpg"]))
    np.testing.assert_allclose(labels, [ROW, [0, 0.95, 0.9, 0.1, 0.2]], atol=1e-6)


@pytest.mark.parametrize(
    "note",
    [
        {"category_id": "18"},
        {"image_id": "7"},
        {"image_id": 7.0, "category_id": " 18 "},
        {"category_id": "18.0"},
        {"bbox": ["10", "5", "20.0", "10"]},
        {"bbox": "10, 5, 20, 10"},
        {"bbox": "[10 5 20 10]"},
        {"bbox": [30, 15, -20, -10]},
        {"bbox": [30, 5, -20, 10]},
        {"bbox": None, "segmentation": [OUTLINE]},
        {"bbox": [], "segmentation": [OUTLINE]},
        {"bbox": [0, 0, 0, 0], "segmentation": [OUTLINE]},
        {"bbox": [float("nan")] * 4, "segmentation": OUTLINE},
        {"bbox": ["a", 1, 2, 3], "segmentation": [OUTLINE[:4] + [30, 6], [20, 10, 21, 15]]},
        {"iscrowd": "0"},
        {"iscrowd": None},
    ],
    ids=str,
)
def test_what_everybody_writes_is_read(read, note: dict[str, Any]) -> None:
    rows, reader = read({**BOX, **note})
    assert rows == [pytest.approx(ROW)] and not reader.tally.dropped
    turned = "-" in str(note)
    assert len(reader.tally.remarks) == turned and ("turned round" in str(reader.tally.remarks)) == turned


@pytest.mark.parametrize(
    "changes",
    [
        {"images": [{**IMAGE, "id": "7"}]},
        {"images": [{**IMAGE, "width": "100", "height": "50.0"}]},
        {"categories": [{"id": "18", "name": "DOG"}, {"id": 3, "name": "car"}]},
    ],
    ids=str,
)
def test_so_are_ids_and_sizes_written_as_text(read, changes: dict[str, Any]) -> None:
    assert read(BOX, changes=changes)[0] == [pytest.approx(ROW)]


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
        ({"bbox": None}, "without a bbox or an outline"),
        ({"bbox": [1, 2, 3]}, "without a bbox or an outline"),
        ({"bbox": [1, 2, "x", 4]}, "without a bbox or an outline"),
        ({"bbox": None, "segmentation": []}, "without a bbox or an outline"),
        ({"bbox": None, "segmentation": {"counts": "\x7f", "size": [1, 1]}}, "without a bbox or an outline"),
        ({"bbox": [10, 10, 0, 5]}, "without width or height"),
        ({"bbox": [200, 10, 5, 5]}, "outside of its image"),
        ({"bbox": [1, 2, 3, float("nan")]}, "not finite"),
        ({"bbox": [1, 2, 3, float("inf")]}, "not finite"),
    ],
    ids=str,
)
def test_what_is_dropped_is_counted_with_its_reason_and_example(read, note: dict[str, Any], reason: str) -> None:
    rows, reader = read(BOX, {**BOX, "id": 44, **note}, {**BOX, "id": 45, **note})
    assert rows == [pytest.approx(ROW)]
    ((said, (count, example)),) = reader.tally.dropped.items()
    assert reason in said and count == 2 and ("44" in example or "image_id" in example)


def test_crowds_are_kept_where_they_are_wanted(read) -> None:
    assert len(read({**BOX, "iscrowd": 1}, crowds=True)[0]) == 1


def test_kinds_that_are_not_listed_are_counted_by_name(read) -> None:
    car = {**BOX, "category_id": 3}
    rows, reader = read(BOX, car, car, names=["cars", "dog"])
    assert rows == [pytest.approx(ROW)] and reader.tally.dropped == {
        "called 'car ', which is not among the names; did you mean 'cars'?": (2, "annotation no. 1 of train/a.jpg")
    }


def test_without_names_classes_go_by_their_ids(read, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "yolov5")
    categories = [{"id": "10", "name": "ten"}, {"id": 9, "name": "nine"}, {"id": "x", "name": "ex"}]
    notes = [{**BOX, "category_id": key} for key in (9, 10, "x")]
    rows, _ = read(*notes, names=None, changes={"categories": categories})
    assert [row[0] for row in rows] == [0, 1, 2] and 'category id: ["nine", "ten", "ex"]' in caplog.text


def test_roboflows_group_of_all_categories_is_no_class(read) -> None:
    group = {"id": 0, "name": "Bolts", "supercategory": "none"}
    bolt = {"id": 1, "name": "bolt", "supercategory": "Bolts"}
    own = {"id": 2, "name": "person", "supercategory": "person"}
    notes = [{**BOX, "category_id": 1}, {**BOX, "category_id": 2}]
    assert [row[0] for row in read(*notes, names=None, changes={"categories": [group, bolt, own]})[0]] == [0, 1]
    notes.append({**BOX, "category_id": 0})
    assert [row[0] for row in read(*notes, names=None, changes={"categories": [group, bolt]})[0]] == [1, 0]


@pytest.mark.parametrize(
    "size", [{"width": 0}, {"height": -5}, {"height": float("nan")}, {"width": None}, {"width": "x"}], ids=str
)
def test_an_unknown_size_is_asked_for_and_else_said(read, size: dict[str, Any]) -> None:
    changes = {"images": [{**IMAGE, **size}]}
    assert read(BOX, changes=changes, size_of={"train/a.jpg": (100, 50)}.get)[0] == [pytest.approx(ROW)]
    _, reader = read(BOX, BOX, changes=changes)
    ((reason, (count, _)),) = reader.tally.dropped.items()
    assert count == 2 and "width and height are not known; write them into the file, or put the image" in reason


def test_images_of_unknown_size_get_no_empty_labels(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(2)]
    file = coco(tmp_path / "a.json", [{**BOX, "image_id": 1}], images=images)
    assert CocoReader(["dog"]).rows(file) == {"0.jpg": []}


def test_one_image_listed_twice_is_one_image(read) -> None:
    rows, reader = read(BOX, {**BOX, "image_id": 8, "category_id": 3}, changes={"images": [IMAGE, {**IMAGE, "id": 8}]})
    assert [row[0] for row in rows] == [1, 0] and "listed twice" in str(reader.tally.remarks)


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"images": [IMAGE, {**OTHER, "id": "7"}]}, "id 7 belongs to two images, 'train/a.jpg' and 'b.c.jpg'"),
        ({"categories": [*CATEGORIES, {"id": 3, "name": "cat"}]}, "category id 3 is no id, or belongs to two names"),
        ({"images": {}}, "no list of images"),
        ({"annotations": None}, "no list of annotations"),
        ({"categories": [5]}, "AttributeError|TypeError"),
        ({"images": [{**IMAGE, "file_name": 5}]}, "file_name 5"),
        ({"images": [{**IMAGE, "id": {}}]}, "the id {}"),
        ({"annotations": [3]}, "AttributeError"),
    ],
    ids=str,
)
def test_files_that_contradict_themselves_are_refused(read, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.json: not a COCO detection file \(.*({what})") as caught:
        read(BOX, changes=changes)
    assert "\n" not in str(caught.value)


def test_a_wrong_list_of_names_is_not_blamed_on_the_file() -> None:
    with pytest.raises(ValueError, match="^names: "):
        CocoReader([])


def test_results_are_no_annotations(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="export as COCO with images, categories and annotations"):
        CocoReader().rows(tmp_path / "a.json")


# ---- outlines --------------------------------------------------------------------------------------------------------


def test_outlines_of_one_piece_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    notes = [
        {**BOX, "segmentation": [OUTLINE]},
        BOX,
        {**BOX, "segmentation": [OUTLINE, OUTLINE]},
        {**BOX, "segmentation": [[1, 1, float("nan"), 9, 9, 9]]},
    ]
    reader = CocoReader(["car", "dog"], polygons=True)
    rows = reader.rows(coco(tmp_path / "a.json", notes))["train/a.jpg"]
    labels, segments, _ = parse_label_text("\n".join(rows))
    np.testing.assert_allclose(labels, [ROW] * 4, atol=1e-6)
    assert [len(points) for points in segments] == [4, 0, 0, 0]
    ((remark, (count, _)),) = reader.tally.remarks.items()
    assert count == 3 and "their boxes are written" in remark


def mask(height: int, width: int, corners: tuple[int, int, int, int]) -> np.ndarray:
    x1, y1, x2, y2 = corners
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[y1:y2, x1:x2] = 1
    return pixels


def runs(pixels: np.ndarray) -> list[int]:
    """Column after column, beginning with a run of zeros."""
    flat = pixels.T.ravel()
    ends = [*np.flatnonzero(np.diff(flat)) + 1, len(flat)]
    lengths = np.diff([0, *ends]).tolist()
    return [0, *lengths] if flat[0] else lengths


@pytest.mark.parametrize(
    "counts, box",
    [
        ([7, 2, 3, 2, 6], (1, 2, 3, 4)),  # 5 rows x 4 columns, rows 2 and 3 of columns 1 and 2
        ([0, 20], (0, 0, 4, 5)),
        ([4, 2, 14], (0, 0, 2, 5)),  # the foot of column 0 and the head of column 1
        ([20], None),
        ([5, 0, 15], None),
        ([-1, 5], None),
        ([], None),
    ],
)
def test_boxes_of_run_lengths_by_hand(counts: list[int], box: tuple[int, ...] | None) -> None:
    assert _extent({"counts": counts, "size": [5, 4]}) == box


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_masks_have_the_boxes_of_pycocotools(seed: int, height: int, width: int) -> None:
    tools = pytest.importorskip("pycocotools.mask")
    pixels = (np.random.default_rng(seed).random((height, width)) < 0.15).astype(np.uint8)
    packed = tools.encode(np.asfortranarray(pixels))
    text = packed["counts"].decode()
    wanted = None
    if pixels.any():
        ys, xs = np.nonzero(pixels)
        wanted = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    for counts in (runs(pixels), text):
        found = _extent({"counts": counts, "size": [height, width]})
        whole = found is not None and found[1] == 0 and found[3] == height  # a run over two columns has all rows
        assert found == wanted or (whole and (found[0], found[2]) == (wanted[0], wanted[2]))


def test_large_masks_are_unpacked(read) -> None:
    tools = pytest.importorskip("pycocotools.mask")
    pixels = mask(50, 100, (10, 5, 30, 15))
    for counts in (runs(pixels), tools.encode(np.asfortranarray(pixels))["counts"].decode()):
        note = {"image_id": 7, "category_id": 18, "segmentation": {"counts": counts, "size": [50, 100]}}
        assert read(note)[0] == [pytest.approx(ROW)]


# ---- in general ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=4, max_size=4), st.booleans(), st.booleans(), st.booleans())
def test_the_form_of_a_box_does_not_matter(corners: list[int], text: bool, right: bool, low: bool) -> None:
    x1, y1, x2, y2 = corners
    box = [x2 if right else x1, y2 if low else y1, (x1 - x2) if right else (x2 - x1), (y1 - y2) if low else (y2 - y1)]
    rows = []
    for bbox in ([x1, y1, x2 - x1, y2 - y1], list(map(str, box)) if text else box):
        reader = CocoReader(["dog", "car"])
        rows.append(reader._row({"bbox": bbox}, 0, (100, 50), "x"))
    assert rows[0] == rows[1]
    assert len(rows[0]) == (x1 != x2 and min(y1, 50) != min(y2, 50))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "\x80", '{"images": 1' + "0" * 400 + "}"])
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
    with pytest.raises(ValueError, match="a.json: not valid JSON"):
        CocoReader().rows(tmp_path / "a.json")


@pytest.mark.parametrize("size", [[8, 9], [0, 9], [80], None], ids=str)
def test_a_mask_that_does_not_fit_its_size_is_none(read, size: Any) -> None:
    mask = {"size": size, "counts": [60, 20]}
    note = {key: value for key, value in BOX.items() if key != "bbox"} | {"segmentation": mask}
    rows, reader = read(note)
    assert rows == [] and dropped(reader) == ["without a bbox or an outline that can be read"]


def test_an_image_without_a_name_and_json_in_another_coding(read, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the file_name None; add it"):
        read(BOX, changes={"images": [{"id": 1, "width": 5, "height": 5}]})
    (tmp_path / "b.json").write_bytes('{"images": ["螺栓"]}'.encode("gbk"))
    with pytest.raises(ValueError, match="b.json: not valid JSON .it is not text in UTF-8; save it as UTF-8"):
        CocoReader(["a"]).rows(tmp_path / "b.json")
    (tmp_path / "c.json").write_text('{"shapes": [], "imagePath": "a.jpg"}')  # LabelMe's
    with pytest.raises(ValueError, match="it has no list of images; export as COCO"):
        CocoReader(["a"]).rows(tmp_path / "c.json")


@pytest.mark.parametrize("size, said", [((40, 20), 0), ((80, 40), 0), ((20, 40), 1), ((40, 30), 1), (None, 0)])
def test_other_proportions_on_disk_are_said(read, size: tuple[int, int] | None, said: int) -> None:
    _, reader = read(BOX, changes={"images": [{**IMAGE, "width": 40, "height": 20}]}, size_of=lambda _: size)
    assert len(reader.tally.remarks) == said
    if said:
        ((what, (count, first)),) = reader.tally.remarks.items()
        assert "other proportions" in what and count == 1
        assert first == f"train/a.jpg: 40 x 20 written, {size[0]} x {size[1]} on disk"
