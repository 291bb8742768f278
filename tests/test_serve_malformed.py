"""Hundreds of requests that are wrong, each in its own way, while good ones keep being answered."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile import COSTLY, bmp, in_gif, layout, png, tiff
from tests.lively import write_lively
from tests.served import EDGE, TINY, GoodClient, exchange, form, get, need_server, post, running, some_image

need_server()

UPLOAD_SECONDS = 0.8
SECONDS = 4.0
LINGER = 1.0  # for which the server lets the rest of a refused upload go by
COUNT = 500
ADDRESS = "/v1/object-detection/any"
CHUNKED = post(ADDRESS, b"", Content_Length="", Transfer_Encoding="chunked")
Wrong = bytes | list[bytes]  # a whole request, or parts of one that are sent slowly
KINDS: dict[str, Callable[[np.random.Generator], Wrong]] = {}


def send(file: bytes) -> bytes:
    return post(ADDRESS, form([file]))


def part(name: str, value: str) -> bytes:
    return f'--{EDGE}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def whole(rng: np.random.Generator, least: int, most: int) -> int:
    return int(rng.integers(least, most))


def one_of(*choices: Any) -> Callable[[np.random.Generator], Any]:
    return lambda rng: choices[whole(rng, 0, len(choices))]


# ---- files that are no images, or not whole, or would take for ever (tests/hostile.py)
OTHERS = (
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"%PDF-1.7",
    b"PK\x03\x04",
    b"\x80\x04cos\nsystem\n.",
    b"GIF89a",
)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"
KINDS["empty_file"] = lambda rng: send(b"")
KINDS["noise"] = lambda rng: send(rng.bytes(whole(rng, 1, 5000)))
KINDS["other_type"] = lambda rng: send(one_of(*OTHERS, EPS, b"\x00\x00\x00\x1cftypavif", b"#!/bin/sh\n")(rng))


def truncated(rng: np.random.Generator) -> Wrong:
    file = some_image(seed=whole(rng, 0, 9), kind=one_of("PNG", "JPEG", "WEBP", "BMP")(rng))
    return send(file[: whole(rng, 1, len(file) * 3 // 4)])


def damaged_rows(rng: np.random.Generator) -> Wrong:
    file = bytearray(some_image(seed=1))
    start = file.index(b"IDAT") + 4
    file[start + 2 : start + 2000] = rng.bytes(1998)
    return send(bytes(file))


def bomb(rng: np.random.Generator) -> Wrong:
    """Little to send and up to 81 megapixels, all of which are there."""
    side = whole(rng, 5_000, 9_000)
    return send(png(side, side, bytes((side // 8 + 2) * side), kind=(1, 0, 0)))


def text_bomb(rng: np.random.Generator) -> Wrong:
    return send(png(8, 8, bytes(72), (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(whole(rng, 70, 90) << 20), 1))))


def huge_webp(rng: np.random.Generator) -> Wrong:
    sides = b"".join(struct.pack("<I", whole(rng, 9_000, 2**24))[:3] for _ in range(2))
    return send(b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + sides + bytes(16))


def huge_tiff(rng: np.random.Generator) -> Wrong:
    strips = [(tag, 4, 1, value) for tag, value in ((273, 8), (277, 1), (278, 2**30), (279, 9))]
    return send(tiff(*layout(2**30, whole(rng, 2**16, 2**31), 8, 1), *strips))


KINDS |= {made.__name__: made for made in (truncated, damaged_rows, bomb, text_bomb, huge_webp, huge_tiff)}
KINDS |= {
    "huge_png": lambda rng: send(png(whole(rng, 10**5, 2**31), whole(rng, 10**5, 2**31), b"")),
    "huge_gif": lambda rng: send(b"GIF89a" + struct.pack("<HH", 65535, whole(rng, 1000, 65536)) + in_gif(b"")[10:]),
    "huge_bmp": lambda rng: send(bmp(whole(rng, 50_000, 2**31), whole(rng, 50_000, 2**31), b"", 24, 0)),
}
KINDS |= {name: partial(lambda file, rng: file, send(make())) for name, (_, make) in [*COSTLY.items()][::6]}


# ---- forms that are none
def cut_form(rng: np.random.Generator) -> Wrong:
    body = form([some_image()])
    return post(ADDRESS, body[: whole(rng, 1, len(body) - 40)])


OTHER_FORMS = ("application/json", "text/plain", "application/x-www-form-urlencoded", "", "multipart/mixed")
FORM = "multipart/form-data"
EDGES = ("", "; boundary=", "; boundary=other", '; boundary="' + "x" * 500 + '"')
FIELDS = ("file", "img", "images", "'; drop table", "\xff")
TEXTS = ("/etc/passwd", "http://127.0.0.1/", "x" * 3000)
KINDS |= {
    "cut_form": cut_form,
    "no_form": lambda rng: post(ADDRESS, some_image(), Content_Type=one_of(*OTHER_FORMS)(rng)),
    "no_boundary": lambda rng: post(ADDRESS, form([some_image()]), Content_Type=FORM + one_of(*EDGES)(rng)),
    "other_field": lambda rng: post(ADDRESS, form([some_image()], one_of(*FIELDS)(rng))),
    "text_instead": lambda rng: post(ADDRESS, part("image", one_of(*TEXTS)(rng)) + f"--{EDGE}--\r\n".encode()),
    "too_many_files": lambda rng: post(ADDRESS, form([some_image(8, 8)] * whole(rng, 2, 60))),
    "many_fields": lambda rng: post(ADDRESS, part("x", "1") * 5000 + form([some_image()])),
    "long_part_head": lambda rng: post(ADDRESS, b"--%s\r\nA: %s\r\n" % (EDGE.encode(), b"x" * 200_000)),
}


# ---- requests that lie, are too large, or ask for what there is not
TRICKS = (
    *("../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/etc/passwd", "..%5c..%5cboot.ini", "a%00.pt", "~"),
    *("a%0d%0ab", "%ff%fe", "file:%2f%2f%2fetc%2fpasswd", "..;/x", ".env", "x" * 3000, "%c0%ae%c0%ae"),
    "any/batch/../../x",
)
QUERIES = (
    *("conf=-1", "conf=inf", "conf=", "iou=1e9", "size=-32", "size=1e9", "size=" + "9" * 900, "classes=" + "1," * 900),
    *("classes=%00", "model=/etc/passwd", "conf=0.5&conf=0.6", "size=%d9%a3%d9%a2%d9%a0", "weights=x.pt", "conf[]=1"),
)
LENGTHS = ("-1", "x", "1e3", "0x10", "9" * 5000)
SIZES = (b"zz\r\n", b"-5\r\n", b"ffffffffffffffffffff1\r\n", b"\r\n\r\n")
METHODS = (b"GET", b"PUT", b"DELETE", b"PATCH", b"TRACE")
NO_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"SSH-2.0-x",
    b"GET / HTTP/x.y",
    b"G\x00T / HTTP/1.1",
    b"POST",
)
GOOD = send(some_image())
BODY = GOOD.index(b"\r\n\r\n") + 4
KINDS |= {
    "too_large": lambda rng: send(bytes(whole(rng, 2**21, 3 * 2**20))),
    "huge_length": lambda rng: post(ADDRESS, b"", Content_Length=str(10 ** whole(rng, 7, 18))),
    "wrong_length": lambda rng: post(ADDRESS, form([some_image()]), Content_Length=one_of(*LENGTHS)(rng)),
    "endless_chunks": lambda rng: CHUNKED + (b"10000\r\n" + bytes(0x10000) + b"\r\n") * whole(rng, 33, 40),
    "wrong_chunks": lambda rng: CHUNKED + one_of(*SIZES)(rng),
    "two_lengths": lambda rng: post(ADDRESS, form([some_image()]), Content_Length="9\r\nContent-Length: 3"),
    "path_tricks": lambda rng: post(f"/v1/object-detection/{one_of(*TRICKS)(rng)}", form([some_image()])),
    "wrong_query": lambda rng: post(f"{ADDRESS}?{one_of(*QUERIES)(rng)}", form([some_image()])),
    "wrong_method": lambda rng: GOOD.replace(b"POST", one_of(*METHODS)(rng), 1),
    "no_http": lambda rng: one_of(*NO_HTTP)(rng) + b"\r\n\r\n",
    "long_head": lambda rng: post(ADDRESS, b"", X="x" * whole(rng, 40_000, 90_000)),
    # slow ones: a few bytes, a pause, a few more
    "slow_head": lambda rng: [GOOD[i : i + 3] for i in range(0, 300, 3)],
    "slow_body": lambda rng: [GOOD[:BODY], *(GOOD[i : i + 2] for i in range(BODY, BODY + 200, 2))],
    "silent_body": lambda rng: [GOOD[:-200], *[b""] * 100],
}


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


def attempt(port: int, case: tuple[str, Wrong]) -> tuple[str, int, float, bytes]:
    name, request = case
    start = time.monotonic()
    status, body = exchange(port, request, pause=0.1 if isinstance(request, list) else 0.0)
    return name, status, time.monotonic() - start, body


def test_every_one_is_turned_away_while_good_ones_are_answered(port: int) -> None:
    with GoodClient(port) as good, ThreadPoolExecutor(24) as clients:
        seen = list(clients.map(lambda case: attempt(port, case), cases(COUNT)))
    assert len(seen) == COUNT and len({name for name, *_ in seen}) == len(KINDS)
    strange = [(name, status, body[:200]) for name, status, _, body in seen if not 400 <= status < 500]
    assert not strange
    assert all(json.loads(body)["error"] for name, _, _, body in seen if name != "wrong_method" or body)
    late = [(name, seconds) for name, _, seconds, _ in seen if seconds > SECONDS + LINGER]
    assert not late
    slow = [seconds for name, _, seconds, _ in seen if name.startswith(("slow", "silent"))]
    assert min(slow) > 0.9 * UPLOAD_SECONDS
    assert len(good.seconds) > 10 and max(good.seconds) < SECONDS and good.same


def test_the_server_is_as_it_was(port: int) -> None:
    """Nothing that was let in is still inside."""
    status, body = exchange(port, get("/metrics"))
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
        seen = list(clients.map(lambda seed: exchange(port, send(some_image(seed=seed))), range(48)))
    counts = {status: [one for one, _ in seen].count(status) for status in (200, 503)}
    assert sum(counts.values()) == 48 and counts[200] >= 2
    assert all("try again" in json.loads(body)["error"] for status, body in seen if status == 503)
