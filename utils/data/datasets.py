"""Images with their labels, as items, batches and loaders, for training and validation.

An item depends on its `SampleKey` and the data set's seed only, never on the process that makes it or on what was made
before: one seed gives the same batches with any number of workers.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.base.config import Hyp
from utils.base.files import printable
from utils.base.log import LOGGER
from utils.boxes.convert import xywhn2xyxy, xyxy2xywhn
from utils.data.augmentations import Sample, mixup, mosaic4, mosaic9, random_perspective, train_transforms
from utils.data.image_cache import open_cache
from utils.data.label_arrays import LabelIndex, Pieces
from utils.data.label_index import load_index
from utils.data.painting import Sketch
from utils.data.samplers import EpochSampler, Item, SampleKey, Shapes, collate, collate_quad, rect_shapes
from utils.data.tiles import draw_window, placed
from utils.distributed.processes import Team, world_size
from utils.distributed.shared_memory import ALONE, share
from utils.images.letterbox import GREY, fit_longest, letterbox

MAX_STAND_INS = 0.25  # part of a data set's images that may be unreadable before a result means nothing


class DetectionDataset(Dataset):
    """Images and labels of folders, text lists or shards, as items for a detector.

    What is large lies in shared memory: loader processes hold no copy of it, whether forked or spawned, and neither do
    the other processes of a machine.
    """

    def __init__(
        self,
        path: str | Path | Iterable[str | Path] | LabelIndex,
        imgsz: int = 640,
        batch_size: int = 16,
        augment: bool = False,
        hyp: Hyp | dict[str, Any] | None = None,
        rect: bool = False,
        image_weights: bool = False,
        cache: str | bool | None = None,
        single_cls: bool = False,
        stride: int = 32,
        pad: float = 0.0,
        prefix: str = "",
        seed: int = 0,
        nc: int | None = None,
        team: Team = ALONE,
        tile: int = 0,
    ) -> None:
        """Check the labels (or take their cache), order images by shape for `rect`, fill the image cache.

        With a `tile`, in pixels of the images on disk, `augment` looks at windows of this size, drawn anew each time;
        without `augment` items hold the image as on disk as well. Both read it from there: nothing is cached.
        The processes of a `team` share the work and what comes of it; all of them must make the data set. Raises
        ValueError when no image is usable, or a class is not below `nc` (file and line are named).
        """
        self.rect = rect and not image_weights
        prepare = partial(_prepared, single_cls=single_cls, nc=nc, by_shape=self.rect)
        if isinstance(path, LabelIndex):
            with team.agreed():
                index = prepare(path) if team.is_first else None
            index = LabelIndex.shared(index, team)
        else:
            index = load_index(path, prefix, team=team, prepare=prepare)
        self.index, self.n, self.problems = index, len(index), index.problems
        # (n, 5) labels of each image: class, cx, cy, w, h in 0..1; all in one array are `index.all_labels`
        self.labels, self.img_files = Pieces(self.n, index.labels), Pieces(self.n, index.path)
        self.imgsz, self.batch_size, self.stride, self.seed = imgsz, batch_size, stride, seed
        self.augment, self.image_weights, self.tile = augment, image_weights, tile
        self.hyp = hyp if isinstance(hyp, Hyp) else Hyp.load(hyp or {})
        self.batch_shapes = rect_shapes(index.sizes, batch_size, imgsz, stride, pad) if self.rect else None
        # shared, so that weighted draws reach the workers; without weights every process writes the same
        arrays = {"partners": np.arange(self.n), "stand_ins": np.zeros(self.n, dtype=bool)}
        self._shared = share(arrays if team.is_first else None, team)
        self.paints = True  # set to False before the first item, for sketches that `paint_batch` paints on a GPU
        self._lost = 0  # images that could not be read, as last said
        if tile and cache:
            LOGGER.warning(f"{prefix}images are not cached: tiles are cut from the images as they are on disk")
        self._cache = open_cache(cache if not tile else None, index, imgsz, augment, prefix, team)

    def __len__(self) -> int:
        return self.n

    @property
    def shapes(self) -> np.ndarray:
        """(n, 2) width and height of each image."""
        return self.index.sizes.astype(np.float64)

    @property
    def indices(self) -> np.ndarray:
        """(n,) images that mosaics draw their partners from: all of them, or this epoch's weighted draw."""
        return self._shared["partners"]

    def load_image(self, position: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Return an image with its longer side at `imgsz`, uint8 BGR, and its own (height, width).

        With a `tile` the image is as on disk. Raises ValueError when the file cannot be decoded.
        """
        if self._cache is not None and (image := self._cache.get(position)) is not None:
            width, height = self.index.sizes[position].tolist()
            return image, (height, width)
        image = self.index.image(position)
        return image if self.tile else fit_longest(image, self.imgsz, self.augment), image.shape[:2]

    def load_sample(self, position: int, rng: Generator) -> tuple[Sample, tuple[int, int]]:
        """Return an image as `load_image` does with its labels in pixels, and its own (height, width).

        In training with a `tile` it is a window of the image, fitted, or the whole one.
        An image that stopped being readable since it was checked becomes a grey one without labels: it is named once,
        and counted for as long as it cannot be read.
        """
        stand_ins = self._shared["stand_ins"]
        try:
            image, original = self.load_image(position)
        except ValueError as error:
            if not stand_ins[position]:
                LOGGER.warning(f"{error} (a grey image stands in)")
            stand_ins[position] = True
            image, original = np.full((self.imgsz, self.imgsz, 3), GREY, dtype=np.uint8), (self.imgsz, self.imgsz)
            return Sample(image, np.zeros((0, 5), dtype=np.float32)), original
        if stand_ins[position]:
            stand_ins[position] = False
        height, width = image.shape[:2]
        sample = self._in_pixels(position, image, (width, height), (0.0, 0.0))
        if self.tile and self.augment:
            sample = draw_window(sample, self.tile, rng)
            original = sample.image.shape[:2]
            image = fit_longest(sample.image, self.imgsz)
            sample = placed(sample, image, np.divide(image.shape[1::-1], original[::-1]).tolist())
        return sample, original

    def check_stand_ins(self) -> None:
        """Say how many images could not be read when they were last needed, where that is news.

        Raises ValueError where they are more than `MAX_STAND_INS` of all: what comes of them is no result.
        """
        lost = np.flatnonzero(self._shared["stand_ins"])
        first = f", the first {printable(self.index.path(int(lost[0])))}" if len(lost) else ""
        what = f"{len(lost)} of {self.n} images could not be read{first}"
        if len(lost) > MAX_STAND_INS * self.n:
            raise ValueError(f"{what}: too many to go on (more than {MAX_STAND_INS:.0%}); check the files or the disk")
        if len(lost) not in (0, self._lost):
            LOGGER.warning(f"{what}: grey images without labels stand in")
        self._lost = len(lost)

    def _in_pixels(self, position: int, image: np.ndarray, size: Sequence[float], offset: Sequence[float]) -> Sample:
        """Return the labels of an image on `image`, in which it covers `size` (w, h) pixels from `offset` (x, y) on."""
        rows = self.index.labels(position)
        labels = np.empty_like(rows)
        labels[:, 0] = rows[:, 0]
        labels[:, 1:] = xywhn2xyxy(rows[:, 1:], *size, *offset)
        segments = self.index.segments(position) if self.augment else ()
        scale, shift = np.array(size, dtype=np.float32), np.array(offset, dtype=np.float32)
        return Sample(image, labels, tuple([points * scale + shift if len(points) else points for points in segments]))

    def _mosaic(self, position: int, rng: Generator) -> Sample:
        nine = rng.random() < self.hyp.mosaic9
        others = self.indices[rng.integers(self.n, size=8 if nine else 3)]
        samples = [self.load_sample(int(one), rng)[0] for one in (position, *others)]
        return (mosaic9 if nine else mosaic4)(samples, self.imgsz, self.hyp, rng)

    def _single(self, position: int, rng: Generator) -> tuple[Sample, Shapes, Tensor | None]:
        sample, (height0, width0) = self.load_sample(position, rng)
        fitted, original = sample.image, None
        if self.tile and not self.augment:
            fitted, original = fit_longest(fitted, self.imgsz, smooth=False), torch.from_numpy(fitted)
        height, width = fitted.shape[:2]
        shape = (self.imgsz, self.imgsz)
        if self.batch_shapes is not None:
            shape = tuple(self.batch_shapes[position // self.batch_size].tolist())
        image, ratio, pad = letterbox(fitted, shape, auto=False, scaleup=self.augment)
        shapes = (height0, width0), ((height / height0, width / width0), pad)
        if self.tile and self.augment:
            sample = placed(sample, image, ratio, pad)
        elif len(sample.labels):
            sample = self._in_pixels(position, image, (ratio[0] * width, ratio[1] * height), pad)
        else:
            sample = Sample(image, sample.labels)
        return (random_perspective(sample, self.hyp, rng) if self.augment else sample), shapes, original

    def __getitem__(self, key: int | SampleKey) -> Item:
        key = key if isinstance(key, SampleKey) else SampleKey(int(key))
        rng = np.random.default_rng([self.seed, key.epoch, key.position, key.repeat])
        if self.augment and not self.rect and not key.plain and rng.random() < self.hyp.mosaic:
            sample, shapes, original = self._mosaic(key.position, rng), None, None  # no image to scale results back to
            if rng.random() < self.hyp.mixup:
                partner = int(self.indices[rng.integers(self.n)])
                sample = mixup(sample, self._mosaic(partner, rng), rng)
        else:
            sample, shapes, original = self._single(key.position, rng)
        if self.augment:
            sample = train_transforms(sample, self.hyp, rng)
        width, height = sample.size
        targets = torch.zeros(len(sample.labels), 6)
        if len(targets):
            targets[:, 1] = torch.from_numpy(sample.labels[:, 0])
            targets[:, 2:] = torch.from_numpy(xyxy2xywhn(sample.labels[:, 1:], width, height, clip=True, eps=1e-3))
        if self.paints:
            image: Tensor | Sketch = torch.from_numpy(np.ascontiguousarray(sample.image[..., ::-1].transpose(2, 0, 1)))
        else:
            image = Sketch.of(sample.source)
        return Item(image, targets, self.index.path(key.position), shapes, key, original)


def _prepared(index: LabelIndex, single_cls: bool, nc: int | None, by_shape: bool) -> LabelIndex:
    """Return the index with its classes made one or checked, and wide images before tall ones where asked."""
    if single_cls:
        labels = index.all_labels * np.array((0, 1, 1, 1, 1), np.float32)
        index = LabelIndex({**index.arrays, "labels": labels}, index.counts, index.problems)
    elif nc is not None:
        index.check_classes(nc)
    return index.take(np.argsort(index.sizes[:, 1] / index.sizes[:, 0], kind="stable")) if by_shape else index


def _start_worker(_: int) -> None:
    """Use one thread a worker: workers are the parallelism. Ctrl+C is for the main process, which needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def create_dataloader(
    path: str | Path | Iterable[str | Path] | LabelIndex,
    imgsz: int,
    batch_size: int,
    stride: int,
    single_cls: bool = False,
    hyp: Hyp | dict[str, Any] | None = None,
    augment: bool = False,
    cache: str | bool | None = None,
    pad: float = 0.0,
    rect: bool = False,
    rank: int = -1,
    workers: int = 8,
    image_weights: bool = False,
    quad: bool = False,
    prefix: str = "",
    shuffle: bool = False,
    seed: int = 0,
    nc: int | None = None,
    tile: int = 0,
) -> tuple[DataLoader, DetectionDataset]:
    """Return a loader of `Batch`es and its data set; as in v6.1, with a `seed`, `nc` to check the classes, and `tile`.

    Before each epoch call `loader.sampler.set_epoch(epoch, plain)`, and `set_weights` when `image_weights` is on. A
    batch is at most the whole data set. `rank` >= 0: this process's share only; the processes of a machine make the
    data set together, so all must come here. Raises ValueError as the data set does.
    """
    dataset = DetectionDataset(
        path, imgsz, batch_size, augment, hyp, rect, image_weights, cache, single_cls, stride, pad, prefix, seed, nc,
        team=Team.of_this_machine() if rank >= 0 else ALONE, tile=tile,
    )  # fmt: skip
    batch_size = min(batch_size, len(dataset))
    processors = (os.cpu_count() or 1) // max(torch.cuda.device_count(), 1)
    helpers = 2 if tile else 0  # for batches of one, which are large images where there are tiles
    workers = min(processors, batch_size if batch_size > 1 else helpers, workers)
    world = world_size() if rank >= 0 else 1
    sampler = EpochSampler(dataset.indices, shuffle, seed, max(rank, 0), world, batch_size, grouped=dataset.rect)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=partial(collate_quad, seed=seed) if quad else collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )
    return loader, dataset
