"""The lock of a run's folder: one process at a time trains in it. The system releases it when that process dies.

The lock is on an open file, which forked children would share, and so keep beyond their parent's death: every child
closes it first thing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
import time
import weakref
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.distributed.workers import seen_alive, this_worker

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME, TRAINS = "run.lock", "trains in this folder; stop it, or choose another --name"
PATIENCE, SHORT_PATIENCE, PAUSE = 30.0, 2.0, 0.05  # seconds: for a holder that is dying, for any; between looks
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_FAR = 1 << 30  # byte that is locked where locks keep others from reading
_open_files: weakref.WeakSet[IO[str]] = weakref.WeakSet()


class Busy(ValueError):
    """Another process trains in this folder."""


class RunLock:
    """Held from the start to `release`, or until this process dies or nobody refers to it any more.

    Raises Busy, naming the holder, when another process, or another run of this one, holds it. One that is dying is
    waited for, and any for a moment, as it may have been killed just now; `patient` waits longer. `name` is the lock's
    file, `does` what its holder does there, for people. Where the file system has no locks that is said, and the run
    goes on without. Raises ValueError for a file that is a link.
    """

    def __init__(self, folder: Path, patient: bool = False, name: str = NAME, does: str = TRAINS) -> None:
        self.path = folder / name
        self._file: IO[str] | None = None
        me, began = this_worker(), time.monotonic()
        while not self._take(me):
            holder, waited = self._holder(), time.monotonic() - began
            alive = seen_alive(holder, me) if holder else None
            limit = PATIENCE if patient or alive is False else SHORT_PATIENCE
            if waited >= limit:
                raise Busy(f"{shown(folder)}: {_words(holder)} {does}")
            time.sleep(PAUSE)

    def _take(self, me: Mapping[str, Any]) -> bool:
        """Try once. True also where there are no locks."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise ValueError(f"{shown(self.path)} is a link, or no file; remove it")  # its target would be emptied
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as the lock is held
        _close_in_children(file)
        try:
            _lock(file)
        except OSError as error:
            file.close()
            if error.errno in _TAKEN:
                return False
            self.path.unlink(missing_ok=True)
            LOGGER.warning(f"{shown(self.path)}: no locks here ({error.strerror}): do not train twice in this folder")
            return True
        if not self._is_ours(file):
            file.close()
            return False
        file.truncate(0)
        file.write(json.dumps({**me, "since": datetime.now().isoformat(sep=" ", timespec="seconds")}))
        file.flush()
        self._file = file
        return True

    def _is_ours(self, file: IO[str]) -> bool:
        """Is the locked file the one that others will find? Its last holder may have removed it since it was opened."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _holder(self) -> dict[str, Any]:
        """What the holder wrote of itself; nothing when it had no time to, or is gone."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return found if {"space", "pid", "born", "host", "since"} <= found.keys() else {}
        except (OSError, ValueError, AttributeError):
            return {}

    def release(self) -> None:
        """Let others in, and take the file away. In a forked child, which does not hold the lock, nothing."""
        if self._file is None or self._file.closed:
            return
        if sys.platform != "win32":  # there an open file cannot be removed
            self.path.unlink(missing_ok=True)
        self._file.close()
        self._file = None
        if sys.platform == "win32":
            try:
                self.path.unlink(missing_ok=True)
            except PermissionError:  # the next holder was faster
                return


def _words(holder: Mapping[str, Any]) -> str:
    """Who holds a lock, for people."""
    if not holder:
        return "another process"
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']},"


def _lock(file: IO[str]) -> None:
    """Lock an open file or raise OSError at once."""
    if sys.platform == "win32":
        file.seek(_FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _close_in_children(file: IO[str]) -> None:
    """See to it that a forked child closes the file before it does anything else."""
    _hear_of_forks()
    _open_files.add(file)


@cache
def _hear_of_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    for file in list(_open_files):
        file.close()
