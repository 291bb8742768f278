"""Images that are planned: a `Sketch` says how one is to be painted, `paint` does it by OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from utils.images.letterbox import GREY


class Warp(NamedTuple):
    """A map of the plane into an image: 3x3 `matrix` on column vectors, its `scale` of lengths, (width, height)."""

    matrix: np.ndarray
    scale: float
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """An image that is planned: everything is drawn by chance already, but no pixel painted.

    `layers` are an image (h, w, 3) uint8 BGR and the view of it, or two that are blended, the first with `share`; then
    come `effects` of `rare_effects` by name and side, `colours` the factors (3,) of `augment_hsv` where it changes
    anything, and `flips` (left to right, upside down).
    """

    layers: tuple[tuple[np.ndarray, Warp], ...]
    share: float = 1.0
    effects: tuple[tuple[str, int], ...] = ()
    colours: np.ndarray | None = None
    flips: tuple[bool, bool] = (False, False)

    @classmethod
    def of(cls, image: np.ndarray | Sketch) -> Sketch:
        """Return the sketch of an image that is to stay as it is; one that is a sketch is returned."""
        if isinstance(image, Sketch):
            return image
        return cls(((image, Warp(np.eye(3), 1.0, image.shape[1::-1])),))

    @property
    def is_bare(self) -> bool:
        """Whether there is nothing but a view of one image."""
        return len(self.layers) == 1 and not self.effects and self.colours is None and not any(self.flips)


def shift(x: float, y: float) -> np.ndarray:
    """Return the 3x3 matrix that moves points by (x, y)."""
    return np.array(((1, 0, x), (0, 1, y), (0, 0, 1)), float)


def warp_image(image: np.ndarray, warp: Warp) -> np.ndarray:
    """Resample an image; what lies outside of it is grey."""
    height, width = image.shape[:2]
    if warp.size == (width, height) and np.allclose(warp.matrix, np.eye(3)):
        return image
    # OpenCV counts from the centre of the first pixel, labels from its edge
    matrix = shift(-0.5, -0.5) @ warp.matrix @ shift(0.5, 0.5)
    move: Callable[..., np.ndarray] = cv2.warpPerspective
    if not warp.matrix[2, :2].any():  # parallel lines stay parallel
        move, matrix = cv2.warpAffine, matrix[:2]
    return move(image, matrix, warp.size, borderMode=cv2.BORDER_CONSTANT, borderValue=(GREY,) * 3)


def augment_hsv(im: np.ndarray, factors: np.ndarray | None) -> np.ndarray:
    """Multiply hue, saturation and value of a BGR image by these factors (3,)."""
    if factors is None:
        return im
    levels = np.arange(256)[:, None] * factors
    levels[:, 0] %= 180  # OpenCV's hue is in steps of 2 degrees
    table = np.minimum(levels, 255).astype(np.uint8)[None]  # (1, 256, 3): one look-up for all three channels
    hsv = cv2.cvtColor(im, cv2.COLOR_BGR2HSV)
    hsv = cv2.LUT(hsv, table, dst=hsv)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=hsv)


def hist_equalize(im: np.ndarray, clahe: bool = True, bgr: bool = False) -> np.ndarray:
    """Even out the brightness histogram of an RGB (or BGR) image, locally (CLAHE) or over the whole of it."""
    to_yuv, back = (cv2.COLOR_BGR2YUV, cv2.COLOR_YUV2BGR) if bgr else (cv2.COLOR_RGB2YUV, cv2.COLOR_YUV2RGB)
    luma, blue, red = cv2.split(cv2.cvtColor(im, to_yuv))
    luma = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(luma) if clahe else cv2.equalizeHist(luma)
    return cv2.cvtColor(cv2.merge((luma, blue, red)), back)


def apply_effect(image: np.ndarray, name: str, side: int) -> np.ndarray:
    """Return a BGR image with one of `rare_effects`."""
    if name == "blur":
        return cv2.blur(image, (side, side))
    if name == "median":
        return cv2.medianBlur(image, side)
    if name == "grey":
        return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return hist_equalize(image, bgr=True)


def paint(sketch: Sketch) -> np.ndarray:
    """Return the image (H, W, 3) uint8 BGR that is planned, by OpenCV."""
    views = [warp_image(image, warp) for image, warp in sketch.layers]
    image = views[0] if len(views) == 1 else cv2.addWeighted(views[0], sketch.share, views[1], 1 - sketch.share, 0)
    for name, side in sketch.effects:
        image = apply_effect(image, name, side)
    image = augment_hsv(image, sketch.colours)
    for axis in (1, 0):
        image = cv2.flip(image, 1 - axis) if sketch.flips[axis] else image
    return image
