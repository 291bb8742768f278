"""How good detections are: precision, recall and average precision over ten IoU thresholds, by class and by size.

`DetectionMetrics` does it all, image by image; the functions keep v6.1's names and numbers. Average precision here is
v6.1's (the curve ends at recall 1, precision 0, and is integrated by trapezoids), a little above COCO's; the results by
object size follow COCO's rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.boxes.iou import box_iou
from utils.evaluation.by_size import THRESHOLDS, SizeResult, match_by_size, results_by_size

POINTS = np.linspace(0, 1, 1000)  # of the curves
RECALL_POINTS = np.linspace(0, 1, 101)  # of the integral
FITNESS_WEIGHTS = np.array([0.0, 0.0, 0.1, 0.9])  # precision, recall, mAP50, mAP50-95
EPS = 1e-16


@dataclass(slots=True)
class Curves:
    """Curves and average precisions of the k classes that have labels, at t IoU thresholds; a curve has 1000 points."""

    classes: np.ndarray  # (k,) class numbers
    labels: np.ndarray  # (k,) how many
    precision: np.ndarray  # (k, 1000) over confidence, as the next two, at the first threshold
    recall: np.ndarray
    f1: np.ndarray
    ap: np.ndarray  # (k, t)
    pr_precision: np.ndarray  # (k, 1000) over recall
    confidence: np.ndarray  # (1000,) of the curves, and their recall
    best: int  # the point where the mean F1 is best


@dataclass(slots=True)
class ClassResult:
    """One class: the images that have labels of it, the labels, and the scores."""

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
    """Return one number per row (n, 4 or more) of precision, recall, mAP50, mAP50-95, ...: best.pt has the highest."""
    return (x[:, :4] * FITNESS_WEIGHTS).sum(axis=1)


def process_batch(detections: Tensor, labels: Tensor, iouv: Tensor) -> Tensor:
    """Return (n, t) True for detections of one image that are right, at each IoU threshold iouv (t,), 0.5 the lowest.

    A detection (n, 6) xyxy, confidence, class stands for the label (m, 5) class, xyxy of its class that it overlaps
    most, by 0.5 or more; of several for one label the first is it, so they should come by falling confidence.
    """
    iou = box_iou(detections[:, :4], labels[:, 1:]).cpu().numpy()
    predicted, true = detections[:, 5].cpu().numpy(), labels[:, 0].cpu().numpy()
    return torch.from_numpy(_correct(iou, predicted, true, iouv.cpu().numpy())).to(iouv.device)


def _correct(iou: np.ndarray, predicted: np.ndarray, true: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """`process_batch` from overlaps (n, m) and classes (n,), (m,)."""
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


def compute_ap(recall: np.ndarray, precision: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the average precision of one curve (n,), by falling confidence, and the closed curve it is the area of:
    precision (n + 2,) made to fall and recall (n + 2,).
    """
    closed_recall = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.maximum.accumulate(np.concatenate(([1.0], precision, [0.0]))[::-1])[::-1]
    area = np.trapezoid(np.interp(RECALL_POINTS, closed_recall, envelope), RECALL_POINTS)
    return float(area), envelope, closed_recall


def curves_of(
    correct: np.ndarray, confidence: np.ndarray, predicted: np.ndarray, actual: np.ndarray, eps: float = EPS
) -> Curves:
    """Return the curves of all classes from n detections in any order and the classes of all labels."""
    classes, totals = np.unique(actual, return_counts=True)
    order = np.lexsort((-confidence, predicted))  # by class, inside of it by falling confidence
    correct, confidence, predicted = correct[order], confidence[order], predicted[order]
    begins, ends = np.searchsorted(predicted, classes), np.searchsorted(predicted, classes, side="right")
    all_precision, all_recall, pr_precision = np.zeros((3, len(classes), len(POINTS)))
    ap = np.zeros((len(classes), correct.shape[1]))
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin == end:
            continue
        falling = -confidence[begin:end]
        hits = correct[begin:end].cumsum(axis=0)
        recall = hits / (totals[row] + eps)
        precision = hits / np.arange(1, end - begin + 1)[:, None]
        all_recall[row] = np.interp(-POINTS, falling, recall[:, 0], left=0)
        all_precision[row] = np.interp(-POINTS, falling, precision[:, 0], left=1)
        for threshold in range(ap.shape[1]):
            ap[row, threshold], envelope, closed = compute_ap(recall[:, threshold], precision[:, threshold])
            if threshold == 0:
                pr_precision[row] = np.interp(POINTS, closed, envelope)
    f1 = 2 * all_precision * all_recall / (all_precision + all_recall + eps)
    best = int(f1.mean(axis=0).argmax()) if len(f1) else 0
    classes = classes.astype(np.int64)
    return Curves(classes, totals, all_precision, all_recall, f1, ap, pr_precision, POINTS, best)


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
    """Return v6.1's scores of the k classes that have labels: true positives, false positives, precision, recall, F1
    (k,) at the confidence where the mean F1 is best, average precision (k, t) and classes (k,).

    `tp` (n, t) says which detections are right at which IoU threshold, `conf` and `pred_cls` (n,) are theirs,
    `target_cls` (m,) are the classes of all labels. `plots.plot_curves` draws what v6.1 drew here.
    """
    if plot:
        raise ValueError("ap_per_class does not draw: utils.evaluation.plots.plot_curves does, with plot=False here")
    curves = curves_of(tp, conf, pred_cls, target_cls, eps)
    precision, recall, f1 = (line[:, curves.best] for line in (curves.precision, curves.recall, curves.f1))
    right = (recall * curves.labels).round()
    wrong = (right / (precision + eps) - right).round()
    return right, wrong, precision, recall, f1, curves.ap, curves.classes.astype(np.int32)


class ConfusionMatrix:
    """Counts of predicted (rows) against true (columns) classes; the last of each is the background.

    A detection and a label belong together where they overlap by more than `iou_thres`, whatever their classes; of
    several pairs the one that overlaps most counts. What is left over is a background error: a detection without label
    lands in the last column, a label without detection in the last row of `matrix` (nc + 1, nc + 1).
    """

    def __init__(self, nc: int, conf: float = 0.25, iou_thres: float = 0.45) -> None:
        self.nc, self.conf, self.iou_thres = nc, conf, iou_thres
        self.matrix = np.zeros((nc + 1, nc + 1))

    def update(self, detections: Tensor, labels: Tensor, unmatched: bool = True) -> None:
        """Count one image: detections (n, 6) xyxy, confidence, class; labels (m, 5) class, xyxy. Either may be empty.

        Left out are detections of confidence `conf` or less, and without `unmatched` those of an image without a match.
        """
        detections = detections[detections[:, 4] > self.conf]
        predicted, true = (column.detach().cpu().long().numpy() for column in (detections[:, 5], labels[:, 0]))
        found = meant = np.zeros(0, dtype=np.int64)
        if len(predicted) and len(true):
            iou = box_iou(detections[:, :4], labels[:, 1:]).nan_to_num().cpu().numpy()
            nearest, overlap = iou.argmax(axis=1), iou.max(axis=1)
            found = np.argsort(-overlap, kind="stable")
            found = found[overlap[found] > self.iou_thres]
            meant, first = np.unique(nearest[found], return_index=True)
            found = found[first]
        np.add.at(self.matrix, (predicted[found], true[meant]), 1)
        if unmatched or len(found):
            self.matrix[:, self.nc] += np.bincount(np.delete(predicted, found), minlength=self.nc + 1)
        self.matrix[self.nc] += np.bincount(np.delete(true, meant), minlength=self.nc + 1)

    def process_batch(self, detections: Tensor, labels: Tensor) -> None:
        """`update` as v6.1 counts: the false positives of an image in which nothing is matched are forgotten."""
        self.update(detections, labels, unmatched=False)


class ImageCounts(NamedTuple):
    """What one image with n detections and m labels adds to the scores, small enough to be sent."""

    correct: np.ndarray  # (n, 10) right at IoU 0.5, 0.55 ... 0.95
    confidence: np.ndarray  # (n,)
    predicted: np.ndarray  # (n,) classes
    true: np.ndarray  # (m,) classes
    by_size: np.ndarray  # (k,) the detections that count by size, most confident first
    states: np.ndarray  # (ranges, 10, k) of these
    counted: np.ndarray  # (ranges, m) labels of a size


class DetectionMetrics:
    """Collects images with `update`; `compute` gives the scores of all of them. `names` are the classes', in order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.images: list[ImageCounts] = []
        self.confusion = ConfusionMatrix(len(self.names))

    def update(self, detections: Tensor, labels: Tensor) -> None:
        """Count one image: detections (n, 6) xyxy, confidence, class, by falling confidence, and labels (m, 5) class,
        xyxy, in its own pixels. Either may have no rows. Raise ValueError for a class that has no name.
        """
        found, meant = detections.detach().cpu().double(), labels.detach().cpu().double()
        predicted, true, confidence = found[:, 5].numpy(), meant[:, 0].numpy(), found[:, 4].numpy()
        for classes, what in ((predicted, "detection"), (true, "label")):
            if len(classes) and not 0 <= classes.max() < len(self.names):
                words = f"a {what} has class {classes.max():g}, but the data set has {len(self.names)} names"
                raise ValueError(f"{words}, counted from 0; do the model and the data YAML belong together?")
        iou = box_iou(found[:, :4], meant[:, 1:]).nan_to_num().numpy()
        correct = _correct(iou, predicted, true, THRESHOLDS)
        areas, true_areas = ((box[:, 2:] - box[:, :2]).prod(1).numpy() for box in (found[:, :4], meant[:, 1:]))
        iou = np.where(predicted[:, None] == true[None], iou, -1.0)
        by_size = match_by_size(iou, confidence, predicted, areas, true_areas)
        self.images.append(ImageCounts(correct, confidence, predicted, true, *by_size))
        self.confusion.update(found, meant)

    def compute(self) -> DetectionResult:
        """Return the scores of all images. Their order decides between detections of one confidence."""
        empty = DetectionMetrics(self.names)
        empty.update(torch.zeros(0, 6), torch.zeros(0, 5))
        images = [*empty.images, *self.images]
        correct, confidence, predicted, true = (np.concatenate([one[column] for one in images]) for column in range(4))
        sized = np.concatenate([np.stack((one.confidence, one.predicted))[:, one.by_size] for one in images], axis=1)
        curves = curves_of(correct, confidence, predicted, true)
        having = np.concatenate([np.unique(one.true) for one in images]).astype(np.int64)
        images_with = np.bincount(having, minlength=len(self.names))
        at_best = curves.precision[:, curves.best], curves.recall[:, curves.best]
        rows = [
            ClassResult(c, self.names[c], int(images_with[c]), int(labels), *map(float, (p, r, ap[0], ap.mean())))
            for c, labels, p, r, ap in zip(curves.classes.tolist(), curves.labels, *at_best, curves.ap, strict=True)
        ]
        scores = np.array([(row.precision, row.recall, row.map50, row.map) for row in rows]).reshape(-1, 4)
        precision, recall, map50, overall = scores.mean(axis=0).tolist() if rows else (0.0, 0.0, 0.0, 0.0)
        maps = np.full(len(self.names), overall)
        maps[curves.classes] = scores[:, 3]
        states, counted = (np.concatenate([one[column] for one in images], axis=-1) for column in (5, 6))
        by_size = results_by_size(states, sized[0], sized[1], true, counted)
        shown = curves if rows else None
        means = precision, recall, map50, overall
        return DetectionResult(len(self.images), len(true), *means, maps, rows, by_size, shown, self.confusion)
