"""An export is done when its numbers agree: the file in its own runtime against the network, on real images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.backends import DetectMultiBackend
from models.backends.metadata import PRECISIONS
from models.exporters.job import ExportError, ExportJob, ExportSettings, cleared
from utils.base.log import LOGGER, one_line
from utils.base.paths import ROOT, shown
from utils.boxes.convert import xywh2xyxy
from utils.boxes.iou import paired_iou
from utils.images.reading import read_image
from utils.predict.pipeline import Suppression, prepare_image, suppress, to_network

IMAGES = ROOT / "data/images"
COMPARED = 300  # candidates of each image, the surest of both sides: as many as an image may have detections
OWN_ROUNDING = 4.0  # times what PyTorch's own rounding makes of a network, a file's may make of it
CONFIDENCE, OVERLAP = 0.25, 0.45  # what detect.py calls a detection
MOVED = 0.01  # of a detection's longer side, and a pixel at least: more is a move


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest differences that are allowed: of box edges in pixels, of objectness and classes.

    side: longer side in pixels of the boxes that `box` is meant for; larger ones may differ in proportion, as a network
    gives sides as factors. share: the part of all candidates that has to keep to it. In coarser numbers a region whose
    akin regions are akin almost alike may be routed elsewhere, which is no fault of the file's; val.py says what that
    costs.
    """

    box: float
    score: float
    share: float = 1.0
    side: float = 64.0


TOLERANCES = {
    "fp32": Tolerance(0.05, 1e-3),
    "fp16": Tolerance(1.0, 0.02, 0.95, 320.0),
    "int8": Tolerance(8.0, 0.25, 0.9, 320.0),
}


@dataclass(frozen=True, slots=True)
class Difference:
    """What was compared, and by how much it differs.

    box: of edges in pixels, of larger boxes than the tolerance is meant for in proportion. worst: the candidate that
    differs most. rounding: box and score by which PyTorch differs from itself in double precision, looked at where a
    file differs by more than is allowed. changes: what becomes of the detections there.
    """

    view: str
    images: int
    candidates: int
    box: float
    score: float
    worst: str = ""
    rounding: tuple[float, float] = (0.0, 0.0)
    changes: str = ""

    def fits(self, limit: Tolerance) -> bool:
        """Whether both differences are allowed, or are the network's own; NaN is not."""
        box, score = (OWN_ROUNDING * own for own in self.rounding)
        return self.box <= max(limit.box, box) and self.score <= max(limit.score, score)


def load_images(folder: Path = IMAGES) -> list[np.ndarray]:
    """The images to compare on, BGR. Raises ValueError for none."""
    files = sorted(folder.glob("*.jpg"))
    if not files:
        raise ValueError(f"no images in {folder} to compare the exported file with PyTorch on")
    return [read_image(file) for file in files]


def views(images: list[np.ndarray], imgsz: tuple[int, int], is_fixed: bool, stride: int) -> Iterator[Tensor]:
    """Batches (B, 3, h, w) in 0..1: all images, a wide part of one and a tall one.

    All are fitted into `imgsz` and, where sides are fixed, padded to it; else to multiples of the stride only.
    """
    height, width = images[0].shape[:2]
    parts = [images[0][: height // 2], images[0][:, : width // 2]]
    whole = [*images, *parts] if is_fixed else images
    yield to_network([prepare_image(one, imgsz, auto=False)[0] for one in whole])
    for part in [] if is_fixed else parts:
        yield to_network([prepare_image(part, imgsz, stride)[0]])


def compare_with_pytorch(job: ExportJob, file: Path) -> list[Difference]:
    """Load `file` in its runtime and compare it with the job's network; logs a table.

    Raises ExportError, and renames the file to `*.failed`, when the runtime gives up or a difference is beyond what the
    file's precision allows; it names the worst box and says what becomes of the detections.
    """
    try:
        backend = DetectMultiBackend(file, device=job.settings.device, trust=True)
        limit = TOLERANCES[max(job.metadata().precision, backend.metadata.precision, key=PRECISIONS.index)]
        rows = list(_differences(job, backend, limit))
    except Exception as error:  # every runtime has classes of its own
        raise _failed(file, f"its own runtime gives up ({one_line(error)[:300]})") from error
    if backend.shape is not None and backend.metadata.batch is None:
        LOGGER.info("--dynamic leaves the number of images open, not their size, by which routing attention cuts")
    _log(rows, limit, file)
    bad = next((row for row in rows if not row.fits(limit)), None)
    if bad is not None:
        found = f"{bad.box:.3g} pixels (at most {limit.box}) and {bad.score:.3g} in scores (at most {limit.score})"
        most = f"on images of {bad.view}, most in {bad.worst}; {bad.changes}"
        raise _failed(file, f"differs from PyTorch by {found} {most}")
    return rows


def _failed(file: Path, why: str) -> ExportError:
    """The error to raise; the file is put where nobody takes it for a good one."""
    kept = file.rename(cleared(file.with_name(f"{file.name}.failed")))
    return ExportError(f"{file.name}: {why}; kept as {kept.name}")


def _differences(job: ExportJob, backend: DetectMultiBackend, limit: Tolerance) -> Iterator[Difference]:
    """One for each view of the images."""
    nms = job.settings if backend.metadata.nms else None
    kind = next(job.model.parameters()).dtype
    for batch in views(load_images(), job.settings.imgsz, backend.shape is not None, backend.stride):
        batch, view = batch.to(job.settings.device), " x ".join(map(str, batch.shape[2:]))
        with torch.inference_mode():
            expected = job.model(batch.to(kind))[0].float()
            found = backend(batch).to(expected.device)
            measure = partial(_between_detections, nms=nms) if nms else difference
            row = measure(expected, found, view, limit)
            if not row.fits(limit):  # how much is the network's own, which rounding hardly counts for in double?
                own = measure(expected, deepcopy(job.model).double()(batch.double())[0].to(expected), view, limit)
                usual = nms or ExportSettings(iou_thres=OVERLAP, conf_thres=CONFIDENCE)
                moves = changes(_suppressed(expected, usual), _suppressed(found, usual))
                row = replace(row, rounding=(own.box, own.score), changes=moves)
        yield row


def difference(expected: Tensor, found: Tensor, view: str, limit: Tolerance = TOLERANCES["fp32"]) -> Difference:
    """The differences between predictions (B, M, 5 + C) that the limit's share of their surest keep to."""
    if expected.shape != found.shape:
        shapes = " instead of ".join(str(tuple(one.shape)) for one in (found, expected))
        return Difference(view, len(expected), 0, float("inf"), float("inf"), f"its shape, {shapes}")
    sure = torch.maximum(*(one[..., 4] * one[..., 5:].amax(-1) for one in (expected, found)))
    surest = sure.nan_to_num(1.0).topk(min(COMPARED, sure.shape[1])).indices[..., None]
    ours, theirs = (one.gather(1, surest.expand(-1, -1, one.shape[-1])).flatten(0, 1) for one in (expected, found))
    corners = [xywh2xyxy(rows[:, :4]) for rows in (ours, theirs)]
    box = _in_proportion((corners[0] - corners[1]).abs().amax(1), corners[0], limit)
    score = (ours[:, 4:] - theirs[:, 4:]).abs().amax(1)
    last = math.ceil(limit.share * len(box) - 1e-6) - 1  # the place of the error that a share of all keep to
    which = [int(one.nan_to_num(math.inf).argsort()[-1 if one.isnan().any() else last]) for one in (box, score)]
    row = which[0] if not box[which[0]] / limit.box < score[which[1]] / limit.score else which[1]
    scores = [f"{float(rows[row, 4] * rows[row, 5:].max()):.4g}" for rows in (ours, theirs)]
    worst = _named(row // surest.shape[1], corners[0][row], corners[1][row], scores)
    return Difference(view, len(expected), len(box), float(box[which[0]]), float(score[which[1]]), worst)


def _in_proportion(error: Tensor, corners: Tensor, limit: Tolerance) -> Tensor:
    """Errors (n,) in pixels of boxes (n, 4), made smaller where the box is larger than the limit is meant for."""
    longer = (corners[:, 2:] - corners[:, :2]).abs().amax(1)
    return error * (limit.side / longer.clamp(min=limit.side))


def _named(number: int, expected: Tensor, found: Tensor, scores: Sequence[str]) -> str:
    """A box (4,) corners of an image, for people."""
    here, there = (" ".join(f"{edge:.2f}" for edge in box.tolist()) for box in (expected, found))
    return f"image {number + 1}, box {there} instead of {here}, confidence {scores[1]} instead of {scores[0]}"


def _between_detections(
    expected: Tensor, found: Tensor, view: str, limit: Tolerance, nms: ExportSettings
) -> Difference:
    """For files with suppression inside: every detection of the one must have its like in the other.

    Detections whose confidence is within rounding of what is needed to be kept may be in one and not in the other.
    """
    box = score = 0.0
    count, worst = 0, "no box"
    for number, pair in enumerate(zip(_suppressed(expected, nms), _suppressed(found, nms), strict=True)):
        count += len(pair[0])
        for ours, theirs in (pair, pair[::-1]):
            least = nms.conf_thres if len(theirs) < nms.topk_all else float(theirs[:, 4].min())
            for row in ours[ours[:, 4] > least + TOLERANCES["fp32"].score]:
                same = torch.cat((theirs[theirs[:, 5] == row[5]], torch.full_like(row[None], float("inf"))))
                gaps = (same[:, :4] - row[:4]).abs().amax(1)
                there = same[gaps.argmin()]
                gap = float(_in_proportion(gaps.min()[None], row[None, :4], limit))
                off = float((there[4] - row[4]).abs())
                if gap > box or off > score:
                    worst = _named(number, row[:4], there[:4], [f"{one[4]:.4g}" for one in (row, there)])
                box, score = max(box, gap), max(score, off)
    return Difference(view, len(expected), count, box, score, worst)


def changes(expected: list[Tensor], found: list[Tensor]) -> str:
    """What becomes of the detections (n, 6) of each image: which vanish, appear or move, for people."""
    lost = new = moved = 0
    for ours, theirs in zip(expected, found, strict=True):
        overlap = paired_iou(ours[:, None, :4], theirs[None, :, :4]) * (ours[:, 5, None] == theirs[:, 5])
        free = torch.ones(len(theirs), dtype=torch.bool, device=theirs.device)
        for row, shares in zip(ours, overlap, strict=True):
            shares = shares * free
            if not len(shares) or not float(shares.max()) >= OVERLAP:
                lost += 1
                continue
            like = int(shares.argmax())
            free[like] = False
            side = float((row[2:4] - row[:2]).max())
            moved += float((theirs[like, :4] - row[:4]).abs().max()) > max(1.0, MOVED * side)
        new += int(free.sum())
    count = sum(map(len, expected))
    if not lost + new + moved:
        return f"none of {count} detections would change"
    shift = f"move by more than {MOVED:.0%} of a side"
    return f"of {count} detections {lost} would vanish, {new} appear and {moved} {shift}"


def _suppressed(predictions: Tensor, nms: ExportSettings) -> list[Tensor]:
    """Detections (n, 6) of every image as the file shall give them: so many of a class, so many in all."""
    kept = []
    settings = Suppression(nms.conf_thres, nms.iou_thres, agnostic=nms.agnostic_nms, max_det=predictions.shape[1])
    for rows in suppress(predictions, settings):
        groups = torch.zeros_like(rows[:, 5]) if nms.agnostic_nms else rows[:, 5]
        earlier = (groups[:, None] == groups).tril(-1).sum(1)  # of the same group, and surer
        kept.append(rows[earlier < nms.topk_per_class][: nms.topk_all])
    return kept


def _log(rows: list[Difference], limit: Tolerance, file: Path) -> None:
    most = "" if limit.share == 1 else f" for {limit.share:.0%}"
    LOGGER.info(
        f"{shown(file)} next to PyTorch (at most {limit.box} pixels, for boxes above {limit.side:g} in proportion, and "
        f"{limit.score} in scores{most}):"
    )
    LOGGER.info(f"{'images':>20}{'compared':>10}{'box, pixels':>14}{'scores':>12}")
    for row in rows:
        LOGGER.info(f"{f'{row.images} of {row.view}':>20}{row.candidates:>10}{row.box:>14.2g}{row.score:>12.2g}")
    if own := [row.rounding for row in rows if any(row.rounding) and row.fits(limit)]:
        LOGGER.warning(
            f"more than that is this network's own: it makes {max(box for box, _ in own):.2g} pixels of PyTorch's "
            "rounding errors, as untrained ones do"
        )
