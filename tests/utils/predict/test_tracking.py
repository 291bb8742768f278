"""Numbers of tracks; how well objects are followed is the package's own matter, and tests/test_detect_tracking.py's."""

import sys

import numpy as np
import pytest

from utils.predict.tracking import Tracker

pytest.importorskip("trackers", reason="tracking is an extra: pip install trackers")
NOTHING = np.zeros((0, 6))
ROW = np.array([[10.0, 10, 50, 90, 0.9, 0]])


def moved(frame, rows, step=3.0):
    """Detections (n, 6) after so many frames, half of them going right and half going left."""
    steps = np.where(np.arange(len(rows)) % 2, -step, step)[:, None] * frame
    return rows + steps * [1, 0, 1, 0, 0, 0]


def numbers(tracker, *frames):
    """The numbers that each frame's detections get."""
    return [tracker.update(rows)[:, 6].tolist() for rows in frames]


CROSSING = np.array([[0.0, 10, 30, 70, 0.9, 0], [150, 14, 180, 74, 0.8, 0], [0, 200, 30, 260, 0.7, 1]])


def test_numbers_stay_and_detections_come_back_as_they_were():
    frames = [moved(frame, CROSSING) for frame in range(50)]
    assert numbers(Tracker(), *frames) == [[1, 2, 3]] * 50
    assert [found.shape for found in map(Tracker().update, [NOTHING] * 3)] == [(0, 7)] * 3
    before = frames[0].copy()
    assert np.array_equal(Tracker().update(frames[0])[:, :6], before) and np.array_equal(frames[0], before)
    order = [2, 0, 1]  # which does not matter
    assert numbers(Tracker(), *(rows[order] for rows in frames[:9])) == [[3, 1, 2]] * 9


def test_who_comes_later_is_reported_when_seen_twice_and_a_single_false_alarm_never():
    tracker = Tracker()
    assert numbers(tracker, ROW, CROSSING[2:], CROSSING[2:]) == [[1], [], [2]]
    tracker = Tracker()
    tracker.update(ROW)
    for frame in range(6):
        alarm = [200.0 + 60 * frame, 10, 240 + 60 * frame, 90, 0.9, 0]
        assert numbers(tracker, np.array([alarm, ROW[0]])) == [[1]]


def test_weak_detections_continue_tracks_and_begin_none():
    weak, weakest = (np.add(ROW, [0, 0, 0, 0, less, 0]) for less in (-0.6, -0.85))
    assert numbers(Tracker(), *[weak] * 4) == [[]] * 4
    assert numbers(Tracker(), ROW, weak, weakest) == [[1], [1], []]


@pytest.mark.parametrize("gap, found", [(1, [[1], [1]]), (5, [[1], [1]]), (6, [[], [2]])])
def test_the_buffer(gap, found):
    assert numbers(Tracker(buffer=5), ROW, *[NOTHING] * gap, ROW, ROW)[-2:] == found


def test_a_changing_class_and_boxes_without_area():
    changed = np.add(ROW, [0, 0, 0, 0, 0, 2])
    assert numbers(Tracker(), ROW, changed) == [[1], []]
    assert numbers(Tracker(by_class=False), ROW, changed) == [[1], [1]]
    flat = np.concatenate((ROW * [1, 1, 0.2, 1, 1, 1], ROW))
    assert numbers(Tracker(), *[flat] * 3) == [[1]] * 3


@pytest.mark.parametrize(
    "given, message",
    [({"low": 0.7}, "low"), ({"high": 1.2}, "high"), ({"low": -0.1}, "low"), ({"buffer": -1}, "0 frames or more")],
)
def test_values_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        Tracker(**given)


def test_other_shapes_and_a_missing_package(monkeypatch):
    for shape in ((6,), (2, 5), (2, 7)):
        with pytest.raises(ValueError, match="detections"):
            Tracker().update(np.zeros(shape))
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(ValueError, match="^tracking needs a package: pip install trackers$"):
        Tracker()
