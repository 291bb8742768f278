"""How the server holds up: many clients for a while, and batches against one image at a time.

    python -m benchmarks.serve_load load                                    64 clients for 60 s
    python -m benchmarks.serve_load load --weights best.pt --imgsz 640 --clients 16 --seconds 600
    python -m benchmarks.serve_load batching --imgsz 160 224 320            --batch-size 16 against 1

Every server is a process of its own, on a free port of this machine, without a limit on threads; the clients are
coroutines in this process, each with one connection, that ask again as soon as they are answered. So the processor is
shared by both sides. For `batching` two servers run beside each other and are asked in turns; the order changes from
pair to pair, and the ratio is the median of the pairs'. Without --weights a network with random weights is served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.report import Table, machine, save
from models.yolo import Model
from utils.base.options import Parser
from utils.checkpoints.checkpoint import describe_model, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120  # for a server to load its weights
SLICES = 6  # of the time under load, a row each
MIB = 1024 * 1024
SAMPLES = re.compile(r"^(\w+) (\S+)$", re.MULTILINE)


@dataclass(slots=True)
class Outcome:
    """What clients saw: the seconds of every answered request, failures by their words, the time it all took."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    spent: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.spent

    def milliseconds(self, percent: float) -> float:
        """A percentile of the answers' times."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] if ordered else float("nan")


def random_weights(cfg: str, folder: Path) -> Path:
    """A checkpoint of a network that has learnt nothing, and so finds nothing."""
    torch.manual_seed(0)
    file = folder / f"{Path(cfg).stem}.pt"
    save_checkpoint(file, {"epoch": -1, "model": describe_model(Model(cfg, verbose=False).eval()), "ema": None})
    return file


@contextlib.contextmanager
def server(weights: Path, imgsz: int, *flags: str) -> Iterator[int]:
    """A running server's port."""
    command = [sys.executable, str(ROOT / "serve.py"), "--weights", str(weights), "--imgsz", str(imgsz), "--port", "0"]
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield _port(process)
        finally:
            process.terminate()


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"http://[\d.]+:(\d+)", line):
            port = int(found[1])
            end = time.monotonic() + START_SECONDS
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    if asyncio.run(ask(port, b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"))[0] == 200:
                        return port
                time.sleep(0.1)
    raise RuntimeError(f"the server does not answer: {''.join(said)}")


def form(image: Path, address: str) -> bytes:
    """A whole request that uploads the image."""
    edge = "an-edge-that-is-in-no-image"
    body = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'.encode()
    body += image.read_bytes() + f"\r\n--{edge}--\r\n".encode()
    kind = f"Content-Type: multipart/form-data; boundary={edge}"
    return f"POST {address} HTTP/1.1\r\nHost: here\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Send a request on an open connection; the answer's status and body."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    body = await reader.readexactly(int(length[1])) if length else b""
    return int(head.split(b" ", 2)[1]), body


async def ask(port: int, request: bytes) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await exchange(reader, writer, request)
    finally:
        writer.close()


async def crowd(port: int, requests: list[bytes], clients: int, seconds: float) -> Outcome:
    """So many clients ask one request after the other for so many seconds."""
    outcome, start = Outcome(), time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while (begin := time.perf_counter()) < start + seconds:
            try:
                status, body = await exchange(reader, writer, requests[turn % len(requests)])
            except (OSError, EOFError) as error:  # the connection is of no more use
                outcome.errors.append(type(error).__name__)
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            if status == 200:
                outcome.seconds.append(time.perf_counter() - begin)
            else:
                outcome.errors.append(f"{status} {body[:200].decode(errors='replace')}")
            turn += 1
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    outcome.spent = time.perf_counter() - start
    return outcome


def samples(port: int) -> dict[str, float]:
    """The server's own numbers, those without labels, by their names."""
    text = asyncio.run(ask(port, b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"))[1].decode()
    return {name: float(value) for name, value in SAMPLES.findall(text)}


def batches(port: int) -> tuple[float, float]:
    """How many images went through the network since the server began, and in how many batches."""
    found = samples(port)
    return found["yolov5_batch_size_sum"], found["yolov5_batch_size_count"]


def mebibytes(port: int) -> float:
    """The server's memory."""
    return samples(port)["process_resident_memory_bytes"] / MIB


def mean_batch(port: int, before: tuple[float, float] = (0, 0)) -> float:
    """How many of them went together on average, since there were as many as `before`."""
    images, count = (now - then for now, then in zip(batches(port), before, strict=True))
    return images / max(count, 1)


def load(weights: Path, requests: list[bytes], opt: argparse.Namespace) -> Table:
    """Print who was answered how fast, and the server's memory, in slices of the time.

    Before it batches of all sizes are provoked: PyTorch keeps what it worked out for the last shapes it has seen, and
    memory grows until it has seen them.
    """
    percents = {"p50 ms": 50, "p95 ms": 95, "p99 ms": 99, "max ms": 100}
    table = Table({"seconds": 8, "requests": 8, "errors": 6, "per second": 8, **dict.fromkeys(percents, 8), "MiB": 6})
    errors: list[str] = []
    with server(weights, opt.imgsz[0], "--batch-size", str(opt.batch_size)) as port:
        print(f"memory before the first request: {mebibytes(port):.0f} MiB")
        for clients in [*range(1, opt.batch_size + 1), *[opt.clients] * 5]:
            errors += asyncio.run(crowd(port, requests, clients, opt.warm_up / (opt.batch_size + 5))).errors
        print(f"memory after a warm-up of {opt.warm_up:g} s: {mebibytes(port):.0f} MiB")
        before = batches(port)
        for number in range(1, SLICES + 1):
            out = asyncio.run(crowd(port, requests, opt.clients, opt.seconds / SLICES))
            errors += out.errors
            times = {name: out.milliseconds(percent) for name, percent in percents.items()}
            counts = {"requests": len(out.seconds), "errors": len(out.errors), "per second": out.rate}
            memory = round(mebibytes(port))
            table.add(seconds=round(number * opt.seconds / SLICES, 1), **counts, **times, MiB=memory)
        print(f"mean batch: {mean_batch(port, before):.1f}; errors: {len(errors)} {sorted(set(errors))[:3]}")
    return table


def batching(weights: Path, requests: list[bytes], opt: argparse.Namespace) -> Table:
    """Print the images a second of both servers, and how many times as many the batching one answers."""
    table = Table({"size": 6, "one at a time": 8, "batches": 8, "ratio": 6, "least": 6, "most": 6, "mean batch": 8})
    for size in opt.imgsz:
        rates: dict[str, list[float]] = {"1": [], str(opt.batch_size): []}
        with contextlib.ExitStack() as stack:
            ports = {one: stack.enter_context(server(weights, size, "--batch-size", one)) for one in rates}
            for port in ports.values():
                asyncio.run(crowd(port, requests, opt.clients, 2))
            for number in range(opt.pairs):
                for one in list(rates) if number % 2 == 0 else reversed(rates):
                    out = asyncio.run(crowd(ports[one], requests, opt.clients, opt.seconds))
                    if out.errors:
                        raise RuntimeError(f"{len(out.errors)} requests failed: {out.errors[0]}")
                    rates[one].append(out.rate)
            mean = mean_batch(ports[str(opt.batch_size)])
        single, many = rates.values()
        ratios = sorted(fast / slow for slow, fast in zip(single, many, strict=True))
        middle = {"one at a time": statistics.median(single), "batches": statistics.median(many)}
        spread = {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
        table.add(size=size, **middle, **spread, **{"mean batch": mean})
    return table


def main() -> None:
    """Print, and save on request, one of the two tables."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "batching"])
    parser.add_argument("--weights", type=Path, help="what to serve, in any format")
    parser.add_argument("--cfg", default="yolov5n_BiFormer.yaml", help="without --weights: a network of this kind")
    parser.add_argument("--imgsz", type=int, nargs="+", default=[320], help="sides of the network's input")
    parser.add_argument("--images", type=Path, default=ROOT / "data/images", help="folder of JPEG files to send")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, help="of load (60), or of each turn of a pair (4)")
    parser.add_argument("--warm-up", type=float, default=30, help="seconds before load is measured")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--save", type=Path, help=".md, .csv or .json")
    opt = parser.parse_args()
    opt.seconds = opt.seconds or {"load": 60.0, "batching": 4.0}[opt.what]
    requests = [form(file, "/v1/object-detection/any") for file in sorted(opt.images.glob("*.jpg"))]
    with tempfile.TemporaryDirectory() as folder:
        weights = opt.weights or random_weights(opt.cfg, Path(folder))
        table = {"load": load, "batching": batching}[opt.what](weights, requests, opt)
    if opt.save:
        facts = machine(torch.device("cpu"), torch.float32, torch.get_num_threads())
        save(opt.save, table, facts, [f"{opt.what} of {opt.weights or opt.cfg}, {opt.clients} clients"])


if __name__ == "__main__":
    main()
