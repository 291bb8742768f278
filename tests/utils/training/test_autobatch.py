"""The extrapolation on worked numbers, the CPU's answer, and, with a GPU, a batch that does fit."""

import pytest
import torch
from torch import nn

from utils.training.autobatch import DEFAULT_BATCH, autobatch, check_train_batch_size, largest_batch, measure_batches


def test_a_cpu_gets_the_default_and_the_model_is_left_alone():
    model = nn.Conv2d(3, 4, 1).eval()
    assert check_train_batch_size(model, 64) == DEFAULT_BATCH == 16
    assert not model.training


@pytest.mark.parametrize(
    "sizes, used, budget, expected",
    [
        ([1, 2, 4], [30, 40, 60], 221, 20),  # 20 + 10 a picture
        ([1, 2, 4], [30, 40, 60], 229, 20),  # rounded down
        ([1, 2, 4], [30, 40, 60], 10, 1),  # nothing fits: still a batch
        ([1, 2], [30, 30], 100, 2),  # no growth: what was measured
        ([1, 2, 4], [60, 50, 40], 100, 4),
    ],
)
def test_extrapolation(sizes, used, budget, expected):
    assert largest_batch(sizes, used, budget) == expected


def test_measuring_stops_at_the_first_batch_that_does_not_fit(monkeypatch):
    reserved = {"now": 100, "peak": 100}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: reserved.update(peak=reserved["now"]))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: reserved["peak"])

    def step(size):
        if size > 4:
            raise torch.OutOfMemoryError("full")
        reserved["peak"] = reserved["now"] + 10 * size

    assert measure_batches(step, (1, 2, 4, 8, 16), torch.device("cpu")) == ([1, 2, 4], [10, 20, 40])
    assert measure_batches(step, (8,), torch.device("cpu")) == ([], [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_chosen_batch_trains():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1))

        def forward(self, x):
            return [self.layers(x)]

    model = Net().cuda()
    chosen = autobatch(model, 256, fraction=0.05)
    assert chosen > 1
    model(torch.zeros(chosen, 3, 256, 256, device="cuda"))[0].mean().backward()
