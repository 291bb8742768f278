"""What `AutoShape` found: boxes in several forms, tables, crops and annotated images."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.base.files import file_stem, printable
from utils.base.log import LOGGER
from utils.base.paths import increment_path
from utils.boxes.convert import xyxy2xywh
from utils.drawing.annotator import Annotator, colors
from utils.drawing.fonts import drawable_names
from utils.drawing.writers import Output, OutputNames, save_one_box, write_image
from utils.predict.pipeline import SPEED
from utils.predict.viewer import display_problem

if TYPE_CHECKING:
    import supervision

DEFAULT_DIR = "runs/detect/exp"
CORNERS = ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
CENTRES = ["xcenter", "ycenter", "width", "height", "confidence", "class", "name"]


def describe_counts(numbers: Sequence[float], names: Sequence[str]) -> str:
    """'2 persons, 1 car' from class numbers, in the order of the classes; '(no detections)' for none."""
    counts = Counter(int(number) for number in numbers)
    parts = []
    for number, count in sorted(counts.items()):
        ending = "es" if names[number].endswith(("s", "x", "ch", "sh")) else "s"
        parts.append(f"{count} {names[number]}{ending * (count != 1)}")
    return printable(", ".join(parts)) or "(no detections)"


class Detections:
    """Detections in `n` images.

    `imgs` are the RGB images, `pred` (also `xyxy`) one (n, 6) tensor each: box in pixels, confidence, class; `xywh`
    has centres and sizes, `xyxyn` and `xywhn` fractions of the image. `t` is milliseconds per image for
    preparation, network and suppression, `s` the shape of the batch. `results[0]` and `results[1:3]` are the
    detections of these images alone.
    """

    def __init__(
        self,
        imgs: list[np.ndarray],
        pred: list[Tensor],
        files: list[str],
        times: Sequence[float] = (0, 0, 0, 0),
        names: Sequence[str] = (),
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.imgs, self.pred, self.files, self.names = imgs, pred, files, names
        self.times, self.s, self.n = times, shape, len(pred)
        pairs = zip(imgs, pred, strict=True)
        sizes = [rows.new_tensor([*im.shape[1::-1], *im.shape[1::-1], 1, 1]) for im, rows in pairs]
        self.xyxy = pred
        self.xywh = [torch.cat([xyxy2xywh(rows[:, :4]), rows[:, 4:]], 1) for rows in pred]
        self.xyxyn = [rows / size for rows, size in zip(self.xyxy, sizes, strict=True)]
        self.xywhn = [rows / size for rows, size in zip(self.xywh, sizes, strict=True)]
        self.t = tuple((end - begin) * 1000 / max(self.n, 1) for begin, end in pairwise(times))

    def __len__(self) -> int:
        """Return the number of images."""
        return self.n

    def __getitem__(self, which: int | slice) -> Detections:
        """Return the detections of one image, or of several; IndexError where there is no such image."""
        chosen = range(self.n)[which]
        places = [chosen] if isinstance(chosen, int) else list(chosen)
        imgs, pred = [self.imgs[i] for i in places], [self.pred[i] for i in places]
        part = Detections(imgs, pred, [self.files[i] for i in places], self.times, self.names, self.s)
        part.t = self.t  # the times are those of the whole batch, per image
        return part

    def __str__(self) -> str:
        lines = [
            f"image {i}/{self.n}: {im.shape[0]}x{im.shape[1]} {describe_counts(rows[:, 5].tolist(), self.names)}"
            for i, (im, rows) in enumerate(zip(self.imgs, self.pred, strict=True), 1)
        ]
        return "\n".join([*lines, SPEED.format(*self.t, self.s)])

    def print(self) -> None:
        """Log what was found and how long it took."""
        LOGGER.info(str(self))

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """Draw boxes (and labels) into `imgs`, in place, and return them."""
        names = drawable_names(self.names)
        for i, rows in enumerate(self.pred):
            annotator = Annotator(self.imgs[i], example="".join(names))
            for *box, confidence, number in reversed(rows.tolist()):  # the surest last, on top
                text = f"{names[int(number)]} {confidence:.2f}" if labels else ""
                annotator.box_label(box, text, color=colors(number))
            self.imgs[i] = annotator.result()
        return self.imgs

    def show(self, labels: bool = True) -> None:
        """Open the annotated images in the system's viewer; ValueError where there is no display."""
        if problem := display_problem(probe=False):
            raise ValueError(f"cannot show images: {problem}; use save() instead")
        for image in self.render(labels):
            Image.fromarray(image).show()

    def save(self, labels: bool = True, save_dir: str | Path = DEFAULT_DIR) -> Path:
        """Write the annotated images into `save_dir` (the default is counted up, any other taken as it is)."""
        names = self._names(save_dir)
        for i, image in enumerate(self.render(labels)):
            write_image(names.drawn(i), image[..., ::-1])
        LOGGER.info(f"Saved {self.n} image{'s' * (self.n != 1)} to {printable(names.folder)}")
        return names.folder

    def crop(self, save: bool = True, save_dir: str | Path = DEFAULT_DIR) -> list[dict[str, Any]]:
        """Cut out every detection: dicts of box, conf, cls, label and im (RGB); `save` writes crops/<class>/<file>."""
        names = self._names(save_dir) if save else None
        crops = []
        for i, (image, rows) in enumerate(zip(self.imgs, self.pred, strict=True)):
            for row in reversed(rows):
                *box, confidence, number = row
                target = names.crop(i, 0, int(number)) if names else ""
                cut = save_one_box(torch.stack(box), image[..., ::-1], target, BGR=True, save=save)
                label = f"{self.names[int(number)]} {float(confidence):.2f}"
                crops.append(
                    {"box": box, "conf": confidence, "cls": number, "label": label, "im": cut[..., ::-1].copy()}
                )
        if names:
            LOGGER.info(f"Saved {len(crops)} crop{'s' * (len(crops) != 1)} to {printable(names.folder)}")
        return crops

    def _names(self, save_dir: str | Path) -> OutputNames:
        """What `save` and `crop` call their files; the folder is made."""
        folder = _new_folder(save_dir)
        outputs = [Output(file, file_stem(Path(file).stem)) for file in self.files]
        names = OutputNames(folder, outputs, [self.names[i] for i in range(len(self.names))])
        names.report_changes()
        return names

    def display(
        self,
        pprint: bool = False,
        show: bool = False,
        save: bool = False,
        crop: bool = False,
        render: bool = False,
        labels: bool = True,
        save_dir: str | Path = DEFAULT_DIR,
    ) -> list[dict[str, Any]] | None:
        """Do several of `print`, `show`, `save`, `crop` and `render`; the signature is v6.1's.

        Images and crops go to one folder. Returns the crops, cut before anything is drawn, if asked for.
        """
        folder = _new_folder(save_dir).absolute() if save or crop else save_dir
        crops = self.crop(save_dir=folder) if crop else None
        if pprint:
            self.print()
        if save:
            self.save(labels, folder)
        if show:
            self.show(labels)
        elif render:
            self.render(labels)
        return crops

    def pandas(self) -> Detections:
        """Return a copy whose xyxy, xyxyn, xywh and xywhn are lists of data frames with columns for people."""
        import pandas as pd

        tables = copy.copy(self)
        for name in ("xyxy", "xyxyn", "xywh", "xywhn"):
            columns = CENTRES if "wh" in name else CORNERS
            rows = [
                [[*row[:5], int(row[5]), self.names[int(row[5])]] for row in one.tolist()]
                for one in getattr(self, name)
            ]
            setattr(tables, name, [pd.DataFrame(one, columns=columns) for one in rows])
        return tables

    def tolist(self) -> list[Detections]:
        """One `Detections` for each image, so that `for result in results.tolist()` works."""
        return [self[i] for i in range(self.n)]

    def to_supervision(self) -> list[supervision.Detections]:
        """One `supervision.Detections` for each image: its annotators, zones and trackers then take our results.

        `data["class_name"]` has the names. Raises ValueError where the package is missing.
        """
        try:
            import supervision
        except ImportError:
            raise ValueError("to_supervision() needs a package: pip install supervision") from None
        found = []
        for rows in self.pred:
            values = rows.detach().float().cpu().numpy()
            numbers = values[:, 5].astype(int)
            names = np.array([self.names[number] for number in numbers], dtype=str)
            boxes, sure = values[:, :4].copy(), values[:, 4].copy()
            found.append(supervision.Detections(boxes, confidence=sure, class_id=numbers, data={"class_name": names}))
        return found


def _new_folder(save_dir: str | Path) -> Path:
    """The folder to save to, made if need be; the default one is counted up as in v6.1."""
    return increment_path(save_dir, exist_ok=str(save_dir) != DEFAULT_DIR, mkdir=True)
