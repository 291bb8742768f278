"""Watch what a function does with an input that means harm: what it runs and writes, how long, how much memory."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

SECONDS = 5.0  # of work for one input; most take milliseconds. What only waits runs into the time limit of the test
MEMORY = 1 << 30  # bytes that all inputs of a kind may add to what the process has had
LONGEST = 2000  # characters of an error

_RUNS = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class", "webbrowser.open"),
}
_WRITES = {
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.copytree", "shutil.unpack_archive"),
}
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Broken(AssertionError):
    """What was promised of hostile input does not hold."""


@dataclass(frozen=True)
class Kind:
    """A kind of input: the file it is written to, what makes one, and what the program does with it.

    `use` returns, or raises ValueError with one line that has the file's name in it.
    """

    name: str
    file: str
    make: Callable[[Random], bytes]
    use: Callable[[Path], Any]


class _Watch:
    """Python's audit hooks cannot be taken off again, so there is one, which looks only while a folder is set."""

    folder: str | None = None
    seen: list[str]
    installed = False

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _RUNS or (event == "exec" and {"system", "__import__"} & {*getattr(given[0], "co_names", ())}):
            self.seen.append(f"{event} {given!r:.200}")
        is_write = event == "open" and isinstance(given[2], int) and given[2] & _TO_WRITE
        for path in given[:1] if is_write else given[:2] if event in _WRITES else ():
            if isinstance(path, (str, bytes, os.PathLike)):
                full = os.path.abspath(os.fsdecode(path))
                if not f"{full}/".startswith(f"{self.folder}/") and full != os.devnull:
                    self.seen.append(f"{event} {full}")


_watch = _Watch()


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raises Broken when something inside ran code, used the network or wrote outside of the folder."""
    if not _watch.installed:
        sys.addaudithook(_watch)
        _watch.installed = True
    _watch.seen, _watch.folder = [], os.path.abspath(folder)
    try:
        yield
    finally:
        _watch.folder = None
    if _watch.seen:
        raise Broken("; ".join(_watch.seen[:5]))


def try_input(kind: Kind, content: bytes, folder: Path) -> str:
    """Give an input to the program; returns what it said, "" where the input was taken. Raises Broken, or what escaped.

    The last input stays in the folder, so that one that breaks a promise can be looked at; what was made of it, in
    `labels` and `out`, does not.
    """
    path = folder / kind.file
    path.write_bytes(content)
    began, said = time.process_time(), ""  # of this process: others may be busy
    with watched(folder):
        try:
            kind.use(path)
        except ValueError as error:
            said = str(error)
    for left in ("labels", "out"):
        shutil.rmtree(folder / left, ignore_errors=True)
    if (took := time.process_time() - began) > SECONDS:
        raise Broken(f"took {took:.1f} s")
    if said and (kind.file.partition(".")[0] not in said or len(said.splitlines()) != 1 or len(said) > LONGEST):
        raise Broken(f"said {said[:LONGEST]!r}")
    return said


def peak_memory(anew: bool = False) -> int:
    """Bytes that this process had at its largest: since it began, or since this was last called `anew` (Linux)."""
    if anew:
        with contextlib.suppress(OSError):  # a container may forbid it
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@contextmanager
def bounded_memory(room: int = 4 << 30) -> Iterator[None]:
    """No more than `room` bytes can be asked for, lest a mistake takes the machine down; Broken above MEMORY used."""
    warm, limits = peak_memory(anew=True), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    if (more := peak_memory() - warm) > MEMORY:
        raise Broken(f"took {more >> 20} MiB of memory")
