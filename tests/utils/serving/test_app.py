"""The addresses, with a stand-in for the network."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.served import need_server

need_server()
pytest.importorskip("httpx", reason="the test client needs httpx: pip install httpx", exc_type=ImportError)

from fastapi.testclient import TestClient  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from utils.images.decoding_limits import DecodingBudget  # noqa: E402
from utils.serving.app import POLICY, Endpoints, build_app  # noqa: E402
from utils.serving.batching import Batcher  # noqa: E402
from utils.serving.detector import Settings  # noqa: E402
from utils.serving.uploads import Decoder, Limits, Refusal  # noqa: E402

ONE, BATCH = "/v1/object-detection/x", "/v1/object-detection/x/batch"
LIMITS = Limits(upload=10_000, files=3, requests=4)


class Lengths:
    """Stands in for a detector: what it finds in a file is the file's length; b"slow" takes a while, b"fail" fails."""

    names, record = ["cup", "猫", "7", 'it\'s "odd"'], None

    def __init__(self, pixels: int, shape: tuple[int, int] | None) -> None:
        self.prepared: list[bytes] = []
        self.batches: list[list[bytes]] = []
        self.model = SimpleNamespace(shape=shape)
        self.decode = Decoder(np.asarray, pixels)
        self.decode.measure = self.measure

    def measure(self, data: bytes, name: str) -> DecodingBudget:
        if data == b"costly":
            raise Refusal(413, f"{name} is costly")
        memory = 300_000_000 if data == b"wide" else len(data)
        return DecodingBudget(0, 0, work=10**9 if data == b"heavy" else len(data), memory=memory)

    def prepare(self, data: bytes, settings: Settings, name: str) -> Any:
        self.prepared.append(data)
        if data == b"bad":
            raise Refusal(400, f"{name} is bad")
        return SimpleNamespace(
            pixels=SimpleNamespace(shape=()), data=data, settings=settings, tiles=len(data) * bool(settings.tile)
        )

    def work(self, key: Any, items: list[Any]) -> list[Any]:
        self.batches.append([item.data for item in items])
        for item in items:
            if item.data == b"fail":
                raise RuntimeError("internal words")
            time.sleep(0.5 if item.data == b"slow" else 0)
        return [[len(item.data), asdict(item.settings)] for item in items]


@contextmanager
def client_of(limits: Limits = LIMITS, shape: Any = None) -> Iterator[TestClient]:
    detector = Lengths(limits.pixels, shape)
    service = Endpoints(detector, Batcher(detector.work, 2), Settings(0.3, 0.5, None, 320), limits, "name")
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        client.service = service
        yield client


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_of() as one:
        yield one


def send(client: TestClient, *files: bytes, address: str = ONE, field: str = "image") -> Any:
    return client.post(address, files=[(field, ("name", file)) for file in files])


def mistake(answer: Any) -> tuple[int, str]:
    assert list(answer.json()) == ["error"]
    return answer.status_code, answer.json()["error"]


def test_one_and_many(client: TestClient) -> None:
    assert mistake(client.post(ONE))[0] == 415
    assert send(client, b"abc").json()[0] == 3
    assert [row[0] for row in send(client, b"abc", b"", b"a", address=BATCH, field="images").json()] == [3, 0, 1]
    assert send(client, *[b"a"] * 4, address=BATCH).status_code == 400
    assert mistake(send(client, b"abc", b"bad", address=BATCH)) == (400, "image 2 is bad")


@pytest.mark.parametrize("name, status", [
    *[(name, 200) for name in ("yolov5s", "a.b-c_1", "x" * 64)],
    *[(name, 404) for name in ("..", ".x", "%2e%2e%2fx", "a b", "x" * 65, "\u732b", "%00")],
])  # fmt: skip
def test_any_name_is_the_model(client: TestClient, name: str, status: int) -> None:
    assert send(client, b"abc", address=f"/v1/object-detection/{name}").status_code == status


@pytest.mark.parametrize("query, chosen", [
    ("", [0.3, 0.5, None, 320, 0, 0.2, "nms"]),
    ("conf=0&iou=1&classes=猫, 0,猫&size=64", [0.0, 1.0, [1, 0], 64, 0, 0.2, "nms"]),
    ("classes=7&tile=640", [0.3, 0.5, [2], 320, 640, 0.2, "nms"]),  # a name counts before a number
    ("tile=32&tile_overlap=0&tile_merge=wbf", [0.3, 0.5, None, 320, 32, 0.0, "wbf"]),
])  # fmt: skip
def test_what_a_request_chooses(client: TestClient, query: str, chosen: list[Any]) -> None:
    assert list(send(client, b"abc", address=f"{ONE}?{query}").json()[1].values()) == chosen


@pytest.mark.parametrize("query, message", [
    ("config=1", "unknown parameter 'config', did you mean 'conf'?; known: conf, iou, classes, size, tile"),
    ("conf=1.01", "conf=1.01: give a number from 0 to 1"),
    ("iou=nan", "from 0 to 1"),
    ("classes=4", "4 classes"),
    ("classes=cub", "did you mean 'cup'"),
    ("classes=", "not among"),
    *[(f"size={size}", "32 to 1280") for size in (0, 31, 1281)],
    *[(f"size={size}", f"size={size[:40]}: give a whole number of pixels") for size in ("3.2", "-64", "9" * 4000)],
    ("tile=31", "tile=31: must be from 32"),
    ("tile=x", "tile=x: give a whole number of pixels"),
    ("tile=64&tile_overlap=0.95", "tile_overlap=0.95: give a number from 0 to 0.9"),
    ("tile=64&tile_merge=mean", "tile_merge=mean: give nms, greedy, wbf"),
    *[(f"tile_{one}", "give tile as well") for one in ("merge=nms", "overlap=0.1", "overlap=0.1&tile=0")],
    ("conf=0.1&conf=0.2", "conf is given twice"),
    ("iou=0.1&conf=0.1&conf=0.2&conf=0.3", "conf is given twice"),
])  # fmt: skip
def test_what_cannot_be_chosen(client: TestClient, query: str, message: str) -> None:
    status, found = mistake(send(client, b"abc", address=f"{ONE}?{query}"))
    assert status == 400 and message in found


def test_images_in_tiles_have_bounds_of_their_own() -> None:
    """The stand-in makes a tile of each byte; a decoded image is held, which takes three bytes a pixel."""
    with client_of(replace(LIMITS, tiles=5, memory=20_000_000)) as client:
        assert send(client, b"abcdef").status_code == send(client, b"wide", address=ONE).status_code == 200
        assert send(client, b"abcde", address=f"{ONE}?tile=64").status_code == 200
        status, text = mistake(send(client, b"abc", b"def", address=f"{BATCH}?tile=64", field="images"))
        assert status == 413 and text.startswith("the request makes 6 tiles, at most 5")
        assert mistake(send(client, b"wide", address=f"{ONE}?tile=64"))[0] == 413 and client.service.gate.held == 0


def test_only_images_in_tiles_are_batches_of_their_own(client: TestClient) -> None:
    assert send(client, b"ab", b"", b"", address=f"{BATCH}?tile=64", field="images").status_code == 200
    assert sorted(client.service.detector.batches) == [[b"", b""], [b"ab"]]


def test_addresses_that_are_none_and_failures_that_keep_their_text_to_themselves(client: TestClient) -> None:
    for answer, status in ((client.get("/docs"), 404), (client.get(ONE), 405)):
        assert mistake(answer)[0] == status and "address" in answer.text
    assert mistake(send(client, b"abc", address="/v1/routes/x")) == (
        404, "these weights have no routing attention whose routes could be shown"
    )  # fmt: skip
    answer = send(client, b"fail")
    assert answer.status_code == 500 and "internal" not in answer.text
    assert send(client, b"abc").status_code == 200 and client.get("/health").json()["status"] == "ok"
    stopped = Endpoints(client.service.detector, Batcher(lambda *given: []), Settings(), LIMITS, "name")
    answer = asyncio.run(stopped.health())
    assert answer.status_code == 503 and json.loads(answer.body)["status"] == "stopped"
    with client_of(shape=(320, 320)) as fixed:
        assert send(fixed, b"abc", address=f"{ONE}?size=320").status_code == 200
        assert "320 pixels only" in mistake(send(fixed, b"abc", address=f"{ONE}?size=640"))[1]


def test_no_answer_in_time() -> None:
    with client_of(replace(LIMITS, seconds=0.1)) as client:
        answer = send(client, b"slow")
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        time.sleep(0.5)
        assert "yolov5_requests_in_progress 0" in client.get("/metrics").text


def test_what_images_may_cost() -> None:
    with client_of(replace(LIMITS, files=9, pixels=10_000_000)) as client:  # an image may cost 1.2e9, a request 4.8e9
        assert mistake(send(client, b"abc", b"costly", address=BATCH)) == (413, "image 2 is costly")
        assert client.service.detector.prepared == []
        assert send(client, *[b"heavy"] * 4, address=BATCH, field="images").status_code == 200
        status, message = mistake(send(client, *[b"heavy"] * 5, address=BATCH, field="images"))
        assert status == 413 and "the 5 images" in message


@pytest.mark.parametrize("data, where", [(b"heavy", "prepare"), (b"wide", "prepare"), (b"long" * 400, "measure")])
def test_small_images_pass_large_ones(data: bytes, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of much work, of much memory, of long headers: more than there are threads wait, and a small one does not."""
    end = threading.Event()

    def slowed(job: Any) -> Any:
        return lambda given, *more: (given == data and end.wait(20), job(given, *more))[1]

    with client_of(replace(LIMITS, requests=20)) as client, ThreadPoolExecutor(9) as others:
        service, detector = client.service, client.service.detector
        owner = detector if where == "prepare" else detector.decode
        monkeypatch.setattr(owner, where, slowed(getattr(owner, where)))
        crowd = [others.submit(send, client, data) for _ in range(9)]
        try:
            deadline = time.monotonic() + 5
            while len((service.decoders if where == "prepare" else service.readers)[1]) < 5:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert send(client, b"abc").status_code == 200 and not any(answer.done() for answer in crowd)
        finally:
            end.set()
        assert [answer.result().status_code for answer in crowd] == [200] * 9


@pytest.mark.parametrize("grace, status", [(0.1, 503), (20.0, 200)])
def test_a_stop_gives_requests_a_time_and_turns_others_away(client: TestClient, grace: float, status: int) -> None:
    with ThreadPoolExecutor(1) as other:
        answer = other.submit(send, client, b"slow")
        while not client.service.gate.inside:
            time.sleep(0.01)
        client.portal.call(client.service.stop, grace)
        late = send(client, b"abc")
    assert answer.result().status_code == status and late.headers["Retry-After"] == "5"
    assert mistake(late) == (503, "the server is being stopped; try again later")
    assert (client.service.finished, client.service.given_up) == ((1, 1) if status == 200 else (0, 2))


def test_about(client: TestClient) -> None:
    (about,) = client.get("/v1/models").json()["models"]
    assert about["classes"] == Lengths.names and about["limits"]["upload"] == 10_000 and not about["routing"]
    assert client.head("/health").status_code == 200 and client.head("/health").text == ""
    page = client.get("/")
    assert page.headers["Content-Security-Policy"] == POLICY and "default-src 'none'" in POLICY
    assert page.headers["content-type"] == "text/html; charset=utf-8"


def test_description_for_programs(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/object-detection/{model}/batch", "/v1/routes/{model}", "/v1/models", "/health"} <= set(paths)
    post = paths["/v1/object-detection/{model}"]["post"]
    assert post["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == ["image"]
    chosen = {"conf", "iou", "classes", "size", "tile", "tile_overlap", "tile_merge"}
    assert {one["name"] for one in post["parameters"]} == {"model", *chosen}
    assert {"4XX", "503"} <= set(post["responses"]) and "422" not in post["responses"]


def test_metrics_know_routes_not_clients(client: TestClient) -> None:
    for name in ("a", "b", "..", "<script>"):
        send(client, b"abc", address=f"/v1/object-detection/{name}")
    client.get("/nowhere/at/all")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=") and "nowhere" not in answer.text
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    samples = {(one.name, *one.labels.values()): one.value for family in families.values() for one in family.samples}
    assert samples["yolov5_requests_total", "/v1/object-detection/{model}", "200"] == 2
    assert samples["yolov5_requests_total", "other", "404"] >= 1
    assert samples["yolov5_batch_size_bucket", "1.0"] == samples["yolov5_batch_size_sum",] == 2
    assert samples["yolov5_request_seconds_count",] == 5 and samples["process_resident_memory_bytes",] > 10**7
    assert families["yolov5_requests"].type == "counter" and families["yolov5_batch_size"].type == "histogram"
    for name in ("queue_length", "decoding_queue_length", "requests_in_progress", "upload_bytes"):
        assert families[f"yolov5_{name}"].type == "gauge" and samples[f"yolov5_{name}",] == 0
