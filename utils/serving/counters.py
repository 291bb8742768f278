"""Numbers about the server in Prometheus' text format."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """How many values were at most so large, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Note a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        """The samples of the histogram `name`: cumulative counts, sum and count."""
        lines, total = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self.sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """Counts requests and batches; `gauges` are asked for their value whenever somebody looks."""

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]] | None = None) -> None:
        self.gauges = dict(gauges or {})
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds = Histogram(SECONDS)
        self.batches = Histogram(SIZES)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered. `path` is the route's pattern: a client's own words would make endless series."""
        self.requests[path, status] += 1
        self.seconds.add(seconds)

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        lines = _head("yolov5_requests_total", "counter", "Requests answered, by route and status.")
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'yolov5_requests_total{{path="{path}",status="{status}"}} {count}')
        lines += _head("yolov5_request_seconds", "histogram", "Seconds from a request's head to its answer's end.")
        lines += self.seconds.lines("yolov5_request_seconds")
        lines += _head("yolov5_batch_size", "histogram", "Pictures that went through the network together.")
        lines += self.batches.lines("yolov5_batch_size")
        for name, (help_text, value) in self.gauges.items():
            lines += [*_head(name, "gauge", help_text), f"{name} {value():g}"]
        lines += _head("process_resident_memory_bytes", "gauge", "Memory of this process.")
        return "\n".join([*lines, f"process_resident_memory_bytes {resident_bytes()}", ""])


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def resident_bytes(process: int | str = "self") -> int:
    """Memory that a process occupies, in bytes; 0 where the system does not tell in /proc."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
