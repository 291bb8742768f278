"""Answers from the web that come to an end: given up where a server sends hardly any content, whatever else it sends.

A time limit on the connection is met by one byte now and then, be it of a header that never ends, of endless "100
Continue", of the size of a chunk or of the trailers. So the content is what counts.
"""

from __future__ import annotations

import io
import time
import urllib.parse
import urllib.request
from http.client import HTTPResponse
from typing import Any

from utils.base.files import file_size

SLOW = 1000  # bytes of content a second that are too few


class _Pace(io.RawIOBase):
    """The bytes of a connection. Raises ConnectionError where there was hardly any content among them."""

    def __init__(self, raw: io.RawIOBase, patience: float) -> None:
        self.raw, self.patience = raw, patience
        self.since, self.content = time.monotonic(), 0  # bytes of content since then
        self.readable, self.close = raw.readable, raw.close  # type: ignore[method-assign]  # as the connection does

    def readinto(self, buffer: Any) -> int | None:
        """Read as any raw stream does, unless it has become too slow."""
        waited = time.monotonic() - self.since
        if waited > self.patience:
            if self.content < SLOW * waited:
                raise ConnectionError(f"fewer than {SLOW} bytes a second")
            self.since, self.content = time.monotonic(), 0
        return self.raw.readinto(buffer)


class _Answer(HTTPResponse):
    """An answer that counts its content."""

    patience = 0.0

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.pace = _Pace(self.fp.detach(), self.patience)
        self.fp = io.BufferedReader(self.pace)

    def read1(self, n: int = -1) -> bytes:
        part = super().read1(n)
        self.pace.content += len(part)
        return part


class _Web(
    urllib.request.HTTPSHandler, urllib.request.HTTPHandler, urllib.request.FileHandler,
    urllib.request.HTTPRedirectHandler,
):  # fmt: skip
    """Opens what `open_url` may: answers that come to an end, files that are files, redirections within the web."""

    answer: type[HTTPResponse] = _Answer

    def do_open(self, http_class: Any, req: Any, **given: Any) -> HTTPResponse:
        """Connect as the base class does, for answers of our own kind."""

        class _Connection(http_class):
            response_class = self.answer

        return super().do_open(_Connection, req, **given)

    def open_local_file(self, req: urllib.request.Request) -> Any:
        """Open a file; a pipe or device, which could be read for ever, raises ValueError."""
        file_size(urllib.request.url2pathname(req.selector), 1 << 62)
        return super().open_local_file(req)

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Follow to http and https only, where the base class knows ftp too; what comes with it is not read."""
        fp.close()
        if urllib.parse.urlsplit(newurl).scheme not in ("https", "http"):
            raise ValueError(f"it leads to {newurl[:200]}, which is no http or https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(request: urllib.request.Request, timeout: float, patience: float) -> Any:
    """Return what answers a request, redirections followed within the web; its `read1` gives the content.

    `timeout` are seconds without a byte, `patience` those with fewer than SLOW bytes of content a second. Raises as
    urllib does, ConnectionError for an answer that is too slow or ends too early, ValueError for other redirections and
    for a `file:` address of what is no file.
    """
    web = _Web()
    web.answer = type("Answer", (_Answer,), {"patience": patience})
    return urllib.request.build_opener(web).open(request, timeout=timeout)
