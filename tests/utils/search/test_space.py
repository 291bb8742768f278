"""What may change in a search, and how."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.base.config import Hyp
from utils.base.paths import check_yaml
from utils.search.space import LIMITS, PARENTS, SearchSpace, choose_parent, tidy

LOW = Hyp.load(check_yaml("hyp.scratch-low.yaml"))


def test_nothing_to_evolve_is_said() -> None:
    nothing = Hyp(**{key: 0.0 for key in LIMITS if key != "anchors"})
    positive = {key for key, (_, low, _) in LIMITS.items() if low > 0 and key not in ("anchors", "iou_t")}
    assert set(SearchSpace.around(replace(nothing, lr0=0.01)).keys) == positive  # 0 is below these limits
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="every hyper-parameter"):
        patch.setattr("utils.search.space.LIMITS", {"degrees": (1, 0.0, 45.0)})
        SearchSpace.around(nothing)


def test_the_files_values_are_the_start_and_zeros_stay() -> None:
    space = SearchSpace.around(LOW)
    assert space.start == {key: getattr(LOW, key) for key in space.keys} and space.hyp == LOW
    assert {"iou_t", "fl_gamma", "perspective", "fliplr", "degrees", "mixup"} <= set(space.kept)
    assert set(space.columns) == set(LIMITS) - {"anchors"} and list(space.columns) == [
        k for k in LIMITS if k != "anchors"
    ]
    assert "degrees" in SearchSpace.around(replace(LOW, degrees=0.1)).keys


def test_what_lies_outside_is_moved_and_said(caplog: pytest.LogCaptureFixture) -> None:
    space = SearchSpace.around(replace(LOW, lr0=0.5, cls=0.1))
    assert space.start["lr0"] == 0.1 and space.start["cls"] == 0.2
    assert "lr0 0.5 to 0.1, cls 0.1 to 0.2" in caplog.text


def test_anchors_evolve_only_where_they_are_fitted() -> None:
    with_anchors = replace(LOW, anchors=3.0)
    assert "anchors" in SearchSpace.around(with_anchors).keys
    unfitted = SearchSpace.around(with_anchors, anchors=False)
    assert "anchors" not in unfitted.columns and unfitted.hyp.anchors is None
    assert "anchors" not in SearchSpace.around(LOW).columns


@given(st.integers(0, 2**32), st.sampled_from(["hyp.scratch-low.yaml", "hyp.scratch-high.yaml", "hyp.VOC.yaml"]))
def test_mutants_stay_inside_and_differ(seed: int, file: str) -> None:
    space = SearchSpace.around(Hyp.load(check_yaml(file)))
    child = space.mutate(space.start, np.random.default_rng(seed))
    assert child.keys() == space.start.keys() and child != space.start
    for key, value in child.items():
        assert LIMITS[key][1] <= value <= LIMITS[key][2] and value == tidy(value)
        assert 0.299 <= value / space.start[key] <= 3.001
    filled = asdict(space.filled(child))
    assert all(filled[key] == value for key, value in asdict(space.hyp).items() if key not in space.keys)
    assert dict(zip(space.columns, space.row(child), strict=True)).items() >= child.items()


def test_mutation_is_as_strong_as_yolov5s() -> None:
    space, rng = SearchSpace.around(LOW), np.random.default_rng(0)
    children = [space.mutate(space.start, rng) for _ in range(4000)]
    factors = np.array([child["translate"] / space.start["translate"] for child in children])  # far from its limits
    rate = np.mean(factors != 1)
    # N(0,1) times U(0,1) times 0.2 has a standard deviation of 0.2 / sqrt(3)
    assert 0.77 < rate < 0.83 and abs(factors[factors != 1].std() - 0.2 / 3**0.5) < 0.006
    gentle = np.array([child["warmup_bias_lr"] for child in children])  # 0.1 of at most 0.2
    assert gentle.max() <= 0.2 and np.std([child["momentum"] for child in children]) < 0.05  # gain 0.3, and a limit


def test_parents_are_among_the_best_and_better_ones_more_often() -> None:
    tried = [({"lr0": float(i)}, i / 10) for i in range(10)]
    rng = np.random.default_rng(0)
    chosen = [choose_parent(tried, rng)["lr0"] for _ in range(2000)]
    counts = [chosen.count(value) for value in range(10)]
    assert sum(counts[-PARENTS:]) == 2000 and counts[9] > counts[8] > counts[7] > counts[6] > counts[5]
    # weights 4, 3, 2, 1, 0 over their sum
    assert abs(counts[9] / 2000 - 0.4) < 0.04
    assert choose_parent([({"lr0": 1.0}, 0.0)], rng) == {"lr0": 1.0}
