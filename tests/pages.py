"""A web server of this machine, for as long as a test asks."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers with `pages`, path -> content, whatever the query."""

    pages: dict[str, bytes] = {}  # noqa: RUF012 (of a class made for one test)

    def do_GET(self):
        page = self.pages.get(self.path.partition("?")[0])
        self.send_response(200 if page is not None else 404)
        self.end_headers()
        self.wfile.write(page or b"")

    def log_message(self, *words):
        """Quiet."""


class Folder(http.server.SimpleHTTPRequestHandler):
    log_message = Pages.log_message


@contextmanager
def serving(source: Path | dict[str, bytes] | Callable) -> Iterator[str]:
    """Serve a folder, pages, or with a handler of one's own; yield the address."""
    handler = source
    if isinstance(source, dict):
        handler = type("Given", (Pages,), {"pages": source})
    elif isinstance(source, Path):
        handler = functools.partial(Folder, directory=str(source))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
