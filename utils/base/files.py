"""Read files that really are files, no more of them than makes sense, and name them so that one line stays one line.

What lies in a folder need not be what its name says: opening a pipe waits for ever, a device never ends, a link may
lead back to where it lies.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MIB = 1 << 20
CHUNK = 1 << 16  # bytes
MAX_VISITS = 64  # how often links may lead into one and the same folder
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


# Controls, half characters, bytes that are no text, ends of lines: what moves a terminal's cursor or breaks a line
_CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
# Turns the direction of reading or cannot be seen; joiners and marks that scripts and emoji are written with stay
_HIDDEN = "\u00ad\u180e\u200b\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001\U000e0020-\U000e007f"
_NO_LINE, _ODD = re.compile(f"[{_CONTROLS}]"), re.compile(f"[{_CONTROLS}{_HIDDEN}]")
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')  # in a name, on one file system or another
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\.|$)", re.IGNORECASE)  # no file on Windows
LONGEST_NAME = 230  # bytes of a name; file systems hold 255, and endings and numbers come after it


def is_one_line(text: str) -> bool:
    """Return whether the text has no line ends, no control characters and no bytes that are no text."""
    return text.isprintable() or _NO_LINE.search(text) is None


def printable(text: str | Path) -> str:
    """Return the text as it may be shown: what breaks a line, moves a cursor, turns the direction of reading or cannot
    be seen is written as an escape, as in `a\\nb.jpg`.
    """
    text = str(text)
    return text if text.isprintable() else _ODD.sub(lambda odd: odd[0].encode("unicode_escape").decode("ascii"), text)


def file_stem(text: str) -> str:
    """Return a stem for files, close to the text: nothing odd in it, no separator, `LONGEST_NAME` bytes at most.

    What is longer keeps its beginning and gets a checksum, so that different names stay different.
    """
    plain = _ODD.sub("_", text).replace("/", "_")
    if len(plain.encode()) <= LONGEST_NAME:
        return plain
    mark = "~" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return plain.encode()[: LONGEST_NAME - len(mark)].decode(errors="ignore") + mark


def folder_name(text: str) -> str:
    """Return a folder's name for any text, good on every file system: as `file_stem`, none of `. .. con a:b`."""
    plain = _FORBIDDEN.sub("_", text)
    ended = plain.rstrip(". ")
    plain = ended + "_" * (len(plain) - len(ended)) or "_"
    return file_stem(f"_{plain}" if _DEVICE.match(plain) else plain)


def file_size(path: str | Path, limit: int) -> int:
    """Return the size in bytes of a regular file. Nothing is opened.

    Raises ValueError, without the name, for anything else and for more than `limit` bytes; OSError as `os.stat` does.
    """
    if "\0" in str(path):
        raise ValueError("a name with a NUL in it belongs to no file")
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "something else")
        raise ValueError(f"it is {kind}, not a file")
    check_size(status.st_size, limit)
    return status.st_size


def check_size(size: int, limit: int) -> None:
    """Raise ValueError for more bytes than are read of a file of this kind."""
    if size > limit:
        raise ValueError(f"its {size:,} bytes are more than the {limit:,} that are read of such a file")


def read_bytes(path: str | Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; raises as `file_size` does."""
    room, parts, length = max(file_size(path, limit) + 1, CHUNK), [], 0  # read(limit) would ask for all of that memory
    with open(path, "rb") as file:
        while part := file.read(room):
            parts.append(part)
            length += len(part)
            check_size(length, limit)  # it may have grown, or lie where sizes mean nothing
    return b"".join(parts)


@contextmanager
def replacing(target: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a new file beside `target`, which takes its place when the block ends: whole or not at all.

    Where the block fails, `target` stays as it was and the new file is removed. With `durable` the content has reached
    the disk before it takes the place, so that a crash of the machine leaves the one or the other.
    """
    target = Path(target)
    beside = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        yield beside
        if durable:
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_whole(target: str | Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, so that a crash leaves the earlier one or the new one. Raises OSError."""
    with replacing(target, durable=True) as beside:
        beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def folded(name: str) -> str:
    """Return what two spellings of one name have in common: no case, width, edges, or kind of separator."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_-]+", " ", plain).strip()


def decoded(content: bytes, errors: str = "strict") -> str:
    """Return the text of a file: UTF-8, or the UTF-16 that Windows marks and writes. UnicodeError says what to do."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16") if wide else content.decode("utf-8-sig", errors)
    except UnicodeError as error:
        raise UnicodeError("it is not text in UTF-8; save it as UTF-8") from error


def is_hidden(path: str, folder: str | Path) -> bool:
    """Return whether a path is hidden below a folder: `.name`, or what macOS and notebooks leave, as `__MACOSX`."""
    parts = os.path.relpath(path, folder).split(os.sep)
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)


def walk_files(folder: str | Path) -> Iterator[str]:
    """Yield every name below a folder that is no folder, links to folders followed unless they lead back up."""
    visits: dict[tuple[int, int], int] = {}
    pending = [(os.fspath(folder), frozenset[tuple[int, int]]())]
    while pending:
        place, above = pending.pop()
        try:
            status = os.stat(place)
            entries = list(os.scandir(place))
        except OSError:
            continue  # no permission, or gone: as if it were empty
        identity = (status.st_dev, status.st_ino)
        visits[identity] = visits.get(identity, 0) + 1
        if identity in above or visits[identity] > MAX_VISITS:
            continue
        for entry in entries:
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # a link may lead in circles
                pending.append((entry.path, above | {identity}))
            else:
                yield entry.path
