"""What a loader hands out: items, batches, rectangular shapes, and four items as one of twice the side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.data.samplers import SampleKey

MOSAIC_SHAPES = None  # a mosaic has no picture to scale results back to
Shapes = tuple[tuple[int, int], tuple[tuple[float, float], tuple[float, float]]] | None


class Item(NamedTuple):
    """One picture: image (3, H, W) uint8 RGB, targets (n, 6) 0, class, cx, cy, w, h in 0..1, where it came from.

    `shapes` is ((h0, w0), ((h / h0, w / w0), (pad x, pad y))), None for mosaics.
    """

    image: Tensor
    targets: Tensor
    path: str
    shapes: Shapes
    key: SampleKey


class Batch(NamedTuple):
    """Pictures (B, 3, H, W) uint8 RGB; targets (N, 6) with the picture's number first; paths and shapes of each."""

    images: Tensor
    targets: Tensor
    paths: tuple[str, ...]
    shapes: tuple[Shapes, ...]


def rect_shapes(sizes: np.ndarray, batch_size: int, imgsz: int, stride: int, pad: float) -> np.ndarray:
    """Height and width (batches, 2) for each run of `batch_size` pictures, given their (n, 2) width and height.

    A batch whose pictures are all lying (all standing) gets the smallest shape that fits them, any other a square.
    """
    aspect = sizes[:, 1] / sizes[:, 0]
    shapes = []
    for start in range(0, len(sizes), batch_size):
        low, high = aspect[start : start + batch_size].min(), aspect[start : start + batch_size].max()
        shapes.append((high, 1.0) if high < 1 else (1.0, 1 / low) if low > 1 else (1.0, 1.0))
    return np.ceil(np.array(shapes) * imgsz / stride + pad).astype(int) * stride


def collate(items: Sequence[Item]) -> Batch:
    """Items of one shape to a batch."""
    targets = []
    for number, item in enumerate(items):
        rows = item.targets.clone()
        rows[:, 0] = number
        targets.append(rows)
    images = torch.stack([item.image for item in items])
    return Batch(images, torch.cat(targets), tuple(i.path for i in items), tuple(i.shapes for i in items))


def collate_quad(items: Sequence[Item], seed: int) -> Batch:
    """Every four items to one picture of twice the side: the first enlarged, or all four side by side, by chance.

    What is left over after the fours is enlarged, so that no short batch is lost.
    """
    joined, full = [], len(items) // 4 * 4
    for start in range(0, full, 4):
        four = items[start : start + 4]
        rng = np.random.default_rng([seed, *four[0].key, 4])
        joined.append(_enlarged(four[0]) if rng.random() < 0.5 else _tiled(four))
    return collate([*joined, *map(_enlarged, items[full:])])


def _enlarged(item: Item) -> Item:
    image = F.interpolate(item.image[None].float(), scale_factor=2.0, mode="bilinear", align_corners=False)[0]
    return item._replace(image=image.round().to(torch.uint8))


def _tiled(four: Sequence[Item]) -> Item:
    """First above second on the left, third above fourth on the right."""
    columns = [torch.cat((four[i].image, four[i + 1].image), 1) for i in (0, 2)]
    targets = []
    for number, item in enumerate(four):
        rows = item.targets.clone()
        rows[:, 2] += number // 2
        rows[:, 3] += number % 2
        rows[:, 2:] *= 0.5
        targets.append(rows)
    return four[0]._replace(image=torch.cat(columns, 2), targets=torch.cat(targets))
