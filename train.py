"""Train a YOLOv5 detector, with or without bi-level routing attention.

python train.py                                                        # the embedded data set, nano model, from scratch
python train.py --data coco128.yaml --cfg yolov5s_BiFormer.yaml --imgsz 640
python train.py --data pcb.yaml --weights runs/train/exp/weights/best.pt --epochs 50
python train.py --resume                                               # go on with the newest run
python train.py --resume --epochs 500                                  # the same, for longer than it was planned
python train.py --resume auto --name night --data pcb.yaml             # go on with it if it was begun, else begin it
python train.py --evolve 100 --data pcb.yaml                           # search hyper-parameters
torchrun --nproc-per-node 2 train.py --data coco.yaml --cfg yolov5m_BiFormer.yaml --device 0,1
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import nn

from models.experimental import load_model
from models.initial import build_model
from models.yolo import Model
from utils.base.callbacks import Callbacks
from utils.base.config import check_img_size
from utils.base.devices import seed_everything
from utils.base.log import LOGGER, colorstr, set_up_logging
from utils.base.options import options
from utils.base.paths import shown
from utils.base.progress import is_terminal
from utils.checkpoints.checkpoint import load_checkpoint, strip_optimizer
from utils.data.loader_faults import WorkerFault
from utils.data.samplers import epoch_weights, labels_to_class_weights
from utils.distributed.processes import (
    Vote,
    agreed,
    broadcast,
    copy_from_main,
    gather,
    is_joined,
    is_main,
    my_share,
    rank,
    world_size,
)
from utils.distributed.script import run_script
from utils.distributed.sync_bn import convert_sync_batchnorm
from utils.evaluation.evaluator import EvalSettings, ValResult, evaluate, log_table, warn_of_crowds
from utils.evaluation.metrics import fitness
from utils.evaluation.reports import Report, ReportSettings
from utils.loggers import check_loggers
from utils.prepare.dataset_report import write_report
from utils.search.evolve import evolve
from utils.training.anchors import check_anchors
from utils.training.autobatch import check_train_batch_size
from utils.training.average import ModelEMA
from utils.training.guard import OutOfMemory
from utils.training.interruption import Interrupted, Interruption, Watched
from utils.training.loaders import build_loaders
from utils.training.loss import ComputeLoss
from utils.training.optim import Recipe, Schedule, build_optimizer, choose_recipe
from utils.training.precision import Precision
from utils.training.setup import Setup, open_folder, set_up
from utils.training.state import Keeper, Progress, remember_pieces, restore
from utils.training.train_options import TrainOptions
from utils.training.trainer import EpochSettings, Trainer


def build_trainer(
    setup: Setup, model: Model, batches: int, batch_size: int, imgsz: int, callbacks: Callbacks
) -> Trainer:
    """Loss, optimiser, schedule and weight average around the model, in the state that a resumed run was left in."""
    opt, hyp, device = setup.opt, setup.hyp, setup.device
    steps = opt.epochs * batches // max(round(hyp.nominal_batch / batch_size), 1)
    recipe = choose_recipe(opt.optimizer, hyp, steps, batch_size)
    if setup.resumed:  # a longer run may have another one by now
        recipe = Recipe(**setup.resumed["recipe"])
    optimizer = build_optimizer(model, recipe)
    LOGGER.info(
        f"optimizer: {recipe.optimizer}(lr={recipe.lr:g}, momentum={recipe.momentum:g}, "
        f"weight_decay={recipe.weight_decay:g})"
    )
    ema = ModelEMA(model, tau=hyp.ema_tau)
    net: nn.Module = model
    if is_joined():
        net = convert_sync_batchnorm(model, device) if opt.sync_bn else model
        net = nn.parallel.DistributedDataParallel(net, device_ids=[device.index] if device.type == "cuda" else None)
    schedule = Schedule(hyp, recipe, opt.epochs, batches, batch_size, opt.cos_lr)
    settings = EpochSettings(
        opt.epochs, imgsz, int(model.stride.max()), opt.multi_scale, opt.quad, hyp.clip_norm, opt.seed
    )
    precision = Precision.choose(opt.amp, device, setup.resumed)
    LOGGER.info(str(precision))
    loss = ComputeLoss(model, shared=True)
    trainer = Trainer(net, model, loss, optimizer, schedule, ema, precision, settings, callbacks)
    if setup.resumed:
        restore(trainer, setup.resumed)
    return trainer


class Run:
    """A training run: what it works with, where it stands, and the story of its epochs."""

    def __init__(self, setup: Setup, trainer: Trainer, loaders: tuple[Any, Any, Any], callbacks: Callbacks) -> None:
        self.setup, self.opt, self.trainer, self.callbacks = setup, setup.opt, trainer, callbacks
        self.loader, self.dataset, self.val_loader = loaders
        self.progress = Progress.begin(len(setup.names), self.opt.patience, setup.resumed, len(self.loader))
        self.keeper = Keeper(setup, trainer, self.progress, len(self.loader))
        self.vote, self.told = Vote(), Interruption()

    def whole(self) -> tuple[float, ...]:
        """All epochs and what comes after them; returns (P, R, mAP50, mAP50-95, box, obj, cls) of the best checkpoint.

        An interruption is saved before it is passed on as Interrupted.
        """
        with self.told:
            try:
                self.fit()
                return self.finish()
            except Interrupted:
                if is_main():
                    self.keeper.save()
                    LOGGER.warning(f"stopped and saved; go on with --resume {shown(self.keeper.last)}")
                raise
            except WorkerFault as fault:
                self.trainer.take_back()
                if is_main():
                    self.keeper.save()
                if self.told.number:  # whoever told this process told its loader processes too
                    raise Interrupted(self.told.number) from None
                raise WorkerFault(f"{fault}; saved, go on with --resume {shown(self.keeper.last)}") from None
            except OutOfMemory as fault:
                remember_pieces(self.setup.weights, fault.pieces)
                raise

    def fit(self) -> None:
        """Epoch after epoch: train, validate, save, until the end or until nothing improves."""
        opt, progress, position = self.opt, self.progress, self.progress.position
        start, began = position.epoch, time.time()
        self.callbacks.run("on_train_start")
        if is_main() and not self.setup.resumed and not opt.nosave:
            self.keeper.save()
        stop = progress.stopper.exhausted(progress.last_epoch)
        while position.epoch < opt.epochs and not stop:
            self.callbacks.run("on_train_epoch_start")
            plain = position.epoch >= opt.epochs - self.setup.hyp.close_mosaic
            self.loader.sampler.set_epoch(position.epoch, plain, position.batch)
            if opt.image_weights:
                weights = epoch_weights(self.dataset.labels, self.trainer.model.class_weights, progress.maps)
                self.loader.sampler.set_weights(weights)
            losses = self.trainer.epoch(self.loader, position, self.after_step)
            with agreed():
                self.dataset.check_stand_ins()
            self.callbacks.run("on_train_epoch_end", epoch=position.epoch)
            stop = broadcast(self.take_stock(losses))
        self.vote.finish()
        skipped = f"; {self.trainer.guard.skipped} steps were not finite and skipped" * bool(self.trainer.guard.skipped)
        hours = (time.time() - began) / 3600
        LOGGER.info(f"\n{position.epoch - start} epochs completed in {hours:.3f} hours{skipped}.")

    def after_step(self) -> None:
        """Between two steps the state is whole: save it when it is time, stop when any process was told to."""
        self.keeper.after_step()
        if self.vote(bool(self.told.number)):
            raise Interrupted(self.told.number or signal.SIGTERM)

    def take_stock(self, losses: list[float]) -> bool:
        """After an epoch: validate, tell the loggers, save. True when training is to stop."""
        opt, progress, trainer, epoch = self.opt, self.progress, self.trainer, self.progress.position.epoch
        final = epoch + 1 == opt.epochs
        trainer.ema.update_attr(trainer.model, include=["yaml", "nc", "hyp", "names", "stride", "class_weights"])
        if scored := final or not opt.noval:
            copy_from_main(trainer.ema.ema)
            progress.result = self.validate(trainer.ema.ema, self.loss_of(trainer.ema.ema))
        progress.position.next_epoch()
        if not is_main():
            return False
        if scored and progress.result:
            progress.maps = progress.result.metrics.maps
            self.callbacks.run("on_val_metrics", progress.result.metrics, epoch)
        self.log_epoch(losses, progress.result if scored else None)
        values = [*losses, *progress.summary, *trainer.step_sizes]
        progress.history.append([epoch, *values])
        score = float(fitness(np.array(progress.summary).reshape(1, -1))[0])
        stop = (scored and progress.stopper(epoch, score)) or self.callbacks.stop_training
        self.keep(values, score, final, final or stop or not opt.nosave)
        return stop

    def log_epoch(self, losses: list[float], result: ValResult | None) -> None:
        """On a terminal the rows of the table that its bars began, elsewhere one line."""
        if not is_terminal():
            LOGGER.info(self.trainer.line(self.progress.last_epoch, losses, result.summary[:4] if result else ()))
        elif result:
            log_table(result)

    def keep(self, values: list[float], score: float, final: bool, save: bool) -> None:
        """Enter an epoch's row of results and its fitness, and save what they belong to."""
        progress, epoch = self.progress, self.progress.last_epoch
        improved = score > progress.best_fitness or not self.keeper.best.exists()
        progress.best_fitness = max(score, progress.best_fitness)
        self.callbacks.run("on_fit_epoch_end", values, epoch, progress.best_fitness, score)
        if save:
            self.keeper.save(improved)
            self.callbacks.run("on_model_save", self.keeper.last, epoch, final, progress.best_fitness, score)

    def loss_of(self, model: nn.Module) -> ComputeLoss:
        """The training loss as it stands, for a validation that must not move it."""
        loss = ComputeLoss(model)
        loss.load_state_dict(self.trainer.loss.state_dict())
        return loss

    def validate(self, model: nn.Module, loss: ComputeLoss, report: Report | None = None) -> ValResult | None:
        """Score a model on the validation split, together with the other processes; the main one has the result."""
        setup = self.setup
        report = report or Report(ReportSettings(setup.folder, setup.names, plots=False), loss, self.callbacks)
        report.progress = is_terminal()
        model.eval()
        half = setup.device.type == "cuda" and report.settings.plots
        first, every = my_share()
        settings = EvalSettings(
            max_det=self.opt.max_det,
            single_cls=self.opt.single_cls,
            half=half,
            autocast=None if half else self.trainer.precision.dtype,
            first=first,
            stride=every,
        )
        loader = Watched(self.val_loader, self.told)
        result = evaluate(model.half() if half else model, loader, setup.names, setup.device, settings, report)
        with agreed():
            self.val_loader.dataset.check_stand_ins()
        report.finish(result)
        return result

    def finish(self) -> tuple[float, ...]:
        """Strip the checkpoints to what inference needs, validate the best one with plots, say where it all is.

        last.pt is stripped at the very end, so that a run which dies here can still go on.
        """
        setup, results, best = self.setup, self.progress.summary, self.keeper.best
        if is_main() and best.exists():
            strip_optimizer(best)
            LOGGER.info(f"\nValidating {shown(best)}...")
        stored = broadcast(load_checkpoint(best)["model"] if is_main() and best.exists() else None)
        if stored:
            model = load_model({"model": stored}).fuse().to(setup.device)
            loss = ComputeLoss(model)
            plots = self.opt.evolve is None  # of hundreds of trials nobody looks at the pictures
            result = self.validate(model, loss, Report(ReportSettings(setup.folder, setup.names, plots), loss))
            if result:
                log_table(result, per_class=True)
                results = result.summary
        if not is_main():
            return ()
        self.keeper.finish()
        self.callbacks.run("on_train_end", self.keeper.last, best, True, self.progress.last_epoch, results)
        LOGGER.info(f"Results saved to {colorstr('bold', shown(setup.folder))}")
        return results


def train(opt: TrainOptions, callbacks: Callbacks | None = None, given: Collection[str] = ()) -> tuple[float, ...]:
    """The whole story; returns (P, R, mAP50, mAP50-95, box, obj, cls losses) of the best checkpoint.

    `given` are the names of the options that were asked for, as a resumed run keeps all others; none if left out.
    Raises ValueError, before anything is written, for options, files or data that cannot work; Interrupted after SIGINT
    or SIGTERM, with the state saved; TrainingFault for a run that cannot go on.
    """
    setup = set_up(opt, given)
    with setup.hold:
        return train_in(setup, callbacks or Callbacks())


def train_in(setup: Setup, callbacks: Callbacks) -> tuple[float, ...]:
    """The story from the model on, in a folder that nobody else trains in."""
    opt = setup.opt
    check_loggers(opt.loggers)
    Precision.choose(opt.amp, setup.device, setup.resumed)  # raises before there is a folder
    seed_everything(opt.seed + 1 + max(rank(), 0), deterministic=opt.deterministic)
    model = build_model(setup)
    stride = max(int(model.stride.max()), 32)
    imgsz = check_img_size(opt.imgsz, stride, floor=stride * 2)
    if opt.batch_size < 0:
        setup.opt = opt = replace(opt, batch_size=min(gather(check_train_batch_size(model, imgsz))) * world_size())
    loader, dataset, val_loader = loaders = build_loaders(setup, imgsz, stride, opt.batch_size)
    if is_main():
        open_folder(setup, dataset.index.all_labels, callbacks)
        if report := write_report(setup.folder, {"train": dataset.problems, "val": val_loader.dataset.problems}):
            LOGGER.warning(f"what is wrong with pictures and labels, one by one: {shown(report)}")
        if not setup.resumed and not opt.noautoanchor:
            check_anchors(dataset, model, setup.hyp.anchor_t, imgsz, rng=np.random.default_rng(opt.seed))
        warn_of_crowds(map(len, val_loader.dataset.labels), opt.max_det)
        callbacks.run("on_pretrain_routine_end")
    levels = model.model[-1].nl
    model.hyp = asdict(setup.hyp.scaled(levels, model.nc, imgsz, opt.label_smoothing))
    model.class_weights = labels_to_class_weights([dataset.index.all_labels], model.nc).to(setup.device) * model.nc
    trainer = build_trainer(setup, model, len(loader), opt.batch_size, imgsz, callbacks)
    LOGGER.info(
        f"Image sizes {imgsz} train, {imgsz} val\nUsing {loader.num_workers} dataloader workers\n"
        f"Logging results to {colorstr('bold', shown(setup.folder))}\nStarting training for {opt.epochs} epochs..."
    )
    try:
        return Run(setup, trainer, loaders, callbacks).whole()
    finally:
        callbacks.run("teardown")


def run(**given: Any) -> TrainOptions:
    """`train.run(data="coco128.yaml", imgsz=320)`: the command line as keyword arguments; returns the options."""
    set_up_logging(is_main())
    opt = options(TrainOptions, given)
    train(opt, given=given) if opt.evolve is None else evolve(opt, train)
    return opt


def main(argv: list[str] | None = None) -> int:
    """Command line: a mistake of the user's is one line and exit status 1."""
    stopped = "stopped; what last.pt holds goes on with --resume"
    return run_script(TrainOptions, lambda given: run(**given), __doc__, argv, stopped)


if __name__ == "__main__":
    sys.exit(main())
