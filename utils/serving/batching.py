"""Jobs of many requests become batches: one thread works, what waits meanwhile goes through together."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from utils.base.log import LOGGER
from utils.serving.limits import LONGEST_WAIT, Refusal

Work = Callable[[Hashable, list[Any]], list[Any]]
MEMORY_OF_PACE = 0.9  # how much of the old estimate stays when a batch was timed


@dataclass(slots=True, eq=False)
class _Job:
    """One thing to do. Jobs of the same key may share a batch; numbers rise in the order of arrival."""

    number: int
    key: Hashable
    item: Any
    done: asyncio.Future[Any]


def size_of_batch(ready: int, largest: int) -> int:
    """How many of `ready` jobs go together: `largest`, or else the greatest power of two that is there.

    For every shape of a batch PyTorch works out kernels and keeps them, and the allocator's heap is cut up by another
    set of sizes: with few shapes memory stops growing sooner, and much lower.
    """
    return largest if ready >= largest else 1 << (ready.bit_length() - 1)


def _share_out(lanes: Sequence[deque[_Job]], key: Hashable, largest: int) -> list[_Job]:
    """Take a batch of the key's jobs from the fronts of the lanes, one from each in turn; the first lane has some."""
    ready = sum(1 for lane in lanes for _ in itertools.takewhile(lambda job: job.key == key, lane))
    size = size_of_batch(ready, largest)
    batch: list[_Job] = []
    while len(batch) < size:
        for lane in lanes:
            if len(batch) < size and lane and lane[0].key == key:
                batch.append(lane.popleft())
    return batch


class Batcher:
    """Collects jobs and has `work(key, items)` done in one thread, for up to `largest` items of one key at a time.

    When the thread is free and fewer than `largest` jobs wait, it lingers `window` seconds for more. At most `waiting`
    jobs wait. Every request has a lane of its own and lanes take turns, so that one with many pictures does not keep
    the others waiting; the oldest job is in the next batch, whatever its key. Use it as `async with`; not for threads.

    `told(size)` hears of every batch.
    """

    def __init__(
        self,
        work: Work,
        largest: int = 16,
        window: float = 0.003,
        waiting: int = 256,
        told: Callable[[int], None] = lambda size: None,
    ) -> None:
        if largest < 1 or waiting < 1 or not window >= 0:
            raise ValueError(f"batches of {largest}, {waiting} waiting, {window} s: give numbers above 0")
        self.work, self.largest, self.window, self.waiting, self.told = work, largest, window, waiting, told
        self.pace = 0.0  # seconds for a picture, as measured
        self._lanes: list[deque[_Job]] = []
        self._numbers = itertools.count()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "network")
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._loop is not None
        self._loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._loop
        for job in itertools.chain(*self._lanes):
            job.done.cancel()
        self._lanes = []
        self._thread.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        """Jobs that wait."""
        return sum(map(len, self._lanes))

    @property
    def alive(self) -> bool:
        """Are jobs being taken?"""
        return self._loop is not None and not self._loop.done()

    async def submit(self, jobs: Sequence[tuple[Hashable, Any]]) -> list[Any]:
        """Results of the (key, item) pairs, in their order; what `work` raises is raised here.

        Raises Refusal when too many wait. When the caller is cancelled its jobs are forgotten, unless under way.
        """
        length = len(self)
        if length + len(jobs) > self.waiting:
            wait = min(max(math.ceil(length * self.pace), 1), LONGEST_WAIT)
            raise Refusal(503, f"{length} pictures are waiting; try again in {wait} s", retry_after=wait)
        if not jobs:
            return []
        loop = asyncio.get_running_loop()
        lane = deque(_Job(next(self._numbers), key, item, loop.create_future()) for key, item in jobs)
        futures = [job.done for job in lane]
        self._lanes.append(lane)
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
            if not self._lanes:
                self._arrived.clear()
            if batch:
                await self._do(batch)

    def _take(self) -> list[_Job]:
        """The next batch: the oldest job, and lane by lane in turn others of its key. Served lanes go to the back."""
        lanes = [deque(job for job in lane if not job.done.done()) for lane in self._lanes]
        lanes = [lane for lane in lanes if lane]
        if not lanes:
            self._lanes = []
            return []
        oldest = min(lanes, key=lambda lane: lane[0].number)
        lanes.sort(key=lambda lane: lane is not oldest)
        lengths = [len(lane) for lane in lanes]
        batch = _share_out(lanes, oldest[0].key, self.largest)
        order = sorted(zip(lanes, lengths, strict=True), key=lambda pair: len(pair[0]) < pair[1])
        self._lanes = [lane for lane, _ in order if lane]
        return batch

    async def _do(self, batch: list[_Job]) -> None:
        """Work on a batch; where that fails, on each of its jobs alone, so that only the culprit is told."""
        start = time.perf_counter()
        try:
            results = await self._in_thread(batch)
        except Exception as error:
            if len(batch) > 1:
                LOGGER.warning(f"a batch of {len(batch)} failed and is done one by one: {error}")
                for job in batch:
                    await self._do([job])
            elif not batch[0].done.done():
                batch[0].done.set_exception(error)
            return
        spent = (time.perf_counter() - start) / len(batch)
        self.pace = spent if not self.pace else MEMORY_OF_PACE * self.pace + (1 - MEMORY_OF_PACE) * spent
        self.told(len(batch))
        for job, result in zip(batch, results, strict=True):
            if not job.done.done():
                job.done.set_result(result)

    async def _in_thread(self, batch: list[_Job]) -> list[Any]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.work, batch[0].key, [job.item for job in batch])
