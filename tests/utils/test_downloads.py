"""Fetching from a server on this machine and from files, resuming, checksums, and archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from utils import downloads
from utils.downloads import Remote, download_file, extract, fetch, file_checksum, url2file

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


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], link: tuple[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            archive.addfile(info)
    return path


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


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz"])
def test_archives_are_unpacked(tmp_path: Path, suffix: str) -> None:
    files = {"a.txt": b"one", "d/e/b.txt": b"", "./c ä.txt": b"three"}
    path = (zipped if suffix == ".zip" else tarred)(tmp_path / f"x{suffix}", files)
    out = extract(path, tmp_path / "out")
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == {"a.txt", "d/e/b.txt", "c ä.txt"}
    (out / "a.txt").write_text("mine")
    extract(path, out)
    assert (out / "a.txt").read_text() == "mine", "files that are there stay"


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "..\\out.txt", "C:/out.txt"])
@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_nothing_leaves_the_folder(tmp_path: Path, name: str, suffix: str) -> None:
    path = (zipped if suffix == ".zip" else tarred)(tmp_path / f"x{suffix}", {name: b"harm"})
    with pytest.raises(ValueError, match="unpacked safely.*leads out"):
        extract(path, tmp_path / "out")
    assert not list(tmp_path.rglob("out.txt"))


def test_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'l' is a link"):
        extract(tarred(tmp_path / "a.tar", {"a": b"1"}, link=("l", "/etc")), tmp_path / "out")
    info = zipfile.ZipInfo("l")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(ValueError, match="'l' is a link"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "out/there").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out"):
        extract(zipped(tmp_path / "b.zip", {"there/x": b"1"}), tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_bombs_are_stopped(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_UNRATED", 1000)
    path = (zipped if suffix == ".zip" else tarred)(tmp_path / f"x{suffix}", {"a": bytes(3_000_000)})
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="far more than its size"):
        extract(path, tmp_path / "out")
    assert not any(file.is_file() for file in (tmp_path / "out").rglob("*"))


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    for suffix in (".zip", ".tar", ".tar.gz"):
        path = (zipped if suffix == ".zip" else tarred)(tmp_path / f"x{suffix}", {"a": os.urandom(20_000)})
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(ValueError, match=f"x{suffix}: cannot be unpacked"):
            extract(path, tmp_path / "out")
    with pytest.raises(ValueError, match="not an archive"):
        extract(tmp_path / "a.rar", tmp_path)


def test_fetching_unpacks_and_tidies(tmp_path: Path) -> None:
    one, two = zipped(tmp_path / "one.zip", {"a": b"1"}), tarred(tmp_path / "two.tar.gz", {"b": b"2"})
    (tmp_path / "notes.json").write_text("{}")
    urls = [one.as_uri(), Remote(two.as_uri()), (tmp_path / "notes.json").as_uri()]
    fetch(urls, tmp_path / "out", threads=3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "notes.json"]
    fetch([one.as_uri()], tmp_path / "kept", unpack=False)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["one.zip"] and one.exists()
