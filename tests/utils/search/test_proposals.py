"""Who proposes, and who gives up."""

from __future__ import annotations

import numpy as np
import pytest

from utils.base.config import Hyp
from utils.search.proposals import SAMPLERS, Turn, build_pruner, build_sampler, check_sampler, distributions
from utils.search.space import LIMITS, SearchSpace

optuna = pytest.importorskip("optuna")
SPACE = SearchSpace.around(Hyp())


def quality(params: dict[str, float]) -> float:
    """Highest at a point away from the start, which is Hyp's defaults."""
    wanted = {"lr0": 0.03, "momentum": 0.8, "box": 0.1, "cls": 1.5, "scale": 0.2}
    span = {key: LIMITS[key][2] - LIMITS[key][1] for key in wanted}
    return float(np.exp(-sum(((params[key] - value) / span[key]) ** 2 for key, value in wanted.items())))


def search(kind: str, trials: int, seed: int = 0) -> list[optuna.trial.FrozenTrial]:
    """A whole search without training."""
    study = optuna.create_study(direction="maximize")
    for number in range(trials):
        trial_id = study._storage.create_new_trial(study._study_id)
        finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        turn = Turn(number, seed, finished, lambda k, v, i=trial_id: study._storage.set_trial_user_attr(i, k, v))
        study.sampler = build_sampler(kind, SPACE, turn)
        trial = optuna.Trial(study, trial_id)
        for key, limits in distributions(SPACE).items():
            trial.suggest_float(key, limits.low, limits.high, log=limits.log)
        study.tell(trial, quality(trial.params))
    return study.trials


@pytest.mark.parametrize("kind", SAMPLERS)
def test_searches_start_at_the_file_stay_inside_and_repeat(kind: str) -> None:
    check_sampler(kind, SPACE)
    first, again, other = (search(kind, 20, seed) for seed in (0, 0, 1))
    assert first[0].params == SPACE.start
    assert [t.params for t in first] == [t.params for t in again]
    assert [t.params for t in first] != [t.params for t in other]
    assert all(LIMITS[k][1] <= v <= LIMITS[k][2] for t in first for k, v in t.params.items())
    assert len({str(t.params) for t in first}) == 20


@pytest.mark.parametrize("kind", ["genetic", "cmaes"])
def test_what_is_learnt_helps(kind: str) -> None:
    trials = search(kind, 80)
    assert max(t.value for t in trials) > trials[0].value + 0.5 * (1 - trials[0].value)
    assert max(t.value for t in trials) > max(t.value for t in search("random", 80))


def test_cmaes_moves_on_when_a_generation_is_complete() -> None:
    generations = [trial.user_attrs.get("generation", 0) for trial in search("cmaes", 40)]
    size = 4 + int(3 * np.log(len(SPACE.keys)))  # of a population, in the literature and in the package
    assert generations == [number // size for number in range(40)]


def test_what_cannot_propose_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="choose genetic, tpe"):
        check_sampler("bayes", SPACE)
    one = SearchSpace(SPACE.hyp, ("lr0",), SPACE.columns)
    with pytest.raises(ValueError, match="two or more"):
        check_sampler("cmaes", one)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install cmaes"):
        check_sampler("cmaes", SPACE)


def test_pruners() -> None:
    with pytest.raises(ValueError, match="choose none, median"):
        build_pruner("axe", 100)
    kinds = {kind: type(build_pruner(kind, 100)).__name__ for kind in ("none", "median", "halving", "hyperband")}
    assert list(kinds.values()) == ["NopPruner", "MedianPruner", "SuccessiveHalvingPruner", "HyperbandPruner"]
    study = optuna.create_study(direction="maximize", pruner=build_pruner("median", 10))
    for value in range(6):  # each below all before it
        trial = study.ask()
        trial.report(-float(value), 1)
        trial.report(-float(value), 2)
        assert trial.should_prune() == (value == 5)  # five to compare with, and not before the first sixteenth
        study.tell(trial, -float(value))
