"""What val.py and detect.py leave on disk: label text files, COCO JSON rows, crops, pictures and videos."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
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
CROP_GAIN, CROP_PAD = 1.02, 10  # a crop is the box times the gain, plus the padding in pixels
FALLBACK_FPS = 30.0  # for streams and files that do not say


def write_image(path: Path | str, image: np.ndarray) -> Path:
    """Encode a BGR (or grey) uint8 picture by its suffix (.jpg without one) and write it; paths may be non-ASCII.

    Raises OSError when the file cannot be written and ValueError for a suffix that OpenCV has no encoder for.
    """
    path = Path(path)
    target = path if path.suffix else path.with_suffix(".jpg")
    try:
        done, data = cv2.imencode(target.suffix, image)
    except cv2.error as error:
        raise ValueError(f"cannot write {target}: no encoder for {target.suffix!r} pictures of this kind") from error
    if not done:
        raise ValueError(f"cannot write {target}: encoding the {image.shape} picture failed")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.write_bytes(data.tobytes())
    except OSError as error:  # a full disk is reported without a name
        raise OSError(error.errno, error.strerror, str(target)) from error
    return target


def picture_suffix(path: Path | str) -> str:
    """The suffix of a picture's path or address where OpenCV can write such pictures, else .jpg."""
    suffix = Path(str(path).partition("?")[0]).suffix
    return suffix if suffix and cv2.haveImageWriter(f"picture{suffix}") else ".jpg"


def label_lines(detections: Tensor, shape: tuple[int, int], with_confidence: bool = False) -> list[str]:
    """Label text of detections: `class cx cy w h [confidence] [track]`, fractions with six significant digits.

    `detections` is (n, 6) xyxy, confidence, class in pixels of a picture of `shape` (height, width), or (n, 7) with the
    number of the track.
    """
    height, width = shape
    centred = xyxy2xywh(detections[:, :4].double()) / torch.tensor([width, height, width, height], dtype=torch.float64)
    lines = []
    for box, (confidence, number, *track) in zip(centred.tolist(), detections[:, 4:].tolist(), strict=True):
        values = [*box, *([confidence] if with_confidence else [])]
        lines.append(" ".join([f"{number:.0f}", *(f"{value:g}" for value in values), *(f"{one:.0f}" for one in track)]))
    return lines


def write_labels(path: Path | str, lines: Iterable[str]) -> Path:
    """Write (never append) one label file; its folder is made. No lines make an empty file."""
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


def crop_box(
    box: Tensor | Sequence[float],
    image: np.ndarray,
    gain: float = CROP_GAIN,
    pad: int = CROP_PAD,
    square: bool = False,
) -> np.ndarray:
    """The part of the picture inside `box` (xyxy in pixels), enlarged by gain and padding and clipped to the picture.

    `square` makes the longer side count for both. The result is a view; it is empty where the box lies outside.
    """
    centred = xyxy2xywh(torch.as_tensor(box).detach().cpu().float().view(1, 4))
    sides = centred[:, 2:].max(1, keepdim=True).values.expand(1, 2) if square else centred[:, 2:]
    enlarged = torch.cat([centred[:, :2], sides * gain + pad], 1)
    x1, y1, x2, y2 = clip_boxes(xywh2xyxy(enlarged), image.shape[:2])[0].long().tolist()
    return image[y1:y2, x1:x2]


def save_one_box(
    xyxy: Tensor | Sequence[float],
    im: np.ndarray,
    file: Path | str = "im.jpg",
    gain: float = CROP_GAIN,
    pad: int = CROP_PAD,
    square: bool = False,
    BGR: bool = False,
    save: bool = True,
) -> np.ndarray:
    """Cut a box out of a picture and, with `save`, write it as JPEG; the signature is v6.1's.

    `BGR` says that `im` already has OpenCV's order and the crop keeps it. A file that exists is not overwritten: the
    second crop of `000000` is `000000_2.jpg`.
    """
    cropped = crop_box(xyxy, im, gain, pad, square)
    if not BGR:
        cropped = cropped[..., ::-1]
    if save and cropped.size:
        write_image(_free_name(Path(file).with_suffix(".jpg")), np.ascontiguousarray(cropped))
    return cropped


def _free_name(path: Path) -> Path:
    """`path` itself, or the first of stem_2, stem_3, ... that does not exist."""
    number, free = 2, path
    while free.exists():
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return free


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
        self._drawn: set[str] = set()
        self._images: set[str] = set()
        self._moving: set[str] = set()
        self._framed: set[str] = set()  # 'clip' where an image is called clip_1, as a frame of clip.mp4 is
        counts: dict[str, int] = {}
        self.stems = [self._take(output, counts) for output in outputs]
        self._folders = unique_names([folder_name(stem) for stem in self.stems], (LABELS, CROPS))
        different = list(dict.fromkeys(classes))
        folders = dict(zip(different, unique_names(list(map(folder_name, different))), strict=True))
        self._crop_folders = [folder / CROPS / folders[name] for name in classes]
        self._crops: tuple[str, dict[Path, int]] = ("", {})  # of the latest frame, how many in each folder

    def say(self) -> bool:
        """Log how many sources got another name than their own, and which; False where there are none."""
        pairs = zip(self.outputs, self.stems, strict=True)
        changed = [f"{printable(output.path)} -> {stem}" for output, stem in pairs if stem != output.stem]
        if changed:
            few = ", ".join(changed[:EXAMPLES]) + ", ..." * (len(changed) > EXAMPLES)
            count = f"{len(changed)} of {len(self.stems)} sources are"
            LOGGER.warning(f"{count} named like others, and their results by names of their own: {few}")
        return bool(changed)

    def drawn(self, source: int) -> Path:
        """The image or video with boxes in it."""
        return self.folder / f"{self.stems[source]}{self.outputs[source].suffix}"

    def label(self, source: int, number: int = 0) -> Path:
        """The labels of an image; of a video or stream those of its frame `number`, from 1."""
        return self.folder / LABELS / f"{self._single(source, number)}.txt"

    def features(self, source: int) -> Path:
        """A folder for what the network makes of this source."""
        return self.folder / self._folders[source]

    def crop(self, source: int, number: int, kind: int) -> Path:
        """One more crop of class `kind` out of a frame: `bus.jpg`, then `bus_2.jpg` ..., none that is there already."""
        single, folder = self._single(source, number), self._crop_folders[kind]
        if self._crops[0] != single:
            self._crops = (single, {})
        sign = "-" if _key(single) in self._moving else "_"  # all of bus_2, bus_3 ... are frames of bus.mp4
        count = self._crops[1].get(folder, 1)
        while True:
            stem = single if count == 1 else f"{single}{sign}{count}"
            path = folder / f"{stem}.jpg"
            if not path.exists() and (count == 1 or not self._is_single(_key(stem))):
                self._crops[1][folder] = count
                return path
            count += 1

    def _single(self, source: int, number: int) -> str:
        return f"{self.stems[source]}_{number}" if number else self.stems[source]

    def _take(self, output: Output, counts: dict[str, int]) -> str:
        stem = _free(output.stem, lambda name: self._is_taken(_key(name), output), counts)
        key = _key(stem)
        self._drawn.add(key + output.suffix.lower())
        (self._moving if output.moving else self._images).add(key)
        if not output.moving and (frame := _FRAME.fullmatch(key)):
            self._framed.add(frame[1])
        return stem

    def _is_taken(self, key: str, output: Output) -> bool:
        if key + output.suffix.lower() in self._drawn:
            return True
        return self.labelled and (key in self._framed if output.moving else self._is_single(key))

    def _is_single(self, key: str) -> bool:
        """Whether an image's results, or those of a frame, are called so."""
        frame = _FRAME.fullmatch(key)
        return key in self._images or (frame is not None and frame[1] in self._moving)


def unique_names(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """The names, or `bus-2` where an earlier one, or one that is `taken`, is the same on some file system."""
    used: set[str] = set(map(_key, taken))
    counts: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        unique.append(_free(name, lambda free: _key(free) in used, counts))
        used.add(_key(unique[-1]))
    return unique


def _free(name: str, is_taken: Callable[[str], bool], counts: dict[str, int]) -> str:
    """The name, or the first of name-2, name-3 ... that is not taken; `counts` remembers how far this went."""
    free, number = name, counts.get(name, 1)
    while is_taken(free):
        number += 1
        free = f"{name}-{number}"
    counts[name] = number
    return free


def _key(name: str) -> str:
    """What two names have in common that are one file on some system: neither capitals nor composed letters count."""
    return unicodedata.normalize("NFC", name).casefold()


class VideoWriter:
    """Writes BGR frames into an MP4 file (codec mp4v), opened with the first frame's size.

    Use it as a context manager, or call `close`. Frames of another size are resized to the first one's, since a
    container holds one size only. Raises OSError when no encoder or no such folder is there.
    """

    def __init__(self, path: Path | str, fps: float = 0.0) -> None:
        self.path = Path(path).with_suffix(".mp4")
        self.fps = float(fps) if fps and np.isfinite(fps) and fps > 0 else FALLBACK_FPS
        self.frames = 0
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: np.ndarray) -> None:
        """Append one (H, W, 3) frame."""
        size = (frame.shape[1], frame.shape[0])
        if self._writer is None:
            self._size = size
            self._writer = self._open()
        if size != self._size:
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_LINEAR)
        self._writer.write(np.ascontiguousarray(frame))
        self.frames += 1

    def _open(self) -> cv2.VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), self.fps, self._size)
        if not writer.isOpened():
            raise OSError(f"cannot write video {self.path}: no mp4v encoder in OpenCV, or the folder is read-only")
        return writer

    def close(self) -> None:
        """Finish the file; calling it again does nothing."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Videos:
    """The videos of one run by output path: each is opened at its first frame, all are closed at the end."""

    def __init__(self) -> None:
        self._open: dict[Path, VideoWriter] = {}

    def write(self, path: Path, frame: np.ndarray, fps: float) -> None:
        """Append a frame to the video at `path`."""
        if path not in self._open:
            self._open[path] = VideoWriter(path, fps)
        self._open[path].write(frame)

    def close(self) -> None:
        """Finish every file."""
        for writer in self._open.values():
            writer.close()
            LOGGER.debug(f"{writer.path}: {writer.frames} frames")
        self._open.clear()
