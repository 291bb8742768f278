"""Arrays that the processes of a machine hold together, once.

They lie in memory that has no name in any folder, so nothing is left when processes are killed, and the size of
/dev/shm (64 MB in a container) does not matter. On Linux that is a memory file, which the others open through its
owner's entry in /proc; where there are none it is a temporary file whose name is removed as soon as all have opened it.
Forked loader processes inherit the mapping, spawned ones are handed the open file.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import tempfile
import weakref
from collections.abc import Callable, Mapping
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any

import numpy as np

from utils.base.log import LOGGER
from utils.distributed.processes import Team

ALIGNMENT = 64  # bytes, a cache line
ALONE = Team()
Layout = tuple[tuple[str, str, tuple[int, ...]], ...]  # name, dtype and shape of each array


def layout_of(arrays: Mapping[str, np.ndarray]) -> Layout:
    """Return what `reserve` must know to make room for these arrays."""
    return tuple((name, array.dtype.str, array.shape) for name, array in arrays.items())


def _places(layout: Layout) -> tuple[list[int], int]:
    """Return where each array begins, and how many bytes there are in all (at least one: nothing cannot be mapped)."""
    starts, end = [], 0
    for _, kind, shape in layout:
        starts.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = starts[-1] + int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
    return starts, max(end, 1)


class ShortFileError(OSError):
    """A file that ends before its arrays do."""


class SharedArrays(dict[str, np.ndarray]):
    """Arrays by name in one open file that is mapped into memory: a write is seen by every process that maps it.

    A process that is spawned with one gets the same memory; any other copy is one of the values, as a dict.
    """

    def __init__(self, file: int, layout: Layout, writable: bool = True, path: Path | None = None) -> None:
        """Take over the descriptor `file`, of a file that stays at `path` if that is given.

        Raises ShortFileError where it is too short, OSError where it cannot be mapped.
        """
        super().__init__()
        self.file, self.layout, self.writable, self.path = file, layout, writable, path
        weakref.finalize(self, os.close, file)
        starts, size = _places(layout)
        if os.fstat(file).st_size < size:  # a page beyond the end would kill the process that touches it
            raise ShortFileError("the shared file is shorter than its arrays")
        self._memory = memory = mmap.mmap(file, size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        for start, (name, kind, shape) in zip(starts, layout, strict=True):
            self[name] = np.ndarray(shape, kind, buffer=memory, offset=start)

    def flush(self) -> None:
        """Return when all that was written has reached the disk; raises OSError where it cannot."""
        self._memory.flush()
        os.fsync(self.file)  # on Windows the disk itself is waited for only here

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        if get_spawning_popen() is not None and hasattr(reduction, "DupFd"):
            return _handed_over, (reduction.DupFd(self.file), self.layout, self.writable, self.path)
        if get_spawning_popen() is not None and self.path is not None:
            return file_arrays, (self.path, self.layout)  # on Windows nobody replaces a file that is open
        return dict, ({name: view.copy() for name, view in self.items()},)


def _handed_over(file: Any, *rest: Any) -> SharedArrays:
    return SharedArrays(file.detach(), *rest)


def _memory_file(size: int) -> tuple[int, str]:
    """Return (descriptor, path by which others of this machine can open it) of `size` zero bytes in memory."""
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no memory files")
    file = os.memfd_create("yolov5")
    os.truncate(file, size)
    return file, f"/proc/{os.getpid()}/fd/{file}"


def _temporary_file(size: int) -> tuple[int, str]:
    """The same on disk; the room is taken at once, for running out of it later would kill the process that writes."""
    vanishing = getattr(os, "O_TEMPORARY", 0)  # Windows removes no open file, but this one when it is closed
    path = os.path.join(tempfile.gettempdir(), f"yolov5-{secrets.token_hex(8)}")
    return _new_file(path, size, vanishing, 0o600), path


def _new_file(path: str | Path, size: int, flags: int, mode: int) -> int:
    """Return the descriptor of a new file with room for so many bytes; where there is not, there is no file."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, mode)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.truncate(file, size)
    except OSError:
        os.close(file)
        os.unlink(path)
        raise
    return file


def file_arrays(path: Path, layout: Layout, new: bool = False) -> SharedArrays:
    """Return the arrays of a file that stays, held by all who open it; a `new` one is of zeros.

    They are not `writable` where it may only be read. Raises OSError where there is no such file, or no room for a new
    one, ShortFileError for one that ends too early.
    """
    try:
        file = _new_file(path, _places(layout)[1], 0, 0o666) if new else os.open(path, os.O_RDWR)
    except OSError as error:
        if new or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return SharedArrays(os.open(path, os.O_RDONLY), layout, writable=False, path=path)
    return SharedArrays(file, layout, path=path)


def reserve(layout: Layout, team: Team = ALONE, owner: int = 0) -> SharedArrays:
    """Return arrays of zeros that the whole team holds together, made by the process numbered `owner`.

    Raises OSError, in every process, when one of them cannot have them.
    """
    try:
        return _reserve(layout, team, owner, _memory_file)
    except OSError:
        return _reserve(layout, team, owner, _temporary_file)


def _reserve(layout: Layout, team: Team, owner: int, make: Callable[[int], tuple[int, str]]) -> SharedArrays:
    path, arrays = "", None
    try:
        with team.agreed():
            if team.number == owner:
                file, path = make(_places(layout)[1])
                arrays = SharedArrays(file, layout)
        address = team.gather(path)[owner]
        with team.agreed():
            return SharedArrays(os.open(address, os.O_RDWR), layout) if arrays is None else arrays
    finally:
        if path and make is _temporary_file and not hasattr(os, "O_TEMPORARY"):
            os.unlink(path)


def share(arrays: Mapping[str, np.ndarray] | None, team: Team = ALONE, owner: int = 0) -> Mapping[str, np.ndarray]:
    """Return the arrays of the process numbered `owner` (the others give None), held once by all of them.

    Where that is impossible every process gets a copy of its own, with a warning.
    """
    layout = team.gather(None if arrays is None else layout_of(arrays))[owner]
    assert layout is not None, "the owner has arrays"
    try:
        shared = reserve(layout, team, owner)
    except OSError as error:
        LOGGER.warning(f"labels are copied into every process: no shared memory ({error})")
        copies = team.gather(arrays)[owner]
        assert copies is not None
        return copies
    with team.agreed():
        for name, values in (arrays or {}).items():
            shared[name][...] = values
    return shared
