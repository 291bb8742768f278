"""Small tools for a data set's owner: split it at random, count what is in it, cut out its objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.boxes import xywhn2xyxy
from utils.config import DataConfig
from utils.label_index import LabelIndex, load_index
from utils.labels import find_images, img2label_paths

PARTS = ("train", "val", "test")


def autosplit(
    path: str | Path, weights: Sequence[float] = (0.9, 0.1, 0.0), annotated_only: bool = False, seed: int = 0
) -> dict[str, int]:
    """Divide the pictures of a folder at random into autosplit_train.txt, _val.txt and _test.txt beside the folder.

    `weights` are the parts' chances; `annotated_only` leaves out pictures without a label file. Lists without pictures
    are not written; how many pictures each part got is returned.
    """
    folder = Path(path)
    images = find_images(folder)
    if annotated_only:
        images = [image for image, label in zip(images, img2label_paths(images), strict=True) if Path(label).exists()]
    chances = np.asarray(weights, dtype=float) / np.sum(weights)
    drawn = np.random.default_rng(seed).choice(len(PARTS), len(images), p=chances)
    names = [image.relative_to(folder.parent).as_posix() for image in images]
    for number, part in enumerate(PARTS):
        listing = folder.parent / f"autosplit_{part}.txt"
        listing.unlink(missing_ok=True)
        if chosen := [name for name, where in zip(names, drawn, strict=True) if where == number]:
            listing.write_text("".join(f"./{name}\n" for name in chosen), encoding="utf-8")
    return {part: int((drawn == number).sum()) for number, part in enumerate(PARTS)}


def _statistics(index: LabelIndex, nc: int) -> dict[str, Any]:
    rows = [index.labels(position) for position in range(len(index))]
    counts = np.array([np.bincount(labels[:, 0].astype(int), minlength=nc) for labels in rows]).reshape(-1, nc)
    listed = [[[int(kind), *np.round(box, 4).tolist()] for kind, *box in labels.astype(float)] for labels in rows]
    return {
        "instance_stats": {"total": int(counts.sum()), "per_class": counts.sum(0).tolist()},
        "image_stats": {
            "total": len(index),
            "unlabelled": int((counts.sum(1) == 0).sum()),
            "per_class": (counts > 0).sum(0).tolist(),
        },
        "labels": [{Path(index.path(position)).name: rows} for position, rows in enumerate(listed)],
    }


def dataset_stats(config: DataConfig) -> dict[str, Any]:
    """Numbers of pictures and objects of each part of a data set, in all and by class, and its labels as plain lists.

    Parts that the YAML does not name are None. Raises ValueError as reading the data set does.
    """
    parts: dict[str, Any] = {}
    for part in PARTS:
        sources = getattr(config, part)
        index = load_index(sources, f"{part}: ") if sources else None
        if index is not None:
            index.check_classes(config.nc)
        parts[part] = None if index is None else _statistics(index, config.nc)
    return {"nc": config.nc, "names": list(config.names), **parts}


def extract_boxes(sources: str | Path | Sequence[str | Path], folder: str | Path) -> int:
    """Write every labelled object, a fifth larger and 3 px, as folder/class/picture_number.jpg; how many there are."""
    index, written = load_index(sources), 0
    for position in range(len(index)):
        path = Path(index.path(position))
        image = index.image(position)[..., ::-1]  # Pillow writes RGB
        height, width = image.shape[:2]
        grown = index.labels(position)[:, 1:].astype(float)
        grown[:, 2:] = grown[:, 2:] * 1.2 + np.array([3 / width, 3 / height])
        corners = xywhn2xyxy(grown, width, height).round().astype(int).clip(0, (width, height, width, height))
        for number, (kind, (x1, y1, x2, y2)) in enumerate(zip(index.labels(position)[:, 0], corners, strict=True)):
            target = Path(folder) / str(int(kind)) / f"{path.stem}_{number}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image[y1:y2, x1:x2])).save(target)
            written += 1
    return written
