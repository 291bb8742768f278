"""Images kept ready at the training size, in memory or on disk, so that a file is decoded only once.

Both kinds hold what `fit_longest` gives. The size of the original stays with the labels, so boxes find their way back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from utils.distributed.shared_memory import ALONE, layout_of, reserve
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


def _fill(cache: MemoryCache | DiskCache, positions: Sequence[int], description: str) -> int:
    """Keep the images at these positions, by threads, with a progress bar; return how many there are.

    An image that cannot be kept is read each time.
    """

    def _keep(position: int) -> bool:
        if cache.get(position) is not None:
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
            for result in pool.map(_keep, positions[start : start + CHUNK]):
                done += result
                bar.update()
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
        with team.agreed():
            free = _free_memory() if team.is_first else None
            if free is not None and needed > HEADROOM * free:
                raise MemoryError(f"{needed / GIB:.1f} GiB of images, {free / GIB:.1f} GiB of memory free")
        layout = layout_of({"shapes": shapes, "starts": starts})
        self.arrays = reserve((*layout, ("filled", "|b1", (len(index),)), ("pixels", "|u1", (needed,))), team)
        if team.is_first:
            self.arrays["shapes"][...], self.arrays["starts"][...] = shapes, starts
        team.broadcast(None)  # nobody fills before the places are known
        with team.agreed():
            _fill(self, team.mine(range(len(index))), f"{prefix}caching images in memory")
        count = np.count_nonzero(self.arrays["filled"])
        LOGGER.info(f"{prefix}{count} images cached in {needed / GIB:.2f} GiB of memory")

    def _place(self, position: int) -> np.ndarray:
        start, end = self.arrays["starts"][position : position + 2]
        width, height = self.arrays["shapes"][position]
        return self.arrays["pixels"][start:end].reshape(height, width, 3)

    def keep(self, position: int, image: np.ndarray) -> None:
        """Keep a fitted image."""
        self._place(position)[:] = image
        self.arrays["filled"][position] = True

    def get(self, position: int) -> np.ndarray | None:
        """Return the fitted image (h, w, 3) uint8 BGR, not to be written to; None if it is not here."""
        return self._place(position) if self.arrays["filled"][position] else None


class DiskCache:
    """Fitted images as .npy files in a folder of their own, one for each size and way of scaling.

    The name of a file is a digest of the image's full path, size and modification time and of the decoder, so an edited
    image, another one of the same name, or other pixels of the same file never find a wrong file.
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
            needed = 3 * int(fitted_sizes(index.sizes, size).prod(axis=1).sum())
            free = shutil.disk_usage(self.folder).free
            if team.is_first and needed > HEADROOM * free:
                raise OSError(f"{needed / GIB:.1f} GiB of images, {free / GIB:.1f} GiB of disk free")
        count = 0
        with team.agreed():
            count = _fill(self, team.mine(range(len(index))), f"{prefix}caching images on disk")
        LOGGER.info(f"{prefix}{sum(team.gather(count))} images cached in {shown(self.folder)}")

    def file(self, position: int) -> Path:
        """Return the file of an image as it is now."""
        path = os.path.abspath(self.index.path(position))
        status = os.stat(self.index.file(position))
        key = os.fsencode(path) + f"\0{status.st_size} {status.st_mtime_ns} {DECODER}".encode()
        return self.folder / f"{hashlib.sha256(key).hexdigest()[:32]}.npy"

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
    """Return the cache "ram" or "disk", filled by the whole team; None, with a warning, where there is no room.

    If one process cannot have it, none has. Raises ValueError for another kind.
    """
    if kind not in ("ram", "disk", True):
        if kind:
            raise ValueError(f"unknown cache {kind!r}; there are: ram, disk")
        return None
    try:
        return (DiskCache if kind == "disk" else MemoryCache)(index, size, smooth, prefix, team)
    except (MemoryError, OSError) as error:
        LOGGER.warning(f"{prefix}images are not cached: {error}")
        return None
