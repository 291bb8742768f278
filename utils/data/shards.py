"""Data sets in tar files, by webdataset's convention: members of one name before the first dot belong together.

    0001.jpg 0001.txt     an image and its labels, in the same form as in a label file
    0002.png              an image without objects

A shard is indexed once (where each member's bytes lie) and read at any place from then on, so mosaics, shuffling and
resuming work as with folders. Nothing is ever unpacked. An image's path is the shard's, a slash, the member's name.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.data.image_files import Problem, may_be_image, passed_over
from utils.data.labels import NO_LABELS, Record, check_pair
from utils.images.reading import IMG_FORMATS

MAX_SHARDS = 100_000  # that braces may stand for
MAX_HEADER = 16 << 10  # bytes of a long name or the like: more is no data set, and Python would hold all of it
MAX_IMAGE, MAX_LABELS = 256 << 20, 16 << 20  # bytes of one member
OPEN_SHARDS = 64  # files that a process keeps open

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|-?\d+\.\.-?\d+)\}")
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_FIELDS = {"txt": "label", **dict.fromkeys(IMG_FORMATS, "image")}  # of a pair, by ending
_REWRITE = "write the shard again"


def is_shard(path: str | Path) -> bool:
    """Return whether the name ends in `.tar`."""
    return str(path).lower().endswith(".tar")


def _choices(inside: str) -> list[str]:
    """Return what stands between braces: words between commas, or numbers as wide as the ends of their range."""
    if "," in inside:
        return inside.split(",")
    first, last = inside.split("..")
    low, high = int(first), int(last)
    if abs(high - low) >= MAX_SHARDS:
        raise ValueError(f"{{{inside}}} stands for more than {MAX_SHARDS:,} names; correct the range")
    width = max(len(first), len(last)) if re.match(r"-?0\d", first) or re.match(r"-?0\d", last) else 0
    step = 1 if low <= high else -1
    return [f"{number:0{width}}" for number in range(low, high + step, step)]


def expand_braces(pattern: str) -> list[str]:
    """Write out `a-{000..002}.tar` and `{a,b}.tar` as a shell would, the groups one inside the other if need be.

    Raises ValueError for more than a hundred thousand names.
    """
    names, waiting = [], [pattern]
    while waiting:
        name = waiting.pop()
        if (match := _BRACES.search(name)) is None:
            names.append(name)
        else:
            choices = reversed(_choices(match[1]))
            waiting += [name[: match.start()] + choice + name[match.end() :] for choice in choices]
        if len(names) + len(waiting) > MAX_SHARDS:
            raise ValueError(f"{pattern}: stands for more than {MAX_SHARDS:,} names; correct the range")
    return list(dict.fromkeys(names))


def find_shards(sources: Iterable[str | Path]) -> list[str]:
    """Return the files that paths with or without braces name, in that order, each once.

    Raises ValueError, naming the first, when some do not exist.
    """
    found: dict[str, None] = {}
    for source in map(str, sources):
        found.update(dict.fromkeys([source] if os.path.exists(source) else expand_braces(source)))
    missing = [name for name in found if not os.path.isfile(name)]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"{os.path.abspath(missing[0])}: no such shard{more}; correct the data YAML's paths or range")
    return list(found)


class _Headers(io.FileIO):
    """A tar file of which only headers are read, and no header larger than any data set needs."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    problem: str  # why its bytes are not to be read; mostly nothing


def _members(path: str) -> Iterator[_Member]:
    """Yield every file in a shard and all that only looks like one. Raises ReadError where the shard breaks off."""
    with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        length, last = os.fstat(file.fileno()).st_size, -1
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or the archive would remember all of them
            if not last < info.offset < info.offset_data:
                raise tarfile.ReadError(f"the header at byte {last} leads backwards")
            last = info.offset
            if info.isdir():
                continue
            plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()
            if plain and not 0 <= info.size <= length - info.offset_data:
                raise tarfile.ReadError(f"{info.name} is cut off")
            yield _Member(info.name, info.offset_data, info.size, "" if plain else "a link or device, not a file")
        file.seek(archive.offset)
        end = file.read(tarfile.BLOCKSIZE)
        if end != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"{'no header' if end else 'it breaks off'} at byte {archive.offset}")


class _Pair(NamedTuple):
    image: _Member
    label: _Member | None
    repeated: str  # name of a member that the pair has already


def _pairs(path: str) -> tuple[list[_Pair], list[str], str]:
    """Return images with their labels, in the order of the shard; what was passed over; why there are no more, if so.

    Of a shard that breaks off only images with labels are returned: the labels of the others may be what is lost.
    """
    found: dict[str, dict[str, _Member]] = {}
    repeated: dict[str, str] = {}
    others: list[str] = []
    reason = ""
    try:
        for member in _members(path):
            if (match := _NAME.fullmatch(member.name)) is None:
                continue
            field = _FIELDS.get(match[2].lower())
            if field is None:
                others += [member.name] if may_be_image(member.name) else []
            elif found.setdefault(match[1], {}).setdefault(field, member) is not member:
                repeated[match[1]] = member.name
    except Exception as error:  # a hostile header can make tarfile raise anything; it is reported with the shard's name
        reason = " ".join(str(error).split()) or type(error).__name__
    pairs = [
        _Pair(one["image"], one.get("label"), repeated.get(key, ""))
        for key, one in found.items()
        if "image" in one and ("label" in one or not reason)
    ]
    return pairs, others, reason


class _Open:
    """A descriptor that is closed when nobody uses it any more."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)


class ShardReader:
    """Bytes of members, from shards that stay open; threads and forked processes may share one."""

    def __init__(self) -> None:
        self._open = lru_cache(OPEN_SHARDS)(_Open)

    def __reduce__(self) -> tuple:
        return ShardReader, ()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a shard from `offset` on. Raises OSError when they are not there."""
        shard = self._open(path)  # held until the end, so that another thread does not close it
        content = os.pread(shard.file, size, offset)
        if len(content) < size:
            raise OSError("shorter than when it was checked")
        return content


class _Window(io.RawIOBase):
    """One member as a file, read piece by piece: to check an image, its beginning and end are mostly enough."""

    def __init__(self, read: Callable[[int, int], bytes], member: _Member) -> None:
        self._read, self._member, self._at = read, member, 0

    def readable(self) -> bool:
        return True

    seekable = readable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._member.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(min(len(buffer), self._member.size - self._at), 0)
        buffer[:count] = self._read(self._member.offset + self._at, count)
        self._at += count
        return count


def _unusable(path: str, pair: _Pair) -> Problem | None:
    """Return the problem of a pair of this shard that is left out before its content is looked at."""
    for one, most in ((pair.image, MAX_IMAGE), (pair.label, MAX_LABELS)):
        if one is not None and one.problem:
            return Problem(f"{path}/{one.name}", None, one.problem, "put the file itself into the shard")
        if one is not None and one.size > most:
            reason = f"{one.size >> 20} MiB in one file, {most >> 20} are allowed"
            return Problem(f"{path}/{one.name}", None, reason, _REWRITE)
    name = f"{path}/{pair.image.name}"
    if not pair.image.size:
        return Problem(name, None, "unusable image: empty file", "re-save or remove it")
    if pair.repeated:
        reason, remedy = f"{pair.repeated} is in it too: one name, two files", "give every image a name of its own"
        return Problem(name, None, reason, f"{remedy}, up to the first dot")
    return None


def _check(reader: ShardReader, path: str, pair: _Pair) -> Record:
    name = f"{path}/{pair.image.name}"
    label = f"{path}/{pair.label.name}" if pair.label else os.path.splitext(name)[0] + ".txt"
    text, problem = None, _unusable(path, pair)
    if problem is None and pair.label:
        try:
            text = reader.read(path, pair.label.offset, pair.label.size)
        except OSError as error:
            problem = Problem(label, None, f"not readable ({error})", _REWRITE)
    if problem is not None:
        return Record(name, label, None, NO_LABELS, (), pair.label is not None, problem)
    image = io.BufferedReader(_Window(partial(reader.read, path), pair.image), 4096)  # as much of one as is needed
    return check_pair(name, label, (image, text))


def check_shard(path: str, each: Callable[..., Iterable[Record]] = map) -> tuple[list[Record], np.ndarray]:
    """Return the checked images of a shard, and for each (n, 3): offset and size of its bytes, length of its path.

    Every problem ends up in a record, none is raised. `each` may be the `map` of a pool of threads.
    """
    pairs, others, reason = _pairs(path)
    records = list(each(partial(_check, ShardReader(), path), pairs))
    note = passed_over(others, path, "files") if others else None
    if records and note:
        records[0] = records[0]._replace(notes=(*records[0].notes, note))
    length = len(os.fsencode(path))
    spans = [(pair.image.offset, pair.image.size, length) for pair in pairs]
    if not pairs and not reason:
        passed = f"; {note.reason}" if note else ""
        reason = f"no images in it (an image is called key.jpg, its labels key.txt, without further dots){passed}"
    if reason:
        kept = f"; {len(pairs)} images with labels are kept" if pairs else ""
        problem = Problem(path, None, f"unusable shard: {reason}{kept}", _REWRITE, dropped=False)
        records.append(Record(path, path, None, NO_LABELS, (), False, problem))
        spans.append((0, 0, length))
    return records, np.array(spans, dtype=np.int64).reshape(-1, 3)


def label_text_of(path: str, length: int) -> str:
    """Return the text of the labels of the image called `path`, of which `length` bytes are the shard's."""
    shard, name = (os.fsdecode(part) for part in (os.fsencode(path)[:length], os.fsencode(path)[length + 1 :]))
    label = next((pair.label for pair in _pairs(shard)[0] if pair.image.name == name), None)
    return ShardReader().read(shard, label.offset, label.size).decode("utf-8-sig") if label else ""
