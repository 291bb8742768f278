"""Fetching from a server on this machine and from files, resuming, checksums."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packed import tarred, zipped
from tests.unreliable import CONTENT, Server
from utils.prepare import downloads
from utils.prepare.downloads import Remote, download_file, fetch, fetch_folder, largest, url2file


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_fetched_once(server: str, tmp_path: Path) -> None:
    Server.to = [server, "/elsewhere"]
    target = download_file(server, tmp_path / "deep/er/a.bin", "sha256:" + hashlib.sha256(CONTENT).hexdigest())
    assert target.read_bytes() == CONTENT and [path.name for path in target.parent.iterdir()] == ["a.bin"]
    assert download_file(server, target) == target and Server.ranges == [None] * 3


def test_a_broken_transfer_goes_on_where_it_ended(server: str, tmp_path: Path) -> None:
    Server.cut = [100_000, 50_000]
    target = download_file(server, tmp_path / "a.bin")
    assert target.read_bytes() == CONTENT
    assert Server.ranges == [None, "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize("now", [False, True])
def test_without_a_strong_tag_the_time_of_the_last_change_tells_the_version(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: bool
) -> None:
    """Unless the file is sent in the second in which it was changed: more of it may have changed since."""
    Server.cut, Server.tag, Server.changed = [100_000, 50_000], 'W/"v1"', "Wed, 01 Jan 2025 00:00:00 GMT"
    if now:
        monkeypatch.setattr(Server, "date_time_string", lambda self: self.changed)
    assert download_file(server, tmp_path / "a.bin").read_bytes() == CONTENT
    assert Server.ranges == [None, *([None, None] if now else ["bytes=100000-", "bytes=150000-"])]


def test_a_later_run_goes_on_too_but_not_with_another_version(server: str, tmp_path: Path) -> None:
    Server.cut = [1000, 1000, 1000]
    with pytest.raises(OSError, match="ended after 3000 of 512000"):
        download_file(server, tmp_path / "a.bin")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.bin.part", "a.bin.part.version"]
    (tmp_path / "a.bin.part").write_bytes(b"x" * 3000)
    Server.tag = '"v2"'
    assert download_file(server, tmp_path / "a.bin").read_bytes() == CONTENT
    assert Server.ranges[-1] == "bytes=3000-"


def test_server_errors(server: str, tmp_path: Path) -> None:
    Server.fail = [404]
    with pytest.raises(OSError, match=r"cannot be fetched \(404 "):
        download_file(server, tmp_path / "a.bin")
    assert len(Server.ranges) == 1, "asking again would not help"
    Server.fail = [503, 416]
    assert download_file(server, tmp_path / "a.bin").read_bytes() == CONTENT
    Server.fail = [500] * 3
    with pytest.raises(OSError, match=r"cannot be fetched \(500 "):
        download_file(server, tmp_path / "b.bin")
    with pytest.raises(OSError, match="cannot be fetched.*network"):
        download_file("http://127.0.0.1:9/none", tmp_path / "c.bin")


def test_a_wrong_checksum_leaves_no_file(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(CONTENT)
    right = "md5:" + hashlib.md5(CONTENT).hexdigest()
    with pytest.raises(ValueError, match="md5 is .*, expected 00"):
        download_file(source.as_uri(), tmp_path / "copy.bin", "md5:00")
    assert files_below(tmp_path) == ["source.bin"]
    assert download_file(source.as_uri(), tmp_path / "copy.bin", right).read_bytes() == CONTENT == source.read_bytes()


def test_fetching_unpacks_and_tidies(tmp_path: Path) -> None:
    one, two = zipped(tmp_path / "one.zip", {"a": b"1"}), tarred(tmp_path / "two.tar.gz", {"b": b"2"})
    (tmp_path / "notes.json").write_text("{}")
    urls = [one.as_uri(), Remote(two.as_uri()), (tmp_path / "notes.json").as_uri()]
    fetch(urls, tmp_path / "out", threads=3)
    assert files_below(tmp_path / "out") == ["a", "b", "notes.json"]
    fetch([one.as_uri()], tmp_path / "kept", unpack=False)
    assert files_below(tmp_path / "kept") == ["one.zip"] and one.exists()
    fetch([one.as_uri()], tmp_path / "kept")  # an archive that was there stays
    assert files_below(tmp_path / "kept") == ["a", "one.zip"]
    assert fetch([], tmp_path / "new") == [] and (tmp_path / "new").is_dir()


@pytest.mark.parametrize("url", ["https://host/", "https://host/..", "https://host/%2e%2e", "https://host/a%00b",
                                 "https://[", "ftp://host/a", "data:,a", "a.zip", "javascript:1"])  # fmt: skip
def test_addresses_that_are_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="correct the address|only https, http, file") as caught:
        fetch([url], tmp_path / "out")
    assert url in str(caught.value) and not list((tmp_path / "out").iterdir())
    assert url2file("https://host/a/b%20c.zip?x=1#y") == "b c.zip"


# ---- limits
HALF = 256_000 / (1 << 30)  # GiB, of 512,000 bytes


@pytest.mark.parametrize("redirected", [False, True])
@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.timeout(60)
def test_no_more_is_fetched_than_the_limit(server: str, tmp_path: Path, redirected: bool, endless: bool) -> None:
    Server.endless, Server.to = endless << 16, [server] * redirected
    with pytest.raises(ValueError, match="larger than the 0.000238 GiB that are fetched; set YOLOV5_MAX_DOWNLOAD"):
        download_file(server, tmp_path / "a.bin", limit=HALF)
    assert not files_below(tmp_path)
    Server.endless, Server.cut = 0, [90_000] * 3
    with pytest.raises(OSError, match="ended after"):
        download_file(server, tmp_path / "a.bin")
    with pytest.raises(ValueError, match="larger than"):  # a rest counts with what is there
        download_file(server, tmp_path / "a.bin", limit=HALF)
    assert not files_below(tmp_path)


def test_the_limit_is_stated_and_can_be_raised(monkeypatch: pytest.MonkeyPatch, server: str, tmp_path: Path) -> None:
    monkeypatch.delenv("YOLOV5_MAX_DOWNLOAD", raising=False)
    assert largest() == downloads.MAX_GIB == 2 and largest(64) == 64
    monkeypatch.setenv("YOLOV5_MAX_DOWNLOAD", "7.5")
    assert largest() == 7.5 and largest(64) == 64
    monkeypatch.setenv("YOLOV5_MAX_DOWNLOAD", str(HALF))
    with pytest.raises(ValueError, match="larger than"):
        fetch([server], tmp_path)
    for wrong in ("much", "-1", "nan", "inf", "0"):
        monkeypatch.setenv("YOLOV5_MAX_DOWNLOAD", wrong)
        with pytest.raises(ValueError, match=f"YOLOV5_MAX_DOWNLOAD={wrong}: expected a number of GiB"):
            download_file(server, tmp_path / "a.bin")


@pytest.mark.parametrize(
    "address",
    ["http://[", "http://127.0.0.1:port/", "http://127.0.0.1/\x1b[2Ja", "file:///etc/hostname", "ftp://127.0.0.1/a",
     "data:,a", "gopher://host/a"],
)  # fmt: skip
def test_a_server_leads_to_addresses_of_the_web_that_make_sense(server: str, tmp_path: Path, address: str) -> None:
    Server.to = [address] * 3
    with pytest.raises((ValueError, OSError), match="127.0.0.1") as caught:
        download_file(server, tmp_path / "a.bin")
    assert str(caught.value).isprintable() and not files_below(tmp_path)


@pytest.mark.timeout(60)
def test_headers_that_make_no_sense(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Server.send_header

    def send(self: Server, name: str, value: str) -> None:
        sent(self, name, "9" * 5000 if name == "Content-Length" else value)

    monkeypatch.setattr(Server, "send_header", send)
    with pytest.raises(ValueError, match="larger than the 2 GiB"):
        download_file(server, tmp_path / "a.bin")
    assert not files_below(tmp_path)


def test_parts_are_not_written_through_links(server: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("a.bin.part", "a.bin.part.version"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
        with pytest.raises(ValueError, match="is a link"):
            download_file(server, tmp_path / "a.bin")
        (tmp_path / name).unlink()
    assert (tmp_path / "mine").read_text() == "mine"


# ---- an archive becomes a folder
WANTED = [Path("images"), Path("labels/a.txt")]
PARTS = {"images/a.png": b"1", "labels/a.txt": b"2"}


@pytest.mark.parametrize("top", ["", "flowers/", "other name/"])
@pytest.mark.parametrize("more", [{}, {"__MACOSX/x": b"3"}])
def test_a_folder_with_and_without_one_around_it(tmp_path: Path, top: str, more: dict, caplog) -> None:
    source = zipped(tmp_path / "one.zip", {f"{top}{name}": content for name, content in PARTS.items()} | more)
    (tmp_path / "sets" / ("flowers" if more else "")).mkdir(parents=True)  # an empty folder is a new one
    fetch_folder(source.as_uri(), tmp_path / "sets/flowers", WANTED)
    assert files_below(tmp_path / "sets") == [f"flowers/{name}" for name in [*([] if top else more), *PARTS]]
    assert ("left out" in caplog.text and "__MACOSX" in caplog.text) == bool(top and more)
    assert (tmp_path / "sets/flowers").stat().st_mode & 0o777 == (tmp_path / "sets").stat().st_mode & 0o777


@pytest.mark.parametrize("kind", ["file", "folder", "link", "link to nowhere"])
def test_what_is_there_is_not_touched(tmp_path: Path, kind: str) -> None:
    source, place = zipped(tmp_path / "one.zip", PARTS), tmp_path / "sets/flowers"
    (tmp_path / "sets").mkdir()
    (tmp_path / "mine").mkdir()
    if kind == "folder":
        place.mkdir()
        (place / "a").write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / ("mine" if kind == "link" else "nothing"))
    before = files_below(tmp_path)
    with pytest.raises(ValueError, match="is there already, without images"):
        fetch_folder(source.as_uri(), place, WANTED)
    assert files_below(tmp_path) == before and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    "parts, match",
    [
        ({"images/a.png": b"1"}, "has no images and labels/a.txt in it"), ({}, "has no images"),
        (PARTS | {"../evil": b"1"}, "leads out"),
        (PARTS | {f"images/{n}": b"" for n in range(60)}, "more than 50 files"),
        (PARTS | {"images/b": bytes(60_000)}, "far more than its size"),
    ],
)  # fmt: skip
def test_nothing_remains_of_what_is_refused(tmp_path, parts, match, monkeypatch):
    limits = downloads.ArchiveLimits(50_000, 50)
    monkeypatch.setattr(downloads, "ArchiveLimits", lambda *_: limits)
    source = zipped(tmp_path / "one.zip", parts)
    with pytest.raises(ValueError, match=match):
        fetch_folder(source.as_uri(), tmp_path / "sets/flowers", WANTED)
    assert list((tmp_path / "sets").iterdir()) == []


def test_a_broken_transfer_of_a_folder_goes_on(server: str, tmp_path: Path, monkeypatch) -> None:
    Server.body = zipped(tmp_path / "one.zip", {**PARTS, "images/b": os.urandom(5000)}).read_bytes()
    Server.cut = [1000, 1000, 1000]
    address = server.replace(".bin", ".zip")
    with pytest.raises(OSError, match="ended after 3000"):
        fetch_folder(address, tmp_path / "sets/flowers", WANTED)
    assert not (tmp_path / "sets/flowers").exists()
    monkeypatch.setenv("YOLOV5_MAX_DOWNLOAD", "0.000001")
    with pytest.raises(ValueError, match="larger than"):
        fetch_folder(address, tmp_path / "sets/tulips", WANTED)
    monkeypatch.delenv("YOLOV5_MAX_DOWNLOAD")
    fetch_folder(address, tmp_path / "sets/flowers", WANTED)
    assert Server.ranges[-1] == "bytes=3000-" and [path.name for path in (tmp_path / "sets").iterdir()] == ["flowers"]


def test_the_hidden_folder_may_be_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / ".flowers.download").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="is a link to another folder"):
        fetch_folder(zipped(tmp_path / "one.zip", PARTS).as_uri(), tmp_path / "flowers", WANTED)
    assert not list((tmp_path / "mine").iterdir())


FETCHER = """
import sys
from pathlib import Path
from utils.prepare.downloads import fetch_folder
fetch_folder(sys.argv[1], Path(sys.argv[2]), [Path("images")])
"""


def test_two_that_fetch_one_folder_get_it_once(tmp_path: Path) -> None:
    source = zipped(tmp_path / "one.zip", {f"set/images/{n}": os.urandom(500) for n in range(200)})
    target = tmp_path / "sets/flowers"
    command = [sys.executable, "-c", FETCHER, source.as_uri(), str(target)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [one.communicate(timeout=120)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], errors
    assert len(list((target / "images").iterdir())) == 200 and os.listdir(tmp_path / "sets") == ["flowers"]
