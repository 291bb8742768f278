"""What decoding a file by Pillow would take, from its headers alone: for JPEG, PNG, WebP, BMP, GIF and TIFF.

Nothing is decoded here, and no reading takes more than a fraction of a second.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from utils.images.decoding_jpeg import count_jpeg
from utils.images.decoding_limits import PART_WORK, ROW_WORK, CostTally, count_exif
from utils.images.decoding_tiff import count_tiff

PLAIN_WORK = 14  # for each pixel, whatever the format: conversion to RGB, turning upright, copies
PLAIN_MEMORY = 20  # bytes for each pixel, at most, once it is decoded

# ---- PNG
_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
_TEXT_WORK = 2_500_000  # a compressed chunk, of which Pillow unpacks a megabyte


def _count_png(data: bytes, tally: CostTally) -> None:
    place = len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if (kind == b"IHDR") != (place == len(_PNG)):
            raise ValueError("its header is not the first part, or not the only one")
        tally.part(PART_WORK, "chunks")
        if kind == b"IHDR":
            _count_png_header(data[place + 8 : place + 21], tally)
        elif kind in (b"iCCP", b"zTXt", b"iTXt"):
            tally.spend(_TEXT_WORK, "compressed texts and profiles")
        elif kind == b"eXIf":
            count_exif(data[place + 8 : place + 8 + length], tally)
        elif kind == b"IEND":
            break
        place += 12 + length


def _count_png_header(header: bytes, tally: CostTally) -> None:
    if len(header) < 13:
        raise ValueError("its header is cut off")
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    tally.image(width, height)
    sample_bytes = max(_CHANNELS.get(colours, 4) * depth / 8, 1)
    tally.spend(int(width * height * (3 * sample_bytes + 4 * bool(interlaced))), "its size")
    tally.spend(height * ROW_WORK * (1 + bool(interlaced)), f"{height:,} rows")


# ---- GIF
_GIF = (b"GIF87a", b"GIF89a")
_BLOCK_WORK, _SKIP_WORK = 400, 100


def _count_gif(data: bytes, tally: CostTally) -> None:
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
_GROUP_WORK = 5_000
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


def _count_webp(data: bytes, tally: CostTally) -> None:
    size = webp_size(data)
    if size is None:
        raise ValueError("its header is cut off")
    width, height = size
    tally.image(width, height)
    tally.spend(30 * width * height, "its size")
    tally.hold(4 * width * height, "its size")  # libwebp keeps two canvases beside the image
    if b"VP8L" in data or b"ALPH" in data:
        groups = min(1 << 16, -(-width // 4) * -(-height // 4), len(data) * 8 // 20)
        tally.concede(groups * _GROUP_BYTES)  # how many there really are is known only in decoding
        tally.spend(groups * _GROUP_WORK, "its codes")
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        tally.part(PART_WORK, "chunks")
        if kind == b"EXIF":
            count_exif(data[place + 8 : place + 8 + length], tally)
        place += 8 + length + length % 2


# ---- BMP
_RLE_PIXEL_WORK, _RLE_BYTE_WORK = 150, 300  # Pillow unpacks these in Python, and other threads wait for it


def _count_bmp(data: bytes, tally: CostTally) -> None:
    (head,) = struct.unpack_from("<I", data, 14)
    if head == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)
    tally.image(width, height)
    tally.spend(width * height * max(bits // 8, 2) + height * ROW_WORK, "its size")
    if compression in (1, 2):
        tally.spend(_RLE_PIXEL_WORK * width * height + _RLE_BYTE_WORK * len(data), "run-length coded, and its size")
        tally.hold(256 * width, "run-length coded, and its width")  # older versions of Pillow skip rows by filling them


# ---- all of them
_COUNTERS: dict[str, Callable[[bytes, CostTally], object]] = {
    "JPEG": count_jpeg,
    "PNG": _count_png,
    "WebP": _count_webp,
    "BMP": _count_bmp,
    "GIF": _count_gif,
    "TIFF": count_tiff,
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


def count_cost(data: bytes, tally: CostTally) -> str | None:
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
    tally.spend(PLAIN_WORK * width * height + ROW_WORK * height, "its size")
    tally.hold(PLAIN_MEMORY * width * height + ROW_WORK * height, "its size")
    return kind
