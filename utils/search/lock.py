"""The lock of a journal that several workers append to, on local and network file systems, and a journal's repair.

Optuna's own lock of a killed worker is broken after 30 seconds; this one says who holds it, so that on the same machine
the others see at once that the holder is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from pathlib import Path

from utils.base.log import LOGGER
from utils.distributed.run_lock import seen_alive, this_worker

GRACE = 60.0  # seconds for which a holder that cannot be seen from here may hold the lock
SHORTEST, LONGEST = 0.001, 0.2  # seconds between attempts


class JournalLock:
    """Held by whoever made the file `<journal>.lock`; has the methods that Optuna asks of a lock.

    Who gets it first cuts off the half line that a worker may have left when it was killed while writing, or when the
    disk was full: the next line would be lost with it.
    """

    def __init__(self, journal: Path) -> None:
        self.journal, self.file = journal, journal.with_name(journal.name + ".lock")
        self.me = this_worker()
        self._mine = ""

    def acquire(self) -> bool:
        """Wait until the lock is ours; True. Raises OSError when its file cannot be made."""
        self._mine = json.dumps(self.me | {"token": uuid.uuid4().hex})
        pause, holder, since = SHORTEST, "", time.monotonic()
        while not self._make():
            found = self._read(self.file)
            if found != holder:
                holder, since = found, time.monotonic()
            if self._is_stale(holder, time.monotonic() - since):
                self._break(holder)
                continue
            time.sleep(pause)
            pause = min(pause * 2, LONGEST)
        try:
            drop_torn_line(self.journal)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Let the others in, unless they had to break the lock."""
        if self._read(self.file) == self._mine:
            self.file.unlink(missing_ok=True)

    def _make(self) -> bool:
        try:
            handle = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(self._mine)
        return True

    @staticmethod
    def _read(file: Path) -> str:
        try:
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _is_stale(self, holder: str, seconds: float) -> bool:
        """Is the holder dead, or has it, unseen from here, kept the lock for too long?"""
        try:
            alive = seen_alive(json.loads(holder), self.me)
        except (ValueError, KeyError, TypeError):  # gone by now, or not yet written
            alive = None
        return alive is False or (alive is None and seconds > GRACE)

    def _break(self, holder: str) -> None:
        """Take a dead holder's lock away; when another waiter was faster, its lock is put back."""
        aside = self.file.with_name(f"{self.file.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.file, aside)
            if self._read(aside) != holder:
                os.rename(aside, self.file)
                return
            aside.unlink()
            LOGGER.debug(f"{self.file}: its holder is dead")


def drop_torn_line(path: Path) -> None:
    """Cut a file after its last line end; a text whose lines are all whole stays as it is."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
