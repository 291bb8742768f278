"""The processes of one machine that share a task; alone, a team of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from utils.distributed import processes as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """Which of how many processes this one is. All of them must call `gather`, `tell` and `agreed`, in one order."""

    number: int = 0
    size: int = 1

    @classmethod
    def of_this_machine(cls) -> Team:
        """All of the run's processes on this machine, which must all ask; alone outside of a distributed run."""
        ranks = dist.gather(dist.rank(), machine=True)
        return cls(ranks.index(dist.rank()), len(ranks))

    @property
    def is_first(self) -> bool:
        """True in the one process that does what need not be done by all."""
        return self.number == 0

    def mine(self, work: Sequence[T]) -> Sequence[T]:
        """This process's share of the work: every `size`-th piece."""
        return work[self.number :: self.size]

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, in all of them. Values are pickled: large arrays go through `shared_memory`."""
        return [value] if self.size == 1 else dist.gather(value, machine=True)

    def tell(self, value: T) -> T:
        """The first process's value, in all of them."""
        return value if self.size == 1 else dist.tell(value, machine=True)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What one process raises in the block, all raise at its end, where they have waited for each other.

        So none is left waiting. Of several errors the one of the lowest number is raised.
        """
        if self.size == 1:
            yield
            return
        own = None
        try:
            yield
        except Exception as error:  # whatever it is, the others must hear of it
            own = error
        told = self.gather(None if own is None else _portable(own))
        number = next((number for number, error in enumerate(told) if error is not None), None)
        if number == self.number and own is not None:
            raise own
        if number is not None:
            raise told[number]


def _portable(error: Exception) -> Exception:
    """An error that pickles and says the same; its kind is kept where callers tell it apart."""
    if isinstance(error, OSError) and error.strerror is not None:
        return OSError(error.errno, error.strerror, error.filename)
    for kind in (OSError, ValueError, MemoryError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
