"""Who trains what: claims, deaths and workers that take over, played in one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna")

import optuna
from optuna.trial import TrialState

from utils.base.config import Hyp
from utils.distributed.run_lock import process_birth
from utils.search import worker as module
from utils.search.space import SearchSpace
from utils.search.worker import Worker
from utils.training.train_options import TrainOptions

LIMITS = optuna.distributions.FloatDistribution(0, 1)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def worker(study: optuna.Study, total: int, pid: int = 1, folder: Path = Path()) -> Worker:
    """A worker on a machine of its own, so that it is judged by its heartbeat."""
    made = Worker(
        TrainOptions(evolve=total), folder, SearchSpace.around(Hyp()), lambda opt, callbacks: (0.1,) * 7, study
    )
    made.me = made.me | {"pid": pid, "space": f"machine {pid}"}
    return made


def finish(study: optuna.Study, attempt: int) -> None:
    study._storage.set_trial_state_values(attempt, TrialState.COMPLETE, [0.5])


def test_numbers_are_given_once_and_end_at_n(study: optuna.Study) -> None:
    assert worker(study, 0).claim() is None and worker(study, 0).attempts() == []
    one, two = worker(study, 3, 1), worker(study, 3, 2)
    first, second = one.claim(), two.claim()
    assert (first[0], second[0]) == (0, 1)
    finish(study, first[1])
    assert one.claim()[0] == 2 and two.claim()[0] == 1, "its own attempt: it trains nothing while it claims"
    assert worker(study, 3, 3).claim() is None and worker(study, 4, 3).claim()[0] == 3


def test_of_two_that_begin_the_last_trial_one_gives_it_up(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = worker(study, 1, 1), worker(study, 1, 2)
    begin, claims = two.begin, []
    monkeypatch.setattr(two, "begin", lambda *given: claims.append(one.claim()) or begin(*given))
    assert two.claim() is None and claims[0][0] == 0
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "FAIL"]


def test_who_takes_over_trains_the_same(study: optuna.Study) -> None:
    dead, heir = worker(study, 2, 1), worker(study, 2, 2)
    number, attempt = dead.claim()
    study._storage.set_trial_param(attempt, "lr0", 0.25, LIMITS)
    study._storage.set_trial_user_attr(attempt, "worker", None)
    again = heir.claim()
    assert again[0] == number and study._storage.get_trial(again[1]).params == {"lr0": 0.25}
    assert heir.begin({}, {}, {}) and [n for n, _ in heir.attempts()] == [0, 0, 1]


def test_on_one_machine_the_process_is_asked_for(study: optuna.Study) -> None:
    if process_birth(1) is None:
        pytest.skip("process 1 cannot be seen here")
    here, other = worker(study, 1), worker(study, 1)
    here.me = here.me | {"space": "this machine"}
    other.me = here.me | {"pid": 1, "born": process_birth(1)}
    other.claim()
    assert here.claim() is None
    [attempt] = study.trials
    study._storage.set_trial_user_attr(attempt._trial_id, "worker", other.me | {"born": "7"})  # an earlier process 1
    assert here.claim()[0] == 0


def test_elsewhere_a_heartbeat_counts(study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    far, near = worker(study, 1, 1, tmp_path), worker(study, 1, 2)
    _, attempt = far.claim()
    for moment in (0, module.SILENCE - 1):
        clock.now = moment
        assert near.claim() is None
    study._storage.set_trial_user_attr(attempt, "heartbeat", 1)
    clock.now = module.SILENCE * 1.5
    assert near.claim() is None  # it beat since
    clock.now = module.SILENCE * 3
    _, again = near.claim()
    # the first worker had only been cut off: its outcome comes too late
    far.record(0, optuna.Trial(study, attempt), [0.9] * 7, "", False)
    near.record(0, optuna.Trial(study, again), [0.4] * 7, "", False)
    assert [trial.value for trial in study.trials] == [None, 0.4]


def test_the_heart_beats_until_the_trial_is_lost(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    one, callbacks = worker(study, 1), module.Callbacks()
    _, attempt = one.claim()
    storage = study._storage
    deadline = module.time.monotonic() + 30
    with one.heartbeat(optuna.Trial(study, attempt), callbacks):
        while storage.get_trial(attempt).user_attrs["heartbeat"] < 3:
            assert module.time.monotonic() < deadline
        assert not callbacks.stop_training
        storage.set_trial_state_values(attempt, TrialState.FAIL)
        while not callbacks.stop_training:
            assert module.time.monotonic() < deadline


class Meanwhile:
    """A storage with a gap around each new attempt, in which other workers may act."""

    def __init__(self, storage: optuna.storages.BaseStorage, act: Callable[[], None]) -> None:
        self.storage, self.act = storage, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def create_new_trial(self, *given: Any) -> int:
        self.act()
        made = self.storage.create_new_trial(*given)
        self.act()
        return made


@pytest.mark.parametrize("seed", range(40))
def test_whoever_dies_whenever_n_trials_are_done_once(seed: int) -> None:
    """Workers act in random order, also between another's steps, and die at random; who is left finishes."""
    chance, total = Random(seed), seed % 7
    study = optuna.create_study(direction="maximize")
    workers = {pid: worker(study, total, pid) for pid in range(5)}
    dead, acting, busy = set(), set(), {}

    def act(pid: int) -> None:
        if pid in dead | acting:
            return
        acting.add(pid)
        if pid not in busy:
            claim = workers[pid].claim()
            if claim and pid not in dead:
                busy[pid] = claim[1]
        elif chance.random() < 0.5:
            finish(study, busy.pop(pid))
        acting.discard(pid)

    for pid, one in workers.items():
        one.storage = Meanwhile(study._storage, lambda: chance.random() < 0.7 and act(chance.randrange(5)))
        one.is_alive = lambda attempt, me=pid: attempt.user_attrs["worker"]["pid"] not in dead | {me}
    for _ in range(40):
        act(chance.randrange(5))
        if chance.random() < 0.25 and len(dead) < 4:
            dead.add(victim := chance.choice(sorted(workers.keys() - dead)))
            busy.pop(victim, None)
    for _ in range(400):
        act(chance.choice(sorted(workers.keys() - dead)))
    states = Counter(number for number, attempt in workers[0].attempts() if attempt.state == TrialState.COMPLETE)
    assert states.total() == total and set(states.values()) <= {1} and not busy
