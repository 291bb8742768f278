"""Hundreds of requests that are wrong, each in its own way, while good ones keep being answered."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.lively import write_lively
from tests.served import EDGE, TINY, detections, exchange, form, need_server, picture, post, running

need_server()

UPLOAD_SECONDS = 0.8
SECONDS = 4.0
LINGER = 1.0  # for which the server lets the rest of a refused upload go by
COUNT = 500
ADDRESS = "/v1/object-detection/any"
Wrong = bytes | list[bytes]
KINDS: dict[str, Callable[[np.random.Generator], Wrong]] = {}


def kind(make: Callable[[np.random.Generator], Wrong]) -> Callable[[np.random.Generator], Wrong]:
    """Register a maker of wrong requests: whole ones, or lists of parts that are sent slowly."""
    KINDS[make.__name__] = make
    return make


def send(file: bytes) -> bytes:
    return post(ADDRESS, form([file]))


def whole_number(rng: np.random.Generator, least: int, most: int) -> int:
    return int(rng.integers(least, most))


def png(width: int, height: int, rows: bytes, *chunks: tuple[bytes, bytes], depth: int = 8) -> bytes:
    """A PNG file of grey with these header values, whatever its rows say."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


# ---- files that are no pictures, or not whole
@kind
def empty_file(rng: np.random.Generator) -> Wrong:
    return send(b"")


@kind
def noise(rng: np.random.Generator) -> Wrong:
    return send(rng.bytes(whole_number(rng, 1, 5000)))


@kind
def other_type(rng: np.random.Generator) -> Wrong:
    files = [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"\x80\x04cos\nsystem\n.",
        b"GIF89a",
    ]
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"
    return send([*files, eps, b"\x00\x00\x00\x1cftypavif", b"#!/bin/sh\n"][whole_number(rng, 0, 8)])


@kind
def truncated(rng: np.random.Generator) -> Wrong:
    name = ["PNG", "JPEG", "WEBP", "BMP"][whole_number(rng, 0, 4)]
    file = picture(seed=whole_number(rng, 0, 9), kind=name)
    return send(file[: whole_number(rng, 1, len(file) * 3 // 4)])


@kind
def damaged_rows(rng: np.random.Generator) -> Wrong:
    file = bytearray(picture(seed=1))
    start = file.index(b"IDAT") + 4
    file[start + 2 : start + 2000] = rng.bytes(1998)
    return send(bytes(file))


# ---- pictures that would fill memory, or take for ever
@kind
def bomb(rng: np.random.Generator) -> Wrong:
    side = whole_number(rng, 5_000, 9_000)
    return send(png(side, side, zlib.compress(bytes((side // 8 + 2) * side), 1), depth=1))


@kind
def huge_png(rng: np.random.Generator) -> Wrong:
    return send(png(whole_number(rng, 10**5, 2**31), whole_number(rng, 10**5, 2**31), zlib.compress(b"")))


@kind
def huge_gif(rng: np.random.Generator) -> Wrong:
    return send(b"GIF89a" + struct.pack("<HH", 65535, whole_number(rng, 1000, 65536)) + b"\x00\x00\x00,")


@kind
def huge_bmp(rng: np.random.Generator) -> Wrong:
    size = struct.pack("<ii", whole_number(rng, 50_000, 2**31), whole_number(rng, 50_000, 2**31))
    return send(
        b"BM" + bytes(8) + struct.pack("<II", 54, 40) + size + struct.pack("<HHIIiiII", 1, 24, 0, 0, 0, 0, 0, 0)
    )


@kind
def huge_webp(rng: np.random.Generator) -> Wrong:
    sides = (
        struct.pack("<I", whole_number(rng, 9_000, 2**24))[:3] + struct.pack("<I", whole_number(rng, 9_000, 2**24))[:3]
    )
    return send(b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + sides + bytes(16))


@kind
def huge_tiff(rng: np.random.Generator) -> Wrong:
    tags = {
        256: 2**30,
        257: whole_number(rng, 2**16, 2**31),
        258: 8,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: 2**30,
        279: 9,
    }
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return send(b"II*\x00" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4))


@kind
def many_scans(rng: np.random.Generator) -> Wrong:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    return send(
        file.getvalue()[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * whole_number(rng, 200, 2000) + b"\xff\xd9"
    )


@kind
def text_bomb(rng: np.random.Generator) -> Wrong:
    text = b"Comment\x00\x00" + zlib.compress(bytes(whole_number(rng, 70, 90) * 2**20), 1)
    return send(png(8, 8, zlib.compress(bytes(72)), (b"zTXt", text)))


# ---- forms that are none
@kind
def no_form(rng: np.random.Generator) -> Wrong:
    kinds = ["application/json", "image/png", "text/plain", "application/x-www-form-urlencoded", "", "multipart/mixed"]
    return post(ADDRESS, picture(), Content_Type=kinds[whole_number(rng, 0, 6)])


@kind
def no_boundary(rng: np.random.Generator) -> Wrong:
    wrong = ["", "; boundary=", "; boundary=other", '; boundary="' + "x" * 500 + '"'][whole_number(rng, 0, 4)]
    return post(ADDRESS, form([picture()]), Content_Type=f"multipart/form-data{wrong}")


@kind
def other_field(rng: np.random.Generator) -> Wrong:
    return post(ADDRESS, form([picture()], ["file", "img", "images", "'; drop table", "\xff"][whole_number(rng, 0, 5)]))


@kind
def text_instead(rng: np.random.Generator) -> Wrong:
    value = ["/etc/passwd", "http://127.0.0.1/", "x" * 3000][whole_number(rng, 0, 3)]
    text = f'--{EDGE}\r\nContent-Disposition: form-data; name="image"\r\n\r\n{value}\r\n--{EDGE}--\r\n'
    return post(ADDRESS, text.encode())


@kind
def too_many_files(rng: np.random.Generator) -> Wrong:
    return post(ADDRESS, form([picture(8, 8)] * whole_number(rng, 2, 60)))


@kind
def cut_form(rng: np.random.Generator) -> Wrong:
    body = form([picture()])
    return post(ADDRESS, body[: whole_number(rng, 1, len(body) - 40)])


@kind
def many_fields(rng: np.random.Generator) -> Wrong:
    part = f'--{EDGE}\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n'.encode()
    return post(ADDRESS, part * 5000 + form([picture()]))


@kind
def long_part_head(rng: np.random.Generator) -> Wrong:
    return post(ADDRESS, f"--{EDGE}\r\nContent-Disposition: ".encode() + b"x" * 200_000 + b"\r\n\r\n")


# ---- requests that lie, are too large, or ask for what there is not
@kind
def too_large(rng: np.random.Generator) -> Wrong:
    return send(bytes(whole_number(rng, 2**21, 3 * 2**20)))


@kind
def huge_length(rng: np.random.Generator) -> Wrong:
    return post(ADDRESS, b"", Content_Length=str(10 ** whole_number(rng, 7, 18)))


@kind
def wrong_length(rng: np.random.Generator) -> Wrong:
    return post(
        ADDRESS, form([picture()]), Content_Length=["-1", "x", "1e3", "0x10", "9" * 5000][whole_number(rng, 0, 5)]
    )


@kind
def endless_chunks(rng: np.random.Generator) -> Wrong:
    head = post(ADDRESS, b"", Content_Length="", Transfer_Encoding="chunked")
    return head + (b"10000\r\n" + bytes(0x10000) + b"\r\n") * whole_number(rng, 33, 40)


@kind
def wrong_chunks(rng: np.random.Generator) -> Wrong:
    head = post(ADDRESS, b"", Content_Length="", Transfer_Encoding="chunked")
    return head + [b"zz\r\n", b"-5\r\n", b"ffffffffffffffffffff1\r\n", b"\r\n\r\n"][whole_number(rng, 0, 4)]


@kind
def two_lengths(rng: np.random.Generator) -> Wrong:
    body = form([picture()])
    return post(ADDRESS, body, **{"Content_Length": f"{len(body)}\r\nContent-Length: 3"})


@kind
def path_tricks(rng: np.random.Generator) -> Wrong:
    tricks = [
        "../../etc/passwd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/etc/passwd",
        "..%5c..%5cboot.ini",
        "a%00.pt",
        "~",
        "a%0d%0ab",
    ]
    tricks += ["%ff%fe", "file:%2f%2f%2fetc%2fpasswd", "..;/x", ".env", "x" * 3000, "%c0%ae%c0%ae", "any/batch/../../x"]
    return post(f"/v1/object-detection/{tricks[whole_number(rng, 0, len(tricks))]}", form([picture()]))


@kind
def wrong_query(rng: np.random.Generator) -> Wrong:
    queries = [
        "conf=-1",
        "conf=inf",
        "conf=",
        "iou=1e9",
        "size=-32",
        "size=1e9",
        "size=" + "9" * 900,
        "classes=" + "1," * 900,
    ]
    queries += [
        "classes=%00",
        "model=/etc/passwd",
        "conf=0.5&conf=0.6",
        "size=%d9%a3%d9%a2%d9%a0",
        "weights=x.pt",
        "conf[]=1",
    ]
    return post(f"{ADDRESS}?{queries[whole_number(rng, 0, len(queries))]}", form([picture()]))


@kind
def wrong_method(rng: np.random.Generator) -> Wrong:
    method = ["GET", "PUT", "DELETE", "PATCH", "TRACE"][whole_number(rng, 0, 5)]
    return send(picture()).replace(b"POST", method.encode(), 1)


@kind
def no_http(rng: np.random.Generator) -> Wrong:
    words = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-x",
        b"GET / HTTP/x.y",
        b"G\x00T / HTTP/1.1",
        b"POST",
    ]
    return words[whole_number(rng, 0, 5)] + b"\r\n\r\n"


@kind
def long_head(rng: np.random.Generator) -> Wrong:
    return post(ADDRESS, b"", X="x" * whole_number(rng, 40_000, 90_000))


# ---- slow ones: a few bytes, a pause, a few more
@kind
def slow_head(rng: np.random.Generator) -> Wrong:
    head = send(picture())[:300]
    return [head[i : i + 3] for i in range(0, 300, 3)]


@kind
def slow_body(rng: np.random.Generator) -> Wrong:
    whole = send(picture())
    start = whole.index(b"\r\n\r\n") + 4
    return [whole[:start], *(whole[i : i + 2] for i in range(start, start + 200, 2))]


@kind
def silent_body(rng: np.random.Generator) -> Wrong:
    return [send(picture())[:-200], *[b""] * 100]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    weights = write_lively(tmp_path_factory.mktemp("served") / "tiny.pt", TINY)
    limits = {"max_upload": 2.0, "max_pixels": 16.0, "upload_timeout": UPLOAD_SECONDS, "timeout": SECONDS}
    with running(weights, **limits) as number:
        yield number


def cases(count: int) -> list[tuple[str, Wrong]]:
    """Requests of every kind, as many of each; the slow ones first, since they take longest."""
    rngs = [np.random.default_rng(seed) for seed in range(-(-count // len(KINDS)))]
    made = [(name, make(rng)) for rng in rngs for name, make in KINDS.items()][:count]
    return sorted(made, key=lambda case: isinstance(case[1], bytes))


class GoodClient(threading.Thread):
    """Asks for the same picture all the time, and notes what came and how long it took."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port, self.ended = port, threading.Event()
        self.answers: list[Any] = []
        self.seconds: list[float] = []

    def run(self) -> None:
        while not self.ended.is_set():
            start = time.monotonic()
            self.answers.append(detections(self.port, picture(seed=4)))
            self.seconds.append(time.monotonic() - start)
            time.sleep(0.05)


def attempt(port: int, case: tuple[str, Wrong]) -> tuple[str, int, float, bytes]:
    name, request = case
    start = time.monotonic()
    status, body = exchange(port, request, pause=0.1 if isinstance(request, list) else 0.0)
    return name, status, time.monotonic() - start, body


def test_every_one_is_turned_away_while_good_ones_are_answered(port: int) -> None:
    expected = detections(port, picture(seed=4))
    good = GoodClient(port)
    good.start()
    with ThreadPoolExecutor(24) as clients:
        seen = list(clients.map(lambda case: attempt(port, case), cases(COUNT)))
    good.ended.set()
    good.join()
    assert len(seen) == COUNT and len({name for name, *_ in seen}) == len(KINDS)
    strange = [(name, status, body[:200]) for name, status, _, body in seen if not 400 <= status < 500]
    assert not strange
    assert all(json.loads(body)["error"] for name, _, _, body in seen if name != "wrong_method" or body)
    late = [(name, seconds) for name, _, seconds, _ in seen if seconds > SECONDS + LINGER]
    assert not late
    slow = [seconds for name, _, seconds, _ in seen if name.startswith(("slow", "silent"))]
    assert min(slow) > 0.9 * UPLOAD_SECONDS
    assert len(good.answers) > 10 and max(good.seconds) < SECONDS
    for rows in good.answers:
        assert [row["name"] for row in rows] == [row["name"] for row in expected]


def test_the_server_is_as_it_was(port: int) -> None:
    """Nothing that was let in is still inside."""
    status, body = exchange(port, b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    numbers = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
    assert status == 200
    for name in ("queue_length", "requests_in_progress", "upload_bytes"):
        assert float(numbers[f"yolov5_{name}"]) == 0
    assert not [name for name in numbers if 'status="5' in name]
    assert len([name for name in numbers if name.startswith("yolov5_requests_total")]) < 30, "clients make no series"


def test_a_crowd_is_told_to_come_back(tmp_path: Path) -> None:
    """More than the server takes: 503 with a time to wait, and the others are answered."""
    weights = write_lively(tmp_path / "tiny.pt", TINY)
    with running(weights, clients=2, batch_size=1, queue=32) as port, ThreadPoolExecutor(24) as clients:
        seen = list(clients.map(lambda seed: exchange(port, send(picture(seed=seed))), range(48)))
    counts = {status: [one for one, _ in seen].count(status) for status in (200, 503)}
    assert sum(counts.values()) == 48 and counts[200] >= 2
    assert all("try again" in json.loads(body)["error"] for status, body in seen if status == 503)
