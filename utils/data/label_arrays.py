"""The checked labels of a whole data set, packed into a few flat arrays.

Loader processes share memory with their parent until somebody writes to it, and Python writes to every object it
touches. A million small arrays would therefore be copied into every worker; ten large ones stay shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from utils.data import shards
from utils.data.image_files import Problem, img2label_paths, label_places, misplaced_labels
from utils.data.labels import Record, label_text, parse_label_text
from utils.distributed.processes import Team
from utils.distributed.shared_memory import ALONE, SharedArrays, share
from utils.images.reading import decode_image, read_image

COLUMNS: dict[str, tuple[tuple[int, ...], type]] = {  # what a row of each array looks like
    "names": ((), np.uint8),
    "name_ends": ((), np.int64),
    "sizes": ((2,), np.int64),
    "spans": ((3,), np.int64),
    "labels": ((5,), np.float32),
    "label_ends": ((), np.int64),
    "points": ((2,), np.float32),
    "point_ends": ((), np.int64),
}


class Counts(NamedTuple):
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


def gathered(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems, those with a count once for each reason, where the first of them was."""
    kept: dict[str | int, Problem] = {}
    for problem in problems:
        key = problem.reason if problem.count else len(kept)
        count = kept[key].count + problem.count if key in kept else problem.count
        kept[key] = replace(kept.get(key, problem), count=count)
    return list(kept.values())


def _ends(lengths: Iterable[int] | np.ndarray) -> np.ndarray:
    """Return the offsets (n + 1) of n consecutive pieces."""
    counts = lengths if isinstance(lengths, np.ndarray) else np.fromiter(lengths, dtype=np.int64)
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def _take(flat: np.ndarray, ends: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pieces of a flat array in another order, and their offsets."""
    lengths = np.diff(ends)[order]
    new_ends = _ends(lengths)
    within = np.arange(new_ends[-1]) - np.repeat(new_ends[:-1], lengths)
    return flat[np.repeat(ends[:-1][order], lengths) + within], new_ends


def pack_names(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return paths as one array of bytes, and their offsets."""
    encoded = list(map(os.fsencode, names))
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), _ends(map(len, encoded))


def unpack_name(names: np.ndarray, ends: np.ndarray, index: int) -> str:
    """Return one of the paths that `pack_names` packed."""
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


class LabelIndex:
    """Paths, sizes, labels and polygons of the usable images of a data set.

    Piece i of a flat array lies between entries i and i + 1 of its `*_ends`: names (bytes) and labels (N, 5) an image,
    polygon points (P, 2) a label (none for a plain box). Coordinates are fractions of the image. `spans` (n, 3) says
    where in a tar file an image lies (offset, bytes, length of the tar's own path): 0 for an image that is a file of
    its own, and (0, 3) where all are.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], counts: Counts, problems: Iterable[Problem] = ()) -> None:
        """Raises ValueError when arrays are of the wrong kind or do not fit together, KeyError when one is missing."""
        self.arrays = arrays
        self.counts, self.problems = counts, gathered(problems)
        self._shards = shards.ShardReader()
        for name, (columns, kind) in COLUMNS.items():
            if arrays[name].dtype != kind or arrays[name].shape[1:] != columns:
                raise ValueError(f"the array {name} is not of {kind.__name__} in rows of {columns}")
        images = len(arrays["sizes"])
        if len(arrays["spans"]) not in (images, 0):
            raise ValueError("the arrays sizes and spans do not fit together")
        for flat, pieces in (("names", images), ("labels", images), ("points", len(arrays["labels"]))):
            ends = f"{flat[:-1]}_ends"
            offsets = arrays[ends]
            if offsets[:1].tolist() != [0]:
                raise ValueError(f"the array {ends} is not of offsets")
            if offsets.shape != (pieces + 1,) or offsets[-1] != len(arrays[flat]) or (np.diff(offsets) < 0).any():
                raise ValueError(f"the arrays {flat} and {ends} do not fit together")

    @classmethod
    def pack(cls, records: Sequence[Record], spans: np.ndarray | None = None) -> LabelIndex:
        """Keep the usable records; count all of them and gather their problems. `spans` (n, 3) as of `check_shard`."""
        kept = [record for record in records if record.size is not None]
        names, name_ends = pack_names(record.path for record in kept)
        segments = [points for record in kept for points in record.segments]
        arrays = {
            "names": names,
            "name_ends": name_ends,
            "sizes": np.array([record.size for record in kept], dtype=np.int64).reshape(-1, 2),
            "spans": np.zeros((0, 3), np.int64) if spans is None else spans[[row.size is not None for row in records]],
            "labels": np.concatenate([np.zeros((0, 5), np.float32), *(record.labels for record in kept)]),
            "label_ends": _ends(len(record.labels) for record in kept),
            "points": np.concatenate([np.zeros((0, 2), np.float32), *segments]),
            "point_ends": _ends(map(len, segments)),
        }
        problems = chain.from_iterable((record.problem, *record.notes) for record in records)
        return cls(arrays, Counts.of(records), filter(None, problems))

    @classmethod
    def join(cls, parts: Sequence[LabelIndex]) -> LabelIndex:
        """Return the images of several, one after the other."""
        parts = parts or [cls.pack([])]
        pieces = {name: [part.arrays[name] for part in parts] for name in COLUMNS}
        if any(map(len, pieces["spans"])):  # (n, 3) even where all images of a part are files of their own
            pieces["spans"] = [
                part.arrays["spans"] if len(part.arrays["spans"]) else np.zeros((len(part), 3), np.int64)
                for part in parts
            ]
        arrays = {
            name: _ends(np.concatenate(list(map(np.diff, some)))) if name.endswith("_ends") else np.concatenate(some)
            for name, some in pieces.items()
        }
        counts = Counts(*map(sum, zip(*(part.counts for part in parts), strict=True)))
        return cls(arrays, counts, chain.from_iterable(part.problems for part in parts))

    def take(self, order: np.ndarray) -> LabelIndex:
        """Return the same images in another order, or some of them."""
        new = dict(self.arrays)
        new["names"], new["name_ends"] = _take(new["names"], new["name_ends"], order)
        rows, new["label_ends"] = _take(np.arange(len(new["labels"])), new["label_ends"], order)
        new["points"], new["point_ends"] = _take(new["points"], new["point_ends"], rows)
        new["sizes"], new["labels"] = new["sizes"][order], new["labels"][rows]
        new["spans"] = new["spans"][order] if len(new["spans"]) else new["spans"]
        return LabelIndex(new, self.counts, self.problems)

    @staticmethod
    def shared(index: LabelIndex | None, team: Team = ALONE) -> LabelIndex:
        """Return the index of the team's first process (the others give None), its arrays held once by all of them."""
        if index is not None and team.size == 1 and isinstance(index.arrays, SharedArrays):
            return index
        arrays = share(None if index is None else index.arrays, team)
        counts, problems = team.broadcast(None if index is None else (index.counts, index.problems)) or (Counts(), [])
        return LabelIndex(arrays, counts, problems)

    def __len__(self) -> int:
        return len(self.arrays["sizes"])

    @property
    def sizes(self) -> np.ndarray:
        """(n, 2) width and height of every image as decoded."""
        return self.arrays["sizes"]

    @property
    def all_labels(self) -> np.ndarray:
        """(N, 5) labels of all images, one after the other."""
        return self.arrays["labels"]

    def labels(self, index: int) -> np.ndarray:
        """Return the (n, 5) labels of an image: class, cx, cy, w, h. A view: do not write to it."""
        start, end = self.arrays["label_ends"][index : index + 2]
        return self.arrays["labels"][start:end]

    def segments(self, index: int) -> tuple[np.ndarray, ...]:
        """Return a polygon (k, 2) for each label of an image, empty for plain boxes; nothing at all if none has one."""
        start, end = self.arrays["label_ends"][index : index + 2]
        ends = self.arrays["point_ends"][start : end + 1]
        if ends[0] == ends[-1]:
            return ()
        points = self.arrays["points"]
        return tuple([points[low:high] for low, high in pairwise(ends)])

    def path(self, index: int) -> str:
        """Return the path of an image; in a shard, the shard's path, a slash and the image's name there."""
        return unpack_name(self.arrays["names"], self.arrays["name_ends"], index)

    def _span(self, index: int) -> np.ndarray | None:
        """Return where in a shard the image lies, None for a file of its own."""
        spans = self.arrays["spans"]
        return spans[index] if len(spans) and spans[index, 0] else None

    def file(self, index: int) -> str:
        """Return the file on disk that holds an image: itself, or its shard."""
        path, span = self.path(index), self._span(index)
        return path if span is None else os.fsdecode(os.fsencode(path)[: span[2]])

    def image(self, index: int) -> np.ndarray:
        """Return an image, (H, W, 3) uint8 BGR. Raises ValueError, naming it, when it cannot be read."""
        path, span = self.path(index), self._span(index)
        if span is None:
            return read_image(path)
        try:
            content = self._shards.read(self.file(index), int(span[0]), int(span[1]))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check the shard") from error
        return decode_image(content, path)

    def check_labelled(self) -> None:
        """Raise ValueError, saying where was looked, when no image has a single label: there is nothing to learn."""
        if len(self.all_labels):
            return
        path = self.path(0)
        looked = ", ".join(label_places(path)) if self._span(0) is None else os.path.splitext(path)[0] + ".txt"
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
        image = int(np.searchsorted(self.arrays["label_ends"], high[0], side="right")) - 1
        path, span = self.path(image), self._span(image)
        if span is None:
            label_path = img2label_paths([path])[0]
            text = label_text(label_path)
        else:
            label_path, text = os.path.splitext(path)[0] + ".txt", shards.label_text_of(path, int(span[2]))
        rows, number, line = parse_label_text(text), int(self.all_labels[high[0], 0]), 0
        if len(found := np.flatnonzero(rows.labels[:, 0] >= nc)):
            line, number = rows.lines[found[0]], int(rows.labels[found[0], 0])
        raise ValueError(
            f"{label_path}:{line}: class {number}, but the data set has {nc} classes, 0 to {nc - 1}; "
            "correct the label or the names in the data YAML"
        )
