"""HTTP for impatient servers: slow, long, smuggled or unreadable requests are cut off with a JSON error; and the end.

A server that is stopped gives what is being answered a time to be finished, and one line in the log says so.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from http import HTTPStatus
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from utils.base.log import LOGGER
from utils.serving.app import RETRY_SECONDS, STOPPING, Endpoints

MOST_HEAD = 16 * 1024  # bytes of a request's first line and headers; of a chunked body's sizes and trailers, too
MOST_HEADERS = 100
FRAMING_SHARE = 32  # and one byte of chunks' sizes for so many of a body: chunks of 200 bytes or more go on for ever
LAST_WORD = 1.0  # seconds for a head that is on its way when the server is being stopped
PAUSE = 0.05  # seconds between two looks at the connections of a server that is being stopped
LEAVING = 2.0  # seconds for the last answers to leave, after the time that requests have


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
        """Take bytes that came."""
        self._received += len(data)
        super().receive_data(data)

    def next_event(self) -> Any:
        """h11's next event; raises RemoteProtocolError for what is no HTTP, or beyond the bounds."""
        begun = self._received - len(self.trailing_data[0]) if self.their_state is h11.IDLE else 0
        try:
            event = super().next_event()
            self._check(event, begun)
        except h11.RemoteProtocolError as error:
            self.complaint = error
            raise
        return event

    def _check(self, event: Any, begun: int) -> None:
        """Raise RemoteProtocolError for a head, or for what surrounds a body's content, that is beyond the bounds."""
        taken = self._received - len(self.trailing_data[0])
        if isinstance(event, h11.Request):
            self._check_head(event, taken - begun)
            self.in_body, self._head_end, self._content = True, taken, 0
        elif isinstance(event, h11.Data):
            self._content += len(event.data)
        elif (  # at the end, or all is read that is there
            self.in_body
            and self._chunked
            and taken - self._head_end - self._content > MOST_HEAD + self._content // FRAMING_SHARE
        ):
            raise h11.RemoteProtocolError("the body has more chunk sizes, extensions and trailers than content", 431)
        if isinstance(event, h11.EndOfMessage):
            self.in_body = False

    def _check_head(self, request: h11.Request, size: int) -> None:
        names = [name for name, _ in request.headers]
        self._chunked = b"transfer-encoding" in names
        if size > MOST_HEAD or len(names) > MOST_HEADERS:
            found = f"the request's head has {size:,} bytes and {len(names)} headers"
            raise h11.RemoteProtocolError(f"{found}; at most {MOST_HEAD:,} and {MOST_HEADERS} are taken", 431)
        if self._chunked and b"content-length" in names:
            raise h11.RemoteProtocolError("send Content-Length or Transfer-Encoding, not both")
        if self._chunked and request.http_version < b"1.1":
            raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding; send Content-Length")


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with a bound on the time that no handler watches: before a request's head is complete."""

    patience = 10.0  # seconds
    conn: BoundedConnection
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
        self._set_alarm(self.patience)

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
        self._set_alarm(None)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server is being stopped: answer what is being answered, and what is on its way; close the rest."""
        self._stopping = True
        begun = self.cycle is None or self.conn.trailing_data[0]
        if self._answering or not begun:
            super().shutdown()
        else:
            self._set_alarm(None)
            self._set_alarm(LAST_WORD)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets its error in JSON, like every other mistake."""
        complaint = self.conn.complaint
        if self.conn.in_body and self.cycle.response_started:  # a second answer would be taken for the next one's
            self.transport.close()
        elif complaint is None:
            self._say(400, msg)
        else:
            self._say(complaint.error_status_hint, f"this is no request that can be taken: {complaint}")

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Set the alarm while a head, or the rest of a body that nobody reads, is on its way; else clear it."""
        if self._stopping:
            if self._answering:
                self.cycle.keep_alive = False
            return
        idle = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        on_its_way = not self._answering and not (idle and self.cycle is not None)  # idle: uvicorn's own timer runs
        self._set_alarm(self.patience if on_its_way else None)

    def _set_alarm(self, seconds: float | None) -> None:
        """Give up in so many seconds, unless that is set already; never, for None."""
        if seconds is None and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        elif seconds is not None and self._alarm is None:
            self._alarm = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        self._alarm = None
        if self._stopping:
            if not self._answering:
                self._say(503, STOPPING, f"retry-after: {RETRY_SECONDS}\r\n")
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


class StoppableServer(uvicorn.Server):
    """uvicorn's server; when it is stopped, requests are finished within `grace` seconds, or get a 503.

    `asked` is the signal that stopped it, None where it was something else. A second signal ends the grace at once.
    """

    def __init__(self, config: uvicorn.Config, service: Endpoints, grace: float) -> None:
        super().__init__(config)
        self.service, self.grace = service, grace
        self.asked: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came. Unlike uvicorn's, it is not raised again afterwards: the process ends by itself."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.asked = sig

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, see the requests to their end, close."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        self.service.stop(self.grace)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._until_empty(self.grace + LEAVING)
        if self.force_exit and self.server_state.connections:
            self.service.stop(0)
            await self._until_empty(LEAVING, hurried=True)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(PAUSE)  # for their tasks to notice
        name = signal.Signals(self.asked).name if self.asked is not None else "its program"
        finished, given_up = self.service.finished, self.service.given_up
        LOGGER.info(f"Stopped by {name}: {finished} requests finished, {given_up} turned away with 503")
        await self.lifespan.shutdown()

    async def _until_empty(self, seconds: float, hurried: bool = False) -> None:
        """Wait until no connection is open, so many seconds at most, or until a second signal comes."""
        end = asyncio.get_running_loop().time() + seconds
        while self.server_state.connections and asyncio.get_running_loop().time() < end:
            if self.force_exit and not hurried:
                return
            await asyncio.sleep(PAUSE)
