"""Which image comes next, and what a loader hands out: the order and the weights of an epoch, items and batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Sampler

from utils.data.batch_painting import Sketches
from utils.data.painting import Sketch


class SampleKey(NamedTuple):
    """What an item is made from, besides the files; the same key gives the same item in any process."""

    position: int  # of the image in its data set
    epoch: int = 0
    plain: bool = False  # no mosaic, mixup or copy-paste: what the last epochs of a training may want
    repeat: int = 0  # how often the image came up before in this epoch (image weights draw some twice)


@dataclass(eq=False)
class EpochSampler(Sampler[SampleKey]):
    """Keys of one epoch in this process's share of the data.

    Shuffled or not; weighted when weights are set; whole batches of `batch_size` neighbours stay together when
    `grouped` (rectangular batches). Every rank gets the same number of keys (of batches, when grouped).
    """

    partners: np.ndarray  # (n,) the data set's own array of mosaic partners; a weighted draw is written into it too
    shuffle: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    batch_size: int = 1
    grouped: bool = False
    weights: np.ndarray | None = field(default=None, init=False)
    epoch, plain, done = 0, False, 0

    def set_epoch(self, epoch: int, plain: bool = False, done: int = 0) -> None:
        """From the next pass over the loader on: another order, other random choices, perhaps plain images.

        `done` batches of the epoch are left out, as they were seen before an interruption.
        """
        self.epoch, self.plain, self.done = epoch, plain, done

    def set_weights(self, weights: np.ndarray | None) -> None:
        """From the next pass on, draw images and mosaic partners in proportion to `weights` (n,); None: all alike.

        Raises ValueError for a wrong number of weights or a negative or non-finite one. If all are 0, all count alike.
        """
        if weights is not None:
            weights = np.asarray(weights, dtype=np.float64)
            if weights.shape != (len(self.partners),) or not np.isfinite(weights).all() or (weights < 0).any():
                raise ValueError(f"image weights must be {len(self.partners)} numbers from 0 up, got {weights.shape}")
            weights = weights / weights.sum() if weights.any() else None
        self.weights = weights

    def _batches(self, rng: np.random.Generator) -> np.ndarray:
        """Return neighbours in whole batches; the one that may be short stays the last of its rank."""
        count = len(self.partners)
        starts = np.arange(0, count, self.batch_size)
        full = len(starts) - bool(count % self.batch_size)
        if self.shuffle:
            starts[:full] = rng.permutation(starts[:full])
        mine = starts[self.rank :: self.world_size]
        if len(mine) < -(-len(starts) // self.world_size):
            mine = np.append(mine, starts[0])
        return np.concatenate([np.arange(start, min(start + self.batch_size, count)) for start in mine])

    def _order(self) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.epoch])
        count = len(self.partners)
        if self.weights is not None:
            self.partners[:] = rng.choice(count, count, p=self.weights)
            order = self.partners.copy()
        else:
            self.partners[:] = np.arange(count)
            if self.grouped:
                return self._batches(rng)
            order = rng.permutation(count) if self.shuffle else np.arange(count)
        return np.resize(order, -(-count // self.world_size) * self.world_size)[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[SampleKey]:
        seen: dict[int, int] = {}
        for number, index in enumerate(self._order().tolist()):
            repeat = seen[index] = seen.get(index, -1) + 1
            if number >= self.done * self.batch_size:
                yield SampleKey(index, self.epoch, self.plain, repeat)

    def __len__(self) -> int:
        """Keys of a whole epoch, whatever part of it is done."""
        count = len(self.partners)
        if self.grouped and self.world_size > 1:
            return len(self._batches(np.random.default_rng(0)))
        return -(-count // self.world_size)


def labels_to_class_weights(labels: Sequence[np.ndarray], nc: int = 80) -> Tensor:
    """Return the inverse label frequency per class (nc,), summing to 1; a class without labels counts as having one.

    `labels` holds one (n, 5) array an image with the class first.
    """
    classes = np.concatenate([np.zeros(0), *(rows[:, 0] for rows in labels)])
    counts = np.bincount(classes.astype(int), minlength=nc)
    inverse = 1 / np.maximum(counts, 1)
    return torch.from_numpy(inverse / inverse.sum())


def labels_to_image_weights(
    labels: Sequence[np.ndarray], nc: int = 80, class_weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the summed class weight of each image's labels (images,); every class counts 1 without `class_weights`."""
    counts = np.array([np.bincount(rows[:, 0].astype(int), minlength=nc) for rows in labels]).reshape(-1, nc)
    return (counts * (np.ones(nc) if class_weights is None else np.asarray(class_weights))).sum(1)


def epoch_weights(labels: Sequence[np.ndarray], class_weights: Tensor, maps: np.ndarray) -> np.ndarray:
    """Return the images' shares in the next epoch: labels of classes rare or badly detected so far count more.

    `class_weights` (nc,) are times nc, `maps` (nc,) is the mAP of each class after the last epoch.
    """
    wanted = class_weights.cpu().numpy() * (1 - maps) ** 2 / len(maps)
    weights = labels_to_image_weights(labels, len(maps), wanted)
    return weights if weights.any() else np.ones(len(weights))


Shapes = tuple[tuple[int, int], tuple[tuple[float, float], tuple[float, float]]] | None


class Item(NamedTuple):
    """One image: image (3, H, W) uint8 RGB, targets (n, 6) 0, class, cx, cy, w, h in 0..1, where it came from.

    `shapes` is ((h0, w0), ((h / h0, w / w0), (pad x, pad y))), None for mosaics; `image` a sketch where a GPU paints;
    `original` the image as on disk, (h0, w0, 3) uint8 BGR, where it will be looked at in tiles.
    """

    image: Tensor | Sketch
    targets: Tensor
    path: str
    shapes: Shapes
    key: SampleKey
    original: Tensor | None = None


class Batch(NamedTuple):
    """Images (B, 3, H, W) uint8 RGB; targets (N, 6) with the image's number first; paths and shapes of each.

    `images` are sketches where a GPU paints.
    """

    images: Tensor | Sketches
    targets: Tensor
    paths: tuple[str, ...]
    shapes: tuple[Shapes, ...]


class TiledBatch(NamedTuple):
    """A `Batch` with the `originals` that its items have."""

    images: Tensor
    targets: Tensor
    paths: tuple[str, ...]
    shapes: tuple[Shapes, ...]
    originals: tuple[Tensor, ...]


def rect_shapes(sizes: np.ndarray, batch_size: int, imgsz: int, stride: int, pad: float) -> np.ndarray:
    """Return height and width (batches, 2) for each run of `batch_size` images, given their (n, 2) width and height.

    A batch whose images are all lying (all standing) gets the smallest shape that fits them, any other a square.
    """
    aspect = sizes[:, 1] / sizes[:, 0]
    shapes = []
    for start in range(0, len(sizes), batch_size):
        low, high = aspect[start : start + batch_size].min(), aspect[start : start + batch_size].max()
        shapes.append((high, 1.0) if high < 1 else (1.0, 1 / low) if low > 1 else (1.0, 1.0))
    return np.ceil(np.array(shapes) * imgsz / stride + pad).astype(int) * stride


def collate(items: Sequence[Item]) -> Batch | TiledBatch:
    """Put items of one shape together as a batch, painted or not."""
    targets = torch.cat([item.targets for item in items])
    targets[:, 0] = torch.arange(len(items)).repeat_interleave(torch.tensor([len(item.targets) for item in items]))
    sketches = [item.image for item in items if isinstance(item.image, Sketch)]
    painted = [item.image for item in items if isinstance(item.image, Tensor)]
    assert not sketches or not painted, "a batch is painted, or it is not"
    paths, shapes = zip(*((item.path, item.shapes) for item in items), strict=True)
    if sketches:
        return Batch(Sketches.pack(sketches), targets, paths, shapes)
    images, originals = torch.stack(painted), tuple(item.original for item in items if item.original is not None)
    return TiledBatch(images, targets, paths, shapes, originals) if originals else Batch(images, targets, paths, shapes)


def collate_quad(items: Sequence[Item], seed: int) -> Batch | TiledBatch:
    """Join every four items to one image of twice the side: the first enlarged, or all four side by side, by chance.

    Four lie first above second on the left, third above fourth on the right. What is left over after the fours is
    enlarged, so that no short batch is lost.
    """
    joined: list[Item] = []
    whole = len(items) // 4 * 4
    for four in (*(items[start : start + 4] for start in range(0, whole, 4)), *([one] for one in items[whole:])):
        images = [one.image for one in four if isinstance(one.image, Tensor)]
        image, targets = images[0], four[0].targets
        if len(four) < 4 or np.random.default_rng([seed, *four[0].key, 4]).random() < 0.5:
            large = F.interpolate(image[None].float(), scale_factor=2.0, mode="bilinear", align_corners=False)
            image = large[0].round().to(torch.uint8)
        else:
            image = torch.cat([torch.cat((images[i], images[i + 1]), 1) for i in (0, 2)], 2)
            targets = torch.cat([item.targets for item in four])
            number = torch.arange(4).repeat_interleave(torch.tensor([len(item.targets) for item in four]))
            targets[:, 2:4] += torch.stack((number // 2, number % 2), 1)
            targets[:, 2:] *= 0.5
        joined.append(four[0]._replace(image=image, targets=targets))
    return collate(joined)
