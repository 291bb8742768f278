from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator

import pytest

from tests.served import exchange, get, need_server

need_server()

import h11  # noqa: E402 - only where it is installed
import uvicorn  # noqa: E402

from serve import listen  # noqa: E402
from utils.serving.protocol import MOST_HEAD, BoundedConnection, patient_protocol  # noqa: E402

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
    settings = {"http": patient_protocol(PATIENCE), "lifespan": "off", "log_config": None, "log_level": "critical"}
    server = uvicorn.Server(uvicorn.Config(hello, **settings, timeout_keep_alive=5))
    listener, _ = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(5)
    listener.close()


def timed(port: int, *arguments) -> tuple[int, bytes, float]:
    start = time.monotonic()
    status, body = exchange(port, *arguments)
    return status, body, time.monotonic() - start


def test_a_client_that_says_nothing(port: int) -> None:
    status, body, seconds = timed(port, b"")
    assert status == 408 and json.loads(body) == {"error": "the request took longer than 0.25 s to begin"}
    assert 0.8 * PATIENCE < seconds < 4 * PATIENCE


def test_a_usual_request(port: int) -> None:
    assert exchange(port, get("/")) == (200, b"hi")


def test_answers_may_take_longer(port: int) -> None:
    status, _, seconds = timed(port, get("/slow"))
    assert status == 200 and seconds > 2 * PATIENCE


def test_a_head_in_drops(port: int) -> None:
    status, _, seconds = timed(port, [bytes([letter]) for letter in get("/") * 9], 0.05)
    assert status == 200 or (status == 408 and seconds < 4 * PATIENCE)
    drops = [b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 100]
    status, _, seconds = timed(port, drops, 0.05)
    assert status == 408 and seconds < 4 * PATIENCE


def test_a_body_that_nobody_reads_does_not_hold_the_connection(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\n"
    status, body, seconds = timed(port, head)
    assert status == 200 and body == b"hi" and seconds < 4 * PATIENCE


def test_a_second_request_that_stops_halfway(port: int) -> None:
    usual = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
    status, body, seconds = timed(port, usual + b"GET / HTT")
    assert status == 200 and b"408" in body and seconds < 4 * PATIENCE


@pytest.mark.parametrize(
    "request_", [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"x" * 3 * MOST_HEAD]
)
def test_what_is_no_http(port: int, request_: bytes) -> None:
    status, body, seconds = timed(port, request_)
    assert 400 <= status < 500 and json.loads(body)["error"] and seconds < 4 * PATIENCE


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


def test_no_bytes() -> None:
    assert events() == [] and BoundedConnection().next_event() is h11.NEED_DATA


@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
def test_a_body_in_chunks(size: int) -> None:
    data = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n"
    seen = events(*cut(data, size))
    assert b"".join(bytes(one.data) for one in seen if isinstance(one, h11.Data)) == b"hello"
    assert isinstance(seen[0], h11.Request) and isinstance(seen[-1], h11.EndOfMessage)


@pytest.mark.parametrize("size", [50, 16_000, 10**6])
@pytest.mark.parametrize("length, taken", [(16_200, True), (16_400, False)])
def test_the_length_of_a_head_is_the_same_however_it_comes(size: int, length: int, taken: bool) -> None:
    data = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * length + b"\r\n\r\n"
    if taken:
        assert len(events(*cut(data, size))) == 2
    else:
        with pytest.raises(h11.RemoteProtocolError) as refused:
            events(*cut(data, size))
        assert refused.value.error_status_hint == 431


@pytest.mark.parametrize("count, taken", [(99, True), (100, False)])
def test_the_number_of_headers(count: int, taken: bool) -> None:
    data = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * count + b"\r\n"
    if taken:
        assert len(events(data)) == 2
    else:
        with pytest.raises(h11.RemoteProtocolError, match="101 headers"):
            events(data)


def test_large_bodies_in_usual_chunks() -> None:
    """A megabyte in chunks of 300 bytes, and in one of a megabyte."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for size in (300, 1_000_000):
        body = (b"%x\r\n" % size + bytes(size) + b"\r\n") * (1_000_000 // size) + b"0\r\n\r\n"
        assert isinstance(events(*cut(head + body, 65536))[-1], h11.EndOfMessage)


@pytest.mark.parametrize("size", [1000, 10**6])
@pytest.mark.parametrize("chunk", [b"1\r\na\r\n", b"10\r\n0123456789abcdef\r\n", b"1;x=" + b"y" * 900 + b"\r\na\r\n"])
def test_bodies_that_are_mostly_sizes(chunk: bytes, size: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(h11.RemoteProtocolError, match="chunk sizes"):
        events(*cut(head + chunk * 10_000, size))
