"""Average precision by object size, after COCO's rules (https://cocodataset.org/#detection-eval).

An object counts in its own size range only. In the other ranges it is *ignored*: a detection that matches it is neither
right nor wrong there, and so is a detection that matches nothing and whose own size lies outside of the range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE_RANGES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}  # pixels^2
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = 100  # of a class in an image, the most confident ones
WRONG, RIGHT, IGNORED = 0, 1, 2


@dataclass(slots=True, frozen=True)
class SizeResult:
    """Average precision of the objects of one size; nan where there are none."""

    labels: int
    map50: float
    map: float


def match_by_size(
    iou: np.ndarray, confidence: np.ndarray, predicted: np.ndarray, areas: np.ndarray, true_areas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the n detections of an image to its m labels, in every size range and at every threshold.

    Each takes the free label it overlaps most, one that counts before one that is ignored; the last of equals. Overlaps
    `iou` (n, m) are negative where the classes differ, areas are in pixels^2. Return the detections (k,) that count,
    most confident first, their states (ranges, thresholds, k), and which labels count (ranges, m).
    """
    kept = np.argsort(-confidence, kind="stable")
    by_class = np.argsort(predicted[kept], kind="stable")
    grouped = predicted[kept][by_class]
    rank = np.empty(len(kept), dtype=np.int64)  # how many more confident ones are of the same class
    rank[by_class] = np.arange(len(kept)) - np.searchsorted(grouped, grouped)
    kept = kept[rank < MOST_DETECTIONS]
    low, high = np.array(list(SIZE_RANGES.values())).T[:, :, None]  # a bound belongs to both of its ranges
    foreign, ignored = (areas[kept] < low) | (areas[kept] > high), (true_areas < low) | (true_areas > high)
    iou = iou[kept]
    states = np.full((len(foreign), len(THRESHOLDS), len(iou)), WRONG, dtype=np.uint8)
    near = iou >= THRESHOLDS[0]
    useful = near.any(axis=0)
    iou, unwanted = iou[:, useful], ignored[:, None, useful]
    free = np.ones((len(foreign), len(THRESHOLDS), iou.shape[1]), dtype=bool)
    preferred = np.where(unwanted, 0, 2)  # more than an overlap can make up for
    cases, last = np.ogrid[: len(foreign), : len(THRESHOLDS)], iou.shape[1] - 1
    for index in np.flatnonzero(near.any(axis=1)):
        fits = free & (iou[index] >= THRESHOLDS[:, None])
        if not fits.any():
            continue
        rating = np.where(fits, iou[index] + preferred, -1)
        best = last - rating[:, :, ::-1].argmax(axis=2)
        value = rating[*cases, best]
        states[:, :, index] = np.where(value >= 2, RIGHT, np.where(value >= 0, IGNORED, WRONG))
        free[*cases, best] &= value < 0
    states[(states == WRONG) & foreign[:, None]] = IGNORED
    return kept, states, ~ignored


def results_by_size(
    states: np.ndarray, confidence: np.ndarray, predicted: np.ndarray, true: np.ndarray, counted: np.ndarray
) -> dict[str, SizeResult]:
    """Return the results by the keys of SIZE_RANGES, means over the classes that have objects of the size.

    `states` (ranges, thresholds, n), confidence and predicted class (n,) are those of all detections, `true` (m,) the
    classes of all labels, `counted` (ranges, m) those whose size lies in a range.
    """
    order = np.argsort(-confidence, kind="stable")
    predicted, states = predicted[order], states[:, :, order]
    columns = {label: np.flatnonzero(predicted == label) for label in np.unique(true)}
    results = {}
    for index, name in enumerate(SIZE_RANGES):
        classes, totals = np.unique(true[counted[index]], return_counts=True)
        values = []
        for label, total in zip(classes, totals, strict=True):  # the mean precision at 101 recalls, per threshold
            mine = states[index][:, columns[label]]
            right, wrong = np.cumsum(mine == RIGHT, axis=1), np.cumsum(mine == WRONG, axis=1)
            precision = right / (right + wrong + np.spacing(1))
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            envelope = np.concatenate((envelope, np.zeros((len(mine), 1))), axis=1)  # beyond the last recall: none
            reached = [np.searchsorted(row, RECALL_POINTS) for row in right / total]
            values.append([row[place].mean() for row, place in zip(envelope, reached, strict=True)])
        mean = np.mean(values, axis=0) if values else np.full(len(THRESHOLDS), np.nan)
        results[name] = SizeResult(int(totals.sum()), float(mean[0]), float(mean.mean()))
    return results
