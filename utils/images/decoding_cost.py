"""What decoding a file by Pillow would take, from its headers alone: for JPEG, PNG, WebP, BMP, GIF and TIFF.

Nothing is decoded here, and no reading takes more than a fraction of a second.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from utils.images.decoding_limits import (
    EXIF_HEAD,
    PART_WORK,
    ROW_WORK,
    DecodingBudget,
    Tag,
    TagReader,
    TooCostly,
    Unbounded,
    count_exif,
    count_linked,
)
from utils.images.image_headers import PNG, PNG_CHANNELS, kind_of, png_chunks, webp_size

PLAIN_WORK = 14  # for each pixel, whatever the format: conversion to RGB, turning upright, copies
PLAIN_MEMORY = 20  # bytes for each pixel, at most, once it is decoded

# ---- JPEG
MOST_SCANS = 100  # progressive ones have about ten
_SCAN_WORK = 5_000  # beside that for its samples
_SAMPLE_WORK = 2  # of a scan; and once more for all, when they become pixels
_JUNK_WORK, _MOST_JUNK = 200, 1 << 20  # a byte between the segments of the head, which Pillow reads one by one
# Markers with a length: no padding, no restart. libjpeg, too, ends a scan at the first of them.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_START, _END, _SCAN, _APP1, _APP2 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)


class JpegFrame(NamedTuple):
    """A JPEG's size in pixels, and its components: number, and sampling factors across and down."""

    width: int
    height: int
    components: list[tuple[int, int, int]]

    @classmethod
    def read(cls, kind: int, part: bytes) -> JpegFrame:
        """Read the content of a frame's header with this marker; ValueError for one that means nothing."""
        if kind not in _HUFFMAN_FRAMES:
            raise Unbounded("is an arithmetic-coded or lossless JPEG: save it as a usual one")
        if len(part) < 6 or len(part) < 6 + 3 * part[5]:
            raise ValueError("its frame header is cut off")
        height, width, count = struct.unpack_from(">HHB", part, 1)
        components = [(part[i], part[i + 1] >> 4, part[i + 1] & 15) for i in range(6, 6 + 3 * count, 3)]
        if not count or not all(1 <= side <= 4 for _, *sides in components for side in sides):
            raise ValueError("its frame header has components that cannot be")
        return cls(width, height, components)

    def samples(self, numbers: Sequence[int] | None = None) -> int:
        """Return the samples, whole blocks of 64, in a scan of the components with these numbers; None: all."""
        most_across = max(across for _, across, _ in self.components)
        most_down = max(down for *_, down in self.components)
        left, chosen = list(self.components), []
        for number in [one for one, *_ in left] if numbers is None else numbers:
            found = next((one for one in left if one[0] == number), None)
            if found is not None:  # some programs give all components the same number
                left.remove(found)
                chosen.append(found)
        if len(chosen) == 1:
            _, across, down = chosen[0]
            wide, tall = -(-self.width * across // most_across), -(-self.height * down // most_down)
            return 64 * -(-wide // 8) * -(-tall // 8)
        units = -(-self.width // (8 * most_across)) * -(-self.height // (8 * most_down))
        return 64 * units * sum(across * down for _, across, down in chosen)


def _segments(data: bytes, budget: DecodingBudget, place: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) of each segment before the end marker, counted, and so is what lies between them."""
    junk, in_head = 0, True
    while (found := _MARKER.search(data, place, end)) and data[found.end() - 1] != _END:
        if in_head:
            junk += found.start() - place
            budget.spend("bytes between its segments", _JUNK_WORK * (found.start() - place))
        if junk > _MOST_JUNK:
            raise TooCostly(f"{junk:,} bytes between its segments")
        budget.part(PART_WORK, "segments")
        kind, start = data[found.end() - 1], found.end()
        place = start + max(int.from_bytes(data[start : start + 2], "big"), 2)
        in_head = in_head and kind != _SCAN
        yield kind, data[start + 2 : place]


def count_jpeg(data: bytes, budget: DecodingBudget, place: int = 2, end: int = sys.maxsize) -> JpegFrame | None:
    """Count scans, segments and EXIF of a JPEG file, or of one that ends at `end` and is read from `place`; its frame.

    Raises what `DecodingBudget` does, Unbounded for what libjpeg decodes at no known cost, and ValueError for damage.
    """
    frame, scans, exif = None, 0, bytearray()
    for kind, part in _segments(data, budget, place, min(end, len(data))):
        if kind in _FRAMES:
            if frame is not None:
                raise ValueError("it has two frames")
            frame = JpegFrame.read(kind, part)
            budget.image(frame.width, frame.height)
            budget.spend("its size", _SAMPLE_WORK * frame.samples())
        elif kind == _SCAN:
            scans += 1
            if frame is None:
                raise ValueError("a scan comes before its size")
            if scans > MOST_SCANS:
                raise TooCostly(f"more than {MOST_SCANS} scans")
            samples = frame.samples(part[1 : 1 + 2 * int.from_bytes(part[:1], "big") : 2])
            reason = f"{scans} scans of {frame.width} x {frame.height} pixels"
            budget.spend(reason, _SCAN_WORK + _SAMPLE_WORK * samples)
        elif kind == _START:
            raise ValueError("it begins twice")
        elif kind == _APP1 and part.startswith(EXIF_HEAD):
            exif += part[len(EXIF_HEAD) :]  # Pillow puts them together, too
        elif kind == _APP2:  # directories of several images; what else may be there is none
            count_exif(part.removeprefix(b"MPF\x00"), budget)
    count_exif(bytes(exif), budget)
    return frame


# ---- PNG
_TEXT_WORK = 2_500_000  # a compressed chunk, of which Pillow unpacks a megabyte


def _count_png(data: bytes, budget: DecodingBudget) -> None:
    for kind, place, length in png_chunks(data):
        if (kind == b"IHDR") != (place == len(PNG) + 8):
            raise ValueError("its header is not the first part, or not the only one")
        budget.part(PART_WORK, "chunks")
        if kind == b"IHDR":
            width, height, depth, colours, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, place)
            budget.image(width, height)
            sample_bytes = max(PNG_CHANNELS.get(colours, 4) * depth / 8, 1)
            budget.spend("its size", int(width * height * (3 * sample_bytes + 4 * bool(interlaced))))
            budget.spend(f"{height:,} rows", height * ROW_WORK * (1 + bool(interlaced)))
        elif kind in (b"iCCP", b"zTXt", b"iTXt"):
            budget.spend("compressed texts and profiles", _TEXT_WORK)
        elif kind == b"eXIf":
            count_exif(data[place : place + length], budget)
        elif kind == b"IEND":
            break


# ---- GIF
_BLOCK_WORK, _SKIP_WORK = 400, 100


def _count_gif(data: bytes, budget: DecodingBudget) -> None:
    """Count what lies before the first frame, and that frame: no other is decoded."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while place < len(data) and data[place] not in b",;":
        extension = data[place] == 0x21
        budget.part(_BLOCK_WORK if extension else _SKIP_WORK, "parts before its first frame")
        place += 2 if extension else 1
        comment = 0
        while extension and place < len(data) and data[place]:
            comment += data[place]
            budget.part(_BLOCK_WORK + comment // 8, "blocks before its first frame")  # Pillow may copy what it has
            place += 1 + data[place]
        place += extension
    if data[place : place + 1] == b",":
        left, top, wide, tall = struct.unpack_from("<HHHH", data, place + 1)
        width, height = max(width, left + wide), max(height, top + tall)
        budget.spend("its first frame", 4 * wide * tall)
    budget.image(width, height)


# ---- WebP
_GROUP_WORK = 5_000
_GROUP_BYTES = 8_192  # the tables of one group of Huffman codes; a lossless WebP of few bytes may have 65,536


def _count_webp(data: bytes, budget: DecodingBudget) -> None:
    size = webp_size(data)
    if size is None:
        raise ValueError("its header is cut off")
    width, height = size
    budget.image(width, height)
    budget.spend("its size", 30 * width * height, 4 * width * height)  # libwebp keeps two canvases beside the image
    if b"VP8L" in data or b"ALPH" in data:
        groups = min(1 << 16, -(-width // 4) * -(-height // 4), len(data) * 8 // 20)
        tables = groups * _GROUP_BYTES  # how many there really are is known only in decoding: no reason to refuse it
        budget.memory, budget.most_memory = budget.memory + tables, budget.most_memory + tables
        budget.spend("its codes", groups * _GROUP_WORK)
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        budget.part(PART_WORK, "chunks")
        if kind == b"EXIF":
            count_exif(data[place + 8 : place + 8 + length], budget)
        place += 8 + length + length % 2


# ---- BMP
_RLE_PIXEL_WORK, _RLE_BYTE_WORK = 150, 300  # Pillow unpacks these in Python, and other threads wait for it


def _count_bmp(data: bytes, budget: DecodingBudget) -> None:
    (head,) = struct.unpack_from("<I", data, 14)
    if head == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)
    budget.image(width, height)
    budget.spend("its size", width * height * max(bits // 8, 2) + height * ROW_WORK)
    if compression in (1, 2):
        work = _RLE_PIXEL_WORK * width * height + _RLE_BYTE_WORK * len(data)
        budget.spend("run-length coded, and its size", work, 256 * width)  # older Pillow skips rows by filling them


# ---- TIFF
_STRIP_WORK = 20_000  # beside that for its pixels
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANES = 256, 257, 258, 259, 277, 278, 284
_STRIPS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 273, 279, 322, 323, 324, 325
_LAYOUT = {256, 257, 258, 259, 273, 277, 278, 279, 284, 322, 323, 324, 325}
_RAW, _TIFF_JPEG, _ZSTANDARD = 1, 7, 50000
_KINDS = {_RAW: 2, 2: 16, 3: 16, 4: 16, 5: 4, _TIFF_JPEG: 6, 8: 4, 32946: 4, 32773: 2, _ZSTANDARD: 4}  # -> work a byte
_WINDOW = 1 << 27  # bytes that Zstandard may look back


def _pieces(reader: TagReader, tags: dict[int, Tag], width: int, height: int) -> tuple[str, int, int, int, int]:
    """Return "strips" or "tiles", their width and height, and the tags of their places and lengths.

    Raises ValueError for a layout that cannot be.
    """
    if tags.keys().isdisjoint((_TILE_WIDTH, _TILE_HEIGHT, _TILES)):
        name, wide, tall = "strips", width, min(reader.numbers(tags, _ROWS, (height,))[0], height)
    elif _STRIPS in tags:
        raise ValueError("it has both strips and tiles")
    else:
        name, (wide, tall) = "tiles", (reader.numbers(tags, tag, (0,))[0] for tag in (_TILE_WIDTH, _TILE_HEIGHT))
    if wide < 1 or tall < 1:
        raise ValueError("its strips or tiles have no size")
    return name, wide, tall, *((_STRIPS, _STRIP_BYTES) if name == "strips" else (_TILES, _TILE_BYTES))


def _count_tiff(data: bytes, budget: DecodingBudget) -> None:
    """Count the first image of a TIFF file: what each strip or tile unpacks to, and the bytes that it reads."""
    reader = TagReader(data, budget)
    tags = reader.tags(reader.first)
    if repeated := reader.repeated & _LAYOUT:
        raise ValueError(f"tag {min(repeated)} is there twice")
    (width, *_), (height, *_) = reader.numbers(tags, _WIDTH, (0,)), reader.numbers(tags, _HEIGHT, (0,))
    kind, samples = reader.numbers(tags, _COMPRESSION, (_RAW,))[0], reader.numbers(tags, _SAMPLES, (1,))[0]
    budget.image(width, height)
    if kind not in _KINDS:
        raise Unbounded(f"is a TIFF of compression {kind}: save it with LZW or Deflate")
    if kind == _ZSTANDARD:  # it may need that whatever the image, which is no reason to refuse it
        budget.memory, budget.most_memory = budget.memory + _WINDOW, budget.most_memory + _WINDOW
    name, wide, tall, at, lengths = _pieces(reader, tags, width, height)
    places, sizes = reader.numbers(tags, at), reader.numbers(tags, lengths)
    samples, planes = (1, samples) if reader.numbers(tags, _PLANES, (1,))[0] == 2 else (samples, 1)
    row_bytes = -(-wide * samples * max((1, *reader.numbers(tags, _BITS))) // 8)
    count = max(len(places), -(-width // wide) * -(-height // tall) * planes)
    work = _STRIP_WORK + tall * (ROW_WORK + row_bytes * _KINDS[kind])
    what = f"{count:,} {name} of {wide:,} x {tall:,} pixels"
    budget.spend(what, count * work, row_bytes * tall * (kind != _RAW))
    if kind != _RAW and len(places) > max(len(sizes), 1):
        raise ValueError(f"it does not say how long its {name} are")
    total = sum(min(size, len(data)) for size in sizes)
    if total > 2 * len(data):
        raise TooCostly(f"{name} that lie over each other")
    budget.spend(f"its {name}", 16 * total)
    if kind == _TIFF_JPEG:
        _count_jpegs(data, zip(places, sizes or [len(data)], strict=False), (wide, tall), budget)
    count_linked(reader, tags)


def _count_jpegs(data: bytes, pieces: Iterable[tuple[int, int]], size: tuple[int, int], budget: DecodingBudget) -> None:
    """Count the scans of strips or tiles at these places, of so many bytes; ValueError for one larger than `size`."""
    inner = DecodingBudget(budget.most_work, budget.most_memory, work=budget.work)
    for place, length in pieces:
        frame = count_jpeg(data, inner, place + 2, place + length)
        if frame is not None and (frame.width > size[0] or frame.height > size[1]):
            raise ValueError("one of its strips or tiles is larger than it should be")
    budget.spend("its scans", inner.work - budget.work)


# ---- all of them
_COUNTERS: dict[str, Callable[[bytes, DecodingBudget], object]] = {
    "JPEG": count_jpeg,
    "PNG": _count_png,
    "WebP": _count_webp,
    "BMP": _count_bmp,
    "GIF": _count_gif,
    "TIFF": _count_tiff,
}


def count_cost(data: bytes, budget: DecodingBudget) -> str | None:
    """Count in `budget` what decoding the file's first image takes; its format, None for one that is not known here.

    Raises TooCostly for more than the budget allows, Unbounded for what cannot be known beforehand, ValueError for
    damage, and whatever the budget's check raises.
    """
    kind = kind_of(data)
    if kind not in _COUNTERS:
        return None
    try:
        _COUNTERS[kind](data, budget)
    except struct.error:
        raise ValueError("its header is cut off") from None
    width, height = budget.size
    if not width:
        raise ValueError("it holds no image")
    rows = ROW_WORK * height
    budget.spend("its size", PLAIN_WORK * width * height + rows, PLAIN_MEMORY * width * height + rows)
    return kind
