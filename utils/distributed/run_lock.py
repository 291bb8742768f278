"""The lock of a run's folder: one process at a time trains in it. The system releases it when that process dies.

The lock is on an open file, which forked children would share, and so keep beyond their parent's death: every child
closes it first thing. Who holds a lock is told by `this_worker`, and whether it still lives by `seen_alive`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import sys
import time
import uuid
import weakref
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

from utils.base.log import LOGGER
from utils.base.paths import shown

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME, TRAINS = "run.lock", "trains in this folder; stop it, or choose another --name"
PATIENCE, SHORT_PATIENCE, PAUSE = 30.0, 2.0, 0.05  # seconds: for a holder that is dying, for any; between attempts
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_FAR = 1 << 30  # byte that is locked where locks keep others from reading


class Busy(ValueError):
    """Another process trains in this folder."""


class RunLock:
    """Held from the start to `release`, or until this process dies or nobody refers to it any more.

    Raises Busy, naming the holder, when another process, or another run of this one, holds it. One that is dying is
    waited for, and any for a moment, as it may have been killed just now; `patient` waits longer. `name` is the lock's
    file, `does` what its holder does there, for people. Where the file system has no locks that is logged, and the run
    goes on without. Raises ValueError for a file that is a link.
    """

    def __init__(self, folder: Path, patient: bool = False, name: str = NAME, does: str = TRAINS) -> None:
        self.path = folder / name
        self._file: IO[str] | None = None
        me, began = this_worker(), time.monotonic()
        while not self._take(me):
            try:
                holder = json.loads(self.path.read_text(encoding="utf-8"))
                text = f"process {holder['pid']} on {holder['host']}, since {holder['since']},"
                alive = seen_alive(holder, me)
            except (OSError, ValueError, KeyError, TypeError):  # it had no time to write who it is, or is gone
                text, alive = "another process", None
            if time.monotonic() - began >= (PATIENCE if patient or alive is False else SHORT_PATIENCE):
                raise Busy(f"{shown(folder)}: {text} {does}")
            time.sleep(PAUSE)

    def _take(self, me: Mapping[str, Any]) -> bool:
        """Try once. True also where there are no locks."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise ValueError(f"{shown(self.path)} is a link, or no file; remove it")  # its target would be emptied
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as the lock is held
        _closed_in_children().add(file)
        try:
            if sys.platform == "win32":
                file.seek(_FAR)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                file.seek(0)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in _TAKEN:
                return False
            self.path.unlink(missing_ok=True)
            LOGGER.warning(f"{shown(self.path)}: no locks here ({error.strerror}): do not train twice in this folder")
            return True
        try:  # is it the file that others will find? Its last holder may have removed it since it was opened
            is_ours = os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            is_ours = False
        if not is_ours:
            file.close()
            return False
        file.truncate(0)
        file.write(json.dumps({**me, "since": datetime.now().isoformat(sep=" ", timespec="seconds")}))
        file.flush()
        self._file = file
        return True

    def release(self) -> None:
        """Let others in, and remove the file. In a forked child, which does not hold the lock, nothing."""
        if self._file is None or self._file.closed:
            return
        if sys.platform != "win32":  # there an open file cannot be removed
            self.path.unlink(missing_ok=True)
        self._file.close()
        self._file = None
        if sys.platform == "win32":
            with contextlib.suppress(PermissionError):  # the next holder was faster
                self.path.unlink(missing_ok=True)


@cache
def _closed_in_children() -> weakref.WeakSet[IO[str]]:
    files: weakref.WeakSet[IO[str]] = weakref.WeakSet()
    if hasattr(os, "register_at_fork"):  # which cannot be undone, so once and not at each attempt
        os.register_at_fork(after_in_child=lambda: [file.close() for file in list(files)])
    return files


# ------------------------------------------------------------------------------------------------ who holds a lock
def process_birth(pid: int) -> str | None:
    """Return when a process of this machine started, in the kernel's ticks; None when it is gone (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def this_worker() -> dict[str, Any]:
    """Return who we are: name of the machine, process, and the space in which that process number means something.

    The space is this boot of this machine, or of a container on it. Where the system does not say it is ours alone:
    then others must get a sign from us to know that we live, and we from them.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        space = f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        space = str(uuid.uuid4())
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "born": process_birth(pid), "space": space}


def seen_alive(worker: Mapping[str, Any], me: Mapping[str, Any]) -> bool | None:
    """Return whether a worker's process lives, None when it cannot be seen from here."""
    if worker["space"] != me["space"]:
        return None
    return process_birth(worker["pid"]) == worker["born"]
