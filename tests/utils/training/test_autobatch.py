"""The extrapolation on worked numbers, the CPU's answer, and, with a GPU, a batch that does fit."""

import pytest
import torch
from torch import nn

from utils.training.autobatch import DEFAULT_BATCH, autobatch, largest_batch


def test_a_cpu_gets_the_default_and_the_model_is_left_alone():
    model = nn.Conv2d(3, 4, 1).eval()
    assert autobatch(model, 64) == DEFAULT_BATCH == 16
    assert not model.training


@pytest.mark.parametrize(
    "sizes, used, budget, expected",
    [
        ([1, 2, 4], [30, 40, 60], 221, 20),  # 20 + 10 an image
        ([1, 2, 4], [30, 40, 60], 229, 20),  # rounded down
        ([1, 2, 4], [30, 40, 60], 10, 1),  # nothing fits: still a batch
        ([1, 2], [30, 30], 100, 2),  # no growth: what was measured
        ([1, 2, 4], [60, 50, 40], 100, 4),
    ],
)
def test_extrapolation(sizes, used, budget, expected):
    assert largest_batch(sizes, used, budget) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_chosen_batch_trains():
    class Net(nn.Sequential):
        def forward(self, x):
            return [super().forward(x)]

    model = Net(nn.Conv2d(3, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1)).cuda()
    chosen = autobatch(model, 256, fraction=0.05)
    assert chosen > 1
    model(torch.zeros(chosen, 3, 256, 256, device="cuda"))[0].mean().backward()
