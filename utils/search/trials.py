"""Who trains which trial of a search: claims that hold between processes and machines, and what becomes of the dead.

A search of N trials has the numbers 0 to N-1. An *attempt* is one training of one number, and one trial of Optuna's.
The first attempt at a number has no predecessor; every attempt that failed, or whose worker died, has one heir, which
trains the same hyper-parameters. All storages number attempts in the order in which they appear, and whoever sees one
sees all before it. So nobody needs a lock: a worker makes its attempt first and looks afterwards. Of several heirs of
one attempt the first counts, and a first attempt beyond N does not; who came too late gives up before any training.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from utils.base.log import LOGGER, one_line
from utils.distributed.run_lock import seen_alive, this_worker

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

T = TypeVar("T")
BEAT, SILENCE = 60.0, 900.0  # seconds between signs of life, and without any until a worker elsewhere counts as dead
PAUSES = (1, 2, 5, 10, 30, 60, 120)  # seconds between attempts to reach a storage that does not answer
WORKER, PULSE, HEIR_OF, DRAWN, RESULTS, REASON = "worker", "pulse", "heir of", "drawn", "results", "reason"


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that this worker, and no other, is to train."""

    number: int  # of the trial in the search
    attempt: int  # Optuna's id of the attempt
    inherited: bool  # somebody else began it


class Ledger:
    """The trials of a search as all its workers see them."""

    def __init__(self, storage: BaseStorage, study: int) -> None:
        self.storage, self.study, self.me = storage, study, this_worker()
        self._heard: dict[int, tuple[Any, float]] = {}  # attempt -> last pulse, and when it was new to us

    # ---------------------------------------------------------------------------------------------------- looking
    def attempts(self) -> list[FrozenTrial]:
        """All attempts, by Optuna's number."""
        return self._patiently(lambda: self.storage.get_all_trials(self.study, deepcopy=False))

    def latest(self) -> list[FrozenTrial]:
        """The attempt that counts for each number."""
        return latest_attempts(self.attempts())

    def finished(self) -> list[tuple[int, FrozenTrial]]:
        """Numbers that are done, trained to the end or given up by a pruner, with their attempts."""
        return [(number, attempt) for number, attempt in enumerate(self.latest()) if is_done(attempt)]

    def missing(self, total: int) -> list[int]:
        """The numbers of a search of `total` trials that are not done."""
        done = {number for number, _ in self.finished()}
        return [number for number in range(total) if number not in done]

    def lives(self, attempt: FrozenTrial) -> bool:
        """Is somebody training this attempt?

        On this machine the process is looked at. Elsewhere a pulse counts that changes; clocks are not compared.
        """
        worker = attempt.user_attrs.get(WORKER)
        if worker is None or worker == self.me:  # we claim only while we train nothing
            return False
        if (seen := seen_alive(worker, self.me)) is not None:
            return seen
        pulse, now = attempt.user_attrs.get(PULSE), time.monotonic()
        heard, since = self._heard.setdefault(attempt._trial_id, (pulse, now))
        if heard != pulse:
            self._heard[attempt._trial_id] = (pulse, now)
            return True
        return now - since < SILENCE

    # --------------------------------------------------------------------------------------------------- claiming
    def claim(self, total: int) -> Claim | None:
        """The next of `total` trials that nobody else trains or has trained; None while there is none."""
        for attempt in self.attempts():
            if attempt.state.name == "RUNNING" and not self.lives(attempt):
                self._end(attempt._trial_id, "FAIL")
        latest = self.latest()
        for number, attempt in enumerate(latest[:total]):
            if attempt.state.name == "FAIL" and (claim := self._inherit(number, attempt)):
                return claim
        return self._open(total) if len(latest) < total else None

    def _open(self, total: int) -> Claim | None:
        """A new number, if it is still below `total` once we have it."""
        mine = self._create({})
        numbers = [attempt._trial_id for attempt in self.attempts() if HEIR_OF not in attempt.user_attrs]
        number = numbers.index(mine)
        if number < total:
            return Claim(number, mine, inherited=False)
        self._end(mine, "FAIL")
        return None

    def _inherit(self, number: int, dead: FrozenTrial) -> Claim | None:
        """An attempt that ended without a result, if we are its first heir."""
        drawn = dead.user_attrs.get(DRAWN, False)
        kept = {k: v for k, v in dead.user_attrs.items() if k not in (WORKER, PULSE, HEIR_OF, RESULTS, REASON)}
        mine = self._create((kept if drawn else {}) | {HEIR_OF: dead.number}, dead if drawn else None)
        heirs = [attempt._trial_id for attempt in self.attempts() if attempt.user_attrs.get(HEIR_OF) == dead.number]
        if heirs[0] == mine:
            return Claim(number, mine, inherited=True)
        self._end(mine, "FAIL")
        return None

    def _create(self, notes: dict[str, Any], like: FrozenTrial | None = None) -> int:
        """A running attempt of ours, with its worker's name from the start."""
        from optuna.trial import TrialState, create_trial

        attempt = create_trial(
            state=TrialState.RUNNING,
            params=dict(like.params) if like else {},
            distributions=dict(like.distributions) if like else {},
            user_attrs=notes | {WORKER: self.me, PULSE: 0},
        )
        return self.storage.create_new_trial(self.study, attempt)

    # --------------------------------------------------------------------------------------------------- finishing
    def note(self, claim: Claim, name: str, value: Any) -> None:
        """Keep something with an attempt."""
        self.storage.set_trial_user_attr(claim.attempt, name, value)

    def finish(self, claim: Claim, state: str, fitness: float, results: Sequence[float], reason: str = "") -> bool:
        """Enter the outcome (state COMPLETE or PRUNED). False when the trial was taken from us: then it does not count.

        A storage that does not answer is asked again for a few minutes: an outcome may be a day's work.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            self._patiently(lambda: self.note(claim, RESULTS, [float(value) for value in results]))
            if reason:
                self._patiently(lambda: self.note(claim, REASON, reason))
        except UpdateFinishedTrialError:
            return False
        self._patiently(lambda: self._end(claim.attempt, state, fitness))
        return is_done(self._patiently(lambda: self.storage.get_trial(claim.attempt)))

    def drop(self, claim: Claim) -> None:
        """Give an attempt back: an heir will train it."""
        self._end(claim.attempt, "FAIL")

    def _end(self, attempt: int, state: str, fitness: float | None = None) -> None:
        """Set the state of an attempt, unless somebody was faster."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            self.storage.set_trial_state_values(attempt, TrialState[state], None if fitness is None else [fitness])
        except UpdateFinishedTrialError:
            LOGGER.debug(f"attempt {attempt} had ended before it could be set to {state}")

    def _patiently(self, ask: Callable[[], T]) -> T:
        from optuna.exceptions import StorageInternalError

        for pause in PAUSES:
            try:
                return ask()
            except (StorageInternalError, OSError) as error:
                LOGGER.warning(f"the search's storage does not answer ({one_line(error)}); again in {pause} s")
                time.sleep(pause)
        return ask()


def is_done(attempt: FrozenTrial) -> bool:
    """Does its number need no further attempt?"""
    return attempt.state.name in ("COMPLETE", "PRUNED")


def latest_attempts(attempts: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The attempt that counts for each number, of all attempts in Optuna's order."""
    heirs: dict[int, FrozenTrial] = {}
    for attempt in attempts:
        if HEIR_OF in attempt.user_attrs:
            heirs.setdefault(attempt.user_attrs[HEIR_OF], attempt)
    latest = [attempt for attempt in attempts if HEIR_OF not in attempt.user_attrs]
    for number, attempt in enumerate(latest):
        while attempt.number in heirs:
            attempt = heirs[attempt.number]
        latest[number] = attempt
    return latest


class Pulse:
    """A thread that tells the others that this worker lives, and hears when they have given it up.

    `lost` is called when the trial was taken over (this machine was cut off, or slept, for longer than SILENCE).
    """

    def __init__(self, ledger: Ledger, claim: Claim, lost: Callable[[], None]) -> None:
        self.ledger, self.claim, self.lost = ledger, claim, lost
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="search pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(timeout=BEAT)

    def _beat(self) -> None:
        from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

        beats = 0
        while not self._over.wait(BEAT):
            beats += 1
            try:
                self.ledger.note(self.claim, PULSE, beats)
            except UpdateFinishedTrialError:
                self.lost()
                return
            except (StorageInternalError, OSError) as error:  # the next beat may pass; nobody gives us up so soon
                LOGGER.debug(f"a sign of life did not reach the search's storage ({one_line(error)})")
