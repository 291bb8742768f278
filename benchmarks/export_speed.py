"""How long one image takes in PyTorch, ONNX Runtime and OpenVINO, in turns in one process.

`openvino-half`: OpenVINO computes in 16 bits (detect.py --half); `openvino-int8`: the file of `export.py --int8`.

    python -m benchmarks.export_speed                                    yolov5s_BiFormer at 640 pixels, 2 threads
    python -m benchmarks.export_speed --cfg yolov5n.yaml --imgsz 320 --save export_speed.md

Every file is held against PyTorch by export.py's comparison before it is timed. A ratio says how many times faster than
eager PyTorch, the median over rounds that run all of them in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.pairing import interleave, median_ratio
from benchmarks.report import Table, machine, save
from models.backends import DetectMultiBackend
from models.exporters import FORMATS, ExportJob, ExportSettings, export
from models.exporters.compare import load_images
from models.yolo import Model
from utils.base.log import set_up_logging
from utils.base.options import Parser
from utils.checkpoints.checkpoint import describe_model, save_checkpoint
from utils.predict.pipeline import prepare_image, to_network

EAGER = "PyTorch"


def rivals(cfg: str, imgsz: int, names: list[str], folder: Path) -> dict[str, Callable[[], object]]:
    """For PyTorch and every format a call that looks at one image of random weights' network."""
    torch.manual_seed(0)
    model = Model(cfg, verbose=False).eval()
    weights = folder / "best.pt"
    save_checkpoint(weights, {"epoch": -1, "model": describe_model(model), "ema": None})
    model.fuse().requires_grad_(False)
    batches = [to_network([prepare_image(image, (imgsz, imgsz), auto=False)[0]]) for image in load_images()]
    opened = {EAGER: DetectMultiBackend(weights, device="cpu")}
    for name in names:
        kind, _, precision = name.partition("-")
        (folder / name).mkdir()
        settings = ExportSettings(imgsz=(imgsz, imgsz), int8=precision == "int8")
        (file,) = export(ExportJob(model, folder / name / "best.pt", settings, lambda: batches), [kind])
        title = " ".join([FORMATS[kind].title, *([precision] if precision else [])])
        opened[title] = DetectMultiBackend(file, device="cpu", fp16=precision == "half", trust=True)
    return {title: looking(backend, batches[0]) for title, backend in opened.items()}


def looking(backend: DetectMultiBackend, image: torch.Tensor) -> Callable[[], object]:
    """A call that looks at an image."""

    def look() -> object:
        with torch.inference_mode():
            return backend(image)

    return look


def main(argv: list[str] | None = None) -> None:
    """Print, and save on request, a row for each format."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="yolov5s_BiFormer.yaml")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--formats", nargs="+", default=["onnx", "openvino", "openvino-half", "openvino-int8"])
    parser.add_argument("--save", type=Path)
    options = parser.parse_args(argv)
    set_up_logging()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        contest = rivals(options.cfg, options.imgsz, options.formats, Path(folder))
        seconds = interleave(contest, rounds=options.rounds, warm_up=2)
    table = Table({"format": 20, "ms an image": 12, "fastest": 9, "times faster": 12})
    for name, spent in seconds.items():
        table.add(
            **{
                "format": name,
                "ms an image": 1000 * statistics.median(spent),
                "fastest": 1000 * min(spent),
                "times faster": median_ratio(seconds[EAGER], spent),
            }
        )
    if options.save:
        facts = machine(torch.device("cpu"), torch.float32, options.threads)
        save(options.save, table, facts, [f"{options.cfg} at {options.imgsz} pixels, {options.rounds} rounds in turns"])


if __name__ == "__main__":
    main()
