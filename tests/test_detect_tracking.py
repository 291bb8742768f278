"""detect.py --tracking from a drawn video to the files it leaves."""

import numpy as np
import pytest
import torch

import detect
from tests.known_detector import NAMES, write_weights
from utils.drawing.annotator import colors
from utils.drawing.writers import VideoWriter, write_image

pytest.importorskip("trackers", reason="tracking is an extra: pip install trackers")
HEIGHT, WIDTH, FRAMES = 64, 128, 26
HIDDEN, DIM = range(9, 14), range(5, 9)  # frames in which blue is not there, and in which red is hard to see


def find_squares(self, im, augment=False, visualize=None, val=False):
    """In place of the network: finds the bright part of the blue and of the red channel, both of class 0.

    How bright it is is the confidence.
    """
    rows = torch.zeros(1, 2, 5 + len(NAMES))
    for i, channel in enumerate((0, 2)):
        y, x = torch.where(im[0, channel] > 0.15)
        if len(x):
            sides = x.max() - x.min() + 1, y.max() - y.min() + 1
            box = [x.min() + sides[0] / 2, y.min() + sides[1] / 2, *sides]
            rows[0, i, :6] = torch.tensor([*map(float, box), im[0, channel].max(), 1])
    return rows


@pytest.fixture(autouse=True)
def finder(monkeypatch):
    monkeypatch.setattr(detect, "set_up_logging", lambda: None)
    monkeypatch.setattr("utils.distributed.script.set_up_logging", lambda main: None)
    monkeypatch.setattr(detect.DetectMultiBackend, "forward", find_squares)


def some_image(frame):
    """Red goes right, blue goes left a little lower; they meet in the middle."""
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    canvas[10:34, 4 + 4 * frame : 24 + 4 * frame, 2] = 50 if frame in DIM else 240
    if frame not in HIDDEN:
        canvas[22:46, 104 - 4 * frame : 124 - 4 * frame, 0] = 200
    return canvas


@pytest.fixture
def source(tmp_path):
    """Two videos that are the same, and an image."""
    folder = tmp_path / "source"
    for name in ("one", "two"):
        with VideoWriter(folder / name, 10) as video:
            for frame in range(FRAMES):
                video.write(some_image(frame))
    write_image(folder / "still.png", some_image(6))
    return folder


@pytest.fixture
def run(tmp_path, source):
    settings = {"weights": str(write_weights(tmp_path / "any.pt")), "imgsz": [HEIGHT, WIDTH], "device": "cpu"}

    def start(**given):
        places = {"source": str(source), "project": str(tmp_path / "runs")}
        return detect.run(**settings | places | {"save_txt": True, "save_conf": True} | given)

    return start


def rows_of(folder, stem):
    """The label rows of a frame."""
    file = folder / f"labels/{stem}.txt"
    return np.loadtxt(file, ndmin=2) if file.exists() else np.zeros((0, 7))


def who(rows):
    """{'red' or 'blue': number}: red is higher up."""
    return {"red" if row[2] < 0.45 else "blue": int(row[-1]) for row in rows}


def test_numbers_stay_through_crossing_hiding_and_dimming(run):
    folder = run(tracking=True)
    for video in ("one", "two"):  # each with a tracker of its own
        named = [who(rows_of(folder, f"{video}_{frame + 1}")) for frame in range(FRAMES)]
        first = named[0]
        assert sorted(first.values()) == [1, 2]
        for frame, numbers in enumerate(named):
            assert numbers == ({"red": first["red"]} if frame in HIDDEN else first), frame
        rows = rows_of(folder, f"{video}_7")
        assert rows.shape == (2, 7) and 0.1 < rows[:, 5].min() < 0.25  # class, box, confidence, track


def test_images_are_as_without_and_a_line_says_so(run, caplog, source):
    tracked, plain = run(tracking=True), run()
    said = [record.getMessage() for record in caplog.records if "--tracking" in record.getMessage()]
    assert said == ["--tracking is for videos and streams: no numbers for 1 image"]
    caplog.clear()
    run(tracking=True, source=str(source / "one.mp4"))
    assert "--tracking" not in caplog.text
    assert rows_of(tracked, "still").shape == (1, 6)  # the dim one is below --conf-thres
    assert np.array_equal(rows_of(tracked, "still"), rows_of(plain, "still"))
    assert [len(rows_of(plain, f"one_{frame + 1}")) for frame in (6, 10)] == [1, 1]
    assert rows_of(plain, "one_1").shape == (2, 6)


def test_colours_and_labels_are_those_of_the_track(run, source, tmp_path):
    number = who(rows_of(run(tracking=True, source=str(source / "one.mp4")), "one_1"))["blue"]
    assert number in (1, 2)
    canvas, row = np.zeros((90, 200, 3), np.uint8), [20.0, 50, 80, 80, 0.9, 0]
    plain, tracked, bare = (
        detect.Results(tmp_path, detect.DetectOptions(hide_labels=hidden), ["square"]).draw(
            canvas, torch.tensor([found])
        )
        for hidden, found in ((False, row), (False, [*row, 7]), (True, [*row, 7]))
    )
    assert tuple(plain[65, 20]) == colors(0, bgr=True) and not canvas.any()
    assert tuple(tracked[65, 20]) == tuple(bare[65, 20]) == colors(7, bgr=True)
    widths = [drawn[30:48].any(-1).any(0).sum() for drawn in (plain, tracked, bare)]
    assert widths[1] > widths[0] > widths[2] == 0  # "#7 square 0.90" above the box


def test_a_short_buffer_forgets_and_the_log_counts_what_is_reported(run, source, caplog):
    with caplog.at_level("INFO", "yolov5"):
        folder = run(tracking=True, track_buffer=2, source=str(source / "one.mp4"))
    assert who(rows_of(folder, f"one_{FRAMES}"))["blue"] == 3
    lines = [record.getMessage() for record in caplog.records if "video 1/1" in record.getMessage()]
    assert len(lines) == FRAMES and "2 cars" in lines[6] and "1 car," in lines[10]


@pytest.mark.parametrize(
    "given, words", [({"track_low": 1.5}, "--track-low"), ({"track_buffer": -1}, "--track-buffer")]
)
def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, given, words):
    with pytest.raises(ValueError, match=words):
        run(tracking=True, **given)
    assert not (tmp_path / "runs").exists()
