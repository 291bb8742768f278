"""Who trains what: claims, deaths and heirs, with workers played in one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.distributed.run_lock import process_birth
from utils.search import trials as search_trials
from utils.search.trials import DRAWN, Claim, Ledger, Pulse, is_done, latest_attempts

optuna = pytest.importorskip("optuna")
RESULTS = (0.1,) * 7
LIMITS = optuna.distributions.FloatDistribution(0, 1)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def worker(study: optuna.Study, pid: int = 1, space: str | None = None) -> Ledger:
    """A ledger whose worker has a machine of its own, so that it is judged by its pulse."""
    ledger = Ledger(study._storage, study._study_id)
    ledger.me = ledger.me | {"pid": pid, "space": space or f"machine {pid}"}
    return ledger


def draw(ledger: Ledger, claim: Claim, value: float) -> None:
    ledger.storage.set_trial_param(claim.attempt, "lr0", value, LIMITS)
    ledger.note(claim, DRAWN, True)


def test_nothing_is_asked_of_an_empty_search(study: optuna.Study) -> None:
    ledger = worker(study)
    assert ledger.claim(0) is None and ledger.missing(0) == [] and ledger.finished() == [] == latest_attempts([])
    assert ledger.missing(2) == [0, 1]


def test_numbers_are_given_once_and_end_at_n(study: optuna.Study) -> None:
    one, two = worker(study, 1), worker(study, 2)
    # whoever claims trains nothing: the first worker's own trial 0 counts as given up when it claims again
    claims = [one.claim(3), two.claim(3), one.claim(3)]
    assert [claim.number for claim in claims] == [0, 1, 0] and claims[2].inherited
    assert one.finish(claims[2], "COMPLETE", 0.5, RESULTS) and one.claim(3).number == 2
    assert two.finish(claims[1], "PRUNED", 0.2, RESULTS, "") and two.claim(3) is None
    assert two.missing(3) == [2]


def test_more_trials_may_be_asked_for_later(study: optuna.Study) -> None:
    one, two = worker(study, 1), worker(study, 2)
    first = one.claim(1)
    assert two.claim(1) is None
    two._open(1)  # two came too late: both had seen an empty search
    assert one.finish(first, "COMPLETE", 0.5, RESULTS) and one.missing(1) == []
    assert one.missing(2) == [1] and one.claim(2).number == 1


def test_of_several_heirs_the_first_counts(study: optuna.Study) -> None:
    dead, one, two = (worker(study, pid) for pid in (1, 2, 3))
    claim = dead.claim(2)
    draw(dead, claim, 0.25)
    dead.drop(claim)
    [attempt] = one.latest()
    heir, late = one._inherit(0, attempt), two._inherit(0, attempt)
    assert late is None and heir.number == 0 and heir.inherited
    inherited = study._storage.get_trial(heir.attempt)
    assert (
        inherited.params == {"lr0": 0.25} and inherited.user_attrs[DRAWN] and inherited.distributions == {"lr0": LIMITS}
    )
    assert two.claim(2).number == 1 and two.claim(1) is None


def test_half_a_proposal_is_not_inherited(study: optuna.Study) -> None:
    dead = worker(study, 1)
    claim = dead.claim(1)
    dead.storage.set_trial_param(claim.attempt, "lr0", 0.25, LIMITS)
    dead.drop(claim)
    assert study._storage.get_trial(worker(study, 2).claim(1).attempt).params == {}


def test_on_one_machine_the_process_is_looked_at(study: optuna.Study) -> None:
    ledger, other = (Ledger(study._storage, study._study_id) for _ in range(2))
    other.me = other.me | {"pid": 1, "born": process_birth(1)}
    if other.me["born"] is None:
        pytest.skip("process 1 cannot be seen here")
    other.claim(2)
    assert ledger.claim(1) is None
    other.me["born"] = "7"  # a process of that number, but another one
    assert other.claim(2).number == 1
    heir = ledger.claim(2)
    assert heir.number == 1 and heir.inherited


def test_elsewhere_a_pulse_counts(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(search_trials, "time", SimpleNamespace(monotonic=lambda: clock.now))
    far, near = worker(study, 1), worker(study, 2)
    claim = far.claim(1)
    for moment in (0, search_trials.SILENCE - 1):
        clock.now = moment
        assert near.claim(1) is None
    far.note(claim, "pulse", 1)
    clock.now = search_trials.SILENCE * 1.5
    assert near.claim(1) is None  # it beat since
    clock.now = search_trials.SILENCE * 3
    heir = near.claim(1)
    assert heir.number == 0 and heir.inherited
    # the first worker had only been cut off
    assert not far.finish(claim, "COMPLETE", 0.9, RESULTS) and near.finish(heir, "COMPLETE", 0.4, RESULTS)
    assert [attempt.value for _, attempt in far.finished()] == [0.4]
    far.drop(claim)  # too late as well, and no error


def test_the_pulse_beats_until_the_trial_is_lost(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_trials, "BEAT", 0.01)
    ledger, lost = worker(study), search_trials.threading.Event()
    claim = ledger.claim(1)
    with Pulse(ledger, claim, lost.set) as pulse:
        while study._storage.get_trial(claim.attempt).user_attrs["pulse"] < 3:
            assert pulse._thread.is_alive()
        assert not lost.is_set()
        ledger.drop(claim)
        assert lost.wait(10)
    assert not pulse._thread.is_alive()


def test_a_storage_may_be_away_for_a_while(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(search_trials.time, "sleep", pauses.append)
    ledger, failures = worker(study), [optuna.exceptions.StorageInternalError("gone"), OSError(28, "No space left")]
    claim, note = ledger.claim(1), ledger.note

    def unreliable(*given: object) -> None:
        if failures:
            raise failures.pop()
        note(*given)

    monkeypatch.setattr(ledger, "note", unreliable)
    assert ledger.finish(claim, "COMPLETE", 0.5, RESULTS, "because") and pauses == [1, 2]


class Storage:
    """Optuna's, with a gap after each new attempt in which other workers may act."""

    def __init__(self, storage: optuna.storages.BaseStorage, meanwhile: Callable[[], None]) -> None:
        self.storage, self.meanwhile = storage, meanwhile

    def __getattr__(self, name: str) -> object:
        return getattr(self.storage, name)

    def create_new_trial(self, *given: object) -> int:
        self.meanwhile()
        made = self.storage.create_new_trial(*given)
        self.meanwhile()
        return made


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 6), st.randoms(use_true_random=False))
def test_whoever_dies_whenever_all_trials_are_done_once(total: int, chance: object) -> None:
    """Workers act in random order, also between another's steps, and die at random; who is left finishes."""
    study = optuna.create_study(direction="maximize")
    dead: set[int] = set()
    busy: dict[int, Claim] = {}
    acting: set[int] = set()
    proposals = Counter()

    def act(ledger: Ledger) -> None:
        pid = ledger.me["pid"]
        if pid in dead or pid in acting:
            return
        acting.add(pid)
        if pid not in busy:
            claim = ledger.claim(total)
            if claim and pid not in dead:
                busy[pid] = claim
                if not study._storage.get_trial(claim.attempt).user_attrs.get(DRAWN):
                    proposals[claim.number] += 1
                    draw(ledger, claim, (claim.number + proposals[claim.number] / 10) / 10)
        elif chance.random() < 0.5:
            assert ledger.finish(busy.pop(pid), "COMPLETE", 0.5, RESULTS)
        acting.discard(pid)

    def meanwhile() -> None:
        if chance.random() < 0.7:
            act(chance.choice(ledgers))

    ledgers = [worker(study, pid) for pid in range(5)]
    for ledger in ledgers:
        ledger.storage = Storage(study._storage, meanwhile)
        ledger.lives = lambda attempt, me=ledger: attempt.user_attrs["worker"]["pid"] not in dead | {me.me["pid"]}
    for _ in range(40):
        act(chance.choice(ledgers))
        if chance.random() < 0.25 and len(dead) < 4:
            victim = chance.choice([ledger.me["pid"] for ledger in ledgers if ledger.me["pid"] not in dead])
            dead.add(victim)
            busy.pop(victim, None)
    survivors = [ledger for ledger in ledgers if ledger.me["pid"] not in dead]
    while survivors[0].missing(total):
        act(chance.choice(survivors))
    done = [attempt for attempt in study.trials if is_done(attempt)]
    assert len(done) == total == len(survivors[0].finished())
    assert len({attempt.params["lr0"] for attempt in done}) == total
    assert set(proposals.values()) <= {1}  # a number's hyper-parameters were drawn once, whoever trained them
