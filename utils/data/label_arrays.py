"""The checked labels of a whole data set, packed into a few flat arrays.

Loader processes share memory with their parent until somebody writes to it, and Python writes to every object it
touches. A million small arrays would therefore be copied into every worker; ten large ones stay shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain
from typing import Any

import numpy as np

from utils.data import shards
from utils.data.image_files import img2label_paths, label_places, misplaced_labels
from utils.data.labels import Record, first_class_above
from utils.data.problems import Problem
from utils.distributed.processes import Team
from utils.distributed.shared_memory import ALONE, SharedArrays, share
from utils.images.reading import read_image

COLUMNS = {  # what a row of each array looks like
    **dict.fromkeys(("name_ends", "label_ends", "point_ends"), ((), np.int64)),
    "names": ((), np.uint8),
    "sizes": ((2,), np.int64),
    "spans": ((3,), np.int64),
    "labels": ((5,), np.float32),
    "points": ((2,), np.float32),
}
ARRAYS = ("names", "name_ends", "sizes", "spans", "labels", "label_ends", "points", "point_ends")


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

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return f"{self.found} found, {self.missing} missing, {self.empty} empty, {self.corrupt} corrupt"


def _ends(lengths: Iterable[int] | np.ndarray) -> np.ndarray:
    """Offsets (n + 1) of n consecutive pieces."""
    counts = lengths if isinstance(lengths, np.ndarray) else np.fromiter(lengths, dtype=np.int64)
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def _joined(parts: Sequence[np.ndarray], columns: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, columns), dtype=np.float32), *parts]).astype(np.float32, copy=False)


def _take(flat: np.ndarray, ends: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of a flat array in another order, and their offsets."""
    lengths = np.diff(ends)[order]
    new_ends = _ends(lengths)
    within = np.arange(new_ends[-1]) - np.repeat(new_ends[:-1], lengths)
    return flat[np.repeat(ends[:-1][order], lengths) + within], new_ends


def pack_names(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Paths as one array of bytes, and their offsets."""
    encoded = list(map(os.fsencode, names))
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), _ends(map(len, encoded))


def unpack_name(names: np.ndarray, ends: np.ndarray, index: int) -> str:
    """One of the paths that `pack_names` packed."""
    return os.fsdecode(names[ends[index] : ends[index + 1]].tobytes())


class Pieces(Sequence):
    """What `piece` makes of 0, 1 ... count - 1, as a sequence that keeps none of it: a list of a million would."""

    def __init__(self, count: int, piece: Callable[[int], Any]) -> None:
        self._range, self._piece = range(count), piece

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int | slice) -> Any:
        found = self._range[index]
        return self._piece(found) if isinstance(found, int) else [self._piece(number) for number in found]


def _check_fit(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError when the arrays are of the wrong kind or do not fit together."""
    for name, (columns, kind) in COLUMNS.items():
        if arrays[name].dtype != kind or arrays[name].shape[1:] != columns:
            raise ValueError(f"the array {name} is not of {kind.__name__} in rows of {columns}")
    pictures = len(arrays["sizes"])
    if len(arrays["spans"]) not in (pictures, 0):
        raise ValueError("the arrays sizes and spans do not fit together")
    for flat, ends, pieces in (
        ("names", "name_ends", pictures),
        ("labels", "label_ends", pictures),
        ("points", "point_ends", len(arrays["labels"])),
    ):
        offsets = arrays[ends]
        if not len(offsets) or offsets[0] != 0:
            raise ValueError(f"the array {ends} is not of offsets")
        if offsets.shape != (pieces + 1,) or offsets[-1] != len(arrays[flat]) or (np.diff(offsets) < 0).any():
            raise ValueError(f"the arrays {flat} and {ends} do not fit together")


class LabelIndex:
    """Paths, sizes, labels and polygons of the usable pictures of a data set.

    Piece i of a flat array lies between entries i and i + 1 of its `*_ends`: names (bytes) and labels (N, 5) a picture,
    polygon points (P, 2) a label (none for a plain box). Coordinates are fractions of the picture. `spans` (n, 3) says
    where in a tar file a picture lies (offset, bytes, length of the tar's own path): 0 for a picture that is a file of
    its own, and (0, 3) where all are.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], counts: Counts, problems: Iterable[Problem] = ()) -> None:
        """Raises ValueError when arrays do not fit together, KeyError when one is missing."""
        self.arrays = arrays if isinstance(arrays, SharedArrays) else {name: arrays[name] for name in ARRAYS}
        self.counts, self.problems = counts, list(problems)
        self._shards = shards.ShardReader()
        _check_fit(self.arrays)

    # ---- making one --------------------------------------------------------------------------------------------------

    @classmethod
    def pack(cls, records: Sequence[Record], spans: np.ndarray | None = None) -> LabelIndex:
        """Keep the usable records; count all of them and gather their problems. `spans` (n, 3) as of `check_shard`."""
        kept = [record for record in records if record.size is not None]
        names, name_ends = pack_names(record.path for record in kept)
        segments = [points for record in kept for points in record.segments]
        usable = np.array([record.size is not None for record in records], dtype=bool)
        arrays = {
            "names": names,
            "name_ends": name_ends,
            "sizes": np.array([record.size for record in kept], dtype=np.int64).reshape(-1, 2),
            "spans": np.zeros((0, 3), dtype=np.int64) if spans is None else spans[usable],
            "labels": _joined([record.labels for record in kept], 5),
            "label_ends": _ends(len(record.labels) for record in kept),
            "points": _joined(segments, 2),
            "point_ends": _ends(map(len, segments)),
        }
        return cls(arrays, Counts.of(records), chain.from_iterable(record.problems for record in records))

    @classmethod
    def join(cls, parts: Sequence[LabelIndex]) -> LabelIndex:
        """The pictures of several, one after the other."""
        parts = parts or [cls.pack([])]
        pieces = {name: [part.arrays[name] for part in parts] for name in ARRAYS}
        if any(map(len, pieces["spans"])):
            pieces["spans"] = [part._all_spans() for part in parts]
        arrays = {
            name: _ends(np.concatenate(list(map(np.diff, some)))) if name.endswith("_ends") else np.concatenate(some)
            for name, some in pieces.items()
        }
        counts = sum((part.counts for part in parts), Counts())
        return cls(arrays, counts, [problem for part in parts for problem in part.problems])

    def take(self, order: np.ndarray) -> LabelIndex:
        """The same pictures in another order, or some of them."""
        old = self.arrays
        names, name_ends = _take(old["names"], old["name_ends"], order)
        rows, label_ends = _take(np.arange(len(old["labels"])), old["label_ends"], order)
        points, point_ends = _take(old["points"], old["point_ends"], rows)
        spans = old["spans"][order] if len(old["spans"]) else old["spans"]
        arrays = (names, name_ends, old["sizes"][order], spans, old["labels"][rows], label_ends, points, point_ends)
        return LabelIndex(dict(zip(ARRAYS, arrays, strict=True)), self.counts, self.problems)

    def with_one_class(self) -> LabelIndex:
        """Every label in class 0."""
        labels = self.all_labels.copy()
        labels[:, 0] = 0
        return LabelIndex({**self.arrays, "labels": labels}, self.counts, self.problems)

    @staticmethod
    def shared(index: LabelIndex | None, team: Team = ALONE) -> LabelIndex:
        """The index of the team's first process (the others give None), its arrays held once by all of them."""
        if team.size == 1 and isinstance(index.arrays, SharedArrays):
            return index
        arrays = share(None if index is None else index.arrays, team)
        return LabelIndex(arrays, *team.broadcast(None if index is None else (index.counts, index.problems)))

    # ---- what is in it -----------------------------------------------------------------------------------------------

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
        return tuple([points[low:high] for low, high in zip(ends[:-1], ends[1:], strict=True)])

    # ---- files -------------------------------------------------------------------------------------------------------

    def path(self, index: int) -> str:
        """Path of a picture; in a shard, the shard's path, a slash and the picture's name there."""
        return unpack_name(self.arrays["names"], self.arrays["name_ends"], index)

    def _all_spans(self) -> np.ndarray:
        """(n, 3) even where all pictures are files of their own."""
        spans = self.arrays["spans"]
        return spans if len(spans) else np.zeros((len(self), 3), dtype=np.int64)

    def _span(self, index: int) -> np.ndarray | None:
        """Where in a shard the picture lies, None for a file of its own."""
        spans = self.arrays["spans"]
        return spans[index] if len(spans) and spans[index, 0] else None

    def file(self, index: int) -> str:
        """The file on disk that holds a picture: itself, or its shard."""
        path, span = self.path(index), self._span(index)
        return path if span is None else os.fsdecode(os.fsencode(path)[: span[2]])

    def label_path(self, index: int) -> str:
        """Path of a picture's labels, there or not."""
        path = self.path(index)
        return img2label_paths([path])[0] if self._span(index) is None else os.path.splitext(path)[0] + ".txt"

    def image(self, index: int) -> np.ndarray:
        """A picture, (H, W, 3) uint8 BGR. Raises ValueError, naming it, when it cannot be read."""
        path, span = self.path(index), self._span(index)
        return read_image(path, None if span is None else self._shards.picture(path, span))

    def check_labelled(self) -> None:
        """Raise ValueError, saying where was looked, when no image has a single label: there is nothing to learn."""
        if len(self.all_labels):
            return
        looked = ", ".join(label_places(self.path(0))) if self._span(0) is None else self.label_path(0)
        hint = misplaced_labels(map(self.path, range(min(len(self), 20))))
        raise ValueError(
            f"no labels for any of the {len(self)} images to train on (label files: {self.counts}): looked for {looked}"
            f" and the like{hint}; a row is `class x-centre y-centre width height`"
        )

    def check_classes(self, nc: int) -> None:
        """Raise ValueError, naming file and line, for a label whose class is not below `nc`."""
        high = np.flatnonzero(self.all_labels[:, 0] >= nc)
        if not len(high):
            return
        picture = int(np.searchsorted(self.arrays["label_ends"], high[0], side="right")) - 1
        label_path, span = self.label_path(picture), self._span(picture)
        if span is None:
            found = first_class_above(label_path, nc)
        else:
            found = shards.first_class_above(self.path(picture), int(span[2]), nc)
        line, number = found or (0, int(self.all_labels[high[0], 0]))
        raise ValueError(
            f"{label_path}:{line}: class {number}, but the data set has {nc} classes, 0 to {nc - 1}; "
            "correct the label or the names in the data YAML"
        )
