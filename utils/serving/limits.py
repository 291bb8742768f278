"""What a stranger may ask of the server, and how a request that asks for more is turned away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MIB = 1024 * 1024
LONGEST_WAIT = 60  # seconds; nobody is told to come back later than that


class Refusal(Exception):
    """A request is turned away: `status` is HTTP's, `message` one line that names the thing and the remedy.

    retry_after: seconds after which it is worth another try, None where it never is.
    close: the rest of the body is unread, so the connection ends with the answer.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None, close: bool = False) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after, self.close = status, message, retry_after, close


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request, and on all of them together.

    upload: bytes of a request's body. files: pictures in a batch request. pixels: of one picture, before it is resized.
    smallest, largest: sides that the network's input may have. seconds: from the first byte to the answer.
    upload_seconds: until the whole body is there. requests: looked after at once. memory: bytes of all bodies at once.
    detections: most boxes in an answer, of one picture.
    """

    upload: int = 16 * MIB
    files: int = 32
    pixels: int = 50_000_000
    smallest: int = 32
    largest: int = 1280
    seconds: float = 30
    upload_seconds: float = 10
    requests: int = 256
    memory: int = 512 * MIB
    detections: int = 1000

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"limit {name}={value}: give a number above 0")
        if self.smallest > self.largest:
            raise ValueError(f"pictures of at least {self.smallest} and at most {self.largest} pixels: nothing is left")


class Admission:
    """A request that was let in, and the bytes of its body that are held in memory."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.held = gate, 0

    def hold(self, count: int) -> None:
        """Note that `count` more bytes are held; raises Refusal when all requests together hold too many."""
        if self.gate.held + count > self.gate.memory:
            raise Refusal(503, "too many uploads at once; try again soon", retry_after=1)
        self.held += count
        self.gate.held += count


class Gate:
    """Counts the requests that are inside and the bytes they hold. For one event loop, not for threads."""

    def __init__(self, requests: int, memory: int) -> None:
        self.requests, self.memory = requests, memory
        self.inside = self.held = 0

    @contextmanager
    def let_in(self) -> Iterator[Admission]:
        """A request is inside while the block runs; raises Refusal when there are enough."""
        if self.inside >= self.requests:
            raise Refusal(503, f"{self.inside} requests are being answered; try again soon", retry_after=1)
        admission = Admission(self)
        self.inside += 1
        try:
            yield admission
        finally:
            self.inside -= 1
            self.held -= admission.held
