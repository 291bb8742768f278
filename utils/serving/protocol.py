"""HTTP for impatient servers: slow, long, smuggled or unreadable requests are cut off, and told so in JSON."""

from __future__ import annotations

import asyncio
import json
import socket
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_HEAD = 16 * 1024  # bytes of a request's first line and headers; of a chunked body's sizes and trailers, too
MOST_HEADERS = 100
FRAMING_SHARE = 32  # and one byte of chunks' sizes for so many of a body: chunks of 200 bytes or more go on for ever
LAST_WORD = 1.0  # seconds for a head that is on its way when the server is being stopped
RETRY_SECONDS = 5


class BoundedConnection(h11.Connection):
    """h11's connection, with bounds that hold however the bytes were cut into packets.

    h11 bounds only what it cannot read yet: a long head that comes in one piece, folded lines, extensions of chunks
    and trailers go past that. `complaint` is the error of a request that was refused, None before.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MOST_HEAD)
        self.complaint: h11.RemoteProtocolError | None = None
        self.in_body = False
        self._received = self._head_end = self._content = 0  # bytes since the connection began; of the body
        self._chunked = False

    def receive_data(self, data: bytes) -> None:
        """Bytes came."""
        self._received += len(data)
        super().receive_data(data)

    def next_event(self) -> Any:
        """h11's next event; raises RemoteProtocolError for what is no HTTP, or beyond the bounds."""
        begun = self._taken() if self.their_state is h11.IDLE else 0
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._check_head(event, self._taken() - begun)
            elif isinstance(event, h11.Data):
                self._content += len(event.data)
            elif self.in_body and self._chunked:  # at the end, or all is read that is there
                self._check_framing()
        except h11.RemoteProtocolError as error:
            self.complaint = error
            raise
        if isinstance(event, h11.EndOfMessage):
            self.in_body = False
        return event

    def _taken(self) -> int:
        return self._received - len(self.trailing_data[0])

    def _check_head(self, request: h11.Request, size: int) -> None:
        names = [name for name, _ in request.headers]
        self._chunked = b"transfer-encoding" in names
        if size > MOST_HEAD or len(names) > MOST_HEADERS:
            words = f"the request's head has {size:,} bytes and {len(names)} headers"
            raise h11.RemoteProtocolError(f"{words}; at most {MOST_HEAD:,} and {MOST_HEADERS} are taken", 431)
        if self._chunked and b"content-length" in names:
            raise h11.RemoteProtocolError("send Content-Length or Transfer-Encoding, not both")
        if self._chunked and request.http_version < b"1.1":
            raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding; send Content-Length")
        self.in_body, self._head_end, self._content = True, self._taken(), 0

    def _check_framing(self) -> None:
        if self._taken() - self._head_end - self._content > MOST_HEAD + self._content // FRAMING_SHARE:
            raise h11.RemoteProtocolError("the body has more chunk sizes, extensions and trailers than content", 431)


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with a bound on the time that no handler watches: before a request's head is complete."""

    patience = 10.0  # seconds
    _alarm: asyncio.TimerHandle | None = None
    _stopping = False

    def connection_made(self, transport: Any) -> None:
        """A client has connected; the time for its first request begins."""
        self.conn = BoundedConnection()
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != getattr(socket, "AF_UNIX", None):
            # asyncio does this only for sockets made with the protocol's number. An answer is sent in two parts, and
            # the second would wait 40 ms for the client to acknowledge the first.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._set_alarm()

    def data_received(self, data: bytes) -> None:
        """Bytes came: maybe a whole head, maybe a piece of one."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer is out; what of the next request is there already counts."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._clear_alarm()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server is being stopped: answer what is being answered, and what is on its way; close the rest."""
        self._stopping = True
        begun = self.cycle is None or self.conn.trailing_data[0]
        if self._answering() or not begun:
            super().shutdown()
        else:
            self._clear_alarm()
            self._alarm = self.loop.call_later(LAST_WORD, self._give_up)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so in JSON, like every other mistake."""
        complaint = self.conn.complaint
        if self.conn.in_body and self.cycle.response_started:  # a second answer would be taken for the next one's
            self.transport.close()
        elif complaint is None:
            self._say(400, msg)
        else:
            self._say(complaint.error_status_hint, f"this is no request that can be taken: {complaint}")

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Set the alarm while a head, or the rest of a body that nobody reads, is on its way; else clear it."""
        if self._stopping:
            if self._answering():
                self.cycle.keep_alive = False
            return
        idle = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if self._answering() or (idle and self.cycle is not None):  # idle: uvicorn's keep-alive timer runs
            self._clear_alarm()
        else:
            self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is None:
            self._alarm = self.loop.call_later(self.patience, self._give_up)

    def _clear_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _give_up(self) -> None:
        self._alarm = None
        if self._stopping:
            if not self._answering():
                self._say(503, "the server is being stopped; try again later", f"retry-after: {RETRY_SECONDS}\r\n")
        elif self.conn.their_state is h11.IDLE:
            self._say(408, f"the request took longer than {self.patience:g} s to begin")
        else:
            self.transport.close()

    def _say(self, status: int, message: str, header: str = "") -> None:
        """Answer without any application, and close."""
        if self.transport.is_closing():
            return
        content = json.dumps({"error": message})
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n{header}"
        head += f"connection: close\r\ncontent-length: {len(content)}\r\n\r\n"
        self.transport.write(f"{head}{content}".encode("ascii"))
        self.transport.close()


def patient_protocol(seconds: float) -> type[PatientProtocol]:
    """The protocol that waits `seconds` for the head of a request."""
    return type("BoundedProtocol", (PatientProtocol,), {"patience": seconds})
