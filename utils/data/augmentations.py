"""Pictures and their labels on the way to the network: letterbox, colour, geometry, mosaics and other mixtures.

A transform takes a `Sample` and returns a new one; chance comes from a generator that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from utils.base.config import Hyp
from utils.data.warp import Sample, Warp, random_warp, shift, warp_labels, warp_points
from utils.images.letterbox import GREY

MAX_HIDDEN = 0.3  # copy-paste: the most a pasted object may cover of any other box
MAX_CUTOUT = 0.6  # the most of a box that holes may take before its label goes
CUTOUT_HOLES = ((0.5, 1), (0.25, 2), (0.125, 4), (0.0625, 8), (0.03125, 16))  # part of the picture's side, how many

Transform = Callable[[Sample, Generator], Sample]


def augment_hsv(im: np.ndarray, hgain: float, sgain: float, vgain: float, rng: Generator) -> np.ndarray:
    """Multiply hue, saturation and value of a BGR picture by independent factors from 1 - gain to 1 + gain."""
    factors = 1 + rng.uniform(-1, 1, 3) * (hgain, sgain, vgain)
    if not (hgain or sgain or vgain):
        return im
    levels = np.arange(256)[:, None] * factors
    levels[:, 0] %= 180  # OpenCV's hue is in steps of 2 degrees
    table = np.minimum(levels, 255).astype(np.uint8)[None]  # (1, 256, 3): one look-up for all three channels
    hsv = cv2.cvtColor(im, cv2.COLOR_BGR2HSV)
    hsv = cv2.LUT(hsv, table, dst=hsv)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=hsv)


def hist_equalize(im: np.ndarray, clahe: bool = True, bgr: bool = False) -> np.ndarray:
    """Even out the brightness histogram of an RGB (or BGR) picture, locally (CLAHE) or over the whole of it."""
    to_yuv, back = (cv2.COLOR_BGR2YUV, cv2.COLOR_YUV2BGR) if bgr else (cv2.COLOR_RGB2YUV, cv2.COLOR_YUV2RGB)
    luma, blue, red = cv2.split(cv2.cvtColor(im, to_yuv))
    luma = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(luma) if clahe else cv2.equalizeHist(luma)
    return cv2.cvtColor(cv2.merge((luma, blue, red)), back)


def flip_left_right(sample: Sample) -> Sample:
    """The mirror image."""
    width = sample.image.shape[1]
    labels = sample.labels.copy()
    labels[:, [1, 3]] = width - labels[:, [3, 1]]
    segments = tuple([np.stack((width - points[:, 0], points[:, 1]), 1) for points in sample.segments])
    return Sample(cv2.flip(sample.image, 1), labels, segments)


def flip_up_down(sample: Sample) -> Sample:
    """The picture upside down (mirrored, not turned)."""
    height = sample.image.shape[0]
    labels = sample.labels.copy()
    labels[:, [2, 4]] = height - labels[:, [4, 2]]
    segments = tuple([np.stack((points[:, 0], height - points[:, 1]), 1) for points in sample.segments])
    return Sample(cv2.flip(sample.image, 0), labels, segments)


def warp_image(image: np.ndarray, warp: Warp) -> np.ndarray:
    """Resample a picture; what lies outside of it is grey."""
    height, width = image.shape[:2]
    if warp.size == (width, height) and np.allclose(warp.matrix, np.eye(3)):
        return image
    # OpenCV counts from the centre of the first pixel, labels from its edge
    matrix = shift(-0.5, -0.5) @ warp.matrix @ shift(0.5, 0.5)
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (GREY,) * 3}
    if warp.is_affine:
        return cv2.warpAffine(image, matrix[:2], warp.size, **border)
    return cv2.warpPerspective(image, matrix, warp.size, **border)


def random_perspective(sample: Sample, hyp: Hyp, rng: Generator, border: tuple[int, int] = (0, 0)) -> Sample:
    """Move, scale, turn, shear and tilt a picture at random, within `hyp`'s limits; `border` (y, x) pads each edge."""
    height, width = sample.image.shape[:2]
    warp = random_warp((width, height), (width + 2 * border[1], height + 2 * border[0]), hyp, rng)
    return Sample(warp_image(sample.image, warp), *warp_labels(sample.labels, sample.segments, warp))


def mixup(first: Sample, second: Sample, rng: Generator) -> Sample:
    """Blend two pictures of one size, about half and half, and keep the labels of both (arXiv:1710.09412)."""
    if first.image.shape != second.image.shape:
        raise ValueError(f"mixup needs pictures of one size, got {first.image.shape} and {second.image.shape}")
    share = rng.beta(32.0, 32.0)
    image = cv2.addWeighted(first.image, share, second.image, 1 - share, 0)
    return Sample(image, np.concatenate((first.labels, second.labels)), first.segments + second.segments)


def copy_paste(sample: Sample, p: float, rng: Generator) -> Sample:
    """Paste a share `p` of the objects that have polygons at their mirrored places (arXiv:2012.07177).

    An object is left out where it would hide 30 % or more of another label's box.
    """
    with_polygon = [i for i, points in enumerate(sample.segments) if len(points)]
    count = round(p * len(with_polygon))
    if not count:
        return sample
    image, width = sample.image.copy(), sample.image.shape[1]
    labels, segments = list(sample.labels), list(sample.segments)
    for i in rng.choice(with_polygon, count, replace=False):
        kind, x1, y1, x2, y2 = sample.labels[i]
        pasted = np.array((kind, width - x2, y1, width - x1, y2), np.float32)
        if (_hidden_part(pasted[1:], np.stack(labels)[:, 1:]) < MAX_HIDDEN).all():
            points = sample.segments[i] * np.float32((-1, 1)) + np.float32((width, 0))
            _paste_mirrored(image, sample.image, points)
            labels.append(pasted)
            segments.append(points)
    return Sample(image, np.stack(labels), tuple(segments))


def _hidden_part(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(4,) box, (n, 4) boxes -> the part (n,) of each of the others that the box covers."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    return sides.clip(0).prod(1) / np.maximum(areas, 1e-7)


def _paste_mirrored(target: np.ndarray, source: np.ndarray, points: np.ndarray) -> None:
    """Copy into `target` the pixels of the mirrored `source` that lie in the polygon; black ones too."""
    height, width = source.shape[:2]
    corners = np.rint(points - 0.5).astype(np.int32)  # pixel indices are centres
    x1, y1 = np.maximum(corners.min(0), 0)
    x2, y2 = np.minimum(corners.max(0) + 1, (width, height))
    mask = cv2.fillPoly(np.zeros((y2 - y1, x2 - x1), np.uint8), [corners - (x1, y1)], 1)
    mirrored = source[y1:y2, width - x2 : width - x1][:, ::-1]
    np.copyto(target[y1:y2, x1:x2], mirrored, where=mask[..., None].astype(bool))


def cutout(sample: Sample, p: float, rng: Generator) -> Sample:
    """With probability `p` cover random rectangles; labels hidden by over 60 % are dropped (arXiv:1708.04552)."""
    if rng.random() >= p:
        return sample
    image = sample.image.copy()
    height, width = image.shape[:2]
    hidden = np.zeros((height, width), bool)
    for part, count in CUTOUT_HOLES:
        for _ in range(count):
            hole_h, hole_w = rng.integers(1, (int(height * part) + 2, int(width * part) + 2))
            top, left = rng.integers((1 - hole_h, 1 - hole_w), (height, width))
            hole = np.s_[max(top, 0) : top + hole_h, max(left, 0) : left + hole_w]
            image[hole], hidden[hole] = rng.integers(64, 192, 3), True
    outer = np.concatenate((np.floor(sample.labels[:, 1:3]), np.ceil(sample.labels[:, 3:])), 1).astype(int)
    keep = [i for i, (x1, y1, x2, y2) in enumerate(outer) if hidden[y1:y2, x1:x2].mean() <= MAX_CUTOUT]
    return Sample(image, sample.labels[keep], tuple([sample.segments[i] for i in keep]))


class Tile(NamedTuple):
    """A picture whose top left corner lies at (x, y) of the canvas; it may reach over the canvas's edges."""

    sample: Sample
    x: int
    y: int


def mosaic4(samples: Sequence[Sample], size: int, hyp: Hyp, rng: Generator) -> Sample:
    """Four pictures around a random point of a 2 x size canvas, seen through a random warp -> (size, size).

    The pictures' long side should be `size` already; which of them goes where is drawn.
    """
    _check_count(samples, 4)
    cross_x, cross_y = np.rint(rng.uniform(0.5 * size, 1.5 * size, 2)).astype(int)
    tiles = []
    for slot, which in enumerate(rng.permutation(4)):
        height, width = samples[which].image.shape[:2]
        is_right, is_low = slot % 2, slot // 2
        tiles.append(Tile(samples[which], cross_x - (not is_right) * width, cross_y - (not is_low) * height))
    return _look_at(tiles, size, hyp, rng)


def mosaic9(samples: Sequence[Sample], size: int, hyp: Hyp, rng: Generator) -> Sample:
    """Three rows of three pictures, a random 2 x size window of which is seen through a random warp -> (size, size).

    The first picture is the middle one; the others are pushed against it from their side, without overlap.
    """
    _check_count(samples, 9)
    order = np.insert(1 + rng.permutation(8), 4, 0)
    grid = [[samples[i] for i in row] for row in order.reshape(3, 3)]
    left, top = size - rng.integers(0, size + 1, 2)  # where the middle picture lies in the window
    right = left + max(row[1].image.shape[1] for row in grid)
    bottom = top + max(sample.image.shape[0] for sample in grid[1])
    tiles = []
    for row, y_low in zip(grid, (None, top, bottom), strict=True):
        for sample, x_low in zip(row, (None, left, right), strict=True):
            x = left - sample.image.shape[1] if x_low is None else x_low
            y = top - sample.image.shape[0] if y_low is None else y_low
            tiles.append(Tile(sample, x, y))
    return _look_at(tiles, size, hyp, rng)


def _check_count(samples: Sequence[Sample], count: int) -> None:
    if len(samples) != count:
        raise ValueError(f"this mosaic takes {count} pictures, got {len(samples)}")


def _look_at(tiles: Sequence[Tile], size: int, hyp: Hyp, rng: Generator) -> Sample:
    """Lay tiles on a canvas of twice `size`, copy and paste among them, and take a warped view of its middle."""
    side = 2 * size
    labels, segments = _labels_on_canvas(tiles, side)
    warp = random_warp((side, side), (size, size), hyp, rng)
    if hyp.copy_paste > 0 and any(len(points) for points in segments):
        canvas = copy_paste(Sample(_draw(tiles, (0, 0, side, side)), labels, segments), hyp.copy_paste, rng)
        image, labels, segments = warp_image(canvas.image, warp), canvas.labels, canvas.segments
    else:
        window = _window(warp, side)
        image = warp_image(_draw(tiles, window), warp.after_shift(*window[:2]))
    return Sample(image, *warp_labels(labels, segments, warp))


def _labels_on_canvas(tiles: Sequence[Tile], side: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Labels and polygons of all tiles, cut to the canvas; sizes are judged later, when they are final."""
    everywhere = Warp(np.eye(3), 1.0, (side, side))
    labels, segments = [np.zeros((0, 5), np.float32)], []
    for sample, x, y in tiles:
        kept, polygons = warp_labels(sample.labels, sample.segments, everywhere.after_shift(x, y), min_side=0.0)
        labels.append(kept)
        segments.extend(polygons)
    return np.concatenate(labels), tuple(segments)


def _window(warp: Warp, side: int) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the part of the canvas that the warped view shows, at least one pixel wide."""
    if not warp.is_affine:
        return 0, 0, side, side  # under perspective the view may reach the horizon
    width, height = warp.size
    view = np.array(((0, 0), (width, 0), (width, height), (0, height)), float)
    corners = warp_points(view, np.linalg.inv(warp.matrix))
    x1, y1 = np.clip(np.floor(corners.min(0)).astype(int) - 2, 0, side - 1)  # 2: neighbours that interpolation reads
    x2, y2 = np.clip(np.ceil(corners.max(0)).astype(int) + 2, 1, side)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _draw(tiles: Sequence[Tile], window: tuple[int, int, int, int]) -> np.ndarray:
    """The pixels of a window of the canvas, grey where no tile lies."""
    x1, y1, x2, y2 = window
    canvas = np.full((y2 - y1, x2 - x1, 3), GREY, np.uint8)
    for sample, x, y in tiles:
        height, width = sample.image.shape[:2]
        from_x, from_y, to_x, to_y = max(x, x1), max(y, y1), min(x + width, x2), min(y + height, y2)
        if from_x < to_x and from_y < to_y:
            seen = sample.image[from_y - y : to_y - y, from_x - x : to_x - x]
            canvas[from_y - y1 : to_y - y1, from_x - x1 : to_x - x1] = seen
    return canvas


class Albumentations:
    """Rare pixel effects (blurs, grey, CLAHE, each with probability `p`) by the optional package of that name."""

    def __init__(self, p: float = 0.01) -> None:
        try:
            import albumentations as package
        except ImportError as error:
            raise ValueError(
                "albumentations above 0 in the hyp file needs its package: pip install 'albumentations>=2'"
            ) from error
        self.p = p
        self.effects = [kind(p=1.0) for kind in (package.Blur, package.MedianBlur, package.ToGray, package.CLAHE)]

    def __call__(self, sample: Sample, rng: Generator) -> Sample:
        """Geometry and labels stay as they are."""
        image = sample.image
        for effect in self.effects:
            if rng.random() < self.p:  # not by the package's Compose, which seeds all alike: then all of them or none
                effect.set_random_seed(int(rng.integers(2**31)))
                image = effect(image=image)["image"]
        return replace(sample, image=image)


def pixel_effects(hyp: Hyp) -> Albumentations | None:
    """The extra effects that a hyp file asks for; ValueError where their package is missing."""
    return Albumentations(hyp.albumentations) if hyp.albumentations else None


def train_transforms(sample: Sample, hyp: Hyp, rng: Generator, extra: Transform | None = None) -> Sample:
    """What a training picture gets after its geometry: `extra` pixel effects if asked for, colour, flips."""
    sample = extra(sample, rng) if extra else sample
    sample = replace(sample, image=augment_hsv(sample.image, hyp.hsv_h, hyp.hsv_s, hyp.hsv_v, rng))
    if rng.random() < hyp.flipud:
        sample = flip_up_down(sample)
    return flip_left_right(sample) if rng.random() < hyp.fliplr else sample
