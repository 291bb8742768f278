"""The one way from an image to boxes: `prepare_image`, the network, `suppress`, and back to the image.

detect.py, val.py, the server, AutoShape, the comparison of exported files and the routing images all go this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.base.devices import moment, seconds_between
from utils.boxes.convert import Array, RatioPad, placement, scale_boxes
from utils.boxes.nms import non_max_suppression
from utils.images.letterbox import letterbox

SPEED = "Speed: {:.1f}ms pre-process, {:.1f}ms inference, {:.1f}ms NMS per image at shape {}"
Forward = Callable[[Tensor], Any]  # images (B, 3, h, w) in 0..1 -> predictions (B, M, 5 + C), or these first of several


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image lies in the network's input; sizes are (height, width).

    `ratio_pad` is what letterboxing did, as in `scale_boxes`; without it the image is fitted and centred.
    """

    image: tuple[int, int]
    input: tuple[int, int]
    ratio_pad: RatioPad | None = None

    def to_image(self, boxes: Array) -> Array:
        """Boxes (n, 4 or more) xyxy from pixels of the input to those of the image, clipped; other columns stay."""
        return scale_boxes(self.input, boxes, self.image, self.ratio_pad)

    def to_input(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Positions (x, y) in pixels of the image as positions in the input."""
        gain, left, top = placement(self.input, self.image, self.ratio_pad)
        return [(x * gain + left, y * gain + top) for x, y in points]


@dataclass(frozen=True, slots=True)
class Suppression:
    """How predictions become detections: the arguments of `non_max_suppression`."""

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    classes: Sequence[int] | None = None
    agnostic: bool = False
    multi_label: bool = False
    max_det: int = 1000
    labels: Sequence[Tensor] = ()  # of each image, which join the candidates


@dataclass(slots=True)
class Clock:
    """Seconds spent on preparation, network and suppression, over how many images, and moments still to be compared."""

    prepare: float = 0.0
    network: float = 0.0
    suppress: float = 0.0
    images: int = 0
    moments: list[tuple[Any, ...]] = field(default_factory=list)

    def settled(self) -> Clock:
        """Add what `find_objects` noted, waiting for a GPU that has not come so far; return the clock itself."""
        for start, ready, done, end in self.moments:
            self.prepare += seconds_between(start, ready)
            self.network += seconds_between(ready, done)
            self.suppress += seconds_between(done, end)
        self.moments.clear()
        return self


def prepare_image(
    image: np.ndarray, shape: tuple[int, int], stride: int = 32, auto: bool = True, bgr: bool = True
) -> tuple[np.ndarray, Geometry]:
    """Letterbox an image (H, W, 3) uint8 into `shape` (h, w) -> pixels (3, h, w) uint8 RGB, contiguous, and geometry.

    `auto` pads only up to the next multiple of `stride`; `bgr` is the order of the image's channels.
    """
    fitted = letterbox(image, shape, auto=auto, stride=stride)[0]
    pixels = np.ascontiguousarray((fitted[..., ::-1] if bgr else fitted).transpose(2, 0, 1))
    return pixels, Geometry(image.shape[:2], fitted.shape[:2])


def to_network(
    pixels: Tensor | Sequence[np.ndarray], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return pixels (B, 3, h, w) uint8, or the (3, h, w) of several images, as the network takes them, in 0..1."""
    batch = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.stack(pixels))
    return batch.to(device, non_blocking=True).to(dtype) / 255


def suppress(predictions: Tensor, settings: Suppression | Sequence[Suppression]) -> list[Tensor]:
    """Return the detections (n, 6) xyxy, confidence, class of each image, surest first, in the input's pixels.

    They are on the CPU, wherever the predictions are, as all that follows is there.
    `settings` are the same for all images, or a sequence with one for each.
    """
    if not isinstance(settings, Suppression):
        return [suppress(rows[None], one)[0] for rows, one in zip(predictions, settings, strict=True)]
    return non_max_suppression(
        predictions,
        settings.conf_thres,
        settings.iou_thres,
        settings.classes,
        settings.agnostic,
        settings.multi_label,
        settings.labels,
        settings.max_det,
        on_cpu=True,
    )


def find_objects(
    forward: Forward,
    pixels: Tensor | Sequence[np.ndarray],
    settings: Suppression | Sequence[Suppression],
    clock: Clock,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Tensor], Any]:
    """Go the way from prepared pixels to detections; `clock` is told, and has the times once it is settled.

    Returns what `suppress` does, which `Geometry.to_image` brings back to the images, and what `forward` returned.
    """
    start = moment(device)
    images = to_network(pixels, device, dtype)
    ready = moment(device)
    output = forward(images)
    done = moment(device)
    found = suppress(output if isinstance(output, Tensor) else output[0], settings)
    clock.moments.append((start, ready, done, moment(device)))
    clock.images += len(images)
    return found, output
