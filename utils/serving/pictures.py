"""Pictures from strangers: known by what is in them, measured by their header, decoded only then."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image

from utils.log import LOGGER
from utils.serving.limits import Refusal

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
JPEG, SCAN = b"\xff\xd8", b"\xff\xda"  # how a file begins, how each of its scans does
MOST_SCANS = 100  # progressive pictures have about ten; each costs a pass over all pixels, and hardly a byte
KNOWN = "JPEG, PNG, WebP, BMP, GIF or TIFF"
Reader = Callable[[Image.Image], np.ndarray]


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that a WebP file's header claims, None for what is no WebP file.

    Pillow makes room for a whole WebP picture as soon as it is opened, so this is asked beforehand.
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


def check_size(size: tuple[int, int], pixels: int, name: str) -> None:
    """Refusal for a (width, height) of more than `pixels`, or of none."""
    width, height = size
    if width < 1 or height < 1:
        raise Refusal(400, f"{name} is {width} x {height} pixels: it has none")
    if width * height > pixels:
        raise Refusal(413, f"{name} is {width} x {height} pixels; at most {pixels:,} are taken: make it smaller")


class Room:
    """At most so many pixels are being decoded at once, whoever asks: memory for them is bounded. For threads."""

    def __init__(self, pixels: int) -> None:
        self.pixels = self.free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for `pixels`, and occupy it while the block runs; more than all is all."""
        wanted = min(pixels, self.pixels)
        with self._changed:
            self._changed.wait_for(lambda: self.free >= wanted)
            self.free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self.free += wanted
                self._changed.notify_all()


class Decoder:
    """Turns the content of files into pictures of at most `pixels`; `read` makes the array of a Pillow picture."""

    def __init__(self, read: Reader, pixels: int) -> None:
        self.read, self.pixels, self.room = read, pixels, Room(pixels)

    def __call__(self, data: bytes, name: str = "the picture") -> np.ndarray:
        """The picture (H, W, 3) uint8 RGB in a file's content; of an animation the first.

        Raises Refusal: 400 for an empty or damaged file, 413 for more than `pixels`, which the header tells before
        anything is decoded, 415 for another format, whatever its name was.
        """
        if not data:
            raise Refusal(400, f"{name} is an empty file")
        try:
            return self._decode(data, name)
        except Refusal:
            raise
        except Image.UnidentifiedImageError:
            raise Refusal(415, f"{name} is no {KNOWN} file, or a damaged one") from None
        except Image.DecompressionBombError:
            raise Refusal(
                413, f"{name} has too many pixels; at most {self.pixels:,} are taken: make it smaller"
            ) from None
        except Exception as error:  # readers of damaged files raise nearly anything
            LOGGER.debug(f"{name} cannot be decoded: {type(error).__name__}: {error}")
            raise Refusal(400, f"{name} is damaged: {_reason(error)}") from error

    def _decode(self, data: bytes, name: str) -> np.ndarray:
        if data[:2] == JPEG and data.count(SCAN) > MOST_SCANS:
            raise Refusal(400, f"{name} is a JPEG of more than {MOST_SCANS} scans: save it as a usual one")
        claimed = webp_size(data)
        if claimed is not None:
            check_size(claimed, self.pixels, name)
        picture = Image.open(BytesIO(data), formats=FORMATS)
        check_size(picture.size, self.pixels, name)
        with self.room.take(picture.width * picture.height):
            return self.read(picture)


def _reason(error: Exception) -> str:
    """Pillow's words in one short line of printable letters."""
    words = " ".join(str(error).split())[:100] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in words)
