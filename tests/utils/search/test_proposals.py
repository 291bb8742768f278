"""What may change in a search, who proposes, and who gives up."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("optuna")
pytest.importorskip("cmaes")

import optuna

from benchmarks.search import KINDS, make_function, search
from utils.base.config import Hyp
from utils.base.paths import check_yaml
from utils.search.proposals import propose
from utils.search.space import LIMITS, PARENTS, SearchSpace

LOW = Hyp.load(check_yaml("hyp.scratch-low.yaml"))
SPACE = SearchSpace.around(LOW)


def test_the_space_around_a_file(caplog: pytest.LogCaptureFixture) -> None:
    assert SPACE.start == {key: getattr(LOW, key) for key in SPACE.keys} and SPACE.hyp == LOW
    assert SPACE.columns == tuple(key for key in LIMITS if key != "anchors")
    assert set(SPACE.columns) - set(SPACE.keys) >= {"iou_t", "fl_gamma", "perspective", "fliplr", "degrees", "mixup"}
    assert "degrees" in SearchSpace.around(replace(LOW, degrees=0.1)).keys
    outside = SearchSpace.around(replace(LOW, lr0=0.5, cls=0.1))
    assert outside.start["lr0"] == 0.1 and outside.start["cls"] == 0.2
    assert "lr0 0.5 to 0.1, cls 0.1 to 0.2" in caplog.text
    with_anchors = replace(LOW, anchors=3.0)
    assert "anchors" in SearchSpace.around(with_anchors).keys
    unfitted = SearchSpace.around(with_anchors, anchors=False)
    assert "anchors" not in unfitted.columns and unfitted.hyp.anchors is None


def test_nothing_to_evolve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Hyp(**{key: 0.0 for key in LIMITS if key != "anchors"})
    positive = {key for key, (_, low, _) in LIMITS.items() if low > 0 and key not in ("anchors", "iou_t")}
    assert set(SearchSpace.around(replace(nothing, lr0=0.01)).keys) == positive  # 0 is below these limits
    monkeypatch.setattr("utils.search.space.LIMITS", {"degrees": (1, 0.0, 45.0)})
    with pytest.raises(ValueError, match="every hyper-parameter"):
        SearchSpace.around(nothing)


@given(st.integers(0, 2**32), st.sampled_from(["hyp.scratch-low.yaml", "hyp.scratch-high.yaml", "hyp.VOC.yaml"]))
def test_mutants_stay_inside_and_differ(seed: int, file: str) -> None:
    space = SearchSpace.around(Hyp.load(check_yaml(file)))
    child = space.mutate([], np.random.default_rng(seed))
    assert child.keys() == space.start.keys() and child != space.start
    filled = asdict(space.filled(child))
    for key, value in child.items():
        assert LIMITS[key][1] <= value <= LIMITS[key][2] and value == filled[key] == float(f"{value:.5g}")
        assert 0.299 <= value / space.start[key] <= 3.001
    assert all(filled[key] == value for key, value in asdict(space.hyp).items() if key not in space.keys)


def test_mutation_is_as_strong_as_yolov5s() -> None:
    rng = np.random.default_rng(0)
    children = [SPACE.mutate([(SPACE.start, 0.5)], rng) for _ in range(4000)]
    factors = np.array([child["translate"] / SPACE.start["translate"] for child in children])  # far from its limits
    rate = np.mean(factors != 1)
    # N(0,1) times U(0,1) times 0.2 has a standard deviation of 0.2 / sqrt(3)
    assert 0.77 < rate < 0.83 and abs(factors[factors != 1].std() - 0.2 / 3**0.5) < 0.006
    assert np.std([child["momentum"] for child in children]) < 0.05  # gain 0.3, and a limit


def test_parents_are_among_the_best_and_better_ones_more_often() -> None:
    space, rng = SearchSpace(LOW, ("anchor_t",), ("anchor_t",)), np.random.default_rng(0)
    tried = [({"anchor_t": 2 + 3.5 * (number % 2) + number / 100}, number / 10) for number in range(10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.search.space.STRENGTH", 1e-3)  # a child tells its parent
        children = [space.mutate(tried, rng)["anchor_t"] for _ in range(2000)]
    nearest = [int(np.argmin([abs(child - values["anchor_t"]) for values, _ in tried])) for child in children]
    counts = np.bincount(nearest, minlength=10)
    assert counts[-PARENTS:].sum() == 2000 and counts[9] > counts[8] > counts[7] > counts[6] > counts[5]
    assert abs(counts[9] / 2000 - 0.4) < 0.04  # weights 4, 3, 2, 1, 0 over their sum


@pytest.mark.parametrize("kind", KINDS)
def test_searches_start_at_the_file_stay_inside_and_repeat(kind: str) -> None:
    worth = make_function(SPACE, 0)
    first, again, other = (search(kind, SPACE, worth, 20, seed) for seed in (0, 0, 1))
    assert first[0].params == SPACE.start
    assert [t.params for t in first] == [t.params for t in again] != [t.params for t in other]
    assert all(LIMITS[k][1] <= v <= LIMITS[k][2] for t in first for k, v in t.params.items())
    assert len({str(t.params) for t in first}) == 20


@pytest.mark.parametrize("kind", ["genetic", "cmaes"])
def test_what_is_learnt_helps(kind: str) -> None:
    worth = make_function(SPACE, 0)
    found, blind = (max(trial.value for trial in search(name, SPACE, worth, 80, 0)) for name in (kind, "random"))
    assert found > blind and found > 1.5 * worth(SPACE.start)


def test_cmaes_moves_on_when_a_generation_is_complete() -> None:
    trials = search("cmaes", SPACE, make_function(SPACE, 0), 40, 0)
    size = 4 + int(3 * np.log(len(SPACE.keys)))  # of a population, in the literature and in the package
    assert [trial.user_attrs.get("generation", 0) for trial in trials] == [number // size for number in range(40)]


def test_an_earlier_attempt_s_values_are_kept() -> None:
    study = optuna.create_study(direction="maximize")
    attempt = study.ask({"cls": optuna.distributions.FloatDistribution(*LIMITS["cls"][1:])})
    trial = propose(study, attempt._trial_id, SPACE, ("genetic", 0), 3, [])
    assert trial.params["cls"] == attempt.params["cls"] and trial.params.keys() == SPACE.start.keys()
