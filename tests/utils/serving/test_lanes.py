from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from utils.serving.lanes import Lane, Lanes


def during(story: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(story(), 10))


async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def test_nothing_waits() -> None:
    assert len(Lanes(1, 100, 100)) == 0


def test_results_and_errors_come_back() -> None:
    async def story() -> list[Any]:
        lane = Lane(2, 100, "x")
        jobs = (lambda: 7, lambda: {}[0])
        return await asyncio.gather(*(lane.run(1, 1, job) for job in jobs), return_exceptions=True)

    seven, error = during(story)
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

    lane = during(story)
    assert len(seen) == 5 and max(threads for threads, _ in seen) <= 3 and max(memory for _, memory in seen) <= 100
    assert lane.left == 100 and len(lane) == 0


def test_the_cheapest_goes_first() -> None:
    order: list[int] = []

    async def story() -> None:
        lane = Lane(1, 100, "x")
        first = asyncio.ensure_future(lane.run(9, 1, lambda: time.sleep(0.05)))
        await asyncio.sleep(0)
        await asyncio.gather(*(lane.run(work, 1, lambda work=work: order.append(work)) for work in (5, 3, 4, 3)), first)

    during(story)
    assert order == [3, 3, 4, 5]


def test_jobs_of_whoever_gave_up_are_not_begun() -> None:
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

    lane = during(story)
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

    during(story)


def test_small_images_pass_large_ones() -> None:
    end = threading.Event()

    async def story() -> None:
        lanes = Lanes(2, 800, 1000)
        large = [asyncio.ensure_future(lanes.run(800, 1000, end.wait)) for _ in range(9)]
        wide = [asyncio.ensure_future(lanes.run(1, 400, end.wait)) for _ in range(9)]
        await asyncio.sleep(0.02)
        assert len(lanes) == 17 and len(lanes.small) == 0
        assert await asyncio.gather(*(lanes.run(100, 250, lambda: 1) for _ in range(20))) == [1] * 20
        end.set()
        await asyncio.gather(*large, *wide)

    during(story)


def test_closing_begins_nothing_more() -> None:
    async def story() -> None:
        lanes = Lanes(1, 800, 1000)
        lanes.close()
        with pytest.raises(RuntimeError):
            await lanes.run(1, 1, lambda: 1)
        assert lanes.small.free == 1

    during(story)
