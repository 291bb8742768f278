"""Images and their label files: read them, check each pair once.

A label file has one object per line, `class x-centre y-centre width height`, or a class followed by the points of a
polygon, everything but the class as a fraction of the image's width or height. Files are only ever read: what is
wrong with one is reported (file, line, reason, remedy), never repaired on disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from utils.base.config import MAX_CLASSES
from utils.base.files import MIB, check_size, decoded, printable, read_bytes
from utils.data.image_files import Problem
from utils.images.reading import LARGE_PIXELS, inspect_image

MAX_LABEL_BYTES = 16 * MIB  # some 300,000 boxes
ROUNDING = 1e-4  # of a coordinate: what four digits and single precision leave, a tenth of a pixel in 1000
NO_POINTS, NO_LABELS = np.zeros((0, 2), dtype=np.float32), np.zeros((0, 5), dtype=np.float32)

_ODD_NUMBER = re.compile(r"\S*[^\x00-\x7f]\S*|\S*_\S*")
_ROW_FORM = "write `class x-centre y-centre width height` on each line, or a class and at least 4 polygon points"
_FRACTIONS = "coordinates are fractions of the image's width and height, from 0 to 1"
_DEEP = ("more than 8 bits a channel", "scaled to 8 by the bits they declare or use, other numbers by their range")
_PAGES = ("several images in one file", "only the first is used; save the others as files of their own")
_ROUNDED = (f"coordinates outside of 0 to 1 by at most {ROUNDING:g}", "taken for rounding, and clipped")
_FLAT = ("labels without width or height", "kept, but no detection matches them: remove or correct them")


class LabelError(ValueError):
    """A label row that cannot be used: its line (from 1), what is wrong and what to do."""

    def __init__(self, line: int, reason: str, remedy: str) -> None:
        super().__init__(f"line {line}: {reason}; {remedy}")
        self.line, self.reason, self.remedy = line, reason, remedy


class LabelRows(NamedTuple):
    """The rows of a label file."""

    labels: np.ndarray  # (n, 5) float32: class, cx, cy, w, h in 0..1
    segments: list[np.ndarray]  # n polygons (k, 2) in 0..1; (0, 2) where a label is only a box
    lines: list[int]  # n line numbers from 1
    is_rounded: bool  # some coordinates were clipped


class Record(NamedTuple):
    """One image and its labels as found on disk; `size` is None when the pair cannot be used."""

    path: str
    label_path: str
    size: tuple[int, int] | None  # width, height as decoded, EXIF orientation applied
    labels: np.ndarray  # as in `LabelRows`, and so are the segments
    segments: tuple[np.ndarray, ...]
    has_label_file: bool
    problem: Problem | None = None
    notes: tuple[Problem, ...] = ()  # what is so with many images, and counted


def _row(line: int, tokens: list[str], polygons: bool) -> tuple[list[float], np.ndarray]:
    """One line's tokens -> (class cx cy w h), polygon. `polygons`: the file has them, so three points are one too."""
    try:
        values = [float(token) for token in tokens]
    except ValueError as error:
        remedy = "separate the values by spaces" if "," in "".join(tokens) else _ROW_FORM
        raise LabelError(line, f"not numbers: {' '.join(tokens)[:60]!r}", remedy) from error
    count = len(values)
    if count == 5:
        return values, NO_POINTS
    if count % 2 == 0 or count < (7 if polygons else 9):
        raise LabelError(line, f"{count} columns where a box has 5", _ROW_FORM)
    points = np.array(values[1:], dtype=np.float32).reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    return [values[0], *((low + high) / 2).tolist(), *(high - low).tolist()], points


def _check_values(labels: np.ndarray, lines: Sequence[int]) -> None:
    """Raise LabelError for the first row that is not finite, of no class, or outside the image."""
    kinds, boxes = labels[:, 0], labels[:, 1:]
    wrong = (
        ~np.logical_and.reduce(np.isfinite(labels), axis=1),
        (kinds < 0) | (kinds != np.floor(kinds)),
        kinds >= MAX_CLASSES,
        boxes.min(axis=1) < 0,
        boxes.max(axis=1) > 1,
    )
    bad = np.logical_or.reduce(wrong)
    if not bad.any():
        return
    first = int(bad.argmax())
    kind, row = f"class {kinds[first]:g}", " ".join(str(value).removesuffix(".0") for value in labels[first])
    reason, remedy = (
        (f"a value is not finite: {row}", "remove the row or write its numbers"),
        (f"{kind} is not a whole number from 0", "number the classes 0, 1, 2 ..."),
        (f"{kind} is too high", f"number the classes 0, 1, 2 ... below {MAX_CLASSES}"),
        (f"negative value: {row}", _FRACTIONS),
        (f"value above 1: {row}", f"{_FRACTIONS}; divide pixels by the image's size"),
    )[[rows[first] for rows in wrong].index(True)]
    raise LabelError(lines[first], reason, remedy)


def parse_label_text(text: str) -> LabelRows:
    """Return the rows of a label file's text, coordinates outside of 0 to 1 by no more than `ROUNDING` clipped.

    Raises LabelError for the first row that cannot be used.
    """
    rows = [(line, tokens) for line, tokens in enumerate(map(str.split, text.splitlines()), start=1) if tokens]
    polygons = any(len(tokens) > 8 for _, tokens in rows)
    if not text.isascii() or "_" in text:  # digits of other scripts and underscores are numbers to Python
        for line, tokens in rows:
            if odd := _ODD_NUMBER.search(" ".join(tokens)):
                raise LabelError(line, f"not a plain number: {odd[0][:60]!r}", "write numbers with the digits 0 to 9")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused as infinite
        parsed = [_row(line, tokens, polygons) for line, tokens in rows]
        labels = np.array([values for values, _ in parsed], dtype=np.float32).reshape(-1, 5) + 0  # so that -0 is 0
    boxes = labels[:, 1:]
    near = ((boxes < 0) & (boxes >= -ROUNDING)) | ((boxes > 1) & (boxes <= 1 + ROUNDING))
    boxes[near] = boxes[near].clip(0, 1)
    lines = [line for line, _ in rows]
    _check_values(labels, lines)
    return LabelRows(labels, [points for _, points in parsed], lines, bool(near.any()))


def label_text(label_path: str | Path, content: bytes | None = None) -> str:
    """Return the text of a label file, or of its content; ValueError for no file, too large a one or not text."""
    content = read_bytes(label_path, MAX_LABEL_BYTES) if content is None else content
    check_size(len(content), MAX_LABEL_BYTES)
    return decoded(content)


def _without_repetitions(label_path: str, rows: LabelRows) -> tuple[LabelRows, Problem | None]:
    """Return every row of a label file once, and a problem where some were there twice."""
    _, first = np.unique(rows.labels, axis=0, return_index=True)
    if len(first) == len(rows.labels):
        return rows, None
    repeated = np.setdiff1d(np.arange(len(rows.labels)), first)
    reason = f"{len(repeated)} duplicate labels ignored"
    problem = Problem(label_path, rows.lines[repeated[0]], reason, "remove the repeated rows", dropped=False)
    return rows._replace(labels=rows.labels[first], segments=[rows.segments[index] for index in first]), problem


def _image_problem(path: str, error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError):
        return Problem(path, None, "no such image", "correct the list that names it")
    reason, _, remedy = str(error).replace(repr(path), "it").partition("; ")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        reason = "empty file"
    reason = f"unusable image: {printable(reason) or type(error).__name__}"
    return Problem(path, None, reason, printable(remedy) or "re-save or remove it")


def _label_problem(label_path: str, error: Exception) -> Problem:
    if isinstance(error, LabelError):
        return Problem(label_path, error.line, error.reason, error.remedy)
    if isinstance(error, UnicodeError):
        return Problem(label_path, None, "not UTF-8 text", "save it as UTF-8 text")
    reason = getattr(error, "strerror", None) or printable(str(error))
    return Problem(label_path, None, f"no readable label file: {reason}", "replace or remove it")


def check_pair(path: str, label_path: str, content: tuple[BinaryIO, bytes | None] | None = None) -> Record:
    """Check one image and its label file, or their `content`; problems end up in the record, none is raised.

    Repeated rows of a label file count once.
    """
    image, text = content or (path, None)
    has_file = os.path.isfile(label_path) if content is None else text is not None
    record = Record(path, label_path, None, NO_LABELS, (), has_file)
    try:
        found = inspect_image(image)
    except Exception as error:  # a damaged file can make a decoder raise anything; it is reported with its name
        return record._replace(problem=_image_problem(path, error))
    (width, height), problem = found.size, None
    notes = [(path, _DEEP)] * found.is_deep + [(path, _PAGES)] * found.is_first
    if width * height > LARGE_PIXELS:
        problem = Problem(path, None, f"{width} x {height} pixels are slow to read", "cut it into tiles", False)
    if has_file or (content is None and os.path.lexists(label_path)):
        try:
            rows, repeated = _without_repetitions(label_path, parse_label_text(label_text(label_path, text)))
        except (OSError, ValueError) as error:
            return record._replace(problem=_label_problem(label_path, error))
        problem = repeated or problem
        notes += [(label_path, _ROUNDED)] * rows.is_rounded + [(label_path, _FLAT)] * (not rows.labels[:, 3:].all())
        record = record._replace(labels=rows.labels, segments=tuple(rows.segments), has_label_file=True)
    counted = tuple([Problem(file, None, *said, dropped=False, count=1) for file, said in notes])
    return record._replace(size=found.size, problem=problem, notes=counted)
