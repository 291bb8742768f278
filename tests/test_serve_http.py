"""The server's manners on the wire: smuggled, endless and foreign requests; and how it stops."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile import many_scans
from tests.lively import write_lively
from tests.served import TINY, exchange, form, get, need_server, post, running, some_image
from utils.base.paths import ROOT

need_server()

ADDRESS = "/v1/object-detection/any"
HEALTH = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lively(tmp_path_factory.mktemp("served") / "tiny.pt", TINY)


@pytest.fixture(scope="module")
def port(weights: Path) -> Iterator[int]:
    with running(weights) as number:
        yield number


def half_sent(port: int, request: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(request)
    return client


def rest(client: socket.socket) -> bytes:
    got = b""
    with client:
        try:
            while chunk := client.recv(65536):
                got += chunk
        except ConnectionError:
            pass
    return got


def talk(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send the parts over one connection and read until the server closes it."""
    client = half_sent(port, b"")
    try:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
    except OSError:  # refused, and closed
        pass
    return rest(client)


def statuses(answer: bytes) -> list[int]:
    return [int(one) for one in re.findall(rb"HTTP/1\.1 (\d+)", answer)]


# ---- smuggling
@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("length, pause", [("0", 0.0), ("3", 0.0), ("1000", 0.05)])
def test_length_and_chunks_together_close_the_connection(port: int, step: int, length: str, pause: float) -> None:
    """Whatever a proxy before this server took for the body: what follows is answered by nobody."""
    lines = "\r\n".join([f"Content-Length: {length}", "Transfer-Encoding: chunked"][::step])
    head = f"POST {ADDRESS} HTTP/1.1\r\nHost: here\r\n{lines}\r\n\r\n".encode()
    answer = talk(port, head, b"0\r\n\r\n" + HEALTH, pause=pause)
    assert statuses(answer) == [400] and b"not both" in answer and b"connection: close" in answer


@pytest.mark.parametrize("lines", [
    "Content-Length: 3\r\nContent-Length: 4",
    "Content-Length: 3, 4",
    "Content-Length: +3",
    "Content-Length: 0x3",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: \x0bchunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding: chunked",
])  # fmt: skip
def test_other_ways_to_say_two_lengths(port: int, lines: str) -> None:
    version = "1.0" if lines == "Transfer-Encoding: chunked" else "1.1"  # HTTP/1.0 has no chunks
    answer = talk(port, f"POST {ADDRESS} HTTP/{version}\r\nHost: here\r\n{lines}\r\n\r\n0\r\n\r\n".encode() + HEALTH)
    assert len(statuses(answer)) == 1 and statuses(answer)[0] in (400, 501), answer


def test_one_request_after_the_other_is_fine(port: int) -> None:
    chunked = post(ADDRESS, b"", Content_Length="", Transfer_Encoding="chunked").replace(b"Connection: close\r\n", b"")
    body = form([some_image()])
    pieces = [body[i : i + 5000] for i in range(0, len(body), 5000)]
    chunked += b"".join(b"%x;name=value\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX: y\r\n\r\n"
    assert statuses(talk(port, HEALTH + chunked + HEALTH, get("/health"))) == [200] * 4


# ---- long heads, however they arrive
LONG = {  # bounds to the byte: tests/utils/serving/test_protocol.py
    "one": b"X: " + b"x" * 20_000 + b"\r\n",
    "many": b"X: y\r\n" * 101,
    "folded": b"X: y\r\n" + b" \r\n" * 9_000,
    "blank": b"X:" + b" " * 20_000 + b"\r\n",
}


@pytest.mark.parametrize("size", [10**6, 1400])
@pytest.mark.parametrize("kind", LONG)
def test_long_heads(port: int, kind: str, size: int) -> None:
    whole = HEALTH[:-2] + LONG[kind] + b"\r\n"
    answer = talk(port, *[whole[i : i + size] for i in range(0, len(whole), size)], pause=0.002)
    assert statuses(answer) == [431], answer[:200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert statuses(talk(port, HEALTH + whole)) == [200, 431]


ENDLESS = {
    "one extension": b"1;" + b"x" * 30_000 + b"\r\na\r\n",
    "one trailer": b"0\r\nX: " + b"y" * 30_000 + b"\r\n\r\n",
    "tiny chunks": b"1\r\na\r\n" * 50_000,
}


@pytest.mark.parametrize("size", [10**6, 1400])
@pytest.mark.parametrize("kind", ENDLESS)
def test_chunks_that_are_mostly_not_content(port: int, kind: str, size: int) -> None:
    head = post(ADDRESS, b"", Content_Length="", Transfer_Encoding="chunked")
    content = ENDLESS[kind]
    answer = talk(port, head, *[content[i : i + size] for i in range(0, len(content), size)])
    assert len(statuses(answer)) == 1 and 400 <= statuses(answer)[0] < 500, answer[:200]


# ---- hosts
def asked(host: str | None, version: str = "1.1") -> bytes:
    line = "" if host is None else f"Host: {host}\r\n"
    return f"GET /health HTTP/{version}\r\n{line}Connection: close\r\n\r\n".encode()


def test_no_host_and_two(port: int) -> None:
    for host, version in ((None, "1.1"), (None, "1.0"), ("localhost\r\nHost: localhost", "1.1")):
        assert exchange(port, asked(host, version))[0] == 400
    assert exchange(port, asked(""))[0] in (400, 421)
    upload = post(ADDRESS, form([some_image()])).replace(b"Host: here", b"Host: evil.example")  # which is not read
    assert exchange(port, upload)[0] == 421


@pytest.mark.parametrize("hosts, taken", [(["detector.example.com"], False), (["evil.example"], True), (["*"], True)])
def test_the_list_of_hosts(weights: Path, hosts: list[str], taken: bool) -> None:
    with running(weights, hosts=hosts) as port:
        assert exchange(port, asked("evil.example"))[0] == (200 if taken else 421)
        assert exchange(port, asked("127.0.0.1:5000"))[0] == 200, "the container's own question for its health"


# ---- stopping
@contextmanager
def process(weights: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """serve.py as people start it, ready to answer, and its port."""
    command = [sys.executable, "serve.py", "--weights", str(weights), *"--imgsz 128 --port 0 --device cpu".split()]
    environment = os.environ | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment) as running:
        try:
            assert running.stderr is not None
            for line in running.stderr:
                if found := re.search(r"Serving .* at http://127\.0\.0\.1:(\d+)", line):
                    break
            port = int(found[1])
            until(lambda: exchange(port, get("/health"))[0] == 200)
            yield running, port
        finally:
            running.kill()


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if true():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not come true")


def ended(running: subprocess.Popen[str], seconds: float) -> tuple[int, list[str]]:
    """Exit status and the lines that were said since; not later than so many seconds."""
    said = running.communicate(timeout=seconds)[1]
    return running.returncode, said.splitlines()


def test_a_stop_lets_requests_finish_and_turns_the_others_away(weights: Path) -> None:
    """One upload goes on after the signal, one never ends, one has half a head, and one comes new."""
    whole = post(ADDRESS, form([some_image()]))
    with process(weights, "--grace", "2") as (running, port):
        goes_on, never_ends = half_sent(port, whole[:-50]), half_sent(port, whole[:-50])
        half_head = half_sent(port, whole[:60])
        until(lambda: b"yolov5_requests_in_progress 2" in exchange(port, get("/metrics"))[1])
        running.send_signal(signal.SIGTERM)
        until(lambda: refused(port))
        goes_on.sendall(whole[-50:])
        with ThreadPoolExecutor(3) as readers:
            answers = readers.map(rest, (goes_on, never_ends, half_head))
            end = ended(running, 12)
            finished, *given_up = answers
    assert statuses(finished) == [200]
    for answer in given_up:
        assert statuses(answer) == [503] and b"retry-after: 5" in answer.lower(), answer
        assert "being stopped" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert end == (0, ["Stopped by SIGTERM: 1 requests finished, 1 turned away with 503"])


def refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_a_second_signal_ends_the_grace(weights: Path) -> None:
    whole = post(ADDRESS, form([some_image()]))
    with process(weights, "--grace", "60", "--upload-timeout", "90", "--timeout", "90") as (running, port):
        never_ends = half_sent(port, whole[:-50])
        until(lambda: b"yolov5_requests_in_progress 1" in exchange(port, get("/metrics"))[1])
        running.send_signal(signal.SIGINT)
        until(lambda: refused(port))
        running.send_signal(signal.SIGINT)
        code, said = ended(running, 20)
    assert code == 130 and len(said) == 1 and "Traceback" not in said[0]
    assert statuses(rest(never_ends)) == [503]


def test_an_impatient_stop_waits_for_no_thread(weights: Path) -> None:
    """An image that is being decoded for seconds: its client is told within the grace, and the process ends."""
    with process(weights, "--grace", "0.2") as (running, port):
        slow = half_sent(port, post(ADDRESS, form([many_scans(7000, 38)])))
        until(lambda: b"yolov5_requests_in_progress 1" in exchange(port, get("/metrics"))[1])
        time.sleep(0.3)
        running.send_signal(signal.SIGTERM)
        code, said = ended(running, 10)
    assert statuses(rest(slow)) in ([503], [200]) and code == 0 and len(said) == 1
