"""What counts as a source, and what comes out of it."""

import hashlib
import time

import numpy as np
import pytest

from tests.pages import Pages, serving
from utils.drawing.writers import VideoWriter, write_image
from utils.predict.sources import Frame, Source, fetch_image, open_source, readable_name


def image(value=100, height=30, width=40):
    return np.full((height, width, 3), value, np.uint8)


def make_video(path, frames=5, size=(48, 64)):
    with VideoWriter(path, 10) as writer:
        for i in range(frames):
            writer.write(image(40 * i + 20, *size))
    return writer.path


@pytest.fixture
def folder(tmp_path):
    """Two images, a video, a text, and a folder below with a third image."""
    write_image(tmp_path / "b.JPG", image())
    write_image(tmp_path / "a 图.png", image())
    (tmp_path / "note.md").write_text("words")
    write_image(tmp_path / "below" / "c.bmp", image())
    make_video(tmp_path / "0.mp4")
    return tmp_path


@pytest.fixture
def server(folder):
    """Address of an HTTP server for `folder`."""
    with serving(folder) as address:
        yield address


def names_of(source):
    return [(frame.kind, frame.path.rpartition("/")[2]) for frame in source]


def test_frames_are_named_after_their_own_source(folder):
    """Files first, then streams, whatever number they have among these."""
    clip = make_video(folder / "below/clip")
    frames = [(frame.source, frame.path) for frame in Source([str(folder / "b.JPG")], [str(clip), str(clip)], (64, 64))]
    assert dict(frames) == {0: str(folder / "b.JPG"), 1: str(clip), 2: str(clip)} and len(frames) == 11


def test_a_frame_costs_the_same_among_many_files(folder):
    """Nothing goes through the list of all files for each of them."""

    class Files(list):
        def __iter__(self):
            walked.append(self)
            return super().__iter__()

    walked: list[Files] = []
    source = Source(Files([str(folder / "b.JPG")] * 5), [], (64, 64))
    assert len(list(source)) == 5 and len(walked) == 1


@pytest.mark.parametrize("source", ["", "nowhere", "no/*.jpg", "nowhere.jpg", "nowhere.txt", "note.md"])
def test_nothing_there(source, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError) as caught:
        open_source(source)
    assert source in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_and_what_its_files_become(folder):
    expected = [("image", "a 图.png"), ("image", "b.JPG"), *[("video", "0.mp4")] * 5]
    assert names_of(open_source(folder, 64)) == expected
    assert len(open_source(folder)) == 3
    odd = write_image(folder / "a[1].png", image())  # a file's own name is no pattern
    assert names_of(open_source(odd)) == [("image", "a[1].png")]
    names = {"a.JPG": ".JPG", "b.dng": ".jpg", "http://h/d.png?x=1.jpg": ".png", "e.avi": ".mp4"}
    assert {one.path: one.suffix for one in Source([*names], ["0"]).outputs()} == names | {"0": ".mp4"}


def test_an_image_is_letterboxed_rgb(tmp_path):
    bgr = np.zeros((30, 40, 3), np.uint8)
    bgr[..., 0] = 255
    (frame,) = open_source(write_image(tmp_path / "blue.png", bgr), 64, stride=32)
    assert isinstance(frame, Frame) and (frame.number, frame.total, frame.source, frame.sources) == (0, 0, 0, 1)
    assert np.array_equal(frame.original, bgr) and frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous
    assert frame.image.shape == (3, 64, 64) and tuple(frame.image[:, 32, 32]) == (0, 0, 255)
    assert tuple(frame.image[:, 0, 0]) == (114,) * 3
    assert frame.describe() == f"image 1/1 {frame.path}: "


def test_broken_files_are_warnings_and_the_run_goes_on(folder, caplog):
    (folder / "a0.jpg").write_bytes(b"")
    (folder / "a1.jpg").write_bytes(b"no image")
    (folder / "1.mp4").write_bytes(b"no video")
    with caplog.at_level("WARNING", "yolov5"):
        found = names_of(open_source(folder, 64))
    assert [name for _, name in found] == ["a 图.png", "b.JPG", *["0.mp4"] * 5]
    messages = [record.getMessage() for record in caplog.records]
    named = zip(("a0.jpg", "a1.jpg", "1.mp4"), messages, strict=True)
    assert all(name in text for name, text in named)
    assert not any("\n" in text for text in messages)


def test_video_frames_are_numbered(folder):
    frames = list(open_source(folder / "0.mp4", 64))
    assert [frame.number for frame in frames] == [1, 2, 3, 4, 5] and {frame.total for frame in frames} == {5}
    assert [round(frame.original.mean() / 40 - 0.5) for frame in frames] == [0, 1, 2, 3, 4]
    assert frames[1].describe().startswith("video 1/1 (2/5) ")
    every_second = list(open_source(folder / "0.mp4", 64, vid_stride=2))
    assert [frame.number for frame in every_second] == [1, 3, 5] and every_second[0].fps == frames[0].fps / 2


def test_names_reach_the_log_as_one_line(folder, caplog):
    (folder / "\x1b]0;own\x07\n.jpg").write_bytes(b"no image")
    (folder / "\x1b]0;own\x07.mp4").write_bytes(b"no video\0")
    good = folder / "\x1b[2J\n.png"
    good.write_bytes((folder / "a 图.png").read_bytes())
    frames = list(open_source(folder, 64))
    assert next(frame.describe() for frame in frames if frame.path == str(good)).isprintable()
    assert len(caplog.records) == 2 and all(record.getMessage().isprintable() for record in caplog.records)


def test_webcams_and_addresses_are_streams():
    assert open_source("0").streams == ["0"] and not open_source("0").files and open_source("RTSP://x").streams
    assert open_source("rtsp://camera/1.jpg").streams and open_source("HTTP://host/live").streams
    assert open_source("https://host/X.JPG?size=1.mp4").files and not open_source("https://host/X.JPG").streams
    with pytest.raises(ValueError, match="download"):
        open_source("https://www.youtube.com/watch?v=1")


def test_images_and_clips_over_http(server, folder, monkeypatch):
    monkeypatch.chdir(folder / "below")
    (frame,) = open_source(f"{server}/b.JPG?x=1", 64)
    assert frame.kind == "image" and frame.original.shape == (30, 40, 3)
    clip = list(open_source(f"{server}/0.mp4", 64))
    assert [frame.number for frame in clip] == [1, 2, 3, 4, 5]
    assert clip[0].kind == "stream" and clip[0].describe() == "0: "
    assert sorted(path.name for path in (folder / "below").iterdir()) == ["c.bmp"]  # nothing is downloaded to a file


def test_addresses_that_fail_and_a_server_that_drips_or_writes_to_the_terminal(server, odd_server, monkeypatch):
    bad = ((f"{server}/none.jpg", "404"), (f"{server}/note.md", "no image"), ("ftp://host/a.jpg", "http"))
    for url, words in bad:
        with pytest.raises(ValueError, match=words) as caught:
            fetch_image(url)
        assert url in str(caught.value)
    monkeypatch.setattr("utils.predict.sources.WEB_LONGEST", 0.2)
    with pytest.raises(ValueError, match=r"drip\.jpg cannot be fetched: it takes longer than 0 s"):
        fetch_image(f"{odd_server}/drip.jpg")
    for url in (f"{odd_server}/rude.jpg", f"{odd_server}/\x1b[2J.jpg", "ftp://\x1b[2J.jpg"):
        with pytest.raises(ValueError) as caught:
            fetch_image(url)
        assert str(caught.value).isprintable() and r"\x1b" in str(caught.value)


class Odd(Pages):
    """Drips bytes without an end; answers with control characters."""

    def do_GET(self):
        self.send_response(*((404, "\x1b]0;own\x07") if self.path == "/rude.jpg" else (200,)))
        self.end_headers()
        while self.path == "/drip.jpg":
            try:
                self.wfile.write(b"x")
                time.sleep(0.02)
            except OSError:
                break


@pytest.fixture
def odd_server():
    with serving(Odd) as address:
        yield address


@pytest.mark.parametrize(
    "address, name",
    [
        ("a/b/bus.stop.jpg", "bus.stop"),
        ("a/2024-01-01T12:00 (1).jpg", "2024-01-01T12:00 (1)"),  # a file's own name, as in v6.1
        ("a/\x1b]0;own\x07.jpg", "_]0;own_"),
        ("http://h/%2e%2e", "__"),
        ("http://h/..%2f..%2fx%1b.jpg", "x_"),
        ("rtsp://user:pw@10.0.0.1:554/live?x=1", "live"),
        ("https://h/%E5%9B%BE%20a.mp4", "图 a"),
        ("0", "0"),
        ("http://user:pw@host:80", "host_80"),
        ("http://h/" + "x" * 300, "x" * 221 + "~" + hashlib.sha256(b"x" * 300).hexdigest()[:8]),
    ],
)
def test_names_for_results(address, name):
    assert readable_name(address) == name
