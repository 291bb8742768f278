"""A video is what its content says, whatever its name; it names nothing else, and it ends."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.pages import serving
from utils.drawing.writers import VideoWriter, write_image
from utils.predict import video_files
from utils.predict.sources import open_source
from utils.predict.video_files import LEAST_LIMIT, OPTIONS, VID_FORMATS, Video, open_file, open_video, suffix_of


def film(path, frames=5, code="mp4v", size=(352, 288)):
    """Write a video; False where this OpenCV has no encoder of the kind."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 25, size)
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), 20 * i % 250, np.uint8))
    opened = writer.isOpened()
    writer.release()
    return opened


def count(capture):
    number = 0
    while capture.grab():
        number += 1
    capture.release()
    return number


@pytest.fixture
def folder(tmp_path):
    """A video of ten frames, `seg.mp4`."""
    with VideoWriter(tmp_path / "seg.mp4", 10) as video:
        for i in range(10):
            video.write(np.full((64, 64, 3), 20 * i, np.uint8))
    return tmp_path


# ---- what is no video
def test_nothing(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"a\.mp4: no frame .*its content is nothing at all"):
        open_file(str(tmp_path / "a.mp4"))
    with pytest.raises(FileNotFoundError):
        open_file(str(tmp_path / "none.mp4"))
    with pytest.raises(ValueError, match="it is a folder"):
        open_file(str(tmp_path))


HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nseg.mp4\n"
SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n"
PLAYLISTS = {
    "names another": b"ffconcat version 1.0\nfile seg.mp4\n",
    "names itself": b"ffconcat version 1.0\nfile seg.mp4\nfile {self}\n",
    "with bytes": b"ffconcat version 1.0\n#\x00\x01\x02\nfile seg.mp4\nfile {self}\n",
    "bytes at last": b"ffconcat version 1.0\nfile seg.mp4\n" + b"#" * 600 + b"\x00",
    "HLS": HLS + b"#EXT-X-ENDLIST\n",
    "HLS without an end": HLS,
    "HLS with a mark": b"\xef\xbb\xbf" + HLS,
    "HLS with bytes": b"#EXTM3U\n#\x00\n#EXTINF:5,\nseg.mp4\n#EXT-X-ENDLIST\n",
    "SDP": SDP,
    "SDP with bytes": b"\x00\n" + SDP,
    "DASH": b"<?xml version='1.0'?><MPD profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'></MPD>",
    "subtitles": b"# VobSub index file, v7\n",
    "a program": b"const x: number = 1;\n" * 50,
}


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
@pytest.mark.parametrize("content", PLAYLISTS.values(), ids=PLAYLISTS.keys())
def test_playlists_are_no_videos(folder, content, suffix, caplog):
    name = f"list.{suffix}"
    (folder / name).write_bytes(content.replace(b"{self}", name.encode()))
    frames = iter(open_source(folder / name, 64))
    assert next(frames, None) is None
    (record,) = caplog.records
    assert f"{name}: no frame of this video can be read; convert it" in record.getMessage()
    assert record.getMessage().isprintable()


def test_names_are_no_protocols_and_no_patterns(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("content.avi", "concat:a.mp4"):  # the content decides
        shutil.copy("seg.mp4", name)
        assert len(list(open_source(name, 64))) == 10
    for i in range(3):
        image = write_image(folder / f"image{i}.png", np.zeros((32, 32, 3), np.uint8))
        os.rename(image, image.with_suffix(".mp4"))
    Path("image%d.mp4").write_bytes(b"\x00\x01")
    for name in ("image%d.mp4", "image1.mp4"):
        assert not list(open_source(name, 64)), "read as a series of images"
    for place in ("concat:b.mp4|c.mp4", "subfile,,start,0,end,0,,:image0.mp4", "file:image0.mp4", "lavfi:testsrc"):
        with pytest.raises(ValueError, match="does not exist"):
            open_source(place)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are text there")
def test_a_name_that_is_no_text_does_not_end_the_process(folder, caplog):
    os.rename(folder / "seg.mp4", os.fsencode(folder) + b"/a\xff.mp4")
    assert not list(open_source(folder, 64))
    assert r"a\udcff.mp4: its name is not text; rename the file" in caplog.text


# ---- what is one
CODES = {
    "3g2": "mp4v", "3gp": "mp4v", "asf": "WMV2", "avi": "MJPG", "flv": "FLV1", "m2ts": "MPG2", "m4v": "mp4v",
    "mkv": "mp4v", "mov": "mp4v", "mp4": "mp4v", "mpeg": "MPG2", "mpg": "PIM1", "mts": "MPG2", "ogv": "VP80",
    "ts": "MPG2", "vob": "MPG2", "webm": "VP80", "wmv": "WMV2",
}  # fmt: skip


@pytest.mark.parametrize("suffix", VID_FORMATS)
def test_every_ending_is_read(tmp_path, suffix):
    path = tmp_path / f"clip.{suffix.upper()}"
    if suffix == "gif":
        from PIL import Image

        first, *rest = (Image.new("L", (32, 32), 50 * i) for i in range(5))
        first.save(path, save_all=True, append_images=rest, loop=0)
    elif not film(tmp_path / f"clip.{suffix}", code=CODES[suffix]):
        pytest.skip(f"no {CODES[suffix]} encoder in this OpenCV")
    else:
        os.rename(tmp_path / f"clip.{suffix}", path)
    frames = list(open_source(tmp_path, 64))  # found in a folder
    assert [frame.number for frame in frames] == [1, 2, 3, 4, 5] and frames[0].kind == "video"


# ---- the environment
@pytest.mark.parametrize("before", [None, "threads;1"])
def test_the_environment_is_as_before(folder, monkeypatch, before):
    monkeypatch.delenv(OPTIONS, raising=False)
    if before:
        monkeypatch.setenv(OPTIONS, before)
    seen = []
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda *words: seen.append(os.environ.get(OPTIONS)) or real(*words))
    assert count(open_file(str(folder / "seg.mp4"))) == 10
    assert seen[0].startswith(f"{before}|" if before else "protocol_whitelist;file|format_whitelist;")
    assert os.environ.get(OPTIONS) == before
    open_video("rtsp://127.0.0.1:1/none")
    assert seen[1] == before


# ---- addresses
@pytest.fixture
def server(folder):
    """Address of an HTTP server for `folder`."""
    with serving(folder) as address:
        yield address


def test_an_address_that_ends_like_a_video_is_one(folder, server):
    (folder / "list.mp4").write_bytes(PLAYLISTS["names another"])
    (folder / "hls.ts").write_bytes(PLAYLISTS["HLS"])
    assert count(open_video(f"{server}/seg.mp4")) == 10
    assert count(open_video(f"{server}/list.mp4")) == count(open_video(f"{server}/hls.ts")) == 0


def test_a_playlist_is_asked_for_by_its_address(folder, server):
    if not film(folder / "seg.ts", 10, "MPG2"):
        pytest.skip("no MPEG-2 encoder in this OpenCV")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nseg.ts\n#EXT-X-ENDLIST\n"
    (folder / "live.m3u8").write_text(playlist)
    assert count(open_video(f"{server}/live.m3u8")) == 10
    (folder / "live.m3u8").write_text(playlist.replace("seg.ts", str(folder / "seg.ts")).replace("/", "file:///", 1))
    assert count(open_video(f"{server}/live.m3u8")) == 0, "a playlist of the web opened a file of this machine"
    with pytest.raises(ValueError, match=r"live\.m3u8 is no file that can be looked at"):
        open_source(folder / "live.m3u8")


def test_suffixes():
    assert suffix_of("") == suffix_of("x") == "" and suffix_of("a/b.TXT") == "txt"
    assert suffix_of("http://h/A.JPG?b=c.d") == "jpg"


# ---- an end
class Said:
    """Stands for a capture that says these numbers."""

    def __init__(self, total, fps):
        self.said = {cv2.CAP_PROP_FRAME_COUNT: total, cv2.CAP_PROP_FPS: fps}

    def get(self, what):
        return self.said[what]


@pytest.mark.parametrize("odd", [0.0, -1.0, -9.2e18, float("nan"), float("inf"), 1e12])
def test_nonsense_is_unknown(odd):
    nonsense, sense = Video(Said(odd, odd)), Video(Said(7.0, 25.0))
    assert (nonsense.total, nonsense.fps, sense.total, sense.fps) == (0, 30.0, 7, 25.0)


class Endless(Said):
    """Stands for a video that promises two frames and never stops; some versions of OpenCV would stop by themselves."""

    def __init__(self, *place, promise=2.0):
        super().__init__(promise, 10.0)

    def grab(self):
        return True

    def retrieve(self):
        return True, np.zeros((32, 32, 3), np.uint8)

    def release(self):
        pass


@pytest.mark.parametrize(
    "total, size, asked, limit",
    [
        (0, 10**9, None, 1_000_000),
        (1, 10**9, None, LEAST_LIMIT),
        (5000, 10**9, None, 50_000),
        (5000, 4999, None, 1_000_000),  # a frame has a byte at least
        (5000, 10**9, 7, 7),
        (0, 10, 1_000_001, 1_000_001),
    ],
)
def test_the_limit(total, size, asked, limit, caplog):
    video = Video(Endless(promise=total), limit - 5)
    assert len(list(video.images("a", 1, asked, size))) == 5
    assert f"a: left after {limit} frames (it {'promises' if total else 'does not say'}" in caplog.text


def test_no_file_goes_on_far_beyond_what_it_promises(folder, monkeypatch, caplog):
    file = folder / "seg.mp4"
    assert len(list(open_source(file, 32))) == 10 and not caplog.records
    monkeypatch.setattr(cv2, "VideoCapture", Endless)
    assert len(list(open_source(file, 32, vid_stride=10))) == LEAST_LIMIT / 10
    assert f"seg.mp4: left after {LEAST_LIMIT} frames (it promises 2); --max-frames 10000 reads on" in caplog.text
    monkeypatch.setattr(video_files, "LEAST_LIMIT", 15)
    caplog.clear()
    assert len(list(open_source(file, 32))) == 20 and len(caplog.records) == 1
    assert len(list(open_source(file, 32, max_frames=40))) == 40


def test_clips_at_addresses_end_as_files_do(monkeypatch, caplog):
    monkeypatch.setattr(cv2, "VideoCapture", Endless)
    monkeypatch.setattr(video_files, "LEAST_LIMIT", 15)
    assert len(list(open_source("http://host/a\x1b.mp4", 32))) == 20
    assert r"http://host/a\x1b.mp4: left after 20 frames" in caplog.text
    assert len(list(open_source("http://host/a.mp4", 32, max_frames=25))) == 25
