"""What a detector looks at: images, folders, globs, URLs, videos, webcams, streams, and text files that list them."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from utils.base.files import MIB, file_size, file_stem, folder_name, printable
from utils.base.log import LOGGER
from utils.drawing.writers import Output
from utils.images.reading import decode_image, read_image
from utils.predict.pipeline import Geometry, prepare_image
from utils.predict.source_files import WEB_SCHEMES, is_url, sources_in
from utils.predict.streams import read_streams
from utils.predict.video_files import LARGEST_FILE, NO_FRAME, VID_FORMATS, Video, open_file, suffix_of
from utils.prepare.web import open_url

WEB_TIMEOUT = 30.0  # seconds a server may be silent
WEB_LONGEST = 120.0  # seconds that one image may take
WEB_LARGEST = 256 * MIB  # bytes of one image

ODD_IN_NAMES = '|@#!¡·$€%&()=?¿^*;:,¨´><+/\\"'

Kind = Literal["image", "video", "stream"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One image to look at, and where it is from."""

    path: str  # file or address
    image: np.ndarray  # (3, h, w) uint8 RGB, letterboxed, contiguous: what the network gets, before /255
    original: np.ndarray  # (H, W, 3) uint8 BGR
    geometry: Geometry  # how the original lies in `image`
    kind: Kind
    source: int = 0  # which of the files and streams, from 0
    sources: int = 1  # how many there are
    number: int = 0  # frame number from 1; 0 for an image
    total: int = 0  # frames in all; 0 where that is unknown
    fps: float = 0.0  # of the frames handed out; 0 for an image

    def describe(self) -> str:
        """Return the beginning of the log line, as in v6.1."""
        if self.kind == "stream":
            return f"{self.source}: "
        frames = f" ({self.number}/{self.total})" if self.kind == "video" else ""
        return f"{self.kind} {self.source + 1}/{self.sources}{frames} {printable(self.path)}: "


def fetch_image(url: str) -> np.ndarray:
    """Fetch and decode the image at an http(s) URL, (H, W, 3) uint8 BGR; nothing is written to disk.

    Raises ValueError when it cannot be had, is too large or too slow, or is no image.
    """
    name = printable(url)
    if not url.lower().startswith(WEB_SCHEMES):
        raise ValueError(f"{name}: images are fetched over http and https only")
    request = urllib.request.Request(url, headers={"User-Agent": "yolov5-biformer"})
    content, until = bytearray(), time.monotonic() + WEB_LONGEST
    try:
        with open_url(request, WEB_TIMEOUT, WEB_LONGEST) as answer:
            while len(content) <= WEB_LARGEST and (part := answer.read1(MIB)):
                content += part
                if time.monotonic() > until:
                    raise ValueError(f"it takes longer than {WEB_LONGEST:.0f} s; download it first")
            if not part and answer.length:
                raise ConnectionError(f"the connection ended {answer.length:,} bytes before the image did")
    except (OSError, ValueError, HTTPException) as error:  # URLError, HTTPError and time-outs are OSErrors
        raise ValueError(f"{name} cannot be fetched: {printable(str(error))}") from error
    if len(content) > WEB_LARGEST:
        raise ValueError(f"{name} is larger than {WEB_LARGEST // MIB} MiB; download it first")
    try:
        return decode_image(bytes(content), url)
    except ValueError as error:
        raise ValueError(f"{name} is no image that can be decoded") from error


@dataclass(frozen=True, slots=True)
class Source:
    """An iterable of `Frame`s over files, images first, and then over streams.

    A file that cannot be read is a warning, and the run goes on. `imgsz` is the (height, width) that images are
    letterboxed to, padded only to a multiple of `stride` when `auto`. `max_frames` of a video are read, without it no
    more than `Video` allows.
    """

    files: Sequence[str]
    streams: Sequence[str]
    imgsz: tuple[int, int] = (640, 640)
    stride: int = 32
    auto: bool = True
    vid_stride: int = 1
    max_frames: int | None = None

    def __len__(self) -> int:
        """Return the number of files and streams (not of frames, which is not known beforehand)."""
        return len(self.files) + len(self.streams)

    def __iter__(self) -> Iterator[Frame]:
        for position, file in enumerate(self.files):
            try:
                if suffix_of(file) not in VID_FORMATS:
                    yield self._frame(fetch_image(file) if is_url(file) else read_image(file), "image", position)
                    continue
                video, size = Video(open_file(file)), file_size(file, LARGEST_FILE)
                for image in video.images(file, self.vid_stride, self.max_frames, size):
                    rate = video.fps / self.vid_stride
                    yield self._frame(image, "video", position, video.number, video.total, rate)
                if not video.number:
                    raise ValueError(NO_FRAME)
            except (OSError, ValueError) as error:
                name, reason = printable(file), printable(str(error))
                LOGGER.warning(reason if name in reason else f"{name}: {reason}")
        if self.streams:
            for stream, image, number, total, fps in read_streams(self.streams, self.vid_stride, self.max_frames):
                yield self._frame(image, "stream", len(self.files) + stream, number, total, fps / self.vid_stride)

    def outputs(self) -> list[Output]:
        """Return what the results of each file and stream are called if no other takes their names."""
        outputs = []
        for position, path in enumerate([*self.files, *self.streams]):
            if position >= len(self.files) or suffix_of(path) in VID_FORMATS:
                outputs.append(Output(path, readable_name(path), ".mp4", moving=True))
            else:  # the image's own format where OpenCV can write it
                suffix = Path(path.partition("?")[0]).suffix
                suffix = suffix if suffix and cv2.haveImageWriter(f"image{suffix}") else ".jpg"
                outputs.append(Output(path, readable_name(path), suffix))
        return outputs

    def _frame(
        self, original: np.ndarray, kind: Kind, source: int, number: int = 0, total: int = 0, fps: float = 0.0
    ) -> Frame:
        image, geometry = prepare_image(original, self.imgsz, self.stride, self.auto)
        path = self.files[source] if source < len(self.files) else self.streams[source - len(self.files)]
        return Frame(path, image, original, geometry, kind, source, len(self), number, total, fps)


def open_source(
    source: str | Path,
    imgsz: int | tuple[int, int] = 640,
    stride: int = 32,
    auto: bool = True,
    vid_stride: int = 1,
    max_frames: int | None = None,
) -> Source:
    """Find out what `source` is and make it iterable; the other arguments are those of `Source`.

    An image or video file; a folder (its own files, not those of folders below it); a glob (`**` goes down); the
    http(s) address of an image; any other http, rtsp or rtmp address and a webcam's number, which are streams; or a
    .txt file with one of these on each line. Raises ValueError, saying what was looked for, when nothing is found.
    """
    source = str(source).strip()
    if not source:
        raise ValueError("--source is empty; name an image, video, folder, glob, address or webcam")
    files, streams = sources_in(source)
    files.sort(key=lambda file: suffix_of(file) in VID_FORMATS)  # in the order given otherwise
    shape = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    return Source(files, streams, shape, stride, auto, vid_stride, max_frames)


def readable_name(address: str) -> str:
    """Return a file stem for what comes from `address`: of an address the last part, without odd signs."""
    if not is_url(address):
        return file_stem(Path(address).stem)
    parts = urlsplit(address)
    name = Path(unquote(parts.path)).stem or parts.netloc.rpartition("@")[2]
    return folder_name("".join("_" if letter in ODD_IN_NAMES else letter for letter in name))
