"""What a validation leaves behind: label files, COCO JSON, mosaics, curves and the confusion matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.base.callbacks import Callbacks
from utils.base.files import file_stem
from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.drawing.batches import output_to_target, plot_images
from utils.drawing.writers import LABELS, Output, OutputNames, coco_rows, unique_names, write_labels
from utils.evaluation.coco_truth import CocoTruth, order, read_annotations, read_truth
from utils.evaluation.metrics import DetectionResult
from utils.evaluation.plots import plot_confusion_matrix, plot_curves
from utils.prepare.label_formats import COCO_IDS

DRAWN_BATCHES = 3
Found = tuple[int, str, np.ndarray]  # number of the batch, path of an image and its detections (n, 6), for the JSON


@dataclass(slots=True)
class ValResult:
    """Metrics, mean losses (box, obj, cls) and milliseconds per image (preparation, network, suppression)."""

    metrics: DetectionResult
    losses: tuple[float, ...] = (0.0, 0.0, 0.0)
    speed: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def summary(self) -> tuple[float, ...]:
        """P, R, mAP50, mAP50-95, box, obj and cls loss: YOLOv5's row of results."""
        m = self.metrics
        return (m.precision, m.recall, m.map50, m.map, *self.losses)


@dataclass
class Report:
    """What `evaluate` reports to, and what is wanted of it: writes as it goes, and `finish`es with plots and JSON.

    Each process writes the label files and draws the mosaics of its own batches, the main one does the rest. `rows` are
    COCO's of all images in the order of the data set, once it has received what every process found.
    """

    folder: Path
    names: Sequence[str]
    plots: bool = True
    txt: bool = False  # labels/*.txt
    confidence: bool = False  # in these
    json: Path | None = None  # file to write the COCO rows to
    categories: Sequence[int] | None = None  # COCO's 91 ids for its 80 classes
    truth: CocoTruth | None = None  # annotations whose ids the rows take; images and classes without are left out
    # (raw maps, targets) -> (loss, mean losses box, obj, cls)
    compute_loss: Callable[..., Any] = lambda raw, targets: (None, torch.zeros(3, device=targets.device))
    callbacks: Callbacks = field(default_factory=Callbacks)
    rows: list[dict[str, Any]] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    _labels: dict[str, Path] = field(default_factory=dict)
    _ids: dict[str, int | str] = field(default_factory=dict)

    def name_images(self, images: Sequence[str]) -> None:
        """Give each image of the data set a label file and an id of its own, if wanted; log which are named alike."""
        if not self.txt and (self.truth or not self.json):
            return
        outputs = [Output(path, file_stem(Path(path).stem), Path(path).suffix) for path in images]
        names = OutputNames(self.folder, outputs)
        names.report_changes()
        self._labels = {path: names.label(position) for position, path in enumerate(images)}
        ids = unique_names([str(int(stem)) if stem.isdecimal() else stem for stem in names.stems])
        self._ids = {path: int(key) if key.isdecimal() else key for path, key in zip(images, ids, strict=True)}

    def image(self, path: str, shape: tuple[int, int], detections: Tensor, batch: int) -> None:
        """Write the label file of one image of size `shape` (h, w); keep its detections (n, 6) for the JSON."""
        if self.txt:
            file = self._labels.get(path) or self.folder / LABELS / f"{file_stem(Path(path).stem)}.txt"
            write_labels(file, detections, shape, self.confidence)
        if self.json:
            self.found.append((batch, path, detections.numpy()))
        self.callbacks.run("on_val_image_end", detections, detections, path, self.names, None)

    def batch(self, index: int, batch: Any, detections: list[Tensor]) -> None:
        """Draw the mosaics of batch `index` of the whole set, if it is one of the first; boxes are in its pixels."""
        if self.plots and index < DRAWN_BATCHES:
            for name, boxes in (("labels", batch.targets), ("pred", output_to_target(detections))):
                file = self.folder / f"val_batch{index}_{name}.jpg"
                plot_images(batch.images, boxes, batch.paths, file, self.names)

    def receive(self, found: Sequence[Sequence[Found]]) -> None:
        """Make the JSON's rows of what all processes found."""
        truth = self.truth
        categories = truth.category_ids if truth else self.categories
        self.found = sorted((one for several in found for one in several), key=lambda one: one[0])
        for _, path, detections in self.found:
            image_id = (truth.image_ids if truth else self._ids).get(path)
            if truth is None or image_id is not None:
                self.rows += coco_rows(torch.from_numpy(detections), path, categories, image_id)

    def finish(self, result: ValResult | None) -> None:
        """Draw the curves and the confusion matrix, write and score the JSON; nothing without a result."""
        if result is None:
            return
        metrics = result.metrics
        if self.plots and metrics.curves:
            plot_curves(metrics.curves, self.names, self.folder)
            plot_confusion_matrix(metrics.confusion.matrix, self.names, self.folder / "confusion_matrix.png")
        if self.json:
            self.json.write_text(json.dumps(self.rows), encoding="utf-8")
            left_out = sum(len(detections) for *_, detections in self.found) - len(self.rows)
            lost = f" ({left_out} of images or classes without annotations are not)" * bool(left_out)
            LOGGER.info(f"{len(self.rows)} detections saved to {shown(self.json)}{lost}")
        if self.truth:
            self.truth.score(self.rows)
        self.callbacks.run("on_val_end")


def coco_score(rows: Path, annotations: Path, image_ids: Sequence[int | str] = ()) -> tuple[float, float] | None:
    """Return (mAP50-95, mAP50) of a JSON of detections as COCO's own evaluation counts them; None without a package.

    Rows name their images by stem, as `coco_rows` does; `image_ids` are further images that were scored. Classes are
    category ids, or the numbers from 0 of `coco_rows`, which go by rising category id.
    """
    found = json.loads(rows.read_text(encoding="utf-8"))
    images = list(dict.fromkeys(str(key) for key in (*(row["image_id"] for row in found), *image_ids)))
    categories = read_annotations(annotations)[1]
    truth = read_truth(annotations, images, [categories[key] for key in sorted(categories, key=order)])
    listed = truth.category_ids
    if tuple(listed) != COCO_IDS and all(row["category_id"] in range(len(listed)) for row in found):
        found = [row | {"category_id": listed[row["category_id"]]} for row in found]
    return truth.score([row | {"image_id": truth.image_ids.get(str(row["image_id"]))} for row in found])
