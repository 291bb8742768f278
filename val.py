"""Score trained weights on a data set: precision, recall, mAP overall, per class and by object size.

python val.py                                          # the newest training run, on the data it was trained with
python val.py --weights best.pt --data coco128.yaml --imgsz 640
python val.py --weights a.pt b.pt --augment                    # an ensemble, with test-time augmentation
python val.py --weights best.pt --annotations own.json         # scored as COCO does, by annotations in its JSON
python val.py --task speed --weights best.pt                   # also: test, train, study
torchrun --nproc-per-node 2 val.py --weights best.pt --device 0,1    # the batches dealt out, the same result
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.backends import DetectMultiBackend
from utils.base.callbacks import Callbacks
from utils.base.config import SIDE, DataConfig
from utils.base.log import LOGGER, colorstr
from utils.base.options import SHARE, Range, flag, options
from utils.base.paths import ROOT, check_yaml, choose_weights, claimed, find_weights, shown, trained_with
from utils.data.datasets import create_dataloader
from utils.distributed.processes import (
    agreed,
    broadcast,
    is_main,
    leave,
    loader_workers,
    my_share,
    own_batches,
    rank,
)
from utils.distributed.script import run_script
from utils.evaluation.coco_truth import CocoTruth, find_annotations, read_truth
from utils.evaluation.evaluator import EvalSettings, ValResult, evaluate, log_table, warn_of_crowds
from utils.evaluation.plots import plot_val_study
from utils.evaluation.reports import Report, ReportSettings, speed_line
from utils.prepare.converters import prepare
from utils.prepare.label_formats import COCO_IDS
from utils.training.setup import meet, own_device

TASKS = ("val", "test", "train", "speed", "study", "benchmark")
TIMING = ("speed", "study", "benchmark")  # tasks that measure and draw nothing
STUDY_SIZES = range(256, 1536 + 1, 128)


@dataclass(slots=True)
class ValOptions:
    """The command line of val.py; every name is also an argument of `run`."""

    data: str = flag("", "data set YAML; empty for the one the weights were trained with")
    weights: list[str] = flag(
        [], "weights of any format, several .pt make an ensemble; empty for the newest runs/train/*/weights/best.pt"
    )
    batch_size: int = flag(
        32, "pictures per batch (of each process, where there are several)", bounds=Range(1, 1_000_000)
    )
    imgsz: int = flag(
        0,
        "side of the pictures in pixels",
        aliases=("--img", "--img-size"),
        shown="what the weights were trained with",
        bounds=SIDE,
    )
    conf_thres: float = flag(0.001, "lowest confidence of a detection", bounds=SHARE)
    iou_thres: float = flag(0.6, "overlap from which the weaker of two detections goes", bounds=SHARE)
    max_det: int = flag(300, "most detections in a picture", bounds=Range(1))
    task: str = flag(
        "val",
        "the split to score, or speed, study (accuracy and speed over picture sizes), benchmark (all pictures square)",
        choices=TASKS,
    )
    device: str = flag("", "'cpu', '0', for several processes '0,1'; empty for the first GPU, else the CPU")
    workers: int = flag(
        8, "loader processes, at most one per core (on a CPU: the cores above two)", bounds=Range(0, 10_000)
    )
    single_cls: bool = flag(False, "score all classes as one")
    augment: bool = flag(False, "test-time augmentation: three scales, one mirrored")
    verbose: bool = flag(False, "a line for each class however many there are")
    save_txt: bool = flag(False, "write labels/*.txt")
    save_hybrid: bool = flag(False, "write the labels and the detections together (the metrics then say nothing)")
    save_conf: bool = flag(False, "add the confidence to labels/*.txt")
    save_json: bool = flag(
        False, "write detections in COCO's JSON, and score them as COCO does where there are annotations in its JSON"
    )
    annotations: str = flag(
        "", "annotations in COCO's JSON to score by, with --save-json", shown="the split's, where one is found"
    )
    project: str = flag(str(ROOT / "runs/val"), "results go to project/name")
    name: str = flag("exp", "results go to project/name")
    exist_ok: bool = flag(False, "write into project/name even if it exists")
    half: bool = flag(False, "16 bits: .pt weights on a GPU, OpenVINO on CPUs that have them")
    trust: bool = flag(False, "open files that can run code (TorchScript, engines, TensorFlow, AOTInductor) too")
    dnn: bool = flag(False, "OpenCV's DNN module for ONNX files")


def complete(opt: ValOptions) -> ValOptions:
    """Fill in what was not given: the newest weights, and the data that they were trained with."""
    weights = [str(find_weights(file)) for file in choose_weights(opt.weights)]
    return replace(opt, weights=weights, data=opt.data or str(trained_with(weights).get("data", "shapes.yaml")))


def as_trained(opt: ValOptions, model: DetectMultiBackend, data: DataConfig) -> ValOptions:
    """The options with `single_cls` where the weights' one class is the one that train.py --single-cls makes."""
    if opt.single_cls or data.nc == 1 or list(model.names) != ["item"]:
        return opt
    LOGGER.info(f"--single-cls (the weights were trained with it): the {data.nc} classes of {data.file} count as one")
    return replace(opt, single_cls=True)


def check_fit(opt: ValOptions, model: DetectMultiBackend, data: DataConfig) -> tuple[Path, ...]:
    """The paths of the split to score. Raises ValueError where weights and data do not go together."""
    split = opt.task if opt.task in ("train", "test") else "val"
    if not (paths := getattr(data, split)):
        raise ValueError(f"{data.file}: has no {split!r} split; add it, or choose another --task")
    if not opt.single_cls and (known := len(model.names)) != data.nc:
        raise ValueError(
            f"the weights know {known} class{'es' * (known != 1)}, {data.file} has {data.nc}: name the data set they "
            f"were trained on by --data{', or give --single-cls if they were trained with it' * (known == 1)}"
        )
    if opt.conf_thres > 0.001 and opt.task not in TIMING:
        LOGGER.warning(f"--conf-thres {opt.conf_thres} leaves out weak detections: mAP comes out lower than with 0.001")
    if opt.save_hybrid:
        LOGGER.warning("--save-hybrid puts the labels among the detections: P, R and mAP say nothing")
    return paths


def is_coco(data: DataConfig) -> bool:
    """Whether the data set is COCO itself, whose JSON is written unasked."""
    return bool(data.file) and data.file.name == "coco.yaml"


def wants_json(opt: ValOptions, data: DataConfig) -> bool:
    """Whether detections are written in COCO's JSON."""
    return opt.task not in TIMING and bool(opt.save_json or opt.annotations or is_coco(data))


def find_truth(opt: ValOptions, data: DataConfig, images: Sequence[str]) -> CocoTruth | None:
    """The COCO annotations to score by, held against the images and classes that are scored; None without a JSON.

    Raises ValueError where they fit neither.
    """
    if not wants_json(opt, data):
        return None
    split = opt.task if opt.task in ("train", "test") else "val"
    file = opt.annotations or find_annotations(data.root, split, (Path(image).parent for image in images))
    return read_truth(Path(file), images, data.names, merged=opt.single_cls) if file else None


def open_report(
    opt: ValOptions, data: DataConfig, images: Sequence[str], folder: Path, callbacks: Callbacks | None
) -> Report:
    """What writes all that is wanted of these images into a folder. Raises ValueError as `find_truth` does."""
    with agreed():
        truth = find_truth(opt, data, images) if is_main() else None
    rows = folder / f"{Path(opt.weights[0]).stem}_predictions.json"
    settings = ReportSettings(
        folder,
        ["item"] if opt.single_cls else data.names,
        plots=opt.task not in TIMING,
        txt=opt.save_txt or opt.save_hybrid,
        confidence=opt.save_conf,
        json=rows if wants_json(opt, data) else None,
        categories=COCO_IDS if is_coco(data) else None,
        truth=truth,
    )
    report = Report(settings, callbacks=callbacks)
    if settings.txt or (settings.json and not truth):
        report.name_images(images)
    return report


def side_of(opt: ValOptions, model: DetectMultiBackend) -> int:
    """The side in pixels that pictures are fitted into; ValueError for exported files of oblong pictures."""
    height, width = model.picture_size(opt.imgsz)
    if height != width:
        raise ValueError(
            f"{opt.weights[0]} takes pictures of {height} x {width} pixels: scoring needs a square, or --dynamic"
        )
    return height


@contextmanager
def new_folder(opt: ValOptions) -> Iterator[Path]:
    """A new numbered folder for the results, the same one in every process; gone again if nothing comes of it."""
    path = Path(opt.project) / opt.name
    with ExitStack() as stack:
        with agreed():
            folder = stack.enter_context(claimed(path, opt.exist_ok)) if is_main() else None
        yield broadcast(folder)


def validate(
    opt: ValOptions, model: DetectMultiBackend, data: DataConfig, callbacks: Callbacks | None = None
) -> ValResult | None:
    """Score one model on one split at one picture size; of several processes only the main one gets the result."""
    with new_folder(opt) as folder:
        return validate_into(folder, opt, model, data, callbacks)


def validate_into(
    folder: Path, opt: ValOptions, model: DetectMultiBackend, data: DataConfig, callbacks: Callbacks | None
) -> ValResult | None:
    """`validate`, with the folder that its results go to."""
    opt = as_trained(opt, model, data)
    paths, stride = check_fit(opt, model, data), max(int(model.stride), 32)
    imgsz, rect = side_of(opt, model), model.shape is None and opt.task != "benchmark"
    pad = 0.0 if opt.task in TIMING else 0.5
    prefix, shared = (
        colorstr(f"{opt.task}: "),
        {"single_cls": opt.single_cls, "workers": loader_workers(opt.workers, model.device), "nc": data.nc},
    )
    loader, dataset = create_dataloader(
        paths, imgsz, opt.batch_size, stride, pad=pad, rect=rect, prefix=prefix, rank=rank(), **shared
    )
    if is_main():
        warn_of_crowds(map(len, dataset.labels), opt.max_det)
    share = my_share()
    loader = own_batches(loader, *share)
    report = open_report(opt, data, list(dataset.img_files), folder, callbacks)
    settings = EvalSettings(
        opt.conf_thres, opt.iou_thres, opt.max_det, opt.single_cls, opt.save_hybrid, model.fp16, None, *share
    )
    model.warmup((1, 3, imgsz, imgsz))
    result = evaluate(
        lambda images: model(images, augment=opt.augment, val=True), loader, data.names, model.device, settings, report
    )
    with agreed():
        dataset.check_stand_ins()
    if result is None:
        return None
    log_table(result, per_class=opt.verbose or (1 < data.nc < 50 and not opt.single_cls))
    LOGGER.info(speed_line(result, (min(opt.batch_size, len(dataset)), 3, imgsz, imgsz)))
    report.finish(result)
    LOGGER.info(f"Results saved to {colorstr('bold', shown(report.settings.folder))}")
    return result


def study(opt: ValOptions, data: DataConfig, device: torch.device, folder: Path) -> list[ValResult]:
    """Accuracy and speed of each weights file over a range of picture sizes, as text tables and a plot."""
    results = []
    for weights in opt.weights:
        rows = []
        for size in STUDY_SIZES:
            LOGGER.info(f"\n{weights} at {size} pixels")
            one = replace(
                opt,
                weights=[weights],
                imgsz=size,
                iou_thres=0.7,
                name=f"{folder.name}/{Path(weights).stem}_{size}",
                exist_ok=True,
            )
            model = DetectMultiBackend([weights], device=device, fp16=opt.half, trust=opt.trust)
            if result := validate(one, model, data):
                results.append(result)
                rows.append(" ".join(f"{value:10.4g}" for value in (*result.summary, *result.speed)))
        if is_main():
            table = folder / f"study_{Path(data.file or 'data').stem}_{Path(weights).stem}.txt"
            table.write_text("\n".join(rows) + "\n")
    if is_main():
        plot_val_study(dir=folder, x=list(STUDY_SIZES))
    LOGGER.info(f"Study saved to {shown(folder)}")
    return results


def score(opt: ValOptions, callbacks: Callbacks | None = None) -> ValResult | list[ValResult] | None:
    """Do the task that the options ask for, together with the other processes if torchrun started several.

    Raises ValueError for files and options that cannot work.
    """
    opt = complete(opt)
    meet()
    device = own_device(opt.device)
    data = DataConfig.load(check_yaml(opt.data))
    prepare(data)
    if opt.task == "study":
        with new_folder(opt) as folder:
            return study(opt, data, device, folder)
    if opt.task == "speed":
        opt = replace(opt, conf_thres=0.25, iou_thres=0.45, save_json=False)
    model = DetectMultiBackend(opt.weights, device=device, dnn=opt.dnn, fp16=opt.half, trust=opt.trust)
    return validate(opt, model, data, callbacks)


def run(
    callbacks: Callbacks | None = None, **given: object
) -> tuple[tuple[float, ...], list[float], tuple[float, ...]]:
    """`val.run(weights="best.pt")`: returns ((P, R, mAP50, mAP50-95, box, obj, cls), mAP per class, ms per picture).

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
    """Command line: a mistake of the user's is one line and exit status 1."""
    return run_script(ValOptions, lambda given: score(options(ValOptions, given)), __doc__, argv, "stopped")


if __name__ == "__main__":
    sys.exit(main())
