"""Fetch files somebody asked for, and unpack archives: resumable, checked where a checksum is known, never by a shell.

Nothing here runs by itself. A file or folder appears under its name only when it is whole, and takes no other's place.
What is fetched has a largest size, MAX_GIB unless the environment variable YOLOV5_MAX_DOWNLOAD gives another number of
GiB; an archive may unpack to four times as much, in 250,000 files a GiB.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.base.progress import progress
from utils.distributed.run_lock import Busy, RunLock
from utils.prepare.archives import ARCHIVES, ArchiveLimits, extract
from utils.prepare.web import open_url

CHUNK = 1 << 20
WAIT = 0.5  # seconds between looks at another process that fetches the same
ATTEMPTS = 3
TIMEOUT, PATIENCE = 30.0, 120.0  # seconds without a byte; with hardly any
SCHEMES = ("https", "http", "file")
MAX_GIB = 2.0
VARIABLE = "YOLOV5_MAX_DOWNLOAD"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # faults of this machine, which no second try mends


class Remote(NamedTuple):
    """A file to fetch: where it is and, where known, its checksum as "md5:..." or "sha256:..."."""

    url: str
    checksum: str | None = None


def url2file(url: str) -> str:
    """Return the file name at the end of a URL, without its query. Raises ValueError for a URL that makes no sense."""
    try:
        return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    except ValueError as error:
        raise ValueError(f"{printable(url)}: {error}; correct the address") from error


def _target(folder: Path, url: str) -> Path:
    """Return where a URL's file goes. Raises ValueError when it ends in no name, or in one that leads elsewhere."""
    name = url2file(url)
    if name in ("", "..") or any(letter in name for letter in "\\/:\0"):
        raise ValueError(f"{printable(url)}: ends in no file name; correct the address")
    return folder / name


def largest(gib: float | None = None) -> float:
    """Return how many GiB of one file are fetched: `gib`, else what YOLOV5_MAX_DOWNLOAD says, else MAX_GIB."""
    text = os.environ.get(VARIABLE, "").strip()
    if gib is not None or not text:
        return MAX_GIB if gib is None else gib
    try:
        chosen = float(text)
    except ValueError:
        chosen = 0.0
    if not 0 < chosen < 1 << 30:
        raise ValueError(f"{VARIABLE}={printable(text)[:40]}: expected a number of GiB above 0")
    return chosen


def _request(url: str, part: Path, note: Path) -> urllib.request.Request:
    """Return the request for a file, or for the rest of `part` where that is of the version in `note`."""
    request = urllib.request.Request(url, headers={"User-Agent": "yolov5-biformer"})
    if part.exists() and note.exists() and (version := note.read_text(encoding="utf-8")):
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", version)
    return request


def _version(headers: Message) -> str:
    """Return what only this version of a file has: its ETag, or the time it was changed; nothing if none is told.

    Other bytes may have the same weak ETag, and the same time where it is not over when they are sent.
    """
    tag, changed, now = (headers.get(name, "") for name in ("ETag", "Last-Modified", "Date"))
    if re.fullmatch('"[!-~]*"', tag):
        return tag
    return changed if now and changed != now and re.fullmatch("[ -~]*", changed) else ""


def _fetch_once(url: str, part: Path, note: Path, room: int, exact: int) -> None:
    """Fetch into `part`, from where it ends if the server agrees that it is still the same file: `note` says which.

    Raises OSError when the connection ends early, ValueError for more than `room` bytes, or for other than `exact`
    bytes where that is not 0.
    """
    too_large = f"is larger than the {room / (1 << 30):.3g} GiB that are fetched; set {VARIABLE} to more GiB"
    if exact:
        room = exact
        too_large = f"has more than the {exact:,} bytes that are known of it"
    with open_url(_request(url, part, note), TIMEOUT, PATIENCE) as answer:
        size = part.stat().st_size if getattr(answer, "status", None) == 206 else 0
        length = answer.headers.get("Content-Length", "")
        total = size + int(length[:19]) if re.fullmatch("[0-9]+", length) else exact
        if exact not in (0, total):
            raise ValueError(f"has {total:,} bytes, not the {exact:,} that are known of it")
        if max(total, size) > room:
            raise ValueError(too_large)
        bar = progress(None, printable(url2file(url)), total or None, "B", initial=size)
        with bar, open(part, "ab") as file:
            file.truncate(size)
            if not size:  # a rest is of the version that was asked for
                note.write_text(_version(answer.headers), encoding="utf-8")
            while chunk := answer.read1(CHUNK):
                size += len(chunk)
                if size > room:
                    raise ValueError(too_large)
                file.write(chunk)
                bar.update(len(chunk))
        if total not in (0, size):
            raise ConnectionError(f"the connection ended after {size} of {total} bytes")


def reason(error: BaseException) -> str:
    """Return in short, and without the address, why something that raised this could not be fetched."""
    cause = error.__cause__ or error
    text = str(getattr(cause, "reason", cause))
    if isinstance(cause, urllib.error.HTTPError):
        text = f"{cause.code} {text}"
    return printable(" ".join(text.split()))[:200]


def _fetch_whole(url: str, part: Path, note: Path, room: int, exact: int) -> None:
    """Try a few times, going on where the last try ended. Raises OSError in one line when it does not work."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch_once(url, part, note, room, exact)
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK:
                raise OSError(error.errno, error.strerror, str(part)) from error
            last, code = error, getattr(error, "code", 500)
        if code == 416:  # nothing left to send, or another file by now: begin again
            part.unlink(missing_ok=True)
        elif code < 500:
            break
        if attempt < ATTEMPTS:
            time.sleep(attempt)
    failed = f"{printable(url)} cannot be fetched ({reason(last)})"
    raise OSError(f"{failed}; check the address and the network, then try again") from last


def download_file(
    url: str, target: str | Path, checksum: str | None = None, limit: float | None = None, size: int = 0
) -> Path:
    """Fetch a URL of at most `limit` GiB, of exactly `size` bytes where that is not 0, to the file `target`.

    An existing file is kept (if its checksum, where given, is right). A broken transfer leaves `target.part` and goes
    on from there next time. Raises ValueError, and leaves nothing, for a wrong checksum, a scheme other than https,
    http and file, and more bytes than `largest` allows; OSError when the file cannot be had.
    """
    target = Path(target)
    url2file(url)
    if urllib.parse.urlsplit(url).scheme not in SCHEMES:
        raise ValueError(f"{printable(url)}: only {', '.join(SCHEMES)} addresses can be fetched")
    room, there = int(largest(limit) * (1 << 30)), target.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    part, note = (target.with_name(target.name + suffix) for suffix in (".part", ".part.version"))
    if part.is_symlink() or note.is_symlink():
        raise ValueError(f"{printable(part)} is a link to another file; remove it")
    try:
        if not there:
            _fetch_whole(url, part, note, room, size)
        if checksum:
            with open(found := target if there else part, "rb") as file:
                kind, _, expected = checksum.partition(":")
                if (digest := hashlib.file_digest(file, kind).hexdigest()) != expected.lower():
                    found.unlink()
                    raise ValueError(f"{kind} is {digest}, expected {expected}; the file was removed, try again")
    except ValueError as error:
        part.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        raise ValueError(f"{printable(url)}: {printable(str(error))[:500]}") from error
    if not there:
        os.replace(part, target)
        note.unlink(missing_ok=True)
    return target


def _unpack(archive: Path, folder: Path, limit: float | None = None, top: str = "") -> Path:
    """Unpack an archive of at most `limit` GiB: to four times as much, in 250,000 files a GiB."""
    LOGGER.info(f"unpacking {shown(archive)}")
    gib = largest(limit)
    return extract(archive, folder, ArchiveLimits(int(gib * (4 << 30)), max(int(gib * 250_000), 1)), top)


def fetch(
    files: Sequence[str | Remote],
    folder: str | Path,
    unpack: bool = True,
    threads: int = 1,
    limit: float | None = None,
    top: str = "",
) -> list[Path]:
    """Fetch several files of at most `limit` GiB into a folder, unpack the archives among them there and remove those.

    With `top`, what an archive has in its folder of that name is unpacked, without that folder. An archive that was
    there before stays. Returns the paths of what was fetched (gone, for unpacked archives). Raises as `download_file`
    and `extract` do.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def fetch_one(file: str | Remote) -> Path:
        """Fetch, and unpack, one of them."""
        url, checksum = (file, None) if isinstance(file, str) else file
        path = _target(folder, url)
        was_there = path.exists()
        download_file(url, path, checksum, limit)
        if unpack and path.name.lower().endswith(ARCHIVES):
            _unpack(path, folder, limit, top)
            if not was_there:
                path.unlink()
        return path

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(fetch_one, files))


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Wait until no other process fetches `target`, and keep others waiting until the block ends."""
    lock, waiting = None, False
    while lock is None:
        try:
            lock = RunLock(target.parent, name=f".{target.name}.download.lock", does=f"fetches {target.name}")
        except Busy as error:
            if not waiting:
                LOGGER.info(f"{error}; waiting for it")
            waiting = True
            time.sleep(WAIT)
    try:
        yield
    finally:
        lock.release()


def fetch_folder(url: str, folder: Path, wanted: Sequence[Path]) -> None:
    """Fetch an archive that becomes the new folder `folder`, in which the paths `wanted` have to be.

    They may lie in a folder of the archive's own. Everything happens in a hidden folder beside, so that nothing that is
    there is touched and no half of it stays; what was fetched of a broken transfer waits in it. Another process that
    fetches the same folder is waited for, and its folder taken. Raises ValueError where `folder` is there and not
    empty, and as `download_file` and `extract` do.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if not all((folder / path).exists() for path in wanted):
            _fetch_new(url, folder, wanted)


def _fetch_new(url: str, folder: Path, wanted: Sequence[Path]) -> None:
    """Do what `fetch_folder` says, while nobody else does."""
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{printable(folder)} is there already, without {wanted[0]}; move it away and start again")
    staging = folder.with_name(f".{folder.name}.download")
    if staging.is_symlink():
        raise ValueError(f"{printable(staging)} is a link to another folder; remove it")
    try:
        archive = download_file(url, _target(staging, url))
        with tempfile.TemporaryDirectory(dir=staging) as place:
            source = _wanted_part(_unpack(archive, Path(place) / "all"), wanted, url)
            if folder.is_dir():
                folder.rmdir()
            source.rename(folder)
    except ValueError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging)


def _wanted_part(unpacked: Path, wanted: Sequence[Path], url: str) -> Path:
    """Return what was unpacked, or the folder in it that has all that is wanted. Raises ValueError if none has."""
    inside = sorted(unpacked.iterdir()) if unpacked.is_dir() else []
    for place in (unpacked, *(path for path in inside if path.is_dir())):
        if all((place / path).exists() for path in wanted):
            if place != unpacked and len(inside) > 1:
                others = ", ".join(printable(path.name)[:40] for path in inside if path != place)
                LOGGER.warning(f"{printable(url)}: left out, beside {printable(place.name)}: {others[:200]}")
            return place
    raise ValueError(f"{printable(url)}: has no {' and '.join(map(str, wanted))} in it; correct train and val")
