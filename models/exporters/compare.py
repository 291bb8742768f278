"""An export is done when its numbers agree: the file in its own runtime against the network, on real pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.backends import DetectMultiBackend
from models.backends.facts import PRECISIONS
from models.exporters.converting import cleared
from models.exporters.job import ExportError, ExportJob, NmsSettings
from utils.augmentations import letterbox
from utils.boxes import xywh2xyxy
from utils.labels import read_image
from utils.log import LOGGER, one_line
from utils.nms import non_max_suppression
from utils.paths import ROOT, shown

PICTURES = ROOT / "data/images"
COMPARED = 300  # candidates of each picture, the surest of both sides: as many as a picture may have detections


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest differences that are allowed: of box edges in pixels, of objectness and classes.

    share: the part of all candidates that has to keep to it. In coarser numbers a region whose akin regions are akin
    almost alike may be routed elsewhere, which is no fault of the file's; what that costs, val.py tells.
    """

    box: float
    score: float
    share: float = 1.0


TOLERANCES = {"fp32": Tolerance(0.05, 1e-3), "fp16": Tolerance(1.0, 0.02, 0.95), "int8": Tolerance(8.0, 0.25, 0.9)}


@dataclass(frozen=True, slots=True)
class Difference:
    """What was compared, and by how much it differs."""

    view: str
    pictures: int
    candidates: int
    box: float
    score: float

    def fits(self, limit: Tolerance) -> bool:
        """Whether both differences are allowed; NaN is not."""
        return self.box <= limit.box and self.score <= limit.score


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
        yield as_batch([letterbox(one, imgsz, auto=False)[0] for one in pictures + parts])
        return
    yield as_batch([letterbox(one, imgsz, auto=False)[0] for one in pictures])
    for part in parts:
        yield as_batch([letterbox(part, imgsz, auto=True, stride=stride)[0]])


def as_batch(pictures: list[np.ndarray]) -> Tensor:
    """BGR pictures of one size as (B, 3, h, w), RGB, in 0..1."""
    stacked = np.stack([picture[..., ::-1].transpose(2, 0, 1) for picture in pictures])
    return torch.from_numpy(np.ascontiguousarray(stacked)).float() / 255


def compare_with_pytorch(job: ExportJob, file: Path) -> list[Difference]:
    """Load `file` in its runtime and compare it with the job's network; logs a table.

    Raises ExportError, and renames the file to `*.failed`, when the runtime gives up or a difference is beyond what the
    file's precision allows.
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
    worst = next((row for row in rows if not row.fits(limit)), None)
    if worst is not None:
        found = f"{worst.box:.3g} pixels (at most {limit.box}) and {worst.score:.3g} in scores (at most {limit.score})"
        raise _failed(file, f"differs from PyTorch by {found} on pictures of {worst.view}")
    return rows


def _differences(job: ExportJob, backend: DetectMultiBackend, limit: Tolerance) -> Iterator[Difference]:
    """One for each view of the pictures."""
    kind = next(job.model.parameters()).dtype
    for batch in views(load_pictures(), job.settings.imgsz, backend.shape is not None, backend.stride):
        batch = batch.to(job.settings.device)
        with torch.inference_mode():
            expected = job.model(batch.to(kind))[0].float()
            found = backend(batch).to(expected.device)
        if backend.facts.nms:
            yield _between_detections(expected, found, _size(batch), job.settings.nms)
        else:
            yield difference(expected, found, _size(batch), limit.share)


def _failed(file: Path, why: str) -> ExportError:
    """The error to raise; the file is put where nobody takes it for a good one."""
    kept = file.rename(cleared(file.with_name(f"{file.name}.failed")))
    return ExportError(f"{file.name}: {why}; kept as {kept.name}")


def difference(expected: Tensor, found: Tensor, view: str, share: float = 1.0) -> Difference:
    """The differences between two sets of predictions (B, M, 5 + C) that a `share` of their surest keep to."""
    if expected.shape != found.shape:
        return Difference(view, len(expected), 0, float("inf"), float("inf"))
    sure = torch.maximum(*(one[..., 4] * one[..., 5:].amax(-1) for one in (expected, found)))
    surest = sure.nan_to_num(1.0).topk(min(COMPARED, sure.shape[1])).indices[..., None]
    rows = [one.gather(1, surest.expand(-1, -1, one.shape[-1])).flatten(0, 1) for one in (expected, found)]
    box = (xywh2xyxy(rows[0][:, :4]) - xywh2xyxy(rows[1][:, :4])).abs().amax(1)
    score = (rows[0][:, 4:] - rows[1][:, 4:]).abs().amax(1)
    return Difference(view, len(expected), len(box), float(box.quantile(share)), float(score.quantile(share)))


def _between_detections(expected: Tensor, found: Tensor, view: str, nms: NmsSettings) -> Difference:
    """For files with suppression inside: every detection of the one must have its like in the other.

    Detections whose confidence is within rounding of what is needed to be kept may be in one and not in the other.
    """
    box = score = 0.0
    count = 0
    for pair in zip(_suppressed(expected, nms), _suppressed(found, nms), strict=True):
        count += len(pair[0])
        for ours, theirs in (pair, pair[::-1]):
            least = nms.conf_thres if len(theirs) < nms.in_all else float(theirs[:, 4].min())
            for row in ours[ours[:, 4] > least + TOLERANCES["fp32"].score]:
                same = theirs[theirs[:, 5] == row[5]]
                gaps = (same[:, :4] - row[:4]).abs().amax(1) if len(same) else torch.tensor([float("inf")])
                box = max(box, float(gaps.min()))
                score = max(score, float((same[gaps.argmin(), 4] - row[4]).abs()) if len(same) else float("inf"))
    return Difference(view, len(expected), count, box, score)


def _suppressed(predictions: Tensor, nms: NmsSettings) -> list[Tensor]:
    """Detections (n, 6) of every picture as the file shall give them: so many of a class, so many in all."""
    kept = []
    for rows in non_max_suppression(
        predictions, nms.conf_thres, nms.iou_thres, agnostic=nms.agnostic, max_det=predictions.shape[1]
    ):
        groups = torch.zeros_like(rows[:, 5]) if nms.agnostic else rows[:, 5]
        earlier = (groups[:, None] == groups).tril(-1).sum(1)  # of the same group, and surer
        kept.append(rows[earlier < nms.per_class][: nms.in_all])
    return kept


def _size(batch: Tensor) -> str:
    return " x ".join(map(str, batch.shape[2:]))


def _log(rows: list[Difference], limit: Tolerance, file: Path) -> None:
    most = "" if limit.share == 1 else f" for {limit.share:.0%}"
    LOGGER.info(f"{shown(file)} next to PyTorch (at most {limit.box} pixels and {limit.score} in scores{most}):")
    LOGGER.info(f"{'pictures':>20}{'compared':>10}{'box, pixels':>14}{'scores':>12}")
    for row in rows:
        LOGGER.info(f"{f'{row.pictures} of {row.view}':>20}{row.candidates:>10}{row.box:>14.2g}{row.score:>12.2g}")
