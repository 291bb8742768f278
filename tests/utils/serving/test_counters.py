from __future__ import annotations

import os

import pytest

from utils.serving.counters import Histogram, Metrics, resident_bytes


def test_nothing_counted() -> None:
    text = Metrics().text()
    assert "yolov5_request_seconds_count 0" in text and text.endswith("\n")
    assert Histogram([1]).lines("x") == ['x_bucket{le="1"} 0', 'x_bucket{le="+Inf"} 0', "x_sum 0.000000", "x_count 0"]


def test_a_histogram_is_cumulative_and_includes_its_bounds() -> None:
    histogram = Histogram([1, 2.5])
    for value in (0.5, 1, 2, 7):
        histogram.add(value)
    assert histogram.lines("x") == [
        'x_bucket{le="1"} 2', 'x_bucket{le="2.5"} 3', 'x_bucket{le="+Inf"} 4', "x_sum 10.500000", "x_count 4"
    ]  # fmt: skip


def test_every_series_has_a_type_and_one_value() -> None:
    metrics = Metrics({"queue": ("Waiting.", lambda: 3)})
    metrics.request("/a/{model}", 200, 0.2)
    metrics.request("/a/{model}", 200, 0.3)
    metrics.request("/a/{model}", 404, 0.1)
    metrics.batches.add(5)
    lines = metrics.text().splitlines()
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    series = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    names = [name for name, _ in series]
    assert len(set(names)) == len(names)
    for name, value in series:
        base = name.partition("{")[0]
        assert base in typed or base.rsplit("_", 1)[0] in typed
        float(value)
    assert dict(map(tuple, series))['yolov5_requests_total{path="/a/{model}",status="200"}'] == "2"
    assert "queue 3" in lines and 'yolov5_batch_size_bucket{le="8"} 1' in lines


def test_memory_is_that_of_a_process() -> None:
    assert resident_bytes("no such process") == 0
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc here: memory is not told")
    before = resident_bytes()
    block = bytearray(os.urandom(1)) * 50_000_000
    assert 40_000_000 < resident_bytes(os.getpid()) - before < 200_000_000
    assert len(block) == 50_000_000
