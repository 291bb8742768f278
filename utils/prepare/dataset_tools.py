"""Small tools for a data set's owner: split it at random, count what is in it, cut out its objects."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.base.config import DataConfig
from utils.base.files import is_one_line, printable
from utils.base.log import LOGGER
from utils.boxes.convert import xywhn2xyxy
from utils.data.image_files import find_images, img2label_paths
from utils.data.label_arrays import LabelIndex
from utils.data.label_index import load_index
from utils.prepare.label_formats import write_rows

PARTS = ("train", "val", "test")


def autosplit(
    path: str | Path, weights: Sequence[float] = (0.9, 0.1, 0.0), annotated_only: bool = False, seed: int = 0
) -> dict[str, int]:
    """Divide the images of a folder at random into autosplit_train.txt, _val.txt and _test.txt beside the folder.

    `weights` are the parts' chances; each part that has one gets at least one image. `annotated_only` leaves out images
    without a label file. Lists without images are not written; how many images each part got is returned and logged.
    Raises ValueError, with the lists as they were, where the folder, the weights or the lists there do not allow it.
    """
    folder = Path(os.path.abspath(path))
    if not folder.is_dir():
        raise ValueError(f"{printable(folder)}: no such folder; name the folder of the images")
    images = find_images(folder)
    labels = dict(zip(images, img2label_paths(images), strict=True))
    without = [image for image, label in labels.items() if not os.path.exists(label)]
    if annotated_only:
        images = [image for image in images if os.path.exists(labels[image])]
    counts = _write_lists(folder, images, _drawn(len(images), weights, seed, folder))
    said = ", ".join(f"autosplit_{part}.txt {count}" for part, count in counts.items() if count)
    LOGGER.info(f"{printable(folder)}: {len(images)} images; {said}")
    if without:
        what = "left out" if annotated_only else "listed as background (annotated_only=True leaves them out)"
        LOGGER.warning(f"{len(without)} images have no label file, {what} (first: {printable(without[0])})")
    return counts


def _write_lists(folder: Path, images: Sequence[Path], drawn: np.ndarray) -> dict[str, int]:
    """Write each part's list, or remove it where it has no images; return the numbers of images."""
    names = [f"./{image.relative_to(folder.parent).as_posix()}" for image in images]
    if odd := [name for name in names if not is_one_line(name) or name != name.rstrip()]:
        raise ValueError(f"{printable(odd[0])}: a list cannot hold this name; rename the image")
    lists = {part: folder.parent / f"autosplit_{part}.txt" for part in PARTS}
    for listing in lists.values():
        _check_free(listing, folder)
    counts = dict.fromkeys(PARTS, 0)
    for number, (part, listing) in enumerate(lists.items()):
        chosen = list(itertools.compress(names, drawn == number))
        counts[part] = len(chosen)
        if chosen:
            write_rows(listing, chosen)
        else:
            listing.unlink(missing_ok=True)
    return counts


def _drawn(count: int, weights: Sequence[float], seed: int, folder: Path) -> np.ndarray:
    """(count,) numbers of the parts that images belong to."""
    chances = np.zeros(len(PARTS))
    try:
        given = np.asarray(weights, dtype=float).reshape(-1)
    except (TypeError, ValueError):
        given = np.zeros(0)
    if not 1 <= len(given) <= len(PARTS) or not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise ValueError(f"weights {weights!r:.80}: give the shares of {', '.join(PARTS)}, as in (0.9, 0.1, 0.0)")
    chances[: len(given)] = given / given.sum()
    wanted = np.flatnonzero(chances)
    if count < len(wanted):
        parts = " and ".join(PARTS[number] for number in wanted)
        raise ValueError(f"{printable(folder)}: {count} images cannot be divided into {parts}; add some")
    drawn = np.random.default_rng(seed).choice(len(PARTS), count, p=chances)
    for number in wanted:
        if not (drawn == number).any():  # train.py needs both lists, however few images there are
            largest = np.bincount(drawn, minlength=len(PARTS)).argmax()
            drawn[np.flatnonzero(drawn == largest)[-1]] = number
    return drawn


def _check_free(listing: Path, folder: Path) -> None:
    """Raise ValueError where a list is of images of another folder, which splitting this one would lose."""
    if not listing.is_file():
        return
    for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
        image = Path(os.path.abspath(listing.parent / line.strip()))
        if not image.is_relative_to(folder) and image.is_file():
            raise ValueError(f"{printable(listing)}: lists images of {printable(image.parent)}; move it or remove it")


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
    """Write every labelled object, a fifth larger and 3 px, as folder/class/image_number.jpg; how many there are.

    Images of one name in several folders, or with several endings, get a number after their name.
    """
    index, written, stems = load_index(sources), 0, set()
    for position in range(len(index)):
        stem = _free(Path(index.path(position)).stem, stems)
        stems.add(stem)
        image = index.image(position)[..., ::-1]  # Pillow writes RGB
        height, width = image.shape[:2]
        grown = index.labels(position)[:, 1:].astype(float)
        grown[:, 2:] = grown[:, 2:] * 1.2 + np.array([3 / width, 3 / height])
        corners = xywhn2xyxy(grown, width, height).round().astype(int).clip(0, (width, height, width, height))
        for number, (kind, (x1, y1, x2, y2)) in enumerate(zip(index.labels(position)[:, 0], corners, strict=True)):
            target = Path(folder) / str(int(kind)) / f"{stem}_{number}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image[y1:y2, x1:x2])).save(target)
            written += 1
    return written


def _free(stem: str, taken: set[str]) -> str:
    """The stem, with a number where another image has it."""
    numbered = itertools.chain((stem,), (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in numbered if name not in taken)
