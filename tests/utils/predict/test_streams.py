"""Streams: every frame of a clip, the newest of a camera, and an end to everything."""

import threading
import time

import numpy as np
import pytest

from utils.drawing.writers import VideoWriter
from utils.predict import streams, video_files
from utils.predict.streams import read_streams


@pytest.fixture
def clips(tmp_path):
    """Three clips of 5, 12 and 1 frames, brightness telling the frame."""
    paths = []
    for name, count in (("a", 5), ("b", 12), ("c", 1)):
        with VideoWriter(tmp_path / f"{name}.mp4", 10) as writer:
            for i in range(count):
                writer.write(np.full((48, 64, 3), 20 * i + 10, np.uint8))
        paths.append(str(writer.path))
    return paths


class Camera:
    """Stands for cv2.VideoCapture on a live stream: endless, or `frames` long each time it is opened."""

    opened = 0
    frames, pause = 10**9, 0.0

    def __init__(self, address):
        type(self).opened += 1
        self.left = self.frames
        self.count = 0

    def get(self, _):
        return -1.0

    def grab(self):
        time.sleep(self.pause)
        self.count += 1
        self.left -= 1
        return self.left >= 0

    def retrieve(self):
        return True, np.full((4, 4, 3), self.count % 256, np.uint8)

    def release(self):
        pass


@pytest.fixture
def camera(monkeypatch):
    monkeypatch.setattr(Camera, "opened", 0)
    monkeypatch.setattr(video_files.cv2, "VideoCapture", Camera)
    monkeypatch.setattr(streams, "REOPEN_PAUSE", 0.01)
    return monkeypatch


def no_threads_left():
    limit = time.monotonic() + 5
    while time.monotonic() < limit:
        if not any(thread.name.startswith("stream ") for thread in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


def test_nothing_that_opens_is_an_error(tmp_path, caplog):
    with pytest.raises(ValueError, match="no frame from"):
        list(read_streams([str(tmp_path / "none.mp4")]))
    assert "none.mp4" in caplog.text and no_threads_left()


def test_every_frame_of_every_clip_arrives_once_and_in_order(clips, caplog):
    frames = list(read_streams(clips))
    for stream, count in enumerate((5, 12, 1)):
        mine = [frame for frame in frames if frame.stream == stream]
        assert [frame.number for frame in mine] == list(range(1, count + 1)) and mine[0].total == count
        assert all(abs(frame.image.mean() - (20 * frame.number - 10)) < 6 for frame in mine)
    assert not caplog.records and no_threads_left()


def test_a_slow_consumer_loses_nothing_of_a_clip_and_gets_every_nth_frame(clips, monkeypatch):
    monkeypatch.setattr(streams, "CLIP_QUEUE", 1)
    numbers = []
    for frame in read_streams([clips[1]]):
        time.sleep(0.01)
        numbers.append(frame.number)
    assert numbers == list(range(1, 13))
    assert [frame.number for frame in read_streams([clips[1]], vid_stride=5)] == [1, 6, 11]
    assert [frame.number for frame in read_streams([clips[2]], vid_stride=5)] == [1]


def test_one_broken_stream_does_not_end_the_others(clips, tmp_path, caplog):
    frames = list(read_streams([str(tmp_path / "none.mp4"), clips[0]]))
    assert [frame.stream for frame in frames] == [1] * 5 and len(caplog.records) == 1


def test_a_camera_gives_the_newest_frame_and_stops_when_the_loop_is_left(camera):
    camera.setattr(Camera, "pause", 0.001)
    reading = read_streams(["0"])
    first = next(reading)
    time.sleep(0.1)
    assert next(reading).number > first.number + 5  # those in between were dropped
    reading.close()
    assert no_threads_left()


def test_cameras_take_turns(camera):
    camera.setattr(Camera, "pause", 0.001)
    reading = read_streams(["0", "1", "2"])
    served = [next(reading).stream for _ in range(60)]
    reading.close()
    assert {served.count(stream) > 10 for stream in range(3)} == {True}


def test_a_lost_camera_is_opened_again_but_not_for_ever(camera, caplog):
    camera.setattr(Camera, "frames", 0)
    with pytest.raises(ValueError, match="no frame"):
        list(read_streams(["0"]))
    assert Camera.opened == 1  # never there: no use in trying again

    class Dying(Camera):
        opened = 0

        def __init__(self, address):
            super().__init__(address)
            self.left = 3 if type(self).opened == 1 else 0

    camera.setattr(video_files.cv2, "VideoCapture", Dying)
    assert 1 <= len(list(read_streams(["0"]))) <= 3
    assert Dying.opened == 1 + streams.REOPENINGS and "opening it again" in caplog.text


def test_silence_ends_the_run(camera, caplog):
    camera.setattr(Camera, "pause", 0.5)
    camera.setattr(streams, "SILENCE", 0.05)
    with pytest.raises(ValueError, match="no frame"):
        list(read_streams(["0"]))
    assert "has sent a frame" in caplog.text and no_threads_left()
