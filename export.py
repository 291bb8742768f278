"""Write trained weights in the formats of other programs, and hold every file against PyTorch before it counts.

python export.py --weights best.pt                                       # TorchScript and ONNX
python export.py --weights best.pt --include onnx openvino --simplify    # for ONNX Runtime and for Intel's
python export.py --weights best.pt --include openvino --int8 --data coco128.yaml
python export.py --weights best.pt --include onnx --dynamic --nms        # any number of images; boxes come out
python export.py --weights best.pt --include engine --device 0 --half    # TensorRT, on the GPU it will run on

The formats, what each needs and what was measured: docs/deploy.md.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from models.backends import ACTS, ending_of
from models.experimental import attempt_load
from models.exporters import DEFAULT_OPSET, FORMATS, ExportJob, ExportSettings, export
from utils.base.config import SIDES, DataConfig, check_img_size
from utils.base.devices import select_device
from utils.base.log import LOGGER, colorstr, set_up_logging
from utils.base.options import SHARE, Range, flag, options
from utils.base.paths import check_yaml, choose_weights, shown, trained_size, trained_with
from utils.data.image_files import find_images
from utils.distributed.script import run_script
from utils.images.reading import read_image
from utils.predict.pipeline import prepare_image, to_network
from utils.prepare.converters import prepare
from utils.prepare.named_weights import named_weights

MOST_CALIBRATION = 300  # images; more change little


@dataclass(slots=True)
class ExportOptions:
    """The command line of export.py; every name is also an argument of `run`."""

    data: str = flag("", "data set YAML whose images calibrate int8; empty for the one the weights were trained with")
    weights: list[str] = flag([], "weights (.pt, .safetensors), yolov5s.pt by name, in turn; empty: newest best.pt")
    imgsz: list[int] = flag(
        [],
        "side, or height and width, in pixels; as the weights were trained if left out",
        aliases=("--img", "--img-size"),
        bounds=SIDES,
    )
    batch_size: int = flag(1, "images at a time", bounds=Range(1, 1_000_000))
    device: str = flag("cpu", "'cpu' or '0'")
    half: bool = flag(False, "float16: openvino, coreml, tflite, ncnn and yolov5 anywhere, others on a GPU")
    inplace: bool = flag(False, "accepted for v6.1's scripts: the head writes nothing in place")
    train: bool = flag(False, "refused: a file in training mode gives nothing that could be compared")
    optimize: bool = flag(False, "TorchScript: for mobile CPUs")
    int8: bool = flag(False, "openvino, tflite, edgetpu: whole numbers, calibrated on --data")
    dynamic: bool = flag(False, "leave the number and the size of images open, where a format can")
    simplify: bool = flag(False, "ONNX: slim the graph with onnxslim")
    opset: int = flag(DEFAULT_OPSET, "ONNX: version of the operators, 12 or more", bounds=Range(1, 1000))
    verbose: bool = flag(False, "let the converters print, too")
    workspace: float = flag(4.0, "TensorRT: memory to build in, GB", bounds=Range(0, 1e6, above=True))
    nms: bool = flag(False, "onnx, openvino: suppression inside the file, which then returns detections")
    agnostic_nms: bool = flag(False, "with --nms: boxes of different classes suppress each other too")
    topk_per_class: int = flag(100, "with --nms: most detections of a class in an image", bounds=Range(1))
    topk_all: int = flag(100, "with --nms: most detections in an image", bounds=Range(1))
    iou_thres: float = flag(0.45, "with --nms: overlap from which the weaker of two detections goes", bounds=SHARE)
    conf_thres: float = flag(0.25, "with --nms: lowest confidence of a detection", bounds=SHARE)
    include: list[str] = flag(
        ["torchscript", "onnx"], f"formats: {' '.join(FORMATS)}", choices=tuple(FORMATS), metavar="FORMAT"
    )


SHARED = ({item.name for item in fields(ExportSettings)} & set(ExportOptions.__slots__)) - {"imgsz", "device"}


def calibration_images(data: str, imgsz: tuple[int, int]) -> list[Tensor]:
    """Images (1, 3, h, w) in 0..1 of a data set's training split, spread evenly over it."""
    config = DataConfig.load(check_yaml(data))
    prepare(config)
    files = find_images(config.train)
    chosen = files[:: max(1, len(files) // MOST_CALIBRATION)][:MOST_CALIBRATION]
    LOGGER.info(f"calibrating int8 on {len(chosen)} images")
    return [to_network([prepare_image(read_image(file), imgsz, auto=False)[0]]) for file in chosen]


def export_one(opt: ExportOptions, weights: Path, command: str) -> list[Path]:
    """All formats of one weights file."""
    start = time.perf_counter()
    if weights.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"{weights}: export starts from .pt or .safetensors weights")
    device = select_device(opt.device)
    model = attempt_load(weights, device=device, fuse=True)
    wanted = opt.imgsz or [model.imgsz or trained_size([weights])]
    model = (model.half() if opt.half and device.type != "cpu" else model).requires_grad_(False)
    height, width = check_img_size([*wanted, *wanted][:2], max(int(model.stride.max()), 32))
    data = opt.data or str(trained_with([weights]).get("data", "shapes.yaml"))
    given = {name: getattr(opt, name) for name in SHARED}
    settings = ExportSettings((height, width), opt.batch_size, device, command=command, **given)
    job = ExportJob(model, weights, settings, lambda: calibration_images(data, (height, width)))
    files = export(job, opt.include)
    seconds = time.perf_counter() - start
    LOGGER.info(f"\n{shown(weights)} exported in {seconds:.1f}s to {colorstr('bold', ' '.join(map(shown, files)))}")
    tried = [file for name, file in zip(dict.fromkeys(opt.include), files, strict=True) if FORMATS[name].runs]
    if tried:
        trust = " --trust" if ending_of(tried[-1]) in ACTS else ""
        LOGGER.info(f"Try it: python detect.py --weights {shown(tried[-1])}{trust}")
    return files


def convert(opt: ExportOptions, command: str = "") -> list[Path]:
    """Every format of every weights file. Raises ValueError and `ExportError`, one line each."""
    if opt.train:
        raise ValueError("--train: a file in training mode gives no predictions that could be compared; leave it out")
    if opt.half and opt.int8:
        raise ValueError("--half and --int8 exclude each other; choose one")
    if len(opt.imgsz) > 2:
        raise ValueError(f"--imgsz is one side or height and width, not {len(opt.imgsz)} numbers")
    return [file for one in choose_weights(opt.weights) for file in export_one(opt, named_weights(one), command)]


def run(**given: object) -> list[Path]:
    """`export.run(weights="best.pt", include=["onnx"])`: the command line as keyword arguments; returns the files."""
    set_up_logging()
    words = [f"{name}={value!r}" for name, value in given.items()]
    return convert(options(ExportOptions, given), f"export.run({', '.join(words)})")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status, as `run_script` does."""
    command = shlex.join(["export.py", *(sys.argv[1:] if argv is None else argv)])
    with torch.no_grad():
        return run_script(ExportOptions, lambda given: convert(options(ExportOptions, given), command), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
