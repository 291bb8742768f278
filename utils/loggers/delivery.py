"""A thread for each service: what it is to send waits in a short queue, so it may hang or raise."""

from __future__ import annotations

import atexit
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from utils.base.log import LOGGER, one_line

CAPACITY = 64  # entries that wait; an epoch makes about four
STRIKES = 3  # errors in a row, after which a service is left out
GRACE = 10.0  # seconds that the end of the process gives a service that was given up
_FORK_WAIT = 5.0  # seconds that a new loader process waits for a service to pause, once for each service
_QUIET = 1.0  # seconds of waiting that need no line

_deliveries: list[Delivery] = []
_paused = threading.local()


class Delivery:
    """Does what it is given, one after the other, in a daemon thread of its own.

    `start` is done before the first entry, and again before the next one as long as it raises; `name` is the service's.
    """

    def __init__(self, name: str, start: Callable[[], None]) -> None:
        self.name, self.out, self.lost = name, False, 0
        self.pause, self.trusted = threading.RLock(), True
        self._start, self._dropped = start, 0
        self._entries: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._done = threading.Event()
        _watch_forks()
        _deliveries.append(self)
        threading.Thread(target=self._work, name=f"logger of {name}", daemon=True).start()

    def put(self, entry: Callable[[], None], last: bool = False) -> None:
        """Queue an entry, which is dropped when CAPACITY others wait (said once), the `last` one in any case."""
        if not self.out and (last or self._entries.qsize() < CAPACITY):
            self._entries.put(entry)
        elif not last:
            self._dropped += 1
            if self._dropped == 1 and not self.out:
                LOGGER.warning(f"{self.name}: does not keep up; what it cannot take in time is dropped")
        if last:
            self._entries.put(None)

    def wait(self, deadline: float, status: int) -> None:
        """Wait until `time.monotonic()` is `deadline`, say what was lost; `status` as in `leave_in_time`."""
        left = max(deadline - time.monotonic(), 0)
        done = self._done.wait(min(left, _QUIET))
        if not done:
            LOGGER.info(f"{self.name}: waiting {left:.0f} s at most until all is sent")
            done = self._done.wait(max(left - _QUIET, 0))
        if lost := self._dropped + self.lost + (0 if done else max(self._entries.qsize(), 1)):
            state = "" if done else " and did not finish in time"
            LOGGER.warning(f"{self.name}: missed {lost} of what it was sent{state}; the run's own files are complete")
        _deliveries.remove(self)
        if self.out or not done:
            leave_in_time(status)

    def _work(self) -> None:
        started, warned, strikes = False, False, 0
        while (entry := self._entries.get()) is not None:
            if self.out:
                self.lost += 1
                continue
            with self.pause:
                try:
                    if not started:
                        self._start()
                        started = True
                    entry()
                    strikes = 0
                except (Exception, SystemExit) as error:  # services raise errors of any kind, some leave the thread
                    self.lost, strikes = self.lost + 1, strikes + 1
                    self.out, text = strikes >= STRIKES, one_line(error)[:200]
                    if self.out:
                        LOGGER.warning(f"{self.name}: left out from now on, after {STRIKES} errors in a row: {text}")
                    elif not warned:
                        LOGGER.warning(f"{self.name}: {text}; training goes on")
                    warned = True
        self._done.set()


@functools.cache
def _watch_forks() -> None:
    """Let loader processes begin between two entries, but for services that once took too long for that.

    They begin as copies of this process, in which only the copying thread lives on. A lock that a service's thread
    holds at that moment, above all that of a module being imported, would be locked in the copy for ever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_pause, after_in_parent=_go_on, after_in_child=_deliveries.clear)


def _pause() -> None:
    _paused.deliveries = [delivery for delivery in _deliveries if delivery.trusted]
    for delivery in _paused.deliveries:
        delivery.trusted = delivery.pause.acquire(timeout=_FORK_WAIT)


def _go_on() -> None:
    for delivery in _paused.deliveries:
        if delivery.trusted:
            delivery.pause.release()


def leave_in_time(status: int, grace: float = GRACE) -> None:
    """End the process where it still lives `grace` seconds after its main thread has come to the end.

    Services leave threads behind that hold it, for hours where the network is gone. The exit status is then 1 after an
    error that nobody caught, else `status`.
    """
    ending = threading.Event()

    def watch() -> None:
        """Outlive the main thread, but not by much."""
        ending.wait()
        time.sleep(grace)
        with suppress(OSError, ValueError):  # closed already
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1 if getattr(sys, "last_value", None) is not None else status)

    threading.Thread(target=watch, name="end of the process", daemon=True).start()
    # threading's own list is worked through before threads are waited for, atexit's after that
    getattr(threading, "_register_atexit", atexit.register)(ending.set)
