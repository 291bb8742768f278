"""Where a run stands, and the checkpoints that remember all of it."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from utils.base.files import replacing
from utils.base.log import LOGGER
from utils.checkpoints.checkpoint import describe_model, load_checkpoint, save_checkpoint, strip_optimizer
from utils.distributed.processes import is_joined, is_main
from utils.evaluation.evaluator import ValResult
from utils.training.guard import TrainingFault
from utils.training.setup import FULL_STATE, PIECES, Setup
from utils.training.trainer import Position, Trainer


class EarlyStopping:
    """Says stop when `patience` epochs have passed since fitness last rose strictly; patience 0 never does."""

    def __init__(self, patience: int = 30) -> None:
        self.patience = patience or math.inf
        self.best_fitness, self.best_epoch = -math.inf, 0
        self.possible_stop = False

    def __call__(self, epoch: int, fitness: float) -> bool:
        """Return True when this should be the last epoch; `possible_stop` is set when the next one may be."""
        if fitness > self.best_fitness:
            self.best_epoch, self.best_fitness = epoch, float(fitness)
        self.possible_stop = epoch - self.best_epoch >= self.patience - 1
        if stop := self.exhausted(epoch):
            LOGGER.info(f"Stopping early: no improvement in {self.patience} epochs since epoch {self.best_epoch}")
        return stop

    def exhausted(self, epoch: int) -> bool:
        """Return whether patience was at its end when this epoch was over."""
        return epoch - self.best_epoch >= self.patience


@dataclass(slots=True)
class Progress:
    """Where the run stands: `history` has a row of results.csv for each finished epoch, beginning with its number."""

    stopper: EarlyStopping
    maps: np.ndarray  # mAP of each class after the last validation
    position: Position = field(default_factory=Position)
    best_fitness: float = 0.0
    history: list[list[float]] = field(default_factory=list)
    result: ValResult | None = None

    @property
    def summary(self) -> tuple[float, ...]:
        """P, R, mAP50, mAP50-95 and the three losses of the last validation, zeros before the first."""
        return self.result.summary if self.result else (0.0,) * 7

    @property
    def last_epoch(self) -> int:
        """The last finished epoch, -1 before there is one."""
        return self.position.epoch - 1


def begin_or_restore(setup: Setup, trainer: Trainer, batches: int) -> Progress:
    """Return where the run stands; one that goes on gives the new trainer the state that its checkpoint was written in.

    `batches` are those of an epoch. The trainer's model has its weights. Raise ValueError for another script's run.
    """
    progress, resumed = Progress(EarlyStopping(setup.opt.patience), np.zeros(len(setup.names))), setup.resumed
    if not resumed:
        return progress
    begun, here = resumed.get("classes", trainer.classes), trainer.classes  # older files have none
    if begun != here:
        raise ValueError(f"--resume: begun with {begun}, this script has {here}; go on with the script that began it")
    trainer.optimizer.load_state_dict(resumed["optimizer"])
    trainer.ema.ema.load_state_dict(resumed["ema"]["state_dict"])
    trainer.ema.updates = resumed["updates"]
    if trainer.precision.scaler.is_enabled() and resumed["scaler"]:
        trainer.precision.scaler.load_state_dict(resumed["scaler"])
    trainer.loss.load_state_dict(resumed["loss"])
    trainer.guard.accept()
    trainer.guard.skipped, trainer.guard.streak, trainer.split = itemgetter("skipped", "streak", "split")(resumed)
    progress.position = Position(**resumed["position"])
    progress.stopper.best_epoch, progress.stopper.best_fitness = resumed["stopper"].values()
    progress.maps, progress.history = np.array(resumed["maps"]), resumed["history"]
    progress.best_fitness = resumed["best_fitness"]
    if progress.position.batch and resumed["batches"] != batches:
        LOGGER.warning(
            f"an epoch had {resumed['batches']} batches and has {batches} now: epoch {progress.position.epoch} is "
            "begun again"
        )
        progress.position = Position(progress.position.epoch)
    return progress


def cut_finer(trainer: Trainer, setup: Setup, epoch: int) -> None:
    """After memory ran out: go back to the last step, and compute every batch in twice as many pieces from then on.

    Raise TrainingFault where a single image was too much; and where several processes train together, as the others are
    in the middle of their batches and wait for this one's gradients: the next try then cuts its batches so.
    """
    trainer.split *= 2
    if is_joined():
        (setup.folder / "weights" / PIECES).write_text(str(trainer.split), encoding="utf-8")
        raise TrainingFault(f"out of memory in epoch {epoch}; --resume goes on in smaller pieces")
    if trainer.split >= 2 * setup.opt.batch_size:
        raise TrainingFault(
            f"out of memory in epoch {epoch} with a single image: begin a new run with a smaller --imgsz or --cfg"
        )
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.guard.undo()
    torch.cuda.empty_cache()
    LOGGER.warning(f"out of memory: every batch is now computed in {trainer.split} pieces, with the same steps")


class CheckpointWriter:
    """Writes a run's checkpoints in the main process, each whole or not at all, last.pt always last.

    So whenever the process dies, last.pt is a state from which the run goes on, and the files beside it are those that
    belong to that state or are written again before it changes.
    """

    def __init__(self, setup: Setup, trainer: Trainer, progress: Progress, batches: int) -> None:
        self.setup, self.trainer, self.progress, self.batches = setup, trainer, progress, batches
        self.last, self.best = (setup.folder / "weights" / name for name in ("last.pt", "best.pt"))
        self.saved = time.monotonic()  # when last.pt was written last
        if is_main():
            for leftover in setup.folder.rglob(".*.tmp"):  # of a process that died while it wrote
                leftover.unlink(missing_ok=True)

    def save(self, improved: bool = False) -> None:
        """Write best.pt when this is the best, epochN.pt when its time has come, then last.pt.

        They hold all that the run depends on from here on: the random numbers follow from seed and position. Raise
        TrainingFault instead of overwriting good weights with numbers that are not finite.
        """
        trainer, progress, setup = self.trainer, self.progress, self.setup
        content: dict[str, Any] = {
            "epoch": progress.last_epoch,
            "position": asdict(progress.position),
            "batches": self.batches,
            "best_fitness": progress.best_fitness,
            "imgsz": trainer.settings.imgsz,
            "model": describe_model(trainer.model),
            "ema": describe_model(trainer.ema.ema),
            "updates": trainer.ema.updates,
            "optimizer": trainer.optimizer.state_dict(),
            "recipe": asdict(trainer.schedule.recipe),
            "classes": trainer.classes,
            "precision": trainer.precision.name,
            "scaler": trainer.precision.scaler.state_dict(),
            "loss": trainer.loss.state_dict(),
            "split": trainer.split,
            "skipped": trainer.guard.skipped,
            "streak": trainer.guard.streak,
            "stopper": {"best_epoch": progress.stopper.best_epoch, "best_fitness": progress.stopper.best_fitness},
            "maps": progress.maps.tolist(),
            "history": progress.history,
            "hyp": asdict(setup.hyp),
            "options": asdict(setup.opt),
            "date": datetime.now().isoformat(),
        }
        values = [*content["model"]["state_dict"].values(), *content["ema"]["state_dict"].values()]
        if not all(value.isfinite().all() for value in values):
            raise TrainingFault(f"the weights are not finite any more; {self.last} holds the last good ones")
        period, epoch = setup.opt.save_period, progress.last_epoch
        if improved:
            save_checkpoint(self.best, content)
        if progress.position.batch == 0 and period > 0 and epoch > 0 and epoch % period == 0:
            save_checkpoint(self.last.with_name(f"epoch{epoch}.pt"), content)
        save_checkpoint(self.last, content)
        self.saved = time.monotonic()

    def finish(self) -> None:
        """Strip last.pt to what inference needs; all of it stays in resume.pt, for a run that is to be extended."""
        if not self.last.exists() or load_checkpoint(self.last).get("optimizer") is None:
            return  # a finished run had nothing to do, or somebody stripped it meanwhile: resume.pt may have more
        if not self.setup.opt.nosave:
            with replacing(self.last.with_name(FULL_STATE)) as beside:
                try:
                    os.link(self.last, beside)
                except OSError:  # a file system without links
                    shutil.copyfile(self.last, beside)
        strip_optimizer(self.last)
        self.last.with_name(PIECES).unlink(missing_ok=True)
