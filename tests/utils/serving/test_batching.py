from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Any

import pytest

from tests.served import need_server

need_server()

from utils.serving.batching import Batcher, Lane  # noqa: E402
from utils.serving.uploads import Refusal  # noqa: E402


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


def during(batcher: Batcher, story: Callable[[], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        async with batcher.running():
            return await story()

    return asyncio.run(asyncio.wait_for(whole(), 10))


async def many(batcher: Batcher, *items: Any, key: Hashable = "k") -> list[Any]:
    return await batcher.submit([(key, item) for item in items])


def test_no_jobs() -> None:
    work = Recorder()
    batcher = Batcher(work)
    assert during(batcher, lambda: many(batcher)) == [] and not work.batches


@pytest.mark.parametrize("largest, sizes", [(1, [1] * 13), (3, [3, 3, 3, 3, 1]), (16, [8, 4, 1]), (12, [12, 1])])
def test_results_come_in_order_and_batches_have_few_sizes(largest: int, sizes: list[int]) -> None:
    work = Recorder(0.001)
    batcher = Batcher(work, largest, window=0.01)
    assert during(batcher, lambda: many(batcher, *range(13))) == [2 * i for i in range(13)]
    assert [len(items) for _, items in work.batches] == sizes
    assert [item for _, items in work.batches for item in items] == list(range(13))


def test_what_waits_together_goes_together_in_one_thread() -> None:
    work, sizes = Recorder(0.02), []
    batcher = Batcher(work, largest=4, window=0.01, on_batch=sizes.append)

    async def story() -> list[list[int]]:
        return await asyncio.gather(*(many(batcher, i) for i in range(10)))

    assert during(batcher, story) == [[2 * i] for i in range(10)]
    assert sizes == [len(items) for _, items in work.batches] == [4, 4, 2]
    assert len(work.threads) == 1 and threading.get_ident() not in work.threads


def test_batches_are_of_one_key_and_the_oldest_goes_first() -> None:
    work = Recorder(0.01)
    batcher = Batcher(work, window=0.01)

    async def story() -> None:
        await asyncio.gather(many(batcher, 1, key="a"), many(batcher, 2, key="b"), many(batcher, 3, key="a"))

    during(batcher, story)
    assert work.batches == [("a", [1, 3]), ("b", [2])]


def test_a_long_request_does_not_keep_short_ones_waiting() -> None:
    work = Recorder(0.01)
    batcher = Batcher(work, largest=4, window=0.01)

    async def story() -> None:
        await asyncio.gather(many(batcher, *range(40)), many(batcher, 100), many(batcher, 200, 201))

    during(batcher, story)
    assert work.batches[0][1] == [0, 100, 200, 1] and 201 in work.batches[1][1]


def test_only_the_culprit_fails() -> None:
    batcher = Batcher(Recorder(), window=0.01)

    async def story() -> list[Any]:
        return await asyncio.gather(*(many(batcher, item) for item in (1, "bad", 3)), return_exceptions=True)

    first, second, third = during(batcher, story)
    assert first == [2] and isinstance(second, KeyError) and third == [6] and batcher.alive is False


def test_too_many_are_asked_to_come_back() -> None:
    batcher = Batcher(Recorder(0.05), largest=1, waiting=3)

    async def story() -> None:
        tasks = [asyncio.create_task(many(batcher, i)) for i in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="3 images are waiting") as refused:
            await many(batcher, 9)
        assert refused.value.status == 503 and refused.value.retry_after >= 1
        await asyncio.gather(*tasks)
        assert len(batcher) == 0

    during(batcher, story)


def test_jobs_of_clients_that_gave_up_are_not_done() -> None:
    work = Recorder(0.05)
    batcher = Batcher(work, largest=1, window=0)

    async def story() -> None:
        first, gone, last = (asyncio.create_task(many(batcher, i)) for i in (1, 2, 3))
        await asyncio.sleep(0.02)
        gone.cancel()
        await asyncio.gather(first, last)

    during(batcher, story)
    assert work.batches == [("k", [1]), ("k", [3])]


def test_closing_leaves_nobody_waiting() -> None:
    batcher = Batcher(Recorder(0.1), largest=1)

    async def whole() -> None:
        async with batcher.running():
            task = asyncio.create_task(many(batcher, 1, 2, 3))
            await asyncio.sleep(0.02)
            assert batcher.alive
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)

    asyncio.run(whole())


# ---- lanes of images to be decoded
async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def test_nothing_waits() -> None:
    assert len(Lane(1, 100, "x")) == 0


def test_results_and_errors_come_back() -> None:
    async def story() -> list[Any]:
        lane = Lane(2, 100, "x")
        jobs = (lambda: 7, lambda: {}[0])
        found = await asyncio.gather(*(lane.run(1, 1, job) for job in jobs), return_exceptions=True)
        lane.threads.shutdown(wait=False)
        with pytest.raises(RuntimeError):
            await lane.run(1, 1, lambda: 1)
        assert lane.free == 2
        return found

    seven, error = asyncio.run(asyncio.wait_for(story(), 10))
    assert seven == 7 and isinstance(error, KeyError)


def test_never_more_memory_nor_threads_than_there_are() -> None:
    """Jobs of 60, 60, 30, 500 and 5 in a lane of 3 threads and 100 bytes: all get in, one by one where they must."""
    inside, seen, lock = [], [], threading.Lock()

    def job(memory: int) -> None:
        with lock:
            inside.append(memory)
            seen.append((len(inside), sum(min(one, 100) for one in inside)))
        time.sleep(0.02)
        with lock:
            inside.remove(memory)

    async def story() -> Lane:
        lane = Lane(3, 100, "x")
        await asyncio.gather(*(lane.run(1, memory, partial(job, memory)) for memory in (60, 60, 30, 500, 5)))
        await until(lambda: lane.free == 3)
        return lane

    lane = asyncio.run(asyncio.wait_for(story(), 10))
    assert len(seen) == 5 and max(threads for threads, _ in seen) <= 3 and max(memory for _, memory in seen) <= 100
    assert lane.left == 100 and len(lane) == 0


def test_the_cheapest_goes_first() -> None:
    order: list[int] = []

    async def story() -> None:
        lane = Lane(1, 100, "x")
        first = asyncio.ensure_future(lane.run(9, 1, lambda: time.sleep(0.05)))
        await asyncio.sleep(0)
        await asyncio.gather(*(lane.run(work, 1, lambda work=work: order.append(work)) for work in (5, 3, 4, 3)), first)

    asyncio.run(asyncio.wait_for(story(), 10))
    assert order == [3, 3, 4, 5]


def test_jobs_of_clients_that_gave_up_are_not_begun() -> None:
    begun: list[str] = []
    end = threading.Event()

    async def story() -> Lane:
        lane = Lane(1, 100, "x")
        first = asyncio.ensure_future(lane.run(1, 70, end.wait))
        gone = asyncio.ensure_future(lane.run(2, 70, lambda: begun.append("gone")))
        last = asyncio.ensure_future(lane.run(3, 70, lambda: begun.append("last")))
        await asyncio.sleep(0.02)
        assert len(lane) == 2
        gone.cancel()
        await asyncio.sleep(0)
        assert len(lane) == 1
        end.set()
        await asyncio.gather(first, last)
        with pytest.raises(asyncio.CancelledError):
            await gone
        await until(lambda: lane.free == 1)
        return lane

    lane = asyncio.run(asyncio.wait_for(story(), 10))
    assert begun == ["last"] and lane.left == 100


def test_what_a_job_takes_is_given_back_when_its_thread_is_done_not_before() -> None:
    end = threading.Event()

    async def story() -> None:
        lane = Lane(2, 100, "x")
        given_up = asyncio.ensure_future(lane.run(1, 80, end.wait))
        await asyncio.sleep(0.02)
        given_up.cancel()
        next_one = asyncio.ensure_future(lane.run(1, 80, lambda: "done"))
        await asyncio.sleep(0.05)
        assert not next_one.done() and lane.left == 20
        end.set()
        assert await next_one == "done"

    asyncio.run(asyncio.wait_for(story(), 10))
