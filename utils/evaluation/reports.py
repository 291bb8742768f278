"""What a validation leaves behind: label files, COCO JSON, mosaics, curves and the confusion matrix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.base.callbacks import Callbacks
from utils.base.files import file_stem
from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.drawing.batches import output_to_target, plot_images
from utils.drawing.writers import LABELS, Output, OutputNames, coco_rows, unique_names, write_labels
from utils.evaluation.coco_truth import CocoTruth, read_truth
from utils.evaluation.evaluator import ImageResult, Listener, ValResult
from utils.evaluation.plots import plot_confusion_matrix, plot_curves
from utils.evaluation.ragged import Packed, Ragged
from utils.prepare.label_formats import COCO_IDS

_DRAWN_BATCHES = 3


@dataclass(slots=True)
class ReportSettings:
    """Which of it is wanted, and where."""

    folder: Path
    names: Sequence[str]
    plots: bool = True
    txt: bool = False
    confidence: bool = False
    json: Path | None = None  # file to write the COCO rows to
    categories: Sequence[int] | None = None  # COCO's 91 ids for its 80 classes
    truth: CocoTruth | None = None  # annotations whose ids the rows take; images and classes without are left out


class Found(NamedTuple):
    """The detections of n pictures, to be sent to the main process."""

    paths: list[str]
    batches: np.ndarray  # (n,) numbers of their batches
    rows: dict[str, Packed]  # "detections" (N, 6)


class Report(Listener):
    """Listens to `evaluate`, writes as it goes, and `finish`es with plots and JSON.

    In a run of several processes each writes the label files and draws the mosaics of its own batches, and the main
    process does the rest. `rows` are COCO's rows of all pictures in the order of the data set, there once it has
    received what every process found.
    """

    def __init__(self, settings: ReportSettings, loss: Any = None, callbacks: Callbacks | None = None) -> None:
        self.settings, self.compute_loss = settings, loss
        self.callbacks = callbacks or Callbacks()
        self.rows: list[dict[str, Any]] = []
        self.left_out = 0  # detections that the annotations have no image or class for
        self._labels: dict[str, Path] = {}
        self._ids: dict[str, int | str] = {}
        self._paths: list[str] = []
        self._batches: list[int] = []
        self._found = Ragged(detections=np.zeros((0, 6), dtype=np.float32))

    def name_images(self, images: Sequence[str]) -> None:
        """Give each image of the data set a label file and an id of its own, and say which are named like others."""
        outputs = [Output(path, file_stem(Path(path).stem), Path(path).suffix) for path in images]
        names = OutputNames(self.settings.folder, outputs)
        names.report_changes()
        self._labels = {path: names.label(position) for position, path in enumerate(images)}
        ids = unique_names([str(int(stem)) if stem.isdecimal() else stem for stem in names.stems])
        self._ids = {path: int(key) if key.isdecimal() else key for path, key in zip(images, ids, strict=True)}

    def loss(self, raw: list[Tensor], targets: Tensor) -> Tensor:
        """Mean losses of one batch, zeros without a loss to compute."""
        return self.compute_loss(raw, targets)[1] if self.compute_loss else super().loss(raw, targets)

    def image(self, result: ImageResult) -> None:
        """One label file of one picture; its detections are kept for the JSON."""
        wanted, detections = self.settings, result.detections.cpu()
        if wanted.txt:
            file = self._labels.get(result.path) or wanted.folder / LABELS / f"{file_stem(Path(result.path).stem)}.txt"
            write_labels(file, detections, result.shape, wanted.confidence)
        if wanted.json:
            self._paths.append(result.path)
            self._batches.append(result.batch)
            self._found.add(detections=detections.numpy())
        self.callbacks.run("on_val_image_end", detections, detections, result.path, wanted.names, None)

    def batch(self, index: int, batch: Any, detections: list[Tensor]) -> None:
        """Mosaics of labels and of detections for the first batches."""
        if self.settings.plots and index < _DRAWN_BATCHES:
            folder, names = self.settings.folder, self.settings.names
            plot_images(batch.images, batch.targets, batch.paths, folder / f"val_batch{index}_labels.jpg", names)
            plot_images(
                batch.images, output_to_target(detections), batch.paths, folder / f"val_batch{index}_pred.jpg", names
            )

    def parcel(self) -> Found:
        """What this process has found, as far as the JSON needs it."""
        return Found(self._paths, np.array(self._batches, dtype=np.int64), self._found.pack())

    def receive(self, parcels: Sequence[Found]) -> None:
        """The JSON rows of all processes' pictures."""
        batches = np.concatenate([parcel.batches for parcel in parcels])
        paths = [path for parcel in parcels for path in parcel.paths]
        found = Ragged(detections=np.zeros((0, 6), dtype=np.float32))
        found.extend([parcel.rows for parcel in parcels], batches)
        values, lengths = found.pack()["detections"]
        ends = lengths.cumsum()
        truth = self.settings.truth
        categories = truth.category_ids if truth else self.settings.categories
        for picture, begin, end in zip(np.argsort(batches, kind="stable"), ends - lengths, ends):
            path = paths[picture]
            image_id = (truth.image_ids if truth else self._ids).get(path)
            if truth is None or image_id is not None:
                self.rows += coco_rows(torch.from_numpy(values[begin:end]), path, categories, image_id)
        self.left_out = len(values) - len(self.rows)

    def finish(self, result: ValResult | None) -> None:
        """Draw the curves and the confusion matrix, write and score the JSON; nothing without a result."""
        if result is None:
            return
        wanted, metrics = self.settings, result.metrics
        if wanted.plots and metrics.labels:
            if metrics.curves is not None:
                plot_curves(metrics.curves, wanted.names, wanted.folder)
            plot_confusion_matrix(metrics.confusion.matrix, wanted.names, wanted.folder / "confusion_matrix.png")
        if wanted.json:
            wanted.json.write_text(json.dumps(self.rows), encoding="utf-8")
            lost = f" ({self.left_out} of images or classes without annotations are not)" * bool(self.left_out)
            LOGGER.info(f"{len(self.rows)} detections saved to {shown(wanted.json)}{lost}")
        if wanted.truth:
            wanted.truth.score(self.rows)
        self.callbacks.run("on_val_end")


def coco_score(rows: Path, annotations: Path, image_ids: Sequence[int | str] = ()) -> tuple[float, float] | None:
    """(mAP50-95, mAP50) of a JSON of detections as COCO's own evaluation counts them; None (said) without a package.

    Rows name their images by stem, as `coco_rows` does, or by the ids of the annotations; `image_ids` are images that
    were looked at as well, though nothing may have been found. Classes are category ids where these cannot be the
    numbers from 0 that `coco_rows` writes for other data than COCO, which go by rising category id.
    """
    if not annotations.is_file():
        LOGGER.info(f"no {annotations}: COCO's own evaluation is left out")
        return None
    found = json.loads(rows.read_text(encoding="utf-8"))
    images = list(dict.fromkeys([*(row["image_id"] for row in found), *image_ids]))
    if not images:
        return 0.0, 0.0
    truth = read_truth(annotations, images)
    listed = truth.category_ids
    if tuple(listed) != COCO_IDS and all(row["category_id"] in range(len(listed)) for row in found):
        found = [row | {"category_id": listed[row["category_id"]]} for row in found]
    return truth.score([row | {"image_id": truth.image_ids.get(row["image_id"])} for row in found])


def speed_line(result: ValResult, shape: tuple[int, ...]) -> str:
    """The line of speeds, in milliseconds per picture."""
    return f"Speed: %.1fms pre-process, %.1fms inference, %.1fms NMS per image at shape {tuple(shape)}" % result.speed
