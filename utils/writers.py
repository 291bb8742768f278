"""What val.py and detect.py leave on disk: label text files, COCO JSON rows, crops, pictures and videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.boxes import clip_boxes, xywh2xyxy, xyxy2xywh
from utils.log import LOGGER

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


def coco_rows(detections: Tensor, path: Path | str, categories: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Rows of a COCO results JSON for one picture.

    `detections` is (n, 6) xyxy, confidence, class in native pixels; `categories` maps a class to its category id (the
    class itself when None). The image id is the file's stem, a number where it is one.
    """
    stem = Path(path).stem
    image_id = int(stem) if stem.isdecimal() else stem
    rows = []
    for x1, y1, x2, y2, confidence, number in detections.tolist():
        rows.append(
            {
                "image_id": image_id,
                "category_id": int(number) if categories is None else int(categories[int(number)]),
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(confidence, 5),
            }
        )
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
    second crop of `000000` is `000000_2.jpg`, which no other picture's crop can be taken for.
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


class OutputNames:
    """File stems for the results of each source: its own one, or `bus-2` where another source took `bus` before."""

    def __init__(self) -> None:
        self._stems: dict[int, str] = {}

    def __call__(self, source: int, stem: str) -> str:
        """The stem for this source number; the same at every call."""
        if source not in self._stems:
            number, free = 2, stem
            while free in self._stems.values():
                number, free = number + 1, f"{stem}-{number}"
            self._stems[source] = free
        return self._stems[source]


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
