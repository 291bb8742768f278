"""What waits, and for what: images to be decoded in lanes, decoded ones to go through the network in batches.

Cheap images wait on one lane and costly ones on another, each within bounds of threads and of memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from utils.base.log import LOGGER
from utils.serving.uploads import Refusal

Result = TypeVar("Result")
LONGEST_WAIT = 60  # seconds; no client is asked to come back later than that
PACE_KEPT = 0.9  # how much of the old estimate stays when a batch was timed


class Lane:
    """Work for `free` threads, of at most `memory` bytes together; what waits is in none of them, cheapest first.

    For one event loop, not for threads. What needs more than all memory gets it when nothing else is being done.
    """

    def __init__(self, free: int, memory: int, name: str) -> None:
        self.free, self.memory, self.left = free, memory, memory
        self.threads = ThreadPoolExecutor(free, name)
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
            done = self.threads.submit(job)
        except BaseException:  # cancelled, before the turn had come or just then
            taken = turn.done() and not turn.cancelled()
            turn.cancel()
            self._admit(int(taken), wanted * taken)
            raise

        def give_back(_: Future[Result]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._admit, 1, wanted)

        done.add_done_callback(give_back)
        return await asyncio.wrap_future(done)

    def _admit(self, threads: int = 0, memory: int = 0) -> None:
        """Take back threads and memory, and give turns to those at the front for whom there is enough of both."""
        self.free += threads
        self.left += memory
        while self._waiting and self.free:
            _, _, wanted, turn = self._waiting[0]
            if not turn.done() and wanted > self.left:
                return
            heapq.heappop(self._waiting)
            if not turn.done():
                self.free -= 1
                self.left -= wanted
                turn.set_result(None)


@dataclass(slots=True, eq=False)
class _Job:
    """One thing to do. Jobs of the same key may share a batch; `turn` counts those of its request before it."""

    turn: int
    key: Hashable
    item: Any
    done: asyncio.Future[Any]


class Batcher:
    """Collects jobs and has `work(key, items)` done in one thread, for up to `largest` items of one key at a time.

    When the thread is free and fewer than `largest` jobs wait, it lingers `window` seconds for more. At most `waiting`
    jobs wait. Requests take turns, so that one with many images does not keep the others waiting; the oldest job is in
    the next batch, whatever its key. For one event loop, not for threads.

    `on_batch(size)` is called after every batch.
    """

    def __init__(
        self,
        work: Callable[[Hashable, list[Any]], list[Any]],
        largest: int = 16,
        window: float = 0.003,
        waiting: int = 256,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.work, self.largest, self.window, self.waiting, self.on_batch = work, largest, window, waiting, on_batch
        self.pace = 0.0  # seconds for an image, as measured
        self._jobs: list[_Job] = []  # in the order of their arrival
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "network")
        self._loop: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Jobs are done while the block runs; those that are left then are cancelled."""
        self._loop = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
            for job in self._jobs:
                job.done.cancel()
            self._jobs = []
            self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Are jobs being taken?"""
        return self._loop is not None and not self._loop.done()

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._jobs)

    async def submit(self, jobs: Sequence[tuple[Hashable, Any]]) -> list[Any]:
        """Results of the (key, item) pairs, in their order; what `work` raises is raised here.

        Raises Refusal when too many wait. When the caller is cancelled its jobs are forgotten, unless under way.
        """
        length = len(self)
        if length + len(jobs) > self.waiting:
            wait = min(max(math.ceil(length * self.pace), 1), LONGEST_WAIT)
            raise Refusal(503, f"{length} images are waiting; try again in {wait} s", retry_after=wait)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in jobs]
        self._jobs += [_Job(turn, *job, done) for turn, (job, done) in enumerate(zip(jobs, futures, strict=True))]
        self._arrived.set()
        try:
            return await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if self.window and len(self) < self.largest:
                await asyncio.sleep(self.window)
            batch = self._take()
            if not self._jobs:
                self._arrived.clear()
            if batch:
                await self._do(batch)

    def _take(self) -> list[_Job]:
        """The next batch: the oldest job, and others of its key, one of each request in turn.

        It has `largest` jobs, or else the greatest power of two that is there: for every shape of a batch PyTorch works
        out kernels and keeps them, and with few shapes memory stops growing sooner, and much lower.
        """
        waiting = [job for job in self._jobs if not job.done.done()]
        ready = sorted((job for job in waiting[1:] if job.key == waiting[0].key), key=lambda job: job.turn)
        ready = waiting[:1] + ready
        size = self.largest if len(ready) >= self.largest else 1 << len(ready).bit_length() >> 1
        taken = set(ready[:size])
        self._jobs = [job for job in waiting if job not in taken]
        return ready[:size]

    async def _do(self, batch: list[_Job]) -> None:
        """Work on a batch; where that fails, on each of its jobs alone, so that only the culprit gets the error."""
        start, items = time.perf_counter(), [job.item for job in batch]
        try:
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._thread, self.work, batch[0].key, items)
        except Exception as error:
            if len(batch) > 1:
                LOGGER.warning(f"a batch of {len(batch)} failed and is done one by one: {error}")
                for job in batch:
                    await self._do([job])
            elif not batch[0].done.done():
                batch[0].done.set_exception(error)
            return
        spent = (time.perf_counter() - start) / len(batch)
        self.pace = spent if not self.pace else PACE_KEPT * self.pace + (1 - PACE_KEPT) * spent
        self.on_batch(len(batch))
        for job, result in zip(batch, results, strict=True):
            if not job.done.done():
                job.done.set_result(result)
