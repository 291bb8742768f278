from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator

import pytest

from tests.served import exchange, get, need_server

need_server()

import uvicorn  # noqa: E402 - only where it is installed

from serve import listen  # noqa: E402
from utils.serving.protocol import MOST_HEAD, patient_protocol  # noqa: E402

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
    server = uvicorn.Server(
        uvicorn.Config(hello, **settings, timeout_keep_alive=5, h11_max_incomplete_event_size=MOST_HEAD)
    )
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
