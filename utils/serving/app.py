"""The web application: addresses, and what happens between a request and its answer."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.base.log import LOGGER
from utils.images.decoding_cost import PLAIN_MEMORY
from utils.serving.batching import Batcher
from utils.serving.counters import CONTENT_TYPE, Metrics
from utils.serving.detector import Detector, Prepared
from utils.serving.hosts import Hosts, OnlyOurs
from utils.serving.lanes import Lanes
from utils.serving.limits import Gate, Limits, Refusal
from utils.serving.schema import DETECT, DETECT_BATCH, ROUTES
from utils.serving.settings import Settings, read_settings
from utils.serving.uploaded_images import DecodingCost, most_work
from utils.serving.uploads import Body, read_files

PAGE = Path(__file__).with_name("page.html")
MOST_AT_ONCE = 4  # of the work that one image may take: as much as all images of a request may
RETRY_SECONDS = 5  # after which another server may be there
STOPPING = "the server is being stopped; try again later"
MODEL_NAME = re.compile(r"\w[\w.-]{0,63}", re.ASCII)
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class RequestLog:
    """Counts every request, its status and its time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's interface."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.request(path, status, time.perf_counter() - start)


class Endpoints:
    """What the addresses do. `name` is the model's, for people; whatever a client calls it is never looked up."""

    def __init__(self, detector: Detector, batcher: Batcher, usual: Settings, limits: Limits, name: str) -> None:
        self.detector, self.batcher, self.usual, self.limits, self.name = detector, batcher, usual, limits, name
        self.gate = Gate(limits.requests, limits.memory)
        self.most_work = most_work(limits.pixels)
        self.lanes = Lanes(min(os.cpu_count() or 1, 4), self.most_work, PLAIN_MEMORY * limits.pixels)
        self.readers = Lanes(1, limits.upload, limits.memory)  # of headers: short files pass long ones
        self.stopping = False
        self.finished = self.given_up = 0  # requests since then: answered, turned away
        self._deadlines: set[asyncio.Timeout] = set()
        self.metrics = Metrics(
            {
                "yolov5_queue_length": ("Pictures that wait for the network.", lambda: len(batcher)),
                "yolov5_decoding_queue_length": ("Pictures that wait to be decoded.", lambda: len(self.lanes)),
                "yolov5_requests_in_progress": ("Requests being read or answered.", lambda: self.gate.inside),
                "yolov5_upload_bytes": ("Bytes of uploads that are held in memory.", lambda: self.gate.held),
            }
        )
        batcher.told = self.metrics.batches.add

    async def detect_one(self, request: Request, model: str) -> Response:
        """Rows of the one picture in the field `image`, as v6.1's example server gives them."""
        return JSONResponse((await self._look(request, model, "boxes", ["image"], 1))[0])

    async def detect_many(self, request: Request, model: str) -> Response:
        """A list of rows for each picture, in the order of the files."""
        fields = ["images", "image"]
        return JSONResponse(await self._look(request, model, "boxes", fields, self.limits.files))

    async def show_routes(self, request: Request, model: str) -> Response:
        """Where the regions of the picture look, layer by layer."""
        return JSONResponse((await self._look(request, model, "routes", ["image"], 1))[0])

    async def models(self) -> Response:
        """What is served, and within which limits."""
        limits = self.limits
        bounds = {name: getattr(limits, name) for name in ("upload", "files", "pixels", "smallest", "largest")}
        return JSONResponse(
            {
                "models": [
                    {
                        "name": self.name,
                        "classes": self.detector.names,
                        "size": self.usual.size,
                        "conf": self.usual.conf,
                        "iou": self.usual.iou,
                        "shape": self.detector.model.shape,
                        "routing": self.detector.record is not None,
                        "limits": bounds,
                    }
                ]
            }
        )

    async def health(self) -> Response:
        """Is the network being fed? 200 and "ok", else 503."""
        alive = self.batcher.alive
        content = {"status": "ok" if alive else "stopped", "model": self.name, "waiting": len(self.batcher)}
        return JSONResponse(content, 200 if alive else 503)

    async def numbers(self) -> Response:
        """Everything counted, for Prometheus."""
        return PlainTextResponse(self.metrics.text(), media_type=CONTENT_TYPE)

    async def page(self) -> Response:
        """The page for people."""
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)

    def stop(self, seconds: float) -> None:
        """Give the requests that are being answered so many seconds; no other is begun."""
        self.stopping = True
        end = asyncio.get_running_loop().time() + seconds
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(min(deadline.when() or end, end))

    def close(self) -> None:
        """Begin nothing more in threads."""
        self.lanes.close()
        self.readers.close()

    async def _look(self, request: Request, model: str, wanted: str, fields: list[str], most: int) -> list[Any]:
        """Results for the request's pictures; raises Refusal, after the rest of the body went by."""
        body = Body(request, self.limits)
        try:
            if self.stopping:
                raise self._no_more()
            async with asyncio.timeout(self.limits.seconds) as deadline:
                with self._noted(deadline):
                    return await self._answer(body, model, wanted, fields, most)
        except TimeoutError:
            if self.stopping:
                raise self._no_more(close=not body.ended) from None
            message = f"no answer within {self.limits.seconds:g} s; try again later"
            raise Refusal(503, message, retry_after=1, close=not body.ended) from None
        except Refusal as refusal:
            if not refusal.close:  # else nobody would get to read the answer
                refusal.close = not await body.drained()
            raise

    def _no_more(self, close: bool = False) -> Refusal:
        self.given_up += 1
        return Refusal(503, STOPPING, retry_after=RETRY_SECONDS, close=close)

    @contextmanager
    def _noted(self, deadline: asyncio.Timeout) -> Iterator[None]:
        self._deadlines.add(deadline)
        try:
            yield
            self.finished += self.stopping
        finally:
            self._deadlines.discard(deadline)

    async def _answer(self, body: Body, model: str, wanted: str, fields: list[str], most: int) -> list[Any]:
        if not MODEL_NAME.fullmatch(model):
            raise Refusal(404, "a model's name has letters, digits, dots, hyphens and underscores")
        if wanted == "routes" and self.detector.record is None:
            raise Refusal(404, "these weights have no routing attention whose routes could be shown")
        query = body.request.query_params.multi_items()
        fixed = self.detector.model.shape is not None
        settings = read_settings(query, self.usual, self.detector.names, self.limits, fixed)
        with self.gate.let_in() as admission:
            files = await read_files(body, admission, fields, most)
            return await body.unless_gone(self._results(files, settings, wanted))

    async def _results(self, files: list[bytes], settings: Settings, wanted: str) -> list[Any]:
        pictures = await self._prepare(files, settings)
        return await self.batcher.submit([((wanted, item.pixels.shape), item) for item in pictures])

    async def _prepare(self, files: list[bytes], settings: Settings) -> list[Prepared]:
        """Decode in threads, all files of a request side by side; all or none."""
        names = ["the picture"] if len(files) == 1 else [f"picture {number}" for number in range(1, len(files) + 1)]
        costs: list[DecodingCost] = []
        for data, name in zip(files, names, strict=True):
            measure = partial(self.detector.measure, data, name)
            costs.append(await self.readers.run(len(data), len(data), measure))
            if sum(cost.work for cost in costs) > MOST_AT_ONCE * self.most_work:
                raise Refusal(413, f"the {len(files)} pictures would take too long to decode: send fewer at once")
        tasks = []
        for data, name, cost in zip(files, names, costs, strict=True):
            job = partial(self.detector.prepare, data, settings, name)
            tasks.append(asyncio.ensure_future(self.lanes.run(cost.work, cost.memory, job)))
        try:
            return await asyncio.gather(*tasks)
        finally:  # where one is damaged, nobody waits for the others
            for task in tasks:
                task.cancel()


def build_app(service: Endpoints, hosts: Hosts | None = None) -> FastAPI:
    """The application: every address, every answer in JSON but the page and the metrics, every mistake in one line.

    hosts: the names that it answers to; None for any.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.batcher:
            yield
        service.close()

    # FastAPI's pages of documentation load scripts from elsewhere; docs/serving.md and /openapi.json do without
    app = FastAPI(title="YOLOv5-BiFormer", docs_url=None, redoc_url=None, lifespan=lifespan)
    detection = "/v1/object-detection/{model}"
    app.add_api_route(detection, service.detect_one, methods=["POST"], openapi_extra=DETECT)
    app.add_api_route(detection + "/batch", service.detect_many, methods=["POST"], openapi_extra=DETECT_BATCH)
    app.add_api_route("/v1/routes/{model}", service.show_routes, methods=["POST"], openapi_extra=ROUTES)
    app.add_api_route("/v1/models", service.models, methods=["GET"])
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/health", service.health, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/metrics", service.numbers, methods=["GET"])
    app.add_api_route("/", service.page, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _broken)
    if hosts is not None:
        app.add_middleware(OnlyOurs, hosts=hosts)
    app.add_middleware(RequestLog, metrics=service.metrics)
    return app


async def _refused(request: Request, refusal: Any) -> Response:
    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else {}
    if refusal.close:
        headers["Connection"] = "close"
    return JSONResponse({"error": refusal.message}, refusal.status, headers)


async def _http_error(request: Request, error: Any) -> Response:
    message = {404: "there is nothing at this address", 405: "this address does not know this method"}
    content = {"error": message.get(error.status_code, str(error.detail))}
    return JSONResponse(content, error.status_code, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    LOGGER.error(f"a request failed: {type(error).__name__}: {error}")
    return JSONResponse({"error": "something went wrong here; the server's log says what"}, 500)
