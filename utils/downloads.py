"""Fetch files somebody asked for, and unpack archives: resumable, checked where a checksum is known, never by a shell.

Nothing here runs by itself. A file appears under its name only when it is whole; an archive may write nowhere but into
its folder, and no more than is believable.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from utils.log import LOGGER
from utils.paths import shown

CHUNK = 1 << 20
ATTEMPTS = 3
TIMEOUT = 30  # seconds without a byte
SCHEMES = ("https", "http", "file")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_DAMAGE = (EOFError, zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error)
MAX_RATIO, MAX_UNRATED = 200, 1 << 30  # an archive may grow this many times, or to 1 GiB, whichever is more


class Remote(NamedTuple):
    """A file to fetch: where it is and, where known, its checksum as "md5:..." or "sha256:..."."""

    url: str
    checksum: str | None = None


def url2file(url: str) -> str:
    """The file name at the end of a URL, without its query."""
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name


def file_checksum(path: Path, kind: str) -> str:
    """Hexadecimal digest of a file; `kind` as hashlib names it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _verify(path: Path, checksum: str | None, url: str) -> None:
    if checksum is None:
        return
    kind, _, expected = checksum.partition(":")
    if (found := file_checksum(path, kind)) != expected.lower():
        path.unlink()
        raise ValueError(f"{url}: {kind} is {found}, expected {expected}; the file was removed, try again")


# ---- one file --------------------------------------------------------------------------------------------------------


def _validator(headers: Message) -> str:
    """What tells one version of a remote file from the next; nothing if the server does not say."""
    etag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag


def _request(url: str, part: Path, note: Path) -> urllib.request.Request:
    """Ask for the rest of a half-fetched file, on the condition that it is still the same one."""
    request = urllib.request.Request(url, headers={"User-Agent": "yolov5-biformer"})
    if url.startswith("http") and part.exists() and note.exists() and (known := note.read_text(encoding="utf-8")):
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", known)
    return request


def _fetch_once(url: str, part: Path, note: Path) -> None:
    """Fetch into `part`, from where it ends if the server agrees. Raises OSError when the connection ends early."""
    with urllib.request.urlopen(_request(url, part, note), timeout=TIMEOUT) as answer:  # noqa: S310 - scheme is checked
        resumed = getattr(answer, "status", None) == 206
        start = part.stat().st_size if resumed else 0
        note.write_text(_validator(answer.headers), encoding="utf-8")
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        quiet = not LOGGER.isEnabledFor(20) or not LOGGER.hasHandlers()
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=url2file(url), disable=quiet)
        with bar, open(part, "ab" if resumed else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and part.stat().st_size != total:
            raise ConnectionError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def _fetch_whole(url: str, part: Path, note: Path) -> None:
    """Try a few times, going on where the last try ended. Raises OSError in one line when it does not work."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch_once(url, part, note)
        except urllib.error.HTTPError as error:
            last: Exception = error
            if error.code == 416:  # nothing left to send, or another file by now: begin again
                part.unlink(missing_ok=True)
            elif error.code < 500:
                break
        except (OSError, HTTPException) as error:
            last = error
        if attempt < ATTEMPTS:
            time.sleep(attempt)
    reason = f"{last.code} {last.reason}" if isinstance(last, urllib.error.HTTPError) else getattr(last, "reason", last)
    raise OSError(f"{url} cannot be fetched ({reason}); check the address and the network, then try again") from last


def download_file(url: str, target: str | Path, checksum: str | None = None) -> Path:
    """Fetch a URL to the file `target`; an existing file is kept (if its checksum, where given, is right).

    A broken transfer leaves `target.part` and goes on from there next time. Raises ValueError for a wrong checksum or a
    scheme other than https, http and file, OSError when the file cannot be had.
    """
    target = Path(target)
    if urllib.parse.urlsplit(url).scheme not in SCHEMES:
        raise ValueError(f"{url}: only {', '.join(SCHEMES)} addresses can be fetched")
    if target.exists():
        _verify(target, checksum, url)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part, note = (target.with_name(target.name + suffix) for suffix in (".part", ".part.version"))
    _fetch_whole(url, part, note)
    _verify(part, checksum, url)
    os.replace(part, target)
    note.unlink(missing_ok=True)
    return target


# ---- archives --------------------------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    name: str
    size: int
    content: BinaryIO | None  # None for a folder


def _zip_entries(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{info.filename!r} is a link or a device")
        if info.is_dir():
            yield _Entry(info.filename, 0, None)
        else:
            with archive.open(info) as content:
                yield _Entry(info.filename, info.file_size, content)


def _tar_entries(archive: tarfile.TarFile) -> Iterator[_Entry]:
    for member in archive:
        if not (member.isfile() or member.isdir()):
            raise ValueError(f"{member.name!r} is a link or a device")
        yield _Entry(member.name, member.size, archive.extractfile(member) if member.isfile() else None)


def _place(folder: Path, name: str) -> Path:
    """Where an entry goes. Raises ValueError for a name that leads out of the folder."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    outside = name.startswith(("/", "\\")) or ".." in parts or any(":" in part or "\0" in part for part in parts)
    target = folder.joinpath(*parts)
    if outside or not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of the folder")
    return target


def _write(content: BinaryIO, target: Path, room: int) -> int:
    """Copy at most `room` bytes to a new file, which appears when it is whole; how many there were."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, written = target.with_name(target.name + ".unpacking"), 0
    try:
        with open(temporary, "wb") as file:
            while chunk := content.read(CHUNK):
                written += len(chunk)
                if written > room:
                    raise ValueError("it unpacks to far more than its size allows to believe")
                file.write(chunk)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def extract(archive: str | Path, folder: str | Path) -> Path:
    """Unpack a .zip, .tar or .tar.gz into a folder; files that are there already are left as they are.

    Raises ValueError, naming the archive, for damage, links, names that lead outside, and archives that grow more than
    200 times (and above 1 GiB): what was unpacked until then stays.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.name.lower().endswith(ARCHIVES):
        raise ValueError(f"{archive}: not an archive this program unpacks ({', '.join(ARCHIVES)})")
    room = max(MAX_RATIO * archive.stat().st_size, MAX_UNRATED)
    kept = 0
    try:
        is_zip = archive.name.lower().endswith(".zip")
        with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as opened:
            for entry in _zip_entries(opened) if is_zip else _tar_entries(opened):
                target = _place(folder, entry.name)
                if entry.content is None:
                    target.mkdir(parents=True, exist_ok=True)
                elif target.exists():
                    kept += 1
                else:
                    room -= _write(entry.content, target, room)
    except (*_DAMAGE, ValueError, RuntimeError) as error:
        raise ValueError(f"{archive}: cannot be unpacked safely: {error}") from error
    if kept:
        LOGGER.info(f"{shown(archive)}: {kept} files were there already and stay as they are")
    return folder


def fetch(files: Sequence[str | Remote], folder: str | Path, unpack: bool = True, threads: int = 1) -> list[Path]:
    """Fetch several files into a folder, unpack the archives among them there and remove those archives.

    Returns the paths of what was fetched (gone, for unpacked archives). Raises as `download_file` and `extract` do.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def fetch_one(file: str | Remote) -> Path:
        """Fetch, and unpack, one of them."""
        remote = Remote(file) if isinstance(file, str) else file
        path = download_file(remote.url, folder / url2file(remote.url), remote.checksum)
        if unpack and path.name.lower().endswith(ARCHIVES):
            LOGGER.info(f"unpacking {shown(path)}")
            extract(path, folder)
            path.unlink()
        return path

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(fetch_one, files))
