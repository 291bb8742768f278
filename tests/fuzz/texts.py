"""Inputs that are text: labels, lists, YAML, annotations of others."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np

from models.description.build import BLOCKS
from models.yolo import Model
from tests.fuzz.guard import Kind
from tests.fuzz.mutate import NUMBERS, WORDS, damaged, odd_text
from utils.base.config import MAX_CLASSES, DataConfig, Hyp
from utils.data.image_files import find_images
from utils.data.labels import check_pair
from utils.prepare.converters import convert_coco, convert_dota, convert_voc

LABELS = "0 .5 .5 .2 .2\n1 0.1 0.1 .2 .2\n0 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5\n\n2 1 1 1 1"
LIST = "./images/a.png\nimages/b.jpg\n/data/c.png\n\nd e.webp"
DATA = (
    "path: ..\ntrain: images/train\nval: [images/val, more.txt]\ntest:\n"
    "nc: 2\nnames: [a, b]\ndownload: shapes\nimgsz: 64"
)
DATA_KEYS = ("path:", "train:", "val:", "nc:", "names:", "download:", "imgsz:", "{0: a, 1: b}", "[a, b, c]", "100001")
HYP = "lr0: 0.01\nmosaic: 1.0\nanchor_t: 4.0\nbox_iou: CIoU\npooled: 0\nanchors: 3\nnominal_batch: 64\nscale: 1e-2"
MODEL = """nc: 2
depth_multiple: 0.5
width_multiple: 0.25
anchors: [[10,10, 16,16], [30,30, 40,40]]
backbone:
  - [-1, 1, Conv, [32, 6, 4, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 2, C3, [32]]
  - [-1, 1, Conv, [64, 3, 2]]
head:
  - [-1, 1, SPPF, [64, 5]]
  - [-1, 1, nn.Upsample, [null, 2, nearest]]
  - [[-1, 2], 1, Concat, [1]]
  - [-1, 1, C3, [32, false]]
  - [[7, 4], 1, Detect, [nc, anchors]]"""
MODEL_WORDS = (
    *("[-1,", "[3,", "[[-1,", "[[0,1],", "1,", "3,", "99999999,", "-1,", "1.5,", "0,"),
    *(f"{name}," for name in (*BLOCKS, "nn.Conv2d", "nn.ReLU", "nn.Linear", "nn.ZeroPad2d", "nn.Unfold", "nn.LSTM")),
    *("[9999999]]", "[1000000]]", "[64, 999]]", "[64, 3, 0]]", "[64, 3, -1]]", "[null, 1000, nearest]]"),
    "[64, [1, 3]]]",
    *("[64, {g: 7}]]", "[{a: *x}]]", "['nn.ReLU()']]", "['(((((1']]", "[16, 3, 1, null, 16]]", "[]]"),
)
COCO: dict[str, Any] = {
    "categories": [{"id": 1, "name": "a"}, {"id": 7, "name": "b"}],
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": 2, "file_name": "d/b.jpg", "width": 9, "height": 9},
    ],
    "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {"image_id": 2, "category_id": 7, "bbox": [0, 0, 3, 3]},
    ],
}  # fmt: skip
VOC = """<annotation><size><width>64</width><height>48</height></size>
 <object><name>a</name><difficult>0</difficult>
 <bndbox> <xmin>1</xmin> <ymin>2</ymin> <xmax>30</xmax> <ymax>40</ymax> </bndbox></object>
</annotation>"""
DOTA = "imagesource:x\ngsd:1\n1 1 30 1 30 20 1 20 a 0\n5.0 5.0 9 5 9 9 5 9 b 1"
ODD_VALUES = (*NUMBERS, -1, 1.5, 1e308, float("nan"), float("inf"), None, True, [], {}, [[]], "9" * 300, *WORDS)


def _good_image(folder: Path, name: str = "good.png") -> Path:
    if not (folder / name).exists():
        (folder / name).write_bytes(cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes())
    return folder / name


def _use_labels(path: Path) -> None:
    record = check_pair(str(_good_image(path.parent)), str(path))
    if record.size is None:
        raise ValueError(str(record.problem))
    boxes, classes = record.labels[:, 1:], record.labels[:, 0]
    assert ((boxes >= 0) & (boxes <= 1)).all() and ((classes >= 0) & (classes < MAX_CLASSES)).all()
    assert len(record.segments) == len(record.labels)


def _use_list(path: Path) -> None:
    for image in find_images(path)[:5]:
        check_pair(str(image), "none.txt")


def _use_dota(path: Path) -> None:
    (path.parent / "images").mkdir(exist_ok=True)
    images = _good_image(path.parent / "images", f"{path.stem}.png").parent
    _converted(path, lambda labels: convert_dota(path.parent, images, labels, ["a", "b"], polygons=True))


def _converted(path: Path, convert: Callable[[Path], int]) -> None:
    """What is written must be readable."""
    labels = path.parent / "labels"
    convert(labels)
    for file in labels.rglob("*.txt"):
        record = check_pair(str(_good_image(path.parent)), str(file))
        assert record.size is not None, f"what was written cannot be read: {record.problem}"


def _text(text: str, words: tuple[str, ...] = ()) -> Callable[[Random], bytes]:
    return lambda rng: odd_text(rng, text, words)


def _yaml(text: str, words: tuple[str, ...] = ()) -> Callable[[Random], bytes]:
    """Sometimes with aliases that stand for more than anybody has."""

    def make(rng: Random) -> bytes:
        content = odd_text(rng, text, words)
        if rng.randrange(8) == 0:
            levels, width = rng.randrange(1, 12), rng.randrange(1, 10)
            lines = ["x: &x0 [1]", *(f"x: &x{n + 1} [{','.join([f'*x{n}'] * width)}]" for n in range(levels))]
            key = rng.choice((b"names", b"nc", b"train", b"lr0", b"anchors", b"backbone", b"imgsz", b"path", b"q"))
            content = "\n".join(lines).encode() + b"\n" + content + b"\n" + key + b": *x%d" % levels
        return content

    return make


def _json(content: dict[str, Any]) -> Callable[[Random], bytes]:
    """One to three values, anywhere in it, are replaced, dropped or repeated."""

    def make(rng: Random) -> bytes:
        changed = copy.deepcopy(content)
        for _ in range(rng.randrange(1, 4)):
            place: Any = changed
            while True:
                keys = list(place) if isinstance(place, dict) else range(len(place))
                if not keys:
                    break
                key = rng.choice(keys)
                if isinstance(place[key], (dict, list)) and place[key] and rng.randrange(5):
                    place = place[key]
                    continue
                if rng.randrange(6) == 0:
                    del place[key]
                else:
                    place[key] = rng.choice(ODD_VALUES)
                break
        text = json.dumps(changed).encode()
        deep = b"[" * 3000 if rng.randrange(40) == 0 else b""
        return deep + (damaged(rng, text) if rng.randrange(6) == 0 else text)

    return make


TEXTS = (
    Kind("labels", "input.txt", _text(LABELS), _use_labels),
    Kind("list of images", "input.txt", _text(LIST), _use_list),
    Kind("data YAML", "input.yaml", _yaml(DATA, DATA_KEYS), DataConfig.load),
    Kind("hyp YAML", "input.yaml", _yaml(HYP), lambda path: Hyp.load(path).scaled(3, 80, 640)),
    Kind("model YAML", "input.yaml", _yaml(MODEL, MODEL_WORDS), lambda path: Model(str(path), verbose=False)),
    Kind(
        "COCO JSON",
        "input.json",
        _json(COCO),
        lambda path: _converted(path, lambda labels: convert_coco(path, labels, polygons=True)),
    ),
    Kind(
        "VOC XML",
        "input.xml",
        _text(VOC),
        lambda path: _converted(path, lambda labels: convert_voc(path.parent, labels, ["a", "b"])),
    ),
    Kind("DOTA", "input.txt", _text(DOTA), _use_dota),
)
