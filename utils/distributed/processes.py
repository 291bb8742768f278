"""Which process of a run this is, and what the processes agree on. The environment is read when asked, not at import.

Two process groups carry messages besides the one that averages gradients: all processes, and those of one machine. Both
are gloo and carry Python objects, so that no exchange waits for a GPU. `join` makes them, `leave` ends them; outside of
a distributed run every function is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from utils.base.log import Fault

T = TypeVar("T")
PATIENCE = timedelta(hours=3)  # how long processes wait for each other: sets of millions are checked by one of them
_groups: dict[bool, Any] = {}  # False: all processes, True: those of this machine


def rank() -> int:
    """Return this process's global rank, -1 outside of a distributed run."""
    return int(os.environ.get("RANK", -1))


def local_rank() -> int:
    """Return this process's rank on its machine, -1 outside of a distributed run."""
    return int(os.environ.get("LOCAL_RANK", -1))


def world_size() -> int:
    """Return the number of processes in the run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Return whether this is the one process that writes files and logs."""
    return rank() in (-1, 0)


def is_joined() -> bool:
    """Return whether this process has joined the others of a distributed run."""
    return dist.is_available() and dist.is_initialized()


def join(backend: str) -> None:
    """Join the other processes that torchrun started; every one must call it. `backend` averages gradients.

    The launcher's store outlives its processes, and still has the addresses of those that died: after a restart they
    would be waited for. So every start has a key prefix of its own.
    """
    store, number, size = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
    prefixed = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=prefixed, rank=number, world_size=size, timeout=PATIENCE)
    _groups[False] = dist.new_group(backend="gloo", timeout=PATIENCE)
    machines = gather(os.environ.get("GROUP_RANK", "0"))
    for machine in sorted(set(machines)):  # everyone makes every group, in the same order
        ranks = [number for number, where in enumerate(machines) if where == machine]
        group = dist.new_group(ranks, backend="gloo", timeout=PATIENCE)
        if rank() in ranks:
            _groups[True] = group


def leave() -> None:
    """Leave the process groups, if there are any."""
    _groups.clear()
    if is_joined():
        dist.destroy_process_group()


def gather(value: T, machine: bool = False) -> list[T]:
    """Return every process's `value` (every one of this machine, if `machine`), by rank. Values are pickled."""
    if not is_joined():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size(_groups.get(machine))
    dist.all_gather_object(gathered, value, group=_groups.get(machine))
    return gathered


def gather_to_main(value: T) -> list[T] | None:
    """Return every process's `value`, by rank, in the main one; None in the others. Values are pickled."""
    if not is_joined():
        return [value]
    gathered: list[Any] | None = [None] * dist.get_world_size() if is_main() else None
    dist.gather_object(value, gathered, dst=0, group=_groups.get(False))
    return gathered


def broadcast(value: Any, machine: bool = False) -> Any:
    """Return the main process's `value` (that of the machine's first, if `machine`) in every process. It is pickled."""
    if not is_joined():
        return value
    group, values = _groups.get(machine), [value]
    dist.broadcast_object_list(values, src=dist.get_global_rank(group, 0) if group else 0, group=group)
    return values[0]


@contextmanager
def agreed(machine: bool = False) -> Iterator[None]:
    """Wait at the block's end for all processes; what one of them raised in the block is then raised in all.

    So none waits for a process that has gone. Of several errors that of the lowest rank is raised.
    """
    if not is_joined():
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must know
        own = error
    errors = gather(None if own is None else _portable(own), machine)
    first = next((number for number, error in enumerate(errors) if error is not None), None)
    if first is not None:
        raise (own if first == dist.get_rank(_groups.get(machine)) else errors[first]) or RuntimeError


def _portable(error: Exception) -> Exception:
    """Return an error that pickles and says the same; its kind is kept where callers tell it apart."""
    if isinstance(error, OSError) and error.strerror is not None:
        return OSError(error.errno, error.strerror, error.filename)
    for kind in (OSError, ValueError, MemoryError, Fault):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the first process of each machine before the others run it; every process must call it."""
    if local_rank() > 0:
        gather(None, machine=True)
    yield
    if local_rank() == 0:
        gather(None, machine=True)


@dataclass(frozen=True)
class Team:
    """The processes of one machine that share a task: this one's number, and how many there are; alone, a team of one.

    All of them must call `gather`, `broadcast` and `agreed`, in one order.
    """

    number: int = 0
    size: int = 1

    @classmethod
    def of_this_machine(cls) -> Team:
        """Return the team of all of the run's processes on this machine, which must all call it."""
        ranks = gather(rank(), machine=True)
        return cls(ranks.index(rank()), len(ranks))

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that does what need not be done by all."""
        return self.number == 0

    def mine(self, work: Sequence[T]) -> Sequence[T]:
        """Return this process's share of the work: every `size`-th piece."""
        return work[self.number :: self.size]

    def gather(self, value: T) -> list[T]:
        """Return every process's `value`. Values are pickled: large arrays go through `shared_memory`."""
        return [value] if self.size == 1 else gather(value, machine=True)

    def broadcast(self, value: Any) -> Any:
        """Return the first process's `value`, in all of them."""
        return value if self.size == 1 else broadcast(value, machine=True)

    def agreed(self) -> AbstractContextManager[None]:
        """As the function `agreed`, among these processes."""
        return nullcontext() if self.size == 1 else agreed(machine=True)


# ---------------------------------------------------------------------------------------------- tensors and batches
def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor's mean over all processes; the tensor itself outside of a distributed run."""
    if not is_joined():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


@torch.no_grad()
def copy_from_main(model: nn.Module) -> None:
    """Give `model` the main process's weights and statistics, in every process; all must call it.

    Batch norm's running statistics differ between processes unless they are synchronised, and so would the answers.
    """
    if not is_joined():
        return
    tensors = sorted(model.state_dict().values(), key=lambda tensor: str(tensor.dtype))
    for _, group in groupby(tensors, key=lambda tensor: tensor.dtype):
        same = list(group)
        flat = torch.cat([tensor.flatten() for tensor in same])
        dist.broadcast(flat, src=0)
        for tensor, values in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(values.view_as(tensor))


class Vote:
    """Whether any process wants to stop, asked once a step without waiting: the answer is that of the step before.

    Every process gets the same answer at the same step, so all of them stop at the same place.
    """

    def __init__(self) -> None:
        self._pending: Any = None

    def __call__(self, stop: bool) -> bool:
        """Cast this step's vote and return the last one's result; alone, `stop` itself."""
        if not is_joined():
            return stop
        result = self.finish()
        self._count = torch.tensor([int(stop)], dtype=torch.int32)
        self._pending = dist.all_reduce(self._count, group=_groups.get(False), async_op=True)
        return result

    def finish(self) -> bool:
        """Return the result of the last vote, so that none is left on its way."""
        if self._pending is None:
            return False
        self._pending.wait()
        self._pending = None
        return bool(self._count.item())


def my_share() -> tuple[int, int]:
    """Return (first, stride): this process has the batches first, first + stride, ...; (0, 1) when it is alone."""
    return (rank(), world_size()) if is_joined() else (0, 1)


def own_batches(loader: DataLoader, first: int, stride: int) -> DataLoader:
    """Return a loader of the batches first, first + stride, ... of `loader`, which does not shuffle.

    Together the processes have every image once, none is padded or repeated: one may have a batch less than another, or
    none at all. With a stride of 1 it is `loader` itself.
    """
    if stride == 1:
        return loader
    count, size = len(cast(Sized, loader.dataset)), loader.batch_size or 1
    return DataLoader(
        loader.dataset,
        batch_sampler=[list(range(at, min(at + size, count))) for at in range(first * size, count, stride * size)],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        persistent_workers=loader.persistent_workers,
        generator=loader.generator,
    )


def loader_workers(wanted: int, device: torch.device) -> int:
    """Return how many loader processes a run gets: `wanted`, on a CPU at most the cores above two.

    Where the network runs on the CPU its threads spin while they wait for each other, and a loader beside them slows a
    small machine several times more than it helps.
    """
    return wanted if device.type != "cpu" else max(0, min(wanted, (os.cpu_count() or 1) - 2))
