"""Answers that never end, whatever they send, from a server on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request

import pytest

from utils.predict import sources
from utils.prepare import downloads
from utils.prepare.web import open_url

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {  # what comes first, and what comes again and again
    "a header": (OK + b"X: ", b"a"),
    "headers before the answer": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the content": (OK + b"\r\n", b"a"),
    "the size of a chunk": (CHUNKED + b"5;", b"a"),
    "trailers": (CHUNKED + b"3\r\nabc\r\n0\r\n", b"X: y\r\n"),
}


@contextmanager
def serving(first: bytes, again: bytes = b"", pause: float = 0.02) -> Iterator[str]:
    """The address of a server that sends this to everybody."""
    server = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def answer(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(1 << 16)
            client.sendall(first)
            while again and not stopped.is_set():
                client.sendall(again)
                time.sleep(pause)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.jpg"
    finally:
        stopped.set()
        server.close()


def fetch_file(address: str, folder: Path) -> object:
    return downloads.download_file(address, folder / "a")


def fetch_image(address: str, folder: Path) -> object:
    return sources.fetch_image(address)


@pytest.mark.parametrize("fetch", [fetch_file, fetch_image])
@pytest.mark.parametrize("what", ENDLESS)
def test_what_drips_is_given_up(what: str, fetch: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    monkeypatch.setattr(downloads, "PATIENCE", 0.3)
    monkeypatch.setattr(sources, "WEB_LONGEST", 0.3)
    found: list[BaseException] = []

    def run() -> None:
        try:
            fetch(address, tmp_path)
        except (OSError, ValueError) as error:
            found.append(error)

    with serving(*ENDLESS[what]) as address:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), what
    assert "bytes a second" in str(found[0]) or "takes longer than" in str(found[0])


def test_what_comes_with_a_redirection_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with serving(OK + b"Content-Length: 3\r\n\r\nabc") as there:
        head = f"HTTP/1.1 302 Found\r\nLocation: {there}\r\n\r\n".encode()
        with serving(head, b"a", 0.01) as address:
            assert downloads.download_file(address, tmp_path / "a").read_bytes() == b"abc"


def test_content_that_comes_steadily_may_take_its_time() -> None:
    with serving(OK + b"\r\n", bytes(50_000), 0.01) as address, open_url(Request(address), 10, 0.1) as answer:
        began, size = time.monotonic(), 0
        while time.monotonic() - began < 0.5:
            size += len(answer.read1(1 << 16))
    assert size > 2000


def test_an_image_that_is_cut_off_is_none() -> None:
    short = serving(OK + b"Content-Length: 10\r\n\r\nabc")
    with short as address, pytest.raises(ValueError, match="ended 7 bytes before the image did"):
        sources.fetch_image(address)


def test_only_files_are_read_as_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    for place, kind in ((tmp_path / "pipe.zip", "a pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(ValueError, match=f"it is {kind}, not a file"):
            downloads.download_file(place.as_uri(), tmp_path / "sets/a")
