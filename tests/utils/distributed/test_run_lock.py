"""One process at a time trains in a folder, and its death lets the next one in."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from utils.base.paths import ROOT
from utils.distributed import run_lock
from utils.distributed.run_lock import NAME, Busy, RunLock, process_birth, seen_alive, this_worker

HOLDS = """
import os, sys, time
from pathlib import Path
from utils.distributed.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
if len(sys.argv) > 2 and not os.fork():
    time.sleep(60)  # a loader process that outlives its parent
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = RunLock(tmp_path)
    written = json.loads((tmp_path / NAME).read_text())
    assert written["pid"] == os.getpid() and written["since"] and written["host"]
    with pytest.raises(Busy, match=rf"process {os.getpid()} on .*, since \d+.* trains in this folder"):
        RunLock(tmp_path)  # another run of the same process
    child = multiprocessing.get_context("fork").Process(target=lock.release)  # neither holds nor frees it
    child.start()
    child.join()
    monkeypatch.setattr(run_lock, "SHORT_PATIENCE", 0.1)
    monkeypatch.setattr(os, "register_at_fork", None)  # each call stays for good: attempts must add none
    for text in ("", "[]", "{", '{"pid": 3}', "\0\0"):  # what a holder wrote may be anything
        (tmp_path / NAME).write_text(text)
        with pytest.raises(Busy, match="another process trains"):
            RunLock(tmp_path)
    lock.release()
    lock.release()
    assert not list(tmp_path.iterdir())
    RunLock(tmp_path).release()


@pytest.mark.parametrize("more", [(), ("fork",)])
def test_the_holder_is_named_and_its_death_frees(tmp_path: Path, more: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path), *more]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        began = time.monotonic()
        try:
            with pytest.raises(Busy, match=f"process {holder.pid} on"):
                RunLock(tmp_path)
            assert time.monotonic() - began < 20, "who lives is not waited for long"
        finally:
            holder.send_signal(signal.SIGKILL)
        RunLock(tmp_path).release()  # at once, the dead process not even waited for


def test_of_many_at_once_one_at_a_time_has_it(tmp_path: Path) -> None:
    inside, most, got = [], [], []

    def enter(number: int) -> None:
        for _ in range(20):
            try:
                lock = RunLock(tmp_path)
            except Busy:
                continue
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)
            got.append(number)
            lock.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(8)))
    assert got and max(most) == 1


def test_without_locks_the_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(file: object, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    for _ in range(2):
        RunLock(tmp_path).release()
    assert caplog.text.count("no locks here (Operation not supported)") == 2 and not list(tmp_path.iterdir())


def test_the_lock_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="is a link"):
        RunLock(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc on this system")
def test_who_lives() -> None:
    me = this_worker()
    assert me["pid"] == os.getpid() and me == this_worker() and seen_alive(me, me)
    assert seen_alive(me | {"born": "1"}, me) is False, "another process of that number"
    assert seen_alive(me | {"space": "elsewhere"}, me) is None
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    other = me | {"pid": process.pid, "born": process_birth(process.pid)}
    assert seen_alive(other, me)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table
    assert seen_alive(other, me) is False
    process.communicate()
    assert process_birth(process.pid) is None
