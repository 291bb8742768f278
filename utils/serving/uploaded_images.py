"""Images from strangers: known by what is in them, their cost counted from their headers, decoded only then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from utils.base.log import LOGGER
from utils.images.decoding_cost import PLAIN_MEMORY, count_cost
from utils.images.decoding_limits import CostTally, TooCostly, Unbounded, count_exif
from utils.serving.limits import MIB, Refusal

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
KNOWN = "JPEG, PNG, WebP, BMP, GIF or TIFF"
MOST_PASSES = 80  # work that an image may take, in pixel passes for each pixel that it might have had
SLACK_WORK, SLACK_MEMORY = 400_000_000, 64 * MIB  # and what it may take beside that, however few pixels are taken
Reader = Callable[[Image.Image], np.ndarray]


def check_size(size: tuple[int, int], pixels: int, name: str) -> None:
    """Refusal for a (width, height) of more than `pixels`, or of none."""
    width, height = size
    if width < 1 or height < 1:
        raise Refusal(400, f"{name} is {width} x {height} pixels: it has none")
    if width * height > pixels:
        raise Refusal(413, f"{name} is {width} x {height} pixels; at most {pixels:,} are taken: make it smaller")


def most_work(pixels: int) -> int:
    """Pixel passes that decoding one image may take where images of so many pixels are taken."""
    return MOST_PASSES * pixels + SLACK_WORK


@dataclass(frozen=True, slots=True)
class DecodingCost:
    """What an image will take: work in pixel passes of about a nanosecond, memory in bytes."""

    work: int
    memory: int


class Decoder:
    """Turns the content of files into images of at most `pixels`; `read` makes the array of a Pillow image.

    most_work, most_memory: what one image may take, in pixel passes and bytes.
    """

    def __init__(self, read: Reader, pixels: int) -> None:
        self.read, self.pixels = read, pixels
        self.most_work, self.most_memory = most_work(pixels), 2 * PLAIN_MEMORY * pixels + SLACK_MEMORY

    def measure(self, data: bytes, name: str = "the picture") -> DecodingCost:
        """What decoding a file's content will take, from its headers; nothing is decoded.

        Raises Refusal: 400 for an empty or damaged file, 413 for more pixels, work or memory than are taken, 415 for
        another format, whatever its name was.
        """
        if not data:
            raise Refusal(400, f"{name} is an empty file")
        tally = self._tally(name)
        try:
            kind = count_cost(data, tally)
        except TooCostly as error:
            raise _costly(name, error) from None
        except Unbounded as error:
            raise Refusal(415, f"{name} {error}") from None
        except ValueError as error:
            raise Refusal(400, f"{name} is damaged: {_reason(error)}") from None
        if kind is None:
            raise Refusal(415, f"{name} is no {KNOWN} file, or a damaged one")
        return DecodingCost(tally.work, tally.memory)

    def __call__(self, data: bytes, name: str = "the picture") -> np.ndarray:
        """The image (H, W, 3) uint8 RGB in a file's content; of an animation the first. Raises what `measure` does."""
        self.measure(data, name)
        try:
            return self._decode(data, name)
        except Refusal:
            raise
        except TooCostly as error:
            raise _costly(name, error) from None
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
        picture = Image.open(BytesIO(data), formats=FORMATS)
        check_size(picture.size, self.pixels, name)
        picture.load()
        # Some programs keep EXIF in a PNG's texts, which are compressed: it is seen only here
        raw = "".join(str(picture.info.get("Raw profile type exif", "")).split("\n")[3:])
        count_exif(bytes.fromhex(raw), self._tally(name))
        if picture.format == "WEBP":  # its decoder would keep its canvases as long as the picture is there
            picture = picture.copy()
        return self.read(picture)

    def _tally(self, name: str) -> CostTally:
        return CostTally(self.most_work, self.most_memory, lambda *size: check_size(size, self.pixels, name))


def _costly(name: str, error: TooCostly) -> Refusal:
    return Refusal(413, f"{name} would take too long or too much memory to decode ({error}): save it in the usual way")


def _reason(error: Exception) -> str:
    """Pillow's words in one short line of printable letters."""
    words = " ".join(str(error).split())[:100] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in words)
