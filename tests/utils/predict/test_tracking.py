"""Tracks in drawn scenes, whose objects are known."""

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.predict.tracking import Tracker

NOTHING = np.zeros((0, 6))


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
    leaves: int = 1000

    def row(self, frame, rng, jitter):
        """Its detection in a frame, or None."""
        if frame in self.missed or not self.enters <= frame < self.leaves:
            return None
        centre = np.add(self.start, np.multiply(self.step, frame)) + rng.normal(0, jitter, 2)
        side = np.multiply(self.size, 1 + rng.normal(0, jitter / 50, 2)) / 2
        score = rng.uniform(0.15, 0.5) if frame in self.weak else rng.uniform(0.7, 0.95)
        return [*(centre - side), *(centre + side), score, self.kind]


def scene(walkers, frames, jitter=0.5, seed=0):
    """Detections of each frame (n, 6), and which walker each is of."""
    rng = np.random.default_rng(seed)
    pictures = []
    for frame in range(frames):
        rows = {who: row for who, walker in enumerate(walkers) if (row := walker.row(frame, rng, jitter))}
        pictures.append((np.array(list(rows.values())).reshape(-1, 6), list(rows)))
    return pictures


def follow(pictures, tracker=None):
    """[{walker: track number}] of every frame."""
    tracker = tracker or Tracker()
    named = []
    for rows, who in pictures:
        found = tracker.update(rows)
        assert len(set(found[:, 6])) == len(found)
        owner = {tuple(row): name for row, name in zip(rows, who, strict=True)}
        named.append({owner[tuple(row[:6])]: int(row[6]) for row in found})
    return named


def switches(named):
    """How often a walker's number is not the one it had before."""
    last, count = {}, 0
    for frame in named:
        for who, number in frame.items():
            count += last.setdefault(who, number) != number
            last[who] = number
    return count


def identity_f1(pictures, named):
    """IDF1: the best one-to-one naming of walkers by track numbers, found by trying all."""
    walkers = sorted({who for _, present in pictures for who in present})
    numbers = sorted({number for frame in named for number in frame.values()})
    numbers += [0] * max(0, len(walkers) - len(numbers))
    together = {
        (who, number): sum(frame.get(who) == number for frame in named) for who in walkers for number in numbers
    }
    best = max(
        sum(together[pair] for pair in zip(walkers, chosen, strict=True))
        for chosen in permutations(numbers, len(walkers))
    )
    return 2 * best / (sum(len(who) for _, who in pictures) + sum(map(len, named)))


# ---- the empty case
def test_nothing_is_seen():
    tracker = Tracker()
    for _ in range(3):
        assert tracker.update(NOTHING).shape == (0, 7)


def test_empty_frames_between():
    pictures = scene([Walker((50, 50), (2, 1), missed=tuple(range(5, 12)))], 20)
    named = follow(pictures)
    assert all(frame == {} for frame in named[5:12]) and named[12:] == [{0: 1}] * 8


# ---- simple scenes: never a switch
SIMPLE = {
    "side by side": [Walker((40 + 60 * i, 80), (1, 0.5)) for i in range(6)],
    "head on": [Walker((40, 100), (4, 0)), Walker((240, 130), (-4, 0))],
    "diagonals": [Walker((40, 40), (4, 4)), Walker((240, 58), (-4, 4)), Walker((140, 260), (0, -3))],
    "overtaking": [Walker((20, 100), (6, 0)), Walker((80, 115), (2, 0))],
    "one class through another": [Walker((40, 100), (4, 0)), Walker((240, 100), (-4, 0), kind=1)],
    "behind a pillar": [Walker((20, 100), (4, 0), missed=tuple(range(22, 34))), Walker((150, 200), (-1, 0))],
    "badly seen": [Walker((20, 100), (4, 1), weak=tuple(range(10, 35)))],
    "growing": [Walker((150, 150), (1, 1), size=(20, 30)), Walker((300, 80), (-3, 0), size=(90, 140))],
    "flickering": [Walker((40 + 70 * i, 90), (2, 1), missed=tuple(range(5 + i, 50, 4))) for i in range(4)],
}


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("seed", range(3))
def test_no_number_changes_in_simple_scenes(name, seed):
    pictures = scene(SIMPLE[name], 50, seed=seed)
    named = follow(pictures)
    assert switches(named) == 0 and identity_f1(pictures, named) == 1
    assert sorted(named[0].values()) == list(range(1, len(named[0]) + 1))
    assert [set(frame) for frame in named] == [set(who) for _, who in pictures]  # nobody is left out


def test_a_long_occlusion_in_a_crossing():
    """Two meet and the one behind is not detected while they overlap."""
    hidden = tuple(range(21, 30))
    named = follow(scene([Walker((40, 100), (4, 0)), Walker((240, 104), (-4, 0), missed=hidden)], 55))
    assert switches(named) == 0 and named[-1] == named[0]


def test_crowds_keep_most_of_their_numbers():
    rng = np.random.default_rng(5)
    walkers = [
        Walker(tuple(rng.uniform(0, 600, 2)), tuple(rng.uniform(-3, 3, 2)), missed=tuple(rng.integers(2, 60, 6)))
        for _ in range(25)
    ]
    pictures = scene(walkers, 60, jitter=1.0, seed=1)
    named = follow(pictures)
    seen = sum(len(who) for _, who in pictures)
    missing = seen - sum(map(len, named))
    assert 1 - (missing + switches(named)) / seen > 0.97  # MOTA; nothing is reported that is not there


def test_walkers_that_come_and_go():
    walkers = [Walker((30, 40), (2, 0), leaves=20), Walker((300, 40), (-2, 0), enters=10), Walker((90, 200), (0, 1))]
    pictures = scene(walkers, 40)
    named = follow(pictures)
    assert switches(named) == 0 and 1 not in named[10] and named[11][1] == 3  # reported when seen for the second time
    assert 0.98 < identity_f1(pictures, named) < 1


# ---- the rules
def test_a_single_false_alarm_is_not_reported_and_costs_no_number_twice():
    steady = [10.0, 10, 50, 90, 0.9, 0]
    tracker = Tracker()
    tracker.update(np.array([steady]))
    for frame in range(6):
        alarm = [200.0 + 60 * frame, 10, 240 + 60 * frame, 90, 0.9, 0]
        found = tracker.update(np.array([alarm, steady]))
        assert found[:, 6].tolist() == [1]


def test_weak_detections_continue_tracks_and_begin_none():
    row = np.array([[10.0, 10, 50, 90, 0.3, 0]])
    assert not any(len(tracker.update(row)) for tracker in [Tracker()] for _ in range(4))
    tracker = Tracker()
    tracker.update(np.where(np.arange(6) == 4, 0.9, row))
    assert tracker.update(row)[:, 6].tolist() == [1]
    assert len(tracker.update(np.where(np.arange(6) == 4, 0.05, row))) == 0


@pytest.mark.parametrize("gap, same", [(1, True), (5, True), (6, False)])
def test_the_buffer(gap, same):
    row, tracker = np.array([[10.0, 10, 50, 90, 0.9, 0]]), Tracker(buffer=5)
    tracker.update(row)
    for _ in range(gap):
        tracker.update(NOTHING)
    numbers = [tracker.update(row)[:, 6].tolist() for _ in range(2)]
    assert numbers == ([[1], [1]] if same else [[], [2]])


def test_what_grew_before_it_was_hidden_is_not_taken_to_grow_on():
    tracker = Tracker()
    for side in range(20, 61, 5):
        tracker.update(np.array([[100.0 - side, 100 - side, 100 + side, 100 + side, 0.9, 0]]))
    for _ in range(20):
        tracker.update(NOTHING)
    assert tracker.update(np.array([[40.0, 40, 160, 160, 0.9, 0]]))[:, 6].tolist() == [1]


def test_a_changing_class():
    rows = np.array([[10.0, 10, 50, 90, 0.9, 0]]), np.array([[10.0, 10, 50, 90, 0.9, 2]])
    strict, loose = Tracker(), Tracker(by_class=False)
    assert [len(strict.update(row)) for row in rows] == [1, 0]
    assert [loose.update(row)[0, 5:].tolist() for row in rows] == [[0, 1], [2, 1]]


def test_detections_come_back_as_they_were_and_in_their_order():
    (rows, _), *_ = scene(SIMPLE["side by side"], 1)
    before = rows.copy()
    found = Tracker().update(rows)
    assert np.array_equal(found[:, :6], before) and np.array_equal(rows, before)


def test_boxes_without_area_do_no_harm():
    flat = np.array([[10.0, 10, 10, 90, 0.9, 0], [20, 20, 60, 60, 0.9, 0]])
    tracker = Tracker()
    for _ in range(5):
        found = tracker.update(flat)
    assert 2 in found[:, 6] or 1 in found[:, 6]
    assert np.isfinite(found).all()


def test_trackers_know_nothing_of_each_other():
    pictures = scene(SIMPLE["diagonals"], 20)
    alone = follow(pictures)
    first, second = Tracker(), Tracker()
    mixed = [(follow([picture], first)[0], follow([picture], second)[0]) for picture in pictures]
    assert [pair[0] for pair in mixed] == [pair[1] for pair in mixed] == alone


# ---- properties
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_detections_has_no_say(seed):
    rng = np.random.default_rng(seed)
    walkers = [
        Walker(
            tuple(rng.uniform(0, 150, 2)),
            tuple(rng.uniform(-5, 5, 2)),
            kind=int(rng.integers(2)),
            missed=tuple(rng.integers(0, 12, 4)),
            weak=tuple(rng.integers(0, 12, 4)),
        )
        for _ in range(7)
    ]
    pictures = scene(walkers, 12, jitter=2.0, seed=seed)
    shuffled = []
    for rows, who in pictures:
        order = rng.permutation(len(rows))
        shuffled.append((rows[order], [who[i] for i in order]))
    assert follow(shuffled) == follow(pictures)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([0.5, 2.0, 4.0]), st.integers(-500, 500))
def test_neither_scale_nor_place_matters(seed, scale, shift):
    pictures = scene([replace(walker, weak=(4, 9)) for walker in SIMPLE["diagonals"]], 30, jitter=1.5, seed=seed)
    moved = [(np.column_stack([rows[:, :4] * scale + shift, rows[:, 4:]]), who) for rows, who in pictures]
    assert follow(moved) == follow(pictures)


# ---- mistakes
@pytest.mark.parametrize("given", [{"low": 0.7}, {"high": 1.2}, {"low": -0.1}, {"buffer": -1}])
def test_values_out_of_range(given):
    with pytest.raises(ValueError, match=next(iter(given)) if "buffer" not in given else "0 frames or more"):
        Tracker(**given)


@pytest.mark.parametrize("shape", [(6,), (2, 5), (2, 7)])
def test_other_shapes(shape):
    with pytest.raises(ValueError, match="detections"):
        Tracker().update(np.zeros(shape))
