"""What decoding a file by Pillow would take, from its headers alone: for JPEG, PNG, WebP, BMP, GIF and TIFF.

Nothing is decoded here, and no reading takes more than a fraction of a second.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from utils.images.decoding_jpeg import count_jpeg
from utils.images.decoding_limits import PART_WORK, ROW_WORK, DecodingBudget, count_exif
from utils.images.decoding_tiff import count_tiff
from utils.images.image_headers import PNG, kind_of, webp_size

PLAIN_WORK = 14  # for each pixel, whatever the format: conversion to RGB, turning upright, copies
PLAIN_MEMORY = 20  # bytes for each pixel, at most, once it is decoded

# ---- PNG
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
_TEXT_WORK = 2_500_000  # a compressed chunk, of which Pillow unpacks a megabyte


def _count_png(data: bytes, budget: DecodingBudget) -> None:
    place = len(PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if (kind == b"IHDR") != (place == len(PNG)):
            raise ValueError("its header is not the first part, or not the only one")
        budget.part(PART_WORK, "chunks")
        if kind == b"IHDR":
            width, height, depth, colours, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, place + 8)
            budget.image(width, height)
            sample_bytes = max(_CHANNELS.get(colours, 4) * depth / 8, 1)
            budget.spend("its size", int(width * height * (3 * sample_bytes + 4 * bool(interlaced))))
            budget.spend(f"{height:,} rows", height * ROW_WORK * (1 + bool(interlaced)))
        elif kind in (b"iCCP", b"zTXt", b"iTXt"):
            budget.spend("compressed texts and profiles", _TEXT_WORK)
        elif kind == b"eXIf":
            count_exif(data[place + 8 : place + 8 + length], budget)
        elif kind == b"IEND":
            break
        place += 12 + length


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


# ---- all of them
_COUNTERS: dict[str, Callable[[bytes, DecodingBudget], object]] = {
    "JPEG": count_jpeg,
    "PNG": _count_png,
    "WebP": _count_webp,
    "BMP": _count_bmp,
    "GIF": _count_gif,
    "TIFF": count_tiff,
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
