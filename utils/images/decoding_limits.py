"""What decoding an image may take, counted before it is done; and the directories of tags that TIFF and EXIF share.

Work is counted in pixel passes of about a nanosecond, as measured on an AMD EPYC: each constant of the `decoding_`
files is what the slowest file of its kind took, rounded up.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_PARTS = 200_000  # segments, chunks, blocks and tags of one file: counting them is work, too
ROW_WORK, PART_WORK = 40, 2_000  # for each row of pixels, and for each part of a file
EXIF_HEAD = b"Exif\x00\x00"
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # type -> bytes
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # the types that count pixels, rows and bytes
_LINKS = (0x8769, 0x8825, 0xA005)  # tags that name another directory: EXIF's own, GPS, interoperability
_TAG_WORK, _NUMBER_WORK, _FRACTION_WORK = 5_000, 100, 2_000


class TooCostly(ValueError):
    """Decoding would take more time or memory than is allowed; the words say what of the file does."""


class Unbounded(ValueError):
    """The file is of a kind whose cost cannot be known beforehand; the words say which, and what to do."""


@dataclass(slots=True)
class CostTally:
    """Counts what decoding a file will take; raises TooCostly as soon as that is more than is allowed.

    most_work: pixel passes, one of which takes about a nanosecond. most_memory: bytes. check(width, height) raises
    where the image itself is too large, or is none.
    """

    most_work: int
    most_memory: int
    check: Callable[[int, int], None] = lambda width, height: None
    work: int = 0
    memory: int = 0
    size: tuple[int, int] = (0, 0)
    parts: int = field(default=0, repr=False)

    def image(self, width: int, height: int) -> None:
        """Note the size of the image that will be decoded, in pixels."""
        self.check(width, height)
        self.size = (width, height)

    def spend(self, work: int, reason: str) -> None:
        """Note work to come, for this reason."""
        self.work += work
        if self.work > self.most_work:
            raise TooCostly(reason)

    def hold(self, memory: int, reason: str) -> None:
        """Note bytes that will be held while the image is decoded."""
        self.memory += memory
        if self.memory > self.most_memory:
            raise TooCostly(reason)

    def concede(self, memory: int) -> None:
        """Note bytes that a format may need whatever the image, and that are no reason to refuse it."""
        self.memory += memory
        self.most_memory += memory

    def part(self, work: int, what: str) -> None:
        """Note one more part of the file, named in the plural, and what reading it takes."""
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise TooCostly(f"more than {MOST_PARTS:,} {what}")
        self.spend(work, f"{self.parts:,} {what}")


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of a directory: its type, how many values it has, and the place of the first in the file."""

    kind: int
    count: int
    place: int


class TagReader:
    """The tags of a TIFF file or of EXIF data, without trust: no value is read before its size is known.

    Raises ValueError for what is no TIFF structure.
    """

    def __init__(self, data: bytes, tally: CostTally) -> None:
        self.data, self.tally = data, tally
        orders = {b"II": "<", b"MM": ">"}
        if data[:2] not in orders:
            raise ValueError("its tags begin with neither II nor MM")
        self.order = orders[data[:2]]
        (version,) = self.unpack("H", 2)
        if version not in (42, 43, 42 << 8):  # the last is wrong, and Pillow reads it
            raise ValueError(f"its tags are of version {version}, not 42 or 43")
        self.twice: set[int] = set()  # tags that were there twice: readers differ in which they take
        self.big = version == 43  # BigTIFF: offsets of 64 bits
        (self.first,) = self.unpack("Q", 8) if self.big else self.unpack("I", 4)

    def tags(self, place: int) -> dict[int, Tag]:
        """The tags of the directory at this place."""
        (count,) = self.unpack("Q" if self.big else "H", place)
        row, entry, inside = (8, 20, 8) if self.big else (2, 12, 4)
        found: dict[int, Tag] = {}
        for start in range(place + row, place + row + entry * min(count, MOST_PARTS + 1), entry):
            self.tally.part(_TAG_WORK, "tags")
            tag, kind, values = self.unpack("HHQ" if self.big else "HHI", start)
            where = start + entry - inside
            size = values * _SIZES.get(kind, 0)
            if size > inside:
                (where,) = self.unpack("Q" if self.big else "I", where)
                each = _FRACTION_WORK if kind in (5, 10) else 1 if _SIZES[kind] == 1 else _NUMBER_WORK
                self.tally.spend(values * each, f"tag {tag} with {values:,} values")
                self.tally.hold(size + values * each // 4, f"tag {tag} with {values:,} values")
            if tag in found:
                self.twice.add(tag)
            found[tag] = Tag(kind, values, where)
        return found

    def numbers(self, tags: dict[int, Tag], tag: int) -> tuple[int, ...]:
        """The whole numbers of a tag, none where it is not there."""
        if tag not in tags:
            return ()
        kind, count, place = tags[tag].kind, tags[tag].count, tags[tag].place
        if kind not in _CODES or not count:
            raise ValueError(f"tag {tag} holds no whole numbers")
        return self.unpack(f"{count}{_CODES[kind]}", place)

    def number(self, tags: dict[int, Tag], tag: int, usual: int) -> int:
        """The first whole number of a tag, `usual` where it is not there."""
        return (*self.numbers(tags, tag), usual)[0]

    def unpack(self, code: str, place: int) -> tuple[int, ...]:
        """Numbers at a place of the data, by the letters of `struct`; ValueError outside of it."""
        try:
            return struct.unpack_from(self.order + code, self.data, place)
        except (struct.error, OverflowError):
            raise ValueError("its tags lie outside of the file") from None


def count_exif(data: bytes, tally: CostTally) -> None:
    """Count what reading EXIF data takes, in all the directories that Pillow reads to turn an image upright.

    Data that is no EXIF costs nothing: Pillow passes it over.
    """
    while data.startswith(EXIF_HEAD):
        data = data[len(EXIF_HEAD) :]
    try:
        reader = TagReader(data, tally)
        count_linked(reader, reader.tags(reader.first))
    except TooCostly:
        raise
    except ValueError:
        return


def count_linked(reader: TagReader, tags: dict[int, Tag]) -> None:
    """Count the directories that these tags name, each once; a place that is none costs nothing."""
    seen: set[int] = set()
    waiting = [tags]
    while waiting:
        here = waiting.pop()
        for place in [here[tag].place for tag in _LINKS if tag in here]:
            try:
                (target,) = reader.unpack("Q" if reader.big else "I", place)
                if target not in seen:
                    seen.add(target)
                    waiting.append(reader.tags(target))
            except TooCostly:
                raise
            except ValueError:
                continue
