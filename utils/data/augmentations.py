"""Images and their labels on the way to the network: colour, geometry, mosaics and other mixtures.

A transform takes a `Sample` and returns a new one; chance comes from a generator that is handed in. Labels move at
once; pixels wait in a `Sketch`, which `painting` makes an image of, or `batch_painting` a whole batch on a GPU.
Coordinates are continuous pixels: the left edge of the first one is 0, its centre 0.5, the right edge of the last one
the width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from utils.base.config import Hyp
from utils.data.painting import Sketch, Warp, paint, shift
from utils.images.letterbox import GREY

NO_POLYGON = np.zeros((0, 2), np.float32)
BOX_AREA_LEFT, POLYGON_AREA_LEFT = 0.1, 0.01  # the least part of a label that must survive a cut
MAX_HIDDEN = 0.3  # copy-paste: the most a pasted object may cover of any other box
MAX_CUTOUT = 0.6  # the most of a box that holes may take before its label goes
CUTOUT_HOLES = ((0.5, 1), (0.25, 2), (0.125, 4), (0.0625, 8), (0.03125, 16))  # part of the image's side, how many


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image with its labels.

    `source` is the image, (H, W, 3) uint8 BGR, or its sketch; `labels` (n, 5) float32 class, x1, y1, x2, y2 in pixels;
    `segments` one (k, 2) float32 pixel polygon a label, in the same order, with k = 0 where a label is a box only.
    Leaving `segments` out makes all of them boxes; any other difference in number is a ValueError.
    """

    source: np.ndarray | Sketch
    labels: np.ndarray
    segments: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        if not self.segments:
            object.__setattr__(self, "segments", (NO_POLYGON,) * len(self.labels))
        elif len(self.segments) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels but {len(self.segments)} polygons: give one (k, 2) array each")

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 BGR, painted now where there is only a sketch of it."""
        return paint(self.source) if isinstance(self.source, Sketch) else self.source

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image."""
        return self.source.layers[0][1].size if isinstance(self.source, Sketch) else self.source.shape[1::-1]


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
    labels: np.ndarray,
    segments: Sequence[np.ndarray],
    warp: Warp,
    min_side: float = 2.0,
    offsets: np.ndarray | float = 0.0,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Carry labels through a map, cut them to the new image and drop those of which too little is left.

    A polygon gives the tightest box; a plain box becomes the box around its four mapped corners. `offsets` (n, 2)
    move labels (x, y) pixels before.
    """
    if not len(labels):
        return labels, ()
    offsets = np.broadcast_to(offsets, (len(labels), 2))
    corners = labels[:, [[1, 2], [3, 2], [3, 4], [1, 4]]] + offsets[:, None]  # (n, 4, 2)
    corners = warp_points(corners, warp.matrix)
    boxes = np.clip(np.concatenate((corners.min(1), corners.max(1)), 1), 0, (*warp.size, *warp.size))
    moved = list(segments)
    area_left = np.full(len(labels), BOX_AREA_LEFT)
    for i, points in enumerate(segments):
        if len(points):
            points = clip_polygon(warp_points(points + offsets[i], warp.matrix), warp.size)
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


def hsv_factors(hgain: float, sgain: float, vgain: float, rng: Generator) -> np.ndarray | None:
    """Draw independent factors (3,) from 1 - gain to 1 + gain; None where no gain changes anything."""
    factors = 1 + rng.uniform(-1, 1, 3) * (hgain, sgain, vgain)
    return factors if hgain or sgain or vgain else None


def flip(sample: Sample, axis: int) -> Sample:
    """Mirror an image left to right (axis 0) or upside down (axis 1)."""
    side, sketch = sample.size[axis], Sketch.of(sample.source)
    labels = sample.labels.copy()
    labels[:, [1 + axis, 3 + axis]] = side - labels[:, [3 + axis, 1 + axis]]
    segments = [points.copy() for points in sample.segments]
    for points in segments:
        points[:, axis] = side - points[:, axis]
    flips = (sketch.flips[0] ^ (axis == 0), sketch.flips[1] ^ (axis == 1))
    return Sample(replace(sketch, flips=flips), labels, tuple(segments))


def random_perspective(sample: Sample, hyp: Hyp, rng: Generator, border: tuple[int, int] = (0, 0)) -> Sample:
    """Move, scale, turn, shear and tilt an image at random, within `hyp`'s limits; `border` (y, x) pads each edge."""
    width, height = sample.size
    warp = random_warp((width, height), (width + 2 * border[1], height + 2 * border[0]), hyp, rng)
    return Sample(Sketch(((sample.image, warp),)), *warp_labels(sample.labels, sample.segments, warp))


def mixup(first: Sample, second: Sample, rng: Generator) -> Sample:
    """Blend two images of one size, about half and half, and keep the labels of both (arXiv:1710.09412)."""
    if first.size != second.size:
        raise ValueError(f"mixup needs images of one size, got {first.size} and {second.size} (width, height)")
    sketches = [Sketch.of(sample.source) for sample in (first, second)]
    bare = [sketch if sketch.is_bare else Sketch.of(paint(sketch)) for sketch in sketches]
    mixed = Sketch(bare[0].layers + bare[1].layers, share=rng.beta(32.0, 32.0))
    return Sample(mixed, np.concatenate((first.labels, second.labels)), first.segments + second.segments)


def copy_paste(sample: Sample, p: float, rng: Generator) -> Sample:
    """Paste a share `p` of the objects that have polygons at their mirrored places (arXiv:2012.07177).

    An object is left out where it would hide 30 % or more of another label's box. Black pixels are pasted too.
    """
    with_polygon = [i for i, points in enumerate(sample.segments) if len(points)]
    count = round(p * len(with_polygon))
    if not count:
        return sample
    source, (width, height) = sample.image, sample.size
    image = source.copy()
    labels, segments = list(sample.labels), list(sample.segments)
    for i in rng.choice(with_polygon, count, replace=False):
        kind, x1, y1, x2, y2 = sample.labels[i]
        pasted = np.array((kind, width - x2, y1, width - x1, y2), np.float32)
        boxes = np.stack(labels)[:, 1:]
        shared = (np.minimum(pasted[3:], boxes[:, 2:]) - np.maximum(pasted[1:3], boxes[:, :2])).clip(0).prod(1)
        if (shared / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-7) >= MAX_HIDDEN).any():
            continue
        points = sample.segments[i] * np.array((-1, 1), np.float32) + np.array((width, 0), np.float32)
        corners = np.rint(points - 0.5).astype(np.int32)  # pixel indices are centres
        left, top = np.maximum(corners.min(0), 0)
        right, bottom = np.minimum(corners.max(0) + 1, (width, height))
        mask = cv2.fillPoly(np.zeros((bottom - top, right - left), np.uint8), [corners - (left, top)], 1)
        mirrored = source[top:bottom, width - right : width - left][:, ::-1]
        np.copyto(image[top:bottom, left:right], mirrored, where=mask[..., None].astype(bool))
        labels.append(pasted)
        segments.append(points)
    return Sample(image, np.stack(labels), tuple(segments))


def cutout(sample: Sample, p: float, rng: Generator) -> Sample:
    """With probability `p` cover random rectangles; labels hidden by over 60 % are dropped (arXiv:1708.04552)."""
    if rng.random() >= p:
        return sample
    image = sample.image.copy()
    height, width = image.shape[:2]
    hidden = np.zeros((height, width), bool)
    for part, count in CUTOUT_HOLES:
        for _ in range(count):
            hole_h, hole_w = rng.integers(1, np.array((int(height * part) + 2, int(width * part) + 2)))
            top, left = rng.integers(np.array((1 - hole_h, 1 - hole_w)), np.array((height, width)))
            hole = np.s_[max(top, 0) : top + hole_h, max(left, 0) : left + hole_w]
            image[hole], hidden[hole] = rng.integers(64, 192, 3), True
    outer = np.concatenate((np.floor(sample.labels[:, 1:3]), np.ceil(sample.labels[:, 3:])), 1).astype(int)
    keep = [i for i, (x1, y1, x2, y2) in enumerate(outer) if hidden[y1:y2, x1:x2].mean() <= MAX_CUTOUT]
    return Sample(image, sample.labels[keep], tuple([sample.segments[i] for i in keep]))


class Tile(NamedTuple):
    """An image whose top left corner lies at (x, y) of the canvas; it may reach over the canvas's edges."""

    sample: Sample
    x: int
    y: int


def mosaic4(samples: Sequence[Sample], size: int, hyp: Hyp, rng: Generator) -> Sample:
    """Lay four images around a random point of a 2 x size canvas, seen through a random warp -> (size, size).

    The images' long side should be `size` already; which of them goes where is drawn.
    """
    cross_x, cross_y = np.rint(rng.uniform(0.5 * size, 1.5 * size, 2)).astype(int)
    tiles = []
    for slot, which in enumerate(rng.permutation(4)):
        width, height = samples[which].size
        is_right, is_low = slot % 2, slot // 2
        tiles.append(Tile(samples[which], cross_x - (not is_right) * width, cross_y - (not is_low) * height))
    return _view(tiles, size, hyp, rng)


def mosaic9(samples: Sequence[Sample], size: int, hyp: Hyp, rng: Generator) -> Sample:
    """Lay three rows of three images, a random 2 x size window of which is seen through a random warp -> (size, size).

    The first image is the middle one; the others are pushed against it from their side, without overlap.
    """
    order = np.insert(1 + rng.permutation(8), 4, 0)
    grid = [[samples[i] for i in row] for row in order.reshape(3, 3)]
    left, top = size - rng.integers(0, size + 1, 2)  # where the middle image lies in the window
    right = left + max(row[1].size[0] for row in grid)
    bottom = top + max(sample.size[1] for sample in grid[1])
    tiles = []
    for row, y_low in zip(grid, (None, top, bottom), strict=True):
        for sample, x_low in zip(row, (None, left, right), strict=True):
            x = left - sample.size[0] if x_low is None else x_low
            y = top - sample.size[1] if y_low is None else y_low
            tiles.append(Tile(sample, x, y))
    return _view(tiles, size, hyp, rng)


def _view(tiles: Sequence[Tile], size: int, hyp: Hyp, rng: Generator) -> Sample:
    """Lay tiles on a canvas of twice `size`, copy and paste among them, and take a warped view of its middle."""
    side = 2 * size
    samples = [tile.sample for tile in tiles]
    offsets = np.repeat([(tile.x, tile.y) for tile in tiles], [len(sample.labels) for sample in samples], axis=0)
    labels, segments = warp_labels(  # cut to the canvas; sizes are judged later, when they are final
        np.concatenate([sample.labels for sample in samples]),
        [points for sample in samples for points in sample.segments],
        Warp(np.eye(3), 1.0, (side, side)),
        min_side=0.0,
        offsets=offsets.astype(float),
    )
    warp = random_warp((side, side), (size, size), hyp, rng)
    if hyp.copy_paste > 0 and any(len(points) for points in segments):
        canvas = copy_paste(Sample(_draw(tiles, (0, 0, side, side)), labels, segments), hyp.copy_paste, rng)
        return Sample(Sketch(((canvas.image, warp),)), *warp_labels(canvas.labels, canvas.segments, warp))
    window = _window(warp, side)
    seen = warp._replace(matrix=warp.matrix @ shift(*window[:2]))
    return Sample(Sketch(((_draw(tiles, window), seen),)), *warp_labels(labels, segments, warp))


def _window(warp: Warp, side: int) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 of the part of the canvas that the warped view shows, at least one pixel wide."""
    if warp.matrix[2, :2].any():
        return 0, 0, side, side  # under perspective the view may reach the horizon
    view = np.array(((0, 0), (1, 0), (1, 1), (0, 1)), float) * warp.size
    corners = warp_points(view, np.linalg.inv(warp.matrix))
    x1, y1 = np.clip(np.floor(corners.min(0)).astype(int) - 2, 0, side - 1)  # 2: neighbours that interpolation reads
    x2, y2 = np.clip(np.ceil(corners.max(0)).astype(int) + 2, 1, side)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _draw(tiles: Sequence[Tile], window: tuple[int, int, int, int]) -> np.ndarray:
    """Draw the pixels of a window x1, y1, x2, y2 of the canvas, grey where no tile lies.

    At once, or the sketch of a mosaic would hold all of its images until the batch is put together.
    """
    x1, y1, x2, y2 = window
    canvas = np.full((y2 - y1, x2 - x1, 3), GREY, np.uint8)
    for sample, x, y in tiles:
        width, height = sample.size
        from_x, from_y, to_x, to_y = max(x, x1), max(y, y1), min(x + width, x2), min(y + height, y2)
        if from_x < to_x and from_y < to_y:
            seen = sample.image[from_y - y : to_y - y, from_x - x : to_x - x]
            canvas[from_y - y1 : to_y - y1, from_x - x1 : to_x - x1] = seen
    return canvas


def rare_effects(p: float, rng: Generator) -> tuple[tuple[str, int], ...]:
    """Draw effects, each with probability `p`: blur or median-blur over so many pixels, grey, even out (CLAHE)."""
    blurs = [(name, int(rng.choice((3, 5, 7)))) for name in ("blur", "median") if rng.random() < p]
    return (*blurs, *[(name, 0) for name in ("grey", "even") if rng.random() < p])


def train_transforms(sample: Sample, hyp: Hyp, rng: Generator) -> Sample:
    """Change colours and flip: what a training image gets after its geometry."""
    effects = rare_effects(hyp.albumentations, rng) if hyp.albumentations else ()
    colours = hsv_factors(hyp.hsv_h, hyp.hsv_s, hyp.hsv_v, rng)
    sample = replace(sample, source=replace(Sketch.of(sample.source), effects=effects, colours=colours))
    sample = flip(sample, 1) if rng.random() < hyp.flipud else sample
    return flip(sample, 0) if rng.random() < hyp.fliplr else sample
