"""Data sets in tar files, by webdataset's convention: members of one name before the first dot belong together.

    0001.jpg 0001.txt     a picture and its labels, in the same form as in a label file
    0002.png              a picture without objects

A shard is indexed once (where each member's bytes lie) and read at any place from then on, so mosaics, shuffling and
resuming work as with folders. Nothing is ever unpacked. A picture's path is the shard's, a slash, the member's name.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.image_files import may_be_image, passed_over
from utils.data.labels import Record, check_pair, parse_label_text
from utils.data.problems import Problem
from utils.images.reading import IMG_FORMATS

MAX_SHARDS = 100_000  # that braces may stand for
MAX_HEADER = 16 << 10  # bytes of a long name or the like: more is no data set, and Python would hold all of it
MAX_PICTURE, MAX_LABELS = 256 << 20, 16 << 20  # bytes of one member
OPEN_SHARDS = 64  # files that a process keeps open

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|-?\d+\.\.-?\d+)\}")
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_REWRITE = "write the shard again"


# ---- names -----------------------------------------------------------------------------------------------------------


def is_shard(path: str | Path) -> bool:
    """Whether the name ends in `.tar`."""
    return str(path).lower().endswith(".tar")


def _choices(inside: str) -> list[str]:
    """What stands between braces, one by one: words between commas, or numbers as wide as the ends of their range."""
    if "," in inside:
        return inside.split(",")
    first, last = inside.split("..")
    low, high = int(first), int(last)
    if abs(high - low) >= MAX_SHARDS:
        raise ValueError(f"{{{inside}}} stands for more than {MAX_SHARDS:,} names; correct the range")
    padded = any(re.match(r"-?0\d", end) for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{number:0{width}}" for number in range(low, high + 1)] or [
        f"{number:0{width}}" for number in range(low, high - 1, -1)
    ]


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` written out as a shell would, the groups one inside the other if need be.

    Raises ValueError for more than a hundred thousand names.
    """
    names, groups = [pattern], True
    while groups:
        expanded, groups = [], False
        for name in names:
            if (match := _BRACES.search(name)) is None:
                expanded.append(name)
                continue
            groups = True
            expanded += [name[: match.start()] + choice + name[match.end() :] for choice in _choices(match[1])]
            if len(expanded) > MAX_SHARDS:
                raise ValueError(f"{pattern}: stands for more than {MAX_SHARDS:,} names; correct the range")
        names = expanded
    return list(dict.fromkeys(names))


def find_shards(sources: Iterable[str | Path]) -> list[str]:
    """The files that paths with or without braces name, in that order, each once.

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


# ---- what is in one --------------------------------------------------------------------------------------------------


class _Headers(io.FileIO):
    """A tar file of which only headers are read, and no header larger than any data set needs."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


@dataclass(slots=True)
class _Member:
    name: str
    offset: int
    size: int
    problem: str  # why its bytes are not to be read; mostly nothing


def _members(path: str) -> Iterator[_Member]:
    """Every file in a shard and everything that only looks like one. Raises ReadError where the shard breaks off."""
    with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        length, last = os.fstat(file.fileno()).st_size, -1
        while (info := archive.next()) is not None:
            archive.members = []  # or the archive would remember all of them
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


@dataclass(slots=True)
class _Pair:
    picture: _Member | None = None
    label: _Member | None = None
    repeated: str = ""  # name of a member that the pair has already


def _put_with_its_kind(member: _Member, pairs: dict[str, _Pair], others: list[str]) -> None:
    """Add an image or its labels to the pair of that key, and anything else that may be an image to the others."""
    if (match := _NAME.fullmatch(member.name)) is None:
        return
    key, ending = match[1], match[2].lower()
    field = "label" if ending == "txt" else "picture" if ending in IMG_FORMATS else None
    if field is None:
        others += [member.name] if may_be_image(member.name) else []
        return
    pair = pairs.setdefault(key, _Pair())
    if getattr(pair, field) is None:
        setattr(pair, field, member)
    else:
        pair.repeated = member.name


def _pairs(path: str) -> tuple[list[_Pair], list[str], str]:
    """Images with their labels, in the order of the shard; what was passed over; why there are no more, if anything.

    Of a shard that breaks off only pictures with labels are told: the labels of the others may be what is lost.
    """
    pairs: dict[str, _Pair] = {}
    others: list[str] = []
    reason = ""
    try:
        for member in _members(path):
            _put_with_its_kind(member, pairs, others)
    except Exception as error:  # a hostile header can make tarfile raise anything; it is told, with the shard's name
        reason = " ".join(str(error).split()) or type(error).__name__
    return [pair for pair in pairs.values() if pair.picture and (pair.label or not reason)], others, reason


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Open:
    """A descriptor that is closed when nobody uses it any more."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)


class ShardReader:
    """Bytes of members, from shards that stay open; threads and forked processes may share one."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return ShardReader, ()

    def _shard(self, path: str) -> _Open:
        with self._lock:
            shard = self._open.pop(path, None) or _Open(path)
            self._open[path] = shard
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
            return shard

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes of a shard from `offset` on. Raises OSError when they are not there."""
        shard = self._shard(path)  # held until the end, so that another thread does not close it
        content = os.pread(shard.file, size, offset)
        if len(content) < size:
            raise OSError("shorter than when it was checked")
        return content

    def picture(self, name: str, span: np.ndarray) -> np.ndarray:
        """The (uint8) content of a picture called `name`, with its `span` as `check_shard` gives it.

        Raises ValueError naming the picture when it cannot be read.
        """
        offset, size, length = map(int, span)
        try:
            return np.frombuffer(self.read(os.fsdecode(os.fsencode(name)[:length]), offset, size), dtype=np.uint8)
        except OSError as error:
            raise ValueError(f"{name}: cannot be read ({error.strerror or error}); check the shard") from error


class _Window(io.RawIOBase):
    """One member as a file, read piece by piece: to check a picture, its beginning and end are mostly enough."""

    def __init__(self, read: Callable[[int, int], bytes], member: _Member) -> None:
        self._read, self._member, self._at = read, member, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._member.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(min(len(buffer), self._member.size - self._at), 0)
        buffer[:count] = self._read(self._member.offset + self._at, count)
        self._at += count
        return count


def _unusable(pair: _Pair) -> tuple[_Member, str, str] | None:
    """(member, reason, remedy) of a pair that is left out before its content is looked at."""
    for member, most in ((pair.picture, MAX_PICTURE), (pair.label, MAX_LABELS)):
        if member is None:
            continue
        if member.problem:
            return member, member.problem, "put the file itself into the shard"
        if member.size > most:
            return member, f"{member.size >> 20} MiB in one file, {most >> 20} are allowed", _REWRITE
    if not pair.picture.size:
        return pair.picture, "unusable image: empty file", "re-save or remove it"
    if pair.repeated:
        reason = f"{pair.repeated} is in it too: one name, two files"
        return pair.picture, reason, "give every picture a name of its own, up to the first dot"
    return None


def _check(reader: ShardReader, path: str, pair: _Pair) -> Record:
    name = f"{path}/{pair.picture.name}"
    label = f"{path}/{pair.label.name}" if pair.label else os.path.splitext(name)[0] + ".txt"
    if (unusable := _unusable(pair)) is not None:
        member, reason, remedy = unusable
        return _no_picture(name, Problem(f"{path}/{member.name}", None, reason, remedy), label, pair.label is not None)
    try:
        text = reader.read(path, pair.label.offset, pair.label.size) if pair.label else None
    except OSError as error:
        return _no_picture(name, Problem(label, None, f"not readable ({error})", _REWRITE), label, True)
    with io.BufferedReader(_Window(partial(reader.read, path), pair.picture), 4096) as picture:
        return check_pair(name, label, (picture, text))


def _no_picture(name: str, problem: Problem, label: str, has_label: bool = False) -> Record:
    return Record(name, label, None, np.zeros((0, 5), dtype=np.float32), (), has_label, problem)


def check_shard(path: str, each: Callable[..., Iterable[Record]] = map) -> tuple[list[Record], np.ndarray]:
    """The checked pictures of a shard, and for each (n, 3): offset and size of its bytes, length of the shard's path.

    Every problem ends up in a record, none is raised. `each` may be the `map` of a pool of threads.
    """
    pairs, others, reason = _pairs(path)
    records = list(each(partial(_check, ShardReader(), path), pairs))
    if records and others:
        note = passed_over(others, path, "files")
        records[0] = records[0]._replace(notes=(*records[0].notes, note))
    length = len(os.fsencode(path))
    spans = [(pair.picture.offset, pair.picture.size, length) for pair in pairs]
    if not pairs and not reason:
        passed = f"; {passed_over(others, path, 'files').reason}" if others else ""
        reason = f"no images in it (an image is called key.jpg, its labels key.txt, without further dots){passed}"
    if reason:
        kept = f"; {len(pairs)} pictures with labels are kept" if pairs else ""
        problem = Problem(path, None, f"unusable shard: {reason}{kept}", _REWRITE, dropped=False)
        records.append(_no_picture(path, problem, path))
        spans.append((0, 0, length))
    return records, np.array(spans, dtype=np.int64).reshape(-1, 3)


def first_class_above(path: str, length: int, limit: int) -> tuple[int, int] | None:
    """(line, class) of the first row whose class is `limit` or more, in the labels of the picture called `path`.

    `length` is that of the shard's part of the name, in bytes.
    """
    shard, name = (os.fsdecode(part) for part in (os.fsencode(path)[:length], os.fsencode(path)[length + 1 :]))
    label = next((pair.label for pair in _pairs(shard)[0] if pair.picture.name == name), None)
    if label is None:
        return None
    labels, _, lines = parse_label_text(ShardReader().read(shard, label.offset, label.size).decode("utf-8-sig"))
    high = np.flatnonzero(labels[:, 0] >= limit)
    return (lines[high[0]], int(labels[high[0], 0])) if len(high) else None
