"""What `AutoShape` found: boxes in several forms, tables, crops and annotated pictures."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
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
    import pandas as pd
    import supervision

DEFAULT_DIR = "runs/detect/exp"
CORNERS = ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
CENTRES = ["xcenter", "ycenter", "width", "height", "confidence", "class", "name"]


def count_words(numbers: Sequence[float], names: Sequence[str]) -> str:
    """'2 persons, 1 car' from class numbers, in the order of the classes; '(no detections)' for none."""
    counts = Counter(int(number) for number in numbers)
    words = [
        f"{count} {names[number] if count == 1 else _plural(names[number])}" for number, count in sorted(counts.items())
    ]
    return printable(", ".join(words)) or "(no detections)"


def _plural(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


class Detections:
    """Detections in `n` pictures.

    `imgs` are the RGB pictures, `pred` (also `xyxy`) one (n, 6) tensor each: box in pixels, confidence, class; `xywh`
    has centres and sizes, `xyxyn` and `xywhn` fractions of the picture. `t` is milliseconds per picture for
    preparation, network and suppression, `s` the shape of the batch. `results[0]` and `results[1:3]` are the
    detections of these pictures alone.
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
        self.t = tuple((end - begin) * 1000 / max(self.n, 1) for begin, end in zip(times[:-1], times[1:], strict=True))

    def __len__(self) -> int:
        """Number of pictures."""
        return self.n

    def __getitem__(self, which: int | slice) -> Detections:
        """The detections of one picture, or of several; IndexError where there is no such picture."""
        chosen = range(self.n)[which]
        places = [chosen] if isinstance(chosen, int) else list(chosen)
        parts = ([values[i] for i in places] for values in (self.imgs, self.pred, self.files))
        part = Detections(*parts, self.times, self.names, self.s)
        part.t = self.t  # the times are those of the whole batch, per picture
        return part

    def __str__(self) -> str:
        lines = [
            f"image {i}/{self.n}: {im.shape[0]}x{im.shape[1]} {count_words(rows[:, 5].tolist(), self.names)}"
            for i, (im, rows) in enumerate(zip(self.imgs, self.pred, strict=True), 1)
        ]
        return "\n".join([*lines, SPEED.format(*self.t, self.s)])

    def print(self) -> None:
        """Log what was found and how long it took."""
        LOGGER.info(str(self))

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """Draw boxes (and labels) into `imgs`, in place, and return them."""
        words = drawable_names(self.names)
        for i, rows in enumerate(self.pred):
            annotator = Annotator(self.imgs[i], example="".join(words))
            for *box, confidence, number in reversed(rows.tolist()):  # the surest last, on top
                text = f"{words[int(number)]} {confidence:.2f}" if labels else ""
                annotator.box_label(box, text, color=colors(number))
            self.imgs[i] = annotator.result()
        return self.imgs

    def show(self, labels: bool = True) -> None:
        """Open the annotated pictures in the system's viewer; ValueError where there is no display."""
        if problem := display_problem(probe=False):
            raise ValueError(f"cannot show pictures: {problem}; use save() instead")
        for picture in self.render(labels):
            Image.fromarray(picture).show()

    def save(self, labels: bool = True, save_dir: str | Path = DEFAULT_DIR) -> Path:
        """Write the annotated pictures into `save_dir` (the default is counted up, any other taken as it is)."""
        folder = _fresh(save_dir)
        names = self._names(folder)
        for i, picture in enumerate(self.render(labels)):
            write_image(names.drawn(i), picture[..., ::-1])
        LOGGER.info(f"Saved {self.n} image{'s' * (self.n != 1)} to {printable(folder)}")
        return folder

    def crop(self, save: bool = True, save_dir: str | Path = DEFAULT_DIR) -> list[dict[str, Any]]:
        """Cut out every detection: dicts of box, conf, cls, label and im (RGB); `save` writes crops/<class>/<file>."""
        names = self._names(_fresh(save_dir)) if save else None
        crops = []
        for i, (picture, rows) in enumerate(zip(self.imgs, self.pred, strict=True)):
            for row in reversed(rows):
                *box, confidence, number = row
                target = names.crop(i, 0, int(number)) if names else ""
                cut = save_one_box(torch.stack(box), picture[..., ::-1], target, BGR=True, save=save)
                label = f"{self.names[int(number)]} {float(confidence):.2f}"
                crops.append(
                    {"box": box, "conf": confidence, "cls": number, "label": label, "im": cut[..., ::-1].copy()}
                )
        if names:
            LOGGER.info(f"Saved {len(crops)} crop{'s' * (len(crops) != 1)} to {printable(names.folder)}")
        return crops

    def _names(self, folder: Path) -> OutputNames:
        """What `save` and `crop` call their files in `folder`."""
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
        """Do several of `print`, `show`, `save`, `crop` and `render` at once; the signature is v6.1's.

        Pictures and crops go to one folder. Returns the crops, which are cut before anything is drawn, if asked for.
        """
        folder = _fresh(save_dir).absolute() if save or crop else None
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
        """A copy whose xyxy, xyxyn, xywh and xywhn are lists of data frames with columns for people."""
        tables = copy.copy(self)
        tables.xyxy, tables.xyxyn = self._tables(self.xyxy, CORNERS), self._tables(self.xyxyn, CORNERS)
        tables.xywh, tables.xywhn = self._tables(self.xywh, CENTRES), self._tables(self.xywhn, CENTRES)
        return tables

    def _tables(self, boxes: list[Tensor], columns: list[str]) -> list[pd.DataFrame]:
        import pandas as pd

        rows = [[[*row[:5], int(row[5]), self.names[int(row[5])]] for row in picture.tolist()] for picture in boxes]
        return [pd.DataFrame(picture, columns=columns) for picture in rows]

    def tolist(self) -> list[Detections]:
        """One `Detections` for each picture, so that `for result in results.tolist()` works."""
        return [self[i] for i in range(self.n)]

    def to_supervision(self) -> list[supervision.Detections]:
        """One `supervision.Detections` for each picture: its annotators, zones and trackers then take our results.

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


def _fresh(save_dir: str | Path) -> Path:
    """The folder to save to, made if need be; the default one is counted up as in v6.1."""
    return increment_path(save_dir, exist_ok=str(save_dir) != DEFAULT_DIR, mkdir=True)
