"""Who lives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from utils.distributed.workers import process_birth, seen_alive, this_worker

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc on this system")


def test_this_process_lives() -> None:
    me = this_worker()
    assert me["pid"] == os.getpid() and me == this_worker() and seen_alive(me, me)


def test_the_dead_are_known_before_they_are_buried() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    other = this_worker() | {"pid": process.pid, "born": process_birth(process.pid)}
    assert seen_alive(other, this_worker())
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table
    assert seen_alive(other, this_worker()) is False
    process.communicate()
    assert process_birth(process.pid) is None


def test_another_process_of_that_number_and_other_machines() -> None:
    me = this_worker()
    assert seen_alive(me | {"born": "1"}, me) is False
    assert seen_alive(me | {"space": "elsewhere"}, me) is None
