"""Small files that are made to cost much, of every format, from many clients: good requests are answered all along."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hostile import COSTLY, many_scans
from tests.lively import write_lively
from tests.served import TINY, GoodClient, exchange, form, get, need_server, post, running, some_image

need_server()

ADDRESS = "/v1/object-detection/any"
CLIENTS = 16
PATIENT = 15.0  # seconds in which a good request must be answered, on a machine that has other things to do, too


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """With the limits that serve.py has when nothing is said."""
    weights = write_lively(tmp_path_factory.mktemp("served") / "tiny.pt", TINY)
    with running(weights) as number:
        yield number


def gauge(port: int, name: str) -> float:
    text = exchange(port, get("/metrics"))[1].decode()
    return float(next(row for row in text.splitlines() if row.startswith(f"yolov5_{name} ")).split()[1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF"])
def test_good_requests_are_answered_beside_costly_ones(port: int, kind: str) -> None:
    requests = [post(ADDRESS, form([make()])) for one, make in COSTLY.values() if one == kind]
    assert len(requests) > 2
    with GoodClient(port) as good:
        with ThreadPoolExecutor(CLIENTS) as clients:
            jobs = [clients.submit(exchange, port, requests[i % len(requests)], patience=60) for i in range(CLIENTS)]
            seen = [job.result() for job in jobs]
        start = time.monotonic()
        while len(good.seconds) < 3 and time.monotonic() - start < PATIENT:
            time.sleep(0.05)
    assert good.same and len(good.seconds) >= 3 and max(good.seconds) < PATIENT
    assert {status for status, _ in seen} <= {400, 413, 415}, seen
    assert all(json.loads(body)["error"] for _, body in seen)


def test_good_requests_pass_those_that_cost_as_much_as_they_may(port: int) -> None:
    """A crowd of images that are just allowed: they wait for each other, a small one does not wait for them."""
    heavy = post(ADDRESS, form([many_scans(5000, 30)]))
    with GoodClient(port) as good, ThreadPoolExecutor(CLIENTS) as clients:
        seen = list(clients.map(lambda _: exchange(port, heavy, patience=90), range(6)))
    assert good.same and len(good.seconds) >= 3 and max(good.seconds) < PATIENT
    assert {status for status, _ in seen} <= {200, 503} and 200 in {status for status, _ in seen}


def test_what_nobody_waits_for_is_not_decoded(port: int) -> None:
    """Clients that are gone: their images are dropped from the queue, and the next large one is soon decoded."""
    heavy = post(ADDRESS, form([many_scans(7000, 30)]))

    def hang_up() -> None:
        with pytest.raises(OSError):
            exchange(port, heavy, patience=0.7)

    crowd = [threading.Thread(target=hang_up) for _ in range(16)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    deadline = time.monotonic() + PATIENT  # those that have begun may go on: two at a time, none of the others
    while gauge(port, "decoding_queue_length") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gauge(port, "decoding_queue_length") == 0 and gauge(port, "requests_in_progress") == 0
    small = post(ADDRESS, form([many_scans(4000, 30)]))
    assert exchange(port, small, patience=60)[0] == 200
    assert 'status="499"' in exchange(port, get("/metrics"))[1].decode()


def test_a_damaged_image_ends_the_wait_for_the_others(tmp_path: Path) -> None:
    """The others of its request are not decoded for nobody; and a request may not ask for too much at once."""
    weights = write_lively(tmp_path / "tiny.pt", TINY)
    with running(weights) as port:
        status, body = exchange(port, post(f"{ADDRESS}/batch", form([many_scans(7000, 30)] * 12, "images")))
        assert status == 413 and "the 12 images would take too long to decode: send fewer" in json.loads(body)["error"]
        damaged = some_image(kind="JPEG")[:-400]
        exchange(port, post(f"{ADDRESS}/batch", form([damaged, *[many_scans(7000, 10)] * 9], "images")), patience=60)
        assert gauge(port, "decoding_queue_length") == 0
