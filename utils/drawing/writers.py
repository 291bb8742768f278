"""What val.py and detect.py leave on disk: label text files, COCO JSON rows, crops, images and videos."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.base.files import folder_name, printable
from utils.base.log import LOGGER
from utils.boxes.convert import clip_boxes, xywh2xyxy, xyxy2xywh

LABELS, CROPS = "labels", "crops"  # folders of a run
EXAMPLES = 3  # of changed names that are named
_FRAME = re.compile(r"(.*)_[1-9][0-9]*")  # how the results of a video's frame are called
FALLBACK_FPS = 30.0  # for streams and files that do not say


def write_image(path: Path | str, image: np.ndarray) -> Path:
    """Encode a BGR (or grey) uint8 image by its suffix (.jpg without one) and write it; paths may be non-ASCII.

    Raises OSError when the file cannot be written and ValueError for a suffix that OpenCV has no encoder for.
    """
    path = Path(path)
    target = path if path.suffix else path.with_suffix(".jpg")
    try:
        done, data = cv2.imencode(target.suffix, image)
    except cv2.error as error:
        raise ValueError(f"cannot write {target}: no encoder for {target.suffix!r} images of this kind") from error
    if not done:
        raise ValueError(f"cannot write {target}: encoding the {image.shape} image failed")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.write_bytes(data.tobytes())
    except OSError as error:  # a full disk is reported without a name
        raise OSError(error.errno, error.strerror, str(target)) from error
    return target


def write_labels(path: Path | str, detections: Tensor, shape: tuple[int, int], with_confidence: bool = False) -> Path:
    """Write (never append) a label file, `class cx cy w h [confidence] [track]` a line; its folder is made.

    `detections` is (n, 6) xyxy, confidence, class in pixels of an image of `shape` (height, width), or (n, 7) with the
    number of the track. Fractions have six significant digits.
    """
    height, width = shape
    centred = xyxy2xywh(detections[:, :4].double()) / torch.tensor([width, height, width, height], dtype=torch.float64)
    lines = []
    for box, (confidence, number, *track) in zip(centred.tolist(), detections[:, 4:].tolist(), strict=True):
        values = [*box, *([confidence] if with_confidence else [])]
        lines.append(" ".join([f"{number:.0f}", *(f"{value:g}" for value in values), *(f"{one:.0f}" for one in track)]))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def coco_rows(
    detections: Tensor,
    path: Path | str,
    categories: Sequence[int | str | None] | None = None,
    image_id: int | str | None = None,
) -> list[dict[str, Any]]:
    """Rows of a COCO results JSON for one image.

    `detections` is (n, 6) xyxy, confidence, class in native pixels; `categories` maps a class to its category id (the
    class itself when None), and classes that it maps to None are left out. The image id is the file's stem, a number
    where it is one, unless `image_id` is given.
    """
    if image_id is None:
        stem = Path(path).stem
        image_id = int(stem) if stem.isdecimal() else stem
    rows = []
    for x1, y1, x2, y2, confidence, number in detections.tolist():
        category = int(number) if categories is None else categories[int(number)]
        if category is not None:
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            rows.append({"image_id": image_id, "category_id": category, "bbox": box, "score": round(confidence, 5)})
    return rows


def save_one_box(
    xyxy: Tensor | Sequence[float],
    im: np.ndarray,
    file: Path | str = "im.jpg",
    gain: float = 1.02,
    pad: int = 10,
    square: bool = False,
    BGR: bool = False,
    save: bool = True,
) -> np.ndarray:
    """Cut a box (xyxy in pixels) out of an image and, with `save`, write it as JPEG; the signature is v6.1's.

    The box is enlarged by the gain, plus `pad` pixels, and clipped to the image; `square` makes the longer side count
    for both. The crop is a view, and empty where the box lies outside. `BGR` says that `im` already has OpenCV's order
    and the crop keeps it. A file that exists is not overwritten: the second crop of `000000` is `000000_2.jpg`.
    """
    centred = xyxy2xywh(torch.as_tensor(xyxy).detach().cpu().float().view(1, 4))
    sides = centred[:, 2:].max(1, keepdim=True).values.expand(1, 2) if square else centred[:, 2:]
    enlarged = torch.cat([centred[:, :2], sides * gain + pad], 1)
    x1, y1, x2, y2 = clip_boxes(xywh2xyxy(enlarged), im.shape[:2])[0].long().tolist()
    cropped = im[y1:y2, x1:x2, :: 1 if BGR else -1]
    if save and cropped.size:
        path = free = Path(file).with_suffix(".jpg")
        number = 2
        while free.exists():
            free = path.with_name(f"{path.stem}_{number}{path.suffix}")
            number += 1
        write_image(free, np.ascontiguousarray(cropped))
    return cropped


class Output(NamedTuple):
    """What the results of one source would be called: of an image, or of a `moving` one, whose frames add a number."""

    path: str  # the source, for people
    stem: str
    suffix: str = ".jpg"
    moving: bool = False


class OutputNames:
    """Gives each output its name, and no name to two: what is written for a source is never taken for another's.

    A source keeps its stem, or becomes `bus-2` where `bus` would write a file that an earlier source writes (on some
    file system: capitals do not count). `labelled`: stems alone name files, too (labels, crops, feature maps);
    without that, `a.png` and `a.jpg` are not in each other's way. `classes` are the names of those that crops are of.
    """

    def __init__(
        self, folder: Path, outputs: Sequence[Output], classes: Sequence[str] = (), labelled: bool = True
    ) -> None:
        self.folder, self.outputs, self.labelled = folder, outputs, labelled
        self._taken: set[str] = set()
        counts: dict[str, int] = {}
        self.stems: list[str] = []
        for output in outputs:
            stem, number = output.stem, counts.get(output.stem, 1)  # how far this went with an earlier one
            while self._claims(stem, output)[1]:
                number += 1
                stem = f"{output.stem}-{number}"
            counts[output.stem] = number
            self._taken |= self._claims(stem, output)[0]
            self.stems.append(stem)
        self._folders = unique_names([folder_name(stem) for stem in self.stems], (LABELS, CROPS))
        different = list(dict.fromkeys(classes))
        folders = dict(zip(different, unique_names(list(map(folder_name, different))), strict=True))
        self._crop_folders = [folder / CROPS / folders[name] for name in classes]
        self._crops: tuple[str, dict[Path, int]] = ("", {})  # of the latest frame, how many in each folder

    def _claims(self, stem: str, output: Output) -> tuple[set[str], set[str]]:
        """What an output of this name takes, and what is taken that would be in its way."""
        key = _key(stem)
        takes = avoids = {key + output.suffix.lower()}
        if self.labelled:
            frame = _FRAME.fullmatch(key)  # an image `clip_1` is named as a frame of `clip.mp4` is
            if output.moving:
                takes, avoids = {*takes, f"{key}/frames"}, {*avoids, f"{key}/like a frame"}
            else:
                takes, avoids = {*takes, f"{key}/image"}, {*avoids, f"{key}/image"}
                if frame:
                    takes, avoids = {*takes, f"{frame[1]}/like a frame"}, {*avoids, f"{frame[1]}/frames"}
        return takes, avoids & self._taken

    def report_changes(self) -> bool:
        """Log how many sources got another name than their own, and which; False where there are none."""
        pairs = zip(self.outputs, self.stems, strict=True)
        changed = [f"{printable(output.path)} -> {stem}" for output, stem in pairs if stem != output.stem]
        if changed:
            few = ", ".join(changed[:EXAMPLES]) + ", ..." * (len(changed) > EXAMPLES)
            count = f"{len(changed)} of {len(self.stems)} sources are"
            LOGGER.warning(f"{count} named like others, and their results by names of their own: {few}")
        return bool(changed)

    def drawn(self, source: int) -> Path:
        """Return the file of the image or video with boxes in it."""
        return self.folder / f"{self.stems[source]}{self.outputs[source].suffix}"

    def label(self, source: int, number: int = 0) -> Path:
        """Return the label file of an image; of a video or stream that of its frame `number`, from 1."""
        return self.folder / LABELS / f"{self.stems[source]}{f'_{number}' if number else ''}.txt"

    def features(self, source: int) -> Path:
        """Return a folder for what the network makes of this source."""
        return self.folder / self._folders[source]

    def crop(self, source: int, number: int, kind: int) -> Path:
        """Return the file of one more crop of class `kind` out of a frame, which is not there already.

        They are `bus.jpg`, then `bus_2.jpg` ..., passing over what belongs to other images and frames.
        """
        single, folder = self.label(source, number).stem, self._crop_folders[kind]
        if self._crops[0] != single:
            self._crops = (single, {})
        # where all of bus_2, bus_3 ... are frames of bus.mp4, another sign is used
        sign = "-" if f"{_key(single)}/frames" in self._taken else "_"
        count = self._crops[1].get(folder, 1)
        while True:
            stem = single if count == 1 else f"{single}{sign}{count}"
            path = folder / f"{stem}.jpg"
            if not path.exists() and (count == 1 or not self._claims(stem, Output("", stem, "/crop"))[1]):
                self._crops[1][folder] = count
                return path
            count += 1


def unique_names(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """Return the names, or `bus-2` where an earlier one, or one that is `taken`, is the same on some file system."""
    used: set[str] = set(map(_key, taken))
    counts: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        free, number = name, counts.get(name, 1)
        while _key(free) in used:
            number += 1
            free = f"{name}-{number}"
        counts[name] = number
        used.add(_key(free))
        unique.append(free)
    return unique


def _key(name: str) -> str:
    """What two names have in common that are one file on some system: neither capitals nor composed letters count."""
    return unicodedata.normalize("NFC", name).casefold()


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Writes BGR frames into an MP4 file (codec mp4v), opened with the first frame's size.

    Use it as a context manager, or call `close`. Frames of another size are resized to the first one's, since a
    container holds one size only. Raises OSError when no encoder or no such folder is there.
    """

    def __init__(self, path: Path | str, fps: float = 0.0) -> None:
        self.path = Path(path).with_suffix(".mp4")
        self.fps = float(fps) if fps and np.isfinite(fps) and fps > 0 else FALLBACK_FPS
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: np.ndarray) -> None:
        """Append one (H, W, 3) frame."""
        size = (frame.shape[1], frame.shape[0])
        if self._writer is None:
            self._size = size
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, size)
            if not self._writer.isOpened():
                raise OSError(f"cannot write video {self.path}: no mp4v encoder in OpenCV, or the folder is read-only")
        if size != self._size:
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_LINEAR)
        self._writer.write(np.ascontiguousarray(frame))

    def close(self) -> None:
        """Finish the file; calling it again does nothing."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def __exit__(self, *error: object) -> None:
        self.close()
