"""Non-maximum suppression: from a network's rows to the detections a person sees."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.boxes.convert import xywh2xyxy

MIN_SIDE, MAX_SIDE = 2, 7680  # pixels; boxes with a side outside of this range are noise
MAX_CANDIDATES = 30_000  # per image; beyond that only the most confident ones compete
FIRST_PREFIX = 4  # the first greedy pass looks at this many times max_det candidates


def non_max_suppression(
    prediction: Tensor,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    labels: Sequence[Tensor] = (),
    max_det: int = 300,
) -> list[Tensor]:
    """Keep, per image, the most confident box of every group of overlapping ones.

    Args:
        prediction: (B, M, 5 + C) rows of centre x, centre y, width, height (pixels), objectness, class probabilities;
            left unchanged.
        conf_thres: a detection's confidence (objectness x class probability) must exceed it.
        iou_thres: of two boxes that overlap more than this, only the more confident one stays.
        classes: keep these classes only.
        agnostic: let boxes of different classes suppress each other.
        multi_label: every class above the threshold gives a detection of its own, not only the likeliest.
        labels: per image rows (class, centre x, centre y, width, height) to be added with confidence 1.
        max_det: at most this many detections per image.

    Returns per image a (n, 6) float tensor of x1, y1, x2, y2, confidence, class, most confident first. Raises
    ValueError where a threshold is not in 0..1, and for predictions of another shape.
    """
    if prediction.ndim != 3 or prediction.shape[2] < 6:
        shape = " x ".join(map(str, prediction.shape))
        raise ValueError(f"the weights return {shape}, not images x boxes x 6 or more; export them again")
    for name, value in (("conf_thres", conf_thres), ("iou_thres", iou_thres)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, it must lie in 0..1")
    sides = prediction[..., 2:4]
    likely = (prediction[..., 4] > conf_thres) & ((sides >= MIN_SIDE) & (sides <= MAX_SIDE)).all(dim=-1)
    likely &= prediction[..., :2].isfinite().all(dim=-1)
    results = []
    for index, rows in enumerate(prediction):
        rows = rows[likely[index]].float()
        if len(labels) and len(labels[index]):  # labels as prediction rows of full confidence
            known = labels[index].to(rows)
            added = rows.new_zeros((len(known), rows.shape[1]))
            added[:, :4], added[:, 4] = known[:, 1:5], 1
            rows = torch.cat((rows, added.scatter_(1, known[:, :1].long() + 5, 1.0)))
        detections = _candidates(rows, conf_thres, multi_label)
        if classes is not None:
            wanted = torch.as_tensor(list(classes), device=rows.device, dtype=rows.dtype)
            detections = detections[torch.isin(detections[:, 5], wanted)]
        results.append(_survivors(detections, iou_thres, agnostic, max_det))
    return results


@cache
def suppressor() -> Callable[[Tensor, Tensor, float], Tensor]:
    """torchvision's suppression: boxes (n, 4), their scores (n,), an overlap -> the numbers of those that stay.

    It is taken from the library that the package loads, where that is found: the package itself brings TorchDynamo and
    SymPy along, more than a second for a command that needs one function of it.
    """
    if "torchvision" not in sys.modules and (package := find_spec("torchvision")):
        for file in sorted(Path(package.origin or "").parent.glob("_C*")):
            with suppress(OSError):
                torch.ops.load_library(file)
    known: Any = torch.ops.torchvision if hasattr(torch.ops.torchvision, "nms") else import_module("torchvision.ops")
    return known.nms


def _candidates(rows: Tensor, conf_thres: float, multi_label: bool) -> Tensor:
    """Prediction rows (m, 5 + C) to detections (n, 6) above the threshold, in the order of the rows."""
    scores = rows[:, 5:] * rows[:, 4:5]
    if multi_label and scores.shape[1] > 1:
        row, label = (scores > conf_thres).nonzero(as_tuple=True)
        confidence = scores[row, label]
    else:
        confidence, label = scores.max(dim=1) if len(scores) else (scores.new_zeros(0), scores.new_zeros(0))
        row = (confidence > conf_thres).nonzero().flatten()
        confidence, label = confidence[row], label[row]
    boxes = xywh2xyxy(rows[:, :4])[row]
    return torch.cat((boxes, confidence[:, None], label[:, None].to(boxes.dtype)), dim=1)


def _survivors(detections: Tensor, iou_thres: float, agnostic: bool, max_det: int) -> Tensor:
    """The detections (n, 6), at most max_det, that greedy suppression leaves, by falling confidence.

    Whether a box survives depends on more confident ones only, so a prefix of the list gives a prefix of the answer:
    it is lengthened until enough survive, which spares most of the pairs where thousands of weak boxes compete.
    """
    nms = suppressor()
    if len(detections) > MAX_CANDIDATES:
        detections = detections[detections[:, 4].topk(MAX_CANDIDATES, sorted=False).indices.sort().values]
    detections = detections[detections[:, 4].argsort(descending=True, stable=True)]  # equals keep their order
    boxes = detections[:, :4]
    if not agnostic and len(boxes):
        span = float((boxes.max() - boxes.min()).clamp(min=MAX_SIDE))  # classes are moved apart by more than an image
        boxes = boxes + detections[:, 5:6] * span
    length = FIRST_PREFIX * max_det
    while True:
        kept = nms(boxes[:length], detections[:length, 4], iou_thres)
        if len(kept) >= max_det or length >= len(boxes):
            return detections[kept[:max_det]]
        length *= 4
