"""NumPy's files, read without trust: plain numbers only, and never more of them than the file has bytes for."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from utils.base.files import file_size, printable

Taken = TypeVar("Taken")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGE = (
    EOFError, ValueError, TypeError, LookupError, ArithmeticError, SyntaxError, RecursionError, MemoryError,
    RuntimeError, AttributeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_array(path: str | Path, limit: int) -> np.ndarray:
    """The array in a .npy file of at most `limit` bytes. Raises ValueError for another file, OSError as `open` does."""
    return _read(path, limit, _array)


def read_arrays(path: str | Path, limit: int) -> dict[str, np.ndarray]:
    """The arrays in a .npz file of at most `limit` bytes, not compressed, by name; raises as `read_array` does."""
    return _read(path, limit, _parts)


def _read(path: str | Path, limit: int, take: Callable[[BinaryIO, int], Taken]) -> Taken:
    try:
        size = file_size(path, limit)
        with open(path, "rb") as file:
            return take(file, size)
    except _DAMAGE as error:
        raise ValueError(f"{printable(path)}: no arrays of numbers ({_reason(error)})") from error


def _parts(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise ValueError("its parts are compressed")
            if sum(part.file_size for part in parts) > size or len({part.filename for part in parts}) < len(parts):
                raise ValueError("its parts overlap")
            return {part.filename.removesuffix(".npy"): _part(archive, part) for part in parts}
    except OSError as error:  # the file could be opened: it leads to places that it has not
        raise ValueError(error.strerror or str(error)) from error


def _part(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(part) as stream:
        return _array(stream, part.file_size)


def _array(stream: BinaryIO, size: int) -> np.ndarray:
    """The array in a stream of `size` bytes."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"of version {version[0]}.{version[1]}")
    shape, is_fortran, kind = _HEADERS[version](stream)
    if kind.kind not in "biuf" or kind.fields or kind.subdtype:
        raise ValueError("not of plain numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != size - stream.tell():
        raise ValueError(f"{size:,} bytes for an array of {printable(str(shape))[:40]}")
    array = np.empty(math.prod(shape), dtype=kind)
    if stream.readinto(memoryview(array.view(np.uint8))) != array.nbytes:
        raise EOFError("cut off")
    if stream.read(1):  # at the end a part of an archive is compared with its checksum
        raise ValueError("more than its shape says")
    return array.reshape(shape, order="F" if is_fortran else "C")


def _reason(error: BaseException) -> str:
    return printable((str(error).splitlines() or [""])[0][:200]) or type(error).__name__
