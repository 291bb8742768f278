"""Data sets by name: how each one is fetched and turned into images and label files.

A data YAML says `download: name`, and `prepare` runs that converter when the images are missing; a YAML can never
bring code of its own. The folder-level converters for anybody's COCO, VOC and DOTA annotations are `own_data`'s.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from utils.base.config import ClassNames, DataConfig
from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.paths import datasets_root
from utils.base.yaml import read_yaml
from utils.data.image_files import find_images
from utils.distributed.processes import main_first
from utils.prepare.archives import extract
from utils.prepare.coco_json import CocoReader
from utils.prepare.controls import draw_control, draw_far, draw_near
from utils.prepare.dataset_tools import autosplit
from utils.prepare.downloads import Remote, fetch, fetch_folder, url2file
from utils.prepare.image_places import ImageName, LabelPlaces, image_size
from utils.prepare.label_formats import (
    DropCounts,
    Rows,
    argoverse_rows,
    naming,
    read_annotations,
    sku_rows,
    visdrone_rows,
    write_rows,
    xview_rows,
)
from utils.prepare.own_data import convert_coco, convert_dota, convert_voc, read_voc, voc_rows, voc_size, write_labels
from utils.prepare.synthetic import draw_dataset

__all__ = ["CONVERTERS", "FILES", "convert_coco", "convert_dota", "convert_voc", "prepare"]

RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v1.0"  # where v6.1's users get these files
COCO_SITE = "http://images.cocodataset.org/zips"
OBJECTS365_SITE = "https://dorc.ks3-cn-beijing.ksyun.com/data-set/2020Objects365%E6%95%B0%E6%8D%AE%E9%9B%86"
FILES: dict[str, tuple[Remote, ...]] = {
    "coco128": (Remote("https://ultralytics.com/assets/coco128.zip"),),
    "coco-labels": (Remote(f"{RELEASE}/coco2017labels.zip"),),
    "coco": (
        Remote(f"{COCO_SITE}/train2017.zip", "md5:cced6f7f71b7629ddf16f17bbcfab6b2"),
        Remote(f"{COCO_SITE}/val2017.zip", "md5:442b8da7639aecaf257c1dceb8ba8c80"),
        Remote(f"{COCO_SITE}/test2017.zip", "md5:77ad2c53ac5d0aea611d422c0938fb35"),
    ),
    "voc": tuple(
        Remote(f"{RELEASE}/{name}.zip")
        for name in ("VOCtrainval_06-Nov-2007", "VOCtest_06-Nov-2007", "VOCtrainval_11-May-2012")
    ),
    "visdrone": tuple(Remote(f"{RELEASE}/VisDrone2019-DET-{part}.zip") for part in ("train", "val", "test-dev")),
    "sku110k": (Remote("http://trax-geometry.s3.amazonaws.com/cvpr_challenge/SKU110K_fixed.tar.gz"),),
    "argoverse": (Remote("https://argoverse-hd.s3.us-east-2.amazonaws.com/Argoverse-HD-Full.zip"),),
    "globalwheat": (
        Remote("https://zenodo.org/record/4298502/files/global-wheat-codalab-official.zip"),
        Remote(f"{RELEASE}/GlobalWheat2020_labels.zip"),
    ),
    "objects365-notes": (
        Remote(f"{OBJECTS365_SITE}/train/zhiyuan_objv2_train.tar.gz"),
        Remote(f"{OBJECTS365_SITE}/val/zhiyuan_objv2_val.json"),
    ),
    "objects365-train": tuple(Remote(f"{OBJECTS365_SITE}/train/patch{i}.tar.gz") for i in range(51)),
    "objects365-val": tuple(Remote(f"{OBJECTS365_SITE}/val/images/v{1 + (i > 15)}/patch{i}.tar.gz") for i in range(44)),
}
LARGEST = 64.0  # GiB of one of these files, all of which are known
SIZES = {
    "coco128": "7 MB", "coco": "27 GB", "voc": "2.8 GB", "visdrone": "2.3 GB", "sku110k": "13.6 GB",
    "argoverse": "31 GB", "globalwheat": "7 GB", "objects365": "about 700 GB",
}  # fmt: skip
WHEAT_FOLDERS = (
    *("arvalis_1", "arvalis_2", "arvalis_3", "ethz_1", "inrae_1", "nau_1"),
    *("rres_1", "uq_1", "usask_1", "utokyo_1", "utokyo_2"),
)


def _write(rows: Rows, labels: Path, counts: DropCounts, source: Path, whole: bool = True) -> None:
    """Write the label files of annotations that say where their images lie (`whole` off: without their endings)."""
    named = {ImageName.read(name, whole): lines for name, lines in rows.items()}
    write_labels(named, LabelPlaces(labels, None), counts, source)


def coco(config: DataConfig) -> None:
    """COCO 2017: labels and lists from one archive, images from the three of COCO's own site."""
    fetch(FILES["coco-labels"], config.root, top="coco")
    fetch(FILES["coco"], config.root / "images", threads=3, limit=LARGEST)


def voc(config: DataConfig) -> None:
    """Pascal VOC 2007 and 2012: a folder a list, difficult objects dropped."""
    fetch(FILES["voc"], config.root / "images", threads=3, limit=LARGEST)
    classes = ClassNames(config.names)
    for year, part in ((2012, "train"), (2012, "val"), (2007, "train"), (2007, "val"), (2007, "test")):
        source = config.root / "images" / "VOCdevkit" / f"VOC{year}"
        images, labels = (config.root / kind / f"{part}{year}" for kind in ("images", "labels"))
        listing = source / "ImageSets" / "Main" / f"{part}.txt"
        counts, rows = DropCounts(), {}
        for name in listing.read_text(encoding="utf-8").split():
            root, where = read_voc(source / "Annotations" / f"{name}.xml"), f"{name}.xml"
            if size := voc_size(root):
                rows[name] = voc_rows(root, size, classes, counts, where)
            else:
                rows[name] = []
                counts.drop("of an image of unknown size", where, sum(1 for _ in root.iter("object")))
        _write(rows, labels, counts, listing, whole=False)
        images.mkdir(parents=True, exist_ok=True)
        for name in rows:
            _move(source / "JPEGImages" / f"{name}.jpg", images / f"{name}.jpg")


def visdrone(config: DataConfig) -> None:
    """VisDrone 2019 detection: images from drones, regions to ignore skipped."""
    fetch(FILES["visdrone"], config.root, threads=3, limit=LARGEST)
    for folder in sorted(config.root.glob("VisDrone2019-DET-*")):
        rows, counts, notes = {}, DropCounts(), folder / "annotations"
        for file in sorted(notes.glob("*.txt")):
            size = image_size(folder / "images" / f"{file.stem}.jpg")
            with naming(file, "a VisDrone file"):
                rows[file.stem] = visdrone_rows(read_annotations(file), size, counts, file.name)
        _write(rows, folder / "labels", counts, notes, whole=False)


def sku110k(config: DataConfig) -> None:
    """SKU-110K: shelves full of goods, all of one class."""
    if not (config.root / "annotations").is_dir():
        fetch(FILES["sku110k"], config.root, limit=LARGEST, top="SKU110K_fixed")
    for part in ("train", "val", "test"):
        table, counts = config.root / "annotations" / f"annotations_{part}.csv", DropCounts()
        with naming(table, "a SKU-110K table"):
            rows = sku_rows(read_annotations(table), counts, table.name)
        _write(rows, config.root / "labels", counts, table)
        write_rows(config.root / f"{part}.txt", (f"./images/{name}" for name in sorted(rows)))


def argoverse(config: DataConfig) -> None:
    """Argoverse-HD: street scenes from a car."""
    fetch(FILES["argoverse"], config.root, limit=LARGEST)
    base = config.root / "Argoverse-1.1"
    _move(base / "tracking", base / "images")
    for part in ("train", "val"):
        notes, counts = config.root / "Argoverse-HD" / "annotations" / f"{part}.json", DropCounts()
        _write(argoverse_rows(notes, counts), base / "labels", counts, notes)


def globalwheat(config: DataConfig) -> None:
    """Global Wheat Head 2020: fields from above."""
    fetch(FILES["globalwheat"], config.root, limit=LARGEST)
    for name in WHEAT_FOLDERS:
        _move(config.root / name, config.root / "images" / name)
        notes, labels = config.root / f"{name}.json", config.root / "labels" / name
        if notes.exists():
            _move(notes, config.root / "annotations" / notes.name)
            if not labels.exists():
                convert_coco(config.root / "annotations" / notes.name, labels)


def objects365(config: DataConfig) -> None:
    """Objects365 v2: 365 classes, far more data than most disks have room for."""
    fetch(FILES["objects365-notes"], config.root, limit=LARGEST)
    for part in ("train", "val"):
        images = config.root / "images" / part
        fetch(FILES[f"objects365-{part}"], images, threads=8, limit=LARGEST)
        for image in [path for path in images.rglob("*.jpg") if path.parent != images]:
            _move(image, images / image.name)
        notes, labels = config.root / f"zhiyuan_objv2_{part}.json", config.root / "labels" / part
        reader = CocoReader(ClassNames(config.names), crowds=True, digits=5)
        rows = {Path(name).name: lines for name, lines in reader.rows(notes).items()}
        _write(rows, labels, reader.counts, notes)


def xview(config: DataConfig) -> None:
    """xView: satellite images, which one has to register for; the archives are expected in the data set's folder."""
    for name in ("train_images", "train_labels"):
        archive, done = config.root / f"{name}.zip", (config.root / "images" / "train", config.root / name)
        if archive.exists() and not any(folder.exists() for folder in done):
            extract(archive, config.root)
    notes, images = config.root / "xView_train.geojson", config.root / "images" / "train"
    if not notes.exists() or not (images.exists() or (config.root / "train_images").exists()):
        raise ValueError(
            "xView cannot be fetched by a program: register at https://challenge.xviewdataset.org, put "
            f"train_images.zip and train_labels.zip into {config.root} and start again"
        )
    if not images.exists():
        _move(config.root / "train_images", images)
    sizes, counts = {path.name: image_size(path) for path in find_images(images)}, DropCounts()
    _write(xview_rows(notes, sizes, counts), config.root / "labels" / "train", counts, notes)
    autosplit(images)


def _move(source: Path, target: Path) -> None:
    """Move a file or folder, unless an earlier run already did. Raises ValueError where something else is there."""
    if not source.exists():
        if not target.exists():
            raise ValueError(f"{source} is missing from what was fetched")
        return
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if target.exists():
        raise ValueError(f"{target} is in the way of {source.name}; move it elsewhere and start again")
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


CONVERTERS: dict[str, Callable[[DataConfig], object]] = {
    "shapes": lambda config: draw_dataset(config.root),  # small textured scenes, drawn from a seed
    "far": lambda config: draw_control(config.root, draw_far),
    "near": lambda config: draw_control(config.root, draw_near),
    "coco": coco,
    "coco128": lambda config: fetch(FILES["coco128"], config.root, top="coco128"),
    "voc": voc,
    "visdrone": visdrone,
    "sku110k": sku110k,
    "argoverse": argoverse,
    "globalwheat": globalwheat,
    "objects365": objects365,
    "xview": xview,
}


def prepare(config: DataConfig) -> None:
    """See that the images of a data set are there: run the converter that its YAML names if they are not.

    Raises ValueError saying which path was looked for, when nothing is to be done about it or it did not help.
    """
    with main_first():
        if not (absent := [path for path in (*config.train, *config.val) if not path.exists()]):
            return
        wanted = config.download or ""
        if not wanted:
            raise ValueError(
                f"{config.file}: the data set is not there, looked for {', '.join(map(str, absent))}"
                f"{_hint(config, absent)}; correct path, train and val, or put the images there"
            )
        if wanted in CONVERTERS:
            if wanted in SIZES:
                LOGGER.info(f"fetching {wanted} ({SIZES[wanted]}) to {config.root}")
            CONVERTERS[wanted](config)
        elif wanted.startswith(("https://", "http://")) and url2file(wanted).endswith(".zip"):
            _fetch_archive(config, wanted, absent)
        else:
            raise ValueError(
                f"{config.file}: `download:` is neither the URL of a .zip file nor one of {', '.join(CONVERTERS)}; "
                "commands and code in a data YAML are not run"
            )
        for path in itertools.filterfalse(Path.exists, absent):
            raise ValueError(f"{config.file}: still missing after `download: {wanted}`: {path}")


def _hint(config: DataConfig, absent: list[Path]) -> str:
    """Return a hint at the same name in other letters, or below the folder where the program runs; mostly nothing."""
    for path in absent:
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        if other := next((name for name in sorted(beside) if name.lower() == path.name.lower()), None):
            return f"; {printable(path.parent / other)} is there"
        if path.is_relative_to(config.root) and os.path.exists(here := Path.cwd() / path.relative_to(config.root)):
            return f"; {printable(here)} is there, but paths begin at {printable(config.root)}"
    return ""


def _fetch_archive(config: DataConfig, url: str, absent: list[Path]) -> None:
    """Fetch anybody's archive, which becomes a new folder: `path` of its YAML, below that or the data sets' root.

    Raises ValueError for a path that leads elsewhere by itself or over links; `../datasets/`, with which v6.1's YAMLs
    begin theirs, stands for the data sets' root.
    """
    path = str(config.root)
    folder, places = config.root.resolve(), {datasets_root().resolve()}
    if config.file:
        path = str(read_yaml(config.file).get("path") or "")
        places |= {config.file.resolve().parent}
    parts = PureWindowsPath(path.removeprefix("../datasets/"))
    if parts.anchor or ".." in parts.parts or path.startswith("~") or places.isdisjoint(folder.parents):
        raise ValueError(
            f"{config.file}: path {printable(path)[:200]!r} cannot be fetched into: with the address of an archive, "
            f"`path` names a new folder below {datasets_root()} or beside the YAML, as in `path: flowers`"
        )
    for place in absent:
        if config.root not in place.parents or ".." in place.parts:
            raise ValueError(f"{config.file}: {printable(place)} is not in the folder that `download:` fetches")
    LOGGER.info(f"fetching {printable(url)} to {folder}")
    fetch_folder(url, folder, [place.relative_to(config.root) for place in absent])
