"""Which detection is the same object as in the frame before: ByteTrack (arXiv:2110.06864) of the package `trackers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from trackers import ByteTrackTracker


class Tracker:
    """Gives the detections of one video numbers, an object the same one in all frames.

    Detections of at least `high` confidence begin tracks; those between `low` and `high` only continue them. A track
    that has had no detection for more than `buffer` frames ends. With `by_class`, a track has one class for good;
    without, it goes on where the detector changes its mind. Raises ValueError for values out of their range, and where
    the package is missing.
    """

    def __init__(self, high: float = 0.6, low: float = 0.1, buffer: int = 30, by_class: bool = True) -> None:
        if not 0 <= low <= high <= 1:
            raise ValueError(f"a tracker needs 0 <= low <= high <= 1, not low={low} and high={high}")
        if buffer < 0:
            raise ValueError(f"a tracker keeps a track for 0 frames or more, not {buffer}")
        try:
            import supervision
            import trackers
        except ImportError:
            raise ValueError("tracking needs a package: pip install trackers") from None
        self.high, self.low, self.buffer, self.by_class = high, low, buffer, by_class
        self._new, self._detections = trackers.ByteTrackTracker, supervision.Detections
        self._frames = 0
        self._by_class: dict[int, ByteTrackTracker] = {}  # the package does not look at classes
        self._numbers: dict[tuple[int, int], int] = {}  # of a class and the number that its tracker gives

    def update(self, detections: np.ndarray) -> np.ndarray:
        """Detections (n, 6) xyxy, confidence, class of the next frame -> those that belong to a track, (m, 7).

        The seventh number is the track's, from 1; the first six and their order stay as they were. An object that
        appears later than in the first frame is reported from its second detection on, as one alone is often a mistake.
        Raises ValueError for another shape.
        """
        rows = np.asarray(detections, np.float64)
        if rows.ndim != 2 or rows.shape[1] != 6:
            raise ValueError(f"a tracker takes detections (n, 6), not {rows.shape}")
        self._frames += 1
        order = np.lexsort((*rows[:, [5, 3, 2, 1, 0]].T, -rows[:, 4]))  # so that numbers do not depend on their order
        order = order[(rows[order, 4] >= self.low) & (rows[order, 2:4] > rows[order, :2]).all(1)]
        kinds = rows[order, 5].astype(int) * self.by_class
        numbers = np.zeros(len(rows), int)
        for kind in dict.fromkeys([*self._by_class, *kinds.tolist()]):
            tracker = self._by_class.setdefault(kind, self._new(self.buffer, 30, self.high, 2, 0.1, self.high))
            mine = order[kinds == kind]
            found = self._detections(rows[mine, :4], confidence=rows[mine, 4], data={"row": mine})
            for _ in range(2 if self._frames == 1 else 1):  # seen twice, the objects of the first frame count at once
                tracked = tracker.update(found)
            assert tracked.tracker_id is not None
            for row, number in zip(tracked.data.get("row", ()), tracked.tracker_id, strict=True):
                if number >= 0:
                    numbers[row] = self._numbers.setdefault((kind, int(number)), len(self._numbers) + 1)
        return np.column_stack([rows, numbers])[numbers > 0]
