"""From folders, lists and shards to a `LabelIndex`: check every pair once, and remember the result in a cache file.

The processes of one machine check together: each its share, and the first puts the shares together, writes the file and
lets the others have the arrays. Whether there is anything to check is decided by the first alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from utils.base.arrays import read_arrays
from utils.base.files import printable, replacing
from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.base.progress import progress
from utils.data.image_files import img2label_paths, label_places, misplaced_labels, search_images
from utils.data.label_arrays import Counts, LabelIndex, pack_names, unpack_name
from utils.data.labels import check_pair
from utils.data.problems import Problem, gathered
from utils.data.shards import check_shard, find_shards, is_shard
from utils.distributed.processes import Team
from utils.distributed.shared_memory import ALONE, share
from utils.images.reading import DECODER, quiet_decoder

__all__ = ["CHECKING_THREADS", "Counts", "LabelIndex", "cache_path", "fingerprint", "load_cache", "load_index",
           "save_cache"]  # fmt: skip

MAX_CACHE_BYTES = 1 << 36  # ten million pictures take some four GiB
CACHE_VERSION = 3
SHOWN_PROBLEMS = 10
HINTS = 20  # images without labels for which one is looked for elsewhere
CHECKING_THREADS = min(8, max(1, (os.cpu_count() or 1) - 1))
CHUNK = 4096  # pairs whose records are Python objects at one time


# ---- cache file ------------------------------------------------------------------------------------------------------


def cache_path(sources: Sequence[Path], first: str) -> Path:
    """Beside a text list or the `first` shard, else beside the folder of the first label; its whole name, `.cache.npz`.

    `first` is the path of a shard, or where there is none of a label file.
    """
    alone = len(sources) == 1 and (sources[0].is_file() or not is_shard(first))
    base = Path(first) if is_shard(first) else sources[0] if sources[0].is_file() else Path(first).absolute().parent
    several = "" if alone else "-" + hashlib.sha256("\n".join(map(str, sources)).encode()).hexdigest()[:8]
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
        content = read_arrays(path, MAX_CACHE_BYTES)
        header = json.loads(content["header"].tobytes())
        if header["version"] != [CACHE_VERSION, DECODER] or header["fingerprint"] != expected:
            return None
        problems = [Problem(**problem) for problem in header["problems"]]
        return LabelIndex(content, Counts(**header["counts"]), problems)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        LOGGER.warning(f"{shown(path)}: not a usable label cache ({error}); checking the labels again")
        return None


def save_cache(path: Path, index: LabelIndex, stamp: str) -> None:
    """Write the index beside the data, whole or not at all; a folder that cannot be written to only costs a warning."""
    header: dict[str, Any] = {
        "version": [CACHE_VERSION, DECODER],  # another decoder may judge otherwise
        "fingerprint": stamp,
        "counts": asdict(index.counts),
        "problems": [asdict(problem) for problem in index.problems],
    }
    encoded = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    try:
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, header=encoded, **index.arrays)
    except OSError as error:
        LOGGER.warning(f"labels are checked again next time: {shown(path)} cannot be written ({error.strerror})")


# ---- checking --------------------------------------------------------------------------------------------------------


@dataclass
class _Share:
    """Some of the units of a data set (pictures, or whole shards), checked.

    `units` and `problem_units` say of which unit each picture and each problem is.
    """

    index: LabelIndex
    units: np.ndarray
    problem_units: np.ndarray


def _check_pictures(names: Sequence[str], numbers: np.ndarray, pool: ThreadPoolExecutor) -> _Share:
    records = list(pool.map(check_pair, names, img2label_paths(names)))
    usable = [record.size is not None for record in records]
    index = LabelIndex.pack(records)
    belong = np.repeat(numbers, [len(record.problems) for record in records]).tolist()
    index.problems, belong = gathered(index.problems, belong)
    return _Share(index, numbers[usable], np.array(belong, dtype=np.int64))


def _check_shard(name: str, number: int, pool: ThreadPoolExecutor) -> _Share:
    index = LabelIndex.pack(*check_shard(name, pool.map))
    index.problems, _ = gathered(index.problems, range(len(index.problems)))
    return _Share(index, np.full(len(index), number), np.full(len(index.problems), number))


def _joined(shares: Sequence[_Share]) -> _Share:
    """All of them, in the order of the units."""
    index = LabelIndex.join([share.index for share in shares])
    units, problem_units = (
        np.concatenate([np.zeros(0, dtype=np.int64), *(getattr(share, name) for share in shares)])
        for name in ("units", "problem_units")
    )
    if (np.diff(units) < 0).any():
        order = np.argsort(units, kind="stable")
        index, units = index.take(order), units[order]
    order = np.argsort(problem_units, kind="stable")
    problems, belong = gathered([index.problems[number] for number in order], problem_units[order].tolist())
    index.problems = problems
    return _Share(index, units, np.array(belong, dtype=np.int64))


def _check(names: Sequence[str], numbers: np.ndarray, prefix: str) -> _Share:
    """Check units called `names`, which are those of these `numbers` (n,)."""
    shares, start = [], 0
    unit = " files" if any(map(is_shard, names)) else " images"
    description = f"{prefix}checking images and labels"
    with (
        quiet_decoder(),
        ThreadPoolExecutor(CHECKING_THREADS) as pool,
        progress(None, description, len(names), unit) as bar,
    ):
        while start < len(names):
            if is_shard(names[start]):
                end = start + 1
                shares.append(_check_shard(names[start], numbers[start], pool))
            else:
                chunk = range(start, min(start + CHUNK, len(names)))
                end = next((number for number in chunk if is_shard(names[number])), chunk.stop)
                shares.append(_check_pictures(names[start:end], numbers[start:end], pool))
            bar.update(end - start)
            start = end
    return _joined(shares)


def _check_together(units: Sequence[str] | None, prefix: str, team: Team) -> LabelIndex | None:
    """The first process says what there is, each checks its share; returns the index in the first, None elsewhere."""
    if team.size == 1:
        return _check(units, np.arange(len(units)), prefix).index
    told = share(dict(zip(("names", "ends"), pack_names(units), strict=True)) if team.is_first else None, team)
    numbers = team.mine(np.arange(len(told["ends"]) - 1))
    own = None
    with team.agreed():
        own = _check([unpack_name(told["names"], told["ends"], number) for number in numbers], numbers, prefix)
    notes = team.gather((own.index.counts, own.index.problems))
    arrays = {**own.index.arrays, "units": own.units, "problem_units": own.problem_units}
    shares = []
    for owner, (counts, problems) in enumerate(notes):
        theirs = share(arrays if owner == team.number else None, team, owner)
        if team.is_first:
            shares.append(_Share(LabelIndex(theirs, counts, problems), theirs["units"], theirs["problem_units"]))
    with team.agreed():
        return _joined(shares).index if team.is_first else None


# ---- a whole data set ------------------------------------------------------------------------------------------------


def _shared_labels(images: Sequence[str], labels: Sequence[str], place: str) -> list[Problem]:
    """Say how many images have their label file in common with another one, as `a.jpg` and `a.png` have."""
    digests = np.fromiter(map(hash, labels), dtype=np.int64, count=len(labels))
    order = np.argsort(digests, kind="stable")
    same = np.flatnonzero(np.diff(digests[order]) == 0)
    pairs = {
        labels[one]: (images[one], images[other], labels[one])
        for one, other in zip(order[same].tolist(), order[same + 1].tolist(), strict=True)
        if images[one] != images[other] and labels[one] == labels[other] and os.path.lexists(labels[one])
    }
    if not pairs:
        return []
    first, second, label = map(printable, next(iter(pairs.values())))
    reason = f"label files that belong to several images: {len(pairs)}, as {label} to {first} and {second}"
    return [Problem(place, None, reason, "give every image a name of its own, whatever its ending", dropped=False)]


def _scattered_labels(images: Sequence[str], labels: Sequence[str], place: str) -> list[Problem]:
    """Say how many label files lie beside their images while others lie in the folder for labels."""
    beside = [label for image, label in zip(images, labels, strict=True) if label != label_places(image)[0]]
    if not beside or len(beside) == len(images):
        return []
    reason = f"label files beside their images are used too: {len(beside)}, the first {printable(beside[0])}"
    remedy = f"keep them in one place, as {printable(os.path.dirname(label_places(images[0])[0]))}"
    return [Problem(place, None, reason, remedy, dropped=False)]


@dataclass
class _Search:
    """What was found for the sources of a data set: units (images and shards), and where their cache belongs."""

    sources: list[Path]
    units: list[str]
    first_label: str
    place: Path
    stamp: str
    notes: list[Problem]

    @classmethod
    def of(cls, sources: list[Path]) -> _Search:
        """Raises ValueError when a source does not exist or nothing is found."""
        folders = [source for source in sources if not is_shard(source)]
        found, notes = search_images(folders) if folders or not sources else ([], [])
        images = list(map(str, found))
        tars = find_shards(source for source in sources if is_shard(source))
        labels = img2label_paths(images)
        place = cache_path(sources, tars[0] if tars else labels[0])
        stamp = fingerprint([*images, *labels, *tars])
        if images:
            set_of = str(folders[0])
            notes = [*notes, *_shared_labels(images, labels, set_of), *_scattered_labels(images, labels, set_of)]
        first = labels[0] if labels else f"key.txt in {tars[0]}"
        return cls(sources, [*images, *tars], first, place, stamp, notes)

    def remember(self, index: LabelIndex) -> None:
        """Write the cache file, if there is anything to remember and a folder to keep it in."""
        if len(index) and self.place.parent.is_dir():  # without any label file there may be none
            save_cache(self.place, index, self.stamp)

    def report(self, index: LabelIndex, prefix: str) -> None:
        """Say what was found and what was wrong, and add to its problems what the search noted.

        Raises ValueError when no image is usable.
        """
        name = ", ".join(map(shown, self.sources))
        LOGGER.info(f"{prefix}{name}: {len(index)} images, {len(index.all_labels)} labels; label files: {index.counts}")
        single = [problem for problem in index.problems if not problem.count]
        for problem in [*self.notes, *(one for one in index.problems if one.count), *single[:SHOWN_PROBLEMS]]:
            LOGGER.warning(f"{prefix}{problem}")
        if (more := len(single) - SHOWN_PROBLEMS) > 0:
            LOGGER.warning(f"{prefix}... and {more} more; {index.counts.corrupt} images are left out in all")
        if not len(index):
            what = f"the {index.counts.total} images of {name}"
            raise ValueError(f"none of {what} can be used, first: {(single or index.problems)[0]}")
        self._report_missing(index.counts, prefix, name)
        index.problems = [*self.notes, *index.problems]

    def _report_missing(self, counts: Counts, prefix: str, name: str) -> None:
        """Say where labels may be that images lack: always where all do, else where one is found."""
        bare = (unit for unit in self.units if not is_shard(unit) and not os.path.lexists(img2label_paths([unit])[0]))
        hint = misplaced_labels(islice(bare, HINTS)) if counts.missing else ""
        if counts.found and hint:
            LOGGER.warning(f"{prefix}{counts.missing} images have no label file{hint}")
        if not counts.found:
            looked = f"looked for {self.first_label} and its like"
            LOGGER.warning(f"{prefix}no labels found for {name}: {looked}; all is background{hint}")


def load_index(
    sources: str | Path | Iterable[str | Path],
    prefix: str = "",
    cache: bool = True,
    team: Team = ALONE,
    prepare: Callable[[LabelIndex], LabelIndex] = lambda index: index,
) -> LabelIndex:
    """Find the pictures of `sources`, check them and their labels once, and remember the result beside the labels.

    The processes of a `team` must all come here; they share the work and hold one copy of the result, which `prepare`
    may change before (in the first process only). Raises ValueError, in all of them, when no picture is found or none
    is usable, and what `prepare` raises.
    """
    listed = [Path(source) for source in ([sources] if isinstance(sources, (str, Path)) else sources)]
    search, index = None, None
    with team.agreed():
        if team.is_first:
            search = _Search.of(listed)
            index = load_cache(search.place, search.stamp) if cache else None
    known = team.broadcast(index is not None)
    if not known:
        index = _check_together(search.units if search else None, prefix, team)
    with team.agreed():
        if search:
            if cache and not known:
                search.remember(index)
            search.report(index, prefix)
            index = prepare(index)
    return LabelIndex.shared(index, team)
