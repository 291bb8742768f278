"""What decoding an image may take, counted before it is done; and the directories of tags that TIFF and EXIF share.

Work is counted in pixel passes of about a nanosecond, as measured on an AMD EPYC: each constant of the `decoding_`
files is what the slowest file of its kind took, rounded up.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

MOST_PARTS = 200_000  # segments, chunks, blocks and tags of one file: counting them is work, too
ROW_WORK, PART_WORK = 40, 2_000  # for each row of pixels, and for each part of a file
EXIF_HEAD = b"Exif\x00\x00"
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8}  # of types
CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # the types of whole numbers
_LINKS = (0x8769, 0x8825, 0xA005)  # tags that name another directory: EXIF's own, GPS, interoperability
_TAG_WORK, _NUMBER_WORK, _FRACTION_WORK = 5_000, 100, 2_000


class TooCostly(Exception):
    """Decoding would take more time or memory than is allowed; the message says what of the file does."""


class Unbounded(ValueError):
    """The file is of a kind whose cost cannot be known beforehand; the message says which, and what to do."""


@dataclass(slots=True)
class DecodingBudget:
    """What decoding a file will take; raises TooCostly as soon as that is more than is allowed.

    most_work: pixel passes, one of which takes about a nanosecond. most_memory: bytes. check(width, height) raises
    where the image itself is too large, or is none.
    """

    most_work: int
    most_memory: int
    check: Callable[[int, int], None] = lambda width, height: None
    work: int = 0
    memory: int = 0
    size: tuple[int, int] = (0, 0)
    parts: int = 0

    def spend(self, reason: str, work: int, memory: int = 0) -> None:
        """Add work to come and bytes that will be held; `reason` is what a refusal names."""
        self.work, self.memory = self.work + work, self.memory + memory
        if self.work > self.most_work or self.memory > self.most_memory:
            raise TooCostly(reason)

    def part(self, work: int, what: str) -> None:
        """Add one more part of the file, named in the plural, and what reading it takes."""
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise TooCostly(f"more than {MOST_PARTS:,} {what}")
        self.spend(f"{self.parts:,} {what}", work)

    def image(self, width: int, height: int) -> None:
        """Take the size of the image that will be decoded, in pixels, once it is checked."""
        self.check(width, height)
        self.size = (width, height)


class Tag(NamedTuple):
    """A tag of a directory: its type, how many values it has, and the place of the first in the file."""

    kind: int
    values: int
    place: int


class TagReader:
    """The tags of a TIFF file or of EXIF data, without trust: no value is read before its size is known.

    Raises ValueError for what is no TIFF structure.
    """

    def __init__(self, data: bytes | memoryview, budget: DecodingBudget) -> None:
        self.data, self.budget = data, budget
        self.order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]), "")
        if not self.order:
            raise ValueError("its tags begin with neither II nor MM")
        (version,) = self.unpack("H", 2)
        if version not in (42, 43, 42 << 8):  # the last is wrong, and Pillow reads it
            raise ValueError(f"its tags are of version {version}, not 42 or 43")
        self.repeated: set[int] = set()  # tags that are there twice: readers differ in which they take
        self.big = version == 43  # BigTIFF: offsets of 64 bits
        self.pointer = "Q" if self.big else "I"
        (self.first,) = self.unpack(self.pointer, 8 if self.big else 4)
        self.end = 0  # of the directory that was read last

    def tags(self, place: int) -> dict[int, Tag]:
        """Return the tags of the directory at this place."""
        (count,) = self.unpack("Q" if self.big else "H", place)
        row, entry, inside = (8, 20, 8) if self.big else (2, 12, 4)
        self.end = place + row + entry * min(count, MOST_PARTS + 1)
        found: dict[int, Tag] = {}
        for start in range(place + row, self.end, entry):
            self.budget.part(_TAG_WORK, "tags")
            tag, kind, values = self.unpack("HH" + self.pointer, start)
            where = start + entry - inside
            size = values * _SIZES.get(kind, 0)
            if size > inside:
                (where,) = self.unpack(self.pointer, where)
                each = _FRACTION_WORK if kind in (5, 10) else 1 if _SIZES[kind] == 1 else _NUMBER_WORK
                self.budget.spend(f"tag {tag} with {values:,} values", values * each, size + values * each // 4)
            if tag in found:
                self.repeated.add(tag)
            found[tag] = Tag(kind, values, where)
        return found

    def numbers(self, tags: dict[int, Tag], tag: int, missing: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the whole numbers of a tag, `missing` where it is not there."""
        if tag not in tags:
            return missing
        kind, count, place = tags[tag]
        numbers = self.unpack(f"{count}{CODES[kind]}", place) if kind in CODES and count else (-1,)
        if min(numbers) < 0:
            raise ValueError(f"tag {tag} holds no whole numbers")
        return numbers

    def unpack(self, code: str, place: int) -> tuple[int, ...]:
        """Return the numbers at a place of the data, by the letters of `struct`; ValueError outside of it."""
        try:
            return struct.unpack_from(self.order + code, self.data, place)
        except (struct.error, OverflowError):
            raise ValueError("its tags lie outside of the file") from None


def count_exif(data: bytes, budget: DecodingBudget) -> None:
    """Count what reading EXIF data takes, in all the directories that Pillow reads to turn an image upright.

    Data that is no EXIF costs nothing: Pillow passes it over.
    """
    while data.startswith(EXIF_HEAD):
        data = data[len(EXIF_HEAD) :]
    with suppress(ValueError):
        reader = TagReader(data, budget)
        count_linked(reader, reader.tags(reader.first))


def count_linked(reader: TagReader, tags: dict[int, Tag]) -> None:
    """Count the directories that these tags name, each once; a place that is none costs nothing."""
    seen: set[int] = set()
    waiting = [tags]
    while waiting:
        here = waiting.pop()
        for place in [here[tag].place for tag in _LINKS if tag in here]:
            with suppress(ValueError):
                (target,) = reader.unpack(reader.pointer, place)
                if target not in seen:
                    seen.add(target)
                    waiting.append(reader.tags(target))
