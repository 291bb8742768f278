from __future__ import annotations

import io
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import detect
import serve
from models.api.autoshape import AutoShape
from models.backends import DetectMultiBackend
from models.exporters import ExportJob, ExportSettings, export
from serve import ServeOptions, complete, listen
from tests.lively import lively_model, write_lively
from tests.served import TINY, detections, exchange, form, get, need_server, post, running, some_image
from utils.base.paths import ROOT

need_server()

COLUMNS = ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
SHAPES = [(96, 96), (90, 128), (160, 100), (64, 300)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lively(tmp_path_factory.mktemp("served") / "tiny.pt", TINY)


@pytest.fixture(scope="module")
def port(weights: Path) -> Iterator[int]:
    with running(weights, window=20.0) as number:
        yield number


def answer(port: int, request: bytes) -> tuple[int, Any]:
    status, body = exchange(port, request)
    return status, json.loads(body)


def table(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[row[name] for name in COLUMNS[:6]] for row in rows]).reshape(-1, 6)


def boxes_of_detect(weights: Path, file: bytes, folder: Path, **more: Any) -> np.ndarray:
    """What detect.py writes for the image: x1, y1, x2, y2 in pixels, confidence, class; the surest first."""
    folder.mkdir()
    (folder / "x.png").write_bytes(file)
    done = detect.run(
        weights=str(weights), source=str(folder / "x.png"), imgsz=128, save_txt=True, save_conf=True, nosave=True,
        project=str(folder), device="cpu", trust=True, **more,
    )  # fmt: skip
    labels = done / "labels/x.txt"
    rows = np.loadtxt(labels, ndmin=2)[::-1] if labels.exists() else np.zeros((0, 6))
    width, height = Image.open(io.BytesIO(file)).size
    centre, size = rows[:, 1:3] * (width, height), rows[:, 3:5] * (width, height)
    return np.hstack([centre - size / 2, centre + size / 2, rows[:, 5:6], rows[:, :1]])


# ---- nothing
def test_nothing_found(port: int) -> None:
    status, content = answer(port, post("/v1/object-detection/any", form([])))
    assert status == 400 and "field named image" in content["error"]
    assert detections(port, some_image(), "?conf=1") == []


# ---- the same boxes as elsewhere
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_what_autoshape_gives(port: int, weights: Path, shape: tuple[int, int]) -> None:
    file = some_image(*shape, seed=sum(shape))
    rows = detections(port, file)
    expected = AutoShape(DetectMultiBackend(weights))(Image.open(io.BytesIO(file)), size=128).pandas().xyxy[0]
    expected = json.loads(expected.to_json(orient="records"))
    assert len(rows) > 3
    assert [list(row) for row in rows] == [COLUMNS] * len(rows)
    assert [row["name"] for row in rows] == [row["name"] for row in expected]
    np.testing.assert_allclose(table(rows), table(expected), atol=1e-3)


@pytest.mark.parametrize("shape", [*SHAPES, None])
def test_rows_are_what_detect_writes(port: int, weights: Path, tmp_path: Path, shape: tuple[int, int] | None) -> None:
    """Of a photo, too, which is decoded as detect.py decodes it."""
    file = some_image(*shape, seed=sum(shape)) if shape else (ROOT / "data/images/crowd.jpg").read_bytes()
    rows = table(detections(port, file))
    rows[:, :4] = rows[:, :4].round()
    np.testing.assert_allclose(rows, boxes_of_detect(weights, file, tmp_path / "photos"), atol=1e-3)


@pytest.mark.parametrize("imgsz", [(128, 128), (96, 128)])
def test_an_exported_file_of_one_shape(tmp_path: Path, imgsz: tuple[int, int]) -> None:
    model = lively_model(TINY).fuse().requires_grad_(False)
    settings = ExportSettings(imgsz=imgsz)
    (file,) = export(ExportJob(model, tmp_path / "tiny.pt", settings), ["torchscript"])
    with running(file, imgsz=128, trust=True) as port:
        (told,) = answer(port, get("/v1/models"))[1]["models"]
        assert (told["shape"], told["size"], told["routing"]) == (list(imgsz), 128, False)
        for number, shape in enumerate(SHAPES):
            content = some_image(*shape, seed=number)
            rows = table(detections(port, content))
            rows[:, :4] = rows[:, :4].round()
            expected = boxes_of_detect(file, content, tmp_path / f"photos{number}")
            assert len(expected) > 3
            np.testing.assert_allclose(rows, expected, atol=1e-3)
        assert answer(port, post("/v1/object-detection/any?size=256", form([some_image()])))[0] == 400
        assert answer(port, post("/v1/routes/any", form([some_image()])))[0] == 404


def test_tiles_are_those_of_detect(port: int, weights: Path, tmp_path: Path) -> None:
    file = some_image(160, 220, seed=3)
    rows = table(detections(port, file, "?tile=64&tile_overlap=0.5&tile_merge=greedy"))
    rows[:, :4] = rows[:, :4].round()
    expected = boxes_of_detect(weights, file, tmp_path / "tiles", tile=64, tile_overlap=0.5, tile_merge="greedy")
    assert len(rows) > len(detections(port, file)) > 3
    np.testing.assert_allclose(rows, expected, atol=1e-3)
    address = "/v1/object-detection/any/batch?tile=64"
    status, (first, second) = answer(port, post(address, form([file, some_image(60, 60)], "images")))
    assert status == 200 and table(first).tolist() == table(detections(port, file, "?tile=64")).tolist()
    assert table(second).tolist() == pytest.approx(table(detections(port, some_image(60, 60))))
    assert answer(port, post("/v1/routes/any?tile=64", form([file])))[0] == 200  # of the whole image
    with running(weights, tile=64, tile_overlap=0.25, max_tiles=15) as tiled:
        again = table(detections(port, file, "?tile=64&tile_overlap=.25"))
        assert table(detections(tiled, file)).tolist() == again.tolist()
        assert len(detections(tiled, file, "?tile=0")) == len(detections(port, file))
        status, content = answer(tiled, post("/v1/object-detection/any?tile=32", form([file])))
        assert status == 413 and "at most 15" in content["error"]


def test_many_images_are_each_the_one(port: int) -> None:
    files = [some_image(*shape, seed=7) for shape in SHAPES * 2]
    status, found = answer(port, post("/v1/object-detection/any/batch", form(files, "images")))
    assert status == 200 and len(found) == len(files)
    for rows, file in zip(found, files, strict=True):
        np.testing.assert_allclose(table(rows), table(detections(port, file)), atol=2e-3)


def test_requests_that_come_together_go_together(port: int) -> None:
    def batches() -> tuple[float, float]:
        text = exchange(port, get("/metrics"))[1].decode()
        return tuple(float(re.search(rf"^yolov5_batch_size_{word} (\S+)", text, re.M)[1]) for word in ("sum", "count"))

    before = batches()
    with ThreadPoolExecutor(16) as clients:
        found = list(clients.map(lambda seed: detections(port, some_image(seed=seed % 4)), range(48)))
    images, count = (late - early for late, early in zip(batches(), before, strict=True))
    assert images == 48 and count < 24
    for seed, rows in enumerate(found):
        np.testing.assert_allclose(table(rows), table(found[seed % 4]), atol=2e-3)


# ---- about the server
def test_small_answers_do_not_wait(port: int) -> None:
    """Answers in two parts over one connection: where the second waits for an acknowledgement, each takes 40 ms."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        start = time.perf_counter()
        for _ in range(30):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
            got = b""
            while not got.endswith(b"}"):
                got += client.recv(4096)
    assert time.perf_counter() - start < 0.6


def test_no_file_is_opened(port: int, tmp_path: Path) -> None:
    """Not for large uploads either, which the form parser would otherwise keep in temporary files."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(some_image())
    large = some_image(900, 1200, kind="BMP")
    assert len(large) > 2**20
    detections(port, large)  # modules that are imported late have been by now
    opened, watching = [], [True]
    # The hook stays for good, so it looks only while it shall
    sys.addaudithook(lambda event, given: opened.append(given[0]) if watching[0] and event == "open" else None)
    try:
        for name in (str(secret), f"file://{secret}", "../../secret.png"):
            for file in (large, name.encode()):
                exchange(port, post("/v1/object-detection/any", form([file], name=name)))
            exchange(port, post(f"/v1/object-detection/{name}", form([large])))
            exchange(port, post(f"/v1/object-detection/any?size={name}", form([large])))
    finally:
        watching[0] = False
    assert not opened


# ---- the command line
@pytest.mark.parametrize("flags, told", [
    ("--weights nothing.pt", "nothing.pt"),
    ("--queue 4", "--max-files"),
    ("--hosts http://x.example", "--hosts"),
    ("--host no.such.host.invalid", "cannot listen"),
])  # fmt: skip
def test_mistakes_are_one_line(weights: Path, capsys: pytest.CaptureFixture[str], flags: str, told: str) -> None:
    assert serve.main(["--weights", str(weights), "--imgsz", "64", "--device", "cpu", *flags.split()]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(said) == 1 and told in said[0]


def test_a_port_that_is_taken_and_packages_that_are_missing(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, address = listen("127.0.0.1", 0)
    with taken, pytest.raises(ValueError, match="cannot listen on .*in use"):
        listen("127.0.0.1", int(address.rpartition(":")[2]))
    monkeypatch.setattr(serve, "find_spec", lambda module: None if module == "uvicorn" else object())
    with pytest.raises(
        ValueError, match="needs uvicorn: pip install fastapi uvicorn python-multipart prometheus-client"
    ):
        complete(ServeOptions(weights=[str(weights)]))


def test_limits_are_the_flags(weights: Path) -> None:
    opt = ServeOptions([str(weights)], max_upload=2, max_pixels=3, max_size=512, timeout=7, upload_timeout=4, clients=5)
    limits = serve.build(replace(opt, imgsz=640, device="cpu")).limits
    assert (limits.upload, limits.pixels, limits.largest) == (2 * 2**20, 3_000_000, 640)
    assert (limits.seconds, limits.upload_seconds, limits.requests) == (7, 4, 5)


@pytest.mark.parametrize("page", ["serving.md", "serving.zh-CN.md"])
def test_the_manual_has_the_defaults(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `--([a-z-]+)` \| ([\d.]+) \|", text, re.MULTILINE))
    assert len(rows) == 14
    assert {flag: float(getattr(ServeOptions(), flag.replace("-", "_"))) for flag in rows} == {
        flag: float(value) for flag, value in rows.items()
    }
