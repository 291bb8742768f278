"""Which picture comes next: the order of an epoch, told to the workers with everything an item depends on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """What an item is made from, besides the files; the same key gives the same item in any process."""

    index: int
    epoch: int = 0
    plain: bool = False  # no mosaic, mixup or copy-paste: what the last epochs of a training may ask for
    repeat: int = 0  # the how-manieth time the picture comes up in this epoch (image weights draw some twice)


class EpochSampler(Sampler[SampleKey]):
    """Keys of one epoch in this process's share of the data.

    Shuffled or not; weighted when weights are set; whole batches of `batch_size` neighbours stay together when
    `grouped` (rectangular batches). Every rank gets the same number of keys (of batches, when grouped).
    """

    def __init__(
        self,
        partners: np.ndarray,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 1,
        grouped: bool = False,
    ) -> None:
        """`partners` (n,) is the data set's own array of mosaic partners; a weighted draw is written into it too."""
        self.partners, self.shuffle, self.seed = partners, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.batch_size, self.grouped = batch_size, grouped
        self.epoch, self.plain, self.done = 0, False, 0
        self.weights: np.ndarray | None = None

    def set_epoch(self, epoch: int, plain: bool = False, done: int = 0) -> None:
        """From the next pass over the loader on: another order, other random choices, perhaps plain pictures.

        `done` batches of the epoch are left out, as they were seen before an interruption.
        """
        self.epoch, self.plain, self.done = epoch, plain, done

    def set_weights(self, weights: np.ndarray | None) -> None:
        """From the next pass on, draw pictures and mosaic partners in proportion to `weights` (n,); None: all alike.

        Raises ValueError for a wrong number of weights or a negative or non-finite one. If all are 0, all count alike.
        """
        if weights is not None:
            weights = np.asarray(weights, dtype=np.float64)
            if weights.shape != (len(self.partners),) or not np.isfinite(weights).all() or (weights < 0).any():
                raise ValueError(f"image weights must be {len(self.partners)} numbers from 0 up, got {weights.shape}")
            weights = weights / weights.sum() if weights.any() else None
        self.weights = weights

    def _batches(self, rng: np.random.Generator) -> np.ndarray:
        """Neighbours in whole batches; the one that may be short stays the last of its rank."""
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
