"""The comparison of samplers; what searches find is in tests/utils/search/test_proposals.py."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")

from benchmarks.search import PEAK, REFERENCE, make_function, search
from utils.base.config import Hyp
from utils.search.space import SearchSpace

SPACE = SearchSpace.around(Hyp())


def test_functions_are_highest_at_their_peak() -> None:
    worth = make_function(SPACE, 0)
    assert 0 < worth(SPACE.start) < PEAK and worth(SPACE.start) == make_function(SPACE, 0)(SPACE.start)
    assert worth(SPACE.start) != make_function(SPACE, 1)(SPACE.start)


def test_the_reference_starts_at_the_file_too() -> None:
    trials = search(REFERENCE, SPACE, make_function(SPACE, 0), 8, 0)
    assert trials[0].params == SPACE.start and len({str(trial.params) for trial in trials}) == 8
