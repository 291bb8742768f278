"""Curves that services draw say what the detections said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.evaluation.metrics import DetectionMetrics
from utils.loggers.curves import MOST_CLASSES, POINTS, pr_curves


def test_without_labels_there_is_none() -> None:
    assert pr_curves(DetectionMetrics(["a"]).compute(), ["a"]) == []


def scored(
    classes: int, seed: int, pictures: int = 12
) -> tuple[DetectionMetrics, list[tuple[int, float, bool]], list[int]]:
    """Random pictures of one object each, apart from all others; detections are it or are far away."""
    rng = np.random.default_rng(seed)
    metrics = DetectionMetrics([f"c{i}" for i in range(classes)])
    detections, labels = [], []
    for picture in range(pictures):
        kind = int(rng.integers(classes)) if picture >= classes else picture
        right, confidence = bool(rng.random() < 0.6), float(rng.uniform(0.3, 0.9))
        box = [10.0, 10, 40, 40] if right else [100.0, 100, 140, 140]
        metrics.update(torch.tensor([[*box, confidence, kind]]), torch.tensor([[float(kind), 10, 10, 40, 40]]))
        detections.append((kind, confidence, right))
        labels.append(kind)
    return metrics, detections, labels


@pytest.mark.parametrize("seed", range(4))
def test_counts_agree_with_counting(seed: int) -> None:
    metrics, detections, labels = scored(3, seed)
    curves = pr_curves(metrics.compute(), metrics.names)
    assert [curve.name for curve in curves] == ["all classes", "c0", "c1", "c2"]
    for kind, curve in enumerate(curves[1:]):
        mine = [(confidence, right) for which, confidence, right in detections if which == kind]
        right = sum(right for _, right in mine)
        # below every confidence all detections count, above every confidence none does
        assert curve.right[0] == pytest.approx(right) and curve.right[-1] == 0
        assert curve.missed[0] == pytest.approx(labels.count(kind) - right)
        if right:
            assert curve.wrong[0] == pytest.approx(len(mine) - right)
            assert curve.precision[0] == pytest.approx(right / len(mine))
        assert curve.recall[0] == pytest.approx(right / labels.count(kind))
        assert len(curve.recall) == POINTS and (np.diff(curve.recall) <= 1e-12).all()
        np.testing.assert_allclose(curve.right + curve.missed, labels.count(kind))
        assert curve.precision[-1] == 1 and (curve.wrong >= 0).all()
    for part in ("right", "wrong", "missed"):
        np.testing.assert_allclose(getattr(curves[0], part), sum(getattr(curve, part) for curve in curves[1:]))


def test_many_classes_are_pooled_only() -> None:
    metrics, *_ = scored(MOST_CLASSES + 1, 0, pictures=MOST_CLASSES + 1)
    assert [curve.name for curve in pr_curves(metrics.compute(), metrics.names)] == ["all classes"]
