"""The journal file or the database in which the workers of a search meet."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from utils.base.paths import shown

LOCK_TIMEOUT = 60  # seconds for which SQLite waits for another worker
ATTEMPTS = 5  # at opening a database: the first workers may all be making its tables


def open_storage(url: str) -> BaseStorage:
    """Open the storage behind a database URL or a journal's path, made when there is none.

    Raise ValueError where it cannot be opened, without the password that the URL may hold.
    """
    if "://" not in url:
        return _open_journal(Path(url))
    from sqlalchemy.exc import SQLAlchemyError

    waits = {"connect_args": {"timeout": LOCK_TIMEOUT}} if url.startswith("sqlite") else {}
    for attempt in range(ATTEMPTS):
        time.sleep(0.5 * attempt)
        try:
            return get_storage(RDBStorage(url, engine_kwargs={"pool_pre_ping": True} | waits))
        except (SQLAlchemyError, OptunaError, RuntimeError, ImportError) as error:
            cause = error.__cause__ if isinstance(error, ImportError) else getattr(error, "orig", None)
            reason = str(cause or error).strip().splitlines()[0]
    raise ValueError(f"--evolve-storage {without_password(url)}: cannot be opened ({reason})")


def without_password(url: str) -> str:
    """Return a database URL that may be shown."""
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)


def _open_journal(path: Path) -> BaseStorage:
    """Open a journal. Raise ValueError for a file that is none; Optuna itself forgives whatever the last line is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        first = path.read_bytes().partition(b"\n") if path.exists() else (b"", b"", b"")
        if first[1] and not {"op_code", "worker_id"} <= set(json.loads(first[0])):
            raise ValueError("its first line is no operation")
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_JournalLock(str(path))))
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise ValueError(f"{shown(path)}: is not the journal of a search ({error}); name another file") from None


class _JournalLock(JournalFileOpenLock):
    """Optuna's lock, whose holder cuts off half a line of a worker that was killed, or had no disk left.

    The next line would be lost with it, and the journal could not be read any more.
    """

    def acquire(self) -> bool:
        super().acquire()
        with open(self._lock_file.removesuffix(".lock"), "rb+") as file:
            if (size := file.seek(0, os.SEEK_END)) and (file.seek(size - 1), file.read())[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True
