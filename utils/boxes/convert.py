"""Box and polygon conversions, clipping, and mapping between a network's input and the image it was made from.

Formats: *xyxy* is two opposite corners, *xywh* is centre and size, a trailing *n* means fractions of the image.
Every function takes numpy arrays or torch tensors of shape (..., 4 or more), leaves its argument alone and returns a
new one of the same kind; further columns (confidence, class) are carried over. Integer input comes back as floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)
RatioPad = tuple[Sequence[float], Sequence[float]]  # ((ratio h, ratio w), (left padding, top padding))

X, Y = slice(0, 4, 2), slice(1, 4, 2)  # the two horizontal, the two vertical coordinates of an xyxy box


def _float_copy(values: Array) -> Array:
    """A copy that fractions can be written into."""
    if isinstance(values, torch.Tensor):
        return values.clone() if values.is_floating_point() else values.to(torch.get_default_dtype())
    return np.array(values, dtype=None if np.issubdtype(values.dtype, np.floating) else np.float64)


def xyxy2xywh(boxes: Array) -> Array:
    """Corners to centre and size."""
    low, high = boxes[..., 0:2], boxes[..., 2:4]
    result = _float_copy(boxes)
    result[..., 0:2] = (low + high) / 2
    result[..., 2:4] = high - low
    return result


def xywh2xyxy(boxes: Array) -> Array:
    """Centre and size to corners."""
    centre, half = boxes[..., 0:2], boxes[..., 2:4] / 2
    result = _float_copy(boxes)
    result[..., 0:2] = centre - half
    result[..., 2:4] = centre + half
    return result


def xywhn2xyxy(boxes: Array, w: float = 640, h: float = 640, padw: float = 0, padh: float = 0) -> Array:
    """Fractions of a w x h image to corners in pixels, moved by the padding."""
    result = xywh2xyxy(boxes)
    result[..., X] = result[..., X] * w + padw
    result[..., Y] = result[..., Y] * h + padh
    return result


def xyxy2xywhn(boxes: Array, w: float = 640, h: float = 640, clip: bool = False, eps: float = 0.0) -> Array:
    """Corners in pixels to fractions of a w x h image; `clip` first cuts the boxes at (w - eps, h - eps)."""
    result = xyxy2xywh(clip_boxes(boxes, (h - eps, w - eps)) if clip else boxes)
    result[..., X] = result[..., X] / w
    result[..., Y] = result[..., Y] / h
    return result


def xyn2xy(points: Array, w: float = 640, h: float = 640, padw: float = 0, padh: float = 0) -> Array:
    """Points (..., 2) as fractions of a w x h image to pixels, moved by the padding."""
    result = _float_copy(points)
    result[..., 0] = points[..., 0] * w + padw
    result[..., 1] = points[..., 1] * h + padh
    return result


def segment2box(segment: np.ndarray, width: float = 640, height: float = 640) -> np.ndarray:
    """Corners (4,) around those points of a polygon (k, 2) that lie in the image; zeros where none does."""
    inside = ((segment >= 0) & (segment <= (width, height))).all(axis=1)
    points = segment[inside]
    return np.concatenate((points.min(axis=0), points.max(axis=0))) if len(points) else np.zeros(4)


def segments2boxes(segments: Sequence[np.ndarray]) -> np.ndarray:
    """Polygons, each (k, 2), to the xywh boxes (n, 4) around them."""
    corners = [np.concatenate((points.min(axis=0), points.max(axis=0))) for points in segments]
    return xyxy2xywh(np.array(corners).reshape(-1, 4))


def resample_segments(segments: Sequence[np.ndarray], n: int = 1000) -> list[np.ndarray]:
    """Polygons with any number of points to polygons of n points, evenly spread over the point numbers."""
    resampled = []
    for points in segments:
        position, known = np.linspace(0, len(points) - 1, n), np.arange(len(points))
        columns = [np.interp(position, known, points[:, axis]) for axis in (0, 1)]
        resampled.append(np.stack(columns, axis=1).astype(np.float32))
    return resampled


def clip_boxes(boxes: Array, shape: Sequence[float]) -> Array:
    """Cut xyxy boxes at the borders of an image of `shape` (height, width, ...)."""
    result = _float_copy(boxes)
    result[..., X] = result[..., X].clip(0, shape[1])
    result[..., Y] = result[..., Y].clip(0, shape[0])
    return result


def placement(
    input_shape: Sequence[float], shape: Sequence[float], ratio_pad: RatioPad | None = None
) -> tuple[float, float, float]:
    """Return how an image of `shape` lies in the network's input: its ratio, and the padding on the left and on top."""
    if ratio_pad is not None:
        return ratio_pad[0][0], ratio_pad[1][0], ratio_pad[1][1]
    ratio = min(input_shape[0] / shape[0], input_shape[1] / shape[1])
    return ratio, (input_shape[1] - shape[1] * ratio) / 2, (input_shape[0] - shape[0] * ratio) / 2


def scale_boxes(
    from_shape: Sequence[float], boxes: Array, to_shape: Sequence[float], ratio_pad: RatioPad | None = None
) -> Array:
    """Map xyxy boxes (..., 4 or more) from a letterboxed input back to the image it was made from, and clip them there.

    Both shapes are (height, width). `ratio_pad` is what letterboxing did, if known: ((ratio h, ratio w), (left, top));
    of the ratios the first counts. Without it, the image is taken to be fitted into the input and centred.
    """
    ratio, left, top = placement(from_shape, to_shape, ratio_pad)
    result = _float_copy(boxes)
    result[..., X] = (result[..., X] - left) / ratio
    result[..., Y] = (result[..., Y] - top) / ratio
    return clip_boxes(result, to_shape)
