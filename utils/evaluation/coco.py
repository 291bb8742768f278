"""Average precision by object size, after COCO's rules (https://cocodataset.org/#detection-eval).

An object counts in its own size range only. In the other ranges it is *ignored*: a detection that matches it is neither
right nor wrong there, and so is a detection that matches nothing and whose own size lies outside of the range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.evaluation.ragged import Packed, Ragged

SIZE_RANGES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}  # pixels^2
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
WRONG, RIGHT, IGNORED = 0, 1, 2


@dataclass(slots=True, frozen=True)
class SizeResult:
    """Average precision of the objects of one size; nan where there are none."""

    labels: int
    map50: float
    map: float


@dataclass(slots=True, frozen=True)
class ImageBoxes:
    """One picture's n detections and m labels, as far as matching needs them."""

    iou: np.ndarray  # (n, m)
    confidence: np.ndarray  # (n,)
    predicted: np.ndarray  # (n,) classes
    areas: np.ndarray  # (n,) pixels^2
    true: np.ndarray  # (m,) classes
    true_areas: np.ndarray  # (m,)


class SizeMetrics:
    """Collects pictures with `update`, gives the results of all of them with `compute`.

    Of each class only the `max_detections` most confident detections of a picture count.
    """

    def __init__(self, max_detections: int = 100) -> None:
        self.max_detections = max_detections
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._rows = Ragged(
            states=np.zeros((len(SIZE_RANGES), len(THRESHOLDS), 0), dtype=np.uint8),
            confidence=np.zeros(0),
            predicted=np.zeros(0),
            true=np.zeros(0),
            counted=np.zeros((len(SIZE_RANGES), 0), dtype=bool),
        )

    def update(self, image: ImageBoxes) -> None:
        """Match one picture's detections to its labels, once per size range and IoU threshold."""
        order = np.argsort(-image.confidence, kind="stable")
        order = order[_rank_in_class(image.predicted[order]) < self.max_detections]
        iou = np.where(image.predicted[order, None] == image.true[None], image.iou[order], -1.0)
        foreign, true_foreign = _out_of_range(image.areas[order]), _out_of_range(image.true_areas)
        states = _match(iou, true_foreign)
        states[(states == WRONG) & foreign[:, None]] = IGNORED
        self._rows.add(
            states=states,
            confidence=image.confidence[order],
            predicted=image.predicted[order],
            true=image.true,
            counted=~true_foreign,
        )

    def pack(self) -> dict[str, Packed]:
        """All that was counted in few flat arrays, for `absorb` in another process."""
        return self._rows.pack()

    def absorb(self, packs: Sequence[Mapping[str, Packed]], numbers: np.ndarray) -> None:
        """Count packed pictures by rising number (n,), which decides between detections of one confidence."""
        self._rows.extend(packs, numbers)

    def compute(self) -> dict[str, SizeResult]:
        """Results by the keys of SIZE_RANGES: mean over the classes that have objects of the size."""
        order = np.argsort(-self._rows.column("confidence"), kind="stable")
        predicted = self._rows.column("predicted")[order]
        states = self._rows.column("states")[:, :, order]
        true, counted = self._rows.column("true"), self._rows.column("counted")
        columns = {label: np.flatnonzero(predicted == label) for label in np.unique(true)}
        results = {}
        for index, name in enumerate(SIZE_RANGES):
            classes, totals = np.unique(true[counted[index]], return_counts=True)
            values = [
                _average_precision(states[index][:, columns[label]], total)
                for label, total in zip(classes, totals, strict=True)
            ]
            mean = np.mean(values, axis=0) if values else np.full(len(THRESHOLDS), np.nan)
            results[name] = SizeResult(int(totals.sum()), float(mean[0]), float(mean.mean()))
        return results


def _out_of_range(areas: np.ndarray) -> np.ndarray:
    """(n,) areas to (ranges, n) flags; a bound belongs to both of its ranges."""
    low, high = np.array(list(SIZE_RANGES.values())).T[:, :, None]
    return (areas < low) | (areas > high)


def _rank_in_class(classes: np.ndarray) -> np.ndarray:
    """How many earlier entries are of the same class, for each entry."""
    order = np.argsort(classes, kind="stable")
    grouped = classes[order]
    rank = np.empty(len(classes), dtype=np.int64)
    rank[order] = np.arange(len(classes)) - np.searchsorted(grouped, grouped)
    return rank


def _match(iou: np.ndarray, foreign: np.ndarray) -> np.ndarray:
    """States (ranges, thresholds, n) of n detections, most confident first.

    Each takes the free label it overlaps most, one that counts before one that is ignored; the last of equals.

    Args:
        iou: (n, m), negative where the classes differ.
        foreign: (ranges, m), labels that are ignored in a range.
    """
    states = np.full((len(foreign), len(THRESHOLDS), len(iou)), WRONG, dtype=np.uint8)
    near = iou >= THRESHOLDS[0]
    useful = near.any(axis=0)
    iou, foreign = iou[:, useful], foreign[:, None, useful]
    free = np.ones((len(foreign), len(THRESHOLDS), iou.shape[1]), dtype=bool)
    preferred = np.where(foreign, 0, 2)  # more than an overlap can make up for
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
    return states


def _average_precision(states: np.ndarray, total: int) -> np.ndarray:
    """Mean precision at 101 recalls, per threshold, of (thresholds, n) states against `total` labels."""
    right, wrong = np.cumsum(states == RIGHT, axis=1), np.cumsum(states == WRONG, axis=1)
    recall = right / total
    precision = right / (right + wrong + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.concatenate((envelope, np.zeros((len(states), 1))), axis=1)  # beyond the last recall: none
    reached = [np.searchsorted(row, RECALL_POINTS) for row in recall]
    return np.array([row[index].mean() for row, index in zip(envelope, reached, strict=True)])
