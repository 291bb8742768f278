"""How good detections are: precision, recall and average precision over ten IoU thresholds, by class and by size.

`DetectionMetrics` does it all, picture by picture; the functions keep v6.1's names and numbers. Average precision here
is v6.1's (the curve ends at recall 1, precision 0, and is integrated by trapezoids), a little above COCO's; the results
by object size follow COCO's rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.boxes.iou import box_iou
from utils.evaluation.coco import THRESHOLDS, ImageBoxes, SizeMetrics, SizeResult
from utils.evaluation.confusion import ConfusionMatrix
from utils.evaluation.ragged import Ragged

POINTS = np.linspace(0, 1, 1000)  # of the curves
RECALL_POINTS = np.linspace(0, 1, 101)  # of the integral
FITNESS_WEIGHTS = np.array([0.0, 0.0, 0.1, 0.9])  # precision, recall, mAP50, mAP50-95
EPS = 1e-16


@dataclass(slots=True)
class Curves:
    """What the plots draw, for the k classes that have labels."""

    confidence: np.ndarray  # (1000,)
    precision: np.ndarray  # (k, 1000) over confidence
    recall: np.ndarray  # (k, 1000) over confidence
    f1: np.ndarray  # (k, 1000) over confidence
    pr_recall: np.ndarray  # (1000,)
    pr_precision: np.ndarray  # (k, 1000) over recall, at IoU 0.5
    ap50: np.ndarray  # (k,)
    classes: np.ndarray  # (k,) class numbers


@dataclass(slots=True)
class ClassResult:
    """One class: the pictures that have labels of it, the labels, and the scores."""

    index: int
    name: str
    images: int
    labels: int
    precision: float
    recall: float
    map50: float
    map: float


@dataclass(slots=True)
class DetectionResult:
    """A whole evaluation; the scores are means over the classes that have labels, 0 where none has."""

    images: int
    labels: int
    precision: float  # at the confidence where the mean F1 is best
    recall: float
    map50: float
    map: float
    maps: np.ndarray  # (nc,) mAP50-95, the overall one for a class without labels
    per_class: list[ClassResult]  # classes with labels
    by_size: dict[str, SizeResult]  # small, medium, large
    curves: Curves | None  # None without labels
    confusion: ConfusionMatrix


def fitness(x: np.ndarray) -> np.ndarray:
    """One number per row (n, 4 or more) of precision, recall, mAP50, mAP50-95, ...: the best checkpoint has most."""
    return (x[:, :4] * FITNESS_WEIGHTS).sum(axis=1)


def process_batch(detections: Tensor, labels: Tensor, iouv: Tensor) -> Tensor:
    """Which detections of one picture are right, at each IoU threshold.

    A detection stands for the label of its class that it overlaps most, by 0.5 or more; of several for one label the
    first is it, so they should come by falling confidence.

    Args:
        detections: (n, 6) xyxy, confidence, class.
        labels: (m, 5) class, xyxy.
        iouv: (t,) thresholds, 0.5 the lowest.

    Returns:
        (n, t) bool on the thresholds' device.
    """
    iou = box_iou(detections[:, :4], labels[:, 1:]).cpu().numpy()
    predicted, true = detections[:, 5].cpu().numpy(), labels[:, 0].cpu().numpy()
    return torch.from_numpy(_correct(iou, predicted, true, iouv.cpu().numpy())).to(iouv.device)


def _correct(iou: np.ndarray, predicted: np.ndarray, true: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(n, t) bool from overlaps (n, m) and classes (n,), (m,)."""
    correct = np.zeros((len(predicted), len(thresholds)), dtype=bool)
    if not iou.size:
        return correct
    iou = np.where(predicted[:, None] == true[None], iou, 0)
    nearest, overlap = iou.argmax(axis=1), iou.max(axis=1)
    candidates = np.flatnonzero(overlap >= thresholds[0])
    _, first = np.unique(nearest[candidates], return_index=True)
    winners = candidates[first]
    correct[winners] = overlap[winners, None] >= thresholds
    return correct


class _Tables(NamedTuple):
    """Curves and average precisions of the k classes that have labels."""

    classes: np.ndarray  # (k,)
    labels: np.ndarray  # (k,) how many
    precision: np.ndarray  # (k, 1000) over confidence
    recall: np.ndarray  # (k, 1000)
    ap: np.ndarray  # (k, t)
    pr_precision: np.ndarray  # (k, 1000) over recall, at the first threshold

    def f1(self, eps: float = EPS) -> np.ndarray:
        """Harmonic mean of precision and recall, (k, 1000)."""
        return 2 * self.precision * self.recall / (self.precision + self.recall + eps)


def compute_ap(recall: np.ndarray, precision: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Average precision of one curve (n,), by falling confidence; also the closed curve it is the area of.

    Returns:
        area, precision (n + 2,) made to fall, recall (n + 2,).
    """
    closed_recall = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.maximum.accumulate(np.concatenate(([1.0], precision, [0.0]))[::-1])[::-1]
    area = np.trapezoid(np.interp(RECALL_POINTS, closed_recall, envelope), RECALL_POINTS)
    return float(area), envelope, closed_recall


def _class_tables(
    correct: np.ndarray, confidence: np.ndarray, predicted: np.ndarray, actual: np.ndarray, eps: float = EPS
) -> _Tables:
    """Curves of all classes from n detections in any order and the classes of all labels."""
    classes, totals = np.unique(actual, return_counts=True)
    order = np.lexsort((-confidence, predicted))  # by class, inside of it by falling confidence
    correct, confidence, predicted = correct[order], confidence[order], predicted[order]
    begins, ends = np.searchsorted(predicted, classes), np.searchsorted(predicted, classes, side="right")
    count, thresholds = len(classes), correct.shape[1]
    shape = (count, len(POINTS))
    tables = _Tables(classes, totals, np.zeros(shape), np.zeros(shape), np.zeros((count, thresholds)), np.zeros(shape))
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin == end:
            continue
        falling = -confidence[begin:end]
        hits = correct[begin:end].cumsum(axis=0)
        recall = hits / (totals[row] + eps)
        precision = hits / np.arange(1, end - begin + 1)[:, None]
        tables.recall[row] = np.interp(-POINTS, falling, recall[:, 0], left=0)
        tables.precision[row] = np.interp(-POINTS, falling, precision[:, 0], left=1)
        for threshold in range(thresholds):
            area, envelope, closed_recall = compute_ap(recall[:, threshold], precision[:, threshold])
            tables.ap[row, threshold] = area
            if threshold == 0:
                tables.pr_precision[row] = np.interp(POINTS, closed_recall, envelope)
    return tables


def ap_per_class(
    tp: np.ndarray,
    conf: np.ndarray,
    pred_cls: np.ndarray,
    target_cls: np.ndarray,
    plot: bool = False,
    save_dir: str | Path = ".",
    names: Sequence[str] | dict[int, str] = (),
    eps: float = EPS,
) -> tuple[np.ndarray, ...]:
    """v6.1's scores per class, for the k classes that have labels.

    Args:
        tp: (n, t) bool, which detections are right at which IoU threshold.
        conf, pred_cls: (n,) confidence and class of the detections.
        target_cls: (m,) classes of all labels.
        plot, save_dir, names: v6.1 drew its curves here; `utils.drawing.batches` does now, so `plot` must be False.

    Returns:
        true positives, false positives, precision, recall, F1 (k,) at the confidence where the mean F1 is best,
        average precision (k, t), classes (k,).
    """
    if plot:
        raise ValueError(
            "ap_per_class does not draw: hand the curves of DetectionMetrics to utils.drawing.batches.plot_curves"
        )
    tables = _class_tables(tp, conf, pred_cls, target_cls, eps)
    f1 = tables.f1(eps)
    best = f1.mean(axis=0).argmax() if len(f1) else 0
    precision, recall = tables.precision[:, best], tables.recall[:, best]
    right = (recall * tables.labels).round()
    wrong = (right / (precision + eps) - right).round()
    return right, wrong, precision, recall, f1[:, best], tables.ap, tables.classes.astype(np.int32)


class DetectionMetrics:
    """Collects pictures with `update`; `compute` gives the scores of all of them.

    Args:
        names: of the classes, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._images = 0
        self._rows = Ragged(
            correct=np.zeros((0, len(THRESHOLDS)), dtype=bool),
            confidence=np.zeros(0),
            predicted=np.zeros(0),
            true=np.zeros(0),
        )
        self._images_with = np.zeros(len(self.names), dtype=np.int64)
        self._sizes = SizeMetrics()
        self._confusion = ConfusionMatrix(len(self.names))

    def update(self, detections: Tensor, labels: Tensor) -> Tensor:
        """Count one picture; either may have no rows.

        Args:
            detections: (n, 6) xyxy in the picture's own pixels, confidence, class, by falling confidence.
            labels: (m, 5) class, xyxy in the picture's own pixels.

        Returns:
            (n, 10) bool: right at IoU 0.5, 0.55 ... 0.95.

        Raises:
            ValueError: a class that has no name.
        """
        found, meant = detections.detach().cpu().double(), labels.detach().cpu().double()
        predicted, true = found[:, 5].numpy(), meant[:, 0].numpy()
        self._check_classes(predicted, "detection")
        self._check_classes(true, "label")
        iou = box_iou(found[:, :4], meant[:, 1:]).nan_to_num().numpy()
        correct = _correct(iou, predicted, true, THRESHOLDS)
        confidence = found[:, 4].numpy()
        self._sizes.update(ImageBoxes(iou, confidence, predicted, _areas(found[:, :4]), true, _areas(meant[:, 1:])))
        self._confusion.update(found, meant)
        self._images += 1
        self._images_with[np.unique(true).astype(np.int64)] += 1
        self._rows.add(correct=correct, confidence=confidence, predicted=predicted, true=true)
        return torch.from_numpy(correct)

    def pack(self) -> dict[str, Any]:
        """All that was counted in few flat arrays, for `absorb` in another process."""
        return {
            "images": self._images,
            "images_with": self._images_with,
            "confusion": self._confusion.matrix,
            "rows": self._rows.pack(),
            "sizes": self._sizes.pack(),
        }

    def absorb(self, packs: Sequence[dict[str, Any]], numbers: np.ndarray) -> None:
        """Count what other processes packed, as if every picture had been updated here, by rising number.

        `numbers` holds a number for each picture of the first pack, then of the second, and so on; pictures of one
        number keep their order. The order decides between detections of one confidence.
        """
        for pack in packs:
            self._images += pack["images"]
            self._images_with += pack["images_with"]
            self._confusion.matrix += pack["confusion"]
        self._rows.extend([pack["rows"] for pack in packs], numbers)
        self._sizes.absorb([pack["sizes"] for pack in packs], numbers)

    def compute(self) -> DetectionResult:
        """The scores of all pictures since the last `reset`."""
        true = self._rows.column("true")
        tables = _class_tables(*(self._rows.column(name) for name in ("correct", "confidence", "predicted")), true)
        f1 = tables.f1()
        best = f1.mean(axis=0).argmax() if len(f1) else 0
        classes = tables.classes.astype(np.int64)
        rows = [
            ClassResult(
                int(label),
                self.names[label],
                int(self._images_with[label]),
                int(tables.labels[row]),
                float(tables.precision[row, best]),
                float(tables.recall[row, best]),
                float(tables.ap[row, 0]),
                float(tables.ap[row].mean()),
            )
            for row, label in enumerate(classes)
        ]
        scores = np.array([(row.precision, row.recall, row.map50, row.map) for row in rows]).reshape(-1, 4)
        precision, recall, map50, overall = scores.mean(axis=0).tolist() if rows else (0.0, 0.0, 0.0, 0.0)
        maps = np.full(len(self.names), overall)
        maps[classes] = scores[:, 3]
        curves = Curves(
            POINTS, tables.precision, tables.recall, f1, POINTS, tables.pr_precision, tables.ap[:, 0], classes
        )
        return DetectionResult(
            self._images,
            len(true),
            precision,
            recall,
            map50,
            overall,
            maps,
            rows,
            self._sizes.compute(),
            curves if rows else None,
            self._confusion,
        )

    def _check_classes(self, classes: np.ndarray, what: str) -> None:
        if len(classes) and not 0 <= classes.max() < len(self.names):
            raise ValueError(
                f"a {what} has class {classes.max():g}, but the data set has {len(self.names)} names, counted from 0;"
                " do the model and the data YAML belong together?"
            )


def _areas(boxes: Tensor) -> np.ndarray:
    """(n, 4) corners to (n,) areas."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).numpy()
