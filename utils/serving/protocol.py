"""HTTP for impatient servers: whoever sends the head of a request too slowly is cut off, and told so in JSON."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_HEAD = 16 * 1024  # bytes of a request's first line and headers


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with a bound on the time that no handler watches: before a request's head is complete."""

    patience = 10.0  # seconds
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected; the time for its first request begins."""
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

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so in JSON, like every other mistake."""
        self._say(400, "Bad Request", msg)

    def _watch(self) -> None:
        """Set the alarm while a head, or the rest of a body that nobody reads, is on its way; else clear it."""
        answering = self.cycle is not None and not self.cycle.response_complete
        idle = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if answering or (idle and self.cycle is not None):  # idle between requests: uvicorn's keep-alive timer runs
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
        if self.conn.their_state is h11.IDLE:
            self._say(408, "Request Timeout", f"the request took longer than {self.patience:g} s to begin")
        else:
            self.transport.close()

    def _say(self, status: int, phrase: str, message: str) -> None:
        """Answer without any application, and close."""
        if self.transport.is_closing():
            return
        content = json.dumps({"error": message})
        head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(content)}\r\n\r\n{content}".encode("ascii"))
        self.transport.close()


def patient_protocol(seconds: float) -> type[PatientProtocol]:
    """The protocol that waits `seconds` for the head of a request."""
    return type("BoundedProtocol", (PatientProtocol,), {"patience": seconds})
