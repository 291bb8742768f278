"""Tiles: overlapping squares of an image, in which objects that are small in it are not lost by scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from utils.base.options import Range
from utils.boxes.merging import MERGES
from utils.data.augmentations import Sample, Warp, shift, warp_labels

TILE_SIDES = Range(32, 32_736, also=(0,))  # pixels; 0: no tiles
OVERLAPS = Range(0, 0.9)
OVERLAP = 0.2
WHOLE, ANYWHERE = 0.2, 0.2  # of the images drawn for training: not cut, as they are looked at too; and not at an object
VISIBLE = 0.3  # the least part of a box that a window must show for its label to stay


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of `size` pixels on disk that share a part `overlap` of their side with the next, `batch` at a time."""

    size: int
    overlap: float = OVERLAP
    merge: str = MERGES[0]
    batch: int = 16

    def _starts(self, length: int) -> np.ndarray:
        """Where tiles begin along a side; the last one is moved back to end with the image."""
        last, step = max(length - self.size, 0), self.size - int(self.overlap * self.size)
        return np.minimum(np.arange(0, last + step, step), last)

    def count(self, width: int, height: int) -> int:
        """Return how many tiles `grid` has."""
        cut = max(width, height) > self.size
        return len(self._starts(width)) * len(self._starts(height)) if cut else 0

    def grid(self, width: int, height: int) -> np.ndarray:
        """Return the (n, 4) x1, y1, x2, y2 of the tiles of an image, row by row, all of one size; none where one tile
        would hold the image.
        """
        if not self.count(width, height):
            return np.zeros((0, 4), np.int64)
        x, y = (starts.ravel() for starts in np.meshgrid(self._starts(width), self._starts(height)))
        return np.stack((x, y, np.minimum(x + self.size, width), np.minimum(y + self.size, height)), 1)


def choose_tiling(size: int, overlap: float | None, merge: str | None, batch: int = 16) -> Tiling | None:
    """Return what the flags --tile, --tile-overlap and --tile-merge ask for, None without the first.

    Raises ValueError where one of the others stands alone.
    """
    if not size:
        for name, value in (("overlap", overlap), ("merge", merge)):
            if value is not None:
                raise ValueError(f"--tile-{name} {value} says how tiles are cut or merged: give --tile SIZE as well")
        return None
    return Tiling(size, OVERLAP if overlap is None else overlap, merge or MERGES[0], batch)


def placed(sample: Sample, image: np.ndarray, scale: Sequence[float], offset: Sequence[float] = (0, 0)) -> Sample:
    """Return the labels of a sample on another `image`, in which its own is scaled by (x, y) and moved by (x, y)."""
    labels = sample.labels.copy()
    labels[:, 1:] = labels[:, 1:] * np.tile(scale, 2) + np.tile(offset, 2)
    segments = [(points * np.array(scale) + np.array(offset)).astype(np.float32) for points in sample.segments]
    return Sample(image, labels, tuple(segments))


def draw_window(sample: Sample, size: int, rng: Generator) -> Sample:
    """Return a window of `size` pixels of an image for training, mostly one with the centre of an object drawn from its
    labels; sometimes one anywhere, sometimes the whole image. Labels that the window shows too little of are dropped.
    """
    height, width = sample.image.shape[:2]
    kind, part, spare = rng.random(), rng.random(2), np.maximum((width - size, height - size), 0)
    if kind < WHOLE or not spare.any():
        return sample
    corner = part * spare
    if kind < 1 - ANYWHERE and len(sample.labels):
        x1, y1, x2, y2 = sample.labels[rng.integers(len(sample.labels)), 1:]
        corner = (np.array((x1 + x2, y1 + y2)) / 2 - part * size).clip(0, spare)
    left, top = corner.astype(int).tolist()
    image = sample.image[top : top + size, left : left + size].copy()  # or the whole photograph would stay in memory
    ends = image.shape[1::-1]
    boxes = sample.labels[:, 1:] - np.array((left, top) * 2)
    sides = boxes[:, 2:] - boxes[:, :2]
    shown = (boxes[:, 2:].clip(0, ends) - boxes[:, :2].clip(0, ends)).prod(1)
    keep = np.flatnonzero(shown >= VISIBLE * sides.prod(1))
    segments = [sample.segments[i] for i in keep]
    return Sample(image, *warp_labels(sample.labels[keep], segments, Warp(shift(-left, -top), 1.0, ends), min_side=0))
