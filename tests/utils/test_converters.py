"""Other formats turned into our label files, and the data sets that know how to fetch themselves."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import converters
from utils.config import DataConfig
from utils.converters import CONVERTERS, FILES, convert_coco, convert_dota, convert_voc, prepare
from utils.downloads import Remote
from utils.label_formats import (
    XVIEW_TYPES,
    argoverse_rows,
    box_row,
    coco_rows,
    dota_rows,
    polygon_row,
    sku_rows,
    visdrone_rows,
    xview_rows,
)
from utils.label_index import load_index
from utils.labels import parse_label_text
from utils.paths import ROOT

VOC = """<annotation><size><width>200</width><height>100</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>21</xmin><ymin>11</ymin><xmax>61</xmax><ymax>51</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>unicorn</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""
VISDRONE = "10,20,30,40,1,4,0,0\n0,0,5,5,0,0,0,0\n1,1,4,4,1,11,0,0\n90,40,20,20,1,1,0,0,\n"
DOTA = "imagesource:GoogleEarth\ngsd:0.5\n10 10 30 10 30 20 10 20 ship 0\n0 0 50 0 50 50 0 50 plane 1\n"


def image(path: Path, size: tuple[int, int] = (100, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def values(rows: list[str]) -> list[list[float]]:
    return [[float(value) for value in row.split()] for row in rows]


def coco_file(path: Path, **extra: object) -> Path:
    content = {
        "images": [
            {"id": 7, "file_name": "train/a.jpg", "width": 100, "height": 50},
            {"id": 9, "file_name": "b.c.jpg", "width": 10, "height": 10},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car "}],
        "annotations": [
            {"image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10], "segmentation": [[10, 5, 30, 5, 30, 15]]},
            {"image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10]},
            {"image_id": 7, "category_id": 3, "bbox": [90, 40, 20, 20], "iscrowd": 0},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 100, 50], "iscrowd": 1},
            {"image_id": 7, "category_id": 3, "bbox": [200, 0, 10, 10]},
        ],
        **extra,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_nothing_gives_nothing(tmp_path: Path) -> None:
    assert visdrone_rows("", (10, 10)) == dota_rows("", (10, 10), []) == [] and sku_rows("") == {}
    empty = coco_file(tmp_path / "a.json", annotations=[], images=[])
    assert coco_rows(empty) == {} and convert_coco(empty, tmp_path / "labels") == 0


def test_boxes_are_cut_at_the_edges() -> None:
    assert box_row(3, (10, 10, 30, 20), (100, 50)) == "3 0.200000 0.300000 0.200000 0.200000"
    assert box_row(0, (-10, -10, 50, 25), (100, 50), 2) == "0 0.25 0.25 0.50 0.50"
    assert box_row(0, (100, 0, 120, 10), (100, 50)) is None and box_row(0, (5, 5, 5, 9), (100, 50)) is None
    assert polygon_row(1, [[0, 0], [10, 0]], (10, 10)) is None
    assert len(polygon_row(1, [[0, 0], [10, 0], [10, 10]], (10, 10)).split()) == 9


@pytest.mark.parametrize("polygons", [False, True])
def test_coco(tmp_path: Path, polygons: bool) -> None:
    file = coco_file(tmp_path / "a.json")
    rows = coco_rows(file, ["car", "Dog"], polygons=polygons)
    labels, segments, _ = parse_label_text("\n".join(rows["train/a.jpg"]))
    expected = [[1, 0.2, 0.2, 0.2, 0.2], [0, 0.95, 0.9, 0.1, 0.2]]
    if polygons:
        expected.insert(1, expected[0])  # the same object once with its outline, once without
    np.testing.assert_allclose(labels, expected, atol=1e-6)
    assert rows["b.c.jpg"] == []
    assert [len(points) > 0 for points in segments] == ([True, False, False] if polygons else [False, False])
    assert len(coco_rows(file, ["car", "dog"], crowds=True)["train/a.jpg"]) == 3
    assert values(coco_rows(file)["train/a.jpg"])[0][0] == 1, "without names, in the order of the numbers"
    assert values(coco_rows(file, ["dog"])["train/a.jpg"]) == [[0, 0.2, 0.2, 0.2, 0.2]], "other kinds are left out"


def test_coco_files_become_label_files(tmp_path: Path) -> None:
    assert convert_coco(coco_file(tmp_path / "a.json"), tmp_path / "labels", ["car", "dog"]) == 2
    assert (tmp_path / "labels/train/a.txt").read_text().startswith("1 0.200000")
    assert (tmp_path / "labels/b.c.txt").read_text() == ""
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json: not valid JSON"):
        convert_coco(tmp_path / "bad.json", tmp_path)
    (tmp_path / "bad.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="bad.json: not a COCO detection file"):
        convert_coco(tmp_path / "bad.json", tmp_path)
    outside = coco_file(tmp_path / "o.json", annotations=[], images=[{"id": 1, "file_name": "../../x.jpg"}])
    with pytest.raises(ValueError, match="outside of the data set"):
        convert_coco(outside, tmp_path / "labels")


def test_voc(tmp_path: Path) -> None:
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml/a.xml").write_text(VOC)
    assert convert_voc(tmp_path / "xml", tmp_path / "labels", ["cat", "dog"]) == 1
    assert values((tmp_path / "labels/a.txt").read_text().splitlines()) == [[1, 0.2, 0.3, 0.2, 0.4]]
    for bad in ("<annotation>", "<annotation/>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'):
        (tmp_path / "xml/b.xml").write_text(bad)
        with pytest.raises(ValueError, match="b.xml"):
            convert_voc(tmp_path / "xml", tmp_path / "labels", ["cat"])


def test_dota(tmp_path: Path) -> None:
    image(tmp_path / "images/P1.png")
    (tmp_path / "labelTxt").mkdir()
    (tmp_path / "labelTxt/P1.txt").write_text(DOTA)
    assert convert_dota(tmp_path / "labelTxt", tmp_path / "images", tmp_path / "labels", ["plane", "ship"]) == 1
    written = (tmp_path / "labels/P1.txt").read_text().splitlines()
    assert values(written) == [[1, 0.2, 0.3, 0.2, 0.2], [0, 0.25, 0.5, 0.5, 1]]
    _, segments, _ = parse_label_text("\n".join(dota_rows(DOTA, (100, 50), ["plane", "ship"], polygons=True)))
    assert [len(points) for points in segments] == [4, 4]
    with pytest.raises(ValueError, match="P1.txt: unknown kind 'ship'"):
        convert_dota(tmp_path / "labelTxt", tmp_path / "images", tmp_path / "labels", ["plane"])


def test_visdrone_skips_what_is_to_be_ignored() -> None:
    rows = values(visdrone_rows(VISDRONE, (100, 50)))
    assert [row[0] for row in rows] == [3, 0]
    np.testing.assert_allclose(rows[0][1:], [0.25, 0.7, 0.3, 0.6])
    np.testing.assert_allclose(rows[1][1:], [0.95, 0.9, 0.1, 0.2])


def test_tables_of_shelves() -> None:
    rows = sku_rows("a.jpg,10,10,30,20,object,100,50\na.jpg,0,0,50,50,object,100,50\nb.jpg,5,5,5,5,object,9,9\n")
    assert values(rows["a.jpg"]) == [[0, 0.2, 0.3, 0.2, 0.2], [0, 0.25, 0.5, 0.5, 1]] and rows["b.jpg"] == []


def test_argoverse_pictures_have_one_size(tmp_path: Path) -> None:
    notes = {
        "seq_dirs": ["train/s0/front"],
        "images": [{"sid": 0, "name": "a.jpg"}, {"sid": 0, "name": "b.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 2, "bbox": [192, 120, 384, 240]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(notes))
    rows = argoverse_rows(tmp_path / "a.json")
    assert rows["train/s0/front/a.jpg"] == [] and values(rows["train/s0/front/b.jpg"]) == [[2, 0.2, 0.2, 0.2, 0.2]]


def test_xview_has_sixty_kinds() -> None:
    assert len(XVIEW_TYPES) == 60 and sorted(set(XVIEW_TYPES)) == list(XVIEW_TYPES)
    assert (XVIEW_TYPES[0], XVIEW_TYPES[48], XVIEW_TYPES[59]) == (11, 73, 94)


# ---- data sets -------------------------------------------------------------------------------------------------------


def pack(source: Path, archive: Path) -> Remote:
    """An archive of everything below `source`, and its address."""
    kind = "zip" if archive.suffix == ".zip" else "gztar"
    stem = archive.name.removesuffix(".zip").removesuffix(".tar.gz")
    archive.parent.mkdir(parents=True, exist_ok=True)
    return Remote(Path(shutil.make_archive(str(archive.with_name(stem)), kind, source)).as_uri())


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    def load(name: str) -> DataConfig:
        text = (ROOT / "data" / name).read_text(encoding="utf-8")
        root = tmp_path / "datasets" / name.removesuffix(".yaml")
        file = tmp_path / name
        file.write_text("\n".join(f"path: {root}" if line.startswith("path:") else line for line in text.splitlines()))
        return DataConfig.load(file)

    return load


def served(monkeypatch: pytest.MonkeyPatch, **files: tuple[Remote, ...]) -> None:
    here = {key.replace("_", "-"): value for key, value in files.items()}
    monkeypatch.setattr(converters, "FILES", {**FILES, **here})


def test_every_data_yaml_names_a_converter() -> None:
    used = {DataConfig.load(file).download for file in sorted((ROOT / "data").glob("*.yaml"))}
    assert used == set(CONVERTERS)


def test_present_data_is_left_alone(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONVERTERS, "coco128", lambda _: pytest.fail("ran"))
    here = config("coco128.yaml")
    here.train[0].mkdir(parents=True)
    prepare(here)


def test_absent_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = tmp_path / "own.yaml"
    yaml.write_text("train: images/a\nval: images/b\nnames: [x]\n")
    with pytest.raises(ValueError, match=f"own.yaml: the data set is not there, looked for {tmp_path}/images/a, "):
        prepare(DataConfig.load(yaml))
    for command in ("bash get.sh", "import os; os.remove('x')", "https://host/run.sh", "cocoo"):
        yaml.write_text(f"train: images/a\nval: images/b\nnames: [x]\ndownload: {json.dumps(command)}\n")
        with pytest.raises(ValueError, match="commands and code in a data YAML are not run"):
            prepare(DataConfig.load(yaml))
    yaml.write_text("train: images/a\nval: images/b\nnames: [x]\ndownload: https://host/own.zip\n")
    monkeypatch.setattr(converters, "fetch", lambda *_: None)
    with pytest.raises(ValueError, match="still missing after `download: https://host/own.zip`"):
        prepare(DataConfig.load(yaml))


def test_coco128(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "s/coco128/images/train2017/a.jpg")
    served(monkeypatch, coco128=(pack(tmp_path / "s", tmp_path / "a/coco128.zip"),))
    prepare(config("coco128.yaml"))
    assert len(load_index(config("coco128.yaml").train)) == 1


def test_coco_data_set(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train2017", "val2017"):
        image(tmp_path / f"{split}/{split}/a.jpg")
        label = tmp_path / f"s/coco/labels/{split}/a.txt"
        label.parent.mkdir(parents=True)
        label.write_text("79 .5 .5 .1 .1\n")
        (tmp_path / f"s/coco/{split}.txt").write_text(f"./images/{split}/a.jpg\n")
    pictures = tuple(pack(tmp_path / split, tmp_path / f"a/{split}.zip") for split in ("train2017", "val2017"))
    served(monkeypatch, coco_labels=(pack(tmp_path / "s", tmp_path / "a/labels.zip"),), coco=pictures)
    here = config("coco.yaml")
    prepare(here)
    load_index(here.val).check_classes(here.nc)


def test_voc_data_set(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for year, parts in ((2007, ("train", "val", "test")), (2012, ("train", "val"))):
        base = tmp_path / f"s/VOCdevkit/VOC{year}"
        for part in parts:
            image(base / f"JPEGImages/{part}{year}.jpg", (200, 100))
            notes = {f"Annotations/{part}{year}.xml": VOC, f"ImageSets/Main/{part}.txt": f"{part}{year}\n"}
            for name, text in notes.items():
                (base / name).parent.mkdir(parents=True, exist_ok=True)
                (base / name).write_text(text)
    served(monkeypatch, voc=(pack(tmp_path / "s", tmp_path / "a/voc.zip"),))
    here = config("VOC.yaml")
    prepare(here)
    index = load_index(here.train)
    assert len(index) == 4 and (index.all_labels[:, 0] == here.names.index("dog")).all()
    assert len(load_index(here.test)) == 1


def test_visdrone_data_set(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = []
    for part in ("train", "val", "test-dev"):
        base = tmp_path / part / f"VisDrone2019-DET-{part}"
        image(base / "images/a.jpg")
        (base / "annotations").mkdir()
        (base / "annotations/a.txt").write_text(VISDRONE)
        archives.append(pack(tmp_path / part, tmp_path / f"a/{part}.zip"))
    served(monkeypatch, visdrone=tuple(archives))
    here = config("VisDrone.yaml")
    prepare(here)
    for split in (here.train, here.val, here.test):
        assert len(load_index(split).all_labels) == 2


def test_sku_data_set(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "s/SKU110K_fixed"
    (base / "annotations").mkdir(parents=True)
    for part in ("train", "val", "test"):
        image(base / f"images/{part}_0.jpg")
        (base / f"annotations/annotations_{part}.csv").write_text(f"{part}_0.jpg,10,10,30,20,object,100,50\n")
    served(monkeypatch, sku110k=(pack(tmp_path / "s", tmp_path / "a/sku.tar.gz"),))
    here = config("SKU-110K.yaml")
    prepare(here)
    assert [len(load_index(split).all_labels) for split in (here.train, here.val, here.test)] == [1, 1, 1]


def test_argoverse_data_set(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "s/Argoverse-HD/annotations"
    notes.mkdir(parents=True)
    for part in ("train", "val"):
        image(tmp_path / f"s/Argoverse-1.1/tracking/{part}/q/ring_front_center/a.jpg")
        box = {"image_id": 0, "category_id": 7, "bbox": [0, 0, 192, 120]}
        pictures = {"seq_dirs": [f"{part}/q/ring_front_center"], "images": [{"sid": 0, "name": "a.jpg"}]}
        content = {**pictures, "annotations": [box]}
        (notes / f"{part}.json").write_text(json.dumps(content))
    served(monkeypatch, argoverse=(pack(tmp_path / "s", tmp_path / "a/argo.zip"),))
    here = config("Argoverse.yaml")
    prepare(here)
    assert load_index(here.train).all_labels.tolist() == [pytest.approx([7, 0.05, 0.05, 0.1, 0.1])]


def test_wheat_data_set(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in converters.WHEAT_FOLDERS:
        image(tmp_path / f"s/{name}/a.png")
    coco_file(tmp_path / "s/ethz_1.json", images=[{"id": 7, "file_name": "a.png", "width": 100, "height": 50}])
    (tmp_path / "l/labels/uq_1").mkdir(parents=True)
    (tmp_path / "l/labels/uq_1/a.txt").write_text("0 .5 .5 .1 .1\n")
    archives = pack(tmp_path / "s", tmp_path / "a/w.zip"), pack(tmp_path / "l", tmp_path / "a/l.zip")
    served(monkeypatch, globalwheat=archives)
    here = config("GlobalWheat2020.yaml")
    prepare(here)
    assert len(load_index(here.train)) == 7 and load_index(here.val).counts.found == 1
    assert len(load_index(here.test).all_labels) == 1 and (here.root / "annotations/ethz_1.json").exists()


def test_objects365_data_set(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = config("Objects365.yaml")
    archives = {}
    for part in ("train", "val"):
        image(tmp_path / part / f"patch0/{part}.jpg")
        archives[part] = (pack(tmp_path / part, tmp_path / f"a/{part}0.tar.gz"),)
        coco_file(
            tmp_path / f"n/zhiyuan_objv2_{part}.json",
            images=[{"id": 7, "file_name": f"images/v1/patch0/{part}.jpg", "width": 100, "height": 50}],
            categories=[{"id": 18, "name": "Table Tennis "}, {"id": 3, "name": "Person"}],
        )
    notes = (pack(tmp_path / "n", tmp_path / "a/notes.tar.gz"),)
    served(monkeypatch, objects365_notes=notes, objects365_train=archives["train"], objects365_val=archives["val"])
    prepare(here)
    assert load_index(here.train).all_labels[:, 0].tolist() == [364, 0, 0]
    prepare(here)


def test_xview_asks_for_its_archives(config, tmp_path: Path) -> None:
    here = config("xView.yaml")
    with pytest.raises(ValueError, match="register at https://challenge.xviewdataset.org"):
        prepare(here)
    here.root.mkdir(parents=True)
    features = [
        {"properties": {"image_id": f"{number}.tif", "type_id": kind, "bounds_imcoords": "10,10,30,20"}}
        for number in range(20)
        for kind in (94, 75)
    ]
    with zipfile.ZipFile(here.root / "train_labels.zip", "w") as archive:
        archive.writestr("xView_train.geojson", json.dumps({"features": features}))
    for number in range(20):
        image(tmp_path / f"s/train_images/{number}.tif")
    shutil.make_archive(str(here.root / "train_images"), "zip", tmp_path / "s")
    prepare(here)
    train, val = load_index(here.train), load_index(here.val)
    assert len(train) + len(val) == 20 and set(train.all_labels[:, 0]) == {59}


def test_shapes_are_drawn_without_a_network(config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(converters, "draw_dataset", asked.append)
    monkeypatch.setattr(converters, "fetch", lambda *_: pytest.fail("network"))
    here = config("shapes.yaml")
    with pytest.raises(ValueError, match="still missing"):
        prepare(here)
    assert asked == [here.root]


# ---- annotations that make no sense
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("note", [{"bbox": [NAN, 1, 2, 3]}, {"bbox": [1, 2, 3, NAN]}, {"bbox": [1, 2, -3, 4]}])
def test_boxes_that_are_none_are_left_out(tmp_path: Path, note: dict) -> None:
    file = coco_file(tmp_path / "a.json", annotations=[{"image_id": 7, "category_id": 3, **note}])
    assert coco_rows(file)["train/a.jpg"] == []
    outline = {"bbox": [1, 2, 3, 4], "segmentation": [[1, 1, NAN, 9, 9, 9]]}
    file = coco_file(tmp_path / "a.json", annotations=[{"image_id": 7, "category_id": 3, **outline}])
    assert len(coco_rows(file, polygons=True)["train/a.jpg"][0].split()) == 5, "the box, where the outline is none"
    assert dota_rows("nan 1 30 1 30 20 1 20 a 0", (64, 48), ["a"], True) == []


@pytest.mark.parametrize(
    "image",
    [
        {"width": 0},
        {"width": -5},
        {"height": NAN},
        {"height": INF},
        {"height": "9"},
        {"file_name": 5},
        {"file_name": None},
        {"file_name": ["a"]},
        {"id": {}},
    ],
    ids=str,
)
def test_pictures_that_are_none_are_named(tmp_path: Path, image: dict) -> None:
    picture = {"id": 7, "file_name": "a.jpg", "width": 9, "height": 9, **image}
    notes = [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 3, 3]}]
    file = coco_file(tmp_path / "a.json", images=[picture], annotations=notes)
    with pytest.raises(ValueError, match="a.json: not a COCO detection file") as caught:
        convert_coco(file, tmp_path / "labels")
    assert "\n" not in str(caught.value) and not (tmp_path / "labels").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("../x.jpg", "/x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "C:x.jpg", "\\\\host\\x.jpg"),
        *("", " ", ".", "./", "a\nb.jpg", "a\0b.jpg", "\ud800.jpg", "x" * 999 + ".jpg"),
    ],
)
def test_names_that_no_picture_has(tmp_path: Path, name: str) -> None:
    picture = {"id": 7, "file_name": name, "width": 9, "height": 9}
    with pytest.raises(ValueError, match="a.json.*annotations name a picture") as caught:
        convert_coco(coco_file(tmp_path / "a.json", images=[picture], annotations=[]), tmp_path / "labels")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 + len(str(tmp_path))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.json"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "\x80", '{"images": 1' + "0" * 400 + "}"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    for read in (coco_rows, argoverse_rows, lambda path: xview_rows(path, {})):
        with pytest.raises(ValueError, match="a.json: not "):
            read(tmp_path / "a.json")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("head", ["", '<?xml version="1.0" encoding="utf-16"?>'])
def test_a_billion_laughs_are_not_laughed(tmp_path: Path, head: str) -> None:
    laughs = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(10))
    (tmp_path / "a.xml").write_text(f"{head}<!DOCTYPE a [{laughs}]><annotation><size>&a10;</size></annotation>")
    with pytest.raises(ValueError, match="a.xml: annotation with XML entities"):
        convert_voc(tmp_path, tmp_path / "labels", ["a"])


def test_annotations_may_be_of_no_other_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.xml").mkdir()
    with pytest.raises(ValueError, match="a.xml: not a file of annotations .it is a folder"):
        convert_voc(tmp_path, tmp_path / "labels", ["a"])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/b.png").write_bytes(b"no picture")
    (tmp_path / "b.txt").write_text(DOTA)
    with pytest.raises(ValueError, match="b.png: no picture whose size can be told"):
        convert_dota(tmp_path, tmp_path / "images", tmp_path / "labels", ["ship", "plane"])
