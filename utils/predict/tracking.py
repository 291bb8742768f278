"""Which detection is the same object as in the frame before: ByteTrack (arXiv:2110.06864).

A track is an object that is followed. In every frame the boxes of the tracks are predicted, and paired with the
detections that overlap them most. Sure detections come first; a track that is left without may then take an unsure one,
since an object that passes behind another one is not gone: it is seen badly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from utils.boxes.convert import xywh2xyxy, xyxy2xywh
from utils.boxes.iou import pairwise_iou
from utils.predict.assignment import cheapest_pairs
from utils.predict.motion import Motion, begin, correct, predict

SURE_OVERLAP, UNSURE_OVERLAP, NEW_OVERLAP = 0.2, 0.5, 0.3  # least IoU of the three rounds of pairing
NOBODY = -1  # the track of a detection that belongs to none


class _Tracks(NamedTuple):
    """The objects followed, n of them."""

    number: np.ndarray  # (n,) from 1
    kind: np.ndarray  # (n,) class of the latest detection
    unseen: np.ndarray  # (n,) frames since the latest detection
    confirmed: np.ndarray  # (n,) seen more than once
    motion: Motion

    def where(self, wanted: np.ndarray) -> _Tracks:
        """Those of a mask."""
        motion = Motion(*(part[wanted] for part in self.motion))
        return _Tracks(*(part[wanted] for part in self[:-1]), motion)

    def joined(self, others: _Tracks) -> _Tracks:
        """These, then the others."""
        motion = Motion(*map(np.concatenate, zip(self.motion, others.motion)))
        return _Tracks(*map(np.concatenate, zip(self[:-1], others[:-1])), motion)


class Tracker:
    """Gives the detections of one video numbers, an object the same one in all frames.

    Detections of at least `high` confidence begin tracks; those between `low` and `high` only continue them. A track
    that has had no detection for more than `buffer` frames ends. With `by_class`, a track has one class for good;
    without, it goes on where the detector changes its mind. Raises ValueError for values out of their range.
    """

    def __init__(self, high: float = 0.6, low: float = 0.1, buffer: int = 30, by_class: bool = True) -> None:
        if not 0 <= low <= high <= 1:
            raise ValueError(f"a tracker needs 0 <= low <= high <= 1, not low={low} and high={high}")
        if buffer < 0:
            raise ValueError(f"a tracker keeps a track for 0 frames or more, not {buffer}")
        self.high, self.low, self.buffer, self.by_class = high, low, buffer, by_class
        self._frames, self._given = 0, 0
        self._tracks = _begun(np.zeros((0, 6)), 0, False)

    def update(self, detections: np.ndarray) -> np.ndarray:
        """Detections (n, 6) xyxy, confidence, class of the next frame -> those that belong to a track, (m, 7).

        The seventh number is the track's, from 1; the first six and their order stay as they were. An object that
        appears later than in the first frame is reported from its second detection on, as one alone is often a mistake.
        Raises ValueError for another shape.
        """
        rows = np.asarray(detections, np.float64)
        if rows.ndim != 2 or rows.shape[1] != 6:
            raise ValueError(f"a tracker takes detections (n, 6), not {rows.shape}")
        order = np.lexsort((*rows[:, [5, 3, 2, 1, 0]].T, -rows[:, 4]))  # so that their order has no say
        numbers = np.zeros(len(rows), int)
        numbers[order] = self._follow(rows[order])
        return np.column_stack([rows, numbers])[numbers > 0]

    def _follow(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of the detections' tracks, 0 for none; the tracks are those of this frame afterwards."""
        self._frames += 1
        tracks = _one_frame_later(self._tracks)
        track_of = self._pair(tracks, rows)
        found = np.flatnonzero(track_of != NOBODY)
        tracks = _seen(tracks, track_of[found], rows[found])
        fresh = np.flatnonzero((track_of == NOBODY) & (rows[:, 4] >= self.high))
        track_of[fresh] = len(tracks.number) + np.arange(len(fresh))
        tracks = tracks.joined(_begun(rows[fresh], self._given, confirmed=self._frames == 1))
        self._given += len(fresh)
        numbers = np.append(np.where(tracks.confirmed, tracks.number, 0), 0)[track_of]
        alive = (tracks.unseen == 0) | (tracks.confirmed & (tracks.unseen <= self.buffer))
        self._tracks = tracks.where(alive)
        return numbers

    def _pair(self, tracks: _Tracks, rows: np.ndarray) -> np.ndarray:
        """The position of each detection's track, `NOBODY` for those that continue none."""
        overlap = _overlap(tracks.motion.boxes, rows[:, :4])
        if self.by_class:
            overlap[tracks.kind[:, None] != rows[None, :, 5]] = 0
        sure = rows[:, 4] >= self.high
        unsure = (rows[:, 4] >= self.low) & ~sure
        rounds = (
            (tracks.confirmed, sure, SURE_OVERLAP),
            (tracks.confirmed & (tracks.unseen == 1), unsure, UNSURE_OVERLAP),
            (~tracks.confirmed, sure, NEW_OVERLAP),
        )
        track_of, taken = np.full(len(rows), NOBODY), np.zeros(len(tracks.number), bool)
        for who, what, least in rounds:
            some, others = np.flatnonzero(who & ~taken), np.flatnonzero(what & (track_of == NOBODY))
            gain = np.maximum(overlap[np.ix_(some, others)] - least, 0)
            pairs = np.stack(cheapest_pairs(-gain))
            left, right = pairs[:, gain[tuple(pairs)] > 0]
            track_of[others[right]] = some[left]
            taken[some[left]] = True
        return track_of


def _begun(rows: np.ndarray, given: int, confirmed: bool) -> _Tracks:
    """New tracks from detections (n, 6), numbered on from `given`."""
    count = len(rows)
    numbers = given + 1 + np.arange(count)
    return _Tracks(numbers, rows[:, 5], np.zeros(count, int), np.full(count, confirmed), begin(xyxy2xywh(rows[:, :4])))


def _one_frame_later(tracks: _Tracks) -> _Tracks:
    """Where the tracks should be now. What was out of sight keeps its size: a trend of sizes would soon be absurd."""
    mean = tracks.motion.mean.copy()
    mean[tracks.unseen > 0, 2:, 1] = 0
    return tracks._replace(unseen=tracks.unseen + 1, motion=predict(Motion(mean, tracks.motion.covariance)))


def _seen(tracks: _Tracks, which: np.ndarray, rows: np.ndarray) -> _Tracks:
    """The tracks after those at the positions `which` have been found at detections (n, 6)."""
    kind, unseen, confirmed = tracks.kind.copy(), tracks.unseen.copy(), tracks.confirmed.copy()
    kind[which], unseen[which], confirmed[which] = rows[:, 5], 0, True
    motion = Motion(*(part.copy() for part in tracks.motion))
    known = correct(Motion(*(part[which] for part in motion)), xyxy2xywh(rows[:, :4]))
    motion.mean[which], motion.covariance[which] = known
    return _Tracks(tracks.number, kind, unseen, confirmed, motion)


def _overlap(tracked: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes cx cy w h with boxes xyxy; a box without area overlaps nothing."""
    corners = torch.from_numpy(xywh2xyxy(tracked))
    overlap = pairwise_iou(corners, torch.from_numpy(np.ascontiguousarray(boxes))).numpy()
    return np.where((tracked[:, None, 2:] > 0).all(-1), overlap, 0.0)
