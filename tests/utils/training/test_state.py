"""When a run ends early."""

import math

import pytest

from utils.training.state import EarlyStopping


@pytest.mark.parametrize(
    "patience, fitness, stop",
    [(1, [], None), (2, [0.1, 0.1, 0.09, 0.08], 2), (2, [0.1, 0.1, 0.2, 0.1, 0.2], 4), (0, [0.5] * 50, None),
     (2, [0.0, 0.0, 0.0], 2), (2, [math.nan] * 4, 2), (3, [0.1, 0.2, 0.3, 0.4], None)],
)  # fmt: skip
def test_early_stopping_wants_strict_improvement_and_warns_one_epoch_ahead(patience, fitness, stop):
    stopper = EarlyStopping(patience)
    seen = [(stopper(epoch, value), stopper.possible_stop) for epoch, value in enumerate(fitness)]
    stops = [ended for ended, _ in seen]
    assert (stops.index(True) if True in stops else None) == stop
    assert stop is None or seen[stop - 1] == (False, True)
