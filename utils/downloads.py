"""Fetch files somebody asked for, and unpack archives: resumable, checked where a checksum is known, never by a shell.

Nothing here runs by itself. A file appears under its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from utils.archives import ARCHIVES, extract
from utils.files import printable
from utils.log import LOGGER
from utils.paths import shown
from utils.progress import progress

CHUNK = 1 << 20
ATTEMPTS = 3
TIMEOUT = 30  # seconds without a byte
SCHEMES = ("https", "http", "file")


class Remote(NamedTuple):
    """A file to fetch: where it is and, where known, its checksum as "md5:..." or "sha256:..."."""

    url: str
    checksum: str | None = None


def url2file(url: str) -> str:
    """The file name at the end of a URL, without its query. Raises ValueError for a URL that makes no sense."""
    try:
        return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    except ValueError as error:
        raise ValueError(f"{printable(url)}: {error}; correct the address") from error


def _target(folder: Path, url: str) -> Path:
    """Where a URL's file goes. Raises ValueError when it ends in no name, or in one that leads elsewhere."""
    name = url2file(url)
    if name in ("", "..") or any(letter in name for letter in "\\/:\0"):
        raise ValueError(f"{printable(url)}: ends in no file name; correct the address")
    return folder / name


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
        total = start + int(length) if length and length.isascii() and length.isdigit() else None
        bar = progress(None, url2file(url), total, "B", initial=start)
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
    url2file(url)
    if urllib.parse.urlsplit(url).scheme not in SCHEMES:
        raise ValueError(f"{printable(url)}: only {', '.join(SCHEMES)} addresses can be fetched")
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


def fetch(files: Sequence[str | Remote], folder: str | Path, unpack: bool = True, threads: int = 1) -> list[Path]:
    """Fetch several files into a folder, unpack the archives among them there and remove those archives.

    Returns the paths of what was fetched (gone, for unpacked archives). Raises as `download_file` and `extract` do.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def fetch_one(file: str | Remote) -> Path:
        """Fetch, and unpack, one of them."""
        remote = Remote(file) if isinstance(file, str) else file
        path = download_file(remote.url, _target(folder, remote.url), remote.checksum)
        if unpack and path.name.lower().endswith(ARCHIVES):
            LOGGER.info(f"unpacking {shown(path)}")
            extract(path, folder)
            path.unlink()
        return path

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(fetch_one, files))
