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
import torch.nn.functional as F
from torch import Tensor

from utils.boxes.convert import xywh2xyxy

MIN_SIDE, MAX_SIDE = 2, 7680  # pixels; boxes with a side outside of this range are noise
MAX_CANDIDATES = 30_000  # per image; beyond that only the most confident ones compete
FIRST_PREFIX = 4  # the first greedy pass looks at this many times max_det candidates
ONE_BY_ONE = ("cpu",)  # where images are looked at one after the other: nothing waits, and fewer pairs are compared
AT_ONCE = 50_000  # boxes that are compared together elsewhere: the answers for all pairs are 313 MB


def non_max_suppression(
    prediction: Tensor,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    labels: Sequence[Tensor] = (),
    max_det: int = 300,
    on_cpu: bool = False,
) -> list[Tensor]:
    """Keep, per image, the most confident box of every group of overlapping ones.

    On a GPU all images are looked at together, and the answer comes to the CPU first, in one copy.

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
        on_cpu: leave the detections there, instead of taking them to the device of the predictions again.

    Returns per image a (n, 6) float tensor of x1, y1, x2, y2, confidence, class, most confident first. Raises
    ValueError where a threshold is not in 0..1, and for predictions of another shape.
    """
    _check(prediction, conf_thres=conf_thres, iou_thres=iou_thres)
    choice, home = (conf_thres, multi_label, classes), prediction.device
    if home.type == "mps":  # which has no double precision
        prediction = prediction.cpu()
    if prediction.device.type in ONE_BY_ONE:
        parts = (_candidates(prediction[i : i + 1], labels[i : i + 1], *choice)[0] for i in range(len(prediction)))
        found = [survivors(candidates, iou_thres, agnostic, max_det) for candidates in parts]
        return found if on_cpu else [detections.to(home) for detections in found]
    candidates, image = _candidates(prediction, labels, *choice)
    results = _joint_survivors(candidates, image, len(prediction), iou_thres, agnostic, max_det)
    if on_cpu or not results:
        return results
    return list(torch.cat(results).to(prediction.device).split([len(found) for found in results]))


def _check(prediction: Tensor, **thresholds: float) -> None:
    if prediction.ndim != 3 or prediction.shape[2] < 6:
        shape = " x ".join(map(str, prediction.shape))
        raise ValueError(f"the weights return {shape}, not images x boxes x 6 or more; export them again")
    for name, value in thresholds.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, it must lie in 0..1")


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


def _candidates(
    prediction: Tensor, labels: Sequence[Tensor], conf_thres: float, multi_label: bool, classes: Sequence[int] | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Prediction rows (b, M, 5 + C) to detections (n, 6) above the threshold, and the image (n,) of each.

    Those of an image are in the order of its rows, labels after them.
    """
    count, places, outputs = prediction.shape
    sides = prediction[..., 2:4]
    likely = (prediction[..., 4] > conf_thres) & ((sides >= MIN_SIDE) & (sides <= MAX_SIDE)).all(dim=-1)
    likely = (likely & prediction[..., :2].isfinite().all(dim=-1)).flatten()
    rows, image = prediction.flatten(0, 1), torch.arange(count, device=prediction.device).repeat_interleave(places)
    if prediction.device.type in ONE_BY_ONE:  # spares arithmetic
        rows, image = rows[likely].float(), image[likely]
        sure = rows[:, 4]
    else:  # where that would be one more time to wait
        rows = rows.float()
        sure = rows[:, 4].where(likely, 0.0)
    for number, known in enumerate(labels):  # labels as prediction rows of full confidence
        known = known.to(rows)
        added = rows.new_zeros((len(known), outputs))
        added[:, :4], added[:, 4] = known[:, 1:5], 1
        rows = torch.cat((rows, added.scatter_(1, known[:, :1].long() + 5, 1.0)))
        image, sure = F.pad(image, (0, len(known)), value=number), F.pad(sure, (0, len(known)), value=1.0)
    scores = rows[:, 5:] * sure[:, None]
    wanted = None if classes is None else torch.as_tensor(list(classes), device=rows.device)
    if multi_label and outputs > 6:
        passing = scores > conf_thres
        if wanted is not None:
            passing &= torch.isin(torch.arange(outputs - 5, device=rows.device), wanted)
        row, label = passing.nonzero(as_tuple=True)
        confidence = scores[row, label]
    else:
        confidence, label = scores.max(dim=1) if len(scores) else (scores.new_zeros(0), scores.new_zeros(0))
        passing = confidence > conf_thres
        if wanted is not None:
            passing &= torch.isin(label, wanted)
        row = passing.nonzero().flatten()
        confidence, label = confidence[row], label[row]
    boxes = xywh2xyxy(rows[:, :4])[row]
    return torch.cat((boxes, confidence[:, None], label[:, None].to(boxes.dtype)), dim=1), image[row]


def survivors(detections: Tensor, iou_thres: float, agnostic: bool, max_det: int) -> Tensor:
    """Return the detections (n, 6), at most max_det, that greedy suppression leaves, by falling confidence.

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


def _joint_survivors(
    detections: Tensor, image: Tensor, count: int, iou_thres: float, agnostic: bool, max_det: int
) -> list[Tensor]:
    """`survivors` of each of `count` images, on the CPU, from the detections (n, 6) of all and the image (n,) of each.

    Images are moved apart as classes are, but in double precision, which leaves every overlap what it was. The device
    is waited for twice, and twice more where so long a prefix of each image's list leaves too few of some image's.
    """
    nms = suppressor()
    if not len(detections):
        return [detections.new_zeros((0, 6), device="cpu")] * count
    order = detections[:, 4].argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    detections, image = detections[order], image[order]
    numbers = torch.arange(count + 1, device=image.device)
    begins = torch.searchsorted(image, numbers)
    ends = (begins[:-1] + MAX_CANDIDATES).minimum(begins[1:])
    boxes = detections[:, :4]
    if not agnostic:
        boxes = boxes + detections[:, 5:6] * (boxes.max() - boxes.min()).clamp(min=MAX_SIDE)
    boxes = boxes.double() if count > 1 else boxes
    apart = boxes.max() - boxes.min() + 1

    results, left = [detections.new_zeros((0, 6), device="cpu")] * count, list(range(count))
    length = max(max_det, AT_ONCE // count)
    while left:
        length, short = min(length, MAX_CANDIDATES, len(detections)), []
        several = max(1, AT_ONCE // length)
        for mine in (left[at : at + several] for at in range(0, len(left), several)):
            chosen = numbers[:-1] if len(mine) == count else torch.tensor(mine, device=image.device)
            place = begins[chosen, None] + torch.arange(length, device=image.device)
            there = (place < ends[chosen, None]).flatten()
            place = place.clamp(max=len(detections) - 1).flatten()
            who = numbers[: len(mine), None].expand(-1, length).flatten()
            scores = detections[place, 4].to(boxes.dtype).where(there, -1.0)
            kept = nms(boxes[place] + who[:, None] * apart, scores, iou_thres)
            rows = torch.cat((detections[place[kept]], torch.stack((who, there), dim=1)[kept]), dim=1)
            sizes = (ends - begins[:-1])[chosen]
            news, sizes = torch.cat((rows.flatten(), sizes)).cpu().split((rows.numel(), len(mine)))
            rows = news.view(-1, 8)[news[7::8] > 0]
            for number, index in enumerate(mine):
                results[index] = rows[rows[:, 6] == number][:max_det, :6]
                if len(results[index]) < max_det and sizes[number] > length:
                    short.append(index)
        left, length = short, 4 * length
    return results
