"""Data sets that know how to fetch themselves."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.packed import tarred, zipped
from utils.base.config import DataConfig
from utils.base.paths import ROOT
from utils.data.label_index import load_index
from utils.prepare import converters, downloads
from utils.prepare.converters import CONVERTERS, FILES, prepare
from utils.prepare.downloads import Remote

BOX = "<bndbox><xmin>21</xmin><ymin>11</ymin><xmax>61</xmax><ymax>51</ymax></bndbox></object>"
VOC = f"""<annotation><size><width>100</width><height>50</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>{BOX}<object><name>cat</name><difficult>1</difficult>{BOX}
<object><name>unicorn</name>{BOX}</annotation>"""
VISDRONE = "10,20,30,40,1,4,0,0\n0,0,5,5,0,0,0,0\n1,1,4,4,1,11,0,0\n90,40,20,20,1,1,0,0,\n"
Files = dict[str, bytes | str]


def pixels(kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (100, 50)).save(file, kind)
    return file.getvalue()


JPG, PNG = pixels(), pixels("PNG")


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], DataConfig]:
    def load(name: str) -> DataConfig:
        text = (ROOT / "data" / name).read_text(encoding="utf-8")
        root = tmp_path / "datasets" / name.removesuffix(".yaml")
        file = tmp_path / name
        file.write_text("\n".join(f"path: {root}" if line.startswith("path:") else line for line in text.splitlines()))
        return DataConfig.load(file)

    return load


def test_every_data_yaml_names_a_converter() -> None:
    used = {DataConfig.load(file).download for file in sorted((ROOT / "data").glob("*.yaml"))}
    assert used == set(CONVERTERS)


def test_present_data_is_left_alone(config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONVERTERS, "coco128", lambda _: pytest.fail("ran"))
    here = config("coco128.yaml")
    here.train[0].mkdir(parents=True)
    prepare(here)


def test_absent_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = tmp_path / "own.yaml"
    yaml.write_text("train: images/a\nval: images/b\nnames: [x]\n")
    with pytest.raises(ValueError, match=f"own.yaml: the data set is not there, looked for {tmp_path}/images/a, "):
        prepare(DataConfig.load(yaml))
    commands = ("bash get.sh", "import os; os.remove('x')", "https://host/run.sh", "cocoo", "file:///x.zip")
    for command in (*commands, "ftp://host/x.zip", "data:,x.zip", "//host/x.zip", "/x.zip"):
        yaml.write_text(f"train: images/a\nval: images/b\nnames: [x]\ndownload: {json.dumps(command)}\n")
        with pytest.raises(ValueError, match="neither the URL of a .zip file nor .* code in a data YAML are not run"):
            prepare(DataConfig.load(yaml))
    yaml.write_text("path: own\ntrain: images/a\nval: images/b\nnames: [x]\ndownload: https://host/own.zip\n")
    monkeypatch.setattr(converters, "fetch_folder", lambda *_: None)
    with pytest.raises(ValueError, match="still missing after `download: https://host/own.zip`"):
        prepare(DataConfig.load(yaml))


def test_a_set_of_other_letters_or_below_another_folder_is_pointed_at(tmp_path, monkeypatch):
    for name in ("set/images/Train", "set/images/val", "work/data/a"):
        (tmp_path / name).mkdir(parents=True)
    (file := tmp_path / "set.yaml").write_text("path: set\ntrain: images/train\nval: images/val\nnames: [a]\n")
    with pytest.raises(ValueError, match=f"; {tmp_path}/set/images/Train is there; correct path"):
        prepare(DataConfig.load(file))
    monkeypatch.chdir(tmp_path / "work")
    file.write_text("train: data/a\nval: data/a\nnames: [a]\n")
    with pytest.raises(ValueError, match=f"; {tmp_path}/work/data/a is there, but paths begin at {tmp_path}; correct"):
        prepare(DataConfig.load(file))


# ---- an archive of anybody's -----------------------------------------------------------------------------------------


@pytest.fixture
def yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataConfig]:
    """A data YAML with an archive's address; nothing may be fetched. `link` leads out of both places."""
    for name in ("elsewhere", "yaml", "sets"):
        (tmp_path / name).mkdir()
    for name in ("yaml/link", "sets/link"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "sets"))
    monkeypatch.setattr(converters, "fetch_folder", lambda *_: pytest.fail("fetched"))

    def load(path: str, split: str = "images/{part}") -> DataConfig:
        places = "".join(f"{part}: {split.replace('{part}', part)}\n" for part in ("train", "val"))
        text = f"{places}names: [x]\ndownload: https://host/x.zip\npath: '{path}'\n".replace("{tmp}", str(tmp_path))
        (tmp_path / "yaml/e.yaml").write_text(text)
        return DataConfig.load(tmp_path / "yaml/e.yaml")

    return load


REFUSED = (
    *("~/x", "~", "/tmp/x", "{tmp}/x", "..", "../x", "a/../../x", "../../datasets/x", "../datasets/../x", "a/..", "."),
    *("", "C:/x", "C:x", "\\\\host\\x", "..\\\\x", "link/x", "../datasets", "../datasets/link/x"),
)


@pytest.mark.parametrize("path", REFUSED)
def test_an_archive_of_anybody_may_only_become_a_new_folder(yaml, path: str) -> None:
    with pytest.raises(ValueError, match=r"e\.yaml: path '.*' cannot be fetched into.*new folder below") as caught:
        prepare(yaml(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["../images", "{tmp}/images", "a/../../images"])
def test_what_lies_outside_of_the_folder_cannot_be_fetched(yaml, split: str) -> None:
    with pytest.raises(ValueError, match="is not in the folder that `download:` fetches"):
        prepare(yaml("x", split))


def test_data_that_is_there_may_lie_anywhere(yaml, tmp_path: Path) -> None:
    (tmp_path / "far/images").mkdir(parents=True)
    prepare(yaml(f"{tmp_path}/far", "images"))


@pytest.mark.parametrize(
    "path, place",
    [("x", "sets/x"), ("../datasets/x", "sets/x"), ("a/x", "sets/a/x"), ("datasets/x", "sets/x"), ("./x", "sets/x")],
)
@pytest.mark.parametrize("top", ["", "top/"])
def test_an_archive_ends_where_train_and_val_point(yaml, tmp_path, monkeypatch, path, place, top):
    source = zipped(tmp_path / "x.zip", {f"{top}images/{part}/a.png": b"1" for part in ("train", "val")}).as_uri()
    monkeypatch.setattr(converters, "fetch_folder", lambda url, *given: downloads.fetch_folder(source, *given))
    prepare(yaml(path))
    assert [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*.png"))] == [
        f"{place}/images/{part}/a.png" for part in ("train", "val")
    ]


# ---- data sets with a name -------------------------------------------------------------------------------------------


def coco_text(name: str, *categories: int) -> str:
    """A file of one image of 100 x 50 with a box of each of these categories."""
    kinds = [{"id": number, "name": f"kind {number}"} for number in categories]
    boxes = [{"image_id": 1, "category_id": kind["id"], "bbox": [10, 5, 20, 10]} for kind in kinds]
    images = [{"id": 1, "file_name": name, "width": 100, "height": 50}]
    return json.dumps({"images": images, "categories": kinds, "annotations": boxes})


def coco_files() -> dict[str, list[Files]]:
    parts = ("train2017", "val2017")
    labels: Files = {f"coco/labels/{part}/a.txt": "79 .5 .5 .1 .1\n" for part in parts}
    lists: Files = {f"coco/{part}.txt": f"./images/{part}/a.jpg\n" for part in parts}
    return {"coco-labels": [labels | lists], "coco": [{f"{part}/a.jpg": JPG} for part in parts]}


def voc_files() -> dict[str, list[Files]]:
    found: Files = {}
    for year, part in ((2012, "train"), (2012, "val"), (2007, "train"), (2007, "val"), (2007, "test")):
        base, name = f"VOCdevkit/VOC{year}", f"{part}{year}"
        found |= {f"{base}/JPEGImages/{name}.jpg": JPG, f"{base}/Annotations/{name}.xml": VOC}
        found[f"{base}/ImageSets/Main/{part}.txt"] = f"{name}\n"
    return {"voc": [found]}


def sku_files() -> dict[str, list[Files]]:
    parts, base = ("train", "val", "test"), "SKU110K_fixed"
    tables: Files = {
        f"{base}/annotations/annotations_{part}.csv": f"{part}.jpg,10,10,30,20,object,100,50\n" for part in parts
    }
    return {"sku110k": [tables | {f"{base}/images/{part}.jpg": JPG for part in parts}]}


def argoverse_files() -> dict[str, list[Files]]:
    found: Files = {}
    for part in ("train", "val"):
        place = f"{part}/q/ring_front_center"
        found[f"Argoverse-1.1/tracking/{place}/a.jpg"] = JPG
        box = {"image_id": 0, "category_id": 7, "bbox": [0, 0, 192, 120]}
        content = {"seq_dirs": [place], "images": [{"sid": 0, "name": "a.jpg"}], "annotations": [box]}
        found[f"Argoverse-HD/annotations/{part}.json"] = json.dumps(content)
    return {"argoverse": [found]}


def wheat_files() -> dict[str, list[Files]]:
    images: Files = {f"{name}/a.png": PNG for name in converters.WHEAT_FOLDERS}
    return {"globalwheat": [images | {"ethz_1.json": coco_text("a.png", 1)}, {"labels/uq_1/a.txt": "0 .5 .5 .1 .1\n"}]}


TENTH, FIFTHS = [0.5, 0.5, 0.1, 0.1], [0.2, 0.3, 0.2, 0.2]
DRONES = [[3, 0.25, 0.7, 0.3, 0.6], [0, 0.95, 0.9, 0.1, 0.2]]
DOG = [11, 0.4, 0.6, 0.4, 0.8]
SETS: dict[str, tuple[dict[str, list[Files]], dict[str, list[list[float]]]]] = {  # archives, each split's labels
    "coco128.yaml": ({"coco128": [{"coco128/images/train2017/a.jpg": JPG}]}, {"train": []}),
    "coco.yaml": (coco_files(), {"train": [[79, *TENTH]], "val": [[79, *TENTH]]}),
    "VOC.yaml": (voc_files(), {"train": [DOG] * 4, "val": [DOG], "test": [DOG]}),
    "VisDrone.yaml": (
        {"visdrone": [
            {f"VisDrone2019-DET-{part}/images/a.jpg": JPG, f"VisDrone2019-DET-{part}/annotations/a.txt": VISDRONE}
            for part in ("train", "val", "test-dev")
        ]},
        dict.fromkeys(("train", "val", "test"), DRONES),
    ),
    "SKU-110K.yaml": (sku_files(), {key: [[0, *FIFTHS]] for key in ("train", "val", "test")}),
    "Argoverse.yaml": (argoverse_files(), {key: [[7, 0.05, 0.05, 0.1, 0.1]] for key in ("train", "val")}),
    "GlobalWheat2020.yaml": (
        wheat_files(), {"train": [[0, 0.2, 0.2, 0.2, 0.2]], "val": [[0, 0.2, 0.2, 0.2, 0.2]], "test": [[0, *TENTH]]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_is_fetched_and_converted(config, tmp_path, monkeypatch, name):
    archives, classes = SETS[name]
    here: dict[str, Any] = {}
    for key, contents in archives.items():
        ending, pack = (".tar.gz", tarred) if "tar" in FILES[key][0].url else (".zip", zipped)
        for number, content in enumerate(contents):
            encoded = {file: text.encode() if isinstance(text, str) else text for file, text in content.items()}
            file = pack(tmp_path / f"{key}{number}{ending}", encoded)
            here[key] = (*here.get(key, ()), Remote(file.as_uri()))
    monkeypatch.setattr(converters, "FILES", {**FILES, **here})
    data = config(name)
    prepare(data)
    for split, wanted in classes.items():
        index = load_index(getattr(data, split), cache=False)
        index.check_classes(data.nc)
        np.testing.assert_allclose(index.all_labels, np.reshape(wanted, (-1, 5)), atol=1e-6, err_msg=split)


def test_objects365_data_set(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, served = config("Objects365.yaml"), {}
    kinds = [{"id": number, "name": name} for number, name in enumerate(data.names, 1)]
    notes = {}
    for part in ("train", "val"):
        packed = tarred(tmp_path / f"{part}.tar.gz", {f"patch0/{part}.jpg": JPG})
        served[f"objects365-{part}"] = (Remote(packed.as_uri()),)
        content = json.loads(coco_text(f"images/v1/patch0/{part}.jpg"))
        boxes = [{"image_id": 1, "category_id": number, "bbox": [10, 5, 20, 10], "iscrowd": 1} for number in (365, 1)]
        notes[f"zhiyuan_objv2_{part}.json"] = json.dumps(content | {"categories": kinds, "annotations": boxes}).encode()
    served["objects365-notes"] = (Remote(tarred(tmp_path / "notes.tar.gz", notes).as_uri()),)
    monkeypatch.setattr(converters, "FILES", {**FILES, **served})
    prepare(data)
    assert load_index(data.train).all_labels[:, 0].tolist() == [364, 0]


def test_xview_asks_for_its_archives(config) -> None:
    here = config("xView.yaml")
    with pytest.raises(ValueError, match="register at https://challenge.xviewdataset.org"):
        prepare(here)
    here.root.mkdir(parents=True)
    features = [
        {"properties": {"image_id": f"{number}.jpg", "type_id": kind, "bounds_imcoords": "10,10,30,20"}}
        for number in range(20)
        for kind in (94, 75)
    ]
    zipped(here.root / "train_labels.zip", {"xView_train.geojson": json.dumps({"features": features}).encode()})
    zipped(here.root / "train_images.zip", {f"train_images/{number}.jpg": JPG for number in range(20)})
    prepare(here)
    train, val = load_index(here.train), load_index(here.val)
    assert len(train) + len(val) == 20 and set(train.all_labels[:, 0]) == {59}


def test_shapes_are_drawn_without_a_network(config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(converters, "draw_dataset", asked.append)
    monkeypatch.setattr(converters, "fetch", lambda *_: pytest.fail("network"))
    here = config("shapes.yaml")
    with pytest.raises(ValueError, match="still missing"):
        prepare(here)
    assert asked == [here.root]
