"""An export is done when its numbers agree: the file in its own runtime against the network, on real pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.backends import DetectMultiBackend
from models.backends.facts import PRECISIONS
from models.exporters.job import ExportError, ExportJob, NmsSettings
from utils.augmentations import letterbox
from utils.boxes import xywh2xyxy
from utils.labels import read_image
from utils.log import LOGGER
from utils.nms import non_max_suppression
from utils.paths import ROOT, shown

PICTURES = ROOT / "data/images"
COMPARED = 300  # candidates of each picture, the surest first: as many as a picture may have detections


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest differences that are allowed: of box edges in pixels, of objectness and classes."""

    box: float
    score: float


TOLERANCES = {"fp32": Tolerance(0.05, 1e-3), "fp16": Tolerance(2.0, 0.02), "int8": Tolerance(40.0, 0.35)}


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
    """Batches (B, 3, h, w) in 0..1: all pictures at `imgsz`; with open sides also a wide and a tall rectangle."""
    yield as_batch([letterbox(picture, imgsz, auto=False)[0] for picture in pictures])
    if is_fixed:
        return
    picture = pictures[0]
    height, width = picture.shape[:2]
    for part in (picture[: height // 2], picture[:, : width // 2]):
        yield as_batch([letterbox(part, imgsz, auto=True, stride=stride)[0]])


def as_batch(pictures: list[np.ndarray]) -> Tensor:
    """BGR pictures of one size as (B, 3, h, w), RGB, in 0..1."""
    stacked = np.stack([picture[..., ::-1].transpose(2, 0, 1) for picture in pictures])
    return torch.from_numpy(np.ascontiguousarray(stacked)).float() / 255


def compare(job: ExportJob, file: Path) -> list[Difference]:
    """Load `file` in its runtime and compare it with the job's network; logs a table.

    Raises ExportError, and renames the file to `*.failed`, when a difference is beyond what its precision allows.
    """
    backend = DetectMultiBackend(file, device=job.settings.device)
    limit = TOLERANCES[max(job.facts().precision, backend.facts.precision, key=PRECISIONS.index)]
    rows = []
    with torch.inference_mode():
        for batch in views(load_pictures(), job.settings.imgsz, backend.shape is not None, backend.stride):
            batch = batch.to(job.settings.device)
            expected = job.model(batch.to(next(job.model.parameters()).dtype))[0].float()
            rows.append(difference(expected, backend(batch).to(expected.device), _size(batch), backend, job))
    _log(rows, limit, file)
    worst = next((row for row in rows if not row.fits(limit)), None)
    if worst is None:
        return rows
    kept = file.with_name(f"{file.name}.failed")
    _discard(kept)
    file.rename(kept)
    raise ExportError(
        f"{file.name}: differs from PyTorch by {worst.box:.3g} pixels (at most {limit.box}) and {worst.score:.3g} in "
        f"scores (at most {limit.score}) on pictures of {worst.view}; kept as {kept.name}"
    )


def difference(expected: Tensor, found: Tensor, view: str, backend: DetectMultiBackend, job: ExportJob) -> Difference:
    """Largest differences between two sets of predictions (B, M, 5 + C)."""
    if backend.facts.nms:
        return _between_detections(expected, found, view, job.settings.nms)
    if expected.shape != found.shape:
        return Difference(view, len(expected), 0, float("inf"), float("inf"))
    surest = (expected[..., 4] * expected[..., 5:].amax(-1)).topk(min(COMPARED, expected.shape[1])).indices
    rows = surest[..., None].expand(-1, -1, 4)
    boxes = [xywh2xyxy(one[..., :4].gather(1, rows).flatten(0, 1)) for one in (expected, found)]
    score = (expected[..., 4:] - found[..., 4:]).abs().max()
    return Difference(view, len(expected), surest.numel(), float((boxes[0] - boxes[1]).abs().max()), float(score))


def _between_detections(expected: Tensor, found: Tensor, view: str, nms: NmsSettings) -> Difference:
    """For files with suppression inside: every detection of the one must have its like in the other.

    Detections whose confidence is within rounding of the threshold may be in one and not in the other.
    """
    settings = {"iou_thres": nms.iou_thres, "agnostic": nms.agnostic, "max_det": nms.in_all}
    sets = [non_max_suppression(one, nms.conf_thres, **settings) for one in (expected, found)]
    box = score = 0.0
    for pair in zip(*sets, strict=True):
        for ours, theirs in (pair, pair[::-1]):
            for row in ours[ours[:, 4] > nms.conf_thres + TOLERANCES["fp32"].score]:
                same = theirs[theirs[:, 5] == row[5]]
                gaps = (same[:, :4] - row[:4]).abs().amax(1) if len(same) else torch.tensor([float("inf")])
                box = max(box, float(gaps.min()))
                score = max(score, float((same[gaps.argmin(), 4] - row[4]).abs()) if len(same) else float("inf"))
    return Difference(view, len(expected), sum(map(len, sets[0])), box, score)


def _size(batch: Tensor) -> str:
    return " x ".join(map(str, batch.shape[2:]))


def _discard(path: Path) -> None:
    """Remove what an earlier export left under this name."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _log(rows: list[Difference], limit: Tolerance, file: Path) -> None:
    LOGGER.info(f"{shown(file)} next to PyTorch (at most {limit.box} pixels and {limit.score} in scores):")
    LOGGER.info(f"{'pictures':>20}{'compared':>10}{'box, pixels':>14}{'scores':>12}")
    for row in rows:
        LOGGER.info(f"{f'{row.pictures} of {row.view}':>20}{row.candidates:>10}{row.box:>14.2g}{row.score:>12.2g}")
