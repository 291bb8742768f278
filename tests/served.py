"""A server for tests: `running(weights)` serves from a thread of this process, and what clients of it need."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve import NEEDED, ServeOptions, complete, listen, make_server

EDGE = "an-edge-that-is-in-no-image"
TINY = {
    "nc": 3,
    "depth_multiple": 0.33,
    "width_multiple": 0.125,
    "anchors": [[10, 10, 16, 16, 24, 24], [30, 30, 40, 40, 50, 50]],
    "backbone": [
        [-1, 1, "Conv", [64, 6, 2, 2]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 1, "C3", [128]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 1, "C3", [256]],
        [-1, 1, "Conv", [512, 3, 2]],
    ],
    "head": [
        [-1, 1, "BiLevelRoutingAttention", []],
        [-1, 1, "C3", [512, False]],
        [4, 1, "BiLevelRoutingAttention", []],
        [[8, 7], 1, "Detect", ["nc", "anchors"]],
    ],
}  # P4 and P5, each behind routing attention
SMALL: dict[str, Any] = {"imgsz": 128, "device": "cpu", "port": 0}


def need_server() -> None:
    """Skip, by name and reason, where a package of the server is missing. For the top of a test module."""
    for module, package in NEEDED.items():
        pytest.importorskip(module, reason=f"serving needs {package}: pip install {package}", exc_type=ImportError)


@contextmanager
def running(weights: Path, **options: Any) -> Iterator[int]:
    """Serve the weights from a thread while the block runs; gives the port."""
    opt = complete(ServeOptions(weights=[str(weights)], **SMALL | options))
    server = make_server(opt)
    listener, _ = listen(opt.host, 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


def some_image(height: int = 96, width: int = 128, seed: int = 0, kind: str = "PNG") -> bytes:
    """A file of coloured noise blown up, so that there are shapes in it."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def form(files: Sequence[bytes], field: str = "image", name: str = "x.png") -> bytes:
    """The body of a form with these files."""
    head = f'--{EDGE}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"--{EDGE}--\r\n".encode()


def post(address: str, body: bytes, **headers: str) -> bytes:
    """A whole POST request; a header given as "" is left out."""
    kinds = {"Content-Type": f"multipart/form-data; boundary={EDGE}", "Content-Length": str(len(body))}
    kinds |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in kinds.items() if value)
    return f"POST {address} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{lines}\r\n".encode() + body


def get(address: str) -> bytes:
    """A whole GET request."""
    return f"GET {address} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode()


def exchange(
    port: int, parts: bytes | Sequence[bytes], pause: float = 0.0, patience: float = 20.0
) -> tuple[int, bytes]:
    """Send the parts with a pause between them until the server answers or hangs up; status (0: none) and body."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as client:
        got = b""
        for part in [parts] if isinstance(parts, bytes) else parts:
            try:
                client.sendall(part)
                if pause:
                    client.settimeout(pause)
                    got += client.recv(65536)
                    break
            except TimeoutError:
                continue
            except OSError:  # refused and closed before all was sent: the answer may still be there
                break
        client.settimeout(patience)
        try:
            while chunk := client.recv(65536):
                got += chunk
        except ConnectionError:
            pass
    while got.startswith(b"HTTP/1.1 100"):
        got = got.partition(b"\r\n\r\n")[2]
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]) if head else 0, body


def detections(port: int, file: bytes, query: str = "", model: str = "any") -> Any:
    """The rows for one image."""
    status, body = exchange(port, post(f"/v1/object-detection/{model}{query}", form([file])))
    assert status == 200, body
    return json.loads(body)


class GoodClient(threading.Thread):
    """Asks for the same small image all the time until it is told to end, and notes how long each answer took."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.ended, self.seconds = port, threading.Event(), []
        self.expected = self.ask()
        self.same = True

    def run(self) -> None:
        while not self.ended.is_set():
            start = time.monotonic()
            self.same &= self.ask() == self.expected
            self.seconds.append(time.monotonic() - start)
            time.sleep(0.05)

    def ask(self) -> list[str]:
        return [row["name"] for row in detections(self.port, some_image(seed=4))]

    def __enter__(self) -> GoodClient:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.join(60)
