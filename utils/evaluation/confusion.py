"""Which class is taken for which: the confusion matrix of a detector."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from utils.boxes.iou import box_iou


class ConfusionMatrix:
    """Counts of predicted (rows) against true (columns) classes; the last of each is the background.

    A detection and a label belong together where they overlap by more than `iou_thres`, whatever their classes; of
    several pairs the one that overlaps most counts. What is left over is a background error: a detection without label
    lands in the last column, a label without detection in the last row.

    Attributes:
        matrix: (nc + 1, nc + 1) counts.
    """

    def __init__(self, nc: int, conf: float = 0.25, iou_thres: float = 0.45) -> None:
        self.nc = nc
        self.conf = conf
        self.iou_thres = iou_thres
        self.matrix = np.zeros((nc + 1, nc + 1))

    def update(self, detections: Tensor, labels: Tensor) -> None:
        """Count one picture: detections (n, 6) xyxy, confidence, class; labels (m, 5) class, xyxy. Either may be empty.

        Detections of confidence `conf` or less are left out.
        """
        detections = detections[detections[:, 4] > self.conf]
        found, meant = self._pairs(detections, labels)
        self._count(_classes(detections[:, 5]), _classes(labels[:, 0]), found, meant)

    def process_batch(self, detections: Tensor, labels: Tensor) -> None:
        """`update` as v6.1 counts: the false positives of a picture in which nothing is matched are forgotten."""
        detections = detections[detections[:, 4] > self.conf]
        found, meant = self._pairs(detections, labels)
        predicted = _classes(detections[:, 5]) if len(found) else np.zeros(0, dtype=np.int64)
        self._count(predicted, _classes(labels[:, 0]), found, meant)

    def tp_fp(self) -> tuple[np.ndarray, np.ndarray]:
        """True and false positives of each class, (nc,) each."""
        right = self.matrix.diagonal()
        return right[:-1], (self.matrix.sum(axis=1) - right)[:-1]

    def _pairs(self, detections: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the detections and labels that belong together, one to one."""
        if not len(detections) or not len(labels):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        iou = box_iou(detections[:, :4], labels[:, 1:]).nan_to_num().cpu().numpy()
        nearest, overlap = iou.argmax(axis=1), iou.max(axis=1)
        found = np.argsort(-overlap, kind="stable")
        found = found[overlap[found] > self.iou_thres]
        meant, first = np.unique(nearest[found], return_index=True)
        return found[first], meant

    def _count(self, predicted: np.ndarray, true: np.ndarray, found: np.ndarray, meant: np.ndarray) -> None:
        """Add one picture's classes, of which predicted[found] and true[meant] are pairs."""
        np.add.at(self.matrix, (predicted[found], true[meant]), 1)
        np.add.at(self.matrix, (np.delete(predicted, found), self.nc), 1)
        np.add.at(self.matrix, (self.nc, np.delete(true, meant)), 1)


def _classes(column: Tensor) -> np.ndarray:
    return column.detach().cpu().numpy().astype(np.int64)
