"""Fetching from a server on this machine and from files, resuming, checksums."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.packed import tarred, zipped
from utils import downloads
from utils.downloads import Remote, download_file, fetch, file_checksum, url2file

CONTENT = bytes(range(256)) * 2000


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT at any path; `cut` ends the first answers early, `tag` is the version, `fail` an error to send."""

    cut: list[int] = []
    fail: list[int] = []
    tag = '"v1"'
    ranges: list[str | None] = []

    def do_GET(self) -> None:  # noqa: N802 - the base class's name
        cls = type(self)
        wanted = self.headers.get("Range")
        cls.ranges.append(wanted)
        if cls.fail:
            self.send_error(cls.fail.pop(0))
            return
        resume = wanted is not None and self.headers.get("If-Range") == cls.tag
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if resume else 0
        body = CONTENT[start:]
        self.send_response(206 if resume else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", cls.tag)
        self.end_headers()
        self.wfile.write(body[: cls.cut.pop(0)] if cls.cut else body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    Server.cut, Server.fail, Server.tag, Server.ranges = [], [], '"v1"', []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/a%20file.bin?raw=1"
    running.shutdown()
    thread.join()


def test_nothing_to_fetch(tmp_path: Path) -> None:
    assert fetch([], tmp_path / "new") == [] and (tmp_path / "new").is_dir()


def test_names_of_urls() -> None:
    assert url2file("https://host/a/b%20c.zip?x=1#y") == "b c.zip" and url2file("file:///d/e.tar.gz") == "e.tar.gz"


def test_a_file_is_fetched_once(server: str, tmp_path: Path) -> None:
    target = download_file(server, tmp_path / "deep/er/a.bin", "sha256:" + hashlib.sha256(CONTENT).hexdigest())
    assert target.read_bytes() == CONTENT and [path.name for path in target.parent.iterdir()] == ["a.bin"]
    assert download_file(server, target) == target and Server.ranges == [None]


def test_a_broken_transfer_goes_on_where_it_ended(server: str, tmp_path: Path) -> None:
    Server.cut = [100_000, 50_000]
    target = download_file(server, tmp_path / "a.bin")
    assert target.read_bytes() == CONTENT
    assert Server.ranges == [None, "bytes=100000-", "bytes=150000-"]


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
    assert file_checksum(source, "md5") == right[4:]
    with pytest.raises(ValueError, match="md5 is .*, expected 00"):
        download_file(source.as_uri(), tmp_path / "copy.bin", "md5:00")
    assert not (tmp_path / "copy.bin").exists() and not (tmp_path / "copy.bin.part").exists()
    assert download_file(source.as_uri(), tmp_path / "copy.bin", right).read_bytes() == CONTENT == source.read_bytes()


@pytest.mark.parametrize("url", ["ftp://host/a", "data:,a", "a.zip", "javascript:1"])
def test_other_addresses_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only https, http, file"):
        download_file(url, tmp_path / "a")


def test_fetching_unpacks_and_tidies(tmp_path: Path) -> None:
    one, two = zipped(tmp_path / "one.zip", {"a": b"1"}), tarred(tmp_path / "two.tar.gz", {"b": b"2"})
    (tmp_path / "notes.json").write_text("{}")
    urls = [one.as_uri(), Remote(two.as_uri()), (tmp_path / "notes.json").as_uri()]
    fetch(urls, tmp_path / "out", threads=3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "notes.json"]
    fetch([one.as_uri()], tmp_path / "kept", unpack=False)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["one.zip"] and one.exists()


@pytest.mark.parametrize(
    "url", ["https://host/", "https://host/..", "https://host/%2e%2e", "https://host/a%00b", "https://["]
)
def test_an_address_must_end_in_a_file_name(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="correct the address") as caught:
        fetch([url], tmp_path / "out")
    assert url in str(caught.value) and not list((tmp_path / "out").iterdir())
