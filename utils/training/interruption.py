"""Being told to stop: Ctrl+C and the SIGTERM of a scheduler become a wish that training grants at its next step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from utils.base.log import LOGGER
from utils.distributed.processes import is_joined

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 20.0  # seconds that a process of a distributed run has to reach its next step; another one may be gone already


class Interrupted(KeyboardInterrupt):
    """Training was told to stop, and has saved where it stands. `signal` is the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Interruption:
    """Within `with Interruption() as told:` a first SIGINT or SIGTERM only makes `told.number` true.

    A second one ends the program at once, as Python does. Outside of the main thread signals are left alone.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        LOGGER.warning(f"{signal.Signals(number).name}: stopping after this step; once more to stop at once")
        self._restore()
        if is_joined():  # a process that is gone would be waited for without end
            last = threading.Timer(GRACE, os._exit, (128 + number,))
            last.daemon = True
            last.start()

    def check(self) -> None:
        """Raise Interrupted if there was a signal."""
        if self.number:
            raise Interrupted(self.number)


class Watched:
    """A loader that ends with Interrupted between two batches when this process, if it is the only one, is told to."""

    def __init__(self, loader: Any, told: Interruption) -> None:
        self.loader, self.told = loader, told

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if not is_joined():
                self.told.check()
            yield batch
