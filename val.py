"""Score trained weights on a data set: precision, recall, mAP overall, per class and by object size.

python val.py                                          # the newest training run, on the data it was trained with
python val.py --weights best.pt --data coco128.yaml --imgsz 640
python val.py --weights a.pt b.pt --augment                    # an ensemble, with test-time augmentation
python val.py --weights best.pt --annotations own.json         # scored as COCO does, by annotations in its JSON
python val.py --weights best.pt --tile 640 --max-det 5000      # large images with small objects, in tiles too
python val.py --task speed --weights best.pt                   # also: test, train, study
torchrun --nproc-per-node 2 val.py --weights best.pt --device 0,1    # the batches dealt out, the same result
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from models.backends import DetectMultiBackend
from utils.base.callbacks import Callbacks
from utils.base.config import SIDE, DataConfig
from utils.base.devices import tune_cuda
from utils.base.log import LOGGER, colorstr
from utils.base.options import SHARE, Range, flag, options
from utils.base.paths import ROOT, check_yaml, choose_weights, claimed, shown, trained_with
from utils.boxes.merging import MERGES
from utils.data.datasets import create_dataloader
from utils.data.tiles import OVERLAPS, TILE_SIDES, choose_tiling
from utils.distributed.processes import agreed, broadcast, is_main, leave, loader_workers, my_share, own_batches, rank
from utils.distributed.script import run_script
from utils.evaluation.coco_truth import find_annotations, read_truth
from utils.evaluation.evaluator import EvalSettings, ValResult, evaluate, log_table, warn_of_crowds
from utils.evaluation.plots import plot_val_study
from utils.evaluation.reports import Report
from utils.predict.pipeline import SPEED
from utils.prepare.converters import prepare
from utils.prepare.label_formats import COCO_IDS
from utils.prepare.named_weights import weights_of_run
from utils.training.setup import meet, own_device

STUDY_SIZES = range(256, 1536 + 1, 128)


@dataclass(slots=True)
class ValOptions:
    """The command line of val.py; every name is also an argument of `run`."""

    data: str = flag("", "data set YAML; empty for the one the weights were trained with")
    weights: list[str] = flag(
        [], "of any format, yolov5s.pt by name; several .pt make an ensemble; empty for the newest of runs/train"
    )
    batch_size: int = flag(32, "images per batch (of each process)", bounds=Range(1, 1_000_000))
    imgsz: int = flag(0, "image side in pixels", ("--img", "--img-size"), "what the weights were trained with", SIDE)
    conf_thres: float = flag(0.001, "lowest confidence of a detection", bounds=SHARE)
    iou_thres: float = flag(0.6, "overlap from which the weaker of two detections goes", bounds=SHARE)
    max_det: int = flag(300, "most detections in an image", bounds=Range(1))
    tile: int = flag(0, "look at tiles of so many pixels as well as at the whole image", shown="", bounds=TILE_SIDES)
    tile_overlap: float | None = flag(None, "part of its side that a tile shares with the next", (), "0.2", OVERLAPS)
    tile_merge: str | None = flag(None, "how doubles become one detection", shown="nms", choices=MERGES)
    task: str = flag(
        "val",
        "split to score, or speed, study (accuracy and speed over image sizes), benchmark (all images square)",
        choices=("val", "test", "train", "speed", "study", "benchmark"),
    )
    device: str = flag("", "'cpu', '0', for several processes '0,1'; empty for the first GPU, else the CPU")
    workers: int = flag(8, "loader processes, at most one a core (on a CPU: cores above two)", bounds=Range(0, 10_000))
    single_cls: bool = flag(False, "score all classes as one")
    augment: bool = flag(False, "test-time augmentation: three scales, one mirrored")
    verbose: bool = flag(False, "a line for each class however many there are")
    save_txt: bool = flag(False, "write labels/*.txt")
    save_hybrid: bool = flag(False, "write the labels and the detections together (the metrics then say nothing)")
    save_conf: bool = flag(False, "add the confidence to labels/*.txt")
    save_json: bool = flag(False, "write detections in COCO's JSON, and score them as COCO does by its annotations")
    annotations: str = flag("", "these annotations, with --save-json", shown="the split's, where some are found")
    project: str = flag(str(ROOT / "runs/val"), "results go to project/name")
    name: str = flag("exp", "results go to project/name")
    exist_ok: bool = flag(False, "write into project/name even if it exists")
    half: bool = flag(False, "16 bits: .pt weights on a GPU, OpenVINO on CPUs that have them")
    trust: bool = flag(False, "open files that can run code (TorchScript, .pt2, engines, TensorFlow) too")
    dnn: bool = flag(False, "OpenCV's DNN module for ONNX files")

    @property
    def split(self) -> str:
        """The part of the data set that is scored."""
        return self.task if self.task in ("train", "test") else "val"

    @property
    def draws(self) -> bool:
        """Whether more than a measurement is wanted."""
        return self.task not in ("speed", "study", "benchmark")


def check_fit(opt: ValOptions, model: DetectMultiBackend, data: DataConfig) -> ValOptions:
    """Return the options with `single_cls` where the weights' one class is the one that train.py --single-cls makes.

    Raise ValueError where weights and data do not go together.
    """
    if not getattr(data, opt.split):
        raise ValueError(f"{data.file}: has no {opt.split!r} split; add it, or choose another --task")
    if not opt.single_cls and data.nc > 1 and list(model.names) == ["item"]:
        words = f"the {data.nc} classes of {data.file} count as one"
        LOGGER.info(f"--single-cls (the weights were trained with it): {words}")
        opt = replace(opt, single_cls=True)
    if not opt.single_cls and (known := len(model.names)) != data.nc:
        raise ValueError(
            f"the weights know {known} class{'es' * (known != 1)}, {data.file} has {data.nc}: name the data set they "
            f"were trained on by --data{', or give --single-cls if they were trained with it' * (known == 1)}"
        )
    if opt.conf_thres > 0.001 and opt.draws:
        LOGGER.warning(f"--conf-thres {opt.conf_thres} leaves out weak detections: mAP comes out lower than with 0.001")
    if opt.save_hybrid:
        LOGGER.warning("--save-hybrid puts the labels among the detections: P, R and mAP say nothing")
    return opt


def open_report(
    opt: ValOptions, data: DataConfig, images: Sequence[str], folder: Path, callbacks: Callbacks | None
) -> Report:
    """Return what writes all that is wanted of these images into a folder.

    Raise ValueError where COCO annotations to score by fit neither the images nor the classes that are scored.
    """
    is_coco = getattr(data.file, "name", "") == "coco.yaml"  # its JSON is written unasked
    wants_json, truth = opt.draws and any((opt.save_json, opt.annotations, is_coco)), None
    with agreed():
        if wants_json and is_main():
            folders = map(Path, map(os.path.dirname, images))
            file = opt.annotations or find_annotations(data.root, opt.split, folders)
            truth = read_truth(Path(file), images, data.names, merged=opt.single_cls) if file else None
    report = Report(
        folder,
        ["item"] if opt.single_cls else data.names,
        opt.draws,
        opt.save_txt or opt.save_hybrid,
        opt.save_conf,
        folder / f"{Path(opt.weights[0]).stem}_predictions.json" if wants_json else None,
        COCO_IDS if is_coco else None,
        truth,
        callbacks=callbacks or Callbacks(),
    )
    report.name_images(images)
    return report


@contextmanager
def new_folder(opt: ValOptions) -> Iterator[Path]:
    """Make a numbered folder for the results, the same one in every process; gone again if nothing comes of it."""
    with ExitStack() as stack:
        with agreed():
            claim = claimed(Path(opt.project) / opt.name, opt.exist_ok)
            folder = stack.enter_context(claim) if is_main() else None
        yield broadcast(folder)


def validate(
    opt: ValOptions, model: DetectMultiBackend, data: DataConfig, folder: Path, callbacks: Callbacks | None = None
) -> ValResult | None:
    """Score one model on one split at one image size; of several processes only the main one gets the result."""
    opt = check_fit(opt, model, data)
    tiling = choose_tiling(opt.tile, opt.tile_overlap, opt.tile_merge, opt.batch_size)
    height, width = model.input_size(opt.imgsz)
    if height != width:
        takes = f"{opt.weights[0]} takes images of {height} x {width} pixels"
        raise ValueError(f"{takes}: scoring needs a square, or --dynamic")
    loader, dataset = create_dataloader(
        getattr(data, opt.split),
        height,
        1 if tiling else opt.batch_size,  # of tiles, then
        max(int(model.stride), 32),
        opt.single_cls,
        pad=0.5 if opt.draws else 0.0,
        rect=model.shape is None and opt.task != "benchmark",
        rank=rank(),
        workers=loader_workers(opt.workers, model.device),
        prefix=colorstr(f"{opt.task}: "),
        nc=data.nc,
        tile=opt.tile,
    )
    if is_main():
        warn_of_crowds(map(len, dataset.labels), opt.max_det)
    first, stride = my_share()
    report = open_report(opt, data, list(dataset.img_files), folder, callbacks)
    nms = opt.conf_thres, opt.iou_thres, opt.max_det
    settings = EvalSettings(
        *nms, opt.single_cls, opt.save_hybrid, model.fp16, None, first, stride, tiling=tiling, imgsz=height
    )
    model.warmup((1, 3, height, width))
    forward = partial(model, augment=opt.augment, val=True)
    result = evaluate(forward, own_batches(loader, first, stride), data.names, model.device, settings, report)
    with agreed():
        dataset.check_stand_ins()
    if result is None:
        return None
    log_table(result, per_class=opt.verbose or (1 < data.nc < 50 and not opt.single_cls))
    LOGGER.info(SPEED.format(*result.speed, (1 if opt.tile else min(opt.batch_size, len(dataset)), 3, height, width)))
    report.finish(result)
    LOGGER.info(f"Results saved to {colorstr('bold', shown(folder))}")
    return result


def study(opt: ValOptions, data: DataConfig, device: torch.device, folder: Path) -> list[ValResult]:
    """Score each weights file over a range of image sizes; leave text tables and a plot of accuracy and speed."""
    results = []
    for weights in opt.weights:
        rows, stem = [], Path(weights).stem
        for size in STUDY_SIZES:
            LOGGER.info(f"\n{weights} at {size} pixels")
            name = f"{folder.name}/{stem}_{size}"
            one = replace(opt, weights=[weights], imgsz=size, iou_thres=0.7, name=name, exist_ok=True)
            model = DetectMultiBackend([weights], device=device, fp16=opt.half, trust=opt.trust)
            with new_folder(one) as place:
                result = validate(one, model, data, place)
            if result:
                results.append(result)
                rows.append(" ".join(f"{value:10.4g}" for value in (*result.summary, *result.speed)))
        if is_main():
            (folder / f"study_{Path(data.file or 'data').stem}_{stem}.txt").write_text("\n".join(rows) + "\n")
    if is_main():
        plot_val_study(dir=folder, x=list(STUDY_SIZES))
    LOGGER.info(f"Study saved to {shown(folder)}")
    return results


def score(opt: ValOptions, callbacks: Callbacks | None = None) -> ValResult | list[ValResult] | None:
    """Do the task that the options ask for, together with the other processes if torchrun started several.

    Raise ValueError for files and options that cannot work.
    """
    meet()
    choose_tiling(opt.tile, opt.tile_overlap, opt.tile_merge)  # says so where they do not go together
    weights = [str(weights_of_run(file)) for file in choose_weights(opt.weights)]
    opt = replace(opt, weights=weights, data=opt.data or str(trained_with(weights).get("data", "shapes.yaml")))
    device = own_device(opt.device)
    tune_cuda()
    data = DataConfig.load(check_yaml(opt.data))
    prepare(data)
    if opt.task == "speed":
        opt = replace(opt, conf_thres=0.25, iou_thres=0.45, save_json=False)
    with new_folder(opt) as folder:
        if opt.task == "study":
            return study(opt, data, device, folder)
        model = DetectMultiBackend(opt.weights, device=device, dnn=opt.dnn, fp16=opt.half, trust=opt.trust)
        return validate(opt, model, data, folder, callbacks)


def run(
    callbacks: Callbacks | None = None, **given: object
) -> tuple[tuple[float, ...], list[float], tuple[float, ...]]:
    """`val.run(weights="best.pt")`: returns ((P, R, mAP50, mAP50-95, box, obj, cls), mAP per class, ms per image).

    Under torchrun every process must call it, and every one gets the same.
    """
    opt = options(ValOptions, given)
    if opt.task == "study":
        raise ValueError("val.run scores one model at one size; use the command line for --task study")
    try:
        with torch.inference_mode():
            result = score(opt, callbacks)
        row = (result.summary, result.metrics.maps.tolist(), result.speed) if isinstance(result, ValResult) else None
        return broadcast(row)
    finally:
        leave()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status, as `run_script` does."""
    return run_script(ValOptions, lambda given: score(options(ValOptions, given)), __doc__, argv, "stopped")


if __name__ == "__main__":
    sys.exit(main())
