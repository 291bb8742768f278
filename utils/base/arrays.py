"""NumPy's files, read without trust: plain numbers only, and never more of them than the file has bytes for."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from utils.base.files import file_size, printable

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGE = (
    EOFError, ValueError, TypeError, LookupError, ArithmeticError, SyntaxError, RecursionError, MemoryError,
    RuntimeError, AttributeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_array(path: str | Path, limit: int) -> np.ndarray:
    """Return the array in a .npy file of at most `limit` bytes.

    Raises ValueError for another file, OSError as `open` does.
    """
    with _opened(path, limit) as (file, size):
        return _array(file, size)


def read_arrays(path: str | Path, limit: int) -> dict[str, np.ndarray]:
    """Return the arrays in a .npz file of at most `limit` bytes, not compressed, by name; as `read_array`."""
    with _opened(path, limit) as (file, size), zipfile.ZipFile(file) as archive:
        parts, arrays = archive.infolist(), {}
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("its parts are compressed")
        if sum(part.file_size for part in parts) > size or len({part.filename for part in parts}) < len(parts):
            raise ValueError("its parts overlap")
        for part in parts:
            try:
                with archive.open(part) as stream:
                    arrays[part.filename.removesuffix(".npy")] = _array(stream, part.file_size)
            except OSError as error:  # the file could be opened: it leads to places that it has not
                raise ValueError(error.strerror or str(error)) from error
        return arrays


@contextmanager
def _opened(path: str | Path, limit: int) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file of at most `limit` bytes; whatever reading it stumbles over is a ValueError that names the file."""
    try:
        size = file_size(path, limit)
        with open(path, "rb") as file:
            yield file, size
    except _DAMAGE as error:
        reason = printable((str(error).splitlines() or [""])[0][:200]) or type(error).__name__
        raise ValueError(f"{printable(path)}: no arrays of numbers ({reason})") from error


def _array(stream: Any, size: int) -> np.ndarray:
    """Return the array in a stream of `size` bytes."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"of version {version[0]}.{version[1]}")
    shape, is_fortran, kind = _HEADERS[version](stream)
    if kind.kind not in "biuf" or kind.fields or kind.subdtype:
        raise ValueError("not of plain numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != size - stream.tell():
        raise ValueError(f"{size:,} bytes for an array of {printable(str(shape))[:40]}")
    array = np.empty(math.prod(shape), dtype=kind)
    if stream.readinto(array.view(np.uint8).data) != array.nbytes:
        raise EOFError("cut off")
    if stream.read(1):  # at the end a part of an archive is compared with its checksum
        raise ValueError("more than its shape says")
    return array.reshape(shape, order="F" if is_fortran else "C")
