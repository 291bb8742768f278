"""The checked labels of a whole data set, packed into a few flat arrays, and the cache file that saves checking again.

Loader processes share memory with their parent until somebody writes to it, and Python writes to every object it
touches. A million small arrays would therefore be copied into every worker; ten large ones stay shared.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.labels import Problem, Record, check_pair, find_images, first_class_above, img2label_paths
from utils.log import LOGGER
from utils.paths import shown

CACHE_VERSION = 1
SHOWN_PROBLEMS = 10
CHECKING_THREADS = min(8, max(1, (os.cpu_count() or 1) - 1))
_ARRAYS = ("names", "name_ends", "sizes", "labels", "label_ends", "points", "point_ends")


@dataclass(frozen=True, slots=True)
class Counts:
    """How many pairs had a label file, lacked one, had an empty one, could not be used; and how many there were."""

    found: int = 0
    missing: int = 0
    empty: int = 0
    corrupt: int = 0
    total: int = 0

    @classmethod
    def of(cls, records: Sequence[Record]) -> Counts:
        """Count checked pairs."""
        found = sum(record.has_label_file for record in records)
        usable = [record for record in records if record.size is not None]
        empty = sum(record.has_label_file and not len(record.labels) for record in usable)
        return cls(found, len(records) - found, empty, len(records) - len(usable), len(records))

    def __str__(self) -> str:
        return f"{self.found} found, {self.missing} missing, {self.empty} empty, {self.corrupt} corrupt"


def _ends(lengths: Iterable[int]) -> np.ndarray:
    """Offsets (n + 1) of n consecutive pieces."""
    return np.concatenate(([0], np.cumsum(np.fromiter(lengths, dtype=np.int64), dtype=np.int64)))


def _joined(parts: Sequence[np.ndarray], columns: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, columns), dtype=np.float32), *parts]).astype(np.float32, copy=False)


def _take(flat: np.ndarray, ends: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of a flat array in another order, and their offsets."""
    lengths = np.diff(ends)[order]
    new_ends = _ends(lengths)
    within = np.arange(new_ends[-1]) - np.repeat(new_ends[:-1], lengths)
    return flat[np.repeat(ends[:-1][order], lengths) + within], new_ends


class LabelIndex:
    """Paths, sizes, labels and polygons of the usable pictures of a data set.

    Piece i of a flat array lies between entries i and i + 1 of its `*_ends`: names (bytes) and labels (N, 5) a picture,
    polygon points (P, 2) a label (none for a plain box). Coordinates are fractions of the picture.
    """

    def __init__(self, arrays: dict[str, np.ndarray], counts: Counts, problems: Sequence[Problem] = ()) -> None:
        """Raises ValueError when arrays do not fit together, KeyError when one is missing."""
        self.arrays = {name: arrays[name] for name in _ARRAYS}
        self.counts, self.problems = counts, list(problems)
        pictures = len(self.arrays["sizes"])
        for flat, ends, pieces in (
            ("names", "name_ends", pictures),
            ("labels", "label_ends", pictures),
            ("points", "point_ends", len(self.arrays["labels"])),
        ):
            offsets = self.arrays[ends]
            if offsets.shape != (pieces + 1,) or offsets[-1] != len(self.arrays[flat]) or (np.diff(offsets) < 0).any():
                raise ValueError(f"the arrays {flat} and {ends} do not fit together")

    @classmethod
    def pack(cls, records: Sequence[Record]) -> LabelIndex:
        """Keep the usable records; count all of them and gather their problems."""
        kept = [record for record in records if record.size is not None]
        names = [os.fsencode(record.path) for record in kept]
        segments = [points for record in kept for points in record.segments]
        arrays = {
            "names": np.frombuffer(b"".join(names), dtype=np.uint8),
            "name_ends": _ends(map(len, names)),
            "sizes": np.array([record.size for record in kept], dtype=np.int64).reshape(-1, 2),
            "labels": _joined([record.labels for record in kept], 5),
            "label_ends": _ends(len(record.labels) for record in kept),
            "points": _joined(segments, 2),
            "point_ends": _ends(map(len, segments)),
        }
        return cls(arrays, Counts.of(records), [record.problem for record in records if record.problem])

    def __len__(self) -> int:
        return len(self.arrays["sizes"])

    @property
    def sizes(self) -> np.ndarray:
        """(n, 2) width and height of every picture as decoded."""
        return self.arrays["sizes"]

    @property
    def all_labels(self) -> np.ndarray:
        """(N, 5) labels of all pictures, one after the other."""
        return self.arrays["labels"]

    def path(self, index: int) -> str:
        """Path of a picture."""
        start, end = self.arrays["name_ends"][index : index + 2]
        return os.fsdecode(self.arrays["names"][start:end].tobytes())

    def labels(self, index: int) -> np.ndarray:
        """(n, 5) labels of a picture: class, cx, cy, w, h. A view: do not write to it."""
        start, end = self.arrays["label_ends"][index : index + 2]
        return self.arrays["labels"][start:end]

    def segments(self, index: int) -> tuple[np.ndarray, ...]:
        """One polygon (k, 2) a label of a picture, empty for plain boxes; nothing at all if none has one."""
        start, end = self.arrays["label_ends"][index : index + 2]
        ends = self.arrays["point_ends"][start : end + 1]
        if ends[0] == ends[-1]:
            return ()
        points = self.arrays["points"]
        return tuple(points[low:high] for low, high in zip(ends[:-1], ends[1:], strict=True))

    def take(self, order: np.ndarray) -> LabelIndex:
        """The same pictures in another order, or some of them."""
        old = self.arrays
        names, name_ends = _take(old["names"], old["name_ends"], order)
        rows, label_ends = _take(np.arange(len(old["labels"])), old["label_ends"], order)
        points, point_ends = _take(old["points"], old["point_ends"], rows)
        arrays = (names, name_ends, old["sizes"][order], old["labels"][rows], label_ends, points, point_ends)
        return LabelIndex(dict(zip(_ARRAYS, arrays, strict=True)), self.counts, self.problems)

    def with_one_class(self) -> LabelIndex:
        """Every label in class 0."""
        labels = self.all_labels.copy()
        labels[:, 0] = 0
        return LabelIndex({**self.arrays, "labels": labels}, self.counts, self.problems)

    def check_classes(self, nc: int) -> None:
        """Raise ValueError, naming file and line, for a label whose class is not below `nc`."""
        high = np.flatnonzero(self.all_labels[:, 0] >= nc)
        if not len(high):
            return
        picture = int(np.searchsorted(self.arrays["label_ends"], high[0], side="right")) - 1
        (label_path,) = img2label_paths([self.path(picture)])
        line, number = first_class_above(label_path, nc) or (0, int(self.all_labels[high[0], 0]))
        raise ValueError(
            f"{label_path}:{line}: class {number}, but the data set has {nc} classes, 0 to {nc - 1}; "
            "correct the label or the names in the data YAML"
        )


# ---- cache file ------------------------------------------------------------------------------------------------------


def cache_path(sources: Sequence[Path], label_path: str) -> Path:
    """Beside a text list, else beside the folder of the first label: its whole name, then `.cache.npz`."""
    base = sources[0] if sources[0].is_file() else Path(label_path).absolute().parent
    several = "-" + hashlib.sha256("\n".join(map(str, sources)).encode()).hexdigest()[:8] if len(sources) > 1 else ""
    return base.with_name(f"{base.name}{several}.cache.npz")


def fingerprint(paths: Iterable[str]) -> str:
    """Digest of names, sizes and modification times, so that an edited, added or lost file changes it."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
            stamp = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            stamp = "absent"
        digest.update(os.fsencode(path) + f"\0{stamp}\n".encode())
    return digest.hexdigest()


def load_cache(path: Path, expected: str) -> LabelIndex | None:
    """The index in a cache file, or None when there is none, it is of other files or versions, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            header = json.loads(content["header"].tobytes())
            if header["version"] != CACHE_VERSION or header["fingerprint"] != expected:
                return None
            problems = [Problem(**problem) for problem in header["problems"]]
            return LabelIndex({name: content[name] for name in _ARRAYS}, Counts(**header["counts"]), problems)
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        LOGGER.warning(f"{shown(path)}: not a usable label cache ({error}); checking the labels again")
        return None


def save_cache(path: Path, index: LabelIndex, stamp: str) -> None:
    """Write the index beside the data, whole or not at all; a folder that cannot be written to only costs a warning."""
    header: dict[str, Any] = {
        "version": CACHE_VERSION,
        "fingerprint": stamp,
        "counts": asdict(index.counts),
        "problems": [asdict(problem) for problem in index.problems],
    }
    encoded = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, header=encoded, **index.arrays)
        os.chmod(temporary, 0o644)  # temporary files are private; a cache may be shared like the labels
        os.replace(temporary, path)
    except OSError as error:
        LOGGER.warning(f"labels are checked again next time: {shown(path)} cannot be written ({error.strerror})")
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


# ---- reading a data set ----------------------------------------------------------------------------------------------


def _check_all(images: Sequence[str], labels: Sequence[str], prefix: str) -> LabelIndex:
    quiet = not LOGGER.isEnabledFor(20) or not LOGGER.hasHandlers()
    with ThreadPoolExecutor(CHECKING_THREADS) as pool:
        checked = pool.map(check_pair, images, labels)
        description = f"{prefix}checking pictures and labels"
        records = list(tqdm(checked, description, len(images), unit=" pictures", disable=quiet, dynamic_ncols=True))
    return LabelIndex.pack(records)


def _report(index: LabelIndex, source: str, prefix: str) -> None:
    LOGGER.info(f"{prefix}{source}: {len(index)} pictures, {len(index.all_labels)} labels; label files: {index.counts}")
    for problem in index.problems[:SHOWN_PROBLEMS]:
        LOGGER.warning(f"{prefix}{problem}")
    if (more := len(index.problems) - SHOWN_PROBLEMS) > 0:
        LOGGER.warning(f"{prefix}... and {more} more; {index.counts.corrupt} pictures are left out in all")


def load_index(sources: str | Path | Iterable[str | Path], prefix: str = "", cache: bool = True) -> LabelIndex:
    """Find the pictures of `sources`, check them and their labels once, and remember the result beside the labels.

    Raises ValueError when no picture is found or none is usable.
    """
    listed = [Path(source) for source in ([sources] if isinstance(sources, (str, Path)) else sources)]
    images = [str(path) for path in find_images(listed)]
    labels = img2label_paths(images)
    source = ", ".join(map(shown, listed))
    place, stamp = cache_path(listed, labels[0]), fingerprint([*images, *labels])
    index = load_cache(place, stamp) if cache else None
    if index is None:
        index = _check_all(images, labels, prefix)
        if cache and len(index) and place.parent.is_dir():  # without any label file there may be no folder for it
            save_cache(place, index, stamp)
    _report(index, source, prefix)
    if not len(index):
        raise ValueError(f"none of the {len(images)} pictures of {source} can be used, first: {index.problems[0]}")
    if not index.counts.found:
        LOGGER.warning(f"{prefix}no labels found for {source}: looked for {labels[0]} and its like; all is background")
    return index
