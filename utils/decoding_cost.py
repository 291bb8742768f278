"""What decoding a file by Pillow would take, from its headers alone: for JPEG, PNG, WebP, BMP, GIF and TIFF.

The work is counted in pixel passes of about a nanosecond, as measured on an AMD EPYC; each constant is what the slowest
file of its kind took, rounded up. Nothing is decoded here, and no reading takes more than a fraction of a second.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from utils.decoding_limits import EXIF_HEAD, Tag, TagReader, Tally, TooCostly, Unbounded, count_exif, count_linked

PLAIN_WORK = 14  # for each pixel, whatever the format: conversion to RGB, turning upright, copies
PLAIN_MEMORY = 20  # bytes for each pixel, at most, once it is decoded
MOST_SCANS = 100  # of a JPEG; progressive ones have about ten
_ROW_WORK, _PART_WORK, _SCAN_WORK, _STRIP_WORK = 40, 2_000, 5_000, 20_000

# ---- JPEG
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # markers with a length: no padding, no restart
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
_JUNK_WORK = 200  # a byte between the segments of a JPEG's head


@dataclass(frozen=True, slots=True)
class _Frame:
    """A JPEG's size in pixels, and its components' sampling factors (across, down) by their number."""

    width: int
    height: int
    sampling: dict[int, tuple[int, int]]

    @classmethod
    def read(cls, part: bytes) -> _Frame:
        """From the content of a frame's header; ValueError for one that means nothing."""
        if len(part) < 6 or len(part) < 6 + 3 * part[5]:
            raise ValueError("its frame header is cut off")
        height, width, count = struct.unpack_from(">HHB", part, 1)
        rows = [part[6 + 3 * i : 9 + 3 * i] for i in range(count)]
        sampling = {row[0]: (row[1] >> 4, row[1] & 15) for row in rows}
        sides = [side for pair in sampling.values() for side in pair]
        if len(sampling) != count or not count or not all(1 <= side <= 4 for side in sides):
            raise ValueError("its frame header has components that cannot be")
        return cls(width, height, sampling)

    def samples(self, numbers: list[int]) -> int:
        """How many samples a scan of these components goes through, whole blocks of 64."""
        across = max(pair[0] for pair in self.sampling.values())
        down = max(pair[1] for pair in self.sampling.values())
        pairs = [self.sampling[number] for number in numbers if number in self.sampling]
        if len(pairs) == 1:
            wide, tall = -(-self.width * pairs[0][0] // across), -(-self.height * pairs[0][1] // down)
            return 64 * -(-wide // 8) * -(-tall // 8)
        units = -(-self.width // (8 * across)) * -(-self.height // (8 * down))
        return 64 * units * sum(wide * tall for wide, tall in pairs)


def _count_jpeg(data: bytes, tally: Tally, place: int = 2, end: int | None = None) -> _Frame | None:
    """Count a JPEG's scans, segments and EXIF, of the file or of the part from `place` to `end`; its frame, if any."""
    end = len(data) if end is None else min(end, len(data))
    frame, scans, exif = None, 0, []
    while found := _MARKER.search(data, place, end):
        kind = data[found.start() + 1]
        tally.part(_PART_WORK, "segments")
        if not scans:
            tally.spend(_JUNK_WORK * (found.start() - place), "bytes between its segments")
        if kind == _END:
            break
        place = found.end() + max(int.from_bytes(data[found.end() : found.end() + 2], "big"), 2)
        part = data[found.end() + 2 : place]
        if kind in _FRAMES and kind not in _HUFFMAN_FRAMES:
            raise Unbounded("is an arithmetic-coded or lossless JPEG: save it as a usual one")
        if kind == _START or (kind in _FRAMES and frame is not None):
            raise ValueError("it begins twice")
        if kind in _FRAMES:
            frame = _Frame.read(part)
            tally.image(frame.width, frame.height)
            tally.spend(2 * frame.samples([*frame.sampling]), "its size")
        elif kind == _SCAN:
            if frame is None:
                raise ValueError("a scan comes before its size")
            scans += 1
            _count_scan(frame, part, scans, tally)
        elif kind == 0xE1 and part.startswith(EXIF_HEAD):
            exif.append(part[len(EXIF_HEAD) :])
        elif kind == 0xE2 and part.startswith(b"MPF\x00"):
            count_exif(part[4:], tally)
    count_exif(b"".join(exif), tally)
    return frame


def _count_scan(frame: _Frame, part: bytes, scans: int, tally: Tally) -> None:
    if scans > MOST_SCANS:
        raise TooCostly(f"more than {MOST_SCANS} scans")
    numbers = [part[1 + 2 * i] for i in range(part[0]) if 1 + 2 * i < len(part)] if part else []
    samples = frame.samples(numbers)
    tally.spend(_SCAN_WORK + 2 * samples, f"{scans} scans of {frame.width} x {frame.height} pixels")


# ---- PNG
_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
_TEXT_WORK = 2_500_000  # a compressed chunk, of which Pillow unpacks a megabyte


def _count_png(data: bytes, tally: Tally) -> None:
    place = len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if (kind == b"IHDR") != (place == len(_PNG)):
            raise ValueError("its header is not the first part, or not the only one")
        tally.part(_PART_WORK, "chunks")
        if kind == b"IHDR":
            _count_png_header(data[place + 8 : place + 21], tally)
        elif kind in (b"iCCP", b"zTXt", b"iTXt"):
            tally.spend(_TEXT_WORK, "compressed texts and profiles")
        elif kind == b"eXIf":
            count_exif(data[place + 8 : place + 8 + length], tally)
        elif kind == b"IEND":
            break
        place += 12 + length


def _count_png_header(header: bytes, tally: Tally) -> None:
    if len(header) < 13:
        raise ValueError("its header is cut off")
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    tally.image(width, height)
    sample_bytes = max(_CHANNELS.get(colours, 4) * depth / 8, 1)
    tally.spend(int(width * height * (3 * sample_bytes + 4 * bool(interlaced))), "its size")
    tally.spend(height * _ROW_WORK * (1 + bool(interlaced)), f"{height:,} rows")


# ---- GIF
_GIF = (b"GIF87a", b"GIF89a")
_BLOCK_WORK, _SKIP_WORK = 400, 100


def _count_gif(data: bytes, tally: Tally) -> None:
    """Count what lies before the first frame, and that frame: no other is decoded."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while place < len(data) and data[place] not in b",;":
        extension = data[place] == 0x21
        tally.part(_BLOCK_WORK if extension else _SKIP_WORK, "parts before its first frame")
        place += 2 if extension else 1
        comment = 0
        while extension and place < len(data) and data[place]:
            comment += data[place]
            tally.part(_BLOCK_WORK + comment // 8, "blocks before its first frame")  # Pillow may copy what it has
            place += 1 + data[place]
        place += extension
    if data[place : place + 1] == b",":
        left, top, wide, tall = struct.unpack_from("<HHHH", data, place + 1)
        width, height = max(width, left + wide), max(height, top + tall)
        tally.spend(4 * wide * tall, "its first frame")
    tally.image(width, height)


# ---- WebP
_GROUP_BYTES = 8_192  # the tables of one group of Huffman codes; a lossless WebP of few bytes may have 65,536


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that a WebP file's header claims, None for what is no WebP file.

    Pillow makes room for a whole WebP image as soon as it is opened, so this is asked beforehand.
    """
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _count_webp(data: bytes, tally: Tally) -> None:
    size = webp_size(data)
    if size is None:
        raise ValueError("its header is cut off")
    width, height = size
    tally.image(width, height)
    tally.spend(30 * width * height, "its size")
    tally.hold(4 * width * height, "its size")  # libwebp keeps two canvases beside the image
    if b"VP8L" in data or b"ALPH" in data:
        groups = min(1 << 16, -(-width // 4) * -(-height // 4), len(data) * 8 // 20)
        tally.memory += groups * _GROUP_BYTES  # nothing to refuse: how many there are is known only in decoding
        tally.spend(groups * _SCAN_WORK, "its codes")
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        tally.part(_PART_WORK, "chunks")
        if kind == b"EXIF":
            count_exif(data[place + 8 : place + 8 + length], tally)
        place += 8 + length + length % 2


# ---- BMP
_RLE_PIXEL_WORK, _RLE_BYTE_WORK = 100, 200  # Pillow unpacks these in Python


def _count_bmp(data: bytes, tally: Tally) -> None:
    (head,) = struct.unpack_from("<I", data, 14)
    if head == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)
    tally.image(width, height)
    tally.spend(width * height * max(bits // 8, 2) + height * _ROW_WORK, "its size")
    if compression in (1, 2):
        tally.spend(_RLE_PIXEL_WORK * width * height + _RLE_BYTE_WORK * len(data), "run-length coded, and its size")
        tally.hold(256 * width, "run-length coded, and its width")  # older versions of Pillow skip rows by filling them


# ---- TIFF
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANES = 256, 257, 258, 259, 277, 278, 284
_STRIPS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 273, 279, 322, 323, 324, 325
_LAYOUT = (256, 257, 258, 259, 273, 277, 278, 279, 284, 322, 323, 324, 325)
_RAW, _TIFF_JPEG, _ZSTANDARD = 1, 7, 50000
_KINDS = {_RAW: 2, 2: 16, 3: 16, 4: 16, 5: 4, _TIFF_JPEG: 6, 8: 4, 32946: 4, 32773: 2, _ZSTANDARD: 4}  # -> work a byte
_WINDOW = 1 << 27  # bytes that Zstandard may look back


def _count_tiff(data: bytes, tally: Tally) -> None:
    reader = TagReader(data, tally)
    tags = reader.tags(reader.first)
    if doubled := reader.twice.intersection(_LAYOUT):
        raise ValueError(f"tag {min(doubled)} is there twice")
    width, height = reader.number(tags, _WIDTH, 0), reader.number(tags, _HEIGHT, 0)
    tally.image(width, height)
    kind = reader.number(tags, _COMPRESSION, _RAW)
    if kind not in _KINDS:
        raise Unbounded(f"is a TIFF of compression {kind}: save it with LZW or Deflate")
    if kind == _ZSTANDARD:
        tally.memory += _WINDOW
    _count_strips(reader, tags, kind, tally)
    count_linked(reader, tags)


def _count_strips(reader: TagReader, tags: dict[int, Tag], kind: int, tally: Tally) -> None:
    """Count strips or tiles: how many there are, what each unpacks to, and the bytes of the file that it reads."""
    width, height = tally.size
    tiled = any(tag in tags for tag in (_TILE_WIDTH, _TILE_HEIGHT, _TILES))
    if tiled and _STRIPS in tags:
        raise ValueError("it has both strips and tiles")
    wide = reader.number(tags, _TILE_WIDTH, 0) if tiled else width
    tall = reader.number(tags, _TILE_HEIGHT, 0) if tiled else min(reader.number(tags, _ROWS, height), height)
    if wide < 1 or tall < 1:
        raise ValueError("its tiles or strips have no size")
    samples, planes = reader.number(tags, _SAMPLES, 1), reader.number(tags, _PLANES, 1)
    row_bytes = -(-wide * (1 if planes == 2 else samples) * max((1, *reader.numbers(tags, _BITS))) // 8)
    places = reader.numbers(tags, _TILES if tiled else _STRIPS)
    count = max(len(places), -(-width // wide) * -(-height // tall) * (samples if planes == 2 else 1))
    what = f"{count:,} {'tiles' if tiled else 'strips'} of {wide:,} x {tall:,} pixels"
    tally.spend(count * (_STRIP_WORK + tall * (_ROW_WORK + row_bytes * _KINDS[kind])), what)
    tally.hold(2 * row_bytes * tall, what)
    sizes = reader.numbers(tags, _TILE_BYTES if tiled else _STRIP_BYTES)
    if kind != _RAW and len(sizes) < len(places) and len(places) > 1:
        raise ValueError("it does not say how long its strips are")
    total = sum(min(size, len(reader.data)) for size in sizes)
    if total > 2 * len(reader.data):
        raise TooCostly("strips or tiles that lie over each other")
    tally.spend(16 * total, "its strips")
    if kind == _TIFF_JPEG:
        strips = list(zip(places, sizes or [len(reader.data)], strict=False))
        _count_jpeg_strips(reader.data, strips, (wide, tall), tally)


def _count_jpeg_strips(data: bytes, strips: list[tuple[int, int]], most: tuple[int, int], tally: Tally) -> None:
    """Count the scans of each strip or tile; ValueError for one that is larger than it may be."""
    inner = Tally(tally.most_work, tally.most_memory, lambda width, height: None, tally.work, tally.memory)
    for place, size in strips:
        frame = _count_jpeg(data, inner, place + 2, place + size)
        if frame is not None and (frame.width > most[0] or frame.height > most[1]):
            raise ValueError("a strip or tile is larger than it should be")
    tally.spend(inner.work - tally.work, "its strips")


# ---- all of them
_COUNTERS: dict[str, Callable[[bytes, Tally], object]] = {
    "JPEG": _count_jpeg,
    "PNG": _count_png,
    "WebP": _count_webp,
    "BMP": _count_bmp,
    "GIF": _count_gif,
    "TIFF": _count_tiff,
}


def image_format(data: bytes) -> str | None:
    """The format that a file's first bytes tell, None where it is none of those that can be counted."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == _PNG:
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:6] in _GIF:
        return "GIF"
    if data[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return "TIFF"
    return "BMP" if data[:2] == b"BM" else None


def count_cost(data: bytes, tally: Tally) -> str | None:
    """Count in `tally` what decoding the file's first image takes; its format, None for one that is not known here.

    Raises TooCostly for more than the tally allows, Unbounded for what cannot be known beforehand, ValueError for
    damage, and whatever the tally's check raises.
    """
    kind = image_format(data)
    if kind is None:
        return None
    try:
        _COUNTERS[kind](data, tally)
    except struct.error:
        raise ValueError("its header is cut off") from None
    width, height = tally.size
    if not width:
        raise ValueError("it holds no image")
    tally.spend(PLAIN_WORK * width * height + _ROW_WORK * height, "its size")
    tally.hold(PLAIN_MEMORY * width * height + _ROW_WORK * height, "its size")
    return kind
