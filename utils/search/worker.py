"""One worker of a search: claim a trial, propose hyper-parameters, train them, record the outcome, until all is done.

A trial of the search has a number from 0 on; an *attempt* is one training of it, and one trial of Optuna's. Where a
worker dies, whoever sees it first ends its attempt and makes another one of the same number and hyper-parameters.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from optuna import pruners
from optuna.exceptions import OptunaError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from utils.base.callbacks import Callbacks
from utils.base.log import LOGGER, one_line
from utils.base.paths import shown
from utils.base.yaml import write_yaml
from utils.data.loader_faults import WorkerFault
from utils.distributed.run_lock import Busy, seen_alive, this_worker
from utils.evaluation.metrics import fitness
from utils.search import results as files
from utils.search.proposals import propose
from utils.search.results import METRICS, REASON, RESULTS, WORKER
from utils.search.space import SearchSpace
from utils.training.train_options import TrainOptions

DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # their packages
ATTEMPTS = 5  # at opening a database: the first workers may all be making its tables
POLL = 2.0  # seconds between visits to the storage when there is nothing else to do
BEAT, SILENCE = 60.0, 900.0  # seconds between heartbeats, and without any until a worker elsewhere counts as dead
PATIENCE = 3  # trainings in a row that may break down in one worker until hyper-parameters are not to blame
HEARTBEAT, NUMBER = "heartbeat", "number"  # user attributes of an attempt; NUMBER of one that was made again only
Train = Callable[[TrainOptions, Callbacks], tuple[float, ...]]


def open_storage(url: str, shown_as: str) -> BaseStorage:
    """Open the storage behind a database URL or a journal's path, made when there is none.

    Raise ValueError where it cannot be opened, or a file is no journal: Optuna would go on in it.
    """
    if "://" in url:
        return _open_database(url, shown_as)
    path = Path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        line, end, _ = path.read_bytes().partition(b"\n") if path.exists() else (b"", b"", b"")
        if end and not {"op_code", "worker_id"} <= set(json.loads(line)):
            raise ValueError("its first line is no operation")
        return JournalStorage(JournalFileBackend(url, lock_obj=_JournalLock(url)))
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise ValueError(f"{shown(path)}: is not the journal of a search ({error}); name another file") from None


def _open_database(url: str, shown_as: str) -> BaseStorage:
    from sqlalchemy.exc import SQLAlchemyError

    waits = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}  # seconds, for another worker
    for attempt in range(ATTEMPTS):
        try:
            return get_storage(RDBStorage(url, engine_kwargs={"pool_pre_ping": True} | waits))
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or "the database's driver"
            package = DRIVERS.get(missing, missing)
            raise ValueError(f"--evolve-storage {shown_as}: needs a package: pip install {package}") from None
        except (SQLAlchemyError, OptunaError, RuntimeError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            time.sleep(0.5 * attempt)
    raise ValueError(f"--evolve-storage {shown_as}: cannot be opened ({reason})")


class _JournalLock(JournalFileOpenLock):
    """Optuna's lock, whose holder first cuts off half a line of a worker that was killed, or had no disk left."""

    def acquire(self) -> bool:
        """Wait for the lock; mend the journal, which could not be read any more with a next line behind that half."""
        super().acquire()
        try:
            with open(self._lock_file.removesuffix(".lock"), "rb+") as file:
                if (size := file.seek(0, os.SEEK_END)) and (file.seek(size - 1), file.read())[1] != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        except BaseException:
            self.release()  # others need not wait until it counts as left behind
            raise
        return True


class Worker:
    """One process of a search."""

    def __init__(self, opt: TrainOptions, folder: Path, space: SearchSpace, train: Train, study: Study) -> None:
        self.opt, self.folder, self.space, self.train, self.study = opt, folder, space, train, study
        self.storage, self.me, self.total = study._storage, this_worker(), opt.evolve or 0
        self.breakdowns = 0  # in a row
        self._seen: dict[int, tuple[Any, float]] = {}  # attempt: last heartbeat, and when it was new to us
        first = max(opt.epochs // 16, 1)  # epoch at which trainings that fall behind the others may be given up
        study.pruner = {
            "median": pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=first),
            "halving": pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=4),
            "hyperband": pruners.HyperbandPruner(min_resource=first, max_resource=opt.epochs, reduction_factor=4),
        }.get(opt.evolve_pruner, pruners.NopPruner())

    def work(self) -> None:
        """Train what nobody else does until all trials are done, with the tables up to date; then draw the search."""
        known, is_waiting = 0, False
        while True:
            done = [pair for pair in self.attempts() if pair[1].state in (TrialState.COMPLETE, TrialState.PRUNED)]
            done.sort(key=lambda pair: pair[0])
            if len(done) != known:
                best = files.write_tables(self.folder, done, self.space, self.opt)
                LOGGER.info(f"{len(done)} of {self.total} trials done, the best is {best}")
            if (known := len(done)) >= self.total:
                break
            if claim := self.claim():
                self.run(*claim, [attempt for _, attempt in done])
                continue
            if not is_waiting:
                LOGGER.info("waiting for other workers' trials; those of a worker that dies are taken over")
            is_waiting = True
            time.sleep(POLL)
        files.plot_evolve(self.folder / files.TABLE)
        LOGGER.info(f"Results saved to {shown(self.folder)}; train with --hyp {shown(self.folder / files.BEST_HYP)}")

    def attempts(self) -> list[tuple[int, FrozenTrial]]:
        """Return all attempts with the numbers of their trials, in the order in which they were made."""
        numbers, attempts = count(), self.study.get_trials(deepcopy=False)
        return [(one.user_attrs[NUMBER] if NUMBER in one.user_attrs else next(numbers), one) for one in attempts]

    def claim(self) -> tuple[int, int] | None:
        """Return number and attempt of the next trial to train, one that a dead worker left first; None without any."""
        for number, attempt in self.attempts():
            if attempt.state == TrialState.RUNNING and not self.is_alive(attempt):
                with suppress(UpdateFinishedTrialError):  # another worker was faster
                    self.storage.set_trial_state_values(attempt._trial_id, TrialState.FAIL)
                    return self.begin(attempt.params, attempt.distributions, {NUMBER: number})
        if sum(attempt.state != TrialState.FAIL for _, attempt in self.attempts()) >= self.total:
            return None
        return self.begin({}, {}, {})

    def begin(self, params: dict[str, Any], limits: dict[str, Any], notes: dict[str, Any]) -> tuple[int, int] | None:
        """Return number and id of a new attempt, with this worker's name from the start; None if it is one too many.

        All workers see the attempts in one order: of several that begin the last trial at once, be it in a dead
        worker's place, the later give it up.
        """
        about = notes | {WORKER: self.me, HEARTBEAT: 0}
        attempt = create_trial(state=TrialState.RUNNING, params=params, distributions=limits, user_attrs=about)
        mine = self.storage.create_new_trial(self.study._study_id, attempt)
        for number, other in [pair for pair in self.attempts() if pair[1].state != TrialState.FAIL][: self.total]:
            if other._trial_id == mine:
                LOGGER.info(f"{'going on with' if notes else 'starting'} trial {number} of {self.total}")
                return number, mine
        self.storage.set_trial_state_values(mine, TrialState.FAIL)
        return None

    def is_alive(self, attempt: FrozenTrial) -> bool:
        """Return whether somebody trains an attempt: its process here, or elsewhere a heartbeat that changes."""
        worker, beat = attempt.user_attrs[WORKER], attempt.user_attrs[HEARTBEAT]
        if worker is None or worker == self.me:  # given back; and we claim only while we train nothing
            return False
        if (alive := seen_alive(worker, self.me)) is not None:
            return alive
        if attempt.number not in self._seen or self._seen[attempt.number][0] != beat:
            self._seen[attempt.number] = beat, time.monotonic()
        return time.monotonic() - self._seen[attempt.number][1] < SILENCE

    def run(self, number: int, attempt: int, done: list[FrozenTrial]) -> None:
        """Train one trial and record its outcome; a training that breaks down by chance counts with fitness 0."""
        sampler = self.opt.evolve_sampler, self.opt.seed
        trial, callbacks = propose(self.study, attempt, self.space, sampler, number, done), Callbacks()
        results, reason = (0.0,) * len(METRICS), ""
        try:
            with self.heartbeat(trial, callbacks):
                results = self.train(self.options_of(number, trial), callbacks)
            self.breakdowns = 0
        except BaseException as error:
            may_be_hyp = isinstance(error, (FloatingPointError, RuntimeError)) and not isinstance(error, WorkerFault)
            reason, self.breakdowns = one_line(error), self.breakdowns + may_be_hyp
            if not may_be_hyp or number == 0 or self.breakdowns >= PATIENCE:
                with suppress(UpdateFinishedTrialError):
                    trial.set_user_attr(WORKER, None)  # whoever comes first goes on with it
                if may_be_hyp:
                    found = f"{self.breakdowns} trials in a row" if number else "the --hyp file's own trial"
                    words = f"--evolve: {found} broke down ({reason}); mend that, then go on with --resume"
                    raise ValueError(words) from None
                if not isinstance(error, Busy):
                    raise
                LOGGER.warning(f"trial {number}: {reason}; trying again in {BEAT:.0f} s")
                time.sleep(BEAT)  # whoever lost this trial, and trains on, will have noticed
                return
            LOGGER.warning(f"trial {number} broke down and counts with fitness 0: {reason}")
        self.record(number, trial, [float(value) for value in results[: len(METRICS)]], reason, callbacks.stop_training)

    def options_of(self, number: int, trial: Trial) -> TrainOptions:
        """Return the options of a trial, in a folder of its own, where it goes on with what a dead worker left.

        As in YOLOv5, nothing is saved and nothing is scored before the last epoch, unless a pruner asks for scores.
        """
        folder, is_scored = self.folder / "trials" / str(number), self.opt.evolve_pruner != "none"
        folder.mkdir(parents=True, exist_ok=True)
        write_yaml(folder / "hyp.yaml", asdict(self.space.filled(trial.params)))
        patience = self.opt.patience if is_scored else 0  # without scores no epoch is an improvement
        storage = ""  # may hold a password, and options are written down
        opt = replace(self.opt, hyp=str(folder / "hyp.yaml"), project=str(folder.parent), name=folder.name)
        opt = replace(opt, exist_ok=True, resume="auto", noval=not is_scored, patience=patience, evolve_storage=storage)
        return replace(opt, nosave=True, save_period=-1, loggers=["none"])

    @contextmanager
    def heartbeat(self, trial: Trial, callbacks: Callbacks) -> Iterator[None]:
        """Show workers elsewhere that this one lives, and the pruner every epoch.

        The training stops where the pruner, or a worker that has heard nothing for longer than SILENCE, gives it up.
        """
        over = threading.Event()

        def send(what: Callable[..., Any], *values: Any) -> None:
            """Tell the storage something, or ask it whether to stop."""
            try:
                if what(*values):
                    callbacks.stop_training = True
            except UpdateFinishedTrialError:
                callbacks.stop_training = True
            except (StorageInternalError, OSError) as error:  # it may answer the next time
                LOGGER.warning(f"the search's storage does not answer ({one_line(error)})")

        def beat() -> None:
            beats = count(1)
            while not over.wait(BEAT):
                send(self.storage.set_trial_user_attr, trial._trial_id, HEARTBEAT, next(beats))

        def report(values: Any, epoch: int, best_fitness: float, fitness: float) -> None:
            if epoch + 1 < self.opt.epochs:
                send(trial.report, fitness if math.isfinite(fitness) else 0.0, epoch + 1)
                send(trial.should_prune)

        if self.opt.evolve_pruner != "none":
            callbacks.register_action("on_fit_epoch_end", "pruner", report)
        thread = threading.Thread(target=beat, name="search heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=BEAT)

    def record(self, number: int, trial: Trial, results: list[float], reason: str, is_pruned: bool) -> None:
        """Keep the outcome where all workers see it.

        Where the storage does not answer, the trial is not lost: whoever goes on with it finds it trained to the end.
        """
        score = float(fitness(np.array([results]))[0])
        if not math.isfinite(score):
            results, score, reason = [0.0] * len(METRICS), 0.0, "its metrics are not numbers"
        state = TrialState.PRUNED if is_pruned and not reason else TrialState.COMPLETE
        try:
            trial.set_user_attr(RESULTS, results)
            trial.set_user_attr(REASON, reason)
            self.storage.set_trial_state_values(trial._trial_id, state, [score])
        except UpdateFinishedTrialError:
            LOGGER.warning(f"trial {number} had been taken over by another worker, whose outcome counts")
            return
        shutil.rmtree(self.folder / "trials" / str(number) / "weights", ignore_errors=True)
        LOGGER.info(f"trial {number}: fitness {score:.5g}{', given up early' if is_pruned else ''}")
