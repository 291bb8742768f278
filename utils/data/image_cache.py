"""Images kept ready at the training size, in memory or on disk, so that a file is decoded only once.

All kinds hold what `fit_longest` gives. The size of the original stays with the labels, so boxes find their way back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils.base.arrays import read_array
from utils.base.files import replacing
from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.base.progress import progress
from utils.data.label_arrays import LabelIndex
from utils.data.label_index import CHECKING_THREADS, CHUNK
from utils.distributed.processes import Team
from utils.distributed.shared_memory import (
    ALONE,
    Layout,
    SharedArrays,
    ShortFileError,
    file_arrays,
    layout_of,
    reserve,
)
from utils.images.letterbox import fit_longest, fitted_sizes
from utils.images.reading import DECODER

GIB = 1 << 30
HEADROOM = 0.9  # part of the free memory or disk that a cache may take


def _free_memory() -> int | None:
    """Return the bytes free without swapping or passing a container's limit, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) * 1024
    limits = Path("/sys/fs/cgroup")
    try:
        most, used = ((limits / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
        kept = dict(line.split() for line in (limits / "memory.stat").read_text(encoding="ascii").splitlines())
        return free if most == "max" else min(free, int(most) - int(used) + int(kept["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no limits of this kind here
        return free


def _check_disk(folder: Path, needed: int) -> None:
    """Raise OSError, with the numbers, where so many bytes would fill the disk."""
    free = shutil.disk_usage(folder).free
    if needed > HEADROOM * free:
        raise OSError(f"{needed / GIB:.1f} GiB of images, {free / GIB:.1f} GiB of disk free")


def _digest(index: LabelIndex, position: int) -> bytes:
    """Return what an image's pixels depend on, in 16 bytes: its full path, size and modification time, the decoder.

    So an edited image, another one of the same name, or other pixels of the same file never pass for it. Raises
    OSError where the file is gone.
    """
    path = os.path.abspath(index.path(position))
    status = os.stat(index.file(position))
    key = os.fsencode(path) + f"\0{status.st_size} {status.st_mtime_ns} {DECODER}".encode()
    return hashlib.sha256(key).digest()[:16]


def _fill(cache: MemoryCache | DiskCache, positions: Sequence[int], description: str) -> int:
    """Keep the images at these positions, by threads, with a progress bar; return how many there are.

    An image that cannot be kept is read each time.
    """

    def _keep(position: int) -> bool:
        if cache.is_current(position):
            return True
        try:
            original = cache.index.image(position)
        except ValueError as error:
            LOGGER.warning(f"not cached: {error}")
            return False
        if list(original.shape[1::-1]) != cache.index.sizes[position].tolist():
            return False  # decoded to another size than its header says, which would not be known afterwards
        cache.keep(position, fit_longest(original, cache.size, cache.smooth))
        return True

    done = 0
    with ThreadPoolExecutor(CHECKING_THREADS) as pool, progress(None, description, len(positions), " images") as bar:
        for start in range(0, len(positions), CHUNK):  # a pool makes an object of each piece of work it is handed
            chunk = positions[start : start + CHUNK]
            kept = []
            for position, is_kept in zip(chunk, pool.map(_keep, chunk), strict=True):
                kept += [position] * is_kept
                bar.update()
            cache.settle(kept)
            done += len(kept)
    return done


class MemoryCache:
    """All images of a data set in one block of memory, once for all processes and loader workers of a machine."""

    def __init__(self, index: LabelIndex, size: int, smooth: bool, prefix: str = "", team: Team = ALONE) -> None:
        """Each process of the team decodes its share.

        Raises MemoryError, with the numbers, when the images would not fit, and OSError when there is no shared
        memory; in all processes if in one.
        """
        self.index, self.size, self.smooth = index, size, smooth
        shapes = fitted_sizes(index.sizes, size)
        starts = np.concatenate(([0], np.cumsum(shapes.prod(axis=1) * 3)))
        needed = int(starts[-1])
        layout = (("filled", "|b1", (len(index),)), ("pixels", "|u1", (needed,)))
        self.arrays, place = self._room({"shapes": shapes, "starts": starts}, layout, team)
        # what may be handed out: kept apart, once for the team, where the arrays may only be read
        self.marks = self.arrays if all(team.gather(self.arrays.writable)) else reserve(layout[:1], team)
        with team.agreed():
            _fill(self, team.mine(range(len(index))), f"{prefix}caching images in {place}")
        count = np.count_nonzero(self.marks["filled"])
        LOGGER.info(f"{prefix}{count} images cached in {needed / GIB:.2f} GiB of {place}")

    def _room(self, known: dict[str, np.ndarray], layout: Layout, team: Team) -> tuple[SharedArrays, str]:
        """Return arrays that are known already and those of a layout, and what they lie in."""
        needed = layout[-1][2][0]
        with team.agreed():
            free = _free_memory() if team.is_first else None
            if free is not None and needed > HEADROOM * free:
                raise MemoryError(f"{needed / GIB:.1f} GiB of images, {free / GIB:.1f} GiB of memory free")
        arrays = reserve((*layout_of(known), *layout), team)
        if team.is_first:
            for name, values in known.items():
                arrays[name][...] = values
        team.broadcast(None)  # nobody fills before the places are known
        return arrays, "memory"

    def _place(self, position: int) -> np.ndarray:
        start, end = self.arrays["starts"][position : position + 2]
        width, height = self.arrays["shapes"][position]
        return self.arrays["pixels"][start:end].reshape(height, width, 3)

    def is_current(self, position: int) -> bool:
        """Return whether an image is here that was made from the file as it is now."""
        return bool(self.arrays["filled"][position])

    def keep(self, position: int, image: np.ndarray) -> None:
        """Keep a fitted image; it is handed out once it is settled."""
        self._place(position)[:] = image

    def settle(self, positions: Sequence[int]) -> None:
        """From now on hand out the images at these positions, which are whole."""
        self.arrays["filled"][positions] = True

    def get(self, position: int) -> np.ndarray | None:
        """Return the fitted image (h, w, 3) uint8 BGR, not to be written to; None if it is not here."""
        if not (self.marks["filled"][position] and self.arrays["filled"][position]):
            return None
        image = self._place(position)
        image.flags.writeable = False
        return image


class PackedCache(MemoryCache):
    """All images of a data set in one file beside them, mapped into memory: packed once, then there for every run.

    One file for each size and way of scaling, which belongs to one list of images; another list replaces it. Images
    whose files changed since are packed anew when a run begins. The file has its whole size from the start, and pixels
    reach the disk before they count: whatever ends the program, or the machine, no image is half there. A file that may
    only be read serves with the images that are current.
    """

    def _room(self, known: dict[str, np.ndarray], layout: Layout, team: Team) -> tuple[SharedArrays, str]:
        """Open the file, or make it; raises OSError, in all processes, where it cannot be had."""
        beside = Path(self.index.file(0)).absolute().parent
        path = beside.with_name(f"{beside.name}.{self.size}-{'linear' if self.smooth else 'area'}.packed")
        listed = hashlib.sha256(self.index.arrays["names"].tobytes() + self.index.arrays["name_ends"].tobytes())
        known = {**known, "list": np.frombuffer(listed.digest(), np.uint8)}
        whole = (*layout_of(known), ("keys", "|u1", (len(self.index), 16)), *layout)
        self._new_keys: dict[int, np.ndarray] = {}  # of images that are packed, but not settled

        def _there() -> SharedArrays | None:
            with suppress(FileNotFoundError, ShortFileError):
                arrays = file_arrays(path, whole)
                return arrays if all(np.array_equal(arrays[name], values) for name, values in known.items()) else None
            return None

        def _make(beside: Path) -> None:
            arrays = file_arrays(beside, whole, new=True)
            for name, values in known.items():
                arrays[name][...] = values

        with team.agreed():
            if team.is_first and _there() is None:
                path.unlink(missing_ok=True)  # who has it open keeps it
                _check_disk(path.parent, layout[-1][2][0])
                with suppress(FileExistsError), replacing(path) as beside:  # nobody sees it without its list
                    _make(beside)
                    if _there() is not None:
                        raise FileExistsError  # another run was faster
        with team.agreed():
            if (found := _there()) is None:
                raise OSError(f"{shown(path)} was replaced, by a run with another list of images")
        return found, shown(path)

    def is_current(self, position: int) -> bool:
        """Compare an image's file with what was packed; a changed one counts as absent from now on, for all runs.

        Where the packed file may only be read the answer is always yes: there is nothing to be done.
        """
        key = np.zeros(16, np.uint8)  # of a file that is gone
        with suppress(OSError):
            key = np.frombuffer(_digest(self.index, position), np.uint8)
        current = super().is_current(position) and np.array_equal(self.arrays["keys"][position], key)
        if self.marks is not self.arrays:
            self.marks["filled"][position] = current
            return True
        if not current:
            self.arrays["filled"][position] = False
            self._new_keys[position] = key
        return current

    def settle(self, positions: Sequence[int]) -> None:
        """From now on hand out the images at these positions, once they have reached the disk.

        Only then do they get their keys: a new key never stands beside old pixels, whatever reaches the disk first.
        """
        if packed := [position for position in positions if position in self._new_keys]:
            self.arrays.flush()
            self.arrays["keys"][packed] = [self._new_keys.pop(position) for position in packed]
            super().settle(packed)


class DiskCache:
    """Fitted images as .npy files in a folder of their own, one for each size and way of scaling, named by `_digest`.

    So a file that is found is the image as it is now.
    """

    def __init__(self, index: LabelIndex, size: int, smooth: bool, prefix: str = "", team: Team = ALONE) -> None:
        """Each process of the team decodes its share.

        Raises OSError, with the reason, when there is no place or no permission to write; in all processes if in one.
        """
        self.index, self.size, self.smooth = index, size, smooth
        beside = Path(index.file(0)).absolute().parent
        self.folder = beside.with_name(f"{beside.name}_npy") / f"{size}-{'linear' if smooth else 'area'}"
        with team.agreed():
            self.folder.mkdir(parents=True, exist_ok=True)
            if team.is_first:
                _check_disk(self.folder, 3 * int(fitted_sizes(index.sizes, size).prod(axis=1).sum()))
        count = 0
        with team.agreed():
            count = _fill(self, team.mine(range(len(index))), f"{prefix}caching images on disk")
        LOGGER.info(f"{prefix}{sum(team.gather(count))} images cached in {shown(self.folder)}")

    def file(self, position: int) -> Path:
        """Return the file of an image as it is now."""
        return self.folder / f"{_digest(self.index, position).hex()}.npy"

    def is_current(self, position: int) -> bool:
        """Return whether the image is here, as its file is now."""
        return self.get(position) is not None

    def settle(self, positions: Sequence[int]) -> None:
        """Do nothing: each image is whole when its file has its name."""

    def keep(self, position: int, image: np.ndarray) -> None:
        """Keep a fitted image."""
        with replacing(self.file(position)) as beside, beside.open("wb") as file:
            np.save(file, image)

    def get(self, position: int) -> np.ndarray | None:
        """Return the fitted image (h, w, 3) uint8 BGR; None if it is not here, or not whole."""
        expected = (*fitted_sizes(self.index.sizes[position], self.size)[::-1].tolist(), 3)
        try:
            image = read_array(self.file(position), 1024 + 3 * self.size**2)
        except (OSError, ValueError):
            return None  # absent or damaged: the image itself is read instead
        return image if image.shape == expected and image.dtype == np.uint8 else None


def open_cache(
    kind: str | bool | None, index: LabelIndex, size: int, smooth: bool, prefix: str = "", team: Team = ALONE
) -> MemoryCache | DiskCache | None:
    """Return the cache "ram", "disk" or "packed", filled by the team; None, with a warning, where there is no room.

    If one process cannot have it, none has. Raises ValueError for another kind.
    """
    if not kind:
        return None
    kinds: dict[str | bool, type[MemoryCache | DiskCache]] = {
        "ram": MemoryCache,
        True: MemoryCache,
        "disk": DiskCache,
        "packed": PackedCache,
    }
    if kind not in kinds:
        raise ValueError(f"unknown cache {kind!r}; there are: ram, disk, packed")
    try:
        return kinds[kind](index, size, smooth, prefix, team)
    except (MemoryError, OSError) as error:
        LOGGER.warning(f"{prefix}images are not cached: {error}")
        return None
