"""Data sets that know how to fetch themselves."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.packed import zipped
from utils.base.config import DataConfig
from utils.base.paths import ROOT
from utils.data.label_index import load_index
from utils.prepare import converters, downloads
from utils.prepare.converters import CONVERTERS, FILES, prepare
from utils.prepare.downloads import Remote

VOC = """<annotation><size><width>200</width><height>100</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>21</xmin><ymin>11</ymin><xmax>61</xmax><ymax>51</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>unicorn</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""
VISDRONE = "10,20,30,40,1,4,0,0\n0,0,5,5,0,0,0,0\n1,1,4,4,1,11,0,0\n90,40,20,20,1,1,0,0,\n"


def image(path: Path, size: tuple[int, int] = (100, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


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
    yaml.write_text("path: own\ntrain: images/a\nval: images/b\nnames: [x]\ndownload: https://host/own.zip\n")
    monkeypatch.setattr(converters, "fetch_folder", lambda *_: None)
    with pytest.raises(ValueError, match="still missing after `download: https://host/own.zip`"):
        prepare(DataConfig.load(yaml))


REFUSED = (
    *("~/x", "~", "/tmp/x", "{tmp}/x", "..", "../x", "a/../../x", "../../datasets/x", "../datasets/../x", "a/..", "."),
    *("", "C:/x", "C:x", "\\\\host\\x", "..\\\\x", "link/x", "../datasets", "../datasets/link/x"),
)


@pytest.mark.parametrize("path", REFUSED)
def test_an_archive_of_anybody_may_only_become_a_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "yaml").mkdir()
    (tmp_path / "sets").mkdir()
    (tmp_path / "yaml/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "sets/link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "sets"))
    monkeypatch.setattr(converters, "fetch_folder", lambda *_: pytest.fail("fetched"))
    text = f"train: images\nval: images\nnames: [x]\ndownload: https://host/x.zip\npath: '{path}'\n"
    (tmp_path / "yaml/e.yaml").write_text(text.replace("{tmp}", str(tmp_path)))
    with pytest.raises(ValueError, match=r"e\.yaml: path '.*' cannot be fetched into.*new folder below") as caught:
        prepare(DataConfig.load(tmp_path / "yaml/e.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path, place",
    [("x", "sets/x"), ("../datasets/x", "sets/x"), ("a/x", "sets/a/x"), ("datasets/x", "sets/x"), ("./x", "sets/x")],
)
@pytest.mark.parametrize("top", ["", "top/"])
def test_an_archive_ends_where_train_and_val_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, place: str, top: str
) -> None:
    archive = zipped(tmp_path / "x.zip", {f"{top}images/{part}/a.png": b"1" for part in ("train", "val")})
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "sets"))
    monkeypatch.setattr(
        converters, "fetch_folder", lambda url, *given: downloads.fetch_folder(archive.as_uri(), *given)
    )
    text = f"path: {path}\ntrain: images/train\nval: [images/val]\nnames: [x]\ndownload: https://host/x.zip\n"
    (tmp_path / "e.yaml").write_text(text)
    prepare(DataConfig.load(tmp_path / "e.yaml"))
    assert [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*.png"))] == [
        f"{place}/images/{part}/a.png" for part in ("train", "val")
    ]


def test_data_that_is_there_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters, "fetch_folder", lambda *_: pytest.fail("fetched"))
    (tmp_path / "far/images").mkdir(parents=True)
    text = f"path: {tmp_path}/far\ntrain: images\nval: images\nnames: [x]\ndownload: https://host/x.zip\n"
    (tmp_path / "e.yaml").write_text(text)
    prepare(DataConfig.load(tmp_path / "e.yaml"))


@pytest.mark.parametrize("split", ["../images", "{tmp}/images", "a/../../images"])
def test_what_lies_outside_of_the_folder_cannot_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "sets"))
    monkeypatch.setattr(converters, "fetch_folder", lambda *_: pytest.fail("fetched"))
    text = f"path: x\ntrain: {split}\nval: {split}\nnames: [x]\ndownload: https://host/x.zip\n"
    (tmp_path / "e.yaml").write_text(text.replace("{tmp}", str(tmp_path)))
    with pytest.raises(ValueError, match="is not in the folder that `download:` fetches"):
        prepare(DataConfig.load(tmp_path / "e.yaml"))


@pytest.mark.parametrize("address", ["file:///x.zip", "ftp://host/x.zip", "data:,x.zip", "//host/x.zip", "/x.zip"])
def test_other_addresses_in_a_yaml(tmp_path: Path, address: str) -> None:
    (tmp_path / "e.yaml").write_text(f"path: x\ntrain: i\nval: i\nnames: [x]\ndownload: {address}\n")
    with pytest.raises(ValueError, match="neither the URL of a .zip file nor one of"):
        prepare(DataConfig.load(tmp_path / "e.yaml"))


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


def test_a_set_of_other_letters_or_below_another_folder_is_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("set/images/Train", "set/images/val", "work/data/a"):
        (tmp_path / name).mkdir(parents=True)
    (file := tmp_path / "set.yaml").write_text("path: set\ntrain: images/train\nval: images/val\nnames: [a]\n")
    with pytest.raises(ValueError, match=f"; {tmp_path}/set/images/Train is there; correct path"):
        prepare(DataConfig.load(file))
    monkeypatch.chdir(tmp_path / "work")
    file.write_text("train: data/a\nval: data/a\nnames: [a]\n")
    with pytest.raises(ValueError, match=f"; {tmp_path}/work/data/a is there, but paths begin at {tmp_path}; correct"):
        prepare(DataConfig.load(file))
