from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import pytest

from utils.serving.batching import Batcher, size_of_batch
from utils.serving.limits import Refusal


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
        async with batcher:
            return await story()

    return asyncio.run(asyncio.wait_for(whole(), 10))


async def many(batcher: Batcher, *items: Any, key: Hashable = "k") -> list[Any]:
    return await batcher.submit([(key, item) for item in items])


def test_no_jobs() -> None:
    work = Recorder()
    batcher = Batcher(work)
    assert during(batcher, lambda: many(batcher)) == [] and not work.batches


def test_results_come_in_order() -> None:
    batcher = Batcher(Recorder(), largest=3)
    assert during(batcher, lambda: many(batcher, *range(20))) == [2 * i for i in range(20)]


def test_what_waits_together_goes_together_in_one_thread() -> None:
    work, sizes = Recorder(0.02), []
    batcher = Batcher(work, largest=4, window=0.01, told=sizes.append)

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


def test_a_long_request_does_not_keep_a_short_one_waiting() -> None:
    work = Recorder(0.01)
    batcher = Batcher(work, largest=4, window=0.01)

    async def story() -> None:
        await asyncio.gather(many(batcher, *range(40)), many(batcher, 100))

    during(batcher, story)
    assert 100 in work.batches[0][1]


def test_only_the_culprit_is_told() -> None:
    batcher = Batcher(Recorder(), window=0.01)

    async def story() -> list[Any]:
        return await asyncio.gather(*(many(batcher, item) for item in (1, "bad", 3)), return_exceptions=True)

    first, second, third = during(batcher, story)
    assert first == [2] and isinstance(second, KeyError) and third == [6] and batcher.alive is False


def test_too_many_are_told_to_come_back() -> None:
    batcher = Batcher(Recorder(0.05), largest=1, waiting=3)

    async def story() -> None:
        tasks = [asyncio.create_task(many(batcher, i)) for i in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="3 pictures are waiting") as refused:
            await many(batcher, 9)
        assert refused.value.status == 503 and refused.value.retry_after >= 1
        await asyncio.gather(*tasks)
        assert len(batcher) == 0

    during(batcher, story)


def test_jobs_of_whoever_gave_up_are_not_done() -> None:
    work = Recorder(0.05)
    batcher = Batcher(work, largest=1, window=0)

    async def story() -> None:
        first = asyncio.create_task(many(batcher, 1))
        gone = asyncio.create_task(many(batcher, 2))
        last = asyncio.create_task(many(batcher, 3))
        await asyncio.sleep(0.02)
        gone.cancel()
        await asyncio.gather(first, last)

    during(batcher, story)
    assert work.batches == [("k", [1]), ("k", [3])]


@pytest.mark.parametrize(
    "ready, largest, size", [(1, 1, 1), (9, 1, 1), (1, 16, 1), (3, 16, 2), (13, 16, 8), (99, 12, 12)]
)
def test_batches_have_few_sizes(ready: int, largest: int, size: int) -> None:
    assert size_of_batch(ready, largest) == size


def test_what_is_left_over_goes_next() -> None:
    work = Recorder(0.01)
    batcher = Batcher(work, largest=16, window=0.01)
    assert during(batcher, lambda: many(batcher, *range(13))) == [2 * i for i in range(13)]
    assert [items for _, items in work.batches] == [list(range(8)), list(range(8, 12)), [12]]


def test_closing_leaves_nobody_waiting() -> None:
    batcher = Batcher(Recorder(0.1), largest=1)

    async def story() -> asyncio.Task[Any]:
        waiting = asyncio.create_task(many(batcher, 1, 2, 3))
        await asyncio.sleep(0.02)
        assert batcher.alive
        return waiting

    async def whole() -> None:
        async with batcher:
            task = await story()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)

    asyncio.run(whole())


@pytest.mark.parametrize("wrong", [{"largest": 0}, {"waiting": 0}, {"window": -1}, {"window": float("nan")}])
def test_numbers_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give numbers above 0"):
        Batcher(Recorder(), **wrong)
