"""The comparison of samplers."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")

from benchmarks.search import REFERENCE, SAMPLERS, make_function, search
from utils.base.config import Hyp
from utils.search.space import SearchSpace

SPACE = SearchSpace.around(Hyp())


@pytest.mark.parametrize("kind", [*SAMPLERS, REFERENCE])
def test_a_search_finds_nothing_much_worse_than_its_start(kind: str) -> None:
    worth = make_function(SPACE, 0)
    assert search(kind, SPACE, worth, 1, 0) == worth(SPACE.start)
    assert search(kind, SPACE, worth, 8, 0) > worth(SPACE.start) - 0.02
