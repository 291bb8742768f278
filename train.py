"""Train a YOLOv5 detector, with or without bi-level routing attention.

python train.py                                                        # the embedded data set, nano model, from scratch
python train.py --data coco128.yaml --cfg yolov5s_BiFormer.yaml --imgsz 640
python train.py --data pcb.yaml --weights runs/train/exp/weights/best.pt --epochs 50
python train.py --resume                                               # go on with the newest run
torchrun --nproc-per-node 2 train.py --data coco.yaml --cfg yolov5m_BiFormer.yaml --device 0,1
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
import torch
from torch import nn

from models.experimental import attempt_load, load_model
from models.yolo import Detect, Model
from utils.autoanchor import check_anchors
from utils.autobatch import check_train_batch_size
from utils.balance import epoch_weights, labels_to_class_weights
from utils.callbacks import Callbacks
from utils.checkpoint import describe_model, save_checkpoint, strip_optimizer
from utils.config import check_img_size, options, parse, write_yaml
from utils.dataset_report import write_report
from utils.datasets import create_dataloader
from utils.dist import is_main, leave, loader_workers, rank, tell, world_size
from utils.evaluator import EvalSettings, ValResult, evaluate, log_table
from utils.log import LOGGER, colorstr, one_line, set_up_logging
from utils.loggers import subscribe_loggers
from utils.loss import ComputeLoss
from utils.metrics import fitness
from utils.optim import Schedule, build_optimizer, choose_recipe
from utils.paths import check_file, shown
from utils.reports import Report, ReportSettings
from utils.setup import DEFAULT_CFG, Setup, TrainOptions, set_up
from utils.torch_utils import EarlyStopping, ModelEMA, intersect_dicts, seed_everything
from utils.trainer import EpochSettings, Precision, Trainer


def build_model(setup: Setup) -> Model:
    """The network: from a YAML, from a checkpoint's own, with whatever weights fit; or as it was left when resuming."""
    opt, nc = setup.opt, len(setup.names)
    if setup.resumed:
        model = load_model({"model": setup.resumed["model"]})
    else:
        donor = attempt_load(str(check_file(opt.weights, (".pt",))), fuse=False) if opt.weights else None
        cfg = opt.cfg or (donor.yaml if donor else DEFAULT_CFG)
        model = Model(cfg, ch=3, nc=nc, anchors=setup.hyp.anchors)
        if not isinstance(model.model[-1], Detect) or model.yaml["ch"] != 3:
            raise ValueError(f"{opt.cfg or opt.weights}: training needs 3 input channels and Detect as the last layer")
        if donor:
            exclude = ["anchor"] if opt.cfg or setup.hyp.anchors else []
            fitting = intersect_dicts(donor.state_dict(), model.state_dict(), exclude=exclude)
            model.load_state_dict(fitting, strict=False)
            LOGGER.info(f"Transferred {len(fitting)}/{len(model.state_dict())} items from {opt.weights}")
    freeze(model, opt.freeze)
    model.names = setup.names
    # convolutions run faster on channels-last maps, 1.1x a whole step on a CPU (benchmarks/train_step.py)
    return model.to(setup.device, memory_format=torch.channels_last)


def freeze(model: Model, layers: list[int]) -> None:
    """Keep the first N layers as they are, or exactly those that are named when there are several."""
    frozen = range(layers[0]) if len(layers) == 1 else layers
    if any(not 0 <= index < len(model.model) for index in frozen):
        raise ValueError(f"--freeze {' '.join(map(str, layers))}: the model has layers 0 to {len(model.model) - 1}")
    for index, layer in enumerate(model.model):
        layer.requires_grad_(index not in frozen)


def build_loaders(setup: Setup, imgsz: int, stride: int, batch_size: int) -> tuple[Any, Any, Any]:
    """(training loader, its data set, validation loader or None outside of the main process)."""
    opt, data = setup.opt, setup.data
    shared = {"single_cls": opt.single_cls, "seed": opt.seed, "nc": len(setup.names), "hyp": setup.hyp}
    rect = opt.rect and not opt.image_weights
    per_process, workers = batch_size // world_size(), loader_workers(opt.workers, setup.device)
    loader, dataset = create_dataloader(
        data.train,
        imgsz,
        per_process,
        stride,
        augment=True,
        cache=None if opt.cache == "val" else opt.cache,
        rect=rect,
        rank=rank(),
        workers=workers,
        image_weights=opt.image_weights,
        quad=opt.quad,
        prefix=colorstr("train: "),
        shuffle=not rect,
        **shared,
    )
    val = None
    if is_main():
        val, _ = create_dataloader(
            data.val,
            imgsz,
            per_process * 2,
            stride,
            cache=None if opt.noval else opt.cache and "ram",
            rect=True,
            pad=0.5,
            workers=workers,
            prefix=colorstr("val: "),
            **shared,
        )
    return loader, dataset, val


def build_trainer(
    setup: Setup, model: Model, batches: int, batch_size: int, imgsz: int, callbacks: Callbacks
) -> Trainer:
    """Loss, optimiser, schedule and weight average around the model."""
    opt, hyp, device = setup.opt, setup.hyp, setup.device
    steps = opt.epochs * batches // max(round(hyp.nominal_batch / batch_size), 1)
    recipe = choose_recipe(opt.optimizer, hyp, steps, batch_size)
    optimizer = build_optimizer(model, recipe)
    if setup.resumed:
        optimizer.load_state_dict(setup.resumed["optimizer"])
    LOGGER.info(
        f"optimizer: {recipe.optimizer}(lr={recipe.lr:g}, momentum={recipe.momentum:g}, "
        f"weight_decay={recipe.weight_decay:g})"
    )
    ema = None
    if is_main():
        ema = ModelEMA(model, tau=hyp.ema_tau)
        if setup.resumed:
            ema.ema.load_state_dict(load_model({"model": setup.resumed["ema"]}).state_dict())
            ema.updates = setup.resumed["updates"]
    net: nn.Module = model
    if world_size() > 1:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(model) if opt.sync_bn and device.type == "cuda" else model
        net = nn.parallel.DistributedDataParallel(net, device_ids=[device.index] if device.type == "cuda" else None)
    precision = Precision.choose(opt.amp, device)
    if setup.resumed and precision.scaler.is_enabled():
        precision.scaler.load_state_dict(setup.resumed["scaler"])
    schedule = Schedule(hyp, recipe, opt.epochs, batches, batch_size, opt.cos_lr)
    settings = EpochSettings(
        opt.epochs, imgsz, int(model.stride.max()), opt.multi_scale, opt.quad, hyp.clip_norm, opt.seed
    )
    return Trainer(net, model, ComputeLoss(model), optimizer, schedule, ema, precision, settings, callbacks)


def validate(setup: Setup, model: nn.Module, loader: Any, loss: Any = None, report: Report | None = None) -> ValResult:
    """Score a model on the validation split."""
    report = report or Report(ReportSettings(setup.folder, setup.names, plots=False), loss)
    model.eval()
    half = setup.device.type == "cuda" and report.settings.plots
    precision = Precision.choose(setup.opt.amp, setup.device).dtype
    settings = EvalSettings(single_cls=setup.opt.single_cls, half=half, autocast=None if half else precision)
    result = evaluate(model.half() if half else model, loader, setup.names, setup.device, settings, report)
    report.finish(result)
    return result


@dataclass(slots=True)
class Progress:
    """Where the run stands."""

    stopper: EarlyStopping
    maps: np.ndarray  # mAP of each class after the last validation
    epoch: int = 0
    best_fitness: float = 0.0
    result: ValResult | None = None

    @property
    def summary(self) -> tuple[float, ...]:
        """The last row of results, zeros before the first validation."""
        return self.result.summary if self.result else (0.0,) * 7


def save(setup: Setup, trainer: Trainer, progress: Progress, improved: bool) -> None:
    """last.pt after every epoch, best.pt when it is, epochN.pt by period; each written whole or not at all."""
    content = {
        "epoch": progress.epoch,
        "best_fitness": progress.best_fitness,
        "model": describe_model(trainer.model),
        "ema": describe_model(trainer.ema.ema),
        "updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.precision.scaler.state_dict(),
        "stopper": {"best_epoch": progress.stopper.best_epoch, "best_fitness": progress.stopper.best_fitness},
        "maps": progress.maps.tolist(),
        "hyp": asdict(setup.hyp),
        "options": asdict(setup.opt),
        "date": datetime.now().isoformat(),
    }
    weights = setup.folder / "weights"
    names = ["last.pt"] + ["best.pt"] * improved
    if setup.opt.save_period > 0 and progress.epoch > 0 and progress.epoch % setup.opt.save_period == 0:
        names.append(f"epoch{progress.epoch}.pt")
    for name in names:
        save_checkpoint(weights / name, content)


def fit(setup: Setup, trainer: Trainer, loaders: tuple[Any, Any, Any], callbacks: Callbacks) -> Progress:
    """Epoch after epoch: train, validate, save, until the end or until nothing improves."""
    opt, (loader, dataset, val_loader) = setup.opt, loaders
    progress, start = Progress(EarlyStopping(opt.patience), np.zeros(len(setup.names))), 0
    if setup.resumed:
        start, progress.best_fitness = setup.resumed["epoch"] + 1, setup.resumed["best_fitness"]
        progress.stopper.best_epoch, progress.stopper.best_fitness = setup.resumed["stopper"].values()
        progress.maps = np.array(setup.resumed.get("maps", progress.maps))  # weighs the pictures of the first epoch
    began = time.time()
    callbacks.run("on_train_start")
    for progress.epoch in range(start, opt.epochs):
        callbacks.run("on_train_epoch_start")
        loader.sampler.set_epoch(progress.epoch, plain=progress.epoch >= opt.epochs - setup.hyp.close_mosaic)
        if opt.image_weights:
            loader.sampler.set_weights(epoch_weights(dataset.labels, trainer.model.class_weights, progress.maps))
        losses = trainer.epoch(progress.epoch, loader)
        callbacks.run("on_train_epoch_end", epoch=progress.epoch)
        stop = is_main() and take_stock(setup, trainer, progress, losses, val_loader, callbacks)
        if tell(stop):
            break
    LOGGER.info(f"\n{progress.epoch - start + 1} epochs completed in {(time.time() - began) / 3600:.3f} hours.")
    return progress


def take_stock(
    setup: Setup, trainer: Trainer, progress: Progress, losses: list[float], val_loader: Any, callbacks: Callbacks
) -> bool:
    """After an epoch, in the main process: validate, tell the loggers, save. True when training is to stop."""
    opt, epoch, weights = setup.opt, progress.epoch, setup.folder / "weights"
    final = epoch + 1 == opt.epochs
    trainer.ema.update_attr(trainer.model, include=["yaml", "nc", "hyp", "names", "stride", "class_weights"])
    if not opt.noval or final:
        progress.result = validate(setup, trainer.ema.ema, val_loader, trainer.loss)
        progress.maps = progress.result.metrics.maps
        log_table(progress.result)
    score = float(fitness(np.array(progress.summary).reshape(1, -1))[0])
    improved = score > progress.best_fitness or not (weights / "best.pt").exists()
    progress.best_fitness = max(score, progress.best_fitness)
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    callbacks.run("on_fit_epoch_end", [*losses, *progress.summary, *rates], epoch, progress.best_fitness, score)
    stop = progress.stopper(epoch, score) or callbacks.stop_training
    if not opt.nosave or final or stop:
        save(setup, trainer, progress, improved)
        callbacks.run("on_model_save", weights / "last.pt", epoch, final, progress.best_fitness, score)
    return stop


def finish(setup: Setup, progress: Progress, val_loader: Any, callbacks: Callbacks) -> tuple[float, ...]:
    """Strip the checkpoints to what inference needs, validate the best one with plots, say where it all is."""
    weights, results = setup.folder / "weights", progress.summary
    for name in ("last.pt", "best.pt"):
        if (weights / name).exists():
            strip_optimizer(weights / name)
    if (best := weights / "best.pt").exists():
        LOGGER.info(f"\nValidating {shown(best)}...")
        model = attempt_load(str(best), device=setup.device)
        report = Report(ReportSettings(setup.folder, setup.names), ComputeLoss(model))
        result = validate(setup, model, val_loader, report=report)
        log_table(result, per_class=True)
        results = result.summary
    callbacks.run("on_train_end", weights / "last.pt", best, True, progress.epoch, results)
    LOGGER.info(f"Results saved to {colorstr('bold', shown(setup.folder))}")
    return results


def train(opt: TrainOptions, callbacks: Callbacks | None = None) -> tuple[float, ...]:
    """The whole story; returns (P, R, mAP50, mAP50-95, box, obj, cls losses) of the best checkpoint.

    Raises ValueError, before anything is written, for options, files or data that cannot work.
    """
    callbacks = callbacks or Callbacks()
    setup = set_up(opt)
    opt = setup.opt
    Precision.choose(opt.amp, setup.device)  # raises for a type the device lacks, before there is a folder
    seed_everything(opt.seed + 1 + max(rank(), 0), deterministic=opt.deterministic)
    model = build_model(setup)
    stride = max(int(model.stride.max()), 32)
    imgsz = check_img_size(opt.imgsz, stride, floor=stride * 2)
    batch_size = check_train_batch_size(model, imgsz) if opt.batch_size < 0 else opt.batch_size
    loader, dataset, val_loader = loaders = build_loaders(setup, imgsz, stride, batch_size)
    if is_main():
        (setup.folder / "weights").mkdir(parents=True, exist_ok=True)
        write_yaml(setup.folder / "hyp.yaml", asdict(setup.hyp))
        write_yaml(setup.folder / "opt.yaml", asdict(opt) | {"save_dir": str(setup.folder)})
        start = setup.resumed["epoch"] + 1 if setup.resumed else 0
        subscribe_loggers(callbacks, setup.folder, setup.names, np.concatenate(dataset.labels), start)
        if report := write_report(setup.folder, {"train": dataset.problems, "val": val_loader.dataset.problems}):
            LOGGER.warning(f"what is wrong with pictures and labels, one by one: {shown(report)}")
        if not setup.resumed and not opt.noautoanchor:
            check_anchors(dataset, model, setup.hyp.anchor_t, imgsz, rng=np.random.default_rng(opt.seed))
        callbacks.run("on_pretrain_routine_end")
    levels = model.model[-1].nl
    model.hyp = asdict(setup.hyp.scaled(levels, model.nc, imgsz, opt.label_smoothing))
    model.class_weights = labels_to_class_weights(dataset.labels, model.nc).to(setup.device) * model.nc
    trainer = build_trainer(setup, model, len(loader), batch_size, imgsz, callbacks)
    LOGGER.info(
        f"Image sizes {imgsz} train, {imgsz} val\nUsing {loader.num_workers} dataloader workers\n"
        f"Logging results to {colorstr('bold', shown(setup.folder))}\nStarting training for {opt.epochs} epochs..."
    )
    progress = fit(setup, trainer, loaders, callbacks)
    return finish(setup, progress, val_loader, callbacks) if is_main() else ()


def run(**given: Any) -> TrainOptions:
    """`train.run(data="coco128.yaml", imgsz=320)`: the command line as keyword arguments; returns the options."""
    set_up_logging(is_main())
    opt = options(TrainOptions, given)
    train(opt)
    return opt


def main(argv: list[str] | None = None) -> int:
    """Command line: a mistake of the user's is one line and exit status 1."""
    set_up_logging(is_main())
    opt = parse(TrainOptions, argv, __doc__)
    try:
        train(opt)
    except (ValueError, OSError) as error:
        LOGGER.error(one_line(error))
        return 1
    except KeyboardInterrupt:
        LOGGER.warning("stopped; go on with --resume, from the last finished epoch")
        return 130
    finally:
        leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
