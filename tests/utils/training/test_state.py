"""When a run ends early."""

import math

import pytest

from utils.training.state import EarlyStopping


def run(patience, fitness):
    stopper = EarlyStopping(patience)
    for epoch, value in enumerate(fitness):
        if stopper(epoch, value):
            return epoch
    return None


@pytest.mark.parametrize(
    "patience, fitness, stop",
    [(1, [], None), (2, [0.1, 0.1, 0.09, 0.08], 2), (2, [0.1, 0.1, 0.2, 0.1, 0.2], 4), (0, [0.5] * 50, None),
     (2, [0.0, 0.0, 0.0], 2), (2, [math.nan] * 4, 2), (3, [0.1, 0.2, 0.3, 0.4], None)],
)  # fmt: skip
def test_early_stopping_wants_strict_improvement(patience, fitness, stop):
    assert run(patience, fitness) == stop


def test_early_stopping_warns_one_epoch_ahead():
    stopper = EarlyStopping(2)
    told = [(stopper(epoch, 0.1), stopper.possible_stop) for epoch in range(3)]
    assert told == [(False, False), (False, True), (True, True)]
    assert (stopper.best_epoch, stopper.best_fitness) == (0, 0.1)
