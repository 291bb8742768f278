"""The one validation loop: used after every training epoch and by val.py.

Several processes may have a share of the batches each. Then every image is scored once, what was counted goes to the
main process, is put into the order of the data set there, and gives the same result, bit for bit, as a single process
with the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.base.devices import many_shapes
from utils.base.log import LOGGER
from utils.base.progress import BAR, is_terminal, progress
from utils.boxes.convert import xywh2xyxy
from utils.boxes.nms import suppressor
from utils.data.loader_faults import batches_of
from utils.data.tiles import Tiling
from utils.distributed.processes import agreed, gather_to_main, is_main
from utils.evaluation.metrics import DetectionMetrics
from utils.evaluation.reports import Found, Report, ValResult
from utils.predict.pipeline import Clock, Geometry, Suppression, find_objects, prepare_image
from utils.predict.tiled import TileSearch

HEADER = ("%20s" + "%11s" * 6) % ("Class", "Images", "Labels", "P", "R", "mAP@.5", "mAP@.5:.95")
Forward = Callable[[Tensor], tuple[Tensor, Any]]


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How predictions become detections, and which of a data set's batches the loader has."""

    conf_thres: float = 0.001
    iou_thres: float = 0.6
    max_det: int = 300
    single_cls: bool = False
    hybrid: bool = False  # ground truth joins the candidates before suppression: labels to see, metrics void
    half: bool = False
    autocast: torch.dtype | None = None
    first: int = 0  # the loader's batches are first, first + stride, ... of the whole set
    stride: int = 1  # above 1: every process of the run evaluates its share, see `own_batches`
    tiling: Tiling | None = None  # images are looked at in tiles, too: batches hold the `originals`
    imgsz: int = 640  # side in pixels that tiles are scaled to


class _Share(NamedTuple):
    """What one process found in its k batches."""

    numbers: np.ndarray  # (k,) of the batches in the whole set
    images: np.ndarray  # (k,) in each
    losses: np.ndarray  # (k, 3)
    seconds: np.ndarray  # (3,) preparation, network, suppression
    metrics: DetectionMetrics
    found: list[Found]


def evaluate(
    forward: Forward,
    loader: Iterable[Any],
    names: Sequence[str],
    device: torch.device,
    settings: EvalSettings = EvalSettings(),
    report: Report | None = None,
) -> ValResult | None:
    """Detect on every batch of `loader` and score it against the labels.

    `forward` maps (B, 3, H, W) images in 0..1 to (predictions (B, M, 5 + C), raw maps per level); these reach
    `report.compute_loss`. Boxes are compared in the pixels of the images on disk. With a `settings.stride` above 1
    every process of the run must come here, each with its own batches; the main one gets the result of all of them,
    the others None. An error of one is then raised in all.
    """
    report = report or Report(Path(), names, plots=False)
    metrics = DetectionMetrics(["item"] if settings.single_cls else names)
    with agreed() if settings.stride > 1 else nullcontext(), many_shapes():
        share = _score_share(forward, loader, metrics.names, device, settings, report)
    shares = gather_to_main(share) if settings.stride > 1 else [share]
    if shares is None:
        return None
    report.receive([share.found for share in shares])
    return _join(shares, metrics)


def _join(shares: Sequence[_Share], metrics: DetectionMetrics) -> ValResult:
    """Return one result of the shares of all processes, the same however the batches were dealt out."""
    numbers, sizes, losses = (np.concatenate([share[i] for share in shares]) for i in (0, 1, 2))
    images = [image for share in shares for image in share.metrics.images]
    metrics.images = [images[i] for i in np.argsort(np.repeat(numbers, sizes), kind="stable")]
    metrics.confusion.matrix += sum(share.metrics.confusion.matrix for share in shares)
    losses = losses[np.argsort(numbers)]
    # a float32 sum depends on the order of its terms; cumsum adds one batch after the other
    mean = losses.cumsum(axis=0)[-1] / len(losses) if len(losses) else np.zeros(3)
    speed = 1e3 * np.sum([share.seconds for share in shares], axis=0) / max(int(sizes.sum()), 1)
    return ValResult(metrics.compute(), tuple(mean.tolist()), tuple(speed.tolist()))


def _score_share(
    forward: Forward,
    loader: Iterable[Any],
    names: list[str],
    device: torch.device,
    settings: EvalSettings,
    report: Report,
) -> _Share:
    """Detect and score this process's batches."""
    suppressor()  # the first batch's time must not hold its import
    metrics, clock, dtype = DetectionMetrics(names), Clock(), torch.float16 if settings.half else torch.float32
    suppression = Suppression(
        settings.conf_thres, settings.iou_thres, None, settings.single_cls, multi_label=True, max_det=settings.max_det
    )
    numbers, sizes, losses = list[int](), list[int](), [torch.zeros(3, device=device)]

    def network(images: Tensor) -> tuple[Tensor, Any]:
        with torch.inference_mode(), torch.autocast(device.type, settings.autocast, settings.autocast is not None):
            predictions, raw = forward(images)
        return predictions.float(), raw

    search = _tile_search(settings, network, device, dtype)
    title, total = HEADER if is_terminal() else "validating", len(loader) if isinstance(loader, Sized) else None
    for batch in progress(batches_of(loader), title, total, unit=" batches", quiet=not is_main(), bar_format=BAR):
        number, (count, _, height, width) = settings.first + len(numbers) * settings.stride, batch.images.shape
        targets, candidates = batch.targets, _labels_of(batch)
        chosen = replace(suppression, labels=candidates * settings.hybrid)
        detections, (_, raw) = find_objects(network, batch.images, chosen, clock, device, dtype)
        levels = raw and [level.float() for level in raw]
        losses.append(report.compute_loss(levels, targets.to(device, non_blocking=True))[1] if levels else losses[0])
        for i, found in enumerate(detections):
            image, ratio_pad = batch.shapes[i]
            geometry = Geometry(image, (height, width), ratio_pad)
            found, labels = geometry.to_image(found), candidates[i]
            labels[:, 1:] = geometry.to_image(xywh2xyxy(labels[:, 1:]))
            if search:
                found = search(batch.originals[i].numpy(), found, suppression, clock)
                corners = geometry.to_input(found[:, :4].reshape(-1, 2).tolist())
                detections[i] = torch.cat((torch.tensor(corners).view(-1, 4), found[:, 4:]), 1)
            if settings.single_cls:
                found[:, 5] = labels[:, 0] = 0
            metrics.update(found, labels)
            report.image(batch.paths[i], image, found, number)
        report.batch(number, batch, detections)
        numbers.append(number)
        sizes.append(count)
    clock.settled()
    batches = np.array(numbers, int), np.array(sizes, int), torch.stack(losses).float().cpu().numpy()[1:]
    return _Share(*batches, np.array([clock.prepare, clock.network, clock.suppress]), metrics, report.found)


def _labels_of(batch: Any) -> list[Tensor]:
    """Return the labels (n, 5) of each image: class, centre x, centre y, width, height in pixels of the batch."""
    targets, (count, _, height, width) = batch.targets, batch.images.shape
    truth = torch.cat((targets[:, 1:2], targets[:, 2:] * torch.tensor([width, height] * 2)), 1)
    return [truth[targets[:, 0] == i] for i in range(count)]


def _tile_search(
    settings: EvalSettings, network: Forward, device: torch.device, dtype: torch.dtype
) -> TileSearch | None:
    """Return what looks at tiles, as large for the network as training's, None where that is not wanted."""
    if settings.tiling is None:
        return None
    prepare = partial(prepare_image, shape=(settings.imgsz, settings.imgsz), auto=False)
    return TileSearch(settings.tiling, network, prepare, device, dtype)


def warn_of_crowds(objects: Iterable[int], max_det: int) -> None:
    """Log how many images have more objects than detections are kept of them; `objects` are the labels of each."""
    if crowded := [count for count in objects if count > max_det]:
        some = "1 image has" if len(crowded) == 1 else f"{len(crowded)} images have"
        some += f" more than {max_det} objects (most: {max(crowded)})"
        LOGGER.warning(f"{some}, and no more detections of an image are kept: raise --max-det")


def log_table(result: ValResult, per_class: bool = False) -> None:
    """Log the line of all classes, if asked one per class, and AP by object size.

    On a terminal the header is the progress bar's.
    """
    row, m = "%20s" + "%11i" * 2 + "%11.3g" * 4, result.metrics
    if not is_terminal():
        LOGGER.info(HEADER)
    LOGGER.info(row % ("all", m.images, m.labels, m.precision, m.recall, m.map50, m.map))
    for c in m.per_class if per_class else ():
        LOGGER.info(row % (c.name, c.images, c.labels, c.precision, c.recall, c.map50, c.map))
    for size, score in m.by_size.items():
        if score.labels:
            cells = (f"({size})", "", score.labels, "", "", score.map50, score.map)
            LOGGER.info(("%20s" + "%11s%11i" + "%11s" * 2 + "%11.3g" * 2) % cells)
    if m.labels == 0:
        LOGGER.warning("no labels in this split: the metrics say nothing; check the folder of label files")
