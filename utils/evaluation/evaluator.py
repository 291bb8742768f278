"""The one validation loop: used after every training epoch and by val.py.

Several processes may have a share of the batches each. Then every picture is scored once, what was counted goes to the
main process in flat arrays, is put into the order of the data set there, and gives the same result, bit for bit, as a
single process with the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.base.log import LOGGER
from utils.base.progress import BAR, is_terminal, progress
from utils.boxes.convert import xywh2xyxy
from utils.data.loader_faults import batches_of
from utils.distributed.processes import agreed, gather_to_main, is_main
from utils.evaluation.metrics import DetectionMetrics, DetectionResult
from utils.predict.pipeline import Clock, Geometry, Suppression, find_objects

HEADER = ("%20s" + "%11s" * 6) % ("Class", "Images", "Labels", "P", "R", "mAP@.5", "mAP@.5:.95")
Forward = Callable[[Tensor], tuple[Tensor, Any]]


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How predictions become detections, and which of a data set's batches the loader has."""

    conf_thres: float = 0.001
    iou_thres: float = 0.6
    max_det: int = 300
    single_cls: bool = False
    hybrid: bool = False  # ground truth joins the candidates before suppression: labels to look at, metrics void
    half: bool = False
    autocast: torch.dtype | None = None
    first: int = 0  # the loader's batches are first, first + stride, ... of the whole set
    stride: int = 1  # above 1: every process of the run evaluates its share, see `own_batches`

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        """What the network runs in."""
        return torch.autocast(device.type, self.autocast) if self.autocast else nullcontext()


@dataclass(slots=True)
class ValResult:
    """Metrics, mean losses (box, obj, cls) and milliseconds per picture (preparation, network, suppression)."""

    metrics: DetectionResult
    losses: tuple[float, float, float] = (0.0, 0.0, 0.0)
    speed: tuple[float, float, float] = (0.0, 0.0, 0.0)
    settings: EvalSettings = field(default_factory=EvalSettings)

    @property
    def summary(self) -> tuple[float, ...]:
        """P, R, mAP50, mAP50-95, box, obj and cls loss: YOLOv5's row of results."""
        m = self.metrics
        return (m.precision, m.recall, m.map50, m.map, *self.losses)


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One validated picture, as listeners get it."""

    path: str
    shape: tuple[int, int]  # h, w of the picture as it lies on disk
    detections: Tensor  # (n, 6) xyxy in its own pixels, confidence, class
    correct: Tensor  # (n, 10) right at IoU .5 ... .95?
    batch: int = 0  # its number in the whole data set


@dataclass(frozen=True, slots=True)
class _Share:
    """What one process found in its k batches, small enough to be sent."""

    numbers: np.ndarray  # (k,) of the batches in the whole set
    pictures: np.ndarray  # (k,) in each
    losses: np.ndarray  # (k, 3)
    seconds: np.ndarray  # (3,) preparation, network, suppression
    counted: dict[str, Any]  # by DetectionMetrics.pack
    heard: Any  # by the listener


def evaluate(
    forward: Forward,
    loader: Iterable[Any],
    names: Sequence[str],
    device: torch.device,
    settings: EvalSettings = EvalSettings(),
    listener: Listener | None = None,
) -> ValResult | None:
    """Detect on every batch of `loader` and score it against the labels.

    `forward` maps (B, 3, H, W) pictures in 0..1 to (predictions (B, M, 5 + C), raw maps per level); the raw maps reach
    `listener.loss`. Boxes are compared in the pixels of the pictures on disk. With a `settings.stride` above 1 every
    process of the run must come here, each with its own batches; the main one gets the result of all of them, the
    others None. A ValueError or OSError of one is then raised in all.
    """
    listener, scorer, several = listener or Listener(), Scorer(names, settings), settings.stride > 1
    with agreed() if several else nullcontext():
        share = _score_share(forward, loader, device, scorer, listener)
    shares = gather_to_main(share) if several else [share]
    if shares is None:
        return None
    listener.receive([one.heard for one in shares])
    scorer.metrics.reset()
    return _join(shares, scorer)


def _score_share(
    forward: Forward, loader: Iterable[Any], device: torch.device, scorer: Scorer, listener: Listener
) -> _Share:
    """The loop over this process's batches."""
    settings, clock = scorer.settings, Clock()
    dtype = torch.float16 if settings.half else torch.float32
    numbers: list[int] = []
    pictures: list[int] = []
    losses: list[Tensor] = []
    title, quiet = HEADER if is_terminal() else "validating", not (listener.progress and is_main())
    total = len(loader) if isinstance(loader, Sized) else None

    def network(images: Tensor) -> tuple[Tensor, Any]:
        with torch.inference_mode(), settings.context(device):
            predictions, raw = forward(images)
        return predictions.float(), raw

    for batch in progress(batches_of(loader), title, total, unit=" batches", quiet=quiet, bar_format=BAR):
        targets = batch.targets.to(device)
        chosen = replace(scorer.suppression, labels=scorer.labels(targets, batch.images.shape))
        detections, (_, raw) = find_objects(network, batch.images, chosen, clock, device, dtype)
        if raw is not None:
            losses.append(listener.loss([level.float() for level in raw], targets))
        else:
            losses.append(torch.zeros(3, device=device))
        number = settings.first + len(numbers) * settings.stride
        for result in scorer.score(detections, targets, batch, number):
            listener.image(result)
        listener.batch(number, batch, detections)
        numbers.append(number)
        pictures.append(len(batch.images))
    values = torch.stack([torch.zeros(3, device=device), *losses]).float().cpu().numpy()[1:]
    seconds = np.array([clock.prepare, clock.network, clock.suppress])
    return _Share(np.array(numbers), np.array(pictures), values, seconds, scorer.metrics.pack(), listener.parcel())


def _join(shares: Sequence[_Share], scorer: Scorer) -> ValResult:
    """One result of the shares of all processes, the same however the batches were dealt out."""
    numbers, pictures = (
        np.concatenate([getattr(one, name) for one in shares]).astype(int) for name in ("numbers", "pictures")
    )
    scorer.metrics.absorb([one.counted for one in shares], np.repeat(numbers, pictures))
    losses = np.concatenate([one.losses for one in shares])[np.argsort(numbers)]
    # a float32 sum depends on the order of its terms; cumsum adds one batch after the other
    mean = losses.cumsum(axis=0)[-1] / len(losses) if len(losses) else np.zeros(3)
    seconds = sum(one.seconds for one in shares)
    return ValResult(
        scorer.metrics.compute(),
        tuple(mean.tolist()),
        tuple((1e3 * seconds / max(int(pictures.sum()), 1)).tolist()),
        scorer.settings,
    )


class Listener:
    """What a caller may want to hear while validating; every method may be overridden.

    Each process's listener hears of its own batches; `parcel` and `receive` bring together what was heard.
    """

    progress = True

    def loss(self, raw: list[Tensor], targets: Tensor) -> Tensor:
        """(box, obj, cls) of one batch."""
        return torch.zeros(3, device=targets.device)

    def image(self, result: ImageResult) -> None:
        """One picture is scored."""

    def batch(self, index: int, batch: Any, detections: list[Tensor]) -> None:
        """Batch `index` of the whole set is scored; detections are in the pixels of the batch."""

    def parcel(self) -> Any:
        """After the last batch: what the main process should know. It may be pickled."""
        return None

    def receive(self, parcels: Sequence[Any]) -> None:
        """In the main process: the parcels of all processes, by rank; of this one alone where it is alone."""


class Scorer:
    """From predictions to detections to counts."""

    def __init__(self, names: Sequence[str], settings: EvalSettings) -> None:
        import_module("torchvision.ops")  # suppression needs it; the first batch's time must not hold its import
        self.settings = settings
        self.suppression = Suppression(
            settings.conf_thres,
            settings.iou_thres,
            agnostic=settings.single_cls,
            multi_label=True,
            max_det=settings.max_det,
        )
        self.metrics = DetectionMetrics(["item"] if settings.single_cls else list(names))

    def labels(self, targets: Tensor, shape: torch.Size) -> list[Tensor]:
        """What joins the candidates of each image of a batch of `shape` (B, 3, H, W): with `hybrid` its labels."""
        if not self.settings.hybrid:
            return []
        boxes = torch.cat((targets[:, 1:2], targets[:, 2:] * _sides(shape[2:], targets)), 1)
        return [boxes[targets[:, 0] == i] for i in range(shape[0])]

    def score(
        self, detections: Sequence[Tensor], targets: Tensor, batch: Any, number: int = 0
    ) -> Iterator[ImageResult]:
        """Bring the detections and labels of each picture to its own pixels, and count them."""
        shape = batch.images.shape[2:]
        for i, found in enumerate(detections):
            native, ratio_pad = batch.shapes[i]
            geometry = Geometry(native, shape, ratio_pad)
            mine = targets[targets[:, 0] == i, 1:]
            found = geometry.to_image(found)
            if self.settings.single_cls:
                found[:, 5] = 0
                mine = torch.cat((torch.zeros_like(mine[:, :1]), mine[:, 1:]), 1)
            boxes = geometry.to_image(xywh2xyxy(mine[:, 1:] * _sides(shape, mine)))
            correct = self.metrics.update(found, torch.cat((mine[:, :1], boxes), 1))
            yield ImageResult(batch.paths[i], native, found, correct, number)


def _sides(shape: torch.Size, like: Tensor) -> Tensor:
    """(W, H, W, H), what fractions of a picture are multiplied with."""
    return torch.tensor([shape[1], shape[0]] * 2, device=like.device)


def warn_of_crowds(objects: Iterable[int], max_det: int) -> None:
    """Say how many images have more objects than detections are kept of them; `objects` are the labels of each."""
    if crowded := [count for count in objects if count > max_det]:
        some = "1 image has" if len(crowded) == 1 else f"{len(crowded)} images have"
        LOGGER.warning(
            f"{some} more than {max_det} objects (most: {max(crowded)}), and no more detections of an image are kept: "
            "raise --max-det"
        )


def log_table(result: ValResult, per_class: bool = False) -> None:
    """Log the line of all classes, on wish one per class, and AP by object size. On a terminal the header is the
    progress bar's.
    """
    row, m = "%20s" + "%11i" * 2 + "%11.3g" * 4, result.metrics
    if not is_terminal():
        LOGGER.info(HEADER)
    LOGGER.info(row % ("all", m.images, m.labels, m.precision, m.recall, m.map50, m.map))
    if per_class:
        for c in m.per_class:
            LOGGER.info(row % (c.name, c.images, c.labels, c.precision, c.recall, c.map50, c.map))
    for size, score in m.by_size.items():
        if score.labels:
            LOGGER.info(
                ("%20s" + "%11s%11i" + "%11s" * 2 + "%11.3g" * 2)
                % (f"({size})", "", score.labels, "", "", score.map50, score.map)
            )
    if m.labels == 0:
        LOGGER.warning("no labels in this split: the metrics say nothing; check the folder of label files")
