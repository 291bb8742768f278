"""Video files: opened for what they are, never for what they name, and read no further than makes sense.

To FFmpeg, which reads videos for OpenCV, a playlist is a video: sixty bytes of text in `clip.mp4` can name other files,
addresses, or themselves. So a file must be a container of the kinds below by its content, whatever its name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import cv2
import numpy as np

from utils.base.files import file_size, printable
from utils.base.log import LOGGER

VID_FORMATS = (
    "3g2", "3gp", "asf", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts",
    "vob", "webm", "wmv",
)  # fmt: skip
CONTAINERS = "asf,avi,flv,gif,live_flv,m4v,matroska,mov,mpeg,mpegts,mpegvideo,ogg"  # FFmpeg's names of them
OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"  # environment variable that OpenCV reads whenever it opens something
NO_FRAME = "no frame of this video can be read; convert it to MP4 or remove it"
FALLBACK_FPS = 30.0  # of what does not say
MANY_FRAMES = 10**9  # no honest container promises more
LEAST_LIMIT, MORE_THAN_PROMISED = 1000, 10  # a file ends at so many frames, or so many times what it promises
UNPROMISED_LIMIT = 1_000_000  # where it promises nothing: nine hours at 30 frames per second
LARGEST_FILE = 1 << 62  # bytes: any file, but a file
HEAD = 512  # bytes that distinguish text from a container

_changed = threading.Condition()
_openings: list[str] = []  # FFmpeg's extra options of the openings under way, which are all the same
_users_own: list[str | None] = [None]  # what the environment held before the first of them


def _open(place: str, extra: str = "") -> cv2.VideoCapture:
    """Open with `extra` after the options that the user has set: openings of the same side by side, others after them.

    With some it is FFmpeg that opens, where OpenCV has it: the next in line would take a number in a name for a series
    of images.
    """
    has_ffmpeg = cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends()
    with _changed:
        _changed.wait_for(lambda: not _openings or _openings[0] == extra)
        if not _openings:
            _users_own[0] = os.environ.get(OPTIONS)
            if extra:
                os.environ[OPTIONS] = "|".join(filter(None, (_users_own[0], extra)))
        _openings.append(extra)
    try:
        return cv2.VideoCapture(place, cv2.CAP_FFMPEG if has_ffmpeg and extra else cv2.CAP_ANY)
    finally:
        with _changed:
            _openings.pop()
            if not _openings:
                os.environ.pop(OPTIONS, None)
                if _users_own[0] is not None:
                    os.environ[OPTIONS] = _users_own[0]
                _changed.notify_all()


def suffix_of(address: str) -> str:
    """Lower-case suffix without its dot; of a URL the path's, so that queries and upper case do not matter.

    Raises ValueError for a URL that makes no sense.
    """
    try:
        name = urlsplit(address).path if "://" in address else address
    except ValueError as error:
        raise ValueError(f"{printable(address)}: {error}; correct the address") from error
    return os.path.splitext(name)[1][1:].lower()


def open_video(place: str) -> cv2.VideoCapture:
    """Open the frames of a webcam (its number), an address (`rtsp://...`) or a file.

    An address may be a playlist of more (HLS and the like), unless it ends as a video does: then it must be one of the
    containers, as files must. Redirections and playlists lead to other addresses, never to local files: FFmpeg's own
    rule. Raises OSError for a file that is not there and ValueError for one that is no video by its content.
    """
    if place.isdecimal():
        return cv2.VideoCapture(int(place))
    if "://" not in place:
        return open_file(place)
    return _open(place, f"format_whitelist;{CONTAINERS}" * (suffix_of(place) in VID_FORMATS))


def open_file(file: str) -> cv2.VideoCapture:
    """Open the frames of a file that is a container of a known kind; nothing that it names is opened.

    Raises as `open_video` does: also for text, whose first bytes are all letters and line ends, as no container's are.
    """
    name = printable(file)
    try:
        file.encode()
    except UnicodeEncodeError as error:  # OpenCV would crash
        raise ValueError(f"{name}: its name is not text; rename the file") from error
    try:
        size = file_size(file, LARGEST_FILE)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    with open(file, "rb") as content:
        head = content.read(HEAD)
    if head.startswith((b"ffconcat", b"#EXTM3U")) or not any(byte < 32 and byte not in b"\t\n\f\r" for byte in head):
        kind = "text; playlists are not followed" if size else "nothing at all"
        raise ValueError(f"{name}: {NO_FRAME} (its content is {kind})")
    # the path is made absolute, because FFmpeg takes `concat:a.mp4` for a protocol
    return _open(os.path.abspath(file), f"protocol_whitelist;file|format_whitelist;{CONTAINERS}")


class Video:
    """What comes out of a capture.

    `total` is the frames in all, 0 for unknown or endless, `fps` those in a second (many containers report nonsense for
    either), `number` that of the latest frame, which goes on from the one given.
    """

    def __init__(self, capture: cv2.VideoCapture, number: int = 0) -> None:
        total, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        self.total = int(total) if 0 < total < MANY_FRAMES else 0
        self.fps = float(fps) if 0 < fps < 1000 else FALLBACK_FPS
        self.capture, self.number = capture, number

    def images(
        self, name: str, stride: int = 1, max_frames: int | None = None, size: int = MANY_FRAMES, endless: bool = False
    ) -> Iterator[np.ndarray]:
        """Yield every `stride`-th frame (H, W, 3) uint8 BGR; the capture is released in the end.

        Unless it may be endless, it is left after `max_frames`, by default after so many times what it promises. A
        promise of more frames than its `size` in bytes counts for nothing.
        """
        promised = self.total if self.total <= size else 0
        limit = max_frames or (max(MORE_THAN_PROMISED * promised, LEAST_LIMIT) if promised else UNPROMISED_LIMIT)
        try:
            while self.capture.grab():
                if self.number == limit and not endless:
                    promise = f"it promises {self.total}" if self.total else "it does not say how many it has"
                    left = f"{printable(name)}: left after {limit} frames ({promise})"
                    LOGGER.warning(f"{left}; --max-frames {10 * limit} reads on")
                    break
                self.number += 1
                if (self.number - 1) % stride == 0 and (read := self.capture.retrieve())[0]:
                    yield read[1]
        finally:
            self.capture.release()
