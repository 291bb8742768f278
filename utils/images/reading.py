"""One image: is it sound, how large is it, its pixels, scaled to fit. Files are only ever read.

OpenCV alone decides: `inspect_image` says of a file what `read_image` will make of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from utils.base.files import MIB, file_size, printable, read_bytes
from utils.images.image_headers import (
    HEIGHT,
    WIDTH,
    Depth,
    Inspection,
    depth_of,
    kind_of,
    plain_header,
    png_chunks,
    read_jpeg,
    tiff_numbers,
    webp_size,
)

DECODER = f"OpenCV {cv2.__version__}, scaling 3"  # what sizes and pixels that are kept depend on
_AVIF = ("avif",) if cv2.haveImageWriter(".avif") else ()  # OpenCV has both halves of it, or none
IMG_FORMATS = (*_AVIF, "bmp", "dng", "jfif", "jp2", "jpe", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp")
MIN_SIDE = 10  # pixels; v6.1 trains on nothing smaller
LARGE_PIXELS = 100_000_000  # above this an image is kept, with a note that it is slow
MAX_PIXELS = 1 << 30  # OpenCV decodes nothing larger
MAX_BYTES = (1 << 31) - 1  # nor anything from a larger file
MAX_GROWTH = 25_000  # bytes of pixels for a byte of file, above LARGE_PIXELS: what an empty PNG of one bit a pixel has
MAX_MISSING = 16 * MIB  # of a file that is cut off, and may be decoded as far as it goes
DIM = 64  # of 255: a deep image no brighter than this may use a part of its bits only
USUAL_BITS = (8, 10, 12, 14, 16)  # of cameras

# what is not decoded here is measured all the same; an MPO opens as a JPEG
_KNOWN = ("BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF")
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_pillow_limit = threading.Lock()


def decode_image(content: bytes | np.ndarray, name: str | Path) -> np.ndarray:
    """Return an image file's bytes as (H, W, 3) uint8 BGR: grey, palette and RGBA too, EXIF orientation applied.

    More than 8 bits a channel are scaled to 8, see `to_eight_bits`. Raises ValueError, with the name it is given, for
    what OpenCV does not decode or a decompression bomb.
    """
    try:
        return _decode(content if isinstance(content, bytes) else content.data)[0]
    except ValueError as error:
        raise ValueError(f"{printable(name)}: {error}") from error


def _decode(content: bytes | memoryview) -> tuple[np.ndarray, bool]:
    """`decode_image`, and whether the image has more than 8 bits a channel; ValueErrors do not name it."""
    _refuse_bombs(content)
    kind, depth = kind_of(content), depth_of(content)
    try:
        with quiet_decoder() if depth and depth.is_odd else contextlib.nullcontext():  # it reports each way that fails
            image, is_deep = _pixels(np.frombuffer(content, dtype=np.uint8), depth)
    except cv2.error as error:
        raise ValueError(f"cannot be decoded ({error.err}); re-save or remove it") from error
    if image is not None:
        return turned_avif(image, content) if kind == "AVIF" else image, is_deep
    if not kind:
        raise ValueError("its content is no image, whatever its name says; re-save or remove it")
    if kind in _ENDS and _ENDS[kind] not in bytes(content[-4096:]):
        raise ValueError("the file is cut off; re-save or remove it")
    raise ValueError(f"OpenCV decodes no such {kind} file, or it is damaged; save it as .jpg or .png, or remove it")


def _pixels(data: np.ndarray, depth: Depth | None) -> tuple[np.ndarray | None, bool]:
    """Return (H, W, 3) uint8 BGR, None where OpenCV decodes nothing; and whether it was scaled to 8 bits."""
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if depth is None:
        return image, False
    if image is not None and not depth.is_odd and image.max() >= DIM:
        return image, depth.is_sure  # OpenCV took the upper 8 bits
    deep = cv2.imdecode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if deep is None:  # so it is with a single channel of numbers with a point
        deep = cv2.imdecode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    if deep is None or deep.dtype == np.uint8:
        return image, False
    grey_or_colour = np.atleast_3d(to_eight_bits(deep, depth.bits))
    return np.ascontiguousarray(np.broadcast_to(grey_or_colour, (*deep.shape[:2], 3))), True


def turned_avif(image: np.ndarray, content: bytes | memoryview) -> np.ndarray:
    """Turn and mirror a decoded AVIF image as its file says, which OpenCV leaves to others."""
    inside = [part for kind, part in _boxes(memoryview(content)) if kind == b"meta"]
    for name, skipped in ((b"iprp", 4), (b"ipco", 0)):
        inside = [part for outer in inside for kind, part in _boxes(outer[skipped:]) if kind == name]
    found = {kind: part[0] for outer in reversed(inside) for kind, part in _boxes(outer) if len(part)}
    image = np.rot90(image, found.get(b"irot", 0) & 3)  # anticlockwise, before the mirror
    if b"imir" in found:
        image = np.flip(image, found[b"imir"] & 1)  # 0: upside down, 1: left to right
    return np.ascontiguousarray(image)


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (kind, content) of the boxes of an ISO media file, as far as they are sound."""
    place = 0
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        length = length or len(content) - place  # 0: the rest of the file
        if length < 8:  # longer than 4 GiB, or damaged
            return
        yield kind, content[place + 8 : place + length]
        place += length


def to_eight_bits(image: np.ndarray, bits: int = 0) -> np.ndarray:
    """Return an image of any numbers as uint8.

    Of 16 bits without a sign the 8 that matter are taken: the upper ones of the declared `bits`, or, where none are
    declared or a value exceeds them, of the fewest that a camera has and the brightest value needs. All other numbers
    are scaled from their own range, what is not finite counting as its lower end.
    """
    if image.dtype == np.uint16:
        top = int(image.max(initial=0))
        if not (8 <= bits < 16 and top < 1 << bits):
            bits = next(usual for usual in USUAL_BITS if top < 1 << usual)
        return (image >> (bits - 8)).astype(np.uint8)
    finite = np.isfinite(image)
    values = image[finite].astype(np.float64)
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    scaled = (np.where(finite, image, low).astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
    return scaled.round().astype(np.uint8)


def read_image(path: str | Path) -> np.ndarray:
    """Return what `decode_image` makes of a file; ValueError names it.

    The bytes are read here, not by OpenCV, which cannot open every non-ASCII path.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error}); check that the file exists"
        raise ValueError(f"{printable(path)}: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{printable(path)}: cannot be read, {error}; name an image file instead") from error
    return decode_image(content, path)


def _check_growth(width: int, height: int, length: int) -> None:
    """Raise ValueError for a size of far more pixels than a file of this length can hold, or OpenCV decodes."""
    pixels = f"{width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise ValueError(f"{pixels} are more than OpenCV decodes; cut it into tiles")
    if width * height > LARGE_PIXELS and 3 * width * height > MAX_GROWTH * length:
        raise ValueError(f"{pixels} in {length:,} bytes: damaged, or made to fill the memory; re-save or remove it")


def _refuse_bombs(content: bytes | memoryview) -> None:
    """Raise ValueError for no content, for more pixels than it can hold, and for a PNG's part far beyond its end.

    OpenCV fills memory for all of such a part.
    """
    if not len(content):
        raise ValueError("empty file; re-save or remove it")
    try:
        size = _stored_size(content)
    except Exception:  # readers of damaged headers raise nearly anything, and OpenCV will judge the file
        size = (0, 0)
    _check_growth(*size, len(content))
    for _, _, length in png_chunks(content) if kind_of(content) == "PNG" else ():
        if length > len(content) + MAX_MISSING:
            raise ValueError(f"a part of {length:,} bytes in a file of {len(content):,}; re-save or remove it")


def _stored_size(content: bytes | memoryview) -> tuple[int, int]:
    """Return (width, height) in a file's header; where there is none, it raises whatever the reader raises."""
    kind, file = kind_of(content), io.BytesIO(content)
    if kind == "PNG":
        return struct.unpack_from(">II", content, 16)
    if kind == "TIFF":
        tags = tiff_numbers(content)[0]
        return tags[WIDTH], tags[HEIGHT]
    if kind == "JPEG":
        with contextlib.suppress(Exception):  # unusual ones are for Pillow
            return read_jpeg(file, judged=False).size
    if (size := webp_size(content)) is not None:
        return size
    with _pillow_limit:  # Pillow's guess that a large image is an attack is lifted for that moment
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_KNOWN).size
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def inspect_image(path: str | Path | BinaryIO) -> Inspection:
    """Return what `read_image` will make of a file (or open file), without decoding it where that is certain.

    Raises ValueError, without the name, or OSError when it cannot be read, is cut off, or is not decoded by OpenCV.
    """
    if isinstance(path, (str, Path)):
        file_size(path, MAX_BYTES)
    with open(path, "rb") if isinstance(path, (str, Path)) else path as file:
        length = file.seek(0, os.SEEK_END)
        if (found := plain_header(file, length)) is not None:
            _check_growth(*found.size, length)
        else:
            file.seek(0)
            content = file.read()
            if kind_of(content) == "JPEG" and content.rfind(b"\xff\xd9") < content.find(b"\xff\xda"):
                raise ValueError("the file is cut off; re-save or remove it")  # some OpenCV would fill it with grey
            image, is_deep = _decode(content)
            found = Inspection((image.shape[1], image.shape[0]), is_deep, tiff_numbers(content)[1])
    if min(found.size) < MIN_SIDE:
        raise ValueError(f"{found.size[0]} x {found.size[1]} pixels are too few, each side needs {MIN_SIDE}")
    return found


def picture_size(path: str | Path | BinaryIO) -> tuple[int, int]:
    """Return `inspect_image(path).size`: the name that programs know from before modules had rooms."""
    return inspect_image(path).size


@contextlib.contextmanager
def quiet_decoder() -> Iterator[None]:
    """Keep OpenCV from writing lines of its own about damaged files, which are named by us."""
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # of OpenCV 4 and 5
    level = set_level(0)
    try:
        yield
    finally:
        set_level(level)
