"""Split a data set at random into training, validation and test; list what is wrong with one, for its owner."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.base.files import is_one_line, printable, write_whole
from utils.base.log import LOGGER
from utils.data.image_files import Problem, find_images, img2label_paths
from utils.prepare.label_formats import write_rows

PARTS = ("train", "val", "test")
NAME = "dataset_report.csv"
COLUMNS = ("split", "file", "line", "reason", "remedy", "left out")
_FORMULA = tuple("=+-@＝＋－＠")  # what makes spreadsheets calculate, or start a program


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
    labelled = [os.path.exists(label) for label in img2label_paths(images)]
    without = [image for image, there in zip(images, labelled, strict=True) if not there]
    if annotated_only:
        images = list(itertools.compress(images, labelled))
    parts = _drawn_parts(len(images), weights, seed, folder)
    counts = _write_lists(folder, images, parts)
    written = ", ".join(f"autosplit_{part}.txt {count}" for part, count in counts.items() if count)
    LOGGER.info(f"{printable(folder)}: {len(images)} images; {written}")
    if without:
        what = "left out" if annotated_only else "listed as background (annotated_only=True leaves them out)"
        LOGGER.warning(f"{len(without)} images have no label file, {what} (first: {printable(without[0])})")
    return counts


def _write_lists(folder: Path, images: Sequence[Path], parts: np.ndarray) -> dict[str, int]:
    """Write each part's list, or remove it where it has no images; return the numbers of images.

    Raises ValueError where a list is of images of another folder, which splitting this one would lose.
    """
    names = [f"./{image.relative_to(folder.parent).as_posix()}" for image in images]
    if odd := [name for name in names if not is_one_line(name)]:
        raise ValueError(f"{printable(odd[0])}: a list cannot hold this name; rename the image")
    lists = [folder.parent / f"autosplit_{part}.txt" for part in PARTS]
    for listing in filter(Path.is_file, lists):
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            image = Path(os.path.abspath(listing.parent / line.strip()))
            if not image.is_relative_to(folder) and image.is_file():
                raise ValueError(
                    f"{printable(listing)}: lists images of {printable(image.parent)}; move it or remove it"
                )
    for number, listing in enumerate(lists):
        if number in parts:
            write_rows(listing, itertools.compress(names, parts == number))
        else:
            listing.unlink(missing_ok=True)
    return dict(zip(PARTS, np.bincount(parts, minlength=len(PARTS)).tolist(), strict=True))


def _drawn_parts(count: int, weights: Sequence[float], seed: int, folder: Path) -> np.ndarray:
    """Return (count,) numbers of the parts that images belong to."""
    try:
        given = np.array(weights, dtype=float).reshape(-1)
    except (TypeError, ValueError):
        given = np.zeros(0)
    if not 1 <= len(given) <= len(PARTS) or not (given >= 0).all() or not 0 < given.sum() < np.inf:
        raise ValueError(f"weights {weights!r:.80}: give the shares of {', '.join(PARTS)}, as in (0.9, 0.1, 0.0)")
    chances = np.zeros(len(PARTS))
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


def write_report(folder: Path, splits: Mapping[str, Sequence[Problem]]) -> Path | None:
    """Write `dataset_report.csv` into a folder, whole or not at all: the problems of every split, a row each.

    The file is UTF-8 with a mark that makes spreadsheets read it so. Bytes of names that are no text are written as
    escapes; what could pass for a formula gets an apostrophe in front. Where there is no problem there is no file: an
    old one is removed, and None returned. Raises OSError when the folder cannot be written to.
    """
    target = folder / NAME
    if not any(splits.values()):
        target.unlink(missing_ok=True)
        return None
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\r\n")
    table.writerow(COLUMNS)
    for split, problems in splits.items():
        for problem in problems:
            line, dropped = "" if problem.line is None else str(problem.line), "yes" if problem.dropped else "no"
            row = map(printable, (split, problem.file, line, problem.reason, problem.remedy, dropped))
            table.writerow(f"'{cell}" if cell.lstrip().startswith(_FORMULA) else cell for cell in row)
    write_whole(target, content.getvalue().encode("utf-8-sig"))
    return target
