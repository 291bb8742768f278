"""A web server of this machine that fails as a test asks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

CONTENT = bytes(range(256)) * 2000


class Server(BaseHTTPRequestHandler):
    """Serves `body` at any path; `cut` ends the first answers early, `tag` and `changed` are the version (the latter in
    whole answers only), `fail` errors to send, `to` where the first answers lead; `endless` says no length and
    sends so many bytes again and again; an answer waits for `gate` and sets `asked`."""

    body: ClassVar[bytes]
    to: ClassVar[list[str]]
    endless: ClassVar[int]
    cut: ClassVar[list[int]]
    fail: ClassVar[list[int]]
    tag: ClassVar[str]
    changed: ClassVar[str]
    ranges: ClassVar[list[str | None]]
    gate: ClassVar[threading.Event]
    asked: ClassVar[threading.Event]
    stopped: ClassVar[threading.Event]

    def do_GET(self) -> None:
        cls, wanted = type(self), self.headers.get("Range")
        cls.ranges.append(wanted)
        cls.asked.set()
        cls.gate.wait(60)
        resume = wanted is not None and self.headers.get("If-Range") in (cls.tag, cls.changed)
        body = cls.body[int(wanted.removeprefix("bytes=").rstrip("-")) if resume else 0 :]
        sent = cls.cut.pop(0) if cls.cut and not cls.to else None
        if cls.fail:
            return self.send_error(cls.fail.pop(0))
        self.send_response(302 if cls.to else 206 if resume else 200)
        if cls.to:
            self.send_header("Location", cls.to.pop(0))
            return self.end_headers()
        if not cls.endless:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", cls.tag)
        if cls.changed and not resume:
            self.send_header("Last-Modified", cls.changed)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body[:sent])
            while cls.endless:
                self.wfile.write(bytes(cls.endless))
                cls.stopped.wait(0.01 if cls.endless < 10 else 0)

    log_message = lambda *_: None  # noqa: E731


@contextmanager
def unreliable() -> Iterator[str]:
    """Serve CONTENT, and nothing fails, until a test says otherwise; yield the address without a path."""
    Server.cut, Server.fail, Server.tag, Server.ranges = [], [], '"v1"', []
    Server.body, Server.to, Server.endless, Server.changed = CONTENT, [], 0, ""
    Server.gate, Server.asked, Server.stopped = threading.Event(), threading.Event(), threading.Event()
    Server.gate.set()
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    Server.gate.set()
    Server.stopped.set()
    running.shutdown()
    thread.join()
