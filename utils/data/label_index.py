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
from dataclasses import asdict
from itertools import filterfalse, islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.base.arrays import read_arrays
from utils.base.files import printable, replacing
from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.base.progress import progress
from utils.data.image_files import Problem, img2label_paths, label_places, misplaced_labels, search_images
from utils.data.label_arrays import COLUMNS, Counts, LabelIndex, pack_names, unpack_name
from utils.data.labels import check_pair
from utils.data.shards import check_shard, find_shards, is_shard
from utils.distributed.processes import Team
from utils.distributed.shared_memory import ALONE, share
from utils.images.reading import DECODER, quiet_decoder

MAX_CACHE_BYTES = 1 << 36  # ten million images take some four GiB
CACHE_VERSION = 3
SHOWN_PROBLEMS = 10
HINTS = 20  # images without labels for which one is looked for elsewhere
CHECKING_THREADS = min(8, max(1, (os.cpu_count() or 1) - 1))
CHUNK = 4096  # pairs whose records are Python objects at one time


def cache_path(sources: Sequence[Path], first: str) -> Path:
    """Return the cache beside a text list or the `first` shard, else beside the folder of the first label.

    `first` is the path of a shard, or where there is none of a label file.
    """
    alone = len(sources) == 1 and (sources[0].is_file() or not is_shard(first))
    base = Path(first) if is_shard(first) else sources[0] if sources[0].is_file() else Path(first).absolute().parent
    several = "" if alone else "-" + hashlib.sha256("\n".join(map(str, sources)).encode()).hexdigest()[:8]
    return base.with_name(f"{base.name}{several}.cache.npz")


def fingerprint(paths: Iterable[str]) -> str:
    """Return a digest of names, sizes and modification times, so that an edited, added or lost file changes it."""
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
    """Return the index in a cache file; None where there is none, it is of other files or versions, or damaged."""
    if not path.is_file():
        return None
    try:
        content = read_arrays(path, MAX_CACHE_BYTES)
        header = json.loads(content["header"].tobytes())
        if header["version"] != [CACHE_VERSION, DECODER] or header["fingerprint"] != expected:
            return None
        problems = [Problem(**problem) for problem in header["problems"]]
        return LabelIndex({name: content[name] for name in COLUMNS}, Counts(**header["counts"]), problems)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        LOGGER.warning(f"{shown(path)}: not a usable label cache ({error}); checking the labels again")
        return None


def save_cache(path: Path, index: LabelIndex, stamp: str) -> None:
    """Write the index beside the data, whole or not at all; a folder that cannot be written to only costs a warning."""
    if not len(index) or not path.parent.is_dir():  # nothing to remember; without labels there may be no folder
        return
    header: dict[str, Any] = {
        "version": [CACHE_VERSION, DECODER],  # another decoder may judge otherwise
        "fingerprint": stamp,
        "counts": index.counts._asdict(),
        "problems": [asdict(problem) for problem in index.problems],
    }
    content: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **index.arrays}
    try:
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, **content)
    except OSError as error:
        LOGGER.warning(f"labels are checked again next time: {shown(path)} cannot be written ({error.strerror})")


def _check(names: Sequence[str], prefix: str) -> LabelIndex:
    """Check images, and shards, called `names`."""
    parts, start = [], 0
    unit = " files" if any(map(is_shard, names)) else " images"
    with (
        quiet_decoder(),
        ThreadPoolExecutor(CHECKING_THREADS) as pool,
        progress(None, f"{prefix}checking images and labels", len(names), unit) as bar,
    ):
        while start < len(names):
            chunk = names[start : start + CHUNK]
            if is_shard(chunk[0]):
                chunk = chunk[:1]
                parts.append(LabelIndex.pack(*check_shard(chunk[0], pool.map)))
            else:
                chunk = list(takewhile(lambda name: not is_shard(name), chunk))
                parts.append(LabelIndex.pack(list(pool.map(check_pair, chunk, img2label_paths(chunk)))))
            bar.update(len(chunk))
            start += len(chunk)
    return LabelIndex.join(parts)


def _check_together(units: Sequence[str], prefix: str, team: Team) -> LabelIndex | None:
    """Check the first process's units, each process a run of them; return the index in the first, None elsewhere."""
    if team.size == 1:
        return _check(units, prefix)
    names = share(dict(zip(("names", "ends"), pack_names(units), strict=True)) if team.is_first else None, team)
    count = len(names["ends"]) - 1
    first, last = (count * number // team.size for number in (team.number, team.number + 1))
    own = LabelIndex.pack([])
    with team.agreed():
        own = _check([unpack_name(names["names"], names["ends"], number) for number in range(first, last)], prefix)
    parts = []
    for owner, (counts, problems) in enumerate(team.gather((own.counts, own.problems))):
        arrays = share(own.arrays if owner == team.number else None, team, owner)
        if team.is_first:
            parts.append(LabelIndex(arrays, counts, problems))
    with team.agreed():
        return LabelIndex.join(parts) if team.is_first else None


def _label_notes(images: Sequence[str], labels: Sequence[str], place: str) -> list[Problem]:
    """Return what is odd about where label files lie: shared by images, as of `a.jpg` and `a.png`, or in two places."""
    notes = []
    digests = np.fromiter(map(hash, labels), dtype=np.int64, count=len(labels))
    order = np.argsort(digests, kind="stable")
    same = np.flatnonzero(np.diff(digests[order]) == 0)
    pairs = {
        labels[one]: (labels[one], images[one], images[other])
        for one, other in zip(order[same].tolist(), order[same + 1].tolist(), strict=True)
        if images[one] != images[other] and labels[one] == labels[other] and os.path.lexists(labels[one])
    }
    if pairs:
        label, first, second = map(printable, next(iter(pairs.values())))
        reason = f"label files that belong to several images: {len(pairs)}, as {label} to {first} and {second}"
        notes.append(Problem(place, None, reason, "give every image a name of its own, whatever its ending", False))
    beside = [label for image, label in zip(images, labels, strict=True) if label != label_places(image)[0]]
    if 0 < len(beside) < len(images):
        reason = f"label files beside their images are used too: {len(beside)}, the first {printable(beside[0])}"
        remedy = f"keep them in one place, as {printable(os.path.dirname(label_places(images[0])[0]))}"
        notes.append(Problem(place, None, reason, remedy, False))
    return notes


class _Search(NamedTuple):
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
        notes = [*notes, *_label_notes(images, labels, str(folders[0]))] if images else notes
        return cls(sources, [*images, *tars], labels[0] if labels else f"key.txt in {tars[0]}", place, stamp, notes)

    def report(self, index: LabelIndex, prefix: str) -> None:
        """Say what was found, what was wrong and where missing labels may be; add the search's notes to its problems.

        Raises ValueError when no image is usable.
        """
        name, counts = ", ".join(map(shown, self.sources)), index.counts
        LOGGER.info(f"{prefix}{name}: {len(index)} images, {len(index.all_labels)} labels; label files: {counts}")
        single = [problem for problem in index.problems if not problem.count]
        for problem in [*self.notes, *(one for one in index.problems if one.count), *single[:SHOWN_PROBLEMS]]:
            LOGGER.warning(f"{prefix}{problem}")
        if (more := len(single) - SHOWN_PROBLEMS) > 0:
            LOGGER.warning(f"{prefix}... and {more} more; {counts.corrupt} images are left out in all")
        if not len(index):
            what = f"the {counts.total} images of {name}"
            raise ValueError(f"none of {what} can be used, first: {[*single, *index.problems][0]}")
        bare = filterfalse(lambda unit: is_shard(unit) or os.path.lexists(img2label_paths([unit])[0]), self.units)
        hint = misplaced_labels(islice(bare, HINTS)) if counts.missing else ""
        if counts.found and hint:
            LOGGER.warning(f"{prefix}{counts.missing} images have no label file{hint}")
        if not counts.found:
            looked = f"looked for {self.first_label} and its like"
            LOGGER.warning(f"{prefix}no labels found for {name}: {looked}; all is background{hint}")
        index.problems = [*self.notes, *index.problems]


def load_index(
    sources: str | Path | Iterable[str | Path],
    prefix: str = "",
    cache: bool = True,
    team: Team = ALONE,
    prepare: Callable[[LabelIndex], LabelIndex] = lambda index: index,
) -> LabelIndex:
    """Find the images of `sources`, check them and their labels once, and remember the result beside the labels.

    The processes of a `team` must all come here; they share the work and hold one copy of the result, which `prepare`
    may change before (in the first process only). Raises ValueError, in all of them, when no image is found or none
    is usable, and what `prepare` raises.
    """
    listed = list(map(Path, [sources] if isinstance(sources, (str, Path)) else sources))
    search, index = None, None
    with team.agreed():
        if team.is_first:
            search = _Search.of(listed)
            index = load_cache(search.place, search.stamp) if cache else None
    known = team.broadcast(index is not None)
    if not known:
        index = _check_together(search.units if search else (), prefix, team)
    with team.agreed():
        if search is not None and index is not None:
            if cache and not known:
                save_cache(search.place, index, search.stamp)
            search.report(index, prefix)
            index = prepare(index)
    return LabelIndex.shared(index, team)
