"""Who am I among the processes of a run, and what do we agree on? The environment is read when asked, never at import.

Two process groups talk besides the one that averages gradients: all processes, and those of one machine. Both are gloo
and carry Python objects, so that asking the others never waits for a GPU. `join` makes them, `leave` ends them; outside
of a distributed run every function is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=3)  # how long processes wait for each other: sets of millions are checked by one of them
_groups: dict[str, Any] = {}


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


def is_joined() -> bool:
    """True once this process has met the others of a distributed run."""
    return dist.is_available() and dist.is_initialized()


def join(backend: str) -> None:
    """Meet the other processes that torchrun started; every one must come here. `backend` averages gradients.

    The launcher's store outlives its processes, and still has the addresses of those that died: after a restart they
    would be waited for. So every start meets in a place of its own.
    """
    store, number, size = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
    place = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=place, rank=number, world_size=size, timeout=PATIENCE)
    _groups["everybody"] = dist.new_group(backend="gloo", timeout=PATIENCE)
    machines: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(machines, os.environ.get("GROUP_RANK", "0"), group=_groups["everybody"])
    for machine in sorted(set(machines)):  # everyone makes every group, in the same order
        ranks = [number for number, where in enumerate(machines) if where == machine]
        group = dist.new_group(ranks, backend="gloo", timeout=PATIENCE)
        if rank() in ranks:
            _groups["machine"] = group


def leave() -> None:
    """Part from the other processes, if there were any."""
    _groups.clear()
    if is_joined():
        dist.destroy_process_group()


def gather(value: Any, machine: bool = False) -> list[Any]:
    """`value` of every process (of this machine's, if asked), by rank, in every process. Values are pickled."""
    if not is_joined():
        return [value]
    group = _groups.get("machine" if machine else "everybody")
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def gather_to_main(value: Any) -> list[Any] | None:
    """`value` of every process, by rank, in the main one; None in the others. Values are pickled."""
    if not is_joined():
        return [value]
    gathered: list[Any] | None = [None] * dist.get_world_size() if is_main() else None
    dist.gather_object(value, gathered, dst=0, group=_groups.get("everybody"))
    return gathered


def tell(value: Any, machine: bool = False) -> Any:
    """The main process's value, in every process (or that of each machine's first process). Values are pickled."""
    if not is_joined():
        return value
    group = _groups.get("machine" if machine else "everybody")
    told = [value]
    dist.broadcast_object_list(told, src=dist.get_global_rank(group, 0) if group else 0, group=group)
    return told[0]


def wait_for_all(machine: bool = False) -> None:
    """Go on when every process (of this machine, if asked) has come here."""
    if is_joined():
        dist.barrier(group=_groups.get("machine" if machine else "everybody"))


@contextmanager
def main_first() -> Iterator[None]:
    """The first process of each machine runs the block before the others do; every process must come here."""
    if local_rank() > 0:
        wait_for_all(machine=True)
    yield
    if local_rank() == 0:
        wait_for_all(machine=True)


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Average of a tensor over all processes; the tensor itself outside of a distributed run."""
    if not is_joined():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class Vote:
    """Whether any process wants to stop, asked once a step without waiting: the answer is that of the step before.

    Every process hears the same answer at the same step, so all of them stop at the same place.
    """

    def __init__(self) -> None:
        self._pending: Any = None
        self._count = torch.zeros(1, dtype=torch.int32)

    def __call__(self, wish: bool) -> bool:
        """Cast this step's vote and hear the last one's result; alone, the wish itself."""
        if not is_joined():
            return wish
        agreed = False
        if self._pending is not None:
            self._pending.wait()
            agreed = bool(self._count.item())
        self._count = torch.tensor([int(wish)], dtype=torch.int32)
        self._pending = dist.all_reduce(self._count, group=_groups.get("everybody"), async_op=True)
        return agreed

    def finish(self) -> bool:
        """Hear the result of the last vote, so that none is left on its way."""
        if self._pending is None:
            return False
        self._pending.wait()
        self._pending = None
        return bool(self._count.item())


def loader_workers(wanted: int, device: torch.device) -> int:
    """How many loader processes a run should have: what is wanted, but where the network runs on the CPU only the cores
    that it can spare. Its threads spin while they wait for each other, and a loader beside them slows a small machine
    several times more than it helps.
    """
    return wanted if device.type != "cpu" else max(0, min(wanted, (os.cpu_count() or 1) - 2))
