"""Search for better hyper-parameters: `train.py --evolve N`, in one process or in many that share a storage.

The story of one worker: find the search or begin it, then claim a trial, propose hyper-parameters, train them, enter
the outcome, until all N trials are done, whoever did them. `docs/search.md` says how to use it.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.base.callbacks import Callbacks
from utils.base.config import DataConfig, Hyp
from utils.base.log import LOGGER, one_line
from utils.base.paths import check_yaml
from utils.base.yaml import write_yaml
from utils.data.loader_faults import WorkerFault
from utils.distributed.processes import world_size
from utils.distributed.run_lock import Busy
from utils.evaluation.metrics import fitness
from utils.search.plot import plot_evolve
from utils.search.proposals import Turn, build_pruner, build_sampler, check_sampler, distributions
from utils.search.space import SearchSpace
from utils.search.storage import (
    TABLE,
    Place,
    check_same,
    find_place,
    load_optuna,
    named_storage,
    open_storage,
    shared_options,
    sign,
)  # fmt: skip
from utils.search.tables import METRICS, best_of, summary, write_tables
from utils.search.trials import BEAT, DRAWN, Claim, Ledger, Pulse
from utils.training.train_options import TrainOptions, check_options

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import Trial

Train = Callable[[TrainOptions, Callbacks], tuple[float, ...]]
POLL = 2.0  # seconds between looks at the others' trials when there is nothing else to do
FAULTS = (FloatingPointError, RuntimeError)  # a training that breaks down: its hyper-parameters may be to blame
PATIENCE = 3  # trainings in a row that may break down in one worker until they are not


def evolve(opt: TrainOptions, train: Train) -> Path:
    """Train `opt.evolve` sets of hyper-parameters, the first being those of `opt.hyp`; returns the search's folder.

    Every worker of a search calls this. It returns when all trials are done, its own and the others'.

    Args:
        train: one training by options and hooks; returns (P, R, mAP50, mAP50-95, box, obj, cls losses). It must raise
            when it is interrupted: whatever it returns counts as the outcome.

    Raises:
        ValueError: options, files or packages that cannot work, of the search or of a training.
        ConnectionError: a database that stopped answering.
    """
    optuna = load_optuna()
    opt, space = prepare(opt)
    named = named_storage(opt)
    storage = open_storage(named) if named else None  # a mistake in it is to leave no folder behind
    place = find_place(opt)
    try:
        ledger = join(opt, place, space, storage or open_storage(place.storage))
        Worker(opt, place, space, train, ledger).work()
    except optuna.exceptions.StorageInternalError as error:
        raise ConnectionError(f"--evolve-storage {place.about} does not answer ({one_line(error)})") from None
    return place.folder


def prepare(opt: TrainOptions) -> tuple[TrainOptions, SearchSpace]:
    """The options of all trainings, and the space around the hyp file. Raises ValueError for what cannot work."""
    if opt.evolve is None or opt.evolve < 1:
        raise ValueError(f"--evolve {opt.evolve}: the number of trials must be at least 1")
    if world_size() > 1:
        raise ValueError("--evolve trains in single processes; start more workers instead of torchrun (docs/search.md)")
    if opt.resume not in (False, True):
        raise ValueError("--resume takes no file with --evolve; name the search by --project and --name")
    check_options(opt)
    DataConfig.load(check_yaml(opt.data))
    space = SearchSpace.around(Hyp.load(check_yaml(opt.hyp)), anchors=not opt.noautoanchor)
    check_sampler(opt.evolve_sampler, space)
    build_pruner(opt.evolve_pruner, opt.epochs)
    LOGGER.info(
        f"evolving {len(space.keys)} hyper-parameters, keeping {', '.join(space.kept) or 'none'} as in the file"
    )
    if opt.optimizer == "auto":
        LOGGER.info("--optimizer auto would ignore lr0 and momentum: all trials train with SGD, YOLOv5's own choice")
        opt = replace(opt, optimizer="SGD")
    return opt, space


def join(opt: TrainOptions, place: Place, space: SearchSpace, storage: BaseStorage) -> Ledger:
    """Begin the search, or join it. Raises ValueError when it is one with other options, or no search of ours."""
    study = load_optuna().create_study(
        storage=storage, study_name=place.study, direction="maximize", load_if_exists=True
    )
    ours = shared_options(opt) | {f"hyp's {key}": value for key, value in asdict(space.hyp).items()}
    if study.get_trials(deepcopy=False) and "options" not in study.user_attrs:
        raise ValueError(f"{place.about} holds a study named {place.study} of another program; choose another --name")
    check_same(place, ours, study.user_attrs.get("options", {}))
    sign(place, opt)
    if "options" not in study.user_attrs:
        study.set_user_attr("options", ours)
    return Ledger(storage, storage.get_study_id_from_name(place.study))


@dataclass(slots=True)
class Worker:
    """One process of a search."""

    opt: TrainOptions
    place: Place
    space: SearchSpace
    train: Train
    ledger: Ledger
    breakdowns: int = 0  # in a row

    def work(self) -> None:
        """Train what nobody else does until nothing is missing; then tables and picture."""
        total, waited_for = self.opt.evolve or 0, None
        while missing := self.ledger.missing(total):
            if claim := self.ledger.claim(total):
                self.run(claim)
                continue
            if missing != waited_for:
                numbers = ", ".join(map(str, missing))
                LOGGER.info(f"waiting for other workers' trials {numbers}; those of a worker that dies are taken over")
                waited_for = missing
            time.sleep(POLL)
        self.write_tables()
        plot_evolve(self.place.folder / TABLE)
        LOGGER.info(summary(self.place.folder, self.ledger.finished()))

    def run(self, claim: Claim) -> None:
        """One trial, from its hyper-parameters to its outcome."""
        trial = self.propose(claim)
        options, callbacks = self.options_of(claim, self.space.filled(trial.params)), Callbacks()
        referee = Referee(trial, callbacks, self.opt.epochs)
        if self.opt.evolve_pruner != "none":
            callbacks.subscribe(referee)
        began, reason = "going on with" if claim.inherited else "starting", ""
        LOGGER.info(f"{began} trial {claim.number} of {self.opt.evolve}")
        try:
            with Pulse(self.ledger, claim, lost=referee.stop):
                results = self.train(options, callbacks)
            self.breakdowns = 0
        except Busy as error:  # whoever lost this trial, and not yet noticed
            self.ledger.drop(claim)
            LOGGER.warning(f"trial {claim.number}: {one_line(error)}; trying again in {BEAT:.0f} s")
            time.sleep(BEAT)
            return
        except WorkerFault:  # the machine's fault, not that of the hyper-parameters
            self.ledger.drop(claim)
            raise
        except FAULTS as error:
            results, reason = self.blame(claim, error), one_line(error)
        except BaseException:
            self.ledger.drop(claim)
            raise
        self.enter(claim, results, reason, referee.pruned)

    def propose(self, claim: Claim) -> Trial:
        """Optuna's trial with its hyper-parameters, those of the first attempt where there was one."""
        optuna = load_optuna()
        finished = [attempt for _, attempt in self.ledger.finished()]
        turn = Turn(claim.number, self.opt.seed, finished, lambda name, value: self.ledger.note(claim, name, value))
        study = optuna.load_study(
            study_name=self.place.study,
            storage=self.ledger.storage,
            sampler=build_sampler(self.opt.evolve_sampler, self.space, turn),
            pruner=build_pruner(self.opt.evolve_pruner, self.opt.epochs),
        )
        trial = optuna.Trial(study, claim.attempt)
        for key, limits in distributions(self.space).items():
            trial.suggest_float(key, limits.low, limits.high, log=limits.log)
        self.ledger.note(claim, DRAWN, True)
        return trial

    def options_of(self, claim: Claim, hyp: Hyp) -> TrainOptions:
        """The options of a trial, in a folder of its own.

        As in YOLOv5, nothing is saved and nothing is scored before the last epoch, unless a pruner asks for scores.
        `evolve` stays set, so that `train` can tell a trial from a run of its own.
        """
        folder = self.place.folder / "trials" / str(claim.number)
        folder.mkdir(parents=True, exist_ok=True)
        write_yaml(folder / "hyp.yaml", asdict(hyp))
        blind = self.opt.evolve_pruner == "none"
        return replace(
            self.opt,
            hyp=str(folder / "hyp.yaml"),
            project=str(folder.parent),
            name=folder.name,
            exist_ok=True,
            resume="auto",  # with what a worker left that died
            noval=blind,
            patience=0 if blind else self.opt.patience,  # without scores every epoch looks like no improvement
            nosave=True,
            save_period=-1,
            loggers=["none"],
            evolve_storage="",  # may hold a password, and options are written down
        )

    def blame(self, claim: Claim, error: Exception) -> Sequence[float]:
        """The outcome of a training that broke down: no fitness at all.

        Raises ValueError, and gives the trial back, when the hyper-parameters cannot be the reason: the first trial's
        are the user's own, and several in a row are no chance.
        """
        self.breakdowns += 1
        if claim.number == 0 or self.breakdowns >= PATIENCE:
            self.ledger.drop(claim)
            found = "the --hyp file's own trial" if claim.number == 0 else f"{self.breakdowns} trials in a row"
            raise ValueError(f"--evolve: {found} broke down ({one_line(error)}); mend that, then go on with --resume")
        LOGGER.warning(f"trial {claim.number} broke down and counts with fitness 0: {one_line(error)}")
        return (0.0,) * len(METRICS)

    def enter(self, claim: Claim, results: Sequence[float], reason: str, pruned: bool) -> None:
        """Keep the outcome where all workers see it, and bring the tables up to date."""
        results = [float(value) for value in results[: len(METRICS)]]
        score = float(fitness(np.array([results]))[0])
        if not math.isfinite(score):
            results, score, reason = [0.0] * len(METRICS), 0.0, "its metrics are not numbers"
        state = "PRUNED" if pruned and not reason else "COMPLETE"
        if not self.ledger.finish(claim, state, score, results, reason):
            LOGGER.warning(f"trial {claim.number} had been taken over by another worker, whose outcome counts")
            return
        shutil.rmtree(self.place.folder / "trials" / str(claim.number) / "weights", ignore_errors=True)
        self.write_tables()
        finished = self.ledger.finished()
        number, best = best_of(finished)
        LOGGER.info(
            f"trial {claim.number}: fitness {score:.5g}{', given up early' if pruned else ''}; {len(finished)} of"
            f" {self.opt.evolve} done, the best is trial {number} with {best.value:.5g}"
        )

    def write_tables(self) -> None:
        """evolve.csv, trials.csv and hyp_evolve.yaml from what all workers have found."""
        write_tables(self.place.folder, self.ledger, self.space, self.opt)


class Referee:
    """Hears of every epoch and stops a training that the pruner gives up, or that another worker has taken over."""

    def __init__(self, trial: Trial, callbacks: Callbacks, epochs: int) -> None:
        self.trial, self.callbacks, self.epochs = trial, callbacks, epochs
        self.pruned = False

    def stop(self) -> None:
        """Let the current epoch be the last."""
        self.callbacks.stop_training = True

    def on_fit_epoch_end(self, values: Sequence[float], epoch: int, best_fitness: float, fitness: float) -> None:
        """Report an epoch's fitness, under the number of epochs done, and ask whether to go on."""
        from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

        done = epoch + 1
        if done >= self.epochs:
            return
        try:
            self.trial.report(fitness if math.isfinite(fitness) else 0.0, done)
            self.pruned = self.trial.should_prune()
        except UpdateFinishedTrialError:
            self.stop()
        except (StorageInternalError, OSError) as error:  # the training is worth more than this epoch's question
            LOGGER.warning(f"epoch {epoch} could not be reported to the search ({one_line(error)})")
        if self.pruned:
            self.stop()
