"""What an image file says of itself, read without decoding it.

Whether an image can be used, and how large it is, is for OpenCV to say, which will decode it. To decode millions of
files only to check them would take hours, so the headers of ordinary JPEG and PNG files are read here: a file is
`plain` when nothing in its header could make OpenCV refuse it or turn it otherwise than is known. What the header
means, OpenCV is asked by way of an image of 16 x 8 pixels. All other files are decoded.
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

from utils.images.decoding_limits import CODES, DecodingBudget, TagReader

MAX_JPEG_SIDE, MAX_PNG_SIDE = 65500, 1_000_000  # pixels that the decoders allow
MAX_DEFLATE = 1032  # bytes that a byte of compressed data can become
PNG = b"\x89PNG\r\n\x1a\n"
_KINDS = {  # how files begin
    "JPEG": rb"\xff\xd8",
    "PNG": re.escape(PNG),
    "BMP": rb"BM",
    "GIF": rb"GIF8",
    "TIFF": rb"II[*+]\x00|MM\x00[*+]",
    "WebP": rb"RIFF....WEBP",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(he[iv][cx]|hei[ms]|mif1)",
    "JPEG2000": rb"....jP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"....JXL |\xff\x0a",
    "PDF": rb"%PDF",
    "Photoshop": rb"8BPS",
    "ICO": rb"\x00\x00\x01\x00",
}
_BEGINNINGS = {kind: re.compile(mark, re.DOTALL) for kind, mark in _KINDS.items()}
_EIGHT_BITS = ("JPEG", "BMP", "GIF", "WebP", "AVIF")  # kinds that OpenCV itself brings to 8 bits as they are meant
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of its colour types
_FRAMES, _SCAN, _RESTARTS, _EXIF, _TABLES = (0xC0, 0xC1, 0xC2), 0xDA, 0xDD, 0xE1, (0xC4, 0xDB)  # markers of JPEG
_NOTES = frozenset({0xFE, *range(0xE0, 0xF0)} - {_EXIF})  # a comment, and what programs note
_END_OF_BLOCK = b"\xff\xc4\x00\x14\x10\x01" + bytes(16)  # a table with one code, which means that no more numbers come
_MOST_HEADER = 1 << 17  # bytes of tables and EXIF data, which have 65,535 at most: what was said of them is kept
_MOST_SCAN = 5000  # bytes of 20 blocks of 64 numbers, each of a code of 16 bits and 15 bits more
WIDTH, HEIGHT, _BITS, _LARGEST, _FORMAT, _LARGEST_SIGNED = 256, 257, 258, 281, 339, 341  # tags of TIFF
_MAX_CHANNELS = 64


class Inspection(NamedTuple):
    """What an image is when it is read: (width, height) in pixels, and what is worth a note."""

    size: tuple[int, int]
    is_deep: bool = False  # more than 8 bits a channel
    is_first: bool = False  # of several in the file


class Depth(NamedTuple):
    """Of a file that may have more than 8 bits a channel: what it says of them."""

    bits: int = 0  # 0 where it does not say
    is_odd: bool = False  # with a sign, or floating
    is_sure: bool = True  # that there are more than 8


class _NotPlainError(Exception):
    """A header has something that OpenCV must judge."""


def _need(*conditions: bool) -> None:
    if not all(conditions):
        raise _NotPlainError


def kind_of(content: bytes | memoryview) -> str:
    """Return what a file is by its first 16 bytes, in the words people use; nothing for what is not known here."""
    return next((kind for kind, beginning in _BEGINNINGS.items() if beginning.match(content)), "")


@lru_cache(64)  # as many files of a data set have the same header
def _is_turned(tiny: bytes) -> bool:
    """Return whether OpenCV turns an image: it is asked, by way of one of 16 x 8 pixels with the same header."""
    image = cv2.imdecode(np.frombuffer(tiny, np.uint8), cv2.IMREAD_COLOR) if len(tiny) <= _MOST_HEADER else None
    if image is None:
        raise _NotPlainError
    return image.shape[0] > image.shape[1]


def read_jpeg(file: BinaryIO, judged: bool = True) -> Inspection:
    """Return what a JPEG's segments up to the first scan say; an error of any kind where they are not sound.

    Unless they are to be judged, that is the size as it is stored.

    OpenCV judges the segments before 16 x 8 pixels of zeros: the shortest code of every table, whatever it means. It
    would wait for all scans of a progressive one, so the first of those is shown as if it were the only one.
    """
    marker, size, tiny, progressive = 0, (0, 0), bytearray(b"\xff\xd8"), False
    file.seek(2)
    while marker != _SCAN:
        head = file.read(4)
        marker, length = head[1], (head[2] << 8 | head[3]) - 2
        _need(head[0] == 0xFF, length >= 0)
        if marker in _NOTES:
            file.seek(length, os.SEEK_CUR)
            continue
        body = file.read(length)
        _need(len(body) == length, marker in (*_FRAMES, *_TABLES, _EXIF, _SCAN, _RESTARTS))
        if marker in _FRAMES:
            _need(size == (0, 0))
            size = (body[3] << 8 | body[4], body[1] << 8 | body[2])
            if not judged:
                return Inspection(size)
            progressive = marker == 0xC2
            head, body = (b"\xff\xc0" if progressive else head[:2]) + head[2:], body[:1] + b"\0\x08\0\x10" + body[5:]
        if marker == _SCAN and progressive:
            _need(body[-3:-1] == b"\0\0", body[-1] <= 13, not any(tables & 15 for tables in body[2:-3:2]))
            tiny, body = tiny + _END_OF_BLOCK, body[:-3] + b"\0\x3f\0"
        _need(marker != _RESTARTS or length == 2)
        tiny += b"" if marker == _RESTARTS else head + body  # the small image has no restarts
    _need(0 < size[0] <= MAX_JPEG_SIDE, 0 < size[1] <= MAX_JPEG_SIDE)
    return Inspection(size[::-1] if _is_turned(bytes(tiny) + bytes(_MOST_SCAN)) else size)


@lru_cache
def _tiny_data(bits: int) -> bytes:
    """Return the IDAT chunk of a black PNG of 16 x 8 pixels with so many bits a pixel."""
    body = b"IDAT" + zlib.compress(bytes(8 * (1 + 2 * bits)))
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _read_png(file: BinaryIO, length: int) -> Inspection:
    """Read all chunks of a PNG file, the checksums of which are right, and show OpenCV those beside the pixels."""
    place, name, last, tiny, data, begun = 8, b"", b"", bytearray(PNG), 0, b""
    width = height = depth = bits = 0
    file.seek(place)
    while name != b"IEND":
        head = file.read(8)
        last, (size, name) = name, struct.unpack(">I4s", head)
        place += 12 + size
        _need(place <= length)
        body = file.read(size + 4)
        _need(zlib.crc32(memoryview(body)[:size], zlib.crc32(name)) == int.from_bytes(body[size:], "big"))
        if name == b"IHDR":
            width, height, depth, colour, *ways = struct.unpack(">IIBBBBB", body[:-4])
            bits = depth * PNG_CHANNELS[colour]
            _need(not any(ways))  # there is one way to compress and to filter, and what is interlaced is decoded
            chunk = b"IHDR" + struct.pack(">II", 16, 8) + body[8:-4]
            tiny += head[:4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        elif name == b"IDAT":
            if not data:
                begun = body[:2]
                tiny += _tiny_data(bits)
            _need(not data or last == name, size > 2)
            data += size
        else:
            _need(name not in (b"acTL", b"fcTL", b"fdAT"))  # of animations
            if name[0] < 97 or name in (b"tRNS", b"eXIf"):  # a small letter: may be left out
                tiny += head + body
    _need(0 < width <= MAX_PNG_SIDE, 0 < height <= MAX_PNG_SIDE)
    _need(begun[0] & 15 == 8, int.from_bytes(begun, "big") % 31 == 0)
    _need(data * MAX_DEFLATE >= height * (1 + -(-width * bits // 8)))
    return Inspection((height, width) if _is_turned(bytes(tiny)) else (width, height), depth == 16)


def png_chunks(content: bytes | memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, place of the content, its length as claimed) of the chunks of a PNG file, as far as it goes."""
    place = len(PNG)
    while place + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, place)
        yield name, place + 8, length
        place += 12 + length


def plain_header(file: BinaryIO, length: int) -> Inspection | None:
    """Return what a file of this length is where it is plain, else None; a JPEG must also end as it should."""
    file.seek(0)
    kind = kind_of(file.read(16))
    try:
        if kind == "PNG":
            return _read_png(file, length)
        if kind != "JPEG":
            return None
        found = read_jpeg(file)
        file.seek(-2, os.SEEK_END)
        return found if file.read(2) == b"\xff\xd9" else None
    except (_NotPlainError, LookupError, struct.error, cv2.error):
        return None


def webp_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return (width, height) that a WebP file's header claims, None for what is no WebP file.

    Pillow makes room for a whole WebP image as soon as it is opened, so this is asked beforehand.
    """
    if len(data) < 30 or kind_of(data) != "WebP":
        return None
    kind = bytes(data[12:16])
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def tiff_numbers(content: bytes | memoryview) -> tuple[dict[int, int], bool]:
    """Return the largest number of each short tag of a TIFF's first image, and whether further images follow.

    Nothing and False for other files and damaged ones.
    """
    if kind_of(content) != "TIFF":
        return {}, False
    try:
        reader = TagReader(content, DecodingBudget(1 << 62, 1 << 62))
        tags = reader.tags(reader.first)
        further = reader.unpack(reader.pointer, reader.end) != (0,)
        whole = {tag: row for tag, row in tags.items() if row.kind in CODES and 0 < row.values <= _MAX_CHANNELS}
        found = {tag: max(reader.unpack(f"{row.values}{CODES[row.kind]}", row.place)) for tag, row in whole.items()}
        return found, further
    except ValueError:
        return {}, False


def depth_of(content: bytes | memoryview) -> Depth | None:
    """Return what a file says of its bits a channel; None where it has 8, or OpenCV makes them 8 as they are meant."""
    kind = kind_of(content)
    if kind == "PNG":  # its significant bits (sBIT), where it has 16 bits a channel
        if len(content) < 26 or content[24] != 16:
            return None
        head = bytes(content[:4096])
        place = head.find(b"sBIT", 33, max(head.find(b"IDAT"), 0))
        return Depth(max(head[place + 4 : place + 5]) if place > 0 else 0)
    if kind != "TIFF":
        return None if kind in _EIGHT_BITS else Depth(is_sure=False)
    tags = tiff_numbers(content)[0]
    bits, form = min(max(tags.get(_BITS, 1), 1), 64), tags.get(_FORMAT, 1)
    if bits <= 8 and form == 1:
        return None
    largest = max(tags.get(_LARGEST_SIGNED, 0), tags.get(_LARGEST, 0)) or (1 << bits) - 1
    return Depth(min(bits, largest.bit_length()), form != 1 or bits > 16)
