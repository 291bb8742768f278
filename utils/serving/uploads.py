"""What clients send: how much is let in, a form taken apart in memory, images decoded once their cost is known.

Nothing is written to disk. What is beyond a limit is turned away by a Refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from utils.base.log import LOGGER
from utils.images.decoding_cost import PLAIN_MEMORY, count_cost
from utils.images.decoding_limits import DecodingBudget, TooCostly, Unbounded, count_exif

MIB = 1024 * 1024
Answer = TypeVar("Answer")
GONE = 499  # a status for the counts: nobody is there to read it
LINGER = 1.0  # seconds for which the rest of a refused body is awaited, so that the client sees the answer
MOST_FIELDS = 4
TOO_LARGE = "the upload has {} bytes; at most {:g} MiB are taken"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PASSES = 80  # work that an image may take, in pixel passes for each pixel that it might have had
SLACK_WORK, SLACK_MEMORY = 400_000_000, 64 * MIB  # and what it may take beside that, however few pixels are taken


class Refusal(Exception):
    """A request is turned away: `status` is HTTP's, `message` one line that names the thing and the remedy.

    retry_after: seconds after which it is worth another try, None where it never is.
    close: the rest of the body is unread, so the connection ends with the answer.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None, close: bool = False) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after, self.close = status, message, retry_after, close


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request, and on all of them together.

    upload: bytes of a request's body. files: images in a batch request. pixels: of one image, before it is resized.
    smallest, largest: sides that the network's input may have. seconds: from the first byte to the answer.
    upload_seconds: until the whole body is there. requests: answered at once. memory: bytes of all bodies at once,
    and of images that wait to be looked at in tiles. tiles: of all images of a request.
    """

    upload: int = 16 * MIB
    files: int = 32
    pixels: int = 50_000_000
    smallest: int = 32
    largest: int = 1280
    seconds: float = 30
    upload_seconds: float = 10
    requests: int = 256
    memory: int = 512 * MIB
    tiles: int = 100


@dataclass(slots=True)
class Gate:
    """Counts the requests that are inside and the bytes they hold. For one event loop, not for threads."""

    requests: int
    memory: int
    inside: int = 0
    held: int = 0

    @contextmanager
    def let_in(self) -> Iterator[Callable[[int], None]]:
        """Give `hold(count)`, which notes bytes of a request's body; both raise Refusal where there is no room."""
        if self.inside >= self.requests:
            raise Refusal(503, f"{self.inside} requests are being answered; try again soon", retry_after=1)
        mine = 0

        def hold(count: int) -> None:
            """Note so many more bytes."""
            nonlocal mine
            if mine + count > self.memory:
                raise Refusal(413, "the request alone needs more than --max-memory: send fewer or smaller images")
            if self.held + count > self.memory:
                raise Refusal(503, "too many uploads at once; try again soon", retry_after=1)
            mine += count
            self.held += count

        self.inside += 1
        try:
            yield hold
        finally:
            self.inside -= 1
            self.held -= mine


class _InMemory(MultiPartParser):
    """Starlette's parser without its temporary files: the body's size is bounded already."""

    spool_max_size = max_file_size = 0  # its name in Starlette before 0.46


async def _counted(request: Request, most: int, hold: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    """The body piece by piece; raises Refusal(413) for more than `most` bytes, Refusal(400) where it breaks off."""
    count = 0
    try:
        async for chunk in request.stream():
            count += len(chunk)
            if count > most:
                raise Refusal(413, TOO_LARGE.format(f"more than {most:,}", most / MIB))
            hold(len(chunk))
            yield chunk
    except ClientDisconnect:
        raise Refusal(400, "the upload broke off before its end") from None


async def read_files(
    request: Request, limits: Limits, hold: Callable[[int], None], fields: Sequence[str], most: int
) -> list[bytes]:
    """The contents of 1 to `most` files sent under one of the names `fields`, in their order.

    The names that clients give to files are not looked at. Raises Refusal: 400 for what is no such form, 408 when it
    did not arrive in time, 413 for too many bytes, 415 for what is no form, and what `hold(bytes)` raises.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refusal(415, "send the image as multipart/form-data, in a field named image")
    length = request.headers.get("content-length", "0")[:20]
    if length.isdecimal() and int(length) > limits.upload:
        raise Refusal(413, TOO_LARGE.format(f"{int(length):,}", limits.upload / MIB))
    chunks = _counted(request, limits.upload, hold)
    parser = _InMemory(request.headers, chunks, max_files=most, max_fields=MOST_FIELDS)
    try:
        async with asyncio.timeout(limits.upload_seconds):
            form = await parser.parse()
    except TimeoutError:
        raise Refusal(408, f"the upload took longer than {limits.upload_seconds:g} s", close=True) from None
    except (MultiPartException, ValueError) as error:
        raise Refusal(400, f"the form is damaged: {getattr(error, 'message', 'it cannot be taken apart')}") from None
    files = []
    for name, value in form.multi_items():
        if name not in fields:
            raise Refusal(400, f"unknown field {name[:40]!r}; send files in a field named {fields[0]}")
        if not isinstance(value, UploadFile):
            raise Refusal(400, f"field {name} holds text; send a file (with a filename)")
        files.append(value.file.read())
    if not files:
        raise Refusal(400, f"no image came; send a file in a field named {fields[0]}")
    return files


async def drained(request: Request) -> bool:
    """Throw the rest of the body away for a moment; is it at its end now?"""
    try:
        async with asyncio.timeout(LINGER):
            async for _ in request.stream():
                pass
    except (TimeoutError, ClientDisconnect):
        return False
    except RuntimeError:  # all of it was read before
        return True
    return True


async def unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of `work`, which is dropped as soon as the client is gone: Refusal(499), for nobody to read."""

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone())
    answer.add_done_callback(lambda task: task.cancelled() or task.exception())  # looked at, even if nobody waits
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise Refusal(GONE, "the client is gone", close=True)
    finally:
        answer.cancel()
        gone.cancel()


class Decoder:
    """Turns the content of files into images of at most `pixels`; `read` makes the array of a Pillow image.

    most_work, most_memory: what one image may take, in pixel passes and bytes.
    """

    def __init__(self, read: Callable[[Image.Image], np.ndarray], pixels: int) -> None:
        self.read, self.pixels = read, pixels
        self.most_work = MOST_PASSES * pixels + SLACK_WORK
        self.most_memory = 2 * PLAIN_MEMORY * pixels + SLACK_MEMORY

    def measure(self, data: bytes, name: str = "the image") -> DecodingBudget:
        """What decoding a file's content will take, from its headers; nothing is decoded.

        Raises Refusal: 400 for an empty or damaged file, 413 for more pixels, work or memory than are taken, 415 for
        another format, whatever its name was.
        """
        if not data:
            raise Refusal(400, f"{name} is an empty file")
        with self._counting(name) as cost:
            if count_cost(data, cost) is None:
                raise Image.UnidentifiedImageError
        return cost

    def __call__(self, data: bytes, name: str = "the image") -> np.ndarray:
        """The image (H, W, 3) uint8 RGB in a file's content; of an animation the first. Raises what `measure` does."""
        self.measure(data, name)
        with self._counting(name) as cost:
            image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
            self.check_size(name, *image.size)
            image.load()
            # Some programs keep EXIF in a PNG's texts, which are compressed: it is seen only here
            raw = "".join(str(image.info.get("Raw profile type exif", "")).split("\n")[3:])
            count_exif(bytes.fromhex(raw), cost)
            if image.format == "WEBP":  # its decoder would keep its canvases as long as the image is there
                image = image.copy()
            return self.read(image)

    def check_size(self, name: str, width: int, height: int) -> None:
        """Raise Refusal for an image of more pixels than are taken, or of none."""
        if width < 1 or height < 1:
            raise Refusal(400, f"{name} is {width} x {height} pixels: it has none")
        if width * height > self.pixels:
            taken = f"at most {self.pixels:,} are taken: make it smaller"
            raise Refusal(413, f"{name} is {width} x {height} pixels; {taken}")

    @contextmanager
    def _counting(self, name: str) -> Iterator[DecodingBudget]:
        """Give what counts the costs of one image; whatever goes wrong with the file becomes a Refusal."""
        try:
            yield DecodingBudget(self.most_work, self.most_memory, partial(self.check_size, name))
        except Refusal:
            raise
        except TooCostly as error:
            why = f"would take too long or too much memory to decode ({error})"
            raise Refusal(413, f"{name} {why}: save it in the usual way") from None
        except Unbounded as error:
            raise Refusal(415, f"{name} {error}") from None
        except Image.UnidentifiedImageError:
            raise Refusal(415, f"{name} is no JPEG, PNG, WebP, BMP, GIF or TIFF file, or a damaged one") from None
        except Image.DecompressionBombError:
            raise Refusal(413, f"{name} has more than {self.pixels:,} pixels: make it smaller") from None
        except Exception as error:  # readers of damaged files raise nearly anything
            LOGGER.debug(f"{name} cannot be decoded: {type(error).__name__}: {error}")
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            shown = "".join(letter if letter.isprintable() else "?" for letter in reason)
            raise Refusal(400, f"{name} is damaged: {shown}") from error
