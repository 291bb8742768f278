"""What the processes of a run share: the batches of a data set among them, and failures and weights with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Sampler

from utils.distributed.processes import gather, is_joined, rank, world_size

Result = TypeVar("Result")


def my_share() -> tuple[int, int]:
    """(first, stride): this process has the batches first, first + stride, ...; (0, 1) outside of a distributed run."""
    return (rank(), world_size()) if is_joined() else (0, 1)


def agreed(task: Callable[[], Result]) -> Result:
    """What `task` returns in this process, once it has succeeded in all of them; every process must come here.

    Where it fails in one, by a ValueError or OSError, all raise that error: nobody waits for a process that has gone.
    """
    if not is_joined():
        return task()
    result, error = None, None
    try:
        result = task()
    except (ValueError, OSError) as raised:
        error = raised
    if failures := [one for one in gather(error) if one is not None]:
        raise failures[0]
    return result


class BatchShare(Sampler[list[int]]):
    """The batches first, first + stride, ... of `count` pictures in their own order, as lists of their numbers.

    Together the processes have every picture once, none is padded or repeated: one may have a batch less than another,
    or none at all.
    """

    def __init__(self, count: int, batch_size: int, first: int = 0, stride: int = 1) -> None:
        self.count, self.batch_size = count, batch_size
        self.first, self.stride = first, stride

    def _starts(self) -> range:
        return range(self.first * self.batch_size, self.count, self.stride * self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts():
            yield list(range(start, min(start + self.batch_size, self.count)))

    def __len__(self) -> int:
        return len(self._starts())


def own_batches(loader: DataLoader, first: int, stride: int) -> DataLoader:
    """A loader of the batches first, first + stride, ... of `loader`, which does not shuffle; itself for stride 1."""
    if stride == 1:
        return loader
    return DataLoader(
        loader.dataset,
        batch_sampler=BatchShare(len(loader.dataset), loader.batch_size, first, stride),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        persistent_workers=loader.persistent_workers,
        generator=loader.generator,
    )


@torch.no_grad()
def copy_from_main(model: nn.Module) -> None:
    """Give `model` the main process's weights and statistics, in every process; all must come here.

    Batch norm's running statistics differ between processes unless they are synchronised, and so would the answers.
    """
    if not is_joined():
        return
    tensors = sorted(model.state_dict().values(), key=lambda tensor: str(tensor.dtype))
    for _, group in groupby(tensors, key=lambda tensor: tensor.dtype):
        same = list(group)
        flat = torch.cat([tensor.flatten() for tensor in same])
        dist.broadcast(flat, src=0)
        for tensor, values in zip(same, flat.split([tensor.numel() for tensor in same])):
            tensor.copy_(values.view_as(tensor))
