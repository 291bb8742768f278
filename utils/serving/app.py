"""The web application: addresses, and what happens between a request and its answer."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import prometheus_client as prometheus
from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field, create_model
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.options import class_numbers, nearest
from utils.boxes.merging import MERGES
from utils.data.tiles import OVERLAPS, TILE_SIDES
from utils.images.decoding_cost import PLAIN_MEMORY
from utils.serving.batching import Batcher, Lane
from utils.serving.detector import Detector, Settings
from utils.serving.hosts import Hosts
from utils.serving.uploads import Gate, Limits, Refusal, drained, read_files, unless_gone

PAGE = Path(__file__).with_name("page.html")
MOST_AT_ONCE = 4  # of the work that one image may take: as much as all images of a request may
SMALL_SHARE, SMALL_MEMORY = 8, 4  # a small image takes at most these parts of the work and the memory of a large one
RETRY_SECONDS = 5  # after which another server may be there
STOPPING = "the server is being stopped; try again later"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Ask(BaseModel, extra="forbid"):
    """What a request may choose in its query; what it leaves out is as the server was started."""

    conf: float | None = Field(None, ge=0, le=1, description="lowest confidence")
    iou: float | None = Field(None, ge=0, le=1, description="overlap from which the weaker box goes")
    classes: str | None = Field(None, description="numbers or names, with commas")
    size: int | None = Field(None, ge=0, lt=1_000_000, description="longer side of the network's input, pixels")
    tile: int | None = Field(None, ge=0, lt=1_000_000, description="look at tiles of so many pixels, too; 0: do not")
    tile_overlap: float | None = Field(None, ge=OVERLAPS.least, le=OVERLAPS.most, description="part that tiles share")
    tile_merge: Literal["nms", "greedy", "wbf"] | None = Field(None, description="how doubles become one")


Asked = Annotated[Ask, Query()]
Name = Annotated[str, InPath(pattern=r"^[0-9A-Za-z_][0-9A-Za-z_.-]{0,63}$")]
WANTED = {"conf": "a number from 0 to 1", "iou": "a number from 0 to 1", "size": "a whole number of pixels"}
WANTED |= {"tile": "a whole number of pixels", "tile_overlap": f"a number {OVERLAPS}", "tile_merge": ", ".join(MERGES)}
NUMBERS: Any = dict.fromkeys(("xmin", "ymin", "xmax", "ymax", "confidence"), float)
NAMES: Any = {"class": int, "name": str}
Row: Any = create_model("Row", **NUMBERS, **NAMES)


class Endpoints:
    """What the addresses do. `name` is the model's, for people; whatever a client calls it is never looked up."""

    def __init__(self, detector: Detector, batcher: Batcher, usual: Settings, limits: Limits, name: str) -> None:
        self.detector, self.batcher, self.usual, self.limits, self.name = detector, batcher, usual, limits, name
        self.gate = Gate(limits.requests, limits.memory)
        threads, memory = min(os.cpu_count() or 1, 4), PLAIN_MEMORY * limits.pixels
        # For small images and for large ones, which never keep small ones waiting; the same for reading their headers
        self.decoders = Lane(threads, memory // 2, "decoder"), Lane(threads, memory, "decoder of large images")
        self.readers = Lane(1, limits.memory, "reader of headers"), Lane(1, limits.memory, "reader of long headers")
        self.stopping = False
        self.finished = self.given_up = 0  # requests since then: answered, turned away
        self._deadlines: set[asyncio.Timeout] = set()
        prometheus.disable_created_metrics()
        self.metrics = prometheus.CollectorRegistry()
        batch = "Images that went through the network together."
        batcher.on_batch = prometheus.Histogram(
            "yolov5_batch_size", batch, buckets=SIZES, registry=self.metrics
        ).observe
        values: dict[str, tuple[str, Callable[[], float]]] = {
            "queue_length": ("Images that wait for the network.", lambda: len(batcher)),
            "decoding_queue_length": ("Images that wait to be decoded.", lambda: sum(map(len, self.decoders))),
            "requests_in_progress": ("Requests being read or answered.", lambda: self.gate.inside),
            "upload_bytes": ("Bytes of uploads that are held in memory.", lambda: self.gate.held),
        }
        for key, (meaning, value) in values.items():
            prometheus.Gauge(f"yolov5_{key}", meaning, registry=self.metrics).set_function(value)
        prometheus.ProcessCollector(registry=self.metrics)

    async def detect_one(self, request: Request, model: Name, ask: Asked) -> Response:
        """Rows of the one image in the field `image`, as v6.1's example server gives them."""
        return JSONResponse((await self._results(request, ask, "boxes", ["image"], 1))[0])

    async def detect_many(self, request: Request, model: Name, ask: Asked) -> Response:
        """A list of rows for each image, in the order of the files."""
        return JSONResponse(await self._results(request, ask, "boxes", ["images", "image"], self.limits.files))

    async def show_routes(self, request: Request, model: Name, ask: Asked) -> Response:
        """Where the regions of the image look, layer by layer."""
        if self.detector.record is None:
            raise Refusal(404, "these weights have no routing attention whose routes could be shown")
        whole = ask.model_copy(update={"tile": 0, "tile_overlap": None, "tile_merge": None})
        return JSONResponse((await self._results(request, whole, "routes", ["image"], 1))[0])

    async def models(self) -> Response:
        """What is served, and within which limits."""
        usual, detector = self.usual, self.detector
        about = {"name": self.name, "classes": detector.names, "size": usual.size, "conf": usual.conf, "iou": usual.iou}
        about |= {"tile": usual.tile, "shape": detector.model.shape, "routing": detector.record is not None}
        bounds = "upload files pixels smallest largest tiles".split()
        return JSONResponse({"models": [{**about, "limits": {name: getattr(self.limits, name) for name in bounds}}]})

    async def health(self) -> Response:
        """Is the network being fed? 200 and "ok", else 503."""
        alive = self.batcher.alive
        content = {"status": "ok" if alive else "stopped", "model": self.name, "waiting": len(self.batcher)}
        return JSONResponse(content, 200 if alive else 503)

    async def numbers(self) -> Response:
        """Everything counted, for Prometheus."""
        return Response(prometheus.generate_latest(self.metrics), media_type=prometheus.CONTENT_TYPE_LATEST)

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

    async def _results(self, request: Request, ask: Ask, wanted: str, fields: list[str], most: int) -> list[Any]:
        """Results for the request's images; raises Refusal."""
        if not self.stopping:
            deadline = asyncio.timeout(self.limits.seconds)
            self._deadlines.add(deadline)
            try:
                async with deadline:
                    settings = self._settings(request, ask)
                    with self.gate.let_in() as hold:
                        files = await read_files(request, self.limits, hold, fields, most)
                        results = await unless_gone(request, self._look(files, settings, wanted, hold))
                self.finished += self.stopping
                return results
            except TimeoutError:
                if not self.stopping:
                    message = f"no answer within {self.limits.seconds:g} s; try again later"
                    raise Refusal(503, message, retry_after=1) from None
            finally:
                self._deadlines.discard(deadline)
        self.given_up += 1
        raise Refusal(503, STOPPING, retry_after=RETRY_SECONDS)

    def _settings(self, request: Request, ask: Ask) -> Settings:
        """The settings that a query asks for, the usual ones where it asks for nothing; raises Refusal(400)."""
        for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
            if count > 1:
                raise Refusal(400, f"{name} is given twice; give it once")
        usual, limits, given = self.usual, self.limits, ask.model_dump(exclude_none=True)
        size = given.get("size", usual.size)
        if self.detector.model.shape is not None and size != usual.size:
            raise Refusal(400, f"size={size}: these weights take {usual.size} pixels only")
        if not limits.smallest <= size <= limits.largest:
            raise Refusal(400, f"size={size}: give {limits.smallest} to {limits.largest} pixels")
        if ask.classes is not None:
            try:
                asked = [name.strip() for name in ask.classes.split(",")]
                given["classes"] = tuple(dict.fromkeys(class_numbers(asked, self.detector.names, "classes:")))
            except ValueError as error:
                raise Refusal(400, str(error)) from None
        return with_tiles(usual, given)

    async def _look(
        self, files: list[bytes], settings: Settings, wanted: str, hold: Callable[[int], None]
    ) -> list[Any]:
        """Decode all files side by side in threads, and have the network look at them; all or none.

        An image that is looked at in tiles waits for the network as it was decoded: `hold` notes its bytes.
        """
        decode, jobs = self.detector.decode, []
        names = ["the image"] if len(files) == 1 else [f"image {number}" for number in range(1, len(files) + 1)]
        for data, name in zip(files, names, strict=True):
            reader = self.readers[len(data) > self.limits.upload // SMALL_SHARE]
            cost = await reader.run(len(data), len(data), partial(decode.measure, data, name))
            hold(3 * cost.memory // PLAIN_MEMORY * bool(settings.tile))
            is_large = (
                cost.work > decode.most_work // SMALL_SHARE or cost.memory > self.decoders[1].memory // SMALL_MEMORY
            )
            prepare = partial(self.detector.prepare, data, settings, name)
            jobs.append((self.decoders[is_large], cost.work, cost.memory, prepare))
            if sum(work for _, work, *_ in jobs) > MOST_AT_ONCE * decode.most_work:
                raise Refusal(413, f"the {len(files)} images would take too long to decode: send fewer at once")
        tasks = [asyncio.ensure_future(lane.run(work, memory, job)) for lane, work, memory, job in jobs]
        try:
            images = await asyncio.gather(*tasks)
        finally:  # where one is damaged, nobody waits for the others
            for task in tasks:
                task.cancel()
        check_tiles(sum(image.tiles for image in images), self.limits.tiles)
        # an image in tiles is a batch of its own, so that others have their turn
        keys = ((wanted, image.pixels.shape, id(image) * (image.tiles > 0)) for image in images)
        return await self.batcher.submit(list(zip(keys, images, strict=True)))


def with_tiles(usual: Settings, given: dict[str, Any]) -> Settings:
    """The usual settings but for those given; raises Refusal(400) for tiles that cannot be."""
    settings = replace(usual, **given)
    if settings.tile not in TILE_SIDES:
        raise Refusal(400, f"tile={settings.tile}: must be {TILE_SIDES}")
    if not settings.tile and given.keys() & {"tile_overlap", "tile_merge"}:
        raise Refusal(400, "tile_overlap and tile_merge say how tiles are cut and merged: give tile as well")
    return settings


def check_tiles(count: int, most: int) -> None:
    """Raise Refusal(413) for more tiles than are looked at for a request."""
    if count > most:
        raise Refusal(413, f"the request makes {count} tiles, at most {most} are looked at: ask for larger ones")


class Entrance:
    """Counts every request, its status and its time, and turns away those for other hosts before anything is read.

    hosts: the names that the server answers to; None for any. The route's pattern is counted, not the address: a
    client's own text would make endless series.
    """

    def __init__(self, app: ASGIApp, metrics: prometheus.CollectorRegistry, hosts: Hosts | None) -> None:
        self.app, self.hosts = app, hosts
        text = "Requests answered, by route and status."
        self.requests = prometheus.Counter("yolov5_requests", text, ["path", "status"], registry=metrics)
        text = "Seconds from a request's head to its answer's end."
        self.seconds = prometheus.Histogram("yolov5_request_seconds", text, buckets=SECONDS, registry=metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's interface."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        asked = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        app = self.app
        if len(asked) > 1 or not (asked or self.hosts is None or self.hosts.every):
            app = JSONResponse({"error": "send one Host header"}, 400, {"Connection": "close"})
        elif asked and self.hosts is not None and not self.hosts.takes(asked[0]):
            message = (
                f"this server is not {printable(asked[0][:80])}; start it with --hosts and its name to have it answer"
            )
            app = JSONResponse({"error": message}, 421, {"Connection": "close"})
        try:
            await app(scope, receive, note)
        finally:
            self.requests.labels(getattr(scope.get("route"), "path", "other"), status).inc()
            self.seconds.observe(time.perf_counter() - start)


def build_app(service: Endpoints, hosts: Hosts | None = None) -> FastAPI:
    """The application: every address, every answer in JSON but the page and the metrics, every mistake in one line.

    hosts: the names that it answers to; None for any.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.batcher.running():
            yield
        for lane in (*service.decoders, *service.readers):  # begin nothing more
            lane.threads.shutdown(wait=False, cancel_futures=True)

    # FastAPI's pages of documentation load scripts from elsewhere; docs/serving.md and /openapi.json do without
    app = FastAPI(title="YOLOv5-BiFormer", docs_url=None, redoc_url=None, lifespan=lifespan)
    one: dict[str, Any] = {"type": "string", "format": "binary"}
    many, boxes = {"type": "array", "items": one}, "/v1/object-detection/{model}"
    refused = {"description": "{'error': what is wrong, in one line}"}
    for path, endpoint, field, content, answer in (
        (boxes, service.detect_one, "image", one, list[Row]),
        (f"{boxes}/batch", service.detect_many, "images", many, list[list[Row]]),
        ("/v1/routes/{model}", service.show_routes, "image", one, dict[str, Any]),
    ):
        form = {"schema": {"type": "object", "required": [field], "properties": {field: content}}}
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_model=answer,
            responses={"4XX": refused, 503: refused},
            openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": form}}},
        )
    for path, about in (("/v1/models", service.models), ("/health", service.health), ("/metrics", service.numbers)):
        app.add_api_route(path, about, methods=["GET"])
    app.add_api_route("/health", service.health, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/", service.page, methods=["GET"], include_in_schema=False)
    for kind in (Refusal, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _error)
    app.add_middleware(Entrance, metrics=service.metrics, hosts=hosts)
    return app


async def _error(request: Request, error: Any) -> Response:
    """The answer to a request that failed; an upload that nobody reads goes by first, else nobody reads the answer."""
    if isinstance(error, HTTPException):
        messages = {404: "there is nothing at this address", 405: "this address does not know this method"}
        message = messages.get(error.status_code, str(error.detail))
        return JSONResponse({"error": message}, error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        (place, name), given = error.errors()[0]["loc"][:2], str(error.errors()[0]["input"])[:40]
        if place == "path":
            error = Refusal(404, "a model's name has letters, digits, dots, hyphens and underscores")
        elif name in WANTED:
            error = Refusal(400, f"{name}={given}: give {WANTED[name]}")
        else:
            known, name = Ask.model_fields, str(name)[:40]
            error = Refusal(400, f"unknown parameter {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    if not isinstance(error, Refusal):
        LOGGER.error(f"a request failed: {type(error).__name__}: {error}")
        return JSONResponse({"error": "something went wrong here; the server's log says what"}, 500)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.close or not await drained(request):
        headers["Connection"] = "close"
    return JSONResponse({"error": error.message}, error.status, headers)
