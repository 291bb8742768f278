"""Who am I among the processes of a run? The environment is read when asked, never at import."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def rank() -> int:
    """Global rank of this process, -1 outside of a distributed run."""
    return int(os.environ.get("RANK", -1))


def local_rank() -> int:
    """Rank on this machine, -1 outside of a distributed run."""
    return int(os.environ.get("LOCAL_RANK", -1))


def world_size() -> int:
    """Number of processes in the run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """True in the one process that writes files and talks."""
    return rank() in (-1, 0)


@contextmanager
def main_first(everybody: bool = True) -> Iterator[None]:
    """The main process of each machine runs the block before the others do (they find its cache files ready).

    Every process must come here, or nobody would get on: `everybody` is False where only the main process does.
    """
    together = everybody and dist.is_available() and dist.is_initialized()
    if together and local_rank() > 0:
        dist.barrier()
    yield
    if together and local_rank() == 0:
        dist.barrier()


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Average of a tensor over all processes; the tensor itself outside of a distributed run."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def agree(flag: bool, device: torch.device) -> bool:
    """The main process's yes or no, told to every process, so that all stop together."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    answer = torch.tensor([int(flag)], device=device)
    dist.broadcast(answer, src=0)
    return bool(answer.item())


def loader_workers(wanted: int, device: torch.device) -> int:
    """How many loader processes a run should have: what is wanted, but where the network runs on the CPU only the cores
    that it can spare. Its threads spin while they wait for each other, and a loader beside them slows a small machine
    several times more than it helps.
    """
    return wanted if device.type != "cpu" else max(0, min(wanted, (os.cpu_count() or 1) - 2))
