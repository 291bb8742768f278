"""What each size of a model costs on a CPU: memory and time of a training step, time of an image in use.

    python -m benchmarks.model_sizes                                  n to x with BRA, 640 pixels, batches of 4
    python -m benchmarks.model_sizes --sizes n s --imgsz 320 --batch 16 --amp off --save sizes.md

Every size runs in a fresh process, so that memory is its own: the most the process ever had resident, Python, PyTorch
and one batch included, loader processes not. Seconds are medians of `--rounds` steps after one that warms up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.pairing import high_water
from benchmarks.report import Table, machine, save
from benchmarks.train_step import TrainingStep, batch_of
from models.yolo import Model
from utils.base.options import Parser


class Cost(NamedTuple):
    """Parameters, GFLOPs of an image, bytes and seconds of a training step, seconds of an image in use."""

    parameters: int
    gflops: float
    memory: int
    step: float
    image: float


def measure(cfg: str, imgsz: int, batch: int, amp: str, threads: int, rounds: int) -> Cost:
    """Train and look in this process."""
    torch.set_num_threads(threads)
    model = Model(cfg, verbose=False)
    size = model.info(img_size=imgsz)
    looking = _look(cfg, imgsz, rounds)
    step = _median(TrainingStep(model, batch_of(batch, imgsz, model.nc), torch.device("cpu"), amp=amp), rounds)
    return Cost(size.parameters, size.gflops, high_water(), step, looking)


def _look(cfg: str, imgsz: int, rounds: int) -> float:
    model = Model(cfg, verbose=False).eval().fuse().requires_grad_(False).to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, imgsz, imgsz)
    with torch.inference_mode():
        return _median(lambda: model(image), rounds)


def _median(run: Callable[[], object], rounds: int) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main(argv: list[str] | None = None) -> None:
    """Print, and save on request, a row for each size."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="yolov5{size}_BiFormer.yaml", help="with {size} where the letter goes")
    parser.add_argument("--sizes", nargs="+", default=list("nsmlx"))
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--amp", choices=("off", "bf16"), default="off")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args(argv)
    table = Table({"model": 18, "M parameters": 12, "GFLOPs": 8, "GiB": 6, "s a step": 8, "ms an image": 11})
    spawn = multiprocessing.get_context("spawn")
    for size in options.sizes:
        cfg = options.cfg.format(size=size)
        given = (cfg, options.imgsz, options.batch, options.amp, options.threads, options.rounds)
        with spawn.Pool(1) as pool:
            cost = pool.apply(measure, given)
        figures = {"M parameters": cost.parameters / 1e6, "GFLOPs": cost.gflops, "GiB": cost.memory / 2**30}
        table.add(model=Path(cfg).stem, **figures, **{"s a step": cost.step, "ms an image": 1000 * cost.image})
    if options.save:
        dtype = torch.bfloat16 if options.amp == "bf16" else torch.float32
        about = f"{options.imgsz} pixels; steps of {options.batch} images; an image in use in float32, fused, batch 1"
        save(options.save, table, machine(torch.device("cpu"), dtype, options.threads), [about])


if __name__ == "__main__":
    main()
