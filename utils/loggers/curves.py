"""Precision and recall over confidence as the few numbers that a service draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.evaluation.metrics import DetectionResult

POINTS = 127  # thresholds of a curve, evenly from 0 to 1
MOST_CLASSES = 20  # more classes than this are shown pooled only
POOLED = "all classes"


@dataclass(frozen=True, slots=True)
class PrCurve:
    """One curve at IoU 0.5; all arrays are (POINTS,), by rising confidence threshold."""

    name: str
    right: np.ndarray  # detections of labels
    wrong: np.ndarray  # detections of nothing
    missed: np.ndarray  # labels that were not detected

    @property
    def precision(self) -> np.ndarray:
        """Share of right detections; 1 where there are none."""
        total = self.right + self.wrong
        return np.divide(self.right, total, out=np.ones_like(total), where=total > 0)

    @property
    def recall(self) -> np.ndarray:
        """Share of labels that were detected."""
        return self.right / (self.right + self.missed)


def pr_curves(result: DetectionResult, names: Sequence[str]) -> list[PrCurve]:
    """The classes that have labels, and all of them pooled in front; none without labels."""
    if result.curves is None:
        return []
    curves = result.curves
    points = np.linspace(0, len(curves.confidence) - 1, POINTS).round().astype(int)
    precision, recall = curves.precision[:, points], curves.recall[:, points]
    labels = np.array([[row.labels] for row in result.per_class], float)
    right = recall * labels
    wrong = np.divide(right, precision, out=np.zeros_like(right), where=precision > 0) - right
    wrong, missed = wrong.clip(0), labels - right
    pooled = PrCurve(POOLED, right.sum(0), wrong.sum(0), missed.sum(0))
    if len(right) > MOST_CLASSES:
        return [pooled]
    rows = zip(result.per_class, right, wrong, missed)
    return [pooled, *(PrCurve(names[row.index], *counts) for row, *counts in rows)]
