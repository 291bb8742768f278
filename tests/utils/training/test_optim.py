"""Parameter groups, optimisers and the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from utils.base.config import Hyp
from utils.training.optim import ModelEMA, Recipe, Schedule, build_optimizer, choose_recipe, parameter_groups


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MultiheadAttention(4, 2), nn.LayerNorm(4))


def test_every_parameter_is_in_one_group_and_only_weights_are_decayed() -> None:
    assert parameter_groups(nn.Identity()) == ([], [], [])
    for name in ("SGD", "Adam", "AdamW"):
        groups = build_optimizer(net(), Recipe(name, 0.01, 0.9, 0.05)).param_groups
        assert [group["weight_decay"] for group in groups] == [0.0, 0.05, 0.0]
    model = net()
    model.scale = nn.Parameter(torch.ones(3))
    norms, weights, biases = parameter_groups(model)
    assert len(norms) == 2 and {id(p) for p in weights} >= {id(model.scale), id(model[2].in_proj_weight)}
    everything = [id(p) for p in norms + weights + biases]
    assert len(everything) == len(set(everything)) == len(list(model.parameters()))


@pytest.mark.parametrize("batch, decay", [(16, 0.0005), (128, 0.001), (48, 0.0005 * 48 / 64)])
def test_decay_is_scaled_to_the_nominal_batch(batch: int, decay: float) -> None:
    assert choose_recipe("SGD", Hyp(), 10**6, batch).weight_decay == pytest.approx(decay)
    assert [choose_recipe("auto", Hyp(), steps, 16).optimizer for steps in (780, 10**6)] == ["AdamW", "SGD"]


@pytest.mark.parametrize("steps", [100, 10**6])
def test_trained_weights_get_smaller_steps_than_random_ones(steps: int) -> None:
    fresh = choose_recipe("auto", Hyp(), 100, 16)
    backbone, head = (choose_recipe("auto", Hyp(), steps, 16, covered) for covered in ("backbone", "head"))
    assert head.lr < backbone.lr < fresh.lr and {head.optimizer, backbone.optimizer} == {"AdamW"}
    assert (fresh.steps, backbone.steps, head.steps) == (0, 0, steps)  # only what can be used as it is is kept
    named = choose_recipe("SGD", Hyp(lr0=0.02), steps, 16, "head")
    assert (named.lr, named.steps, named.covered) == (0.02, 0, "head")


def rates(schedule: Schedule, iterations: range, name: str = "SGD") -> list[tuple[float, float, float, float, int]]:
    optimizer, rows = build_optimizer(net(), schedule.recipe), []
    for i in iterations:
        accumulate = schedule.apply(optimizer, i)
        groups = optimizer.param_groups
        rows.append((*(group["lr"] for group in groups), groups[0]["momentum"], accumulate))
    return rows


def test_warm_up_ends_where_the_schedule_begins() -> None:
    hyp = Hyp(warmup_epochs=3)
    schedule = Schedule(hyp, Recipe("SGD", 0.01, 0.937, 0), epochs=100, batches=500, total_batch=16)
    assert schedule.warmup == 1500
    first, last, after = (rates(schedule, range(step, step + 1))[0] for step in (0, 1499, 1500))
    assert first == (0.0, 0.0, 0.1, 0.8, 1) and after[3:] == (0.937, 4)
    assert last[0] == pytest.approx(after[0], rel=0.02) and last[2] == pytest.approx(after[2], rel=0.02)


@pytest.mark.parametrize("epochs, batches", [(1, 1), (1, 2), (3, 5), (60, 13), (300, 1000)])
def test_warm_up_never_takes_more_than_a_third(epochs: int, batches: int) -> None:
    schedule = Schedule(Hyp(), Recipe("SGD", 0.01, 0.937, 0), epochs, batches, 16)
    assert schedule.warmup <= epochs * batches / 3
    assert Schedule(Hyp(warmup_epochs=0), schedule.recipe, epochs, batches, 16).warmup == 0


def test_linear_and_cosine_end_at_lrf() -> None:
    linear, cosine = (Schedule(Hyp(), Recipe("SGD", 1, 0.9, 0), 10, 1, 64, cosine=shape) for shape in (False, True))
    for schedule in (linear, cosine):
        assert [schedule.factor(epoch) for epoch in (0, 5, 10)] == pytest.approx([1, 0.505, 0.01])
    assert cosine.factor(2) == pytest.approx((1 + math.cos(math.pi * 0.2)) / 2 * 0.99 + 0.01)


def test_mosaics_end_before_the_run_does_and_do_not_begin_where_a_start_is_kept() -> None:
    fresh, kept = Recipe("AdamW", 1, 0.9, 0), Recipe("AdamW", 1, 0.9, 0, "head", steps=50)
    for recipe, last, plain in (
        (fresh, 0, []),
        (fresh, 2, [3, 4]),
        (kept, 2, [0, 1, 2, 3, 4]),
        (kept, 0, []),
    ):  # 0 is v6.1's: a file that does not close mosaics means them
        schedule = Schedule(Hyp(close_mosaic=last), recipe, 5, 10, 16)
        assert [epoch for epoch in range(5) if schedule.is_plain(epoch)] == plain


def test_the_schedule_has_no_memory() -> None:
    schedule = Schedule(Hyp(), Recipe("SGD", 0.01, 0.9, 0), 20, 10, 16)
    assert rates(schedule, range(150, 160)) == rates(schedule, range(0, 160))[150:]


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


def test_a_start_worth_keeping_is_given_up_as_slowly_as_the_run_is_long():
    average = ModelEMA(nn.Linear(1, 1), steps=100)
    assert [average.decay(step) for step in (1, 50, 90, 100, 500)] == pytest.approx([99 / 100, 50 / 51, *[10 / 11] * 3])
    kept = math.prod(average.decay(step) for step in range(1, 101))
    assert 0.03 < kept < 0.05  # of the start, at the end: some 0.1 where the windows meet, and exp(-1) of that
    short = ModelEMA(nn.Linear(1, 1), steps=3)
    assert math.prod(short.decay(step) for step in (1, 2, 3)) == pytest.approx(0.97, abs=0.001)  # 99/100 98/99 97/98


def test_average_takes_part_in_nothing_and_counts_batches():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    average = ModelEMA(model, updates=5)
    decays = [average.decay(updates) for updates in (0, 1, 100, 2000, 10000)]
    assert decays == pytest.approx([0, 0.0005, 0.04877, 0.63206, 0.99316], abs=5e-6)
    model(torch.rand(2, 1, 3, 3))
    average.update(model)
    assert not average.ema.training and not any(p.requires_grad for p in average.ema.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert average.ema[1].num_batches_tracked == 1 and average.updates == 6
    model.names, model.reducer = ["a"], 1
    average.update_attr(model)
    assert average.ema.names == ["a"] and not hasattr(average.ema, "reducer")
