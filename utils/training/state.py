"""Where a run stands, and the checkpoints that remember all of it."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from utils.base.files import replacing
from utils.base.log import LOGGER
from utils.checkpoints.checkpoint import describe_model, load_checkpoint, save_checkpoint, strip_optimizer
from utils.distributed.processes import is_main
from utils.evaluation.evaluator import ValResult
from utils.training.average import EarlyStopping
from utils.training.guard import TrainingFault
from utils.training.setup import FULL_STATE, PIECES, Setup
from utils.training.trainer import Position, Trainer


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

    @classmethod
    def begin(cls, classes: int, patience: int, resumed: dict[str, Any] | None, batches: int) -> Progress:
        """A new run's, or that of one which goes on and has `batches` batches in an epoch."""
        progress = cls(EarlyStopping(patience), np.zeros(classes))
        if not resumed:
            return progress
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


def restore(trainer: Trainer, resumed: dict[str, Any]) -> None:
    """Give a new trainer the state of the one that wrote a checkpoint (its model has its weights already)."""
    trainer.optimizer.load_state_dict(resumed["optimizer"])
    trainer.ema.ema.load_state_dict(resumed["ema"]["state_dict"])
    trainer.ema.updates = resumed["updates"]
    if trainer.precision.scaler.is_enabled() and resumed["scaler"]:
        trainer.precision.scaler.load_state_dict(resumed["scaler"])
    trainer.loss.load_state_dict(resumed["loss"])
    trainer.guard.skipped, trainer.guard.streak = resumed["skipped"], resumed["streak"]
    trainer.split = resumed["split"]


class Keeper:
    """Writes a run's checkpoints in the main process, each whole or not at all, last.pt always last.

    So whenever the process dies, last.pt is a state from which the run goes on, and the files beside it are those that
    belong to that state or are written again before it changes.
    """

    def __init__(self, setup: Setup, trainer: Trainer, progress: Progress, batches: int) -> None:
        self.setup, self.trainer, self.progress, self.batches = setup, trainer, progress, batches
        self.last, self.best = setup.weights / "last.pt", setup.weights / "best.pt"
        self._saved = time.monotonic()
        self._is_stripped = bool(setup.resumed and setup.resumed["finished"])
        if is_main():
            for leftover in setup.folder.rglob(".*.tmp"):  # of a process that died while it wrote
                leftover.unlink(missing_ok=True)

    def content(self) -> dict[str, Any]:
        """Everything that the run depends on from here on: the random numbers follow from seed and position."""
        trainer, progress = self.trainer, self.progress
        return {
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
            "precision": trainer.precision.name,
            "scaler": trainer.precision.scaler.state_dict(),
            "loss": trainer.loss.state_dict(),
            "split": trainer.split,
            "skipped": trainer.guard.skipped,
            "streak": trainer.guard.streak,
            "stopper": {"best_epoch": progress.stopper.best_epoch, "best_fitness": progress.stopper.best_fitness},
            "maps": progress.maps.tolist(),
            "history": progress.history,
            "hyp": asdict(self.setup.hyp),
            "options": asdict(self.setup.opt),
            "date": datetime.now().isoformat(),
        }

    def save(self, improved: bool = False) -> None:
        """Write best.pt when this is the best, epochN.pt when its time has come, then last.pt.

        Raises TrainingFault instead of overwriting good weights with numbers that are not finite.
        """
        content = self.content()
        for name in ("model", "ema"):
            if not all(value.isfinite().all() for value in content[name]["state_dict"].values()):
                raise TrainingFault(f"the weights are not finite any more; {self.last} holds the last good ones")
        period, epoch = self.setup.opt.save_period, self.progress.last_epoch
        finished = self.progress.position.batch == 0
        if improved:
            save_checkpoint(self.best, content)
        if finished and period > 0 and epoch > 0 and epoch % period == 0:
            save_checkpoint(self.setup.weights / f"epoch{epoch}.pt", content)
        save_checkpoint(self.last, content)
        self._saved, self._is_stripped = time.monotonic(), False

    def after_step(self) -> None:
        """Save when `--save-minutes` have passed since the last time."""
        minutes = self.setup.opt.save_minutes
        if is_main() and minutes > 0 and time.monotonic() - self._saved >= 60 * minutes:
            self.save()

    def finish(self) -> None:
        """Strip last.pt to what inference needs; all of it stays in resume.pt, for a run that is to be extended."""
        if self._is_stripped or not self.last.exists():
            return  # a finished run that was resumed and had nothing to do
        if load_checkpoint(self.last).get("optimizer") is None:
            return  # somebody stripped it meanwhile: resume.pt, if there is one, has more
        if not self.setup.opt.nosave:
            with replacing(self.last.with_name(FULL_STATE)) as beside:
                try:
                    os.link(self.last, beside)
                except OSError:  # a file system without links
                    shutil.copyfile(self.last, beside)
        strip_optimizer(self.last)
        self.last.with_name(PIECES).unlink(missing_ok=True)


def remember_pieces(folder: Path, pieces: int) -> None:
    """After one of several processes ran out of memory: the next try cuts its batches this finely."""
    (folder / PIECES).write_text(str(pieces), encoding="utf-8")
