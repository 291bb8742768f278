"""The lock of a journal."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.search import lock as journal_lock
from utils.search.lock import JournalLock, drop_torn_line


@given(st.binary(max_size=40))
def test_only_half_lines_are_dropped(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("torn") / "a.journal"
    file.write_bytes(content)
    drop_torn_line(file)
    *whole, _ = content.split(b"\n")
    assert file.read_bytes() == b"".join(line + b"\n" for line in whole)


def test_one_at_a_time(tmp_path: Path) -> None:
    journal = tmp_path / "a.journal"
    journal.touch()

    def add(times: int) -> None:
        lock = JournalLock(journal)
        for _ in range(times):
            lock.acquire()
            count = int(journal.read_text() or 0)
            journal.write_text(f"{count + 1}\n")
            lock.release()

    threads = [threading.Thread(target=add, args=(25,)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert int(journal.read_text()) == 100 and not JournalLock(journal).file.exists()


def test_a_dead_holders_lock_is_taken_at_once(tmp_path: Path) -> None:
    journal = tmp_path / "a.journal"
    journal.write_text("whole\nhal")
    dead = JournalLock(journal)
    dead.me = dead.me | {"born": "1"}  # this process number, of an earlier process
    assert dead.acquire() and journal.read_text() == "whole\n"
    heir = JournalLock(journal)
    assert heir.acquire()
    dead.release()  # came too late: it is not its own any more
    assert json.loads(heir.file.read_text()) == heir.me | {"token": json.loads(heir._mine)["token"]}
    heir.release()
    assert [path.name for path in tmp_path.iterdir()] == ["a.journal"]


def test_elsewhere_a_holder_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "a.journal"
    journal.touch()
    far = JournalLock(journal)
    far.me = far.me | {"space": "another machine"}
    far.acquire()
    near = JournalLock(journal)
    assert not near._is_stale(far._mine, journal_lock.GRACE - 1) and near._is_stale(far._mine, journal_lock.GRACE + 1)
    assert not near._is_stale("", 1) and near._is_stale("half a na", journal_lock.GRACE + 1)
    monkeypatch.setattr(journal_lock, "GRACE", 0.05)
    assert near.acquire()


def test_a_journal_that_cannot_be_written_frees_the_lock(tmp_path: Path) -> None:
    lock = JournalLock(tmp_path / "none.journal")
    with pytest.raises(FileNotFoundError):
        lock.acquire()
    assert not lock.file.exists()
