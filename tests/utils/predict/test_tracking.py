"""Tracks in drawn scenes, whose objects are known."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest

from utils.predict.tracking import Tracker

pytest.importorskip("trackers", reason="tracking is an extra: pip install trackers")
NOTHING = np.zeros((0, 6))
ROW = np.array([[10.0, 10, 50, 90, 0.9, 0]])


@dataclass(frozen=True)
class Walker:
    """An object that goes straight on."""

    start: tuple[float, float]
    step: tuple[float, float]
    size: tuple[float, float] = (30.0, 60.0)
    kind: int = 0
    missed: tuple[int, ...] = ()  # frames without a detection
    weak: tuple[int, ...] = ()  # frames with a detection that is not sure
    enters: int = 0

    def row(self, frame, rng, jitter):
        """Its detection in a frame, or None."""
        if frame in self.missed or frame < self.enters:
            return None
        centre = np.add(self.start, np.multiply(self.step, frame)) + rng.normal(0, jitter, 2)
        side = np.multiply(self.size, 1 + rng.normal(0, jitter / 50, 2)) / 2
        score = rng.uniform(0.15, 0.5) if frame in self.weak else rng.uniform(0.7, 0.95)
        return [*(centre - side), *(centre + side), score, self.kind]


def scene(walkers, frames, seed=0):
    """Detections of each frame (n, 6), and which walker each is of."""
    rng = np.random.default_rng(seed)
    images = []
    for frame in range(frames):
        rows = {who: row for who, walker in enumerate(walkers) if (row := walker.row(frame, rng, 0.5))}
        images.append((np.array(list(rows.values())).reshape(-1, 6), list(rows)))
    return images


def follow(images, tracker=None):
    """[{walker: track number}] of every frame."""
    tracker = tracker or Tracker()
    named = []
    for rows, who in images:
        found = tracker.update(rows)
        assert len(set(found[:, 6])) == len(found)
        owner = {tuple(row): name for row, name in zip(rows, who, strict=True)}
        named.append({owner[tuple(row[:6])]: int(row[6]) for row in found})
    return named


SIMPLE = {
    "side by side": [Walker((40 + 60 * i, 80), (1, 0.5)) for i in range(6)],
    "head on": [Walker((40, 100), (4, 0)), Walker((240, 130), (-4, 0))],
    "diagonals": [Walker((40, 40), (4, 4)), Walker((240, 58), (-4, 4)), Walker((140, 260), (0, -3))],
    "one class through another": [Walker((40, 100), (4, 0)), Walker((240, 100), (-4, 0), kind=1)],
    "behind a pillar": [Walker((20, 100), (4, 0), missed=tuple(range(22, 34))), Walker((150, 200), (-1, 0))],
    "badly seen": [Walker((20, 100), (4, 1), weak=tuple(range(10, 35)))],
    "flickering": [Walker((40 + 70 * i, 90), (2, 1), missed=tuple(range(5 + i, 50, 4))) for i in range(4)],
    "hidden in a crossing": [Walker((40, 100), (4, 0)), Walker((240, 104), (-4, 0), missed=tuple(range(21, 30)))],
}


@pytest.mark.parametrize("name", SIMPLE)
def test_no_number_changes_in_simple_scenes(name):
    images = scene(SIMPLE[name], 50)
    named = follow(images)
    numbers = {who: number for frame in named for who, number in frame.items()}
    assert all(frame == {who: numbers[who] for who in frame} for frame in named)
    assert sorted(named[0].values()) == list(range(1, len(named[0]) + 1))
    assert [set(frame) for frame in named] == [set(who) for _, who in images]  # nobody is left out


def test_who_comes_later_is_reported_when_seen_twice_and_a_single_false_alarm_never():
    named = follow(scene([Walker((30, 40), (2, 0)), Walker((300, 40), (-2, 0), enters=10)], 20))
    assert 1 not in named[10] and named[11][1] == 2
    tracker = Tracker()
    tracker.update(ROW)
    for frame in range(6):
        alarm = [200.0 + 60 * frame, 10, 240 + 60 * frame, 90, 0.9, 0]
        assert tracker.update(np.array([alarm, ROW[0]]))[:, 6].tolist() == [1]


def test_weak_detections_continue_tracks_and_begin_none():
    weak, weakest = ROW.copy(), ROW.copy()
    weak[0, 4], weakest[0, 4] = 0.3, 0.05
    tracker = Tracker()
    assert not any(len(tracker.update(weak)) for _ in range(4))
    tracker = Tracker()
    tracker.update(ROW)
    assert tracker.update(weak)[:, 6].tolist() == [1] and len(tracker.update(weakest)) == 0


@pytest.mark.parametrize("gap, numbers", [(1, [[1], [1]]), (5, [[1], [1]]), (6, [[], [2]])])
def test_the_buffer(gap, numbers):
    tracker = Tracker(buffer=5)
    for rows in (ROW, *[NOTHING] * gap):
        tracker.update(rows)
    assert [tracker.update(ROW)[:, 6].tolist() for _ in range(2)] == numbers


def test_a_changing_class_and_boxes_without_area():
    changed = np.add(ROW, [0, 0, 0, 0, 0, 2])
    strict, loose = Tracker(), Tracker(by_class=False)
    assert [len(strict.update(rows)) for rows in (ROW, changed)] == [1, 0]
    assert [loose.update(rows)[0, 5:].tolist() for rows in (ROW, changed)] == [[0, 1], [2, 1]]
    flat = np.array([[10.0, 10, 10, 90, 0.9, 0], [20, 20, 60, 60, 0.9, 0]])
    tracker = Tracker()
    for _ in range(3):
        assert tracker.update(flat)[:, 6].tolist() == [1]


def test_detections_come_back_as_they_were_and_their_order_does_not_matter():
    rng = np.random.default_rng(3)
    images = scene([*SIMPLE["diagonals"], *SIMPLE["flickering"], Walker((90, 90), (1, 1), kind=1)], 15)
    before = images[0][0].copy()
    found = Tracker().update(images[0][0])
    assert np.array_equal(found[:, :6], before) and np.array_equal(images[0][0], before)
    shuffled = []
    for rows, who in images:
        order = rng.permutation(len(rows))
        shuffled.append((rows[order], [who[i] for i in order]))
    assert follow(shuffled) == follow(images)


@pytest.mark.parametrize(
    "given, message",
    [({"low": 0.7}, "low"), ({"high": 1.2}, "high"), ({"low": -0.1}, "low"), ({"buffer": -1}, "0 frames or more")],
)
def test_values_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        Tracker(**given)


@pytest.mark.parametrize("shape", [(6,), (2, 5), (2, 7)])
def test_other_shapes(shape):
    with pytest.raises(ValueError, match="detections"):
        Tracker().update(np.zeros(shape))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(ValueError, match="^tracking needs a package: pip install trackers$"):
        Tracker()
