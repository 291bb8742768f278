"""Fit an image into the network's input: the one letterbox of the tree, and scaling to a longest side."""

from __future__ import annotations

import cv2
import numpy as np

GREY = 114  # the level v6.1's weights know as "nothing here"


def letterbox(
    im: np.ndarray,
    new_shape: int | tuple[int, int] = (640, 640),
    color: tuple[int, int, int] = (GREY,) * 3,
    auto: bool = True,
    scaleFill: bool = False,
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Fit a image into `new_shape` (h, w) and pad it evenly -> image, (x, y) ratio, (x, y) padding of one side.

    `auto` pads only up to the next multiple of `stride` and wins over `scaleFill`, which stretches instead of padding.
    Without `scaleup` small images keep their size. At least one pixel of every side survives.
    """
    height, width = im.shape[:2]
    target_h, target_w = (new_shape, new_shape) if isinstance(new_shape, int) else new_shape
    gain = min(target_h / height, target_w / width)
    gain = gain if scaleup else min(gain, 1.0)
    ratio = (gain, gain)
    fitted = (max(round(width * gain), 1), max(round(height * gain), 1))
    spare_x, spare_y = target_w - fitted[0], target_h - fitted[1]
    if auto:
        spare_x, spare_y = spare_x % stride, spare_y % stride
    elif scaleFill:
        spare_x = spare_y = 0
        fitted, ratio = (target_w, target_h), (target_w / width, target_h / height)
    if fitted != (width, height):
        im = cv2.resize(im, fitted, interpolation=cv2.INTER_LINEAR)
    if spare_x or spare_y:  # an odd pixel goes to the bottom and to the right
        top, left = spare_y // 2, spare_x // 2
        edges = (top, spare_y - top, left, spare_x - left)
        im = cv2.copyMakeBorder(im, *edges, cv2.BORDER_CONSTANT, value=color)
    return im, ratio, (spare_x / 2, spare_y / 2)


def fitted_sizes(sizes: np.ndarray, size: int) -> np.ndarray:
    """Return the (..., 2) width and height that `fit_longest` gives images of these (..., 2)."""
    return np.maximum((sizes * (size / sizes.max(axis=-1, keepdims=True))).astype(np.int64), 1)


def fit_longest(image: np.ndarray, size: int, smooth: bool = True) -> np.ndarray:
    """Scale an image so that its longer side is `size` pixels, the other truncated but at least 1.

    Enlarging, and shrinking with `smooth` (training), is bilinear; shrinking otherwise averages areas.
    """
    height, width = image.shape[:2]
    if max(height, width) == size:
        return image
    method = cv2.INTER_LINEAR if smooth or size > max(height, width) else cv2.INTER_AREA
    fitted = fitted_sizes(np.array((width, height)), size).tolist()
    return cv2.resize(image, fitted, interpolation=method)
