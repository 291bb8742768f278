"""A server that stops when it is asked to: what is being answered gets a time to be finished, and one line says so."""

from __future__ import annotations

import asyncio
import signal
import socket
from types import FrameType

import uvicorn

from utils.base.log import LOGGER
from utils.serving.app import Endpoints

PAUSE = 0.05  # seconds between two looks at the connections
LEAVING = 2.0  # seconds for the last answers to leave, after the time that requests have


class StoppableServer(uvicorn.Server):
    """uvicorn's server, whose end is told to the service: requests are finished within `grace` seconds, or get a 503.

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
        for one in sockets or []:
            one.close()
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
