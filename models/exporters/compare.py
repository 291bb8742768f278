"""An export is done when its numbers agree: the file in its own runtime against the network, on real pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.backends import DetectMultiBackend
from models.backends.facts import PRECISIONS
from models.exporters.converting import cleared
from models.exporters.job import ExportError, ExportJob, NmsSettings
from utils.base.log import LOGGER, one_line
from utils.base.paths import ROOT, shown
from utils.boxes.convert import xywh2xyxy
from utils.boxes.iou import pairwise_iou
from utils.images.reading import read_image
from utils.predict.pipeline import Suppression, prepare_image, suppress, to_network

PICTURES = ROOT / "data/images"
COMPARED = 300  # candidates of each picture, the surest of both sides: as many as a picture may have detections
OWN_ROUNDING = 4.0  # times what PyTorch's own rounding makes of a network, a file's may make of it
CONFIDENCE, OVERLAP = 0.25, 0.45  # what detect.py calls a detection
MOVED = 0.01  # of a detection's longer side, and a pixel at least: more is a move


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest differences that are allowed: of box edges in pixels, of objectness and classes.

    side: longer side in pixels of the boxes that `box` is meant for; larger ones may differ in proportion, as a network
    gives sides as factors. share: the part of all candidates that has to keep to it. In coarser numbers a region whose
    akin regions are akin almost alike may be routed elsewhere, which is no fault of the file's; what that costs, val.py
    tells.
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
    pictures: int
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


def load_pictures(folder: Path = PICTURES) -> list[np.ndarray]:
    """The pictures to compare on, BGR. Raises ValueError for none."""
    files = sorted(folder.glob("*.jpg"))
    if not files:
        raise ValueError(f"no pictures in {folder} to compare the exported file with PyTorch on")
    return [read_image(file) for file in files]


def views(pictures: list[np.ndarray], imgsz: tuple[int, int], is_fixed: bool, stride: int) -> Iterator[Tensor]:
    """Batches (B, 3, h, w) in 0..1: all pictures, a wide part of one and a tall one.

    All are fitted into `imgsz` and, where sides are fixed, padded to it; else to multiples of the stride only.
    """
    picture = pictures[0]
    height, width = picture.shape[:2]
    parts = [picture[: height // 2], picture[:, : width // 2]]
    if is_fixed:
        yield to_network([prepare_image(one, imgsz, auto=False)[0] for one in pictures + parts])
        return
    yield to_network([prepare_image(one, imgsz, auto=False)[0] for one in pictures])
    for part in parts:
        yield to_network([prepare_image(part, imgsz, stride)[0]])


def compare_with_pytorch(job: ExportJob, file: Path) -> list[Difference]:
    """Load `file` in its runtime and compare it with the job's network; logs a table.

    Raises ExportError, and renames the file to `*.failed`, when the runtime gives up or a difference is beyond what the
    file's precision allows; it names the worst box and says what becomes of the detections.
    """
    try:
        backend = DetectMultiBackend(file, device=job.settings.device, trust=True)
        limit = TOLERANCES[max(job.facts().precision, backend.facts.precision, key=PRECISIONS.index)]
        rows = list(_differences(job, backend, limit))
    except Exception as error:  # every runtime has classes of its own
        raise _failed(file, f"its own runtime gives up ({one_line(error)[:300]})") from error
    if backend.shape is not None and backend.facts.batch is None:
        LOGGER.info("--dynamic leaves the number of pictures open, not their size, by which routing attention cuts")
    _log(rows, limit, file)
    bad = next((row for row in rows if not row.fits(limit)), None)
    if bad is not None:
        found = f"{bad.box:.3g} pixels (at most {limit.box}) and {bad.score:.3g} in scores (at most {limit.score})"
        raise _failed(
            file, f"differs from PyTorch by {found} on pictures of {bad.view}, most in {bad.worst}; {bad.changes}"
        )
    return rows


def _differences(job: ExportJob, backend: DetectMultiBackend, limit: Tolerance) -> Iterator[Difference]:
    """One for each view of the pictures."""
    kind = next(job.model.parameters()).dtype
    nms = job.settings.nms if backend.facts.nms else None
    for batch in views(load_pictures(), job.settings.imgsz, backend.shape is not None, backend.stride):
        batch = batch.to(job.settings.device)
        with torch.inference_mode():
            expected = job.model(batch.to(kind))[0].float()
            found = backend(batch).to(expected.device)
        row = _measure(expected, found, _size(batch), limit, nms)
        if not row.fits(limit):
            own = _measure(expected, _in_double(job.model, batch).to(expected), "", limit, nms)
            pairs = (_suppressed(one, nms or NmsSettings(OVERLAP, CONFIDENCE)) for one in (expected, found))
            row = replace(row, rounding=(own.box, own.score), changes=changes(*pairs))
        yield row


def _measure(expected: Tensor, found: Tensor, view: str, limit: Tolerance, nms: NmsSettings | None) -> Difference:
    if nms is None:
        return difference(expected, found, view, limit)
    return _between_detections(_suppressed(expected, nms), _suppressed(found, nms), view, limit, nms)


def _in_double(model: nn.Module, batch: Tensor) -> Tensor:
    """What the network says where rounding hardly counts."""
    with torch.inference_mode():
        return deepcopy(model).double()(batch.double())[0]


def _failed(file: Path, why: str) -> ExportError:
    """The error to raise; the file is put where nobody takes it for a good one."""
    kept = file.rename(cleared(file.with_name(f"{file.name}.failed")))
    return ExportError(f"{file.name}: {why}; kept as {kept.name}")


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
    which = [_place(error, limit.share) for error in (box, score)]
    row = which[0] if not box[which[0]] / limit.box < score[which[1]] / limit.score else which[1]
    scores = [f"{float(rows[row, 4] * rows[row, 5:].max()):.4g}" for rows in (ours, theirs)]
    worst = _named(row // surest.shape[1], corners[0][row], corners[1][row], scores)
    return Difference(view, len(expected), len(box), float(box[which[0]]), float(score[which[1]]), worst)


def _in_proportion(error: Tensor, corners: Tensor, limit: Tolerance) -> Tensor:
    """Errors (n,) in pixels of boxes (n, 4), made smaller where the box is larger than the limit is meant for."""
    longer = (corners[:, 2:] - corners[:, :2]).abs().amax(1)
    return error * (limit.side / longer.clamp(min=limit.side))


def _place(error: Tensor, share: float) -> int:
    """Where the error (n,) stands that a share of all keep to; where one is that is no number, if there is one."""
    if share == 1 or bool(error.isnan().any()):
        return int(error.argmax())
    return int(error.argsort()[math.ceil(share * len(error) - 1e-6) - 1])


def _named(picture: int, expected: Tensor, found: Tensor, scores: Sequence[str]) -> str:
    """A box (4,) corners, for people."""
    here, there = (" ".join(f"{edge:.2f}" for edge in box.tolist()) for box in (expected, found))
    return f"picture {picture + 1}, box {there} instead of {here}, confidence {scores[1]} instead of {scores[0]}"


def _between_detections(
    expected: list[Tensor], found: list[Tensor], view: str, limit: Tolerance, nms: NmsSettings
) -> Difference:
    """For files with suppression inside: every detection of the one must have its like in the other.

    Detections whose confidence is within rounding of what is needed to be kept may be in one and not in the other.
    """
    box = score = 0.0
    count, worst = 0, "no box"
    for number, pair in enumerate(zip(expected, found, strict=True)):
        count += len(pair[0])
        for ours, theirs in (pair, pair[::-1]):
            least = nms.conf_thres if len(theirs) < nms.in_all else float(theirs[:, 4].min())
            for row in ours[ours[:, 4] > least + TOLERANCES["fp32"].score]:
                same = theirs[theirs[:, 5] == row[5]]
                gaps = (same[:, :4] - row[:4]).abs().amax(1) if len(same) else row.new_full((1,), float("inf"))
                gap = float(_in_proportion(gaps.min()[None], row[None, :4], limit))
                off = float((same[gaps.argmin(), 4] - row[4]).abs()) if len(same) else float("inf")
                if gap > box or off > score:
                    there = same[gaps.argmin()] if len(same) else torch.full_like(row, float("nan"))
                    worst = _named(number, row[:4], there[:4], [f"{one[4]:.4g}" for one in (row, there)])
                box, score = max(box, gap), max(score, off)
    return Difference(view, len(expected), count, box, score, worst)


def changes(expected: list[Tensor], found: list[Tensor]) -> str:
    """What becomes of the detections (n, 6) of each picture, in words: which vanish, appear or move."""
    lost = new = moved = 0
    for ours, theirs in zip(expected, found, strict=True):
        overlap = pairwise_iou(ours[:, :4], theirs[:, :4]) * (ours[:, 5, None] == theirs[:, 5])
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


def _suppressed(predictions: Tensor, nms: NmsSettings) -> list[Tensor]:
    """Detections (n, 6) of every picture as the file shall give them: so many of a class, so many in all."""
    kept = []
    settings = Suppression(nms.conf_thres, nms.iou_thres, agnostic=nms.agnostic, max_det=predictions.shape[1])
    for rows in suppress(predictions, settings):
        groups = torch.zeros_like(rows[:, 5]) if nms.agnostic else rows[:, 5]
        earlier = (groups[:, None] == groups).tril(-1).sum(1)  # of the same group, and surer
        kept.append(rows[earlier < nms.per_class][: nms.in_all])
    return kept


def _size(batch: Tensor) -> str:
    return " x ".join(map(str, batch.shape[2:]))


def _log(rows: list[Difference], limit: Tolerance, file: Path) -> None:
    most = "" if limit.share == 1 else f" for {limit.share:.0%}"
    LOGGER.info(
        f"{shown(file)} next to PyTorch (at most {limit.box} pixels, for boxes above {limit.side:g} in proportion, and "
        f"{limit.score} in scores{most}):"
    )
    LOGGER.info(f"{'pictures':>20}{'compared':>10}{'box, pixels':>14}{'scores':>12}")
    for row in rows:
        LOGGER.info(f"{f'{row.pictures} of {row.view}':>20}{row.candidates:>10}{row.box:>14.2g}{row.score:>12.2g}")
    if own := [row.rounding for row in rows if any(row.rounding) and row.fits(limit)]:
        LOGGER.warning(
            f"more than that is this network's own: it makes {max(box for box, _ in own):.2g} pixels of PyTorch's "
            "rounding errors, as untrained ones do"
        )
