"""What an image file says of itself, read without decoding it.

Whether an image can be used, and how large it is, is for OpenCV to say, which will decode it. To decode millions of
files only to check them would take hours, so the headers of ordinary JPEG and PNG files are read here: a file is
`plain` when nothing in its header could make OpenCV refuse it or turn it otherwise than is known. All others are
decoded.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

MAX_JPEG_SIDE, MAX_PNG_SIDE = 65500, 1_000_000  # pixels that the decoders allow
MAX_DEFLATE = 1032  # bytes that a byte of compressed data can become
PNG = b"\x89PNG\r\n\x1a\n"
_KINDS = (  # how files begin, and what they are
    (0, b"\xff\xd8", "JPEG"),
    (0, PNG, "PNG"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (8, b"WEBP", "WebP"),
    *((4, b"ftyp" + brand, "AVIF") for brand in (b"avif", b"avis")),
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1")),
    (4, b"jP  ", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "ICO"),
)
_EIGHT_BITS = ("JPEG", "BMP", "GIF", "WebP", "AVIF")  # kinds that OpenCV itself brings to 8 bits as they are meant
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by kind of colour
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_ORDER = re.compile(  # the order of a PNG file's parts, without animations
    rb" IHDR(?: (?!acTL|fcTL|fdAT)[a-z][A-Za-z]{3})*(?: PLTE(?: (?!acTL|fcTL|fdAT)[a-z][A-Za-z]{3})*)?"
    rb" IDAT(?: (?!eXIf|acTL|fcTL|fdAT)[a-z][A-Za-z]{3})* IEND"
)
_SCAN, _EXIF = 0xDA, 0xE1  # markers of JPEG: where the image begins; what cameras note
_NOTES = frozenset({0xFE, *range(0xE0, 0xF0)} - {_EXIF})  # a comment, and what programs note
_SAMPLING = frozenset((0x11, 0x12, 0x14, 0x21, 0x22, 0x41))  # of a channel, across and down
_WIDTH, _HEIGHT, _BITS, _LARGEST, _FORMAT, _LARGEST_SIGNED = 256, 257, 258, 281, 339, 341  # tags of TIFF
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # whole numbers


class Header(NamedTuple):
    """Of a plain file: (width, height) as OpenCV will decode it, and whether it has more than 8 bits a channel."""

    size: tuple[int, int]
    deep: bool = False


class Depth(NamedTuple):
    """Of a file that may have more than 8 bits a channel: what it says of them."""

    bits: int = 0  # 0 where it does not say
    is_odd: bool = False  # with a sign, or floating
    is_sure: bool = True  # that there are more than 8


class _NotPlain(Exception):
    """A header has something that OpenCV must judge."""


def _need(*conditions: bool) -> None:
    if not all(conditions):
        raise _NotPlain


def kind_of(content: bytes | memoryview) -> str:
    """What a file is by its first 16 bytes, in the words people use; nothing for what is not known here."""
    start = bytes(content[:16])
    return next((kind for place, mark, kind in _KINDS if start.startswith(mark, place)), "")


# ---- what OpenCV makes of metadata -----------------------------------------------------------------------------------


@lru_cache
def _tiny(ending: str) -> bytes:
    """An image of 16 x 8 pixels."""
    return cv2.imencode(ending, np.zeros((8, 16, 3), np.uint8))[1].tobytes()


def _is_turned(metadata: bytes, ending: str, place: int) -> bool:
    """Whether OpenCV lays an image with these metadata on its side: it is asked, by way of a small one."""
    whole = _tiny(ending)
    image = cv2.imdecode(np.frombuffer(whole[:place] + metadata + whole[place:], np.uint8), cv2.IMREAD_COLOR)
    _need(image is not None)
    return image.shape[0] > image.shape[1]


def _as_decoded(size: tuple[int, int], metadata: bytes, ending: str, place: int, deep: bool = False) -> Header:
    """The size after OpenCV turned the image as its metadata say."""
    return Header(size[::-1] if metadata and _is_turned(metadata, ending, place) else size, deep)


# ---- JPEG ------------------------------------------------------------------------------------------------------------


class _Frame(NamedTuple):
    """What a SOF segment says."""

    size: tuple[int, int]
    tables: dict[int, int]  # number of each channel's quantiser
    progressive: bool


@lru_cache(4096)
def _quantisers(body: bytes) -> frozenset[int]:
    """Numbers of the tables in a DQT segment."""
    found, place = set(), 0
    while place < len(body):
        wide, number = divmod(body[place], 16)
        place += 65 + 64 * wide
        _need(wide <= 1, number <= 3, place <= len(body))
        found.add(number)
    return frozenset(found)


@lru_cache(4096)
def _codes(body: bytes) -> frozenset[int]:
    """Class (0, 16) plus number of the tables in a DHT segment, which must be sound Huffman codes."""
    found, place = set(), 0
    while place < len(body):
        table, counts = body[place], body[place + 1 : place + 17]
        values = body[place + 17 : place + 17 + sum(counts)]
        _need(not table & 0xEC, len(counts) == 16, len(values) == sum(counts) <= 256)
        _need(table >= 16 or max(values, default=0) <= 15)  # a difference of that many bits
        code = 0
        for length, count in enumerate(counts, start=1):
            code = 2 * code + count
            _need(code < 1 << length)  # the code of ones alone is not to be used
        found.add(table)
        place += 17 + len(values)
    return frozenset(found)


def _frame(marker: int, body: bytes) -> _Frame:
    """The content of a SOF segment, of 8 bits and 1 or 3 channels."""
    count = body[5]
    _need(body[0] == 8, count in (1, 3), len(body) == 6 + 3 * count)
    height, width = struct.unpack_from(">HH", body, 1)
    tables = {body[place]: body[place + 2] for place in range(6, len(body), 3)}
    _need(len(tables) == count, set(body[7::3]) <= _SAMPLING)
    _need(0 < width <= MAX_JPEG_SIDE, 0 < height <= MAX_JPEG_SIDE)
    return _Frame((width, height), tables, marker == 0xC2)


def _check_scan(body: bytes, frame: _Frame, codes: set[int]) -> None:
    """Raise where a SOS segment does not fit the frame and the tables before it."""
    count = body[0]
    _need(1 <= count <= len(frame.tables), len(body) == 4 + 2 * count)
    used = {body[place]: divmod(body[place + 1], 16) for place in range(1, 1 + 2 * count, 2)}
    needed = {dc for dc, _ in used.values()}
    if not frame.progressive:
        needed |= {16 + ac for _, ac in used.values()}
    last, most = (0, 13) if frame.progressive else (63, 0)
    _need(len(used) == count, used.keys() <= frame.tables.keys(), needed <= codes)
    _need(body[-3:-1] == bytes((0, last)), body[-1] <= most)


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of a JPEG file's segments up to its first scan, without comments and most programs' notes."""
    marker = 0
    file.seek(2)
    while marker != _SCAN:
        head = file.read(4)
        marker, length = head[1], (head[2] << 8 | head[3]) - 2
        _need(head[0] == 0xFF, length >= 0)
        if marker in _NOTES:
            file.seek(length, os.SEEK_CUR)
            continue
        body = file.read(length)
        _need(len(body) == length)
        yield marker, body


def _read_jpeg(file: BinaryIO) -> Header:
    quantisers: set[int] = set()
    codes: set[int] = set()
    metadata, frames, body = b"", [], b""
    for marker, body in _segments(file):
        if marker == _EXIF:
            metadata += b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
        elif marker == 0xDB:
            quantisers |= _quantisers(body)
        elif marker == 0xC4:
            codes |= _codes(body)
        elif marker in (0xC0, 0xC1, 0xC2):
            frames.append(_frame(marker, body))
        else:
            _need(marker in (_SCAN, 0xDD))
    _need(len(frames) == 1)
    _need(set(frames[0].tables.values()) <= quantisers)
    _check_scan(body, frames[0], codes)
    return _as_decoded(frames[0].size, metadata, ".jpg", 2)


def _ends(file: BinaryIO) -> bool:
    """Whether a JPEG file's last bytes are its end marker."""
    file.seek(-2, os.SEEK_END)
    return file.read(2) == b"\xff\xd9"


# ---- PNG -------------------------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """What an IHDR part says."""

    size: tuple[int, int]
    bits: int
    palette: bool
    bytes: int  # of all rows, decompressed


def _rows(body: bytes) -> _Rows:
    """The content of an IHDR part; there is one way to compress and to filter, and what is interlaced is decoded."""
    width, height, bits, colour, *ways = struct.unpack(">IIBBBBB", body)
    _need(0 < width <= MAX_PNG_SIDE, 0 < height <= MAX_PNG_SIDE, bits in _PNG_DEPTHS.get(colour, ()), not any(ways))
    return _Rows((width, height), bits, colour == 3, height * (1 + -(-width * bits * _PNG_CHANNELS[colour] // 8)))


def _parts(file: BinaryIO, length: int) -> Iterator[tuple[bytes, bytes]]:
    """(name, content with checksum) of each part of a PNG file up to its end."""
    place, name = 8, b""
    file.seek(place)
    while name != b"IEND":
        size, name = struct.unpack(">I4s", file.read(8))
        place += 12 + size
        _need(place <= length)
        body = file.read(size + 4)
        _need(zlib.crc32(memoryview(body)[:size], zlib.crc32(name)) == int.from_bytes(body[size:], "big"))
        yield name, body


def _read_png(file: BinaryIO, length: int) -> Header:
    names, data, begun, metadata = [b""], 0, b"", b""
    rows = None
    for name, body in _parts(file, length):
        if name != b"IDAT" or names[-1] != name:  # the data are in many parts, one after the other
            names.append(name)
        if name == b"IDAT":
            begun = begun or body[:2]
            data += len(body) - 4
        elif name == b"IHDR":
            rows = _rows(body[:-4])
        elif name == b"PLTE":
            _need(len(body) % 3 == 1, 7 <= len(body) <= 772)  # red, green, blue; a checksum
        elif name == b"eXIf":
            metadata += struct.pack(">I", len(body) - 4) + name + body
    _need(rows is not None, _PNG_ORDER.fullmatch(b" ".join(names)) is not None)
    _need(data * MAX_DEFLATE >= rows.bytes, begun[0] & 15 == 8, int.from_bytes(begun, "big") % 31 == 0)
    _need(not rows.palette or b"PLTE" in names)
    return _as_decoded(rows.size, metadata, ".png", 33, rows.bits == 16)


def plain_header(file: BinaryIO, length: int, whole: bool = True) -> Header | None:
    """The header of a file of this length that is plain, else None; a JPEG must also end as it should if `whole`."""
    file.seek(0)
    kind = kind_of(file.read(16))
    try:
        if kind == "PNG":
            return _read_png(file, length)
        return _read_jpeg(file) if kind == "JPEG" and (not whole or _ends(file)) else None
    except (_NotPlain, IndexError, struct.error, cv2.error):
        return None


# ---- more than 8 bits, several images --------------------------------------------------------------------------------


def _png_depth(content: memoryview) -> Depth | None:
    """Of a PNG: its significant bits (sBIT), where it has 16 bits a channel."""
    if len(content) < 26 or content[24] != 16:
        return None
    head = bytes(content[:4096])
    place = head.find(b"sBIT", 33, max(head.find(b"IDAT"), 0))
    return Depth(max(head[place + 4 : place + 5]) if place > 0 else 0)


def _tiff_tags(content: memoryview) -> tuple[dict[int, int], bool]:
    """The largest value of each numeric tag of a TIFF file's first image, and whether further images follow."""
    order = "<" if content[0] == 0x49 else ">"
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    number, entry, width = ("Q", 20, 8) if big else ("H", 12, 4)
    pointer = "Q" if big else "I"
    place = struct.unpack_from(order + pointer, content, width)[0]
    (count,) = struct.unpack_from(order + number, content, place)
    place += struct.calcsize(number)
    tags: dict[int, int] = {}
    for _ in range(min(count, 4096)):
        tag, kind, values = struct.unpack_from(order + "HH" + pointer, content, place)
        if kind in _TIFF_TYPES and 0 < values <= 64:
            form = f"{order}{values}{_TIFF_TYPES[kind]}"
            where = place + 4 + width
            if struct.calcsize(form) > width:
                where = struct.unpack_from(order + pointer, content, where)[0]
            tags[tag] = max(struct.unpack_from(form, content, where))
        place += entry
    return tags, struct.unpack_from(order + pointer, content, place)[0] != 0


def _tiff(content: memoryview) -> tuple[dict[int, int], bool]:
    try:
        return _tiff_tags(content)
    except (struct.error, OverflowError):  # it breaks off
        return {}, False


def tiff_size(content: bytes | np.ndarray) -> tuple[int, int]:
    """(width, height) in a TIFF file's tags; KeyError where it has none."""
    tags = _tiff(memoryview(content))[0]
    return tags[_WIDTH], tags[_HEIGHT]


def has_further_images(content: bytes | np.ndarray) -> bool:
    """Whether a file is a TIFF of several pages, of which OpenCV reads the first."""
    whole = memoryview(content)
    return kind_of(whole[:16]) == "TIFF" and _tiff(whole)[1]


def depth_of(content: bytes | np.ndarray) -> Depth | None:
    """What a file says of its bits a channel; None where it has 8, or OpenCV makes them 8 as they are meant."""
    whole = memoryview(content)
    kind = kind_of(whole[:16])
    if kind == "PNG":
        return _png_depth(whole)
    if kind != "TIFF":
        return None if kind in _EIGHT_BITS else Depth(is_sure=False)
    tags = _tiff(whole)[0]
    bits, form = min(max(tags.get(_BITS, 1), 1), 64), tags.get(_FORMAT, 1)
    if bits <= 8 and form == 1:
        return None
    largest = tags.get(_LARGEST_SIGNED) or tags.get(_LARGEST) or (1 << bits) - 1
    return Depth(min(bits, largest.bit_length()), form != 1 or bits > 16)
