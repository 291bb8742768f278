"""What a detector learns from a batch: `match` says which prediction learns which object, `ComputeLoss` how much.

Shapes: B images, L levels, A anchors per level, C classes, N targets, K matches of one level. A level's predictions
are (B, A, rows, cols, 5 + C) logits; boxes are in units of the level's cells.

Where several processes train together, a mean over the matches of each part of a batch would depend on how it was cut.
So `ComputeLoss(shared=True)` counts the matches of all parts (`_Portions`): with gradients averaged over the processes
it moves the weights as one process with the whole batch would.

How many matches there are is known on the device alone, and asking would stop the queue of its work. So off the CPU
every target has a place for each match that it could have, K is 5 * A * N, and `Matches.real` says which places are
matches; the others are given numbers that are harmless, and count nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from utils.boxes.iou import RunningMean, check_loss_name, iou_loss
from utils.distributed.processes import is_joined

BALANCE_THREE = (4.0, 1.0, 0.4)  # weight of each level's objectness, finest level first
BALANCE_OTHER = (4.0, 1.0, 0.25, 0.06, 0.02)
BALANCE_DECAY = 0.9999
LEAST_LOSS = 1e-4  # of a level's objectness, when the weights of the levels are balanced by it
REACH = 0.5  # cells; an object nearer than this to a neighbouring cell is that cell's business too
COMPACT = ("cpu",)  # where a match is listed only if it is one: nothing waits there, and less is computed
NEVER = -100.0  # a logit whose class loss is 0 to the last bit, if its target is 0


class Matches(NamedTuple):
    """The K predictions of one level that learn an object."""

    image: Tensor  # (K,) index of the image in the batch
    anchor: Tensor  # (K,) index of the anchor in the level
    row: Tensor  # (K,)
    col: Tensor  # (K,)
    box: Tensor  # (K, 4) what to predict: centre relative to the cell's corner, width and height, in cells
    anchor_size: Tensor  # (K, 2) width and height of the anchor, in cells
    label: Tensor  # (K,) class
    real: Tensor | None  # (K,) False in places without a match; None where there are none

    @property
    def total(self) -> Tensor:
        """How many matches there are, () as a fraction."""
        if self.real is None:
            return torch.full((), len(self.label), dtype=torch.float32, device=self.label.device)
        return self.real.sum(dtype=torch.float32)


def match(targets: Tensor, anchors: Tensor, grids: Sequence[tuple[int, int]], threshold: float) -> list[Matches]:
    """Assign targets to predictions, level by level.

    An object goes to every anchor whose sides differ from its own by a factor below `threshold`, in the cell that holds
    its centre and in the up to two neighbouring cells that are nearer than half a cell. No object is guaranteed a
    match, several may share one prediction: they keep the order cell, left, upper, right, lower neighbour, each by
    anchor and target.

    Args:
        targets: (N, 6) image, class, centre x, centre y, width, height as fractions of the image.
        anchors: (L, A, 2) widths and heights in cells of their level.
        grids: (rows, cols) of each level.
        threshold: the largest factor by which a side may differ (`anchor_t`).
    """
    found = []
    for sizes, (rows, cols) in zip(anchors, grids, strict=True):
        x, width = (targets[:, 2::2] * cols).unbind(1)
        y, height = (targets[:, 3::2] * rows).unbind(1)
        sides = torch.stack((width, height), dim=1)
        ratio = sides[None] / sizes[:, None]  # (A, N, 2)
        fits = torch.maximum(ratio, 1 / ratio).amax(dim=-1) < threshold
        near = torch.stack((x, y, cols - x, rows - y))  # (4, N) from the left, upper, right and lower border
        close = (near % 1 < REACH) & (near > 1)  # the nearer half of a cell that has a neighbour on that side
        matched = torch.cat((torch.ones_like(close[:1]), close))[:, None] & fits  # (5, A, N)
        own_col, own_row = (
            torch.stack(places).long().clamp(0, count - 1)  # (5, N)
            for places, count in (((x, x - REACH, x, x + REACH, x), cols), ((y, y, y - REACH, y, y + REACH), rows))
        )
        real = None
        if matched.device.type in COMPACT:
            step, anchor, target = matched.nonzero(as_tuple=True)
        else:
            numbers = (torch.arange(count, device=matched.device) for count in matched.shape)
            step, anchor, target = (index.flatten() for index in torch.meshgrid(*numbers, indexing="ij"))
            real = matched.flatten()
        col, row = own_col[step, target], own_row[step, target]
        box = torch.cat((torch.stack((x[target] - col, y[target] - row), dim=1), sides[target]), dim=1)
        box = box if real is None else box.where(real[:, None], 1.0)
        image, label = targets[target, :2].long().unbind(1)
        found.append(Matches(image, anchor, row, col, box, sizes[anchor], label, real))
    return found


@lru_cache(maxsize=32)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as a tensor that stays on the device: sending them there at every step would hold it up."""
    with torch.inference_mode(False):  # or no later training could use it
        return torch.tensor(values, device=device)


def smooth_BCE(eps: float = 0.1) -> tuple[float, float]:
    """Return the targets of the right and of the wrong classes under label smoothing by `eps`."""
    return 1.0 - 0.5 * eps, 0.5 * eps


class FocalLoss(nn.Module):
    """Focal loss (arXiv:1708.02002) around a `BCEWithLogitsLoss`: what is predicted well already counts little."""

    def __init__(self, loss_fcn: nn.BCEWithLogitsLoss, gamma: float = 1.5, alpha: float = 0.25) -> None:
        super().__init__()
        self.pos_weight = loss_fcn.pos_weight
        self.reduction = loss_fcn.reduction
        self.gamma, self.alpha = gamma, alpha

    def modulation(self, probability: Tensor, target: Tensor) -> Tensor:
        """Return how wrong a prediction is, 0..1: one less the probability given to the truth."""
        return 1 - (target * probability + (1 - target) * (1 - probability))

    def forward(self, pred: Tensor, true: Tensor) -> Tensor:
        """Return the loss of logits and targets in 0..1 of any one shape, reduced as the wrapped loss would be."""
        loss = F.binary_cross_entropy_with_logits(pred, true, pos_weight=self.pos_weight, reduction="none")
        balance = true * self.alpha + (1 - true) * (1 - self.alpha)
        loss = loss * balance * self.modulation(pred.sigmoid(), true) ** self.gamma
        return loss if self.reduction == "none" else loss.mean() if self.reduction == "mean" else loss.sum()


class QFocalLoss(FocalLoss):
    """Quality focal loss (arXiv:2006.04388): for targets between 0 and 1, by their distance from the prediction."""

    def modulation(self, probability: Tensor, target: Tensor) -> Tensor:
        """Return how wrong a prediction is, 0..1: the distance from its target."""
        return (target - probability).abs()


def _criterion(positive_weight: float, gamma: float, device: torch.device) -> nn.Module:
    weight = None if positive_weight == 1 else torch.tensor([positive_weight], device=device)
    loss = nn.BCEWithLogitsLoss(pos_weight=weight)
    return FocalLoss(loss, gamma) if gamma > 0 else loss


class _Gather(torch.autograd.Function):
    """Split rows (M, 5 + C) by indices (K,) into the objectness column (M,) and the chosen rows (K, 5 + C).

    Two ordinary selections would each answer with a gradient of the whole size, mostly zeros, to be added up; with many
    classes that is the larger part of the loss's time. Here both go into one.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(chosen)
        ctx.shape = rows.shape
        return rows[:, 4].clone(), rows.index_select(0, chosen)

    @staticmethod
    def backward(ctx: Any, objectness: Tensor, rows: Tensor) -> tuple[Tensor, None]:
        (chosen,) = ctx.saved_tensors
        gradient = rows.new_zeros(ctx.shape).index_add_(0, chosen, rows)
        gradient[:, 4] += objectness
        return gradient, None


class _Portions(NamedTuple):
    """What this process's part of a batch counts for in the whole.

    A mean over the own matches times `matches` is, averaged over the processes, the mean over all matches; likewise for
    what is a mean over images. Alone all portions are 1, or 0 for a level without a match.
    """

    totals: Tensor  # (L,) matches of each level in all processes
    matches: Tensor  # (L,) own matches over the mean of all processes
    images: Tensor  # () own images over the mean of all processes
    batch: Tensor  # () images of the mean process

    @classmethod
    def of(cls, counts: Sequence[Tensor], images: int, together: bool) -> _Portions:
        """Count matches () of each level, and images; with `together` all processes must come here."""
        own = torch.stack([*counts, torch.full_like(counts[0], images)])
        mean = totals = own
        if together:
            totals = own.clone()
            dist.all_reduce(totals)
            mean = totals / dist.get_world_size()
        share = own / torch.where(totals > 0, mean, 1)
        return cls(totals[:-1], share[:-1], share[-1], mean[-1])


class _JointMean(RunningMean):
    """The running mean over the boxes of all processes; each must update it equally often, be it with no box."""

    def sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum and the number of all processes' values that count."""
        sums = torch.stack(super().sums(values))
        if is_joined():
            dist.all_reduce(sums)
        return sums[0], sums[1]


class ComputeLoss:
    """The training loss of a `Detect` head: box, objectness and class terms over all levels.

    Args:
        model: `.hyp`, a mapping or a dataclass, has box, obj, cls (gains), cls_pw, obj_pw, fl_gamma, anchor_t and,
            where wanted, label_smoothing, pooled and box_iou (a name of `utils.boxes.iou.LOSSES`, else ValueError; CIoU
            if absent); `.model[-1]` is the head (nl, na, nc, anchors, stride).
        autobalance: move the weights of the levels towards equal objectness losses; no training of ours asks for it.
        shared: of a run of several processes, count the matches of all of them. It holds while predictions need a
            gradient: then every process must compute its loss at the same steps. To be averaged over the processes
            (gradients by DistributedDataParallel, parts by `mean_over_ranks`), as YOLOv5's loss times their number is.

    Attributes that may be set: `gr`, how far a box's overlap sets the objectness it should have (0: always 1),
    `balance`, the objectness weight of each level, and `sort_obj_iou`: where objects share a prediction, the one
    that fits best sets its objectness, not the last.
    """

    gr = 1.0
    sort_obj_iou = False

    def __init__(self, model: Any, autobalance: bool = False, shared: bool = False) -> None:
        head = model.model[-1]
        hyp = model.hyp
        self.hyp: Mapping[str, Any] = hyp if isinstance(hyp, Mapping) else asdict(hyp)
        self.na, self.nc, self.nl, self.anchors = head.na, head.nc, head.nl, head.anchors
        device = head.anchors.device
        self.class_loss = _criterion(self.hyp["cls_pw"], self.hyp["fl_gamma"], device)
        self.object_loss = _criterion(self.hyp["obj_pw"], self.hyp["fl_gamma"], device)
        self.positive, self.negative = smooth_BCE(self.hyp.get("label_smoothing", 0.0))
        self.box_iou = check_loss_name(self.hyp.get("box_iou", "CIoU"))
        self.shared = shared
        self.mean_iou_loss = _JointMean() if shared else RunningMean()
        self.pooled = bool(self.hyp.get("pooled", 0))
        # v6.1 weighs two levels like the first two of five; deeper pyramids than five repeat the last weight
        self.balance = list(BALANCE_THREE if self.nl == 3 else BALANCE_OTHER)
        self.balance += self.balance[-1:] * (self.nl - len(self.balance))
        self.autobalance = autobalance
        strides = [float(stride) for stride in head.stride]
        self.anchor_level = min(range(self.nl), key=lambda level: abs(strides[level] - 16))

    def __call__(self, predictions: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of one batch, computed in float32 whatever the predictions are.

        Args:
            predictions: per level (B, A, rows, cols, 5 + C) logits.
            targets: (N, 6) image, class, centre x, centre y, width, height as fractions of the image.

        Returns:
            loss times B, (1,); its parts without that factor, (3,) box, objectness, class, detached. Shared, the mean
            of the parts over the processes is that of the whole batch, as is the sum of the losses.
        """
        device = predictions[0].device
        targets = targets.to(device, torch.float32)
        anchors = self.anchors.to(device, torch.float32)
        grids = [(level.shape[2], level.shape[3]) for level in predictions]
        matches = match(targets, anchors, grids, self.hyp["anchor_t"])
        together = self.shared and is_joined() and predictions[0].requires_grad
        portions = _Portions.of([found.total for found in matches], len(predictions[0]), together)
        pairs = zip(predictions, matches, strict=True)
        levels = torch.stack([self._level_loss(level.float(), matched, together) for level, matched in pairs])
        # Each level's mean counts alike in YOLOv5, so that the few matches of a level that hardly suits the objects
        # weigh as much as the many of the level that does. With `pooled` every match counts alike, and the sum keeps
        # its size.
        counts = portions.matches
        if self.pooled:
            counts = counts * (self.nl * portions.totals / portions.totals.sum().clamp(min=1))
        balance = constant(tuple(self.balance[: self.nl]), device) * portions.images
        parts = (levels * torch.stack((counts, balance, counts), dim=1)).sum(dim=0)
        if self.autobalance:  # the weight of the level of stride 16 stays 1
            for level, value in enumerate(levels[:, 1].tolist()):
                rate = (1 - BALANCE_DECAY) / max(value, LEAST_LOSS)
                self.balance[level] = self.balance[level] * BALANCE_DECAY + rate
            self.balance = [weight / self.balance[self.anchor_level] for weight in self.balance]
        parts = parts * constant((self.hyp["box"], self.hyp["obj"], self.hyp["cls"]), device)
        return parts.sum(dim=0, keepdim=True) * portions.batch, parts.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what training moves: the weights of the levels and WIoU's running mean."""
        return {"balance": list(self.balance), "mean_iou_loss": self.mean_iou_loss.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the loss of another training stood."""
        value = state["mean_iou_loss"]
        self.balance = list(state["balance"])
        self.mean_iou_loss.value = value.to(self.anchors.device) if isinstance(value, Tensor) else value

    def _level_loss(self, prediction: Tensor, matched: Matches, together: bool) -> Tensor:
        """Return box, objectness and class loss (3,) of one level, means over this process's matches and cells."""
        _, anchors, rows, cols, outputs = prediction.shape
        cell = ((matched.image * anchors + matched.anchor) * rows + matched.row) * cols + matched.col
        objectness, chosen = _Gather.apply(prediction.reshape(-1, outputs), cell)
        truth, real = torch.zeros_like(objectness), matched.real
        if real is not None:
            chosen = chosen.where(real[:, None], 0.0)
        box = label = prediction.new_zeros(())
        if len(cell) or together:  # the others wait for this process's part of a running mean, even if it is empty
            share = chosen[:, :4].sigmoid() * 2
            boxes = torch.cat((share[:, :2] - 0.5, share[:, 2:].square() * matched.anchor_size), dim=1)
            self.mean_iou_loss.real = real
            loss, quality = iou_loss(boxes, matched.box, self.box_iou, self.mean_iou_loss)
        if len(cell):
            # means over the places that are matches
            more = 1.0 if real is None else len(cell) / matched.total.clamp(min=1)
            box = (loss if real is None else loss.where(real, 0.0)).mean() * more
            value = (1 - self.gr) + self.gr * quality.clamp(min=0)
            order = torch.arange(1, len(cell) + 1, device=cell.device)
            if real is not None:
                value, order = value.where(real, 0.0), order * real
            if self.sort_obj_iou:
                truth.scatter_reduce_(0, cell, value, "amax", include_self=False)
            else:  # of several for one cell the last counts, on every device; 0 is none
                last = torch.zeros_like(truth, dtype=torch.long).scatter_reduce_(0, cell, order, "amax")
                truth[cell] = F.pad(value, (1, 0))[last[cell]]
            if self.nc > 1:
                logits, classes = chosen[:, 5:], torch.full_like(chosen[:, 5:], self.negative)
                classes.scatter_(1, matched.label[:, None], self.positive)
                if real is not None:
                    logits, classes = logits.where(real[:, None], NEVER), classes * real[:, None]
                label = self.class_loss(logits, classes) * more
        return torch.stack((box, self.object_loss(objectness, truth), label))
