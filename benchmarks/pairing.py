"""Timing of rivals side by side: every round runs each of them once, so that a slow minute is slow for all."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path


def interleave(
    rivals: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    budget: float = math.inf,
    least: int = 3,
) -> dict[str, list[float]]:
    """Seconds of every rival in every round.

    The order is reversed from round to round, so that none always runs on the caches its neighbour left. There are
    `rounds` of them, or fewer where one more would end beyond `budget` seconds, but never fewer than `least`.
    """
    if rounds < 1 or warm_up < 0:
        raise ValueError(f"rounds={rounds}, warm_up={warm_up}: give at least one round and no negative warm-up")
    if not budget > 0:
        raise ValueError(f"budget={budget}: give seconds, more than none")
    for _ in range(warm_up):
        for run in rivals.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    gc.collect()
    gc.freeze()  # what is there already need not be searched for garbage after every run
    try:
        for number in range(rounds):
            spent = sum(map(sum, seconds.values()))
            if number >= max(1, least) and spent * (number + 1) / number > budget:
                break
            for name in list(rivals) if number % 2 == 0 else reversed(rivals):
                gc.collect()
                start = clock()
                rivals[name]()
                seconds[name].append(clock() - start)
    finally:
        gc.unfreeze()
    return seconds


def median_ratio(baseline: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster `other` is: the median of the ratios of the same round."""
    return statistics.median(slow / fast for slow, fast in zip(baseline, other, strict=True))


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean for ratios: twice as fast here and half as fast there make 1."""
    if not ratios:
        raise ValueError("no ratios to average")
    return statistics.geometric_mean(ratios)


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: object) -> int:
    """Bytes by which the memory of a fresh process grows at most while it runs what `prepare(*arguments)` returns.

    `prepare` must be importable by name. What it allocates itself does not count.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(sender, prepare, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"the measured process ended early (exit status {process.exitcode})") from None
    finally:
        process.join()


def _report_peak(sender: Connection, prepare: Callable[..., Callable[[], object]], arguments: tuple) -> None:
    run = prepare(*arguments)
    gc.collect()
    forget = Path("/proc/self/clear_refs")
    if os.access(forget, os.W_OK):
        forget.write_text("5")  # Linux forgets the peaks of the preparation; elsewhere smaller ones go unseen
    before = high_water()
    run()
    sender.send(high_water() - before)


def high_water() -> int:
    """Largest resident size of this process so far, in bytes.

    Linux's own count is preferred: what `getrusage` tells a fresh process there still contains its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
