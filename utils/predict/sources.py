"""What a detector looks at: pictures, folders, globs, URLs, videos, webcams, streams, and text files that list them."""

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
from utils.predict.video_files import (
    LARGEST_FILE,
    NO_FRAME,
    VID_FORMATS,
    frame_limit,
    length_and_rate,
    open_file,
    say_limit,
    suffix_of,
)
from utils.prepare.web import open_url

WEB_TIMEOUT = 30.0  # seconds a server may be silent
WEB_LONGEST = 120.0  # seconds that one image may take
WEB_LARGEST = 256 * MIB  # bytes of one image

Kind = Literal["image", "video", "stream"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture to look at, and where it is from."""

    path: str  # file or address
    image: np.ndarray  # (3, h, w) uint8 RGB, letterboxed, contiguous: what the network gets, before /255
    original: np.ndarray  # (H, W, 3) uint8 BGR
    geometry: Geometry  # how the original lies in `image`
    kind: Kind
    source: int = 0  # which of the files and streams, from 0
    sources: int = 1  # how many there are
    number: int = 0  # frame number from 1; 0 for a picture
    total: int = 0  # frames in all; 0 where that is unknown
    fps: float = 0.0  # of the frames handed out; 0 for a picture

    def describe(self) -> str:
        """Beginning of the log line, in v6.1's words."""
        if self.kind == "stream":
            return f"{self.source}: "
        frames = f" ({self.number}/{self.total})" if self.kind == "video" else ""
        return f"{self.kind} {self.source + 1}/{self.sources}{frames} {printable(self.path)}: "


def fetch_image(url: str) -> np.ndarray:
    """Fetch and decode the picture at an http(s) URL, (H, W, 3) uint8 BGR; nothing is written to disk.

    Raises ValueError when it cannot be had, is too large or too slow, or is no picture.
    """
    name = printable(url)
    if not url.lower().startswith(WEB_SCHEMES):
        raise ValueError(f"{name}: pictures are fetched over http and https only")
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
        raise ValueError(f"{name} is no picture that can be decoded") from error


class Source:
    """An iterable of `Frame`s over files and then over streams.

    `files` are pictures and videos by path, and pictures by URL; `streams` are addresses for `read_streams`. A file
    that cannot be read is a warning, and the run goes on.
    """

    def __init__(
        self,
        files: Sequence[str],
        streams: Sequence[str],
        imgsz: int | tuple[int, int] = 640,
        stride: int = 32,
        auto: bool = True,
        vid_stride: int = 1,
        max_frames: int | None = None,
    ) -> None:
        for name, value in (("vid_stride", vid_stride), ("max_frames", max_frames)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.files, self.streams = list(files), list(streams)
        self.imgsz = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
        self.stride, self.auto, self.vid_stride, self.max_frames = stride, auto, vid_stride, max_frames

    def __len__(self) -> int:
        """Number of files and streams (not of frames, which videos and streams do not tell beforehand)."""
        return len(self.files) + len(self.streams)

    def __iter__(self) -> Iterator[Frame]:
        for position, file in enumerate(self.files):
            try:
                if suffix_of(file) in VID_FORMATS:
                    yield from self._video(file, position)
                else:
                    picture = fetch_image(file) if is_url(file) else read_image(file)
                    yield self._frame(file, picture, "image", position)
            except (OSError, ValueError) as error:
                name, words = printable(file), printable(str(error))
                LOGGER.warning(words if name in words else f"{name}: {words}")
        if self.streams:
            yield from self._stream_frames()

    def outputs(self) -> list[Output]:
        """What the results of each file and stream are called if no other takes their names."""
        moving = [*(suffix_of(file) in VID_FORMATS for file in self.files), *(True for _ in self.streams)]
        outputs = []
        for path, moves in zip([*self.files, *self.streams], moving, strict=True):
            suffix = Path(path.partition("?")[0]).suffix
            suffix = suffix if suffix and cv2.haveImageWriter(f"image{suffix}") else ".jpg"
            outputs.append(Output(path, readable_name(path), ".mp4" if moves else suffix, moves))
        return outputs

    def _frame(self, path: str, original: np.ndarray, kind: Kind, source: int, **place: float) -> Frame:
        image, geometry = prepare_image(original, self.imgsz, self.stride, self.auto)
        return Frame(path, image, original, geometry, kind, source, len(self), **place)

    def _video(self, file: str, position: int) -> Iterator[Frame]:
        capture = open_file(file)
        try:
            total, rate = length_and_rate(capture)
            limit = frame_limit(total, file_size(file, LARGEST_FILE), self.max_frames)
            number = 0
            while capture.grab():
                if number == limit:
                    LOGGER.warning(f"{printable(file)}: {say_limit(total, limit)}")
                    break
                number += 1
                if (number - 1) % self.vid_stride:
                    continue
                done, picture = capture.retrieve()
                if done:
                    place = {"number": number, "total": total, "fps": rate / self.vid_stride}
                    yield self._frame(file, picture, "video", position, **place)
        finally:
            capture.release()
        if not number:
            raise ValueError(f"{printable(file)}: {NO_FRAME}")

    def _stream_frames(self) -> Iterator[Frame]:
        for item in read_streams(self.streams, self.vid_stride, self.max_frames):
            place = {"number": item.number, "total": item.total, "fps": item.fps / self.vid_stride}
            position = len(self.files) + item.stream
            yield self._frame(self.streams[item.stream], item.picture, "stream", position, **place)


def open_source(
    source: str | Path,
    imgsz: int | tuple[int, int] = 640,
    stride: int = 32,
    auto: bool = True,
    vid_stride: int = 1,
    max_frames: int | None = None,
) -> Source:
    """Find out what `source` is and make it iterable.

    A picture or video file; a folder (its own files, not those of folders below it); a glob (`**` goes down); the
    http(s) address of a picture; any other http, rtsp or rtmp address and a webcam's number, which are streams; or a
    .txt file with one of these on each line. `imgsz` is the side, or (height, width), that pictures are letterboxed to,
    padded only to a multiple of `stride` when `auto`. `max_frames` of a video are read, without it no more than
    `frame_limit` allows. Raises ValueError, saying what was looked for, when nothing is found.
    """
    source = str(source).strip()
    if not source:
        raise ValueError("--source is empty; name a picture, video, folder, glob, address or webcam")
    files, streams = sources_in(source)
    videos = [file for file in files if suffix_of(file) in VID_FORMATS]
    pictures = [file for file in files if suffix_of(file) not in VID_FORMATS]
    return Source([*pictures, *videos], streams, imgsz, stride, auto, vid_stride, max_frames)


def readable_name(address: str) -> str:
    """A file stem for what comes from `address`: a file's own, of an address the last part without odd characters."""
    if not is_url(address):
        return file_stem(Path(address).stem)
    parts = urlsplit(address)
    name = Path(unquote(parts.path)).stem or parts.netloc.rpartition("@")[2]
    return folder_name("".join("_" if letter in '|@#!¡·$€%&()=?¿^*;:,¨´><+/\\"' else letter for letter in name))
