"""Who decodes next: cheap images on one lane, costly ones on another, each within bounds of threads and of memory."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
SMALL_SHARE = 8  # an image is small that takes at most this part of the work that one image may take,
SMALL_MEMORY = 4  # and at most this part of the memory


class Lane:
    """Work for `threads` threads, of at most `memory` bytes together; what waits is in none of them, cheapest first.

    For one event loop, not for threads. What needs more than all memory gets it when nothing else is being done.
    """

    def __init__(self, threads: int, memory: int, name: str) -> None:
        self.free, self.memory = threads, memory
        self.left = memory
        self._threads = ThreadPoolExecutor(threads, name)
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []  # work, number, memory, turn
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """How many wait."""
        return sum(not turn.done() for *_, turn in self._waiting)

    async def run(self, work: int, memory: int, job: Callable[[], Result]) -> Result:
        """The job's result, in a thread, when its turn has come.

        When the caller is cancelled while it waits, the job is never begun; when later, what it took is given back as
        soon as the thread is done with it.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        wanted = min(memory, self.memory)
        heapq.heappush(self._waiting, (work, next(self._numbers), wanted, turn))
        self._admit()
        try:
            await turn
            done = self._threads.submit(job)
        except BaseException:  # cancelled, before the turn had come or just then
            if turn.done() and not turn.cancelled():
                self._give_back(wanted)
            turn.cancel()
            self._admit()
            raise

        def give_back(_: Future[Result]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._give_back, wanted)

        done.add_done_callback(give_back)
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _admit(self) -> None:
        """Give turns to those at the front for whom there is a thread and memory."""
        while self._waiting and self.free:
            _, _, wanted, turn = self._waiting[0]
            if not turn.done() and wanted > self.left:
                return
            heapq.heappop(self._waiting)
            if not turn.done():
                self.free -= 1
                self.left -= wanted
                turn.set_result(None)

    def _give_back(self, wanted: int) -> None:
        self.free += 1
        self.left += wanted
        self._admit()


class Lanes:
    """Two lanes, so that whatever is being decoded there are always threads and memory for small images.

    work: the most of one image. memory: bytes for large images together; the small ones have half as much beside it.
    """

    def __init__(self, threads: int, work: int, memory: int) -> None:
        self.small_work, self.small_memory = work // SMALL_SHARE, memory // SMALL_MEMORY
        self.small = Lane(threads, memory // 2, "decoder")
        self.large = Lane(threads, memory, "decoder of large images")

    def __len__(self) -> int:
        """How many images wait."""
        return len(self.small) + len(self.large)

    async def run(self, work: int, memory: int, job: Callable[[], Result]) -> Result:
        """The result of a job of this work and memory, on its lane."""
        small = work <= self.small_work and memory <= self.small_memory
        return await (self.small if small else self.large).run(work, memory, job)

    def close(self) -> None:
        """Begin nothing more."""
        self.small.close()
        self.large.close()
