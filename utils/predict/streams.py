"""Cameras and network streams, read side by side in daemon threads.

What happens to frames that the consumer is too slow for is a property of the stream:

* a **clip** (it says how many frames it has: a video file, also one behind a URL) waits, so every frame arrives once;
* a **live** stream (webcam, RTSP, endless HTTP) drops, so that what arrives is the newest frame there is.

Iteration ends when every stream has ended. A live stream that breaks off is opened again a few times; streams that say
nothing at all for `SILENCE` seconds are given up. Leaving the loop early stops the threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from utils.base.files import printable
from utils.base.log import LOGGER
from utils.predict.video_files import VID_FORMATS, frame_limit, length_and_rate, open_video, say_limit, suffix_of

CLIP_QUEUE = 8  # decoded frames of a clip that wait for the consumer
LIVE_QUEUE = 1  # of a live stream only the newest frame is worth anything
REOPENINGS, REOPEN_PAUSE = 3, 1.0  # tries to get a lost live stream back, and the seconds before each
LIVE_FORMATS = ("flv", "m2ts", "mts", "ogv", "ts", "webm")  # also sent by cameras, without an end
SILENCE = 60.0  # seconds without a frame from any stream after which the run ends


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """A frame and where it is from: stream, frame number from 1, frames in all (0: unknown), frames per second."""

    stream: int
    picture: np.ndarray  # (H, W, 3) uint8 BGR
    number: int
    total: int
    fps: float


@dataclass(slots=True)
class _Inbox:
    """Frames on their way from the reader threads to the one consumer, a short queue for each stream."""

    queues: list[deque[StreamFrame]]
    changed: threading.Condition = field(default_factory=threading.Condition)
    stopped: threading.Event = field(default_factory=threading.Event)
    running: int = 0
    last: int = -1  # stream served last: the next one has precedence

    def put(self, frame: StreamFrame, live: bool) -> None:
        """Leave a frame; a clip waits for room, a live stream replaces what nobody fetched."""
        queue = self.queues[frame.stream]
        with self.changed:
            if live and len(queue) >= LIVE_QUEUE:
                queue.clear()
            while not live and len(queue) >= CLIP_QUEUE and not self.stopped.is_set():
                self.changed.wait()
            queue.append(frame)
            self.changed.notify_all()

    def take(self, patience: float) -> StreamFrame | None:
        """The next frame, the streams taking turns; None when all have ended, TimeoutError after `patience` seconds."""
        with self.changed:
            if not self.changed.wait_for(lambda: any(self.queues) or self.running == 0, patience):
                raise TimeoutError
            count = len(self.queues)
            for stream in ((self.last + step) % count for step in range(1, count + 1)):
                if self.queues[stream]:
                    self.last = stream
                    self.changed.notify_all()
                    return self.queues[stream].popleft()
        return None

    def leave(self) -> None:
        """One reader has ended."""
        with self.changed:
            self.running -= 1
            self.changed.notify_all()

    def stop(self) -> None:
        """Tell all readers to end."""
        with self.changed:
            self.stopped.set()
            self.changed.notify_all()


class _Reader(threading.Thread):
    """Decodes one stream into the inbox until it ends, breaks for good, or the inbox is stopped."""

    def __init__(self, address: str, stream: int, inbox: _Inbox, vid_stride: int, max_frames: int | None) -> None:
        super().__init__(daemon=True, name=f"stream {stream}")
        self.address, self.stream, self.inbox = address, stream, inbox
        self.vid_stride, self.max_frames = vid_stride, max_frames
        self.name_for_people = printable(address)
        self.number = 0

    def run(self) -> None:
        """Read until the end; a lost live stream is opened again."""
        lost = 0
        try:
            while not self.inbox.stopped.is_set():
                before = self.number
                clip = self._read_once()
                lost = lost + 1 if self.number == before else 1
                if clip or not self.number or lost > REOPENINGS:
                    break
                LOGGER.warning(f"{self.name_for_people}: lost, opening it again ({lost} of {REOPENINGS})")
                self.inbox.stopped.wait(REOPEN_PAUSE)
            if not self.number:
                LOGGER.warning(f"{self.name_for_people}: no frame could be read from this stream")
        except (OSError, ValueError) as error:
            LOGGER.warning(f"{error}")
        finally:
            self.inbox.leave()

    def _read_once(self) -> bool:
        """Open the stream and hand on its frames; True when it was a clip, which has ended by now."""
        capture = open_video(self.address)
        total, fps = length_and_rate(capture)
        clip = total > 0 or suffix_of(self.address) in set(VID_FORMATS) - set(LIVE_FORMATS)
        limit = frame_limit(total, max_frames=self.max_frames)
        try:
            while not self.inbox.stopped.is_set() and capture.grab():
                if clip and self.number == limit:
                    LOGGER.warning(f"{self.name_for_people}: {say_limit(total, limit)}")
                    break
                self.number += 1
                if (self.number - 1) % self.vid_stride:
                    continue
                done, picture = capture.retrieve()
                if done:
                    self.inbox.put(StreamFrame(self.stream, picture, self.number, total, fps), live=not clip)
            return clip
        finally:
            capture.release()


def read_streams(addresses: Sequence[str], vid_stride: int = 1, max_frames: int | None = None) -> Iterator[StreamFrame]:
    """Frames of all streams as they come: webcam numbers, rtsp/rtmp/http addresses or video files.

    Every `vid_stride`-th frame is taken, of a clip no more than `frame_limit` allows. A stream that cannot be opened is
    a warning; ValueError when none could be.
    """
    inbox = _Inbox([deque() for _ in addresses], running=len(addresses))
    for stream, address in enumerate(addresses):
        _Reader(address, stream, inbox, vid_stride, max_frames).start()
    frames = 0
    try:
        while (frame := inbox.take(SILENCE)) is not None:
            frames += 1
            yield frame
    except TimeoutError:
        LOGGER.warning(f"no stream has sent a frame for {SILENCE:.0f} s; ending")
    finally:
        inbox.stop()
    if not frames:
        names = printable(", ".join(addresses))
        raise ValueError(f"no frame from {names}; check the address, the connection and the format")
