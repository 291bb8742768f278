"""The weight average of a run, and its early end."""

import math

import pytest
import torch
from torch import nn

from utils.training.average import EarlyStopping, ModelEMA


def test_average_of_a_worked_example():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = ModelEMA(nn.DataParallel(model), decay=0.5, tau=1)
    nn.init.constant_(model.weight, 1.0)
    average.update(model)
    past = 0.5 * (1 - math.exp(-1))
    assert average.ema.weight.item() == pytest.approx(1 - past) and average.updates == 1
    nn.init.constant_(model.weight, 2.0)
    average.update(nn.DataParallel(model))
    later = 0.5 * (1 - math.exp(-2))
    assert average.ema.weight.item() == pytest.approx((1 - past) * later + 2 * (1 - later))


@pytest.mark.parametrize("updates, decay", [(0, 0), (1, 0.0005), (100, 0.04877), (2000, 0.63206), (10000, 0.99316)])
def test_decay_ramp(updates, decay):
    assert ModelEMA(nn.Identity()).decay(updates) == pytest.approx(decay, abs=5e-6)


def test_average_takes_part_in_nothing_and_counts_batches():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    average = ModelEMA(model, updates=5)
    model(torch.rand(2, 1, 3, 3))
    average.update(model)
    assert not average.ema.training and not any(p.requires_grad for p in average.ema.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert average.ema[1].num_batches_tracked == 1 and average.updates == 6


def test_average_copies_attributes():
    model = nn.Identity()
    average = ModelEMA(model)
    model.names, model.reducer = ["a"], 1
    average.update_attr(model)
    assert average.ema.names == ["a"] and not hasattr(average.ema, "reducer")


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
