from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.served import need_server

need_server()
pytest.importorskip("httpx", reason="the test client needs httpx: pip install httpx", exc_type=ImportError)

from fastapi.testclient import TestClient  # noqa: E402 - only where it is installed

from utils.serving.app import POLICY, Endpoints, build_app  # noqa: E402
from utils.serving.batching import Batcher  # noqa: E402
from utils.serving.hosts import Hosts  # noqa: E402
from utils.serving.limits import Limits, Refusal  # noqa: E402
from utils.serving.settings import Settings  # noqa: E402
from utils.serving.uploaded_images import DecodingCost  # noqa: E402

LIMITS = Limits(upload=10_000, files=3, requests=4)


class Lengths:
    """Stands in for a detector: what it finds in a file is the file's length; b"slow" takes a while, b"fail" fails."""

    names = ["one", "two"]
    model = SimpleNamespace(shape=None)
    record = None

    def __init__(self) -> None:
        self.prepared: list[bytes] = []

    def measure(self, data: bytes, name: str) -> DecodingCost:
        if data == b"costly":
            raise Refusal(413, f"{name} is costly")
        return DecodingCost(10**9 if data == b"heavy" else len(data), len(data))

    def prepare(self, data: bytes, settings: Settings, name: str) -> Any:
        self.prepared.append(data)
        if data == b"bad":
            raise Refusal(400, f"{name} is bad")
        return SimpleNamespace(pixels=SimpleNamespace(shape=()), data=data, settings=settings)

    def work(self, key: Any, items: list[Any]) -> list[Any]:
        for item in items:
            if item.data == b"fail":
                raise RuntimeError("internal words")
            time.sleep(0.5 if item.data == b"slow" else 0)
        return [[len(item.data), item.settings.conf] for item in items]


@contextmanager
def client_of(limits: Limits = LIMITS, hosts: Hosts | None = None) -> Iterator[TestClient]:
    detector = Lengths()
    service = Endpoints(detector, Batcher(detector.work, 2), Settings(), limits, "name")
    with TestClient(build_app(service, hosts), raise_server_exceptions=False) as client:
        client.service = service
        yield client


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_of() as one:
        yield one


def send(client: TestClient, *files: bytes, address: str = "/v1/object-detection/x", field: str = "image") -> Any:
    return client.post(address, files=[(field, ("name", file)) for file in files])


def test_nothing_sent(client: TestClient) -> None:
    answer = client.post("/v1/object-detection/x")
    assert answer.status_code == 415 and list(answer.json()) == ["error"]


def test_one_and_many(client: TestClient) -> None:
    assert send(client, b"abc").json() == [3, 0.25]
    batch = "/v1/object-detection/x/batch"
    assert send(client, b"abc", b"", b"a", address=batch, field="images").json() == [[3, 0.25], [0, 0.25], [1, 0.25]]
    assert send(client, b"abc", address="/v1/object-detection/x?conf=0.5").json() == [3, 0.5]
    assert send(client, *[b"a"] * 4, address=batch).status_code == 400


def test_a_bad_picture_among_good_ones_is_named(client: TestClient) -> None:
    answer = send(client, b"abc", b"bad", address="/v1/object-detection/x/batch")
    assert (answer.status_code, answer.json()) == (400, {"error": "picture 2 is bad"})


@pytest.mark.parametrize("name", ["yolov5s", "a.b-c_1", "x" * 64])
def test_any_name_is_the_model(client: TestClient, name: str) -> None:
    assert send(client, b"abc", address=f"/v1/object-detection/{name}").status_code == 200


@pytest.mark.parametrize("name", ["..", ".x", "%2e%2e%2fx", "a b", "x" * 65, "\u732b", "%00"])
def test_names_that_are_none(client: TestClient, name: str) -> None:
    assert send(client, b"abc", address=f"/v1/object-detection/{name}").status_code == 404


def test_addresses_that_are_none(client: TestClient) -> None:
    for answer, status in ((client.get("/docs"), 404), (client.get("/v1/object-detection/x"), 405)):
        assert answer.status_code == status and "address" in answer.json()["error"]


def test_failures_keep_their_words_to_themselves(client: TestClient) -> None:
    answer = send(client, b"fail")
    assert answer.status_code == 500 and "internal" not in answer.text
    assert send(client, b"abc").status_code == 200 and client.get("/health").json()["status"] == "ok"


def test_no_answer_in_time() -> None:
    with client_of(replace(LIMITS, seconds=0.1)) as client:
        answer = send(client, b"slow")
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        time.sleep(0.5)
        assert "yolov5_requests_in_progress 0" in client.get("/metrics").text


def test_nothing_is_decoded_where_one_costs_too_much(client: TestClient) -> None:
    batch = "/v1/object-detection/x/batch"
    answer = send(client, b"abc", b"costly", address=batch, field="images")
    assert (answer.status_code, answer.json()) == (413, {"error": "picture 2 is costly"})
    assert client.service.detector.prepared == []


def test_what_a_request_may_cost_together() -> None:
    batch = "/v1/object-detection/x/batch"
    with client_of(replace(LIMITS, files=9, pixels=10_000_000)) as client:  # an image may cost 1.2e9, a request 4.8e9
        assert send(client, *[b"heavy"] * 4, address=batch, field="images").status_code == 200
        answer = send(client, *[b"heavy"] * 5, address=batch, field="images")
        assert answer.status_code == 413 and "the 5 pictures" in answer.json()["error"]


def test_a_stop_turns_new_requests_away(client: TestClient) -> None:
    client.portal.call(client.service.stop, 5.0)
    answer = send(client, b"abc")
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "5" and "stopped" in answer.json()["error"]
    assert (client.service.finished, client.service.given_up) == (0, 1)


@pytest.mark.parametrize("grace, status", [(0.1, 503), (20.0, 200)])
def test_a_stop_gives_requests_a_time(client: TestClient, grace: float, status: int) -> None:
    with ThreadPoolExecutor(1) as other:
        answer = other.submit(send, client, b"slow")
        while not client.service.gate.inside:
            time.sleep(0.01)
        client.portal.call(client.service.stop, grace)
    assert answer.result().status_code == status
    assert (client.service.finished, client.service.given_up) == ((1, 0) if status == 200 else (0, 1))


def test_other_hosts_reach_nothing() -> None:
    with client_of(hosts=Hosts()) as client:
        for path in ("/", "/health", "/metrics", "/openapi.json", "/nowhere"):
            answer = client.get(path, headers={"Host": "evil.example"})
            assert answer.status_code == 421 and "evil.example" in answer.json()["error"]
            assert client.get(path).status_code == (404 if path == "/nowhere" else 200)
        assert 'path="other",status="421"} 5' in client.get("/metrics").text


def test_routes_where_there_are_none(client: TestClient) -> None:
    answer = send(client, b"abc", address="/v1/routes/x")
    assert answer.status_code == 404 and "routing" in answer.json()["error"]


def test_about(client: TestClient) -> None:
    (told,) = client.get("/v1/models").json()["models"]
    assert told["classes"] == ["one", "two"] and told["limits"]["upload"] == 10_000 and not told["routing"]
    assert client.head("/health").status_code == 200 and client.head("/health").text == ""


def test_the_page_is_shut_in(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["Content-Security-Policy"] == POLICY and "default-src 'none'" in POLICY
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_health_is_bad_when_nobody_works() -> None:
    detector = Lengths()
    service = Endpoints(detector, Batcher(detector.work), Settings(), LIMITS, "name")
    answer = asyncio.run(service.health())
    assert answer.status_code == 503 and json.loads(answer.body)["status"] == "stopped"


def test_metrics_know_routes_not_clients(client: TestClient) -> None:
    for name in ("a", "b", "..", "<script>"):
        send(client, b"abc", address=f"/v1/object-detection/{name}")
    client.get("/nowhere/at/all")
    text = client.get("/metrics").text
    assert 'path="/v1/object-detection/{model}",status="200"} 2' in text
    assert 'path="other",status="404"}' in text and "nowhere" not in text
