"""Does the memory of a loader stay where it is, and is there one copy of cached images on a machine?

    python -m benchmarks.loader_memory                         100,000 records, 4 workers, 3 epochs
    python -m benchmarks.loader_memory --cache --images 3000  `--cache ram` with 2 ranks of 2 workers each

Memory is what the kernel says in /proc/PID/smaps_rollup. PSS counts a page that n processes share as 1/n in each, USS
only pages that nobody else has. Both contain the libraries' files, whose pages are shared with any other Python on the
machine and so come and go with it; "data" is PSS without files: its sum is what these processes take together. All
images are one small file, so that the loader's own bookkeeping is measured and not decoding.
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import cv2
import numpy as np
import torch
import torch.multiprocessing as processes
from torch.utils.data import DataLoader

from benchmarks.report import Table, machine
from utils.base.options import Parser
from utils.data.datasets import DetectionDataset, create_dataloader
from utils.data.label_arrays import LabelIndex
from utils.data.labels import NO_POINTS, Record
from utils.distributed.processes import gather, join, leave, rank

MIB = 1 << 20
LABELS = 7  # an image: about as many as COCO has
GROWTH = 0.02  # allowed after the first epoch; a copy of anything that grows with the data set would be far more
SLACK = 8.0  # MiB of each process that come and go with batches on their way and the allocator's own habits


class Memory(NamedTuple):
    """What a process takes, in MiB."""

    pss: float
    uss: float
    data: float


def memory(pid: int) -> Memory:
    """What process `pid` takes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    fields = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    private = fields["Private_Clean"] + fields["Private_Dirty"]
    return Memory(fields["Pss"], private, fields["Pss_Anon"] + fields["Pss_Shmem"])


def children(pid: int) -> list[int]:
    """Process numbers of what a process has started and what those have."""
    found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return found + [deeper for child in found for deeper in children(child)]


def write_image(folder: Path, size: int) -> str:
    """One noisy image, `size` px a side."""
    image = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "image.png"), image)
    return str(folder / "image.png")


def records(file: str, count: int, size: int) -> Iterator[Record]:
    """`count` images, all that one file, with LABELS random boxes each."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        labels = np.concatenate((rng.integers(0, 80, (LABELS, 1)), rng.uniform(0.3, 0.4, (LABELS, 4))), 1)
        yield Record(file, file, (size, size), labels.astype(np.float32), (NO_POINTS,) * LABELS, True)


def packed(file: str, count: int, size: int, chunk: int = 4096) -> LabelIndex:
    """An index of `count` records, packed a chunk at a time as `load_index` does."""
    source = records(file, count, size)
    sizes = [min(chunk, count - start) for start in range(0, count, chunk)]
    return LabelIndex.join([LabelIndex.pack([next(source) for _ in range(size)]) for size in sizes])


def build(index: LabelIndex, options: argparse.Namespace, **more: object) -> tuple[DataLoader, DetectionDataset]:
    """The loader of a training run with all the workers that are asked for, however few cores there are."""
    with mock.patch("os.cpu_count", return_value=64), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of more workers than cores
        return create_dataloader(
            index, options.imgsz, options.batch, 32, augment=True, shuffle=True, workers=options.workers, **more
        )


def walk(loader: DataLoader, epoch: int) -> int:
    """One epoch; the number of images in it."""
    loader.sampler.set_epoch(epoch)
    return sum(len(batch.images) for batch in loader)


# ---- does it grow ----------------------------------------------------------------------------------------------------


def growth(options: argparse.Namespace) -> bool:
    """Print the memory of all processes after each epoch; whether it stays flat after the first."""
    with tempfile.TemporaryDirectory() as folder:
        index = packed(write_image(Path(folder), options.imgsz), options.images, options.imgsz)
        gc.collect()
        size = sum(array.nbytes for array in index.arrays.values()) / MIB
        print(f"label arrays: {size:.1f} MiB, {size * MIB / options.images:.0f} bytes an image of {LABELS} labels")
        loader, _ = build(index, options)
        del index
        titles = (
            "epoch",
            "seconds",
            "PSS",
            "USS",
            "data",
            "workers PSS",
            "workers USS",
            "workers data",
            "sum",
            "growth",
        )
        table = Table(dict.fromkeys(titles, 8))
        sums = []
        for epoch in range(options.epochs):
            start = time.perf_counter()
            walk(loader, epoch)
            gc.collect()
            own, workers = memory(os.getpid()), [memory(pid) for pid in children(os.getpid())]
            sums.append(own.data + sum(worker.data for worker in workers))
            row = {"epoch": epoch + 1, "seconds": round(time.perf_counter() - start, 1)}
            row |= {"PSS": round(own.pss, 1), "USS": round(own.uss, 1), "data": round(own.data, 1)}
            for field in Memory._fields:
                title = f"workers {field if field == 'data' else field.upper()}"
                row[title] = " ".join(f"{getattr(worker, field):.1f}" for worker in workers)
            table.add(**row, sum=round(sums[-1], 1), growth=f"{sums[-1] / sums[0] - 1:+.2%}")
    flat = sums[-1] - sums[0] <= max(GROWTH * sums[0], SLACK * (1 + options.workers))
    print(f"{'flat' if flat else 'GROWING'}: {sums[-1] - sums[0]:+.1f} MiB after the first epoch")
    return flat


# ---- is there one copy -----------------------------------------------------------------------------------------------


def _rank(number: int, options: argparse.Namespace, answer: processes.Queue) -> None:
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number))
    torch.set_num_threads(1)
    join("gloo")
    index = packed(options.image, options.images, options.imgsz)
    taken = {}
    for cache in (None, None, "ram"):  # the first time everything that loaders need for ever is taken
        loader, dataset = build(index, options, cache=cache, rank=rank())
        if cache:
            dataset._cache.arrays["pixels"].max()  # every rank has touched every page
        walk(loader, 0)
        gc.collect()
        gather(None, machine=True)
        taken[cache] = sum(memory(pid).data for pid in [os.getpid(), *children(os.getpid())])
        gather(None, machine=True)  # nobody goes on while another counts
        pixels = dataset._cache.arrays["pixels"].nbytes / MIB if cache else 0
        del loader, dataset
        gc.collect()
        gather(None, machine=True)
    everyone = gather(taken)
    if rank() == 0:
        answer.put((everyone, pixels))
    leave()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def one_copy(options: argparse.Namespace) -> bool:
    """Print what the processes of a machine take with and without cached images; whether that is one copy."""
    environment = {"WORLD_SIZE": str(options.ranks), "LOCAL_WORLD_SIZE": str(options.ranks), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(_free_port()), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back: only what is held is measured
    context = processes.get_context("spawn")
    answer = context.Queue()
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, environment):
        options.image = write_image(Path(folder), options.imgsz)
        started = processes.start_processes(_rank, (options, answer), options.ranks, join=False)
        while not started.join(timeout=1):
            pass
        everyone, pixels = answer.get(timeout=10)
    table = Table({"rank": 0, "processes": 0, "data without": 0, "data with": 0, "more": 8})
    for number, taken in enumerate(everyone):
        without, with_cache = taken[None], taken["ram"]
        table.add(
            **{"rank": number, "processes": 1 + options.workers, "data without": round(without, 1)},
            **{"data with": round(with_cache, 1), "more": round(with_cache - without, 1)},
        )
    more = sum(taken["ram"] - taken[None] for taken in everyone)
    print(f"pixels: {pixels:.1f} MiB; all processes take {more:.1f} MiB more, {more / pixels:.3f} copies")
    return more <= pixels * (1 + GROWTH) + SLACK * options.ranks * (1 + options.workers)


def main(arguments: Iterable[str] | None = None) -> int:
    """The command line; exit status 1 where memory is not as it should be."""
    parser = Parser(prog="python -m benchmarks.loader_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=0, help="records (100000, with --cache 3000)")
    parser.add_argument("--workers", type=int, default=0, help="of each process (4, with --cache 2)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=0, help="images in a batch (64, with --cache 16)")
    parser.add_argument("--imgsz", type=int, default=0, help="side of the images (32, with --cache 320)")
    parser.add_argument("--cache", action="store_true", help="measure cached images instead of growth")
    parser.add_argument("--ranks", type=int, default=2, help="processes with --cache")
    options = parser.parse_args(arguments)
    options.images = options.images or (3000 if options.cache else 100_000)
    options.workers = options.workers or (2 if options.cache else 4)
    options.batch = options.batch or (16 if options.cache else 64)
    options.imgsz = options.imgsz or (320 if options.cache else 32)
    if min(options.images, options.workers, options.epochs, options.batch, options.imgsz, options.ranks) < 1:
        parser.error("all numbers are at least 1")
    facts = machine(torch.device("cpu"), torch.uint8, torch.get_num_threads())
    print(f"{facts['processor']}; torch {facts['torch']}; commit {facts['commit']}")
    return int(not (one_copy(options) if options.cache else growth(options)))


if __name__ == "__main__":
    sys.exit(main())
