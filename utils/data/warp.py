"""Where labels go when an image is mapped: the `Sample`, random maps of the plane, boxes and polygons through them.

Coordinates are continuous pixels: the left edge of the first pixel is 0, its centre 0.5, the right edge of the last one
the width. Plain numpy; `augmentations.warp_image` moves the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from utils.base.config import Hyp

NO_POLYGON = np.zeros((0, 2), np.float32)
BOX_AREA_LEFT, POLYGON_AREA_LEFT = 0.1, 0.01  # the least part of a label that must survive a cut


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image with its labels.

    `image` (H, W, 3) uint8 BGR; `labels` (n, 5) float32 class, x1, y1, x2, y2 in pixels; `segments` one (k, 2) float32
    pixel polygon a label, in the same order, with k = 0 where a label is a box only. Leaving `segments` out makes all
    of them boxes; any other difference in number is a ValueError.
    """

    image: np.ndarray
    labels: np.ndarray
    segments: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        if not self.segments:
            object.__setattr__(self, "segments", (NO_POLYGON,) * len(self.labels))
        elif len(self.segments) != len(self.labels):
            counts = f"{len(self.labels)} labels but {len(self.segments)} polygons"
            raise ValueError(f"{counts}: give one (k, 2) array for each label")


class Warp(NamedTuple):
    """A map of the plane into an image: 3x3 `matrix` on column vectors, its `scale` of lengths, (width, height)."""

    matrix: np.ndarray
    scale: float
    size: tuple[int, int]

    @property
    def is_affine(self) -> bool:
        """Parallel lines stay parallel: no perspective."""
        return not self.matrix[2, :2].any()

    def after_shift(self, x: float, y: float) -> Warp:
        """Return the same map for an image whose corner lies at (x, y) of what this one was made for."""
        return self._replace(matrix=self.matrix @ shift(x, y))


def shift(x: float, y: float) -> np.ndarray:
    """Return the 3x3 matrix that moves points by (x, y)."""
    return np.array(((1, 0, x), (0, 1, y), (0, 0, 1)), float)


def random_warp(size_in: tuple[int, int], size_out: tuple[int, int], hyp: Hyp, rng: Generator) -> Warp:
    """Draw perspective, rotation, scale, shear and translation, in this order, about the centre of the image."""
    tilt_x, tilt_y = rng.uniform(-hyp.perspective, hyp.perspective, 2)
    angle = math.radians(rng.uniform(-hyp.degrees, hyp.degrees))
    scale = rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    shear_x, shear_y = np.tan(np.radians(rng.uniform(-hyp.shear, hyp.shear, 2)))
    to_x, to_y = rng.uniform(0.5 - hyp.translate, 0.5 + hyp.translate, 2) * size_out
    tilt = np.array(((1, 0, 0), (0, 1, 0), (tilt_x, tilt_y, 1)))
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    turn = np.array(((cos, sin, 0), (-sin, cos, 0), (0, 0, 1)))
    skew = np.array(((1, shear_x, 0), (shear_y, 1, 0), (0, 0, 1)))
    matrix = shift(to_x, to_y) @ skew @ turn @ tilt @ shift(-size_in[0] / 2, -size_in[1] / 2)
    return Warp(matrix, scale, size_out)


def warp_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Move (..., 2) points through a 3x3 map; NaN for points behind the viewer."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    depth = moved[..., 2:]
    return moved[..., :2] / np.where(depth > 0, depth, np.nan)


def warp_labels(
    labels: np.ndarray, segments: Sequence[np.ndarray], warp: Warp, min_side: float = 2.0
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Carry labels through a map, cut them to the new image and drop those of which too little is left.

    A polygon gives the tightest box; a plain box becomes the box around its four mapped corners.
    """
    if not len(labels):
        return labels, tuple(segments)
    corners = warp_points(labels[:, [[1, 2], [3, 2], [3, 4], [1, 4]]], warp.matrix)  # (n, 4, 2)
    boxes = np.concatenate((corners.min(1), corners.max(1)), 1)
    boxes = np.clip(boxes, 0, (*warp.size, *warp.size))
    moved = list(segments)
    area_left = np.full(len(labels), BOX_AREA_LEFT)
    for i, points in enumerate(segments):
        if len(points):
            points = clip_polygon(warp_points(points, warp.matrix), warp.size)
            boxes[i] = (*points.min(0), *points.max(0)) if len(points) else 0
            moved[i], area_left[i] = points.astype(np.float32), POLYGON_AREA_LEFT
    keep = box_candidates(labels[:, 1:].T * warp.scale, boxes.T, min_side, area_thr=area_left)
    labels = np.concatenate((labels[:, :1], boxes), 1)[keep].astype(np.float32)
    # by way of a list: tuples grown from generators fill CPython's free lists, some MB in each loader process
    return labels, tuple([moved[i] for i in np.flatnonzero(keep)])


def clip_polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the part of a (k, 2) polygon inside (0, 0)-(width, height), by Sutherland and Hodgman; (0, 2) if none."""
    for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
        depth = points[:, axis] if sign == 1 else size[axis] - points[:, axis]  # (k,) from the cutting line inwards
        inside = depth >= 0
        if inside.all():
            continue
        crosses = inside != np.roll(inside, -1)  # on the way from this corner to the next
        step = np.divide(depth, depth - np.roll(depth, -1), out=np.zeros_like(depth), where=crosses)
        crossings = points + step[:, None] * (np.roll(points, -1, 0) - points)
        both = np.stack((points, crossings), 1).reshape(-1, 2)
        points = both[np.stack((inside, crosses), 1).ravel()]
    return points


def box_candidates(
    box1: np.ndarray,
    box2: np.ndarray,
    wh_thr: float = 2,
    ar_thr: float = 100,
    area_thr: float | np.ndarray = BOX_AREA_LEFT,
    eps: float = 1e-16,
) -> np.ndarray:
    """Return which boxes are still worth learning: (4, n) xyxy before and after a transform -> (n,) bool.

    Both sides must exceed `wh_thr` pixels, the longer side must be less than `ar_thr` times the shorter, and more than
    `area_thr` (a number, or one a box) of the area must be left.
    """
    old_w, old_h = box1[2] - box1[0], box1[3] - box1[1]
    width, height = box2[2] - box2[0], box2[3] - box2[1]
    aspect = np.maximum(width / (height + eps), height / (width + eps))
    left = width * height / (old_w * old_h + eps)
    return (width > wh_thr) & (height > wh_thr) & (left > area_thr) & (aspect < ar_thr)
