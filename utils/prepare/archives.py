"""Unpack archives that may be anybody's: into their folder, nothing but files, and no more than is believable."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from utils.base.files import printable, replacing
from utils.base.log import LOGGER
from utils.base.paths import shown

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
CHUNK = 1 << 20
MAX_HEADER = 1 << 22  # bytes that a tar may ask for at once: names, never content
MAX_RATIO, MAX_UNRATED = 200, 1 << 30  # an archive may grow this many times, or to 1 GiB, whichever is more
MAX_NAME = 1024  # characters of a path in an archive
MIN_DIRECTORY, ENTRY = 1 << 22, 400  # bytes of a zip's directory that are always read; those for each file allowed

_DAMAGE = (
    EOFError, zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error,
    ValueError, LookupError, OverflowError, MemoryError, RuntimeError, AssertionError,
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TOO_MUCH = "it unpacks to far more than its size allows to believe"
_ITS_FAULT = {  # what the system says of names that no archive should have
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EILSEQ, errno.EINVAL, errno.ELOOP, errno.ENXIO,
}  # fmt: skip


class ArchiveLimits(NamedTuple):
    """What an archive may unpack to: bytes, and files and folders."""

    size: int = 1 << 40
    files: int = 10_000_000


class _BoundedTar(io.RawIOBase):
    """A tar, unpacked as it is read, that gives out `room` bytes, forwards only, and no long stretches at once."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self.file, self.room, self.tell = file, room, file.tell  # type: ignore[method-assign]  # the same place

    def read(self, size: int = -1) -> bytes:
        """Raise ValueError when too much is asked for."""
        if not 0 <= size <= MAX_HEADER:
            raise ValueError(f"it has a header of {size:,} bytes")
        content = self.file.read(size)
        self.room -= len(content)
        if self.room < 0:
            raise ValueError(_TOO_MUCH)
        return content

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Go forward by reading, so that nothing is unpacked uncounted."""
        if position < 0 or whence != os.SEEK_SET:
            raise ValueError("it leads back to what was read before")
        if position < self.file.tell():
            return self.file.seek(position)
        while (ahead := position - self.file.tell()) > 0 and self.read(min(ahead, CHUNK)):
            pass
        return self.file.tell()


class _BoundedZip(io.BufferedReader):
    """A zip of which no more than `room` bytes are read at once, as its directory is; content is read in pieces."""

    room = MIN_DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        wanted = os.fstat(self.fileno()).st_size - self.tell() if size is None or size < 0 else size
        if wanted > self.room:
            raise ValueError(f"its directory of {wanted:,} bytes names too many files")
        return super().read(size)


def _entries(path: Path, limits: ArchiveLimits, room: int) -> Iterator[tuple[str, BinaryIO | None]]:
    """Yield name and content (None for a folder); content is to be read before the next is asked for."""
    if path.name.lower().endswith(".zip"):
        with _BoundedZip(io.FileIO(path)) as zipped:
            zipped.room = max(MIN_DIRECTORY, limits.files * ENTRY)
            for info in (archive := zipfile.ZipFile(zipped)).infolist():
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ValueError(f"{info.filename!r} is a link or a device")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # unpacks without a measure
                    raise ValueError(f"{info.filename!r} is compressed in another way than by deflate")
                yield info.filename, None if info.is_dir() else cast(BinaryIO, archive.open(info))
        return
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        unpacked = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
        with tarfile.open(fileobj=_BoundedTar(unpacked, room), mode="r:") as tar:
            for member in tar:
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
                    raise ValueError(f"{member.name!r} is a link, a device or has holes")
                if member.size < 0:
                    raise ValueError(f"{member.name!r} has a negative size")
                yield member.name, cast(BinaryIO | None, tar.extractfile(member))


def _place(folder: Path, name: str) -> Path:
    """Return where an entry goes. Raises ValueError for a name that leads out of the folder, or is none."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    outside = name.startswith(("/", "\\")) or ".." in parts or any(":" in part or "\0" in part for part in parts)
    target = folder.joinpath(*parts)
    if outside or not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name[:MAX_NAME]!r} leads out of the folder")
    if _CONTROL.search(name):  # a terminal obeys them wherever the name is listed
        raise ValueError(f"{name[:MAX_NAME]!r} has control characters in it")
    if len(name) > MAX_NAME:
        raise ValueError(f"a name of {len(name)} characters")
    return target


def _unpack(archive: Path, folder: Path, limits: ArchiveLimits, top: str) -> tuple[int, int]:
    """Unpack an archive; return how many files were there already, and how many are not in its folder `top`."""
    room, kept, others = min(max(MAX_RATIO * archive.stat().st_size, MAX_UNRATED), limits.size), 0, 0
    for number, (name, content) in enumerate(_entries(archive, limits, room), 1):
        if number > limits.files:
            raise ValueError(f"it has more than {limits.files:,} files and folders")
        inside = name.removeprefix("./")
        if top and not inside.startswith(f"{top}/"):
            others += inside.rstrip("/") != top
            continue
        target = _place(folder, inside.removeprefix(f"{top}/") if top else name)
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
        elif os.path.lexists(target):
            kept += 1
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, replacing(target) as beside, beside.open("xb") as file:
                while chunk := content.read(CHUNK):
                    room -= len(chunk)
                    if room < 0:
                        raise ValueError(_TOO_MUCH)
                    file.write(chunk)
    return kept, others


def extract(archive: str | Path, folder: str | Path, limits: ArchiveLimits | None = None, top: str = "") -> Path:
    """Unpack a .zip, .tar or .tar.gz into a folder; files that are there already are left as they are.

    With `top`, only what lies in the archive's folder of that name, without it. Raises ValueError, naming the archive,
    for damage, links, names that lead outside, archives that grow more than 200 times (and above 1 GiB) or beyond the
    limits: what was unpacked until then stays. OSError where the disk is full or not ours.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.name.lower().endswith(ARCHIVES):
        raise ValueError(f"{printable(archive)}: not an archive this program unpacks ({', '.join(ARCHIVES)})")
    try:
        kept, others = _unpack(archive, folder, limits or ArchiveLimits(), top)
    except (*_DAMAGE, OSError) as error:
        reason = printable(str(error) or type(error).__name__)[:300]
        if isinstance(error, OSError) and not isinstance(error, _DAMAGE):
            if error.errno not in (None, *_ITS_FAULT):
                raise
            reason = error.strerror or reason
        raise ValueError(f"{printable(archive)}: cannot be unpacked safely: {reason}") from error
    if kept:
        LOGGER.info(f"{shown(archive)}: {kept} files were there already and stay as they are")
    if others:
        LOGGER.warning(f"{shown(archive)}: {others} files that are not in {top}/ were left out")
    return folder
