"""Serve a detector over HTTP: an endpoint like v6.1's, batches of what waits together, metrics, and a page for people.

python serve.py                                               # the newest training run, on http://127.0.0.1:5000
python serve.py --weights best.pt --port 8080                 # any weights that detect.py takes
python serve.py --weights best.pt --host 0.0.0.0              # for other machines too: there is no password
curl -F image=@bus.jpg 'http://127.0.0.1:5000/v1/object-detection/best?conf=0.4'

docs/serving.md has every address, the limits, and containers.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.api.autoshape import load_image
from models.backends import DetectMultiBackend
from models.bra.routing_maps import record_routes, routing_layers
from utils.base.config import SIDE
from utils.base.devices import select_device, tune_cuda
from utils.base.log import LOGGER, colorstr, set_up_logging
from utils.base.options import SHARE, Range, flag, options
from utils.base.paths import choose_weights, shown
from utils.boxes.merging import MERGES
from utils.boxes.nms import non_max_suppression
from utils.data.tiles import OVERLAPS, TILE_SIDES, choose_tiling
from utils.distributed.script import run_script

if TYPE_CHECKING:
    from utils.serving.app import Endpoints
    from utils.serving.protocol import StoppableServer

# module -> package
NEEDED = {name: name.replace("_", "-") for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client")}
IDLE_SECONDS = 5  # for which a connection may stay open between two requests
BACKLOG = 1024  # connections that the system holds until they are looked at
ONE_OR_MORE, SOME = Range(1), Range(1e-6, 1e12)


@dataclass(slots=True)
class ServeOptions:
    """The command line of serve.py; every name is also an argument of `run`."""

    weights: list[str] = flag([], "weights, as for detect.py; empty: newest runs/train/*/weights/best.pt")
    data: str = flag("", "data set YAML that names the classes, where the weights do not")
    imgsz: int = flag(
        0, "longer side of the network's input", shown="as trained", aliases=("--img", "--img-size"), bounds=SIDE
    )
    conf_thres: float = flag(0.25, "lowest confidence, where a request does not say", bounds=SHARE)
    iou_thres: float = flag(
        0.45, "overlap from which the weaker of two detections goes, where a request does not say", bounds=SHARE
    )
    max_det: int = flag(1000, "most detections in an image", bounds=ONE_OR_MORE)
    tile: int = flag(
        0, "look at tiles of so many pixels as well as at the whole image, where a request does not say", shown="",
        bounds=TILE_SIDES,
    )  # fmt: skip
    tile_overlap: float | None = flag(None, "part of its side that a tile shares with the next", (), "0.2", OVERLAPS)
    tile_merge: str | None = flag(None, "how doubles become one detection", shown="nms", choices=MERGES)
    max_tiles: int = flag(100, "tiles of all images of a request", bounds=ONE_OR_MORE)
    device: str = flag("", "'cpu' or '0'; empty for the first GPU, else the CPU")
    half: bool = flag(False, "16 bits: .pt weights on a GPU, OpenVINO on CPUs that have them")
    trust: bool = flag(False, "open files that can run code (TorchScript, .pt2, engines, TensorFlow) too")
    host: str = flag("127.0.0.1", "address to listen on; 0.0.0.0 for all of this machine's")
    port: int = flag(5000, "port to listen on; 0 for any free one", bounds=Range(0, 65535))
    batch_size: int = flag(16, "most images that go through the network together", bounds=ONE_OR_MORE)
    window: float = flag(3.0, "milliseconds to wait for more of them when the network is free", bounds=Range(0, 10_000))
    queue: int = flag(256, "most images that wait; more are asked to come back later", bounds=ONE_OR_MORE)
    clients: int = flag(256, "most requests answered at once", bounds=ONE_OR_MORE)
    max_upload: float = flag(16.0, "MiB of one request", bounds=SOME)
    max_files: int = flag(32, "images in one batch request", bounds=ONE_OR_MORE)
    max_pixels: float = flag(50.0, "megapixels of one image", bounds=SOME)
    max_memory: float = flag(512.0, "MiB of all requests' uploads together", bounds=SOME)
    max_size: int = flag(1280, "largest size that a request may ask for", bounds=ONE_OR_MORE)
    timeout: float = flag(30.0, "seconds for a request as a whole", bounds=SOME)
    upload_timeout: float = flag(10.0, "seconds for its arrival", bounds=SOME)
    grace: float = flag(8.0, "seconds for requests to be finished when the server is stopped", bounds=Range(0, 3600))
    hosts: list[str] = flag([], "names that it answers to, * for any", shown="its address, this machine's names")


def complete(opt: ServeOptions) -> ServeOptions:
    """The options with the newest weights filled in; ValueError for what cannot be."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ValueError(f"serving needs {', '.join(missing)}: pip install {' '.join(NEEDED.values())}")
    if opt.queue < opt.max_files:
        raise ValueError(f"--queue {opt.queue} has no room for a batch request of --max-files {opt.max_files} images")
    choose_tiling(opt.tile, opt.tile_overlap, opt.tile_merge)
    return replace(opt, weights=choose_weights(opt.weights))


def build(opt: ServeOptions) -> Endpoints:
    """Load the weights and make what answers requests, of complete options."""
    from utils.serving.app import Endpoints
    from utils.serving.batching import Batcher
    from utils.serving.detector import Detector, Settings
    from utils.serving.uploads import MIB, Decoder, Limits

    tune_cuda()
    model = DetectMultiBackend(
        opt.weights, select_device(opt.device), data=opt.data or None, fp16=opt.half, trust=opt.trust
    ).eval()
    height, width = model.input_size(opt.imgsz)
    limits = Limits(
        upload=round(opt.max_upload * MIB),
        files=opt.max_files,
        pixels=round(opt.max_pixels * 1e6),
        largest=max(opt.max_size, opt.imgsz, height, width),
        seconds=opt.timeout,
        upload_seconds=opt.upload_timeout,
        requests=opt.clients,
        memory=round(opt.max_memory * MIB),
        tiles=opt.max_tiles,
    )
    routed = model.pt and bool(routing_layers(model.model))
    decoder = Decoder(lambda image: load_image(image)[0], limits.pixels)
    detector = Detector(model, decoder, record_routes if routed else None, opt.max_det, opt.batch_size)
    with torch.inference_mode():  # the first pass is slow, and shows weights that cannot run before a client does
        non_max_suppression(model(torch.zeros(1, 3, height, width, device=model.device)))
    batcher = Batcher(detector.work, opt.batch_size, opt.window / 1000, opt.queue)
    usual = Settings(opt.conf_thres, opt.iou_thres, None, max(height, width))
    if tiling := choose_tiling(opt.tile, opt.tile_overlap, opt.tile_merge):
        usual = replace(usual, tile=tiling.size, tile_overlap=tiling.overlap, tile_merge=tiling.merge)
    return Endpoints(detector, batcher, usual, limits, Path(opt.weights[0]).stem)


def make_server(opt: ServeOptions) -> StoppableServer:
    """Everything but the socket to listen on, of complete options. ValueError for what cannot be served."""
    import uvicorn

    from utils.serving.app import build_app
    from utils.serving.hosts import Hosts
    from utils.serving.protocol import PatientProtocol, StoppableServer

    hosts = Hosts(opt.host, opt.hosts)
    service = build(opt)
    # A client's mistake is an answer and a number, not a line here: of these packages errors are enough
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    config = uvicorn.Config(
        build_app(service, hosts),
        http=type("Protocol", (PatientProtocol,), {"patience": opt.upload_timeout}),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=2 * opt.clients + 64,  # connections, idle ones too: a wall behind the gate
        timeout_keep_alive=IDLE_SECONDS,
    )
    return StoppableServer(config, service, opt.grace)


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket, and the address to type into a browser. OSError where nobody can listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise ValueError(f"cannot listen on --host {host} --port {port}: {reason.lower()}; choose others") from error
    name = f"[{host}]" if family == socket.AF_INET6 else host
    return listener, f"http://{name}:{listener.getsockname()[1]}"


def run(**given: object) -> None:
    """`serve.run(weights="best.pt", port=8080)`: the command line as keyword arguments.

    Serves until stopped by SIGTERM, or by SIGINT (KeyboardInterrupt). ValueError for what cannot be served.
    """
    set_up_logging()
    opt = complete(options(ServeOptions, given))
    listener, address = listen(opt.host, opt.port)  # first: a port that is taken is known before the weights are read
    with listener:
        server = make_server(opt)
        LOGGER.info(f"Serving {shown(Path(opt.weights[0]))} at {colorstr(address)}")
        server.run(sockets=[listener])
    if server.asked == signal.SIGINT:
        raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status, as `run_script` does.

    As a program, without `argv`, it ends at once where a thread still computes: nobody waits for what that does.
    """
    status = run_script(ServeOptions, lambda given: run(**given), __doc__, argv)
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if argv is None and not all(thread.daemon for thread in others):
        logging.shutdown()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
