"""The body of a request: read within limits of size and time, taken apart in memory, nothing written to disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from utils.serving.limits import MIB, Admission, Limits, Refusal

Answer = TypeVar("Answer")
GONE = 499  # a status for the counts: nobody is there to read it
LINGER = 1.0  # seconds for which the rest of a refused body is awaited, so that the client sees the answer
MOST_FIELDS = 4


class _InMemory(MultiPartParser):
    """Starlette's parser without its temporary files: the body's size is bounded already."""

    spool_max_size = max_file_size = 0  # its name in Starlette before 0.46


class Body:
    """A request's body as it arrives."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self.request, self.limits = request, limits
        self.ended = False
        self._stream = request.stream()

    async def chunks(self, admission: Admission) -> AsyncIterator[bytes]:
        """The body piece by piece, counted; raises Refusal(413) past the limit, Refusal(400) where it breaks off."""
        count = 0
        try:
            async for chunk in self._stream:
                count += len(chunk)
                if count > self.limits.upload:
                    raise self._too_large(f"more than {self.limits.upload:,}")
                admission.hold(len(chunk))
                yield chunk
        except ClientDisconnect:
            self.ended = True
            raise Refusal(400, "the upload broke off before its end") from None
        self.ended = True

    def check_head(self) -> None:
        """Refusal for what the headers already tell: no form, or a body too large."""
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise Refusal(415, "send the picture as multipart/form-data, in a field named image")
        length = self.request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.limits.upload:
            raise self._too_large(f"{int(length[:20]):,}")

    async def drained(self) -> bool:
        """Throw the rest away for a moment; is the body at its end now?"""
        if self.ended:
            return True
        try:
            async with asyncio.timeout(LINGER):
                async for _ in self._stream:
                    pass
        except (TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: the stream was given up half read
            return False
        return True

    async def unless_gone(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """The result of `work`, which is dropped as soon as the client is gone: Refusal(499), for nobody to read."""
        answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._gone())
        answer.add_done_callback(lambda task: task.cancelled() or task.exception())  # looked at, even if nobody waits
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise Refusal(GONE, "the client is gone", close=True)
        finally:
            answer.cancel()
            gone.cancel()

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    def _too_large(self, found: str) -> Refusal:
        return Refusal(413, f"the upload has {found} bytes; at most {self.limits.upload / MIB:g} MiB are taken")


async def read_files(body: Body, admission: Admission, fields: Sequence[str], most: int) -> list[bytes]:
    """The contents of 1 to `most` files sent under one of the names `fields`, in their order.

    The names that clients give to files are not looked at. Raises Refusal: 400 for what is no such form, 408 when it
    did not arrive in time, 413 and 415 as `Body` says.
    """
    body.check_head()
    parser = _InMemory(body.request.headers, body.chunks(admission), max_files=most, max_fields=MOST_FIELDS)
    try:
        async with asyncio.timeout(body.limits.upload_seconds):
            form = await parser.parse()
    except TimeoutError:
        seconds = body.limits.upload_seconds
        raise Refusal(408, f"the upload took longer than {seconds:g} s", close=True) from None
    except (MultiPartException, ValueError) as error:
        reason = getattr(error, "message", "it cannot be taken apart")
        raise Refusal(400, f"the form is damaged: {reason}") from None
    files = []
    for name, value in form.multi_items():
        if name not in fields:
            raise Refusal(400, f"unknown field {name[:40]!r}; send files in a field named {fields[0]}")
        if not isinstance(value, UploadFile):
            raise Refusal(400, f"field {name} holds text; send a file (with a filename)")
        files.append(value.file.read())
    await form.close()
    if not files:
        raise Refusal(400, f"no picture came; send a file in a field named {fields[0]}")
    return files
