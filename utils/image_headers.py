"""What an image file says of itself, read without decoding it.

Whether an image can be used, and how large it is, is for OpenCV to say, which will decode it. To decode millions of
files only to check them would take hours, so the headers of ordinary JPEG and PNG files are read here: a file is
`plain` when nothing in its header could make OpenCV refuse it or turn it otherwise than is known. All others are
decoded.
"""

from __future__ import annotations

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
_BITS, _LARGEST, _FORMAT, _LARGEST_SIGNED = 258, 281, 339, 341  # tags of TIFF
_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}


class Header(NamedTuple):
    """Of a plain file: (width, height) as OpenCV will decode it, and whether it has more than 8 bits a channel."""

    size: tuple[int, int]
    deep: bool = False


class Depth(NamedTuple):
    """Of a file that may have more than 8 bits a channel: what it says of them."""

    bits: int = 0  # 0 where it does not say
    is_odd: bool = False  # with a sign, or floating
    is_sure: bool = True  # that there are more than 8


def kind_of(content: bytes | memoryview) -> str:
    """What a file is by its first 16 bytes, in the words people use; nothing for what is not known here."""
    start = bytes(content[:16])
    return next((kind for place, mark, kind in _KINDS if start.startswith(mark, place)), "")


# ---- what OpenCV makes of metadata -----------------------------------------------------------------------------------


@lru_cache
def _tiny(ending: str) -> bytes:
    """An image of 16 x 8 pixels."""
    return cv2.imencode(ending, np.zeros((8, 16, 3), np.uint8))[1].tobytes()


def _is_turned(before: bytes, ending: str, place: int) -> bool | None:
    """Whether OpenCV lays an image with this metadata on its side, by asking it; None where it refuses to decode."""
    whole = _tiny(ending)
    image = cv2.imdecode(np.frombuffer(whole[:place] + before + whole[place:], np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else image.shape[0] > image.shape[1]


# ---- JPEG ------------------------------------------------------------------------------------------------------------


@lru_cache(4096)
def _quantisers(body: bytes) -> frozenset[int] | None:
    """Numbers of the tables in a DQT segment; None where they are not whole."""
    found, place = set(), 0
    while place < len(body):
        wide, number = divmod(body[place], 16)
        place += 65 + 64 * wide
        if wide > 1 or number > 3 or place > len(body):
            return None
        found.add(number)
    return frozenset(found)


@lru_cache(4096)
def _codes(body: bytes) -> frozenset[int] | None:
    """Class (0, 16) plus number of the tables in a DHT segment; None where they are no sound Huffman codes."""
    found, place = set(), 0
    while place < len(body):
        counts = body[place + 1 : place + 17]
        values = body[place + 17 : place + 17 + sum(counts)]
        if len(counts) < 16 or len(values) < sum(counts) or body[place] & 0xEC or sum(counts) > 256:
            return None
        code, left = 0, len(values)
        for length, count in enumerate(counts, start=1):
            code, left = 2 * code + count, left - count
            if code >= 1 << length and (count or left):  # the code of ones alone is not to be used
                return None
        if body[place] < 16 and any(value > 15 for value in values):  # a difference of that many bits
            return None
        found.add(body[place])
        place += 17 + len(values)
    return frozenset(found)


def _frame(body: bytes) -> tuple[tuple[int, int], dict[int, int]] | None:
    """((width, height), quantiser of each channel) in a SOF segment of 8 bits and 1 or 3 channels, else None."""
    if len(body) < 6 or body[0] != 8 or body[5] not in (1, 3) or len(body) != 6 + 3 * body[5]:
        return None
    height, width = struct.unpack_from(">HH", body, 1)
    channels = {body[place]: body[place + 2] for place in range(6, len(body), 3)}
    factors = {divmod(body[place + 1], 16) for place in range(6, len(body), 3)}
    usual = all(high in (1, 2, 4) and low in (1, 2, 4) and high * low <= 4 for high, low in factors)
    fits = 0 < width <= MAX_JPEG_SIDE and 0 < height <= MAX_JPEG_SIDE
    return ((width, height), channels) if fits and usual and len(channels) == body[5] else None


def _begins_soundly(body: bytes, channels: dict[int, int], codes: set[int], progressive: bool) -> bool:
    """Whether a SOS segment fits the frame and the tables before it."""
    count = body[0] if body else 0
    if not 1 <= count <= len(channels) or len(body) != 4 + 2 * count:
        return False
    used = {body[place]: divmod(body[place + 1], 16) for place in range(1, 1 + 2 * count, 2)}
    first, last, shift = body[-3:]
    bands = first == 0 and ((last == 0 and shift < 14) if progressive else (last == 63 and shift == 0))
    needed = {dc for dc, _ in used.values()} | (set() if progressive else {16 + ac for _, ac in used.values()})
    return bands and len(used) == count and used.keys() <= channels.keys() and needed <= codes


def read_jpeg(file: BinaryIO) -> Header | None:
    """The header of a JPEG file up to its first scan; None where it is not plain."""
    quantisers, codes, metadata, frame = set(), set(), b"", None
    progressive = False
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        marker, length = head[1], (head[2] << 8 | head[3]) - 2
        if marker == 0xFE or (0xE0 <= marker <= 0xEF and marker != 0xE1):  # a comment, or what programs note down
            if length < 0:
                return None
            file.seek(length, 1)
            continue
        body = file.read(max(length, 0))
        if len(body) != length:
            return None
        if marker == 0xE1:
            metadata += head + body
        elif marker == 0xDB and (tables := _quantisers(body)) is not None:
            quantisers |= tables
        elif marker == 0xC4 and (tables := _codes(body)) is not None:
            codes |= tables
        elif marker in (0xC0, 0xC1, 0xC2) and frame is None and (frame := _frame(body)) is not None:
            progressive = marker == 0xC2
        elif marker == 0xDA and frame is not None:
            sound = _begins_soundly(body, frame[1], codes, progressive) and set(frame[1].values()) <= quantisers
            return _as_decoded(frame[0], metadata, ".jpg", 2) if sound else None
        elif marker != 0xDD or length != 2:
            return None
    return None


def _as_decoded(size: tuple[int, int], metadata: bytes, ending: str, place: int, deep: bool = False) -> Header | None:
    """The size after OpenCV turned the image as its metadata say; None where it cannot read them."""
    turned = _is_turned(metadata, ending, place) if metadata else False
    return None if turned is None else Header(size[::-1] if turned else size, deep)


def ends(file: BinaryIO) -> bool:
    """Whether a JPEG file's last bytes are its end marker."""
    file.seek(-2, 2)
    return file.read(2) == b"\xff\xd9"


# ---- PNG -------------------------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """What an IHDR part says."""

    size: tuple[int, int]
    bits: int
    palette: bool
    bytes: int  # of all rows, decompressed


def _rows(body: bytes) -> _Rows | None:
    """The content of an IHDR part; None for what is not usual."""
    if len(body) != 13:
        return None
    width, height, bits, colour, *ways = struct.unpack(">IIBBBBB", body)
    fits = 0 < width <= MAX_PNG_SIDE and 0 < height <= MAX_PNG_SIDE
    if not fits or bits not in _PNG_DEPTHS.get(colour, ()) or any(ways):  # one way to compress and filter; interlaced
        return None
    return _Rows((width, height), bits, colour == 3, height * (1 + -(-width * bits * _PNG_CHANNELS[colour] // 8)))


def _parts(file: BinaryIO, length: int) -> Iterator[tuple[bytes, bytes]]:
    """(name, content with checksum) of each part of a PNG file up to its end, or to the first that is not whole."""
    place, name = 8, b""
    file.seek(place)
    while place + 12 <= length and name != b"IEND":
        size, name = struct.unpack(">I4s", file.read(8))
        if size > length - place - 12:
            return
        body = file.read(size + 4)
        if zlib.crc32(memoryview(body)[:size], zlib.crc32(name)) != int.from_bytes(body[size:], "big"):
            return
        yield name, body
        place += 12 + size


def read_png(file: BinaryIO, length: int) -> Header | None:
    """The parts of a PNG file of this length, each held against its checksum; None where it is not plain."""
    rows, names, data, metadata, begun = None, [b""], 0, b"", b""
    for name, body in _parts(file, length):
        if name != b"IDAT" or names[-1] != name:  # the data are in many parts, one after the other
            names.append(name)
        if name == b"IDAT":
            begun = begun or body[:-4][:2]
            data += len(body) - 4
        elif name == b"IHDR":
            rows = _rows(body[:-4])
        elif name == b"PLTE" and not (len(body) % 3 == 1 and 7 <= len(body) <= 772):  # red, green, blue; a checksum
            return None
        elif name == b"eXIf":
            metadata += struct.pack(">I", len(body) - 4) + name + body
    if not rows or not _PNG_ORDER.fullmatch(b" ".join(names)) or data * MAX_DEFLATE < rows.bytes:
        return None
    compressed = len(begun) == 2 and begun[0] & 15 == 8 and int.from_bytes(begun, "big") % 31 == 0
    if not compressed or (rows.palette and b"PLTE" not in names):
        return None
    return _as_decoded(rows.size, metadata, ".png", 33, rows.bits == 16)


def _png_depth(content: memoryview) -> Depth | None:
    """Of a PNG: its significant bits (sBIT), where it has 16 bits a channel."""
    if len(content) < 26 or content[24] != 16:
        return None
    head = bytes(content[:4096])
    place = head.find(b"sBIT", 33, max(head.find(b"IDAT"), 0))
    return Depth(max(head[place + 4 : place + 5]) if place > 0 else 0)


# ---- TIFF, and the others --------------------------------------------------------------------------------------------


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
    bits, form = tags.get(_BITS, 1), tags.get(_FORMAT, 1)
    if bits <= 8 and form == 1:
        return None
    largest = tags.get(_LARGEST_SIGNED) or tags.get(_LARGEST) or (1 << bits) - 1
    return Depth(min(bits, largest.bit_length()), form != 1 or bits > 16)
