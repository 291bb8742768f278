"""How much two boxes overlap, and the regression losses that are built on it.

Every measure is a function of two boxes, broadcast over leading dimensions. `iou_loss` is the one entry for training;
`LOSSES` lists the names it knows, and takes those of your own (docs/extending.md).

    IoU         1 - IoU                                          GIoU    arXiv:1902.09630
    DIoU, CIoU  arXiv:1911.08287                                 EIoU, Focal-EIoU  arXiv:2101.08158
    SIoU        arXiv:2205.12740                                 WIoUv1, v2, v3    arXiv:2301.10051

In the formulas, w and h are a box's sides, (dx, dy) the offset between the centres, W and H the sides of the smallest
box that encloses both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EPS = 1e-7
FOCAL_GAMMA = 0.5  # Focal-EIoU and WIoU v2
SIOU_THETA = 4  # how sharply SIoU attends to the shape
WIOU_ALPHA, WIOU_DELTA = 1.9, 3.0  # WIoU v3: where the gain of a box of outlier degree beta peaks


class _Box(NamedTuple):
    """The coordinates of boxes, one tensor each."""

    x: Tensor
    y: Tensor
    w: Tensor
    h: Tensor
    left: Tensor
    top: Tensor
    right: Tensor
    bottom: Tensor


def _box(boxes: Tensor, xywh: bool, eps: float) -> _Box:
    """Split (..., 4) boxes; heights get `eps`, so that a quotient by one is finite.

    Sides are those of the rounded corners, as the shared area is: an IoU above 1 would make CIoU's alpha explode. Their
    gradient goes to w and h alone. Through the corners a tiny box's centre would get it twice, with both signs, and the
    rounding of such large numbers, which differs from machine to machine, would outweigh what remains.
    """
    if not xywh:
        left, top, right, bottom = boxes.unbind(-1)
        x, y = (left + right) / 2, (top + bottom) / 2
        return _Box(x, y, right - left, bottom - top + eps, left, top, right, bottom)
    x, y, w, h = boxes.unbind(-1)
    half_w, half_h = w / 2, h / 2
    width, height = ((centre.detach() + half) - (centre.detach() - half) for centre, half in ((x, half_w), (y, half_h)))
    return _Box(x, y, width, height + eps, x - half_w, y - half_h, x + half_w, y + half_h)


def _measure(a: _Box, b: _Box, kind: str, eps: float) -> Tensor:
    """Compare boxes one to one by a measure of METRICS."""
    if own := METRICS[kind]:
        return own(a, b, eps)
    width = (torch.minimum(a.right, b.right) - torch.maximum(a.left, b.left)).clamp(min=0)
    height = (torch.minimum(a.bottom, b.bottom) - torch.maximum(a.top, b.top)).clamp(min=0)
    shared = width * height
    union = a.w * a.h + b.w * b.h - shared + eps
    iou = shared / union
    if kind == "IoU":
        return iou
    width, height = _enclosing(a, b)
    dx, dy = b.x - a.x, b.y - a.y
    distance = dx.square() + dy.square()
    if kind == "GIoU":  # less the share of the enclosing box that neither covers
        hull = width * height + eps
        return iou - (hull - union).clamp(min=0) / hull
    if kind == "EIoU":  # DIoU less the squared differences of the sides over the squared sides of the enclosing box
        wide, high = width.square() + eps, height.square() + eps
        return iou - distance / (wide + high) - (b.w - a.w).square() / wide - (b.h - a.h).square() / high
    if kind == "SIoU":  # less half of a distance cost, which an angle cost sharpens, and a shape cost
        # the paper's 1 - 2 sin^2(arcsin(|dy| / distance) - 45 degrees) is sin(2 angle) = 2 |dx| |dy| / distance^2
        sharpness = 2 * (dx * dy).abs() / (distance + eps) - 2
        far = 2 - sum(torch.exp(sharpness * (d / (side + eps)).square()) for d, side in ((dx, width), (dy, height)))
        sides = (a.w, b.w), (a.h, b.h)
        unlike = sum((1 - torch.exp(-(p - q).abs() / (torch.maximum(p, q) + eps))) ** SIOU_THETA for p, q in sides)
        return iou - (far + unlike) / 2
    # DIoU: less the squared distance of the centres over the squared diagonal of the enclosing box
    diou = iou - distance / (width.square() + height.square() + eps)
    if kind == "DIoU":
        return diou
    # CIoU: DIoU less the difference of the aspect ratios v, weighted by alpha, which counts as a constant
    v = 4 / math.pi**2 * (torch.atan(b.w / b.h) - torch.atan(a.w / a.h)).square()
    with torch.no_grad():
        alpha = v / (v + (1 - iou).clamp(min=0) + eps)
    return diou - alpha * v


def _enclosing(a: _Box, b: _Box) -> tuple[Tensor, Tensor]:
    """W and H."""
    width = torch.maximum(a.right, b.right) - torch.minimum(a.left, b.left)
    height = torch.maximum(a.bottom, b.bottom) - torch.minimum(a.top, b.top)
    return width, height


def paired_iou(first: Tensor, second: Tensor, kind: str = "IoU", xywh: bool = False, eps: float = EPS) -> Tensor:
    """Compare (..., 4) boxes one to one, by a measure of METRICS: corners, or centre and size with `xywh`.

    Leading dimensions broadcast. Returns (...), 1 for equal boxes; the plain IoU is at least 0, the others may be
    negative. `eps` keeps quotients finite for boxes without area.
    """
    if kind not in METRICS:
        raise ValueError(f"unknown IoU {kind!r}; there are: {', '.join(METRICS)}")
    return _measure(_box(first, xywh, eps), _box(second, xywh, eps), kind, eps)


class RunningMean:
    """The mean IoU loss that WIoU v2 and v3 hold a box against: exponential, so that it follows the training.

    `real` (n,) says which of the next values count; None stands for all.
    """

    real: Tensor | None = None

    def __init__(self, momentum: float = 0.01, start: float = 1.0) -> None:
        self.momentum = momentum
        self.value: Tensor | float = start

    def update(self, values: Tensor) -> None:
        """Move towards the mean of new values; none leave it as it is."""
        total, count = self.sums(values.detach())
        moved = (1 - self.momentum) * self.value + self.momentum * total / count.clamp(min=1)
        self.value = torch.where(count > 0, moved, self.value)

    def sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum and the number of the values that count."""
        real = torch.ones_like(values) if self.real is None else self.real.to(values.dtype)
        return (values * real).sum(), real.sum()


def _focal_weight(a: _Box, b: _Box, metric: Tensor, state: RunningMean, eps: float) -> Tensor:
    """Boxes that already fit count more; a constant, or the loss would fall by moving boxes apart."""
    return _measure(a, b, "IoU", eps).detach() ** FOCAL_GAMMA


def _wise_weight(a: _Box, b: _Box, metric: Tensor, state: RunningMean, eps: float, version: int) -> Tensor:
    """The weight of each box in WIoU.

    v1: exp(distance of the centres^2 / diagonal of the enclosing box^2), the diagonal taken as a constant. v2 and v3
    multiply it by a function of beta, a box's IoU loss over the running mean, which moves only where there is something
    to learn: beta^gamma (hard boxes count more), or beta / (delta alpha^(beta - delta)), so that neither easy boxes nor
    outliers count much.
    """
    with torch.no_grad():
        width, height = _enclosing(a, b)
        diagonal = width.square() + height.square() + eps
    weight = torch.exp(((b.x - a.x).square() + (b.y - a.y).square()) / diagonal)
    if version == 1:
        return weight
    loss = 1 - metric.detach()
    if metric.requires_grad:
        state.update(loss)
    beta = loss / state.value
    return weight * (beta**FOCAL_GAMMA if version == 2 else beta / (WIOU_DELTA * WIOU_ALPHA ** (beta - WIOU_DELTA)))


Measure = Callable[[_Box, _Box, float], Tensor]  # two boxes, eps -> how well they fit, (n,)
Weight = Callable[[_Box, _Box, Tensor, RunningMean, float], Tensor]  # also their measure and the mean -> weights (n,)
# name -> a measure of one's own; None for those that `_measure` knows
METRICS: dict[str, Measure | None] = dict.fromkeys(("IoU", "GIoU", "DIoU", "CIoU", "EIoU", "SIoU"))
# name -> the measure that 1 is compared with, and the weight of each box
LOSSES: dict[str, tuple[str, Weight | None]] = {
    **{name: (name, None) for name in METRICS},
    "Focal-EIoU": ("EIoU", _focal_weight),
    **{f"WIoUv{version}": ("IoU", partial(_wise_weight, version=version)) for version in (1, 2, 3)},
}


def check_loss_name(kind: str, source: str = "") -> str:
    """Return `kind` itself; raise ValueError, which begins with `source`, where there is no such loss."""
    if kind not in LOSSES:
        own = "one of your own is added in a file of models/custom/ (docs/extending.md)"
        raise ValueError(f"{source}unknown box_iou {kind!r}; there are: {', '.join(LOSSES)}; {own}")
    return kind


def iou_loss(
    predicted: Tensor,
    target: Tensor,
    kind: str = "CIoU",
    state: RunningMean | None = None,
    xywh: bool = True,
    eps: float = EPS,
) -> tuple[Tensor, Tensor]:
    """Return the loss of predicted boxes (n, 4), and how well each fits.

    `kind` is a key of LOSSES, `state` the running mean of WIoU v2 and v3, kept by the caller from step to step (fresh
    where not given). Returns the loss (n,), and the measure it is built on (n,), at most 1, detached: a target for
    objectness.
    """
    measure, weight = LOSSES[check_loss_name(kind)]
    a, b = _box(predicted, xywh, eps), _box(target, xywh, eps)
    metric = _measure(a, b, measure, eps)
    loss = 1 - metric
    if weight:
        loss = loss * weight(a, b, metric, state or RunningMean(), eps)
    return loss, metric.detach()


def box_iou(box1: Tensor, box2: Tensor) -> Tensor:
    """Plain IoU of all xyxy pairs, (n, 4) and (m, 4) to (n, m); two boxes without area give nan, as in v6.1."""
    return paired_iou(box1[:, None], box2[None], eps=0.0)


def bbox_iou(
    box1: Tensor,
    box2: Tensor,
    x1y1x2y2: bool = True,
    GIoU: bool = False,
    DIoU: bool = False,
    CIoU: bool = False,
    eps: float = EPS,
) -> Tensor:
    """v6.1's paired form: `box1` is (4,) or (4, n), coordinates first, `box2` (n, 4); the first true flag decides."""
    kinds = {"GIoU": GIoU, "DIoU": DIoU, "CIoU": CIoU}
    kind = next((name for name, wanted in kinds.items() if wanted), "IoU")
    return paired_iou(box1.T if box1.ndim > 1 else box1, box2, kind, xywh=not x1y1x2y2, eps=eps)


def bbox_ioa(box1: np.ndarray, box2: np.ndarray, eps: float = 1e-7) -> np.ndarray:
    """The share of each xyxy box of `box2` (n, 4) that `box1` (4,) covers: (n,)."""
    low = np.maximum(box1[:2], box2[:, :2])
    high = np.minimum(box1[2:4], box2[:, 2:4])
    area = (box2[:, 2:4] - box2[:, :2]).prod(axis=1)
    return (high - low).clip(0).prod(axis=1) / (area + eps)


def wh_iou(wh1: Tensor, wh2: Tensor) -> Tensor:
    """IoU of all pairs of boxes that share a centre, by their sides: (n, 2) and (m, 2) to (n, m)."""
    shared = torch.minimum(wh1[:, None], wh2[None]).prod(-1)
    return shared / (wh1.prod(-1)[:, None] + wh2.prod(-1)[None] - shared)
