"""The archive that PyTorch writes, read so strictly that no other reader can see another one in it.

Python's zipfile and PyTorch's own reader look for an archive's directory in different places, so that one file can hold
two archives. Here every byte must be accounted for: the records one behind the other from the first byte on, then the
directory, then the end record, which are the end of the file.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

MAX_RECORDS = 100_000  # YOLOv5's largest training checkpoint has about 1,000
MAX_DIRECTORY = 1 << 25  # bytes
CHUNK = 1 << 20

_END, _END64, _LOCATOR = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
_CENTRAL, _LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
_FULL, _FULL64 = 0xFFFF, 0xFFFFFFFF  # "see the 64-bit field"
_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11  # flags: sizes follow the content; names are UTF-8


class ArchiveRecord(NamedTuple):
    """One part of the archive: its name, where its content begins, and the content's size and checksum."""

    name: str
    start: int
    size: int
    crc: int


def read_records(path: Path) -> list[ArchiveRecord]:
    """The parts of an archive that every reader sees alike, in the order of the file.

    Raises ValueError, without the file's name, for any other archive, for damage, and where PyTorch's reader names
    other parts.
    """
    with path.open("rb") as file:
        records = _read_directory(file, *_find_directory(file, file.seek(0, 2)))
        for record in records:
            file.seek(record.start)
            found, left = 0, record.size
            while left and (part := file.read(min(left, CHUNK))):
                found, left = zlib.crc32(part, found), left - len(part)
            if left or found != record.crc:
                raise ValueError(f"{record.name[:100]} does not match its checksum")
    seen = torch._C.PyTorchFileReader(str(path)).get_all_records()
    if [record.name.partition("/")[2] for record in records] != seen:
        raise ValueError("its directory can be read in two ways")
    return records


def _read_directory(file: BinaryIO, start: int, length: int, count: int) -> list[ArchiveRecord]:
    """The entries of a directory, which account for all bytes before it, each under a name of its own."""
    if count > MAX_RECORDS or length > MAX_DIRECTORY:
        raise ValueError(f"an archive of {count:,} parts")
    file.seek(start)
    directory = file.read(length)
    records, place, offset = [], 0, 0
    for _ in range(count):
        place, offset, record = _read_entry(file, directory, place, offset)
        records.append(record)
    if place != length or offset != start:
        raise ValueError("its parts overlap, or leave room between them")
    _check_names([record.name for record in records])
    return records


def _check_names(names: list[str]) -> None:
    """Raise ValueError for names that not every reader takes as they are, or that could be one another's."""
    if not all(name.isprintable() and "\\" not in name and name.partition("/")[2] for name in names):
        raise ValueError("a part has a name that PyTorch does not write")
    if len({name.lower() for name in names}) < len(names):
        raise ValueError("two parts have the same name")
    if len({name.partition("/")[0] for name in names}) > 1:
        raise ValueError("its parts lie in several folders")


def read_record(path: Path, record: ArchiveRecord) -> bytes:
    """The content of one part."""
    with path.open("rb") as file:
        file.seek(record.start)
        return file.read(record.size)


def _take(form: struct.Struct, content: bytes, place: int, magic: bytes) -> tuple[int, ...]:
    """The numbers of a header that begins with `magic`."""
    if place < 0 or content[place : place + 4] != magic or len(content) < place + form.size:
        raise ValueError("the file is cut off, or its parts do not follow each other")
    return form.unpack_from(content, place)[1:]


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Where the directory begins, its bytes and its entries. It must end where the end record begins."""
    tail = _END64.size + _LOCATOR.size
    begin = max(size - _END.size - tail, 0)
    file.seek(begin)
    content = file.read()
    end = len(content) - _END.size
    disk, first, here, count, length, start, comment = _take(_END, content, end, b"PK\5\6")
    before = size - _END.size
    if content[max(end - _LOCATOR.size, 0) :][:4] == b"PK\6\7":
        disk64, where, disks = _take(_LOCATOR, content, end - _LOCATOR.size, b"PK\6\7")
        before -= tail
        held, _, _, disk2, first2, here2, count2, length2, start2 = _take(_END64, content, end - tail, b"PK\6\6")
        pairs = ((here, here2, _FULL), (count, count2, _FULL), (length, length2, _FULL64), (start, start2, _FULL64))
        odd = any(short not in (long, full) for short, long, full in pairs)
        if odd or where != before or (held, disk64, disks, disk2, first2) != (_END64.size - 12, 0, 1, 0, 0):
            raise ValueError("its two end records do not agree")
        here, count, length, start = here2, count2, length2, start2
    if (disk, first, comment, here, start + length) != (0, 0, 0, count, before):
        raise ValueError("its directory does not end where the end record begins")
    return start, length, count


def _read_entry(file: BinaryIO, directory: bytes, place: int, offset: int) -> tuple[int, int, ArchiveRecord]:
    """One entry of the directory, checked against the header before its content, which must begin at `offset`.

    Returns where the next entry and the next header have to begin.
    """
    fields = _take(_CENTRAL, directory, place, b"PK\1\2")
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment, disk, _, _, local = fields
    place += _CENTRAL.size
    name, extra = directory[place : place + name_length], directory[place + name_length :][:extra_length]
    place += name_length + extra_length
    size, packed, local = _long_numbers(extra, (size, packed, local))
    if method or packed != size:
        script = b"/code/" in name
        raise ValueError("TorchScript" if script else "its parts are compressed, which PyTorch never does")
    if flags & ~(_DESCRIPTOR | _UTF8) or comment or disk or local != offset:
        raise ValueError("its parts overlap, or leave room between them")
    skipped = _check_header(file, offset, name, (flags, crc, size))
    start = offset + _LOCAL.size + name_length + skipped
    end = _after(file, start + size, crc) if flags & _DESCRIPTOR else start + size
    return place, end, ArchiveRecord(name.decode("utf-8"), start, size, crc)


def _check_header(file: BinaryIO, offset: int, name: bytes, expected: tuple[int, int, int]) -> int:
    """The bytes of padding in the header before a content, which has to say what the directory does.

    Where sizes and checksum follow the content it may have none, and for more than 4 GiB no sizes.
    """
    flags, crc, size = expected
    file.seek(offset)
    header = file.read(_LOCAL.size + len(name))
    _, found, method, _, _, crc2, packed2, size2, name_length, skipped = _take(_LOCAL, header, 0, b"PK\3\4")
    deferred = bool(flags & _DESCRIPTOR)
    sizes = {(0, 0), (size, size), (_FULL64, _FULL64)} if deferred or size >= _FULL64 else {(size, size)}
    agrees = (packed2, size2) in sizes and crc2 in ((crc, 0) if deferred else (crc,))
    if (found, method, name_length, header[_LOCAL.size :]) != (flags, 0, len(name), name) or not agrees:
        raise ValueError("a part's own header says something else than the directory")
    return skipped


def _long_numbers(extra: bytes, numbers: tuple[int, int, int]) -> tuple[int, ...]:
    """Size, packed size and place, each from the 64-bit field where its own has no room for it; no other field."""
    count = sum(number == _FULL64 for number in numbers)
    expected = struct.pack("<2H", 1, 8 * count) if count else b""
    if len(extra) != len(expected) + 8 * count or extra[:4] != expected:
        raise ValueError("a part has fields that PyTorch does not write")
    long = iter(struct.unpack(f"<{count}Q", extra[4:]) if count else ())
    return tuple(next(long) if number == _FULL64 else number for number in numbers)


def _after(file: BinaryIO, end: int, crc: int) -> int:
    """Where the next header begins, behind the checksum and sizes that follow a content which ends at `end`."""
    file.seek(end)
    (found,) = _take(struct.Struct("<4sI"), file.read(8), 0, b"PK\7\x08")
    if found != crc:
        raise ValueError("a part does not match its checksum")
    following = file.read(20)
    return end + (16 if following[8:11] in (b"PK\3", b"PK\1") else 24)
