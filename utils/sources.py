"""What a detector looks at: pictures, folders, globs, URLs, videos, webcams, streams, and text files that list them."""

from __future__ import annotations

import glob
import os
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from utils.augmentations import letterbox
from utils.labels import IMG_FORMATS, read_image
from utils.log import LOGGER
from utils.pictures import decode_image
from utils.streams import VID_FORMATS, read_streams, suffix_of

STREAM_SCHEMES = ("rtsp://", "rtmp://")
WEB_SCHEMES = ("http://", "https://")
WEB_TIMEOUT = 30.0  # seconds a server may be silent
WEB_LARGEST = 256 * 2**20  # bytes of one picture
FORMATS_TEXT = f"pictures ({' '.join(IMG_FORMATS)}) and videos ({' '.join(VID_FORMATS)})"

Kind = Literal["image", "video", "stream"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture to look at, and where it is from."""

    path: str  # file or address
    image: np.ndarray  # (3, h, w) uint8 RGB, letterboxed, contiguous: what the network gets, before /255
    original: np.ndarray  # (H, W, 3) uint8 BGR
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
        return f"{self.kind} {self.source + 1}/{self.sources}{frames} {self.path}: "


def is_url(text: str) -> bool:
    """Whether this is a network address that can be looked at."""
    return text.lower().startswith((*STREAM_SCHEMES, *WEB_SCHEMES))


def fetch_image(url: str) -> np.ndarray:
    """Fetch and decode the picture at an http(s) URL, (H, W, 3) uint8 BGR; nothing is written to disk.

    Raises ValueError when it cannot be had or is no picture.
    """
    if not url.lower().startswith(WEB_SCHEMES):
        raise ValueError(f"{url}: pictures are fetched over http and https only")
    request = urllib.request.Request(url, headers={"User-Agent": "yolov5-biformer"})
    try:
        with urllib.request.urlopen(request, timeout=WEB_TIMEOUT) as answer:
            content = answer.read(WEB_LARGEST + 1)
    except (OSError, ValueError) as error:  # URLError, HTTPError and time-outs are OSErrors
        raise ValueError(f"{url} cannot be fetched: {error}") from error
    if len(content) > WEB_LARGEST:
        raise ValueError(f"{url} is larger than {WEB_LARGEST >> 20} MiB; download it first")
    try:
        return decode_image(content, url)
    except ValueError as error:
        raise ValueError(f"{url} is no picture that can be decoded") from error


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
    ) -> None:
        if vid_stride < 1:
            raise ValueError(f"vid_stride must be at least 1, not {vid_stride}")
        self.files, self.streams = list(files), list(streams)
        self.imgsz = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
        self.stride, self.auto, self.vid_stride = stride, auto, vid_stride

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
                LOGGER.warning(f"{error}" if file in str(error) else f"{file}: {error}")
        if self.streams:
            yield from self._stream_frames()

    def _frame(self, path: str, original: np.ndarray, kind: Kind, source: int, **place: float) -> Frame:
        fitted = letterbox(original, self.imgsz, stride=self.stride, auto=self.auto)[0]
        image = np.ascontiguousarray(fitted[..., ::-1].transpose(2, 0, 1))
        return Frame(path, image, original, kind, source, len(self), **place)

    def _video(self, file: str, position: int) -> Iterator[Frame]:
        capture = cv2.VideoCapture(file)
        try:
            total = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
            fps = capture.get(cv2.CAP_PROP_FPS) / self.vid_stride
            number = 0
            while capture.grab():
                number += 1
                if (number - 1) % self.vid_stride:
                    continue
                done, picture = capture.retrieve()
                if done:
                    yield self._frame(file, picture, "video", position, number=number, total=total, fps=fps)
        finally:
            capture.release()
        if not number:
            raise ValueError(f"{file}: no frame of this video can be read; convert it to MP4 or remove it")

    def _stream_frames(self) -> Iterator[Frame]:
        for item in read_streams(self.streams, self.vid_stride):
            place = {"number": item.number, "total": item.total, "fps": item.fps / self.vid_stride}
            position = len(self.files) + item.stream
            yield self._frame(self.streams[item.stream], item.picture, "stream", position, **place)


def open_source(
    source: str | Path,
    imgsz: int | tuple[int, int] = 640,
    stride: int = 32,
    auto: bool = True,
    vid_stride: int = 1,
) -> Source:
    """Find out what `source` is and make it iterable.

    A picture or video file; a folder (its own files, not those of folders below it); a glob (`**` goes down); the
    http(s) address of a picture; any other http, rtsp or rtmp address and a webcam's number, which are streams; or a
    .txt file with one of these on each line. `imgsz` is the side, or (height, width), that pictures are letterboxed to,
    padded only to a multiple of `stride` when `auto`. Raises ValueError, saying what was looked for, when nothing is
    found.
    """
    source = str(source).strip()
    if not source:
        raise ValueError("--source is empty; name a picture, video, folder, glob, address or webcam")
    if suffix_of(source) == "txt" and not is_url(source):
        files, streams = _listed(Path(source).expanduser())
    else:
        files, streams = _classify(source)
    videos = [file for file in files if suffix_of(file) in VID_FORMATS]
    pictures = [file for file in files if suffix_of(file) not in VID_FORMATS]
    return Source([*pictures, *videos], streams, imgsz, stride, auto, vid_stride)


def _classify(source: str) -> tuple[list[str], list[str]]:
    """(files, streams) that one entry stands for."""
    if source.isdecimal():
        return [], [source]
    if is_url(source):
        if urlsplit(source).hostname in {"youtu.be", "youtube.com", "www.youtube.com", "m.youtube.com"}:
            raise ValueError(f"{source}: a video page cannot be opened; download the video and give its file")
        picture = source.lower().startswith(WEB_SCHEMES) and suffix_of(source) in IMG_FORMATS
        return ([source], []) if picture else ([], [source])
    return _local_files(os.path.expanduser(source)), []


def _local_files(source: str) -> list[str]:
    if os.path.isdir(source):
        found = sorted(os.path.join(source, name) for name in os.listdir(source))
    elif os.path.isfile(source):
        if suffix_of(source) not in (*IMG_FORMATS, *VID_FORMATS):
            raise ValueError(f"{source} is no file that can be looked at; known are {FORMATS_TEXT}, and .txt lists")
        return [source]
    elif glob.has_magic(source):
        found = sorted(glob.glob(source, recursive=True))
    else:
        raise ValueError(f"{source} does not exist (looked in {Path(source).absolute().parent}); correct the path")
    usable = [file for file in found if os.path.isfile(file) and suffix_of(file) in (*IMG_FORMATS, *VID_FORMATS)]
    if not usable:
        deeper = f"; for those in folders below it give '{source}/**/*'" if os.path.isdir(source) else ""
        raise ValueError(f"nothing found in {source}: looked for {FORMATS_TEXT}{deeper}")
    return usable


def _listed(listing: Path) -> tuple[list[str], list[str]]:
    """(files, streams) named by a text file; paths are looked for from here, then from the list's own folder.

    Blank lines and lines that begin with # are skipped; an entry that is not there is a warning.
    """
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"list of sources {listing} cannot be read: {error}") from error
    entries = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()[:1] not in ("", "#")}
    files: list[str] = []
    streams: list[str] = []
    for number, entry in entries.items():
        try:
            more_files, more_streams = _classify(_beside(listing, entry))
        except ValueError as error:
            LOGGER.warning(f"{listing}:{number}: {error}")
            continue
        files += more_files
        streams += more_streams
    if not files and not streams:
        raise ValueError(f"{listing} names nothing that can be looked at: one file, folder, address or webcam a line")
    return files, streams


def _beside(listing: Path, entry: str) -> str:
    """The entry, or the file of that name in the list's folder when only that exists."""
    beside = listing.parent / entry
    return str(beside) if not is_url(entry) and not os.path.exists(entry) and beside.exists() else entry


def readable_name(address: str) -> str:
    """A file name for what comes from `address`: its stem, without characters that file systems or shells dislike."""
    parts = urlsplit(address) if is_url(address) else None
    name = Path(unquote(parts.path)).stem or parts.netloc if parts else Path(address).stem
    return "".join("_" if character in '|@#!¡·$€%&()=?¿^*;:,¨´><+/\\"' else character for character in name)
