"""Pictures kept ready at the training size, in memory or on disk, so that a file is decoded only once.

Both kinds hold what `fit_longest` gives. The size of the original stays with the labels, so boxes find their way back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.label_index import CHECKING_THREADS, LabelIndex
from utils.labels import fit_longest, fitted_size, read_image
from utils.log import LOGGER
from utils.paths import shown

GIB = 1 << 30
HEADROOM = 0.9  # part of the free memory or disk that a cache may take


def _free_memory() -> int | None:
    """Bytes that can be had without swapping, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _for_each(count: int, work: Callable[[int], bool], description: str) -> int:
    """Run `work` on 0 .. count - 1 in threads with a progress bar; how often it said yes."""
    quiet = not LOGGER.isEnabledFor(20) or not LOGGER.hasHandlers()
    with ThreadPoolExecutor(CHECKING_THREADS) as pool:
        results = pool.map(work, range(count))
        return sum(tqdm(results, description, count, unit=" pictures", disable=quiet, dynamic_ncols=True))


class MemoryCache:
    """All pictures of a data set in one block of memory, which every loader process of this machine's run shares.

    The block is a tensor: forked workers see the parent's pages, spawned ones get it through shared memory.
    """

    def __init__(self, index: LabelIndex, size: int, smooth: bool, prefix: str = "") -> None:
        """Raises MemoryError, with the numbers, when the pictures would not fit."""
        shapes = [fitted_size(int(width), int(height), size) for width, height in index.sizes]
        self.widths, self.heights = np.array(shapes, dtype=np.int64).reshape(-1, 2).T
        self.starts = np.concatenate(([0], np.cumsum(self.widths * self.heights * 3)))
        needed, free = int(self.starts[-1]), _free_memory()
        if free is not None and needed > HEADROOM * free:
            raise MemoryError(f"{needed / GIB:.1f} GiB of pictures, {free / GIB:.1f} GiB of memory free")
        self.pixels = torch.empty(needed, dtype=torch.uint8)
        self.filled = torch.zeros(len(index), dtype=torch.bool)
        self.index, self.size, self.smooth = index, size, smooth
        count = _for_each(len(index), self._fill, f"{prefix}caching pictures in memory")
        LOGGER.info(f"{prefix}{count} pictures cached in {needed / GIB:.2f} GiB of memory")

    def _place(self, position: int) -> np.ndarray:
        start, end = self.starts[position : position + 2]
        return self.pixels.numpy()[start:end].reshape(self.heights[position], self.widths[position], 3)

    def _fill(self, position: int) -> bool:
        try:
            original = read_image(self.index.path(position))
        except ValueError as error:
            LOGGER.warning(f"not cached: {error}")
            return False
        image = fit_longest(original, self.size, self.smooth)
        place = self._place(position)
        if image.shape != place.shape:  # decoded to another size than its header says: read it each time
            return False
        place[:] = image
        self.filled[position] = True
        return True

    def get(self, position: int) -> np.ndarray | None:
        """The fitted picture (h, w, 3) uint8 BGR, not to be written to; None if it is not here."""
        return self._place(position) if self.filled[position] else None


class DiskCache:
    """Fitted pictures as .npy files in a folder of their own, one for each size and way of scaling.

    The name of a file is a digest of the picture's full path, size and modification time, so an edited picture, or
    another one of the same name, never finds a wrong file.
    """

    def __init__(self, index: LabelIndex, size: int, smooth: bool, prefix: str = "") -> None:
        """Raises OSError, with the reason, when there is no place or no permission to write."""
        self.index, self.size, self.smooth = index, size, smooth
        beside = Path(index.path(0)).absolute().parent
        self.folder = beside.with_name(f"{beside.name}_npy") / f"{size}-{'linear' if smooth else 'area'}"
        self.folder.mkdir(parents=True, exist_ok=True)
        shapes = [fitted_size(int(width), int(height), size) for width, height in index.sizes]
        needed, free = 3 * sum(width * height for width, height in shapes), shutil.disk_usage(self.folder).free
        if needed > HEADROOM * free:
            raise OSError(f"{needed / GIB:.1f} GiB of pictures, {free / GIB:.1f} GiB of disk free")
        count = _for_each(len(index), self._fill, f"{prefix}caching pictures on disk")
        LOGGER.info(f"{prefix}{count} pictures cached in {shown(self.folder)}")

    def _file(self, position: int) -> Path:
        path = os.path.abspath(self.index.path(position))
        status = os.stat(path)
        key = os.fsencode(path) + f"\0{status.st_size} {status.st_mtime_ns}".encode()
        return self.folder / f"{hashlib.sha256(key).hexdigest()[:32]}.npy"

    def _fill(self, position: int) -> bool:
        if self.get(position) is not None:
            return True
        try:
            original = read_image(self.index.path(position))
        except ValueError as error:
            LOGGER.warning(f"not cached: {error}")
            return False
        height, width = original.shape[:2]
        if (width, height) != tuple(self.index.sizes[position]):  # its own size could not be told afterwards
            return False
        file = self._file(position)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as temporary:
            try:
                np.save(temporary, fit_longest(original, self.size, self.smooth))
                temporary.flush()
            except OSError:
                os.unlink(temporary.name)  # no half-written file stays on a full disk
                raise
        os.replace(temporary.name, file)
        return True

    def get(self, position: int) -> np.ndarray | None:
        """The fitted picture (h, w, 3) uint8 BGR; None if it is not here, or not whole."""
        expected = fitted_size(*map(int, self.index.sizes[position]), self.size)[::-1]
        try:
            image = np.load(self._file(position), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None  # absent or damaged: the picture itself is read instead
        return image if image.shape == (*expected, 3) and image.dtype == np.uint8 else None


def open_cache(
    kind: str | bool | None, index: LabelIndex, size: int, smooth: bool, prefix: str = ""
) -> MemoryCache | DiskCache | None:
    """The cache called "ram" or "disk"; None, with a warning, where there is no room for it.

    Raises ValueError for another kind.
    """
    if not kind:
        return None
    if kind not in ("ram", "disk", True):
        raise ValueError(f"unknown cache {kind!r}; there are: ram, disk")
    try:
        return (DiskCache if kind == "disk" else MemoryCache)(index, size, smooth, prefix)
    except (MemoryError, OSError) as error:
        LOGGER.warning(f"{prefix}pictures are not cached: {error}")
        return None
