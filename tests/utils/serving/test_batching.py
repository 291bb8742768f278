from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

import pytest

from tests.served import need_server

need_server()

from utils.serving.batching import Batcher, Lane  # noqa: E402 - only where it is installed
from utils.serving.uploads import Refusal  # noqa: E402


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test, for ten seconds at most."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**given), 10))

    return run


class Recorder:
    """Work that doubles its items, takes a while, and notes the batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches, self.threads = seconds, [], set()

    def __call__(self, key: Hashable, items: list[Any]) -> list[Any]:
        self.batches.append((key, items))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if "bad" in items:
            raise KeyError("bad")
        return [2 * item for item in items]


async def many(batcher: Batcher, *items: Any, key: Hashable = "k") -> list[Any]:
    return await batcher.submit([(key, item) for item in items])


@pytest.mark.parametrize("largest, sizes", [(1, [1] * 13), (3, [3, 3, 3, 3, 1]), (16, [8, 4, 1]), (12, [12, 1])])
@in_a_loop
async def test_results_come_in_order_and_batches_have_few_sizes(largest: int, sizes: list[int]) -> None:
    batcher = Batcher(work := Recorder(0.001), largest, window=0.01)
    async with batcher.running():
        assert await many(batcher) == [] and not work.batches
        assert await many(batcher, *range(13)) == [2 * i for i in range(13)]
    assert [len(items) for _, items in work.batches] == sizes
    assert [item for _, items in work.batches for item in items] == list(range(13))


@pytest.mark.parametrize("requests, batches", [
    ([("k", [i]) for i in range(10)], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),  # what waits together goes together
    ([("a", [1]), ("b", [2]), ("a", [3])], [[1, 3], [2]]),  # of one key, the oldest first
    ([("k", [*range(10)]), ("k", [100]), ("k", [200, 201])], [[0, 100, 200, 1], [2, 201, 3, 4], [5, 6, 7, 8], [9]]),
])  # fmt: skip
@in_a_loop
async def test_requests_take_turns_in_one_thread(requests: list, batches: list) -> None:
    sizes: list[int] = []
    batcher = Batcher(work := Recorder(0.01), largest=4, window=0.01, on_batch=sizes.append)
    async with batcher.running():
        found = await asyncio.gather(*(many(batcher, *items, key=key) for key, items in requests))
    assert found == [[2 * item for item in items] for _, items in requests]
    assert [items for _, items in work.batches] == batches and sizes == [*map(len, batches)]
    assert len(work.threads) == 1 and threading.get_ident() not in work.threads


@in_a_loop
async def test_only_the_culprit_fails_and_closing_leaves_nobody_waiting() -> None:
    batcher = Batcher(Recorder(0.05), window=0.01)
    async with batcher.running():
        jobs = (many(batcher, item) for item in (1, "bad", 3))
        first, second, third = await asyncio.gather(*jobs, return_exceptions=True)
        task = asyncio.create_task(many(batcher, *range(20)))
        await asyncio.sleep(0.02)
        assert batcher.alive
    assert first == [2] and isinstance(second, KeyError) and third == [6] and batcher.alive is False
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


@in_a_loop
async def test_too_many_are_asked_to_come_back() -> None:
    batcher = Batcher(Recorder(0.05), largest=1, waiting=3)
    async with batcher.running():
        tasks = [asyncio.create_task(many(batcher, i)) for i in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="3 images are waiting") as refused:
            await many(batcher, 9)
        assert refused.value.status == 503 and refused.value.retry_after >= 1
        await asyncio.gather(*tasks)
        assert len(batcher) == 0


@in_a_loop
async def test_jobs_of_clients_that_gave_up_are_not_done() -> None:
    batcher = Batcher(work := Recorder(0.05), largest=1, window=0)
    async with batcher.running():
        first, gone, last = (asyncio.create_task(many(batcher, i)) for i in (1, 2, 3))
        await asyncio.sleep(0.02)
        gone.cancel()
        await asyncio.gather(first, last)
    assert work.batches == [("k", [1]), ("k", [3])]


# ---- lanes of images to be decoded
async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.005)


@in_a_loop
async def test_results_and_errors_come_back() -> None:
    lane = Lane(2, 100, "x")
    assert len(lane) == 0
    jobs = (lambda: 7, lambda: {}[0])
    seven, error = await asyncio.gather(*(lane.run(1, 1, job) for job in jobs), return_exceptions=True)
    assert seven == 7 and isinstance(error, KeyError)
    lane.threads.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        await lane.run(1, 1, lambda: 1)
    await until(lambda: lane.free == 2)


@in_a_loop
async def test_never_more_memory_nor_threads_than_there_are() -> None:
    """Jobs of 60, 60, 30, 500 and 5 in a lane of 3 threads and 100 bytes: all get in, one by one where they must."""
    inside, seen, lock = [], [], threading.Lock()
    lane = Lane(3, 100, "x")

    def job(memory: int) -> None:
        with lock:
            inside.append(memory)
            seen.append((len(inside), sum(min(one, 100) for one in inside)))
        time.sleep(0.02)
        with lock:
            inside.remove(memory)

    await asyncio.gather(*(lane.run(1, memory, functools.partial(job, memory)) for memory in (60, 60, 30, 500, 5)))
    await until(lambda: lane.free == 3)
    assert len(seen) == 5 and max(threads for threads, _ in seen) <= 3 and max(memory for _, memory in seen) <= 100
    assert lane.left == 100 and len(lane) == 0


@in_a_loop
async def test_jobs_of_clients_that_gave_up_are_not_begun() -> None:
    """The cheapest of the others goes first."""
    begun: list[int] = []
    end, lane = threading.Event(), Lane(1, 100, "x")
    first = asyncio.ensure_future(lane.run(1, 70, end.wait))
    others = [
        asyncio.ensure_future(lane.run(work, 70, lambda work=work: begun.append(work))) for work in (5, 2, 4, 3, 4)
    ]
    await asyncio.sleep(0.02)
    assert len(lane) == 5
    others[1].cancel()
    await asyncio.sleep(0)
    assert len(lane) == 4
    end.set()
    await asyncio.gather(first, *others, return_exceptions=True)
    assert others[1].cancelled()
    await until(lambda: lane.free == 1)
    assert begun == [3, 4, 4, 5] and lane.left == 100


@in_a_loop
async def test_what_a_job_takes_is_given_back_when_its_thread_is_done_not_before() -> None:
    end, lane = threading.Event(), Lane(2, 100, "x")
    given_up = asyncio.ensure_future(lane.run(1, 80, end.wait))
    await asyncio.sleep(0.02)
    given_up.cancel()
    next_one = asyncio.ensure_future(lane.run(1, 80, lambda: "done"))
    await asyncio.sleep(0.05)
    assert not next_one.done() and lane.left == 20
    end.set()
    assert await next_one == "done"
