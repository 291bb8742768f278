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
from typing import NamedTuple

import numpy as np

from utils.base.files import printable
from utils.base.log import LOGGER
from utils.predict.video_files import VID_FORMATS, Video, open_video, suffix_of

CLIP_QUEUE = 8  # decoded frames of a clip that wait for the consumer; of a live stream one does
REOPENINGS, REOPEN_PAUSE = 3, 1.0  # tries to get a lost live stream back, and the seconds before each
LIVE_FORMATS = ("flv", "m2ts", "mts", "ogv", "ts", "webm")  # also sent by cameras, without an end
SILENCE = 60.0  # seconds without a frame from any stream after which the run ends


class StreamFrame(NamedTuple):
    """A frame and where it is from: stream, frame number from 1, frames in all (0: unknown), frames per second."""

    stream: int
    image: np.ndarray  # (H, W, 3) uint8 BGR
    number: int
    total: int
    fps: float


class _Inbox:
    """Frames on their way from the reader threads to the one consumer, a short queue for each stream."""

    def __init__(self, streams: int) -> None:
        self.queues: list[deque[StreamFrame]] = [deque() for _ in range(streams)]
        self.changed = threading.Condition()
        self.stopped = threading.Event()
        self.running = streams

    def put(self, frame: StreamFrame, live: bool) -> None:
        """Leave a frame; a clip waits for room, a live stream replaces what was not fetched."""
        queue = self.queues[frame.stream]
        with self.changed:
            if live:
                queue.clear()
            self.changed.wait_for(lambda: len(queue) < CLIP_QUEUE or self.stopped.is_set())
            queue.append(frame)
            self.changed.notify_all()

    def read(self, address: str, stream: int, vid_stride: int, max_frames: int | None) -> None:
        """In a thread: decode a stream until it ends, breaks for good, or is stopped; a lost one is opened again."""
        name, number, lost = printable(address), 0, 0
        try:
            while not self.stopped.is_set():
                video = Video(open_video(address), number)
                is_clip = video.total > 0 or suffix_of(address) in set(VID_FORMATS) - set(LIVE_FORMATS)
                for image in video.images(address, vid_stride, max_frames, endless=not is_clip):
                    self.put(StreamFrame(stream, image, video.number, video.total, video.fps), live=not is_clip)
                    if self.stopped.is_set():
                        return
                lost = lost + 1 if number == video.number else 1
                number = video.number
                if is_clip or not number or lost > REOPENINGS:
                    break
                LOGGER.warning(f"{name}: lost, opening it again ({lost} of {REOPENINGS})")
                self.stopped.wait(REOPEN_PAUSE)
            if not number:
                LOGGER.warning(f"{name}: no frame could be read from this stream")
        except (OSError, ValueError) as error:
            LOGGER.warning(f"{error}")
        finally:
            with self.changed:
                self.running -= 1
                self.changed.notify_all()


def read_streams(addresses: Sequence[str], vid_stride: int = 1, max_frames: int | None = None) -> Iterator[StreamFrame]:
    """Frames of all streams as they come: webcam numbers, rtsp/rtmp/http addresses or video files.

    Every `vid_stride`-th frame is taken, of a clip no more than `Video` allows. A stream that cannot be opened is
    a warning; ValueError when none could be.
    """
    inbox = _Inbox(len(addresses))
    for i, address in enumerate(addresses):
        given = (address, i, vid_stride, max_frames)
        threading.Thread(target=inbox.read, args=given, daemon=True, name=f"stream {i}").start()
    frames, last = 0, -1  # the stream served last: the next one has precedence
    try:
        while True:
            with inbox.changed:
                if not inbox.changed.wait_for(lambda: any(inbox.queues) or inbox.running == 0, SILENCE):
                    LOGGER.warning(f"no stream has sent a frame for {SILENCE:.0f} s; ending")
                    break
                turns = ((last + step) % len(addresses) for step in range(1, len(addresses) + 1))
                last = next((stream for stream in turns if inbox.queues[stream]), -1)
                if last < 0:  # all have ended
                    break
                frame = inbox.queues[last].popleft()
                inbox.changed.notify_all()
            frames += 1
            yield frame
    finally:
        with inbox.changed:
            inbox.stopped.set()
            inbox.changed.notify_all()
    if not frames:
        names = printable(", ".join(addresses))
        raise ValueError(f"no frame from {names}; check the address, the connection and the format")
