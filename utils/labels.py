"""Pictures and their label files: find them, read them, check each pair once.

A label file has one object per line, `class x-centre y-centre width height`, or a class followed by the points of a
polygon, everything but the class as a fraction of the picture's width or height. Files are only ever read: what is
wrong with one is told (file, line, reason, remedy), never repaired on disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

IMG_FORMATS = ("bmp", "dng", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp")
MIN_SIDE = 10  # pixels; v6.1 trains on nothing smaller
LARGE_PIXELS = 100_000_000  # above this a picture is kept, but said to be slow
MAX_PIXELS = 1 << 30  # OpenCV decodes nothing larger
EXIF_ORIENTATION = 0x0112
NO_POINTS = np.zeros((0, 2), dtype=np.float32)

_ROW_FORM = "write `class x-centre y-centre width height` on each line, or a class and at least 4 polygon points"
_FRACTIONS = "coordinates are fractions of the picture's width and height, from 0 to 1"
_pillow_limit = threading.Lock()


class LabelError(ValueError):
    """A label row that cannot be used: its line (from 1), what is wrong and what to do."""

    def __init__(self, line: int, reason: str, remedy: str) -> None:
        super().__init__(f"line {line}: {reason}; {remedy}")
        self.line, self.reason, self.remedy = line, reason, remedy


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one file of a data set, in words for the person who owns it."""

    file: str
    line: int | None
    reason: str
    remedy: str
    dropped: bool = True

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.reason}; {self.remedy}{' (picture left out)' if self.dropped else ''}"


class Record(NamedTuple):
    """One picture and its labels as found on disk; `size` is None when the pair cannot be used."""

    path: str
    label_path: str
    size: tuple[int, int] | None  # width, height as decoded, EXIF orientation applied
    labels: np.ndarray  # (n, 5) float32: class, cx, cy, w, h in 0..1
    segments: tuple[np.ndarray, ...]  # n polygons (k, 2) in 0..1; (0, 2) where a label is only a box
    has_label_file: bool
    problem: Problem | None = None

    @property
    def message(self) -> str:
        """The problem in one line, or nothing."""
        return "" if self.problem is None else str(self.problem)


# ---- finding ---------------------------------------------------------------------------------------------------------


def is_image(name: str | Path) -> bool:
    """Whether the name ends like a picture we read, in any case of letters."""
    return str(name).rpartition(".")[2].lower() in IMG_FORMATS


def _listed_images(listing: Path) -> list[str]:
    """Paths named in a text file: './' means beside the list, other relative ones are tried from here, then there."""
    lines = [line.strip() for line in listing.read_text(encoding="utf-8-sig").splitlines()]
    folder = listing.parent
    plain = [line for line in lines if line and not line.startswith("./") and not os.path.isabs(line)]
    base = folder if plain and not os.path.exists(plain[0]) and (folder / plain[0]).exists() else Path()
    return [str(folder / line[2:] if line.startswith("./") else base / line) for line in lines if line]


def _images_of(source: Path) -> list[str]:
    if source.is_dir():
        return [os.path.join(parent, name) for parent, _, names in os.walk(source, followlinks=True) for name in names]
    if not source.is_file():
        raise ValueError(f"{source.absolute()}: no such folder or list of pictures; correct the data YAML's paths")
    return [str(source)] if is_image(source) else _listed_images(source)


def find_images(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """Every picture below folders, named in text lists, or given itself, sorted by path.

    Raises ValueError when a source does not exist or no picture is found.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    found = sorted(name for source in sources for name in _images_of(Path(source)) if is_image(name))
    if not found:
        where = ", ".join(str(Path(source).absolute()) for source in sources) or "an empty list of sources"
        raise ValueError(
            f"no pictures in {where}; put some there or correct the data YAML (known: {', '.join(IMG_FORMATS)})"
        )
    return [Path(name) for name in found]


def img2label_paths(img_paths: Iterable[str | Path]) -> list[str]:
    """Where each picture's label file is expected: the last `images` folder becomes `labels`, the ending `.txt`."""
    images, labels = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    out = []
    for path in map(str, img_paths):
        rooted = path if os.path.isabs(path) else os.sep + path  # so that a leading 'images/' counts as a folder too
        head, found, tail = rooted.rpartition(images)
        stem = os.path.splitext(head + labels + tail if found else rooted)[0] + ".txt"
        out.append(stem if rooted == path else stem[len(os.sep) :])
    return out


# ---- pictures --------------------------------------------------------------------------------------------------------


def read_image(path: str | Path, content: np.ndarray | None = None) -> np.ndarray:
    """Decode a picture to (H, W, 3) uint8 BGR: grey, palette, RGBA and 16-bit files too, EXIF orientation applied.

    The bytes are read here, not by OpenCV, which cannot open every non-ASCII path, unless they are given (`content`,
    uint8). Raises ValueError naming the file.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8) if content is None else content
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check that the file exists") from error
    image = None
    if content.size:
        try:
            image = cv2.imdecode(content, cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise ValueError(f"{path}: cannot be decoded ({error.err}); re-save or remove it") from error
    if image is None:
        reason = "not a picture OpenCV can decode" if content.size else "empty file"
        raise ValueError(f"{path}: {reason}; re-save or remove it")
    return image


def fit_longest(image: np.ndarray, size: int, smooth: bool = True) -> np.ndarray:
    """Scale so that the longer side is `size`, the other truncated but at least 1 px.

    Enlarging, and shrinking with `smooth` (training), is bilinear; shrinking otherwise averages areas.
    """
    height, width = image.shape[:2]
    ratio = size / max(height, width)
    if ratio == 1:
        return image
    method = cv2.INTER_LINEAR if smooth or ratio > 1 else cv2.INTER_AREA
    return cv2.resize(image, fitted_size(width, height, size), interpolation=method)


def fitted_size(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) that `fit_longest` gives a picture of this size."""
    ratio = size / max(height, width)
    return max(int(width * ratio), 1), max(int(height * ratio), 1)


def _open_lazily(handle: BinaryIO) -> Image.Image:
    """Read only the header; Pillow's guess that a large picture is an attack is lifted for that moment."""
    handle.read(4096)  # fetched before the lock, so that threads wait for the disk side by side
    handle.seek(0)
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(handle)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_complete(picture: Image.Image, handle: BinaryIO) -> None:
    """Raise when data is missing: cheaply for PNG (checksums) and JPEG (end marker), by decoding for the rest."""
    if picture.format == "PNG":
        picture.verify()
        return
    if picture.format in ("JPEG", "MPO"):
        position = handle.tell()
        handle.seek(-2, os.SEEK_END)
        complete = handle.read(2) == b"\xff\xd9"
        handle.seek(position)
        if complete:
            return
    picture.load()


def picture_size(path: str | Path | BinaryIO) -> tuple[int, int]:
    """(width, height) of a sound picture (or open file) as it will be decoded, without decoding where that is possible.

    Raises ValueError, OSError or what the decoder raises when it is unreadable, truncated, or not one of our formats.
    """
    with open(path, "rb") if isinstance(path, (str, Path)) else path as handle:
        picture = _open_lazily(handle)
        width, height = picture.size
        if str(picture.format).lower() not in IMG_FORMATS:
            raise ValueError(f"the file is really a {picture.format} picture")
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than OpenCV decodes")
        if min(width, height) < MIN_SIDE:
            raise ValueError(f"{width} x {height} pixels are too few, each side needs {MIN_SIDE}")
        _check_complete(picture, handle)
        width, height = picture.size  # again: decoding a TIFF turns it upright
        exif = picture.getexif() if picture.format != "PNG" or "exif" in picture.info else {}
        turned = exif.get(EXIF_ORIENTATION) in (5, 6, 7, 8)  # stored lying on its side
    return (height, width) if turned else (width, height)


# ---- label files -----------------------------------------------------------------------------------------------------


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
    """Raise LabelError for the first row that is not finite, of no class, or outside the picture."""
    boxes = labels[:, 1:]
    finite = np.isfinite(labels).all(1)
    whole = (labels[:, 0] >= 0) & (labels[:, 0] == np.floor(labels[:, 0]))
    positive, inside = (boxes >= 0).all(1), (boxes <= 1).all(1)
    bad = ~(finite & whole & positive & inside)
    if not bad.any():
        return
    first = int(bad.argmax())
    line, label = lines[first], labels[first]
    shown = " ".join(f"{value:g}" for value in label)
    if not finite[first]:
        raise LabelError(line, f"a value is not finite: {shown}", "remove the row or write its numbers")
    if not whole[first]:
        raise LabelError(line, f"class {label[0]:g} is not a whole number from 0", "number the classes 0, 1, 2 ...")
    if not positive[first]:
        raise LabelError(line, f"negative value: {shown}", _FRACTIONS)
    raise LabelError(line, f"value above 1: {shown}", _FRACTIONS + "; divide pixels by the picture's size")


def parse_label_text(text: str) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """Label text -> (n, 5) float32 class cx cy w h; n polygons, empty for plain boxes; n line numbers from 1.

    Raises LabelError for the first row that cannot be used.
    """
    rows = [(line, tokens) for line, tokens in enumerate(map(str.split, text.splitlines()), start=1) if tokens]
    polygons = any(len(tokens) > 8 for _, tokens in rows)
    parsed = [_row(line, tokens, polygons) for line, tokens in rows]
    lines = [line for line, _ in rows]
    labels = np.array([values for values, _ in parsed], dtype=np.float32).reshape(-1, 5)
    _check_values(labels, lines)
    return labels, [points for _, points in parsed], lines


def read_labels(
    label_path: str | Path, content: bytes | None = None
) -> tuple[np.ndarray, tuple[np.ndarray, ...], Problem | None]:
    """A label file's (or its content's) rows without repetitions, its polygons, and what was remarked (repetitions).

    Raises LabelError for a row that cannot be used, ValueError for a file that is not text, OSError if unreadable.
    """
    content = Path(label_path).read_bytes() if content is None else content
    labels, segments, lines = parse_label_text(content.decode("utf-8-sig"))
    _, first = np.unique(labels, axis=0, return_index=True)
    if len(first) == len(labels):
        return labels, tuple(segments), None
    repeated = sorted(set(range(len(labels))) - set(first.tolist()))
    reason = f"{len(repeated)} duplicate labels ignored"
    problem = Problem(str(label_path), lines[repeated[0]], reason, "remove the repeated rows", dropped=False)
    return labels[first], tuple(segments[index] for index in first), problem


def first_class_above(label_path: str | Path, limit: int) -> tuple[int, int] | None:
    """(line, class) of the first row whose class is `limit` or more."""
    labels, _, lines = parse_label_text(Path(label_path).read_text(encoding="utf-8-sig"))
    high = np.flatnonzero(labels[:, 0] >= limit)
    return (lines[high[0]], int(labels[high[0], 0])) if len(high) else None


# ---- one pair --------------------------------------------------------------------------------------------------------


def _picture_problem(path: str, error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError):
        return Problem(path, None, "no such picture", "correct the list that names it")
    reason = str(error).replace(repr(path), "it") or type(error).__name__
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        reason = "empty file"
    elif isinstance(error, UnidentifiedImageError):
        reason = "its content is no picture, whatever its name says"
    elif "truncated" in reason.lower():
        reason = "the file is cut off"
    return Problem(path, None, f"unusable picture: {reason}", "re-save or remove it")


def check_pair(path: str, label_path: str, content: tuple[BinaryIO, bytes | None] | None = None) -> Record:
    """Check one picture and its label file, or their `content`; problems end up in the record, none is raised."""
    empty = np.zeros((0, 5), dtype=np.float32)
    found = os.path.isfile(label_path) if content is None else content[1] is not None
    try:
        size = picture_size(path if content is None else content[0])
    except Exception as error:  # a damaged file can make a decoder raise anything; it is told, with its name
        return Record(path, label_path, None, empty, (), found, _picture_problem(path, error))
    problem = None
    if size[0] * size[1] > LARGE_PIXELS:
        problem = Problem(path, None, f"{size[0]} x {size[1]} pixels are slow to read", "cut it into tiles", False)
    if not found:
        return Record(path, label_path, size, empty, (), False, problem)
    try:
        labels, segments, remark = read_labels(label_path, content and content[1])
    except LabelError as error:
        problem = Problem(label_path, error.line, error.reason, error.remedy)
    except (OSError, ValueError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeError) else f"not readable ({error})"
        problem = Problem(label_path, None, reason, "save it as UTF-8 text")
    else:
        return Record(path, label_path, size, labels, segments, True, remark or problem)
    return Record(path, label_path, None, empty, (), True, problem)


def verify_image_label(args: tuple[str, str, str]) -> tuple:
    """v6.1's form of `check_pair`: (image, label, prefix) -> image, labels, (w, h), segments, nm, nf, ne, nc, message.

    The four counts say missing, found, empty and corrupt; the first four entries are None for an unusable pair.
    """
    path, label_path, prefix = args
    record = check_pair(str(path), str(label_path))
    message = f"{prefix}WARNING: {record.problem}" if record.problem else ""
    missing, found = int(not record.has_label_file), int(record.has_label_file)
    if record.size is None:
        return None, None, None, None, missing, found, 0, 1, message
    polygons = list(record.segments) if any(len(points) for points in record.segments) else []
    return path, record.labels, record.size, polygons, missing, found, int(found and not len(record.labels)), 0, message
