"""Answers from the web that come to an end: given up where a server sends hardly any content, whatever else it sends.

A time limit on the connection is met by one byte now and then, be it of a header that never ends, of endless "100
Continue", of the size of a chunk or of the trailers. So the content is what counts.
"""

from __future__ import annotations

import io
import time
import urllib.parse
import urllib.request
from email.message import Message
from http.client import HTTPResponse
from typing import Any

from utils.base.files import file_size

WEB = ("https", "http")  # what a redirection may lead to
SLOW = 1000  # bytes of content a second that are too few
ANY_SIZE = 1 << 62


class _Pace(io.RawIOBase):
    """The bytes of a connection. Raises ConnectionError where there was hardly any content among them."""

    def __init__(self, raw: io.RawIOBase, patience: float) -> None:
        self.raw, self.patience = raw, patience
        self.since, self.content = time.monotonic(), 0  # bytes of content since then

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """As of any raw stream."""
        waited = time.monotonic() - self.since
        if waited > self.patience:
            if self.content < SLOW * waited:
                raise ConnectionError(f"fewer than {SLOW} bytes a second")
            self.since, self.content = time.monotonic(), 0
        return self.raw.readinto(buffer)

    def close(self) -> None:
        """Close the connection."""
        self.raw.close()
        super().close()


def _answer(patience: float) -> type[HTTPResponse]:
    """The class of answers whose content is waited for so many seconds."""

    class Answer(HTTPResponse):
        """An answer that comes to an end."""

        def __init__(self, sock: Any, *given: Any, **named: Any) -> None:
            super().__init__(sock, *given, **named)
            self.pace = _Pace(self.fp.detach(), patience)
            self.fp = io.BufferedReader(self.pace)

        def read1(self, n: int = -1) -> bytes:
            """What is there of the content."""
            part = super().read1(n)
            self.pace.content += len(part)
            return part

    return Answer


class _Paced(urllib.request.AbstractHTTPHandler):
    """Connections whose answers come to an end."""

    patience = 0.0  # seconds

    def do_open(self, http_class: Any, req: Any, **given: Any) -> HTTPResponse:
        """As the base class does, with answers of ours."""
        paced = type(http_class.__name__, (http_class,), {"response_class": _answer(self.patience)})
        return super().do_open(paced, req, **given)


class _Http(_Paced, urllib.request.HTTPHandler):
    pass


class _Https(_Paced, urllib.request.HTTPSHandler):
    pass


class _Files(urllib.request.FileHandler):
    """`file:` addresses of files; a pipe or device could be read for ever."""

    def open_local_file(self, req: urllib.request.Request) -> Any:
        """As the base class does. Raises ValueError for what is no file."""
        file_size(urllib.request.url2pathname(req.selector), ANY_SIZE)
        return super().open_local_file(req)


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follow an answer to http and https only."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """As the base class does, which knows ftp too and reads all that comes with the answer. ValueError for ftp."""
        fp.close()
        if urllib.parse.urlsplit(newurl).scheme not in WEB:
            raise ValueError(f"it leads to {newurl[:200]}, which is no http or https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(request: urllib.request.Request, timeout: float, patience: float) -> Any:
    """What answers a request, redirections followed within the web; its `read1` gives the content.

    `timeout` are seconds without a byte, `patience` those with fewer than SLOW bytes of content a second. Raises as
    urllib does, ConnectionError for an answer that is too slow or ends too early, ValueError for other redirections and
    for a `file:` address of what is no file.
    """
    handlers = [_Http(), _Https(), _Files(), _Redirections()]
    for handler in handlers[:2]:
        handler.patience = patience
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout)
