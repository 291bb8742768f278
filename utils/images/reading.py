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
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image

from utils.base.files import MIB, file_size, printable, read_bytes
from utils.images.image_headers import PNG, Depth, depth_of, has_further_images, kind_of, plain_header, tiff_size

DECODER = f"OpenCV {cv2.__version__}, scaling 3"  # what sizes and pixels that are kept depend on
_AVIF = ("avif",) if cv2.haveImageWriter(".avif") else ()  # OpenCV has both halves of it, or none
IMG_FORMATS = (*_AVIF, "bmp", "dng", "jfif", "jp2", "jpe", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp")
MIN_SIDE = 10  # pixels; v6.1 trains on nothing smaller
LARGE_PIXELS = 100_000_000  # above this an image is kept, but said to be slow
MAX_PIXELS = 1 << 30  # OpenCV decodes nothing larger
MAX_BYTES = (1 << 31) - 1  # nor anything from a larger file
MAX_GROWTH = 25_000  # bytes of pixels for a byte of file, above LARGE_PIXELS: what an empty PNG of one bit a pixel has
MAX_MISSING = 16 * MIB  # of a file that is cut off, and may be decoded as far as it goes
DIM = 64  # of 255: a deep image no brighter than this may use a part of its bits only
USUAL_BITS = (8, 10, 12, 14, 16)  # of cameras

# what is not decoded here is measured all the same; an MPO opens as a JPEG
_KNOWN = ("BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF")
_pillow_limit = threading.Lock()


def decode_image(content: bytes | np.ndarray, name: str | Path) -> np.ndarray:
    """An image file's bytes as (H, W, 3) uint8 BGR: grey, palette and RGBA ones too, EXIF orientation applied.

    More than 8 bits a channel are scaled to 8, see `to_eight_bits`. Raises ValueError, with the name it is given, for
    what OpenCV does not decode or a decompression bomb.
    """
    try:
        return _decode(content)[0]
    except ValueError as error:
        raise ValueError(f"{printable(name)}: {error}") from error


def _decode(content: bytes | np.ndarray) -> tuple[np.ndarray, bool]:
    """`decode_image`, and whether the image has more than 8 bits a channel; ValueErrors do not name it."""
    if not len(content):
        raise ValueError("empty file; re-save or remove it")
    _refuse_bomb(content)
    _refuse_long_parts(content)
    try:
        image, is_deep = _pixels(content)
    except cv2.error as error:
        raise ValueError(f"cannot be decoded ({error.err}); re-save or remove it") from error
    if image is None:
        raise ValueError(_not_decoded(content))
    return image, is_deep


def _not_decoded(content: bytes | np.ndarray) -> str:
    """Why OpenCV does not decode a file, as far as its beginning and end say, and what to do."""
    kind = kind_of(memoryview(content)[:16])
    if not kind:
        return "its content is no image, whatever its name says; re-save or remove it"
    if kind in ("JPEG", "PNG") and (b"\xff\xd9" if kind == "JPEG" else b"IEND") not in bytes(content[-4096:]):
        return "the file is cut off; re-save or remove it"
    return f"OpenCV decodes no such {kind} file, or it is damaged; save it as .jpg or .png, or remove it"


def _pixels(content: bytes | np.ndarray) -> tuple[np.ndarray | None, bool]:
    """(H, W, 3) uint8 BGR, None where OpenCV decodes nothing; and whether it was scaled to 8 bits."""
    depth = depth_of(content)
    with quiet_decoder() if depth and depth.is_odd else contextlib.nullcontext():  # it speaks of each way that fails
        return _pixels_of_depth(content, depth)


def _pixels_of_depth(content: bytes | np.ndarray, depth: Depth | None) -> tuple[np.ndarray | None, bool]:
    data = np.frombuffer(content, dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if image is not None and kind_of(memoryview(content)[:16]) == "AVIF":
        image = turned_avif(image, content)
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


def turned_avif(image: np.ndarray, content: bytes | np.ndarray) -> np.ndarray:
    """A decoded AVIF image turned and mirrored as its file says, which OpenCV leaves to others."""
    whole = memoryview(content)
    inside = [part for kind, part in _boxes(whole) if kind == b"meta"]
    for name, skipped in ((b"iprp", 4), (b"ipco", 0)):
        inside = [part for outer in inside for kind, part in _boxes(outer[skipped:]) if kind == name]
    said = {kind: part[0] for outer in reversed(inside) for kind, part in _boxes(outer) if len(part)}
    image = np.rot90(image, said.get(b"irot", 0) & 3)  # anticlockwise, before the mirror
    if b"imir" in said:
        image = np.flip(image, said[b"imir"] & 1)  # 0: upside down, 1: left to right
    return np.ascontiguousarray(image)


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, content) of the boxes of an ISO media file, as far as they are sound."""
    place = 0
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        length = length or len(content) - place  # 0: the rest of the file
        if length < 8:  # longer than 4 GiB, or damaged
            return
        yield kind, content[place + 8 : place + length]
        place += length


def to_eight_bits(image: np.ndarray, bits: int = 0) -> np.ndarray:
    """An image of any numbers as uint8.

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
        raise ValueError(f"{printable(path)}: cannot be read, {error}; name an image file instead") from error
    return decode_image(content, path)


def _refuse_bomb(content: bytes | np.ndarray) -> None:
    """Raise ValueError for a header that promises far more pixels than its file can hold, or OpenCV decodes."""
    try:
        size = _stored_size(content)
    except Exception:
        return
    _check_growth(*size, len(content))


def _check_growth(width: int, height: int, length: int) -> None:
    pixels = f"{width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise ValueError(f"{pixels} are more than OpenCV decodes; cut it into tiles")
    if width * height > LARGE_PIXELS and 3 * width * height > MAX_GROWTH * length:
        raise ValueError(f"{pixels} in {length:,} bytes: damaged, or made to fill the memory; re-save or remove it")


def _refuse_long_parts(content: bytes | np.ndarray) -> None:
    """Raise ValueError for a PNG with a part that ends far beyond the file: OpenCV fills memory for all of it."""
    whole, place = memoryview(content), len(PNG)
    if bytes(whole[:place]) != PNG:
        return
    while place + 8 <= len(whole):
        (length,) = struct.unpack_from(">I", whole, place)
        if length > len(whole) + MAX_MISSING:
            raise ValueError(f"a part of {length:,} bytes in a file of {len(whole):,}; re-save or remove it")
        place += 12 + length


def _stored_size(content: bytes | np.ndarray) -> tuple[int, int]:
    """(width, height) in a file's header; raises KeyError, or what Pillow raises, where there is none.

    Pillow's guess that a large image is an attack is lifted for that moment.
    """
    start = bytes(content[:24])
    if start.startswith(PNG):
        return struct.unpack(">II", start[16:])
    if kind_of(start) == "TIFF":
        return tiff_size(content)
    file = io.BytesIO(content)
    if (header := plain_header(file, len(content), whole=False)) is not None:  # of a JPEG
        return header.size
    file.seek(0)
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_KNOWN).size
        finally:
            Image.MAX_IMAGE_PIXELS = limit


class Inspection(NamedTuple):
    """What an image is when it is read: (width, height) in pixels, and what is not to pass in silence."""

    size: tuple[int, int]
    is_deep: bool = False  # more than 8 bits a channel
    is_first: bool = False  # of several in the file


def _inspect_decoded(content: bytes) -> Inspection:
    """Decode a file to see what it is."""
    if kind_of(content[:16]) == "JPEG" and content.rfind(b"\xff\xd9") < content.find(b"\xff\xda"):
        raise ValueError("the file is cut off; re-save or remove it")  # some versions of OpenCV would fill it with grey
    image, is_deep = _decode(content)
    return Inspection(image.shape[1::-1], is_deep, has_further_images(content))


def inspect_image(path: str | Path | BinaryIO) -> Inspection:
    """What `read_image` will make of a file (or open file), without decoding it where that is certain.

    Raises ValueError, without the name, or OSError when it cannot be read, is cut off, or is not decoded by OpenCV.
    """
    if isinstance(path, (str, Path)):
        file_size(path, MAX_BYTES)
    with open(path, "rb") if isinstance(path, (str, Path)) else path as file:
        length = file.seek(0, os.SEEK_END)
        if (header := plain_header(file, length)) is not None:
            _check_growth(*header.size, length)
            found = Inspection(*header)
        else:
            file.seek(0)
            found = _inspect_decoded(file.read())
    if min(found.size) < MIN_SIDE:
        raise ValueError(f"{found.size[0]} x {found.size[1]} pixels are too few, each side needs {MIN_SIDE}")
    return found


def picture_size(path: str | Path | BinaryIO) -> tuple[int, int]:
    """(width, height) of a sound image as it will be decoded; raises as `inspect_image` does."""
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
