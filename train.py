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

import math
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from typing import Any

import numpy as np
from torch import nn

from models.experimental import load_model
from models.initial import build_model
from models.yolo import Model
from utils.base.callbacks import Callbacks
from utils.base.config import check_img_size
from utils.base.devices import seed_everything, tune_cuda
from utils.base.log import LOGGER, colorstr, set_up_logging
from utils.base.networks import moved
from utils.base.options import options
from utils.base.paths import shown
from utils.base.progress import epoch_line, is_terminal, memory_in_use, memory_name
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
from utils.evaluation.reports import Report
from utils.loggers import check_loggers
from utils.loggers.run import write_scales
from utils.prepare.dataset_tools import write_report
from utils.search.evolve import evolve
from utils.training.anchors import check_anchors
from utils.training.autobatch import autobatch
from utils.training.guard import Interrupted, Interruption, OutOfMemory, StoppableLoader
from utils.training.loss import ComputeLoss
from utils.training.optim import ModelEMA, Recipe, Schedule, build_optimizer, choose_recipe
from utils.training.precision import Precision
from utils.training.setup import Setup, build_loaders, open_folder, set_up
from utils.training.state import CheckpointWriter, Progress, begin_or_restore, cut_finer
from utils.training.train_options import TrainOptions
from utils.training.trainer import EpochSettings, Position, Trainer


def train(opt: TrainOptions, callbacks: Callbacks | None = None, given: Collection[str] = ()) -> tuple[float, ...]:
    """Train, and return (P, R, mAP50, mAP50-95, box, obj, cls losses) of the best checkpoint.

    `given` are the names of the options that were asked for, as a resumed run keeps all others; none if left out.
    Raise ValueError, before anything is written, for options, files or data that cannot work; Interrupted after SIGINT
    or SIGTERM, with the state saved; TrainingFault for a run that cannot go on.
    """
    setup = set_up(opt, given)
    with setup.hold:  # a folder that nobody else trains in
        run = begin(setup, callbacks or Callbacks())
        opt, trainer, progress, callbacks = setup.opt, run.trainer, run.progress, run.callbacks
        with run.saved():
            start, began = progress.position.epoch, time.time()
            callbacks.run("on_train_start")
            run.score_start()
            if is_main() and not setup.resumed and not opt.nosave:
                run.writer.save()
            stop = progress.stopper.exhausted(progress.last_epoch)
            while (epoch := progress.position.epoch) < opt.epochs and not stop:  # train, validate, save
                epoch_began, losses = time.monotonic(), None
                callbacks.run("on_train_epoch_start")
                run.loader.sampler.set_epoch(epoch, trainer.schedule.is_plain(epoch), progress.position.batch)
                if opt.image_weights:
                    weights = epoch_weights(run.dataset.labels, trainer.model.class_weights, progress.maps)
                    run.loader.sampler.set_weights(weights)
                with suppress(OutOfMemory):  # it holds the memory until this block is left
                    losses = trainer.epoch(run.loader, progress.position, run.after_step)
                if losses is None:
                    cut_finer(trainer, setup, epoch)
                    continue
                with agreed():
                    run.dataset.check_stand_ins()
                callbacks.run("on_train_epoch_end", epoch=epoch)
                stop = broadcast(run.end_epoch(losses, epoch_began))
            run.vote.finish()
            skipped = f"; {trainer.guard.skipped} steps were not finite and skipped" * bool(trainer.guard.skipped)
            epochs, hours = progress.position.epoch - start, (time.time() - began) / 3600
            LOGGER.info(f"\n{epochs} epochs completed in {hours:.3f} hours{skipped}.")
            return run.finish()


def begin(setup: Setup, callbacks: Callbacks) -> Run:
    """Build the network, its loaders and all that trains it, in the state that a resumed run was left in."""
    opt = setup.opt
    check_loggers(opt.loggers)
    precision = Precision.choose(opt.amp, setup.device, setup.resumed)  # raises before there is a folder
    seed_everything(opt.seed + 1 + max(rank(), 0), deterministic=opt.deterministic)
    tune_cuda(one_shape=not (opt.multi_scale or opt.rect))
    model = build_model(setup)
    stride = max(int(model.stride.max()), 32)
    imgsz = check_img_size(opt.imgsz, stride, floor=stride * 2)
    if opt.batch_size < 0:
        largest = autobatch(model, imgsz, dtype=precision.dtype)
        setup.opt = opt = replace(opt, batch_size=min(gather(largest)) * world_size())
    loader, dataset, val_loader = build_loaders(setup, imgsz, stride, opt.batch_size)
    if is_main():
        open_folder(setup, dataset.index.all_labels, callbacks)
        if report := write_report(setup.folder, {"train": dataset.problems, "val": val_loader.dataset.problems}):
            LOGGER.warning(f"what is wrong with images and labels, one by one: {shown(report)}")
        if not setup.resumed and not opt.noautoanchor:
            check_anchors(dataset, model, setup.hyp.anchor_t, imgsz, rng=np.random.default_rng(opt.seed))
        warn_of_crowds(map(len, val_loader.dataset.labels), opt.max_det)
        callbacks.run("on_pretrain_routine_end")
    model.hyp = asdict(setup.hyp.scaled(model.model[-1].nl, model.nc, imgsz, opt.label_smoothing))
    model.class_weights = labels_to_class_weights([dataset.index.all_labels], model.nc).to(setup.device) * model.nc
    trainer = build_trainer(setup, model, len(loader), imgsz, precision, callbacks)
    LOGGER.info(
        f"Image sizes {imgsz} train, {imgsz} val\nUsing {loader.num_workers} dataloader workers\n"
        f"Logging results to {colorstr('bold', shown(setup.folder))}\nStarting training for {opt.epochs} epochs..."
    )
    progress = begin_or_restore(setup, trainer, len(loader))
    writer = CheckpointWriter(setup, trainer, progress, len(loader))
    return Run(setup, trainer, loader, dataset, val_loader, callbacks, progress, writer)


def build_trainer(
    setup: Setup, model: Model, batches: int, imgsz: int, precision: Precision, callbacks: Callbacks
) -> Trainer:
    """Build loss, optimiser, schedule and weight average around the model, for epochs of so many batches."""
    opt, hyp, device = setup.opt, setup.hyp, setup.device
    steps = opt.epochs * batches // max(round(hyp.nominal_batch / opt.batch_size), 1)
    chosen = choose_recipe(opt.optimizer, hyp, steps, opt.batch_size, setup.covered)
    recipe = Recipe(**setup.resumed["recipe"]) if setup.resumed else chosen  # a longer run may have another by now
    optimizer = build_optimizer(model, recipe)
    LOGGER.info(f"optimizer: {type(optimizer).__name__}({recipe})\n{precision}")
    ema = ModelEMA(model, tau=hyp.ema_tau, steps=recipe.steps)
    net: nn.Module = model
    if is_joined():
        net = convert_sync_batchnorm(model, device) if opt.sync_bn else model
        net = nn.parallel.DistributedDataParallel(net, device_ids=[device.index] if device.type == "cuda" else None)
    schedule = Schedule(hyp, recipe, opt.epochs, batches, opt.batch_size, opt.cos_lr)
    settings = EpochSettings(
        opt.epochs, imgsz, int(model.stride.max()), opt.multi_scale, opt.quad, hyp.clip_norm or np.inf, opt.seed
    )
    loss = ComputeLoss(model, shared=True)
    return Trainer(net, model, loss, optimizer, schedule, ema, precision, settings, callbacks)


@dataclass(slots=True)
class Run:
    """A training run: what it works with, and where it stands."""

    setup: Setup
    trainer: Trainer
    loader: Any
    dataset: Any
    val_loader: Any
    callbacks: Callbacks
    progress: Progress
    writer: CheckpointWriter
    vote: Vote = field(default_factory=Vote)
    interruption: Interruption = field(default_factory=Interruption)

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Let signals stop training between two steps only; save it before a signal or a dead loader ends it."""
        try:
            with self.interruption:
                yield
        except (WorkerFault, Interrupted) as stop:
            self.trainer.guard.undo()
            hint = f"go on with --resume {shown(self.writer.last)}"
            if is_main():
                self.writer.save()
            if isinstance(stop, WorkerFault) and not self.interruption.number:
                raise WorkerFault(f"{stop}; saved, {hint}") from None
            if is_main():
                LOGGER.warning(f"stopped and saved; {hint}")
            # a signal to this process went to its loaders too
            raise (stop if isinstance(stop, Interrupted) else Interrupted(self.interruption.number)) from None
        finally:
            self.callbacks.run("teardown")

    def after_step(self) -> None:
        """Between two steps the state is whole: save it when it is time, stop when any process got a signal."""
        minutes = self.setup.opt.save_minutes
        if is_main() and minutes > 0 and time.monotonic() - self.writer.saved >= 60 * minutes:
            self.writer.save()
        if self.vote(bool(self.interruption.number)):
            raise Interrupted(self.interruption.number or signal.SIGTERM)

    def score_start(self) -> None:
        """Validate weights that cover the head before they are trained, as epoch -1, so that a fall is seen."""
        opt, progress, recipe = self.setup.opt, self.progress, self.trainer.schedule.recipe
        if recipe.covered != "head" or progress.history or progress.position != Position() or opt.noval or opt.evolve:
            return
        began, progress.position = time.monotonic(), Position(-1)
        try:
            self.end_epoch([math.nan] * 3, began)
        finally:  # where it was interrupted, too
            progress.position = Position()

    def end_epoch(self, losses: list[float], began: float) -> bool:
        """Validate, log, save; `losses` are the epoch's, `began` is its start. Return whether training is to stop."""
        opt, progress, trainer, epoch = self.setup.opt, self.progress, self.trainer, self.progress.position.epoch
        final = epoch + 1 == opt.epochs
        trainer.ema.update_attr(trainer.model, include=["yaml", "nc", "hyp", "names", "stride", "class_weights"])
        if scored := final or not opt.noval:
            copy_from_main(trainer.ema.ema)
            loss = ComputeLoss(trainer.ema.ema)  # as it stands; a validation must not move it
            loss.load_state_dict(trainer.loss.state_dict())
            report = Report(self.setup.folder, self.setup.names, False, compute_loss=loss, callbacks=self.callbacks)
            progress.result = self.validate(trainer.ema.ema, report)
            if progress.result:  # in the main process
                progress.maps = progress.result.metrics.maps
                self.callbacks.run("on_val_metrics", progress.result.metrics, epoch)
        progress.position = Position(epoch + 1)
        if not is_main():
            return False
        self.log_epoch(losses, scored, began)
        values = [*losses, *progress.summary, *map(itemgetter("lr"), trainer.optimizer.param_groups)]
        progress.history.append([epoch, *values])
        write_scales(self.setup.folder / "residual.csv", trainer.ema.ema, epoch)
        score = float(fitness(np.array(progress.summary).reshape(1, -1))[0])
        stop = (scored and progress.stopper(epoch, score)) or self.callbacks.stop_training
        improved = score > progress.best_fitness or not self.writer.best.exists()
        progress.best_fitness = max(score, progress.best_fitness)
        self.callbacks.run("on_fit_epoch_end", values, epoch, progress.best_fitness, score)
        if final or stop or not opt.nosave:
            self.writer.save(improved)
            self.callbacks.run("on_model_save", self.writer.last, epoch, final, progress.best_fitness, score)
        return stop

    def log_epoch(self, losses: list[float], scored: bool, began: float) -> None:
        """On a terminal the rows of the table that its bars began, elsewhere one line."""
        device, epoch, epochs = self.setup.device, self.progress.last_epoch, self.setup.opt.epochs
        result = self.progress.result if scored else None
        if epoch < 0 and result:
            LOGGER.info(epoch_line("before the first epoch", (), result.summary[:4], ()))
        elif not is_terminal():
            rest = [f"{memory_name(device)} {memory_in_use(device)}", f"{time.monotonic() - began:.1f} s"]
            if self.trainer.pace and epoch + 1 < epochs:
                rest.append(f"{self.trainer.pace.left(epoch + 1)} left")
            LOGGER.info(epoch_line(f"epoch {epoch}/{epochs - 1}", losses, result.summary[:4] if result else (), rest))
        elif result:
            log_table(result)

    def validate(self, model: nn.Module, report: Report) -> ValResult | None:
        """Score a model on the validation split, together with the other processes; the main one has the result."""
        opt, dtype, (first, stride) = self.setup.opt, self.trainer.precision.dtype, my_share()
        settings = EvalSettings(
            max_det=opt.max_det, single_cls=opt.single_cls, autocast=dtype, first=first, stride=stride,
            tiling=self.setup.tiling, imgsz=self.trainer.settings.imgsz)  # fmt: skip
        loader = StoppableLoader(self.val_loader, self.interruption)
        result = evaluate(model.eval(), loader, self.setup.names, self.setup.device, settings, report)
        with agreed():
            self.val_loader.dataset.check_stand_ins()
        report.finish(result)
        return result

    def finish(self) -> tuple[float, ...]:
        """Strip the checkpoints to what inference needs, validate the best one with plots, say where it all is.

        last.pt is stripped at the very end, so that a run which dies here can still go on.
        """
        setup, results, best = self.setup, self.progress.summary, self.writer.best
        if is_main() and best.exists():
            strip_optimizer(best)
            kept = ", the start, as no epoch was better" * (self.progress.stopper.best_epoch < 0)
            LOGGER.info(f"\nValidating {shown(best)}{kept}...")
        stored = broadcast(load_checkpoint(best)["model"] if is_main() and best.exists() else None)
        if stored:
            model = moved(load_model({"model": stored}).fuse(), setup.device)
            plots = setup.opt.evolve is None  # of hundreds of trials nobody looks at the images
            result = self.validate(model, Report(setup.folder, setup.names, plots, compute_loss=ComputeLoss(model)))
            if result:
                log_table(result, per_class=True)
                results = result.summary
        if not is_main():
            return ()
        self.writer.finish()
        self.callbacks.run("on_train_end", self.writer.last, best, True, self.progress.last_epoch, results)
        LOGGER.info(f"Results saved to {colorstr('bold', shown(setup.folder))}")
        return results


def start(given: dict[str, Any]) -> TrainOptions:
    """Train, or search hyper-parameters, with the options that were given, by name; return all of them."""
    opt = options(TrainOptions, given)
    train(opt, given=given) if opt.evolve is None else evolve(opt, train)
    return opt


def run(**given: Any) -> TrainOptions:
    """`train.run(data="coco128.yaml", imgsz=320)`: the command line as keyword arguments; return the options."""
    set_up_logging(is_main())
    return start(given)


def main(argv: list[str] | None = None) -> int:
    """Run the command line: a mistake of the user's is one line and exit status 1."""
    return run_script(TrainOptions, start, __doc__, argv, "stopped; what last.pt holds goes on with --resume")


if __name__ == "__main__":
    sys.exit(main())
