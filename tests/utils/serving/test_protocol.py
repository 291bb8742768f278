from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from tests.served import exchange, get, need_server

need_server()

import h11  # noqa: E402
import uvicorn  # noqa: E402

from serve import listen  # noqa: E402
from utils.serving.protocol import MOST_HEAD, BoundedConnection, PatientProtocol  # noqa: E402

PATIENCE = 0.25


async def hello(scope, receive, send) -> None:
    """An application that reads nothing and answers at once; /slow after a while."""
    if scope["type"] != "http":
        return
    await asyncio.sleep(3 * PATIENCE if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    hasty = type("Hasty", (PatientProtocol,), {"patience": PATIENCE})
    config = uvicorn.Config(hello, http=hasty, lifespan="off", log_config=None, log_level="critical")
    server = uvicorn.Server(config)
    listener, _ = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(5)
    listener.close()


HEAD = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\n"
USUAL = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.mark.parametrize("parts, status, body", [
    ([b""], 408, b'{"error": "the request took longer than 0.25 s to begin"}'),
    ([b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 100], 408, b"took longer"),
    ([HEAD], 200, b"hi"),  # a body that nobody reads does not hold the connection
    ([USUAL + b"GET / HTT"], 200, b"408"),  # a second request that stops halfway
    ([b"\x00\x01\x02\r\n\r\n"], 400, b"error"),
    ([b"GET / HTTP/1.1\r\nbad header\r\n\r\n"], 400, b"error"),
    ([b"x" * 3 * MOST_HEAD], 431, b"error"),
    ([get("/")], 200, b"hi"),
])  # fmt: skip
def test_clients_that_are_slow_or_speak_no_http_are_cut_off(
    port: int, parts: list[bytes], status: int, body: bytes
) -> None:
    start = time.monotonic()
    found = exchange(port, parts, 0.05 if len(parts) > 1 else 0.0)
    assert found[0] == status and body in found[1] and time.monotonic() - start < 4 * PATIENCE
    assert parts != [b""] or time.monotonic() - start > 0.8 * PATIENCE


def test_answers_may_take_longer(port: int) -> None:
    start = time.monotonic()
    assert exchange(port, get("/slow"))[0] == 200 and time.monotonic() - start > 2 * PATIENCE


# ---- the connection alone
def events(*pieces: bytes) -> list[object]:
    connection, seen = BoundedConnection(), []
    for piece in pieces:
        connection.receive_data(piece)
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            seen.append(event)
    return seen


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
def test_a_body_in_chunks(size: int) -> None:
    assert events() == [] and BoundedConnection().next_event() is h11.NEED_DATA
    data = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n"
    seen = events(*cut(data, size))
    assert b"".join(bytes(one.data) for one in seen if isinstance(one, h11.Data)) == b"hello"
    assert isinstance(seen[0], h11.Request) and isinstance(seen[-1], h11.EndOfMessage)


@pytest.mark.parametrize("size", [50, 16_000, 10**6])
@pytest.mark.parametrize("lines, taken", [
    (b"X: " + b"y" * 16_200 + b"\r\n", True),
    (b"X: " + b"y" * 16_400 + b"\r\n", False),
    (b"a:b\r\n" * 99, True),
    (b"a:b\r\n" * 100, False),
])  # fmt: skip
def test_the_bounds_of_a_head_are_the_same_however_it_comes(size: int, lines: bytes, taken: bool) -> None:
    data = b"GET / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n"
    if taken:
        assert len(events(*cut(data, size))) == 2
    else:
        with pytest.raises(h11.RemoteProtocolError) as refused:
            events(*cut(data, size))
        assert refused.value.error_status_hint == 431


@pytest.mark.parametrize("size", [1000, 10**6])
@pytest.mark.parametrize("chunk", [b"1\r\na\r\n", b"10\r\n0123456789abcdef\r\n", b"1;x=" + b"y" * 900 + b"\r\na\r\n"])
def test_bodies_that_are_mostly_sizes(chunk: bytes, size: int) -> None:
    """Not a megabyte in chunks of 300 bytes, or in one of a megabyte."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for usual in (300, 1_000_000):
        body = (b"%x\r\n" % usual + bytes(usual) + b"\r\n") * (1_000_000 // usual) + b"0\r\n\r\n"
        assert isinstance(events(*cut(head + body, 65536))[-1], h11.EndOfMessage)
    with pytest.raises(h11.RemoteProtocolError, match="chunk sizes"):
        events(*cut(head + chunk * 10_000, size))
