"""One picture: is it sound, how large is it, its pixels, scaled to fit. Files are only ever read."""

from __future__ import annotations

import io
import os
import struct
import threading
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from utils.files import MIB, file_size, printable, read_bytes

IMG_FORMATS = ("bmp", "dng", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp")
MIN_SIDE = 10  # pixels; v6.1 trains on nothing smaller
LARGE_PIXELS = 100_000_000  # above this a picture is kept, but said to be slow
MAX_PIXELS = 1 << 30  # OpenCV decodes nothing larger
MAX_BYTES = (1 << 31) - 1  # nor anything from a larger file
MAX_GROWTH = 25_000  # bytes of pixels for a byte of file, above LARGE_PIXELS: what an empty PNG of one bit a pixel has
MAX_MISSING = 16 * MIB  # of a file that is cut off, and may be decoded as far as it goes
EXIF_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"

# GIF and the like are not read, but called by their names; an MPO opens as a JPEG
_KNOWN = ("BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_pillow_limit = threading.Lock()


def decode_image(content: bytes | np.ndarray, name: str | Path) -> np.ndarray:
    """A picture file's bytes as (H, W, 3) uint8 BGR: grey, palette, RGBA and 16-bit ones too, EXIF orientation applied.

    Raises ValueError, with the name it is given, for what is no picture or a decompression bomb.
    """
    name = printable(name)
    if not len(content):
        raise ValueError(f"{name}: empty file; re-save or remove it")
    _refuse_bomb(content, name)
    _refuse_long_parts(content, name)
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ValueError(f"{name}: cannot be decoded ({error.err}); re-save or remove it") from error
    if image is None:
        raise ValueError(f"{name}: not a picture OpenCV can decode; re-save or remove it")
    return image


def read_image(path: str | Path, content: np.ndarray | None = None) -> np.ndarray:
    """`decode_image` for a file, or for its `content` (uint8) where that is known; raises ValueError naming the file.

    The bytes are read here, not by OpenCV, which cannot open every non-ASCII path.
    """
    try:
        content = read_bytes(path, MAX_BYTES) if content is None else content
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error}); check that the file exists"
        raise ValueError(f"{printable(path)}: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{printable(path)}: cannot be read, {error}; remove it") from error
    return decode_image(content, path)


def _refuse_bomb(content: bytes | np.ndarray, name: str) -> None:
    """Raise ValueError for a header that promises far more pixels than its file can hold."""
    try:
        width, height = _open_lazily(io.BytesIO(content)).size
    except Exception:  # noqa: BLE001 - whatever Pillow cannot make sense of, OpenCV judges
        return
    if _is_bomb(width, height, len(content)):
        raise ValueError(f"{name}: {_bomb(width, height, len(content))}; re-save or remove it")


def _refuse_long_parts(content: bytes | np.ndarray, name: str) -> None:
    """Raise ValueError for a PNG with a part that ends far beyond the file: OpenCV fills memory for all of it."""
    whole, place = memoryview(content), len(_PNG)
    if bytes(whole[:place]) != _PNG:
        return
    while place + 8 <= len(whole):
        (length,) = struct.unpack_from(">I", whole, place)
        if length > len(whole) + MAX_MISSING:
            raise ValueError(f"{name}: a part of {length:,} bytes in a file of {len(whole):,}; re-save or remove it")
        place += 12 + length


def _is_bomb(width: int, height: int, size: int) -> bool:
    return width * height > LARGE_PIXELS and 3 * width * height > MAX_GROWTH * size


def _bomb(width: int, height: int, size: int) -> str:
    return f"{width} x {height} pixels in {size:,} bytes: damaged, or made to fill the memory"


def fit_longest(image: np.ndarray, size: int, smooth: bool = True) -> np.ndarray:
    """Scale so that the longer side is `size`, the other truncated but at least 1 px.

    Enlarging, and shrinking with `smooth` (training), is bilinear; shrinking otherwise averages areas.
    """
    height, width = image.shape[:2]
    ratio = size / max(height, width)
    if ratio == 1:
        return image
    method = cv2.INTER_LINEAR if smooth or ratio > 1 else cv2.INTER_AREA
    return cv2.resize(image, fitted_size(width, height, size), interpolation=method)


def fitted_size(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) that `fit_longest` gives a picture of this size."""
    ratio = size / max(height, width)
    return max(int(width * ratio), 1), max(int(height * ratio), 1)


def _open_lazily(handle: BinaryIO) -> Image.Image:
    """Read only the header; Pillow's guess that a large picture is an attack is lifted for that moment."""
    handle.read(4096)  # fetched before the lock, so that threads wait for the disk side by side
    handle.seek(0)
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(handle, formats=_KNOWN)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_complete(picture: Image.Image, handle: BinaryIO) -> None:
    """Raise when data is missing: cheaply for PNG (checksums) and JPEG (end marker), by decoding for the rest."""
    if picture.format == "PNG":
        picture.verify()
        return
    if picture.format in ("JPEG", "MPO"):
        position = handle.tell()
        handle.seek(-2, os.SEEK_END)
        complete = handle.read(2) == b"\xff\xd9"
        handle.seek(position)
        if complete:
            return
    picture.load()


def picture_size(path: str | Path | BinaryIO) -> tuple[int, int]:
    """(width, height) of a sound picture (or open file) as it will be decoded, without decoding where that is possible.

    Raises ValueError, OSError or what the decoder raises when it is unreadable, truncated, or not one of our formats.
    """
    if isinstance(path, (str, Path)):
        file_size(path, MAX_BYTES)
    with open(path, "rb") if isinstance(path, (str, Path)) else path as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(0)
        picture = _open_lazily(handle)
        width, height = picture.size
        if str(picture.format).lower() not in IMG_FORMATS:
            raise ValueError(f"the file is really a {picture.format} picture")
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than OpenCV decodes")
        if _is_bomb(width, height, size):
            raise ValueError(_bomb(width, height, size))
        if min(width, height) < MIN_SIDE:
            raise ValueError(f"{width} x {height} pixels are too few, each side needs {MIN_SIDE}")
        _check_complete(picture, handle)
        width, height = picture.size  # again: decoding a TIFF turns it upright
        exif = picture.getexif() if picture.format != "PNG" or "exif" in picture.info else {}
        turned = exif.get(EXIF_ORIENTATION) in (5, 6, 7, 8)  # stored lying on its side
    return (height, width) if turned else (width, height)
